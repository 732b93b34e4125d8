"""Mixed-effects models: linear by (RE)ML, logistic and Poisson by the Laplace approximation, in the notation of lme4."""

from analysis.mixed_effects.errors import FitError, FitWarning, SeparationError
from analysis.mixed_effects.fitting import fit
from analysis.mixed_effects.result import FitResult

__all__ = ["FitError", "FitResult", "FitWarning", "SeparationError", "fit"]
