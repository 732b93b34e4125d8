"""Observers without weights on the same items: what chance, a rule, knowledge of the physics and simulation through noise score."""

from __future__ import annotations

from vlm_probe.analysis.rates import by_cell
from vlm_probe.analysis.section import MissingData
from vlm_probe.paper.names import key_of
from vlm_probe.paper.numbers import Numbers, listed, records
from vlm_probe.paper.part import Part
from vlm_probe.paper.study_results import Study

WHO = {
    "observer.noisy-simulation": "who simulates what it sees through noise",
    "observer.heuristic": "who follows a simple rule without physics",
    "observer.ideal": "who knows the physics",
    "observer.chance": "who guesses",
}


def part(study: Study) -> Part:
    """Success of observers, on every task and over tasks. Raises Unanswerable if none were asked."""
    watched = study.material.observers
    if watched.empty:
        raise MissingData("no observers were asked: name some under `observers` in the study's file")
    plain = watched[watched["shift"] == "none"]
    numbers = Numbers()
    for row in records(by_cell(plain, ("model", "test_task"))):
        numbers.rate(
            f"observer.{row['model']}.{key_of(str(row['test_task']))}", row["rate"], row["rate_low"], row["rate_high"]
        )
    for model, own in plain.groupby("model", observed=True):
        numbers.rate(f"observer.{model}", float(own.groupby("test_task", observed=True)["success"].mean().mean()))
    scored = [f"one {who} scored {numbers[name].text}" for name, who in WHO.items() if name in numbers]
    numbers.latex("observers.scored", listed(scored).replace("one", "an observer", 1))
    models = study.plain[study.plain["shift"] == "none"]
    base = models[models["method"] == "none"]
    if len(base):
        numbers.rate("base.mean", float(base.groupby("test_task", observed=True)["success"].mean().mean()))
        chance = base.groupby("test_task", observed=True)["chance"].mean()
        if chance.notna().all():
            numbers.rate("base.chance", float(chance.mean()))
    return Part(numbers)
