"""What can be wrong with a model or its data: one exception, and one warning, whose texts end with what to do."""

from __future__ import annotations

from vlm_probe.stimuli.errors import ProbeError


class FitError(ProbeError, ValueError):
    """A model cannot be fitted to these data as it stands; the message names the column, factor or cell."""


class SeparationError(FitError):
    """A predictor, or a combination of them, foretells the answers perfectly, so that its estimate is infinite."""


class FitWarning(UserWarning):
    """Something about a fit that a reader of its numbers has to know. All of them are in `FitResult.warnings`."""
