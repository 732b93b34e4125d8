"""Perception first: does the model see what the images show, before and after training, and does it answer at all?"""

from __future__ import annotations

from vlm_probe.analysis.levels import family_of
from vlm_probe.analysis.rates import by_cell
from vlm_probe.analysis.section import MissingData
from vlm_probe.analysis.style import name_of
from vlm_probe.paper import latex
from vlm_probe.paper.numbers import Numbers, listed, records
from vlm_probe.paper.part import Part
from vlm_probe.paper.study_results import Study

GOOD = 0.9
"""A rate from which on a family counts as seen."""


def part(study: Study) -> Part:
    """Grounding questions by family and method. Raises Unanswerable if none were asked."""
    grounding = study.material.grounding
    if grounding.empty:
        raise MissingData("no grounding questions were asked: test a task such as towers-grounding as well")
    table = by_cell(grounding, ("method", "test_task"))
    numbers = Numbers()
    for row in records(table):
        name = f"grounding.{family_of(str(row['test_task']))}.{row['method']}"
        numbers.rate(name, row["rate"], row["rate_low"], row["rate_high"])
    base = table[table["method"] == "none"]
    for method, own in table.groupby("method", observed=True):
        numbers.rate(f"grounding.lowest.{method}", float(own["rate"].min()))
        numbers.rate(f"grounding.highest.{method}", float(own["rate"].max()))
        numbers.rate(f"grounding.mean.{method}", float(own["rate"].mean()))
    after = {m: f"grounding.mean.{m}" for m in study.methods if f"grounding.mean.{m}" in numbers}
    if after:
        texts = [f"{numbers[name].text} ({name_of(method)})" for method, name in after.items()]
        numbers.latex("grounding.mean.trained", listed(texts))
    seen = [rate >= GOOD for rate in base["rate"]]
    numbers.rate("grounding.good", GOOD)
    numbers.verdict(
        "grounding.seen", "all" if seen and all(seen) else "some" if any(seen) else "none", ("all", "some", "none")
    )
    numbers.count("grounding.questions", int(base["n_trials"].sum()))
    kinds = grounding.assign(asked=grounding["build"].astype(str).str.partition(":")[0])
    by_kind = by_cell(kinds[kinds["method"] == "none"], ("test_task", "asked"))
    if len(by_kind):
        worst = by_kind.sort_values(["rate", "asked"]).iloc[0]
        numbers.phrase(
            "grounding.hardest", f"{str(worst['asked']).replace('-', ' ')} ({family_of(str(worst['test_task']))})"
        )
        numbers.rate(
            "grounding.hardest.rate", float(worst["rate"]), float(worst["rate_low"]), float(worst["rate_high"])
        )
    methods = [m for m in ("none", *study.methods) if (table["method"] == m).any()]
    cells = []
    for task in dict.fromkeys(table["test_task"].astype(str)):
        line = [latex.text(family_of(task))]
        for method in methods:
            found = records(table[(table["test_task"] == task) & (table["method"] == method)])
            line.append(latex.rate(found[0]) if found else "--")
        cells.append(line)
    header = ["Family", *(latex.text(name_of(m)) for m in methods)]
    return Part(numbers, tables={"grounding": latex.table("l" + "l" * len(methods), header, [latex.Rows("", cells)])})
