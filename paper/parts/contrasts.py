"""The planned contrasts: in numbers, as a table, and as a forest plot with every run in it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pandas as pd

from vlm_probe.analysis import tables
from vlm_probe.analysis.contrasts import Contrasts
from vlm_probe.analysis.levels import TRANSFER
from vlm_probe.paper.figures.forest import forest
from vlm_probe.paper.latex import Rows, in_math, table, text
from vlm_probe.paper.names import LEVELS, contrast_sides, key_of, side_name
from vlm_probe.paper.numbers import Numbers, interval, listed, p_text, records
from vlm_probe.paper.part import Part
from vlm_probe.paper.study_results import OVER_ALL, Study
from vlm_probe.paper.verdicts import EFFECTS, VERDICTS, verdict

SINGLE = {"joint": ("within", "cross-family"), "randomised": ("within", "shifted")}
"""Conditions of training with contrasts of their own, and the levels at which the manuscript speaks of them."""
FAR = {
    "cross-task": "on other tasks of the family",
    "cross-family": "on other families",
    "zero-shot": "on held-out questions",
}
ALPHA = 0.05
"""Of the intervals, which are those of 95 %."""
HEADER = ("Contrast", r"$\Delta$ rate", r"95\,\% CI", "OR", "$t$", "df", "$p$", "$p_{eq}$", "Tests", "Verdict")


def part(study: Study) -> Part:
    """The planned contrasts. Raises Unanswerable if nothing was trained."""
    found = study.contrasts
    rows = study.contrasts_over_all
    single = [row for row in records(found.table) if row["training"] != OVER_ALL]
    numbers = Numbers()
    for row in rows:
        put(numbers, f"contrast.{row['transfer']}.{_key(study, row)}", row, study.settings.alpha)
    untested = not_run(study)
    for planned in untested:
        name = f"contrast.{planned['level']}.{planned['positive']}-{planned['negative']}"
        numbers.phrase(f"{name}.effect", "was not measured")
        for form in ("short", "statement"):
            numbers.phrase(f"{name}.{form}", "registered, and not run")
    numbers.verdict("contrasts.complete", "no" if untested else "yes", ("yes", "no"))
    _sentences(numbers, rows, untested, study)
    numbers.count("contrasts.not-run", len(untested))
    for row in single:
        name = f"registered.{key_of(str(row['training']))}"
        put(numbers, f"{name}.{row['transfer']}.{_key(study, row)}", row, study.settings.alpha)
    for name, levels in SINGLE.items():
        there = all(f"registered.{name}.{level}.rl-sft.verdict" in numbers for level in levels)
        numbers.verdict(f"registered.{name}.there", "yes" if there else "no", ("yes", "no"))
    shown = [
        row | {"side": _key(study, row).partition("-")[0], "told": bool(row["p_holm"] < study.settings.alpha)}
        for row in rows
    ]
    estimates = pd.DataFrame(shown).assign(level=lambda t: t["transfer"].map(LEVELS))
    numbers.count("contrasts.tested", len(rows) + len(single))
    numbers.verdict("contrasts.status", status(study), ("registered", "exploratory"))
    numbers.number("alpha", study.settings.alpha)
    return Part(
        numbers,
        {"contrasts": partial(forest, estimates, _differences(found, study), bound=study.settings.bound)},
        {"contrasts": _table(rows, single, untested, study)},
    )


def _sentences(numbers: Numbers, rows: list[dict[str, Any]], untested: list[dict[str, str]], study: Study) -> None:
    """What came out at every level, method by method, as parts of sentences: a manuscript that uses these has any methods."""
    sides = [(row, *contrast_sides(str(row["contrast"]), study.methods)) for row in rows]
    for level in TRANSFER:
        own = [(row, left) for row, left, right in sides if row["transfer"] == level and right == "none"]
        lost = [c["positive"] for c in untested if c["level"] == level and c["negative"] == "none"]
        for name, form in (("methods", _short), ("methods.tested", _statement)):
            said = [f"after {side_name(left)} {_effect(row, study)} ({form(row)})" for row, left in own]
            said += [f"after {side_name(left)} was not measured (registered, and not run)" for left in lost]
            numbers.latex(f"contrast.{level}.{name}", f"success {listed(said)}" if said else "nothing was tested")
    versus = {row["transfer"]: row for row, left, right in sides if (left, right) == ("rl", "sft")}
    numbers.verdict("versus.there", "yes" if versus else "no", ("yes", "no"))
    for level, row in versus.items():
        numbers.latex(f"versus.{level}", f"{_effect(row, study)} ({_statement(row)})")
    far = [
        f"{_effect(versus[level], study)} {where} ({_short(versus[level])})"
        for level, where in FAR.items()
        if level in versus
    ]
    numbers.latex("versus.far", listed(far) or "was not compared beyond the trained task")


def _effect(row: dict[str, Any], study: Study) -> str:
    return EFFECTS[verdict(row["difference"], row["p_holm"], row["p_equivalence"], study.settings.alpha)]


def status(study: Study) -> str:
    """Whether the contrasts were planned beforehand."""
    return "registered" if study.registration is not None and study.registration.method_contrasts else "exploratory"


def put(numbers: Numbers, name: str, row: dict[str, Any], alpha: float) -> None:
    """The numbers of one contrast, under a name.

    Where no model could be fitted, the text says so, and gives the mean difference of runs.

    Args:
        numbers: Where to.
        name: Beginning of the names.
        row: Of the table of `vlm_probe.analysis.contrasts`.
        alpha: Level of the tests.
    """
    came_out = verdict(row["difference"], row["p_holm"], row["p_equivalence"], alpha)
    numbers.verdict(f"{name}.verdict", came_out, VERDICTS)
    numbers.phrase(f"{name}.effect", EFFECTS[came_out])
    numbers.latex(f"{name}.statement", _statement(row))
    numbers.latex(f"{name}.short", _short(row))
    numbers.count(f"{name}.runs", row["n_runs"])
    numbers.count(f"{name}.tests", row["n_tests"])
    numbers.rate(name, row["difference"], row["difference_low"], row["difference_high"])
    numbers.number(f"{name}.odds", row["odds_ratio"])
    numbers.number(f"{name}.t", row["statistic"])
    numbers.latex(f"{name}.df", in_math(tables.degrees(row["df"])))
    numbers.p(f"{name}.p", row["p_holm"])
    numbers.p(f"{name}.equivalence", row["p_equivalence"])
    numbers.p(f"{name}.means", row["p_means"])
    numbers.number(f"{name}.bf", row["bf01"])


def _statement(row: dict[str, Any]) -> str:
    """Difference, interval and test of a contrast, as they stand in brackets in a sentence."""
    if row["difference"] != row["difference"]:
        mean = in_math(tables.proportion(row["run_difference"], 2))
        return f"no model could be fitted; mean difference of runs {mean}"
    test = in_math(f"t({tables.degrees(row['df'])}) = {tables.number(row['statistic'])}")
    return f"{_interval(row)}, {test}, {_p(row)}"


def _short(row: dict[str, Any]) -> str:
    """Difference and interval of a contrast; with the test of log odds where that says other than the interval of rates."""
    if row["difference"] != row["difference"]:
        return _statement(row)
    apart = row["difference_low"] > 0 or row["difference_high"] < 0
    agrees = apart == (row["p_holm"] < ALPHA)
    return _interval(row) if agrees else f"{_interval(row)}; in log odds {_p(row)}"


def _interval(row: dict[str, Any]) -> str:
    return (
        f"{in_math(tables.proportion(row['difference'], 2))} {interval(row['difference_low'], row['difference_high'])}"
    )


def _p(row: dict[str, Any]) -> str:
    """A p-value that no line is broken in."""
    return rf"\mbox{{$p$ {p_text(row['p_holm'])}}}"


def _key(study: Study, row: dict[str, Any]) -> str:
    return "-".join(contrast_sides(str(row["contrast"]), study.methods))


def not_run(study: Study) -> list[dict[str, str]]:
    """Registered contrasts over all conditions that could not be tested, since nothing of the kind was trained."""
    if study.registration is None:
        return []
    there = {(row["transfer"], _key(study, row)) for row in study.contrasts_over_all}
    planned = [dict(c) for c in study.registration.method_contrasts if not c["training"]]
    return [c for c in planned if (c["level"], f"{c['positive']}-{c['negative']}") not in there]


def _table(
    rows: list[dict[str, Any]], single: list[dict[str, Any]], untested: list[dict[str, str]], study: Study
) -> str:
    groups = []
    for level in TRANSFER:
        own = [_cells(row, study) for row in rows if row["transfer"] == level]
        for planned in (c for c in untested if c["level"] == level):
            label = f"{text(side_name(planned['positive']))} $-$ {text(side_name(planned['negative']))}"
            own.append([label, *["--"] * (len(HEADER) - 2), "not run"])
        groups += [Rows(text(LEVELS[level].capitalize()), own)] if own else []
    for row in single:
        heading = f"Condition {row['training']}: {LEVELS[str(row['transfer'])]}"
        groups.append(Rows(text(heading), [_cells(row, study)]))
    return table("lrlrrrrrrl", HEADER, groups)


def _cells(row: dict[str, Any], study: Study) -> list[str]:
    left, right = (side_name(side) for side in contrast_sides(str(row["contrast"]), study.methods))
    return [
        f"{text(left)} $-$ {text(right)}",
        in_math(tables.proportion(row["difference"], 2)),
        in_math(tables.interval(row["difference_low"], row["difference_high"], partial(tables.proportion, digits=2))),
        in_math(tables.number(row["odds_ratio"])),
        in_math(tables.number(row["statistic"])),
        in_math(tables.degrees(row["df"])),
        in_math(tables.p_value(row["p_holm"])),
        in_math(tables.p_value(row["p_equivalence"])),
        str(row["n_tests"]),
        verdict(row["difference"], row["p_holm"], row["p_equivalence"], study.settings.alpha),
    ]


def _differences(found: Contrasts, study: Study) -> pd.DataFrame:
    """The mean difference of every run from the untrained model, by level."""
    means = found.run_means
    trained = means[(means["method"] != "none") & means["untrained"].notna()]
    if study.registration is not None:
        # Those of single conditions are next to them in the table, and belong to other contrasts.
        over_all = {c.train_tasks for c in study.registration.conditions if c.is_plain}
        trained = trained[trained["training"].str.split(" ", n=1).str[1].isin(over_all)]
    trained = trained.assign(difference=trained["rate"] - trained["untrained"], level=trained["transfer"].map(LEVELS))
    return trained.groupby(["level", "method", "run"], observed=True)["difference"].mean().reset_index()
