"""Keeping freed memory: large blocks that are freed stay with the process and are not zeroed anew by the kernel."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import numpy as np
from vlm_probe.probes.allocation import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
np.zeros(4_000_000) + 1
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.zeros(4_000_000) + 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_large_blocks_are_not_faulted_in_again():
    faults = {}
    for mode in ("keep", "give"):
        run = subprocess.run([sys.executable, "-c", SCRIPT, mode], capture_output=True, text=True, check=True)
        faults[mode] = int(run.stdout)
    assert faults["keep"] < 0.1 * faults["give"]
