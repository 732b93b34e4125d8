"""Mixed-effects models: linear by (RE)ML, logistic and Poisson by the Laplace approximation, in the notation of lme4."""

from vlm_probe.analysis.mixed_effects.errors import FitError, FitWarning, SeparationError
from vlm_probe.analysis.mixed_effects.fitting import fit
from vlm_probe.analysis.mixed_effects.result import FitResult

__all__ = ["FitError", "FitResult", "FitWarning", "SeparationError", "fit"]
