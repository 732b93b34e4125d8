"""Cohen's kappa: of all pairs of participants, and of a run with every person."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlm_probe.analysis.humans import Humans
from vlm_probe.analysis.selection import Floats

FEWEST_SHARED = 10
"""Items that two raters must have in common for a kappa or a correlation between them."""


def pairwise_kappas(people: Humans) -> Floats:
    """Kappas of all pairs of participants with enough items in common; of counts, the one of two participants drawn at random."""
    if people.counted:
        k, n = people.signals[0], people.answers[0]
        several = n > 1
        if not several.any():
            return np.empty(0)
        k, n = k[several], n[several]
        observed = float((((k * (k - 1)) + (n - k) * (n - k - 1)) / (n * (n - 1))).mean())
        p = float((k / n).mean())
        expected = p * p + (1 - p) ** 2
        return np.array([(observed - expected) / (1 - expected)]) if expected < 1 else np.empty(0)
    answers = np.round(people.shares)
    known = np.isfinite(answers).astype(float)
    yes = np.nan_to_num(answers)
    no = known - yes
    return _kappas(yes @ yes.T, no @ no.T, yes @ known.T, known @ known.T)[np.triu_indices(len(answers), 1)]


def kappas_with_each(said: Floats, people: Humans, columns: Any = slice(None)) -> Floats:
    """The run's kappa with every participant, over the items of `columns`.

    Args:
        said: The run's answers to the items (items,): 0, 1 or nan.
        people: Their answers to the same items.
        columns: Places of the items that are taken, each as often as it is named.

    Returns:
        One kappa per participant with enough items in common; with counts, that with a person drawn at random.
    """
    own = said[columns]
    if people.counted:
        share = people.p[columns]
        known = np.isfinite(own)
        if not known.any():
            return np.empty(0)
        a, b = own[known], share[known]
        observed = float(np.where(a == 1, b, 1 - b).mean())
        expected = float(a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean()))
        return np.array([(observed - expected) / (1 - expected)]) if expected < 1 else np.empty(0)
    answers = np.round(people.shares)[:, columns]
    known = np.isfinite(answers) & np.isfinite(own)
    shared = known.sum(1)
    yes, mine = np.where(known, answers, 0.0), np.where(known, own, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        p, q = yes.sum(1) / shared, mine.sum(1) / shared
        observed = ((yes == mine) & known).sum(1) / shared
        expected = p * q + (1 - p) * (1 - q)
        kappa = (observed - expected) / (1 - expected)
    return np.asarray(kappa[(shared >= FEWEST_SHARED) & np.isfinite(kappa)])


def kappas_of_samples(said: Floats, people: Humans, resamples: int, rng: np.random.Generator) -> Floats:
    """Mean kappa with participants, for participants and items drawn again.

    Args:
        said: The run's answers to the items (items,): 0, 1 or nan.
        people: Their answers to the same items.
        resamples: How many samples.
        rng: Source of the draws.

    Returns:
        One mean per sample (resamples,); nan where nobody has enough items.
    """
    found, items = np.full(resamples, np.nan), len(people.items)
    for index in range(resamples):
        kappa = kappas_with_each(said, people, rng.integers(0, items, items))
        if len(kappa):
            found[index] = kappa[rng.integers(0, len(kappa), len(kappa))].mean()
    return found


def _kappas(both_yes: Floats, both_no: Floats, first_yes: Floats, shared: Floats) -> Floats:
    """Matrix of kappas from matrices of counts, nan below the least number of shared items."""
    with np.errstate(invalid="ignore", divide="ignore"):
        p, q = first_yes / shared, first_yes.T / shared
        observed, expected = (both_yes + both_no) / shared, p * q + (1 - p) * (1 - q)
        kappa = (observed - expected) / (1 - expected)
    return np.asarray(np.where((shared >= FEWEST_SHARED) & np.isfinite(kappa), kappa, np.nan))
