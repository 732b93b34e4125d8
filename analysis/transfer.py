"""The transfer matrix: every training run on every test, against the untrained model and against what needs no physics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
from statsmodels.stats.multitest import multipletests

from vlm_probe.analysis.cell_model import INTERVALS, UNTRAINED, CellModel, fit_cells
from vlm_probe.analysis.effect_sizes import cohen_h, odds_of
from vlm_probe.analysis.equivalence import VERDICT, equivalence, verdicts
from vlm_probe.analysis.labels import with_test
from vlm_probe.analysis.mixed_effects import FitError
from vlm_probe.analysis.random_effects import RULE
from vlm_probe.analysis.result import Result
from vlm_probe.analysis.selection import TEST, cells, need, plain_trials, present, with_sets

TRAINING = ("method", "train_tasks", "regime")
DEFAULTS: dict[str, Any] = {"model": "", "train_tasks": UNTRAINED, "regime": "", "shift": "none", "shift_level": 0}


def with_names(trials: pd.DataFrame) -> pd.DataFrame:
    """Plain trials with the columns that `vlm_probe.analysis.cell_model` takes: `training`, `test` and `item` in words."""
    need(trials, "run", "method", "test_task", "item_id", "success")
    table = with_sets(plain_trials(trials))
    if "observer" in table.columns:
        table = table[table["observer"] == 0]
    table = table.assign(**{name: value for name, value in DEFAULTS.items() if name not in table.columns})
    training = table[TRAINING[0]].astype(str)
    for name in TRAINING[1:]:
        training = training + " " + table[name].astype(str)
    training = training.str.strip()
    table = with_test(table)
    # Shifts are nested within a task; stimulus sets of one task are different tasks.
    sets = table["test_set"] if "test_set" in table else pd.Series("", table.index)
    task = table["test_task"].astype(str) + sets.map(lambda name: f" (set {name})" if name else "").astype(str)
    # Shifted items keep the id of what they show; each test has items of its own.
    return table.assign(training=training, task=task, item=table["test"] + " " + table["item_id"].astype(str))


def transfer_matrix(
    trials: pd.DataFrame, baselines: pd.DataFrame | None = None, bound: float = 0.1, alpha: float = 0.05
) -> Result:
    """Estimated success rate of every training run on every test, with its difference from the untrained model.

    One mixed-effects model per model and test (see `vlm_probe.analysis.cell_model`): runs and items at random, t between runs. Rates are
    those over runs and items (the random effects averaged over), so that they can be compared with counted ones.

    Args:
        trials: A trial table; observers and trials that are not plain are left out.
        baselines: `test_task`, `shift`, `shift_level`, `best_baseline`: the best score without physics.
        bound: Difference in success rate below which a training makes no difference that matters.
        alpha: Level of the equivalence tests.

    Raises:
        ValueError: If there are no trials of models.
    """
    table = with_names(trials)
    need(table, "run")
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    formulas: dict[str, list[str]] = {}
    tested = present(table, TEST)
    for (model, *test), members in cells(table, ["model", *tested]):
        name = str(members["test"].iloc[0])
        try:
            fitted = fit_cells(members, ["training"])
        except FitError as error:
            fitted = None
            notes.append(f"{model} on {name}: no model could be fitted ({error}); counted rates only")
        if fitted is not None:
            formulas.setdefault(fitted.fit.formula, []).append(name)
            notes += [f"{model} on {name}: {note}" for note in fitted.notes]
        bar = _best_baseline(baselines, dict(zip(tested, test, strict=True)))
        base = members.loc[members["method"].astype(str) == UNTRAINED, "training"]
        against = str(base.iloc[0]) if len(base) else None
        for training in dict.fromkeys(members["training"]):
            own = members[members["training"] == training]
            first = own.iloc[0]
            row = {"model": model, **{key: first[key] for key in TRAINING}, **dict(zip(tested, test, strict=True))}
            row |= {"transfer": first.get("transfer"), "rate": _mean_of_runs(own)}
            other = members[members["training"] == against] if against is not None and training != against else None
            row |= _numbers(fitted, training, own, against, other, bar, bound, alpha)
            rows.append(row | {"n_runs": own["run"].nunique(), "n_trials": len(own)})
    frame = pd.DataFrame(rows)
    for name in ("p", "p_baseline"):
        frame[f"{name}_holm"] = math.nan
        for model in dict.fromkeys(frame["model"]):
            chosen = (frame["model"] == model) & frame[name].notna()
            if chosen.any():
                frame.loc[chosen, f"{name}_holm"] = multipletests(frame.loc[chosen, name], method="holm")[1]
    frame["verdict"] = verdicts(frame, alpha)
    if not (frame["method"].astype(str) == UNTRAINED).any():
        notes.append("there is no run of the untrained model: differences from it are not known")
    if (frame["df"] == math.inf)[frame["method"].astype(str) != UNTRAINED].any():
        notes.append(
            "trainings with one run each on a test: tests are about items, not about other trainings of the kind"
        )
    return Result(
        title="Transfer matrix: success rate of every training on every test, with 95 % intervals",
        table=frame,
        how=(
            "rate: mean of the runs' rates; estimated rate, difference, odds_ratio: mixed-effects model per test, "
            + "; ".join(f"{formula} ({', '.join(tests)})" for formula, tests in formulas.items())
            + f"; Laplace approximation, t with Satterthwaite's df from those between runs; {INTERVALS}; {RULE}; difference: of rates, with intervals from those of the rates (Zou & Donner, 2008); Holm over"
            f" all trainings and tests of a model; equivalence: TOST of the difference within +-{bound:g}, alpha {alpha:g}, on the two sides of its interval; {VERDICT};"
            f" h: Cohen's, of the counted rates; {len(table)} trials of {table['run'].nunique()} runs"
        ),
        notes=tuple(dict.fromkeys(notes)),
    )


def _numbers(
    fitted: CellModel | None,
    training: str,
    own: pd.DataFrame,
    against: str | None,
    other: pd.DataFrame | None,
    bar: float,
    bound: float,
    alpha: float,
) -> dict[str, Any]:
    """What the model says about one cell; nan for what cannot be said."""
    row: dict[str, Any] = dict.fromkeys(
        ("estimate", "estimate_low", "estimate_high", "difference", "difference_low", "difference_high", "odds_ratio"),
        math.nan,
    )
    row |= dict.fromkeys(("odds_low", "odds_high", "df", "p", "h", "p_equivalence"), math.nan) | {
        "verdict": None,
        "interval": None,
    }
    row |= {"best_baseline": bar, "p_baseline": math.nan}
    if fitted is None:
        return row
    rate = fitted.rate(training)
    row |= {"estimate": rate.value, "estimate_low": rate.low, "estimate_high": rate.high, "df": rate.df}
    row["interval"] = rate.interval
    if 0 < bar < 1:
        # One-sided: the claim is that the model does better than the best baseline.
        test = fitted.against_rate(training, bar)
        row["p_baseline"] = test.p / 2 if test.value > 0 else 1 - test.p / 2
    if other is None or against is None:
        return row
    weights = {training: 1.0, against: -1.0}
    difference, ratio = fitted.rate_contrast(weights), fitted.contrast(weights)
    same = equivalence(difference.value, difference.sides, bound, difference.df, alpha)
    return row | {
        "difference": difference.value,
        "difference_low": difference.low,
        "difference_high": difference.high,
        "odds_ratio": odds_of(ratio.value),
        "odds_low": odds_of(ratio.low),
        "odds_high": odds_of(ratio.high),
        "df": ratio.df,
        "p": ratio.p,
        "interval": "profile" if "profile" in (rate.interval, ratio.interval) else rate.interval,
        "h": cohen_h(_mean_of_runs(own), _mean_of_runs(other)),
        "p_equivalence": same.p,
    }


def _mean_of_runs(trials: pd.DataFrame) -> float:
    return float(trials.groupby("run", observed=True)["success"].mean().mean())


def _best_baseline(baselines: pd.DataFrame | None, test: Mapping[str, Any]) -> float:
    if baselines is None or baselines.empty or "best_baseline" not in baselines:
        return math.nan
    chosen = baselines
    for name, value in test.items():
        if name in chosen:
            chosen = chosen[chosen[name].astype(str) == str(value)]
    known = pd.to_numeric(chosen["best_baseline"], errors="coerce").dropna()
    return float(known.iloc[0]) if len(known) else math.nan
