"""The untrained models of every served family, shared with the tests of `probes`; and nothing runs without a GPU."""

from __future__ import annotations

import pytest
import torch

from tests.families import families, save_family, save_network

__all__ = ["families", "gpu", "save_family", "save_network"]


@pytest.fixture(scope="session", autouse=True)
def gpu() -> str:
    """Name of the GPU; a failure, and no skip, where there is none: whoever asks for these tests wants to know."""
    if not torch.cuda.is_available():
        pytest.fail("these tests need an NVIDIA GPU that torch can see")
    return torch.cuda.get_device_name()
