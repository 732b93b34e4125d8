"""Keeping freed memory: glibc gives large blocks back to the system at once, and every step then pays for them again."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_LARGEST = 2**31 - 1


def keep_freed_memory() -> None:
    """Let this process keep what it frees, up to two GiB, for its next tensors.

    Training a small model on a CPU frees and allocates the same activations in every step. As fresh pages they must be zeroed by
    the kernel, which takes as long as the arithmetic. Does nothing where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 1 << 30)
        mallopt(_TRIM_THRESHOLD, _LARGEST)
