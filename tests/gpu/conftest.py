"""The untrained models of every served family, shared with the tests of `probes`; and nothing runs without a GPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

_spec = importlib.util.spec_from_file_location("probes_families", Path(__file__).parents[1] / "probes" / "conftest.py")
assert _spec is not None and _spec.loader is not None
_shared = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _shared
_spec.loader.exec_module(_shared)

families = _shared.families
save_family = _shared.save_family
save_network = _shared.save_network


@pytest.fixture(scope="session", autouse=True)
def gpu() -> str:
    """Name of the GPU; a failure, and no skip, where there is none: whoever asks for these tests wants to know."""
    if not torch.cuda.is_available():
        pytest.fail("these tests need an NVIDIA GPU that torch can see")
    return torch.cuda.get_device_name()
