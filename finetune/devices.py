"""Where a training computes: one device per process, whatever else the machine has."""

from __future__ import annotations

from typing import Any

DEVICES = ("auto", "cpu", "cuda")
"""What a training can be told. One GPU of several is chosen by what the process can see (`CUDA_VISIBLE_DEVICES`)."""


def on_one_gpu(arguments: Any) -> Any:
    """Make a process train on one GPU, however many it sees.

    Without a launcher, transformers would hand a part of every batch to each GPU in threads (`nn.DataParallel`), and TRL refuses
    to go on. More GPUs take more processes, which `accelerate launch` starts.

    Args:
        arguments: Of a trainer of transformers; changed in place, and given back.
    """
    if arguments.n_gpu > 1:  # a process of a launcher counts its own alone
        # As transformers does for a model that lies on several GPUs; there is no setting for it.
        arguments._n_gpu = 1
    return arguments
