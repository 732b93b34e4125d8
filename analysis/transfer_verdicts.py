"""What a contrast of source and target comes to: corrections over all contrasts, one verdict each, and both in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from vlm_probe.analysis.result import Result
from vlm_probe.analysis.selection import Floats
from vlm_probe.analysis.style import name_of
from vlm_probe.analysis.tables import number, proportion

ALL = "all"
"""In the column of methods: over all of them."""
LEARNING = ("within", "shifted")
"""Levels at which the target is the source itself."""
MANY_INVALID = 0.2
"""Share of invalid replies of one side from which a difference that is not significantly different from 0 among valid replies is one of format."""
VERDICTS = ("higher", "lower", "reversed", "equivalent", "inconclusive", "uninformative")
RULE = (
    "verdict: reversed if the signed score is below 0 (Holm) and below that of the untrained model (p); uninformative at floor or ceiling (no condition is"
    " farther from 0 or 1 than the bound) and where a difference vanishes among valid replies, or next to training on random answers (format); else higher or lower if success differs, or"
    " else the signed score (measure says which); equivalent if both are shown to be within the bound; else inconclusive"
)


def holm(p: Floats) -> Floats:
    """Holm's corrected p-values. That of statsmodels collects garbage at every call, which takes longer than all else here."""
    order = np.argsort(p)
    found = np.empty(len(p))
    found[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return found


def corrected(frame: pd.DataFrame, alpha: float) -> pd.DataFrame:
    """With Holm's corrections and verdicts.

    Families: transfer to other targets, and learning of the source itself, each over methods and for single methods. Targets at floor or
    ceiling are tested for reversal only.
    """
    columns = [
        "p",
        "signed_p",
        "p_reversed",
        "p_equivalence",
        "signed_p_equivalence",
        "difference_valid",
        "p_valid",
        "difference",
        "signed_difference",
        "invalid",
        "signed",
    ]
    frame = frame.assign(**{name: math.nan for name in columns if name not in frame})
    families = [["p", "signed_p"], ["p_reversed"], ["p_equivalence", "signed_p_equivalence"]]
    for names in families:
        for is_all, is_source in product((True, False), (True, False)):
            chosen = ((frame["method"] == ALL) == is_all) & (frame["transfer"].isin(LEARNING) == is_source)
            chosen &= (frame["limit"] == "") | (names[0] == "p_reversed")
            own = frame.loc[chosen, names]
            if own.empty:
                continue
            flat = own.to_numpy(float).ravel()
            known = np.isfinite(flat)
            adjusted = np.full(len(flat), math.nan)
            if known.any():
                adjusted[known] = holm(flat[known])
            frame.loc[chosen, [f"{name}_holm" for name in names]] = adjusted.reshape(own.shape)
    decided = [decide(row, alpha) for row in frame.to_dict("records")]
    return frame.assign(verdict=[word for word, _ in decided], measure=[measure for _, measure in decided])


def decide(row: Mapping[Any, Any], alpha: float = 0.05) -> tuple[str, str]:
    """The verdict on a contrast by `RULE`, and the measure or limit that it rests on.

    Args:
        row: Of the table of `transfer_contrasts`.
        alpha: Level of the tests.
    """

    def below(name: str) -> bool:
        return bool(row.get(name, math.nan) < alpha)

    # A score below 0 is the claim, and bears the correction; that the untrained model has none like it is a condition of it.
    unlike = math.isnan(row["signed_difference"]) or (row["signed_difference"] < 0 and below("signed_p"))
    if below("p_reversed_holm") and unlike:
        return "reversed", "signed"
    if row["limit"]:
        return "uninformative", str(row["limit"])
    differs, equal = below("p_holm"), below("p_equivalence_holm")
    invalid = float(np.nanmax([row.get("invalid", 0.0), row.get("invalid_untrained", 0.0)]))
    if differs and not equal:
        # With many invalid replies few valid ones are left, whose difference is uncertain: that it is not significantly different from 0 is enough then.
        small = abs(row["difference_valid"]) < abs(row["difference"]) / 2 or invalid > MANY_INVALID
        vanishes = row["p_valid"] >= alpha and small
        as_control = (
            row.get("control_p", math.nan) >= alpha and abs(row["control_difference"]) < abs(row["difference"]) / 2
        )
        if as_control or (vanishes and invalid > 0):
            return "uninformative", "format"
        return ("higher" if row["difference"] > 0 else "lower"), "success"
    if below("signed_p_holm"):
        return ("higher" if row["signed_difference"] > 0 else "lower"), "signed"
    if invalid > 0.5:
        return "uninformative", "format"
    signed_same = below("signed_p_equivalence_holm") or math.isnan(row.get("signed_p_equivalence", math.nan))
    return ("equivalent", "both") if equal and signed_same else ("inconclusive", "")


def finding(row: Mapping[Any, Any]) -> str:
    """A contrast in words: source, target, and what the verdict rests on.

    Args:
        row: Of the table of `transfer_contrasts`.
    """
    source = str(row["source"]) if row["method"] == ALL else f"{row['source']}, {name_of(str(row['method']))} only"
    parts = []
    if row["signed"] == row["signed"]:
        parts.append(f"signed score {number(row['signed'])}{_than(row.get('signed_untrained'), number)}")
    for name, label in (("d_prime", "d′"), ("direction_accuracy", "direction accuracy")):
        if row.get(name, math.nan) == row.get(name, math.nan):
            form = number if name == "d_prime" else partial(proportion, digits=2)
            parts.append(f"{label} {form(row[name])}{_than(row.get(f'{name}_untrained'), form)}")
    two = partial(proportion, digits=2)
    parts.append(f"success {two(row['rate'])}{_than(row.get('untrained'), two)}")
    return f"{source} → {row['target']}: {', '.join(parts)}; {int(row['n_runs'])} run{'s' * (row['n_runs'] != 1)}"


def _than(value: float | None, form: Callable[[float], str]) -> str:
    return "" if value is None or math.isnan(value) else f" (untrained {form(value)})"


def chosen(found: Result, verdict: str) -> list[dict[str, Any]]:
    """The transfer contrasts with a verdict: over methods, and those of single methods where that over methods is another.

    Args:
        found: Of `transfer_contrasts`.
        verdict: One of `VERDICTS`.
    """
    table = found.table[~found.table["transfer"].isin(LEARNING)]
    own = table[table["verdict"] == verdict]
    joint = own[own["method"] == ALL]
    known = set(zip(joint["model"], joint["source"], joint["target"], strict=True))
    new = np.array(
        [key not in known for key in zip(own["model"], own["source"], own["target"], strict=True)], dtype=bool
    )
    single = own[(own["method"] != ALL).to_numpy() & new]
    return [{str(k): v for k, v in row.items()} for row in pd.concat([joint, single]).to_dict("records")]


def before_correction(found: Result, alpha: float) -> list[dict[str, Any]]:
    """Contrasts over methods of which a measure is told from the untrained model before Holm's correction, and not after it."""
    table = found.table[(found.table["method"] == ALL) & ~found.table["transfer"].isin(LEARNING)]
    small = (table["p"] < alpha) | (table["signed_p"] < alpha)
    own = table[small & table["verdict"].isin(["inconclusive", "equivalent"])]
    return [{str(k): v for k, v in row.items()} for row in own.to_dict("records")]
