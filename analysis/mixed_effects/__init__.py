"""Mixed-effects models in the notation of lme4: linear by (RE)ML, logistic and Poisson by Laplace approximation or adaptive quadrature."""

from vlm_probe.analysis.mixed_effects.errors import FitError, FitWarning, SeparationError
from vlm_probe.analysis.mixed_effects.result import FitResult, fit

__all__ = ["FitError", "FitResult", "FitWarning", "SeparationError", "fit"]
