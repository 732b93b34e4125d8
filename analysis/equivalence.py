"""Evidence for the absence of an effect: equivalence tests against a stated bound, and Bayes factors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.stats import t as student

from vlm_probe.stimuli.errors import InvalidInput

MEDIUM = math.sqrt(2) / 2
"""Scale of the Cauchy prior on the effect size that R's BayesFactor calls "medium"."""


VERDICT = (
    "verdict: different if p (Holm) < alpha, equivalent if p (equivalence) < alpha, trivial if both, undecided if neither; intervals are"
    " not corrected, and decide nothing"
)
"""The one rule by which tables, sentences and figures say what came out."""


def verdict(p_difference: float, p_equivalence: float, alpha: float = 0.05) -> str:
    """What follows from two tests, in the four words that Lakens (2017) distinguishes: equivalent, different, trivial, undecided.

    "trivial" is a difference from 0 that is smaller than the bound; "undecided" is neither: the data do not say.

    Args:
        p_difference: That there is no difference, corrected for how many were tested.
        p_equivalence: That it is outside the bound; nan where nothing can be tested.
        alpha: Level of both tests.
    """
    if math.isnan(p_equivalence) and math.isnan(p_difference):
        return "undefined"
    different = p_difference < alpha
    if p_equivalence < alpha:
        return "trivial" if different else "equivalent"
    return "different" if different else "undecided"


def verdicts(table: pd.DataFrame, alpha: float) -> list[str | None]:
    """The verdict of every row with `p_holm` and `p_equivalence`; None where nothing could be tested.

    Args:
        table: One row per comparison.
        alpha: Level of both tests.
    """
    rows = zip(table["p_holm"], table["p_equivalence"], strict=True)
    found = [verdict(float(p_holm), float(p), alpha) for p_holm, p in rows]
    return [None if word == "undefined" else word for word in found]


def at_odds(row: Mapping[Any, Any], alpha: float) -> str:
    """Where the interval of a difference of rates and its verdict seem to say different things, why they do; else empty.

    Args:
        row: `difference_low`, `difference_high`, `p`, `p_holm` and `verdict` of a comparison.
        alpha: Level of the test.
    """
    clear = not row["difference_low"] <= 0 <= row["difference_high"]
    told = row["p_holm"] < alpha
    if row["verdict"] is None or clear == told:
        return ""
    if clear and row["p"] < alpha:
        return (
            "the interval of the difference, which is not corrected, leaves out 0; after Holm's correction it is not told from 0, and"
            " this decides"
        )
    return (
        f"the interval of the difference of rates {'leaves out' if clear else 'contains'} 0, and the test of log odds"
        f" {'does not tell it' if clear else 'tells it'} from 0: the test decides; with rates near 0 or 1, or several tests, the two"
        " scales weigh them differently"
    )


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests of an estimate against a bound.

    Attributes:
        estimate: What was estimated, on the scale of the bound.
        se: Its standard error, on the side of 0.
        df: Degrees of freedom of the t distribution; inf for z.
        low, high: The bound: effects inside it are too small to matter.
        p_low: Of the test against "the effect is at or below `low`".
        p_high: Of the test against "the effect is at or above `high`".
        p: The larger of the two: the p-value of equivalence.
        p_difference: Of the ordinary two-sided test against 0.
        ci_low, ci_high: The 1 - 2 alpha interval; equivalence holds exactly if it lies within the bound.
        alpha: Level of each one-sided test.
    """

    estimate: float
    se: float
    df: float
    low: float
    high: float
    p_low: float
    p_high: float
    p: float
    p_difference: float
    ci_low: float
    ci_high: float
    alpha: float

    @property
    def equivalent(self) -> bool:
        """Whether effects outside the bound are rejected."""
        return self.p < self.alpha

    @property
    def verdict(self) -> str:
        """What follows; see `verdict`."""
        return verdict(self.p_difference, self.p, self.alpha)


def equivalence(
    estimate: float,
    se: float | tuple[float, float],
    bound: float | tuple[float, float],
    df: float = math.inf,
    alpha: float = 0.05,
) -> Equivalence:
    """Two one-sided t tests (TOST; Schuirmann, 1987; Lakens, 2017, Soc Psychol Pers Sci 8:355-362).

    Args:
        estimate: The effect, such as a contrast of log odds.
        se: Its standard error; two of them, downwards and upwards, where the interval is not symmetric, as of rates near 0 or 1.
        bound: The smallest effect that would matter, on the same scale: a number for (-bound, bound), or both ends. It is to be
            stated before the data are seen.
        df: Degrees of freedom; for run-level contrasts those between runs.
        alpha: Level of each one-sided test.

    Raises:
        ValueError: If the bound is empty or the standard error negative.
    """
    low, high = (-float(bound), float(bound)) if isinstance(bound, int | float) else (float(bound[0]), float(bound[1]))
    if not low < high:
        raise InvalidInput(
            f"the equivalence bound ({low:g}, {high:g}) is empty: give a positive number, or (low, high)"
        )
    below, above = se if isinstance(se, tuple) else (se, se)
    toward_0 = below if estimate > 0 else above
    if min(below, above) < 0:
        raise InvalidInput(f"a standard error cannot be negative, got {min(below, above):g}")
    if not (math.isfinite(estimate) and math.isfinite(below + above) and min(below, above) > 0 and df > 0):
        # Without a spread between runs (one run, or runs that all agree) nothing can be tested.
        nan = math.nan
        return Equivalence(estimate, toward_0, df, low, high, nan, nan, nan, nan, nan, nan, alpha)
    p_low = float(student.sf((estimate - low) / below, df))
    p_high = float(student.cdf((estimate - high) / above, df))
    critical = float(student.ppf(1 - alpha, df))
    return Equivalence(
        estimate=estimate,
        se=toward_0,
        df=df,
        low=low,
        high=high,
        p_low=p_low,
        p_high=p_high,
        p=max(p_low, p_high),
        p_difference=2 * float(student.sf(abs(estimate) / toward_0, df)),
        ci_low=estimate - critical * below,
        ci_high=estimate + critical * above,
        alpha=alpha,
    )


@dataclass(frozen=True)
class BayesFactor:
    """How many times more probable the data are with an effect than without.

    Attributes:
        bf10: The Bayes factor for the effect; `bf01` is the one for its absence.
        log_bf10: Its natural logarithm, which neither overflows nor vanishes.
        method: How it was computed, and under which prior.
        t, df, n: The statistic behind it, its degrees of freedom and the effective number of observations.
    """

    bf10: float
    log_bf10: float
    method: str
    t: float = math.nan
    df: float = math.nan
    n: float = math.nan

    @property
    def bf01(self) -> float:
        """The Bayes factor for the absence of the effect."""
        return math.exp(-self.log_bf10) if self.log_bf10 > -700 else math.inf

    @property
    def evidence(self) -> str:
        """In the words of Lee and Wagenmakers (2013): anecdotal up to 3, moderate to 10, strong to 30, very strong to 100."""
        if math.isnan(self.log_bf10):
            return "undefined"
        size = abs(self.log_bf10)
        words = ((3, "anecdotal"), (10, "moderate"), (30, "strong"), (100, "very strong"), (math.inf, "extreme"))
        word = next(word for limit, word in words if size < math.log(limit))
        return f"{word} for {'an effect' if self.log_bf10 > 0 else 'no effect'}"


def jzs(t: float, df: float, n: float, scale: float = MEDIUM) -> BayesFactor:
    """JZS Bayes factor of a t statistic, by numerical integration (Rouder et al., 2009, Psychon Bull Rev 16:225-237, eq. 1).

    The effect size has a Cauchy prior, the mean and the variance Jeffreys'.

    Args:
        t: The t statistic.
        df: Its degrees of freedom.
        n: Effective number of observations: n of one sample, n1 n2 / (n1 + n2) of two, 1 / sum(w^2 / n) of a contrast
            of group means with weights w.
        scale: Scale of the Cauchy prior.

    Raises:
        ValueError: If df, n or scale is not positive.
    """
    if not (df > 0 and n > 0 and scale > 0):
        raise InvalidInput(f"a JZS Bayes factor needs df, n and scale above 0, got {df:g}, {n:g}, {scale:g}")
    method = f"JZS, Cauchy prior with scale {scale:.3f}"
    if not math.isfinite(t):
        return BayesFactor(math.nan, math.nan, method, t, df, n)

    def log_integrand(u: float) -> float:
        # Over u = log g, where the integrand is one smooth hump. Relative to the null hypothesis, so that large t is safe.
        a = 1 + n * scale**2 * math.exp(u)
        fit = (math.log1p(t * t / df) - math.log1p(t * t / (a * df))) * (df + 1) / 2
        return fit - 0.5 * math.log(a) - 0.5 * math.log(2 * math.pi) - u / 2 - math.exp(-u) / 2

    peak = float(minimize_scalar(lambda u: -log_integrand(u), bounds=(-8, 60), method="bounded").x)
    top = log_integrand(peak)
    # The prior falls off doubly exponentially below and as exp(-u / 2) above, which 40 + 120 units more than cover.
    pieces = [peak - 40, peak - 8, peak - 2, peak, peak + 3, peak + 12, peak + 120]
    area = sum(
        quad(lambda u: math.exp(log_integrand(u) - top), a, b, epsabs=1e-14, epsrel=1e-10)[0]
        for a, b in pairwise(pieces)
    )
    value = top + math.log(area)
    return BayesFactor(math.exp(value) if value < 700 else math.inf, value, method, t, df, n)


def bayes_factor(x: Sequence[float], y: Sequence[float] | None = None, scale: float = MEDIUM) -> BayesFactor:
    """JZS Bayes factor of one sample against 0, or of two independent samples against each other.

    Args:
        x: One number per run: a difference from the base model, or a mean.
        y: The runs to compare with.
        scale: Scale of the Cauchy prior on the effect size.

    Returns:
        The Bayes factor; undefined (nan) where the runs do not vary or there are too few.
    """
    a = np.asarray(x, dtype=float)
    if y is None:
        sizes = [len(a)]
        difference, squares = float(a.mean()), float(((a - a.mean()) ** 2).sum())
    else:
        b = np.asarray(y, dtype=float)
        sizes, difference = [len(a), len(b)], float(a.mean() - b.mean())
        squares = float(((a - a.mean()) ** 2).sum() + ((b - b.mean()) ** 2).sum())
    df, n = sum(sizes) - len(sizes), 1 / sum(1 / size for size in sizes)
    if df < 1 or squares <= 0:
        return BayesFactor(math.nan, math.nan, "JZS: undefined, for the runs do not vary", math.nan, df, n)
    return jzs(difference / math.sqrt(squares / df / n), df, n, scale)


def bic_bayes_factor(log_likelihood_null: float, log_likelihood_full: float, parameters: int, n: int) -> BayesFactor:
    """Bayes factor of nested models by the BIC (Wagenmakers, 2007, Psychon Bull Rev 14:779-804, eq. 10).

    An approximation under the unit-information prior. For mixed models the "n" of the BIC is not settled: with the number of
    runs, an effect between runs is judged by what varies between them, and this is what the analyses here use.

    Args:
        log_likelihood_null: Of the model without the effect, by maximum likelihood (not REML).
        log_likelihood_full: Of the model with it.
        parameters: How many parameters the effect has.
        n: Number of independent units.

    Raises:
        ValueError: If the effect has no parameters or there are fewer than two units.
    """
    if parameters < 1 or n < 2:
        raise InvalidInput(
            f"a BIC approximation needs an effect and two units, got {parameters} parameters and n = {n}"
        )
    value = log_likelihood_full - log_likelihood_null - 0.5 * parameters * math.log(n)
    method = f"BIC approximation with n = {n} (unit-information prior)"
    return BayesFactor(math.exp(value) if value < 700 else math.inf, value, method, n=float(n))
