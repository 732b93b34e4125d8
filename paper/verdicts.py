"""What a test says, in one word. The words decide which sentences a manuscript has, so they follow from the numbers alone."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_probe.analysis.equivalence import verdict as decided

VERDICTS = ("higher", "lower", "trivial", "equivalent", "undecided")
"""higher, lower: significantly different from 0 after Holm's correction. trivial: significantly different from 0, and within the bound of what would matter. equivalent:
not significantly different from 0, and within the bound. undecided: neither, so that the data do not say."""

EFFECTS = {
    "higher": "is higher",
    "lower": "is lower",
    "trivial": "differs by less than would matter",
    "equivalent": "is the same within the bound",
    "undecided": "is neither told apart nor shown to be the same",
}
"""Verdicts as the predicate of a sentence about success."""

AGREEMENTS = ("agrees", "partly", "contradicts", "open")


def verdict(difference: float, p_holm: float, p_equivalence: float, alpha: float = 0.05) -> str:
    """The verdict on a difference.

    Args:
        difference: Between two rates.
        p_holm: That there is none, corrected.
        p_equivalence: That it is outside the bound.
        alpha: Level of both tests.
    """
    word = decided(p_holm, p_equivalence, alpha)
    if word == "different":
        return "higher" if difference > 0 else "lower"
    return "undecided" if word == "undefined" else word


def improves(verdicts: Sequence[str]) -> str:
    """Whether results agree with "training improves this": all, some or none of the comparisons are higher.

    That none is significantly different from 0 contradicts it only where the data say that there is no difference that matters.
    """
    if verdicts and all(v == "higher" for v in verdicts):
        return "agrees"
    if any(v == "higher" for v in verdicts):
        return "partly"
    return "contradicts" if verdicts and all(v != "undecided" for v in verdicts) else "open"


def does_not_transfer(verdicts: Sequence[str]) -> str:
    """Whether results agree with "training does not carry over": nothing is higher, and the data say so.

    Worse than before is no transfer either. Where nothing is higher and something undecided, the question is open in part.
    """
    higher = sum(v == "higher" for v in verdicts)
    if verdicts and higher == len(verdicts):
        return "contradicts"
    if higher:
        return "partly"
    if not verdicts or any(v == "undecided" for v in verdicts):
        return "open"
    return "agrees"


def no_advantage(verdict_: str) -> str:
    """Whether a difference between two ways of learning agrees with "interaction is no advantage"."""
    return {"higher": "contradicts", "undecided": "open"}.get(verdict_, "agrees")


def together(agreements: Sequence[str]) -> str:
    """Several agreements as one: contradicted only if everywhere, agreed to only if everywhere, open where something is."""
    if not agreements:
        return "open"
    if len(set(agreements)) == 1:
        return agreements[0]
    return "partly" if {"contradicts", "partly"} & set(agreements) else "open"
