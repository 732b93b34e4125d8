"""The two extra conditions, joint training and training with varied images, each against the untrained model; exploratory."""

from __future__ import annotations

import math

import pandas as pd

from vlm_probe.analysis.contrasts import planned_contrasts
from vlm_probe.analysis.section import MissingData
from vlm_probe.analysis.style import name_of
from vlm_probe.paper.names import contrast_sides, key_of
from vlm_probe.paper.numbers import Numbers, listed, records
from vlm_probe.paper.part import Part
from vlm_probe.paper.parts.contrasts import put
from vlm_probe.paper.study_results import Study
from vlm_probe.paper.verdicts import does_not_transfer, improves, verdict

JOINT, VARIED = "joint", "varied"
FAR = ("cross-task", "cross-family", "zero-shot")


def part(study: Study) -> Part:
    """Contrasts of the extra conditions. Raises Unanswerable if there are none."""
    plain = study.plain
    untrained = plain["method"] == "none"
    regime = plain["regime"].astype(str)
    several = plain["train_tasks"].astype(str).str.contains("+", regex=False)
    chosen = {JOINT: several & (regime == ""), VARIED: regime.str.startswith("shift visual")}
    if not any(mask.any() for mask in chosen.values()):
        raise MissingData("there is neither joint training nor training with varied pictures")
    numbers = Numbers()
    for name, mask in chosen.items():
        numbers.verdict(f"{name}.there", "yes" if mask.any() else "no", ("yes", "no"))
        if not mask.any():
            continue
        own = plain[untrained | mask]
        special = str(regime[mask].iloc[0])
        found = planned_contrasts(own, study.settings.bound, study.settings.alpha, special).table
        words: dict[str, list[str]] = {}
        for row in records(found):
            left, right = contrast_sides(str(row["contrast"]), study.methods)
            put(numbers, f"{name}.{row['transfer']}.{left}-{right}", row, study.settings.alpha)
            if right == "none":
                came_out = verdict(row["difference"], row["p_holm"], row["p_equivalence"], study.settings.alpha)
                words.setdefault(str(row["transfer"]), []).append(came_out)
        numbers.verdict(
            f"{name}.within", improves(words.get("within", [])), ("agrees", "partly", "contradicts", "open")
        )
        far = [word for level in FAR for word in words.get(level, [])]
        numbers.verdict(f"{name}.far", does_not_transfer(far), ("agrees", "partly", "contradicts", "open"))
        numbers.count(f"{name}.far.higher", far.count("higher"))
        numbers.count(f"{name}.far.lower", far.count("lower"))
        numbers.count(f"{name}.far.tests", len(far))
    _against_single(numbers, plain[~untrained & (regime == "") & ~several], plain[chosen[VARIED]])
    return Part(numbers)


def _against_single(numbers: Numbers, single: pd.DataFrame, varied: pd.DataFrame) -> None:
    """Success after training with varied images next to that with plain ones, on the same tests, method by method."""
    if varied.empty:
        return
    task = str(varied["train_tasks"].astype(str).iloc[0])
    for shift in dict.fromkeys(varied.loc[varied["test_task"] == task, "shift"].astype(str)):
        pairs: list[str] = []
        for method in dict.fromkeys(varied["method"].astype(str)):
            rates = []
            for trials in (varied, single[single["train_tasks"].astype(str) == task]):
                own = trials[
                    (trials["test_task"] == task)
                    & (trials["shift"].astype(str) == shift)
                    & (trials["method"] == method)
                ]
                rates.append(
                    float(own.groupby("run", observed=True)["success"].mean().mean()) if len(own) else math.nan
                )
            name = f"varied.{key_of(shift)}.{method}"
            numbers.rate(f"{name}.rate", rates[0])
            numbers.rate(f"{name}.plain", rates[1])
            if f"{name}.plain" in numbers:
                pairs.append(
                    f"{numbers[f'{name}.rate'].text} against {numbers[f'{name}.plain'].text} ({name_of(method)})"
                )
        if pairs:
            numbers.latex(f"varied.{key_of(shift)}", listed(pairs))
