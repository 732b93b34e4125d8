"""The study in numbers: who was trained on what, how much, and tested on how many trials."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_probe.analysis.contrasts import REINFORCEMENT
from vlm_probe.analysis.frame import METHODS
from vlm_probe.analysis.levels import family_of, held_out
from vlm_probe.analysis.style import name_of
from vlm_probe.analysis.training import read_facts
from vlm_probe.paper import latex
from vlm_probe.paper.names import CITED, SHIFTS, condition_keys, test_name, training_name
from vlm_probe.paper.numbers import Numbers, listed
from vlm_probe.paper.part import Part
from vlm_probe.paper.study_results import Study


def part(study: Study) -> Part:
    """Counts and settings."""
    numbers = Numbers()
    table, plain = study.material.trials.table, study.plain
    models = table[table["observer"] == 0]
    trained = models[models["method"].astype(str) != "none"]
    numbers.phrase("study", study.name)
    numbers.count("trials", len(table))
    numbers.count("trials.plain", len(plain))
    numbers.count("trials.controls", int((models["manner"].astype(str) != "").sum()))
    numbers.count("runs.trained", trained["run"].nunique())
    numbers.count("runs.unfinished", study.unfinished)
    numbers.count("trials.failed", sum(d.n for d in study.material.trials.dropped if d.reason.startswith("failed")))
    read = plain["status"].astype(str) == "ok"
    numbers.number("unread.percent", 100 * float(1 - read.mean()), 1)
    tests = plain[["test_task", "shift", "shift_level"]].drop_duplicates().astype(str)
    numbers.count("tests", len(tests))
    numbers.count("tests.plain", int((tests["shift"] == "none").sum()))
    numbers.count("tests.shifted", int((tests["shift"] != "none").sum()))
    shifts = [SHIFTS.get(shift, shift) for shift in dict.fromkeys(tests["shift"]) if shift != "none"]
    numbers.phrase("tests.shifts", listed(shifts) or "nothing")
    numbers.count("tests.held-out", sum(held_out(t) for t in dict.fromkeys(tests["test_task"])))
    numbers.count("families", len({family_of(t) for t in tests["test_task"]}))
    items = plain.groupby(["test_task", "shift"], observed=True)["item_id"].nunique()
    numbers.count("items", int(items.max()))
    conditions = condition_keys(plain)
    numbers.count("conditions", len(conditions))
    numbers.phrase("conditions.names", listed([training_name(*c) for c in conditions]) or "none")
    seeds = trained.groupby(["method", "train_tasks", "regime"], observed=True)["seed"].nunique()
    numbers.count("seeds.most", int(seeds.max()) if len(seeds) else 0)
    numbers.count("seeds.fewest", int(seeds.min()) if len(seeds) else 0)
    several = [int(n) > 1 for n in seeds]
    found = "one" if not any(several) else "several" if all(several) else "mixed"
    numbers.verdict("seeds", found, ("one", "several", "mixed"))
    _methods(numbers, study.methods)
    _registration(numbers, study)
    _models(numbers, study)
    _trainings(numbers, study.trainings)
    return Part(numbers, tables={"conditions": _table(study, conditions)} if conditions else {})


def _methods(numbers: Numbers, methods: Sequence[str]) -> None:
    numbers.count("methods.n", len(methods))
    numbers.phrase("methods", listed([name_of(m) for m in methods]) or "none")
    numbers.latex("methods.cited", listed([CITED.get(m, name_of(m)) for m in methods], "or") or "nothing")
    acting = [m for m in methods if m in REINFORCEMENT]
    numbers.phrase("methods.acting", listed([name_of(m) for m in acting]) or "none")
    kinds = ("none", "watching", "acting", "both")
    numbers.verdict("methods.kinds", kinds[2 * bool(acting) + ("sft" in methods)], kinds)


def _registration(numbers: Numbers, study: Study) -> None:
    found = study.registration
    numbers.verdict("registration", "none" if found is None else "there", ("none", "there"))
    numbers.rate("bound", study.settings.bound)
    if found is not None:
        numbers.phrase("registration.sha256", found.sha256[:12])
        numbers.phrase("registration.date", found.registered[:16].replace("T", " "))
        numbers.count("registration.contrasts", len(found.contrasts))
        numbers.count("registration.done-before", len(found.done_before))
        planned = sum(len(c.methods) * len(c.seeds) for c in found.conditions)
        plain = study.plain[found.covers(study.plain)]
        done = plain.loc[plain["method"] != "none", "run"].nunique()
        numbers.count("registration.trainings", planned)
        numbers.count("registration.trainings.done", done)
        numbers.verdict("registration.complete", "yes" if done >= planned else "no", ("yes", "no"))
        numbers.verdict("registration.first", "no" if found.done_before else "yes", ("yes", "no"))
    numbers.count("deviations", len(study.deviations))
    numbers.verdict("deviations.there", "yes" if study.deviations else "no", ("yes", "no"))
    numbers.phrase("deviations.list", "; ".join(study.deviations))


def _models(numbers: Numbers, study: Study) -> None:
    """Of the model that was trained, or else of the first."""
    if not study.models:
        return
    name, record = next(iter(study.models.items()))
    details = record.get("details") or {}
    total = (details.get("parameters") or {}).get("total")
    numbers.phrase("model", name)
    numbers.phrase("model.weights", str(record.get("weights_sha256", ""))[:12])
    if total:
        numbers.number("model.millions", total / 1e6, 1)
    for size in (record.get("observed") or {}).get("pictures") or ():
        shown, _, seen = str(size).partition(" seen as ")
        if "pictures.edge" not in numbers:
            numbers.count("pictures.edge", int(shown.partition(" ")[0]))
            numbers.count("pictures.seen", int((seen or shown).partition(" ")[0]))


def _trainings(numbers: Numbers, trainings: Sequence[Mapping[str, Any]]) -> None:
    for method in dict.fromkeys(str(t.get("method")) for t in trainings):
        own = [t for t in trainings if t.get("method") == method]
        samples = [float((t.get("budget") or {}).get("samples") or 0) for t in own]
        numbers.count(f"training.{method}.n", len(own))
        numbers.count(f"training.{method}.samples", round(statistics.median(samples)))
        config = own[0].get("config") or {}
        for key in ("learning_rate", "temperature", "beta"):
            if config.get(key) is not None:
                numbers.latex(f"training.{method}.{key.replace('_', '-')}", f"${float(config[key]):g}$")
        for key in ("batch", "items", "generations", "epochs"):
            if config.get(key) is not None:
                numbers.count(f"training.{method}.{key}", int(config[key]))
        spent = [float(t["cpu_seconds"]) for t in own if t.get("cpu_seconds")]
        if spent:
            numbers.number(f"training.{method}.cpu-minutes", statistics.median(spent) / 60, 1)
    seen = {m: numbers[f"training.{m}.samples"].text for m in METHODS if f"training.{m}.samples" in numbers}
    if seen:
        each = [f"{text} samples for {name_of(m)}" for m, text in seen.items()]
        same = len(set(seen.values())) == 1
        numbers.latex("training.samples", f"{next(iter(seen.values()))} samples each" if same else listed(each))
    if trainings:
        capacity = trainings[0].get("capacity") or {}
        for key in ("rank", "alpha", "trainable"):
            if capacity.get(key) is not None:
                numbers.count(f"lora.{key}", int(capacity[key]))
        total = sum(float(t["cpu_seconds"]) for t in trainings if t.get("cpu_seconds"))
        numbers.number("training.cpu-hours", total / 3600, 1)


def _table(study: Study, conditions: list[tuple[str, str]]) -> str:
    """Who was trained on what, how often, and how many samples each has seen."""
    rows = []
    for tasks, regime in conditions:
        own = [t for t in study.trainings if _condition(t) == (tasks, regime)]
        cells = [
            latex.text(training_name(tasks, regime)),
            latex.text(", ".join(test_name(t, "none") for t in tasks.split("+"))),
        ]
        for method in study.methods:
            of_method = [t for t in own if t.get("method") == method]
            samples = [float((t.get("budget") or {}).get("samples") or 0) for t in of_method]
            cells.append(f"{len(samples)} $\\times$ {statistics.median(samples):,.0f}" if samples else "--")
        rows.append(cells)
    header = ["Condition", "Tasks", *(latex.text(name_of(m)) for m in study.methods)]
    return latex.table("ll" + "r" * len(study.methods), header, [latex.Rows("", rows)])


def _condition(facts: Mapping[str, Any]) -> tuple[str, str]:
    training = read_facts(facts)
    return "+".join(training.tasks), training.regime
