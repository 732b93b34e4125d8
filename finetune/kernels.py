"""A saving on processors without Triton: TRL's log-probabilities of the reply alone, and not of the prompt as well."""

from __future__ import annotations

import trl.trainer.utils


def score_replies_only() -> None:
    """Have TRL score the labelled positions only, as it does on a GPU.

    Elsewhere it scores every position and masks the result, so that shapes stay the same for compilers; here nothing is
    compiled, and with a short reply after a long prompt that would be a fifth of the time of a step.
    """
    trl.trainer.utils._use_triton = _always


def _always(device: object) -> bool:
    return True
