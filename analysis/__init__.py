"""Trial tables to statistics, figures and reports. Knows trial rows and run.json only; never imports torch.

`from vlm_probe.analysis import fit` fits mixed-effects models (`vlm_probe.analysis.mixed_effects`); it is loaded when it is asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm_probe.analysis.mixed_effects import FitError, FitResult, FitWarning, SeparationError, fit

__all__ = ["FitError", "FitResult", "FitWarning", "SeparationError", "fit"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from vlm_probe.analysis import mixed_effects

        return getattr(mixed_effects, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
