"""The untrained models of every served family, shared with the tests of `probes`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("probes_families", Path(__file__).parents[1] / "probes" / "conftest.py")
assert _spec is not None and _spec.loader is not None
_shared = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _shared
_spec.loader.exec_module(_shared)

families = _shared.families
save_family = _shared.save_family
save_network = _shared.save_network
