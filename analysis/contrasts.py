"""The planned contrasts: what each training run does within its task and beyond it, and reinforcement learning against imitation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import chi2
from statsmodels.stats.multitest import multipletests

from vlm_probe.analysis.cell_model import INTERVALS, UNTRAINED, CellModel, Estimate, fit_cells
from vlm_probe.analysis.effect_sizes import cohen_h, odds_of
from vlm_probe.analysis.equivalence import VERDICT, BayesFactor, at_odds, bic_bayes_factor, equivalence, jzs, verdicts
from vlm_probe.analysis.labels import test_shares
from vlm_probe.analysis.levels import TRANSFER
from vlm_probe.analysis.mixed_effects import FitError
from vlm_probe.analysis.random_effects import RULE
from vlm_probe.analysis.result import Result, plain
from vlm_probe.analysis.run_means import HOW, contrast_of_means, per_item, run_means
from vlm_probe.analysis.selection import cells
from vlm_probe.analysis.style import name_of
from vlm_probe.analysis.transfer import with_names
from vlm_probe.stimuli.errors import InvalidInput

REINFORCEMENT = ("ppo", "grpo", "rloo")
IMITATION = "sft"
UNREAD = 0.05
"""Share of replies without a legal answer from which contrasts say so."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Contrasts(Result):
    """Planned contrasts. The table has one row per model, level of transfer and contrast.

    Attributes:
        omnibus: Likelihood-ratio test of training as a whole (methods, and methods by tests), per model and level.
        run_means: Success rate of every run on every test, next to the untrained model's.
    """

    omnibus: pd.DataFrame
    run_means: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """As `Result.to_dict`, with omnibus tests and run means."""
        tables = {"omnibus": self.omnibus, "run_means": self.run_means}
        return {**super().to_dict(), **{k: [plain(row) for row in t.to_dict("records")] for k, t in tables.items()}}


def planned_contrasts(
    trials: pd.DataFrame,
    bound: float = 0.1,
    alpha: float = 0.05,
    regime: str = "",
    wanted: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
) -> Contrasts:
    """Test the planned contrasts at every level of transfer.

    Within each level (within-task, shifted, cross-task, cross-family, zero-shot): every method against the untrained model, and
    the mean of the reinforcement methods against imitation (SFT). Contrasts are means over the tests on which both sides
    were tested: tasks have the same weight, and tests of a task under shifts share it. The p-value of record is that of the mixed-effects model with t between runs. Holm's
    correction is over the contrasts of a model and level: the family of one hypothesis.

    Tests on means, which assume nothing about log odds, stand next to it (`vlm_probe.analysis.run_means`): over runs and items, which is
    about the same as the model, and on these items, the t test on run means. That a method makes no difference is tested, not
    inferred: TOST of the difference in rates within the bound, and by Bayes factors: JZS of the means over runs and items, and
    the BIC approximation of the mixed model.

    Args:
        trials: A trial table.
        bound: Difference in success rate below which there is no difference that matters; to be stated beforehand.
        alpha: Level of the equivalence tests.
        regime: Training runs of this regime only ("" for the plain one).
        wanted: Level -> contrast -> method -> weight, for others than these.

    Raises:
        ValueError: If no trained model was tested.
    """
    table = with_names(trials)
    method = table["method"].astype(str)
    plain_regime = (table["regime"].astype(str) == regime) | (method == UNTRAINED)
    table = table[plain_regime]
    if "transfer" not in table.columns or table["transfer"].isna().all():
        raise InvalidInput(
            "none of the runs is of a trained model: contrasts need runs with adapters beside the base model"
        )
    rows: list[dict[str, Any]] = []
    omnibus: list[dict[str, Any]] = []
    notes: list[str] = []
    formulas: list[str] = []
    means: list[pd.DataFrame] = []
    for (model,), of_model in cells(table, ["model"]):
        base = of_model[of_model["method"].astype(str) == UNTRAINED]
        for level in TRANSFER:
            own = of_model[of_model["transfer"].astype(str) == level]
            if own.empty or (wanted is not None and level not in wanted):
                continue
            tested = pd.concat([base[base["test"].isin(own["test"].unique())], own])
            where = f"{model}, {level}"
            fitted = None
            try:
                fitted = fit_cells(tested, ["method", "test"])
            except FitError as error:
                notes.append(f"{where}: no model could be fitted ({error}); tests on means only")
            if fitted is not None:
                formulas.append(fitted.fit.formula)
                notes += [f"{where}: {note}" for note in fitted.notes]
                omnibus.append({"model": model, "transfer": level, **_omnibus(fitted, tested)})
            notes += [f"{where}: {note}" for note in _unread(tested)]
            per_run, answers = run_means(tested), per_item(tested)
            means.append(per_run.assign(model=str(model), transfer=level))
            for name, weights in (_planned(tested) if wanted is None else wanted[level]).items():
                rows.append(
                    {"model": model, "transfer": level, "contrast": name}
                    | _tested(fitted, answers, per_run, weights, bound, alpha)
                )
        if base.empty:
            notes.append(
                f"{model}: no run of the untrained model, so that methods can only be compared with each other"
            )
    if not rows:
        raise InvalidInput(
            "one kind of training alone, and no untrained model: a contrast needs another side; add runs of the untrained model"
            " (`probe run` without --adapter)"
        )
    frame = _holm(pd.DataFrame(rows))
    frame["verdict"] = verdicts(frame, alpha)
    notes += [
        f"{row['model']}, {row['transfer']}, {row['contrast']}: {note}"
        for row in frame.to_dict("records")
        if (note := at_odds(row, alpha))
    ]
    return Contrasts(
        title="Planned contrasts by level of transfer, with 95 % intervals",
        table=frame,
        how=(
            "; ".join(dict.fromkeys(formulas))
            + f"; Laplace approximation, t with Satterthwaite's df from those between runs; {INTERVALS}; {RULE}; cells are methods by tests, contrasts means over the tests of"
            f" both sides, tasks weighing the same and shifted tests of a task sharing its weight; Holm within model and level; difference: of rates, with intervals from those of the rates (Zou & Donner, 2008); {HOW}; bf01: JZS Bayes factor"
            f" of p_means' t for no difference, Cauchy prior .707; bf01_bic: that of the mixed model, BIC approximation with the squared t for the likelihood ratio and n = runs; equivalence: TOST within +-{bound:g}, alpha {alpha:g}, on the two sides of the interval of the difference; {VERDICT}; h: Cohen's, of the counted rates;"
            f" {len(table)} trials of {table['run'].nunique()} runs"
        ),
        notes=tuple(dict.fromkeys(notes)),
        omnibus=pd.DataFrame(omnibus),
        run_means=pd.concat(means, ignore_index=True) if means else pd.DataFrame(),
    )


def _planned(tested: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Contrast -> method -> weight, of the methods that are there."""
    there = list(dict.fromkeys(tested["method"].astype(str)))
    trained = [name for name in there if name != UNTRAINED]
    found: dict[str, dict[str, float]] = {}
    if UNTRAINED in there:
        found |= {f"{name_of(name)} − {name_of(UNTRAINED)}": {name: 1.0, UNTRAINED: -1.0} for name in trained}
    learners = [name for name in trained if name in REINFORCEMENT]
    if learners and IMITATION in trained:
        found["RL − SFT"] = {name: 1 / len(learners) for name in learners} | {IMITATION: -1.0}
    return found


def _tested(
    fitted: CellModel | None,
    answers: pd.DataFrame,
    per_run: pd.DataFrame,
    weights: Mapping[str, float],
    bound: float,
    alpha: float,
) -> dict[str, Any]:
    """One contrast: by the model, on means, equivalence and effect sizes."""
    tests = _common_tests(per_run, weights)
    row: dict[str, Any] = {}
    if fitted is not None and tests:
        shares = test_shares(tests)
        over = {f"{method} | {test}": weight * shares[test] for method, weight in weights.items() for test in tests}
        log_odds, rates = fitted.contrast(over), fitted.rate_contrast(over)
        same = equivalence(rates.value, rates.sides, bound, rates.df, alpha)
        row["interval"] = log_odds.interval
        row |= _named("b", log_odds) | {"odds_ratio": odds_of(log_odds.value)}
        row |= {"odds_low": odds_of(log_odds.low), "odds_high": odds_of(log_odds.high)}
        row |= {"difference": rates.value, "difference_low": rates.low, "difference_high": rates.high}
        row |= {"p_equivalence": same.p, "verdict": None, "bf01_bic": _bic(log_odds, per_run["run"].nunique())}
    else:
        row |= dict.fromkeys(
            ("b", "se", "df", "statistic", "p", "b_low", "b_high", "odds_ratio", "odds_low", "odds_high"), math.nan
        )
        row["interval"] = None
        row |= dict.fromkeys(("difference", "difference_low", "difference_high", "p_equivalence"), math.nan) | {
            "verdict": None
        }
    own = per_run[per_run["test"].isin(tests)]
    means = contrast_of_means(answers[answers["test"].isin(tests)], weights)
    here, both = means.on_these_items, means.over_items
    factor = BayesFactor(math.nan, math.nan, "")
    if both.p == both.p and means.runs == means.runs:
        factor = jzs(both.statistic, both.df, means.runs)
    positive, negative = ([m for m, w in weights.items() if (w > 0) == up] for up in (True, False))
    counted = [_mean_of_tests(own[own["method"].isin(side)]) for side in (positive, negative)]
    return row | {
        "run_difference": both.value,
        "means_se": both.se,
        "means_df": both.df,
        "p_means": both.p,
        "about": means.about,
        "run_se": here.se,
        "run_df": here.df,
        "p_runs": here.p,
        "bf01": factor.bf01 if factor.log_bf10 == factor.log_bf10 else math.nan,
        "evidence": factor.evidence,
        "h": cohen_h(*counted) if tests else math.nan,
        "n_tests": len(tests),
        "n_runs": int(own.loc[own["method"].isin(set(weights) - {UNTRAINED}), "run"].nunique()),
    }


def _mean_of_tests(own: pd.DataFrame) -> float:
    """The mean rate of methods over tests, tasks weighing the same."""
    rates = own.groupby(["method", "test"])["rate"].mean()
    shares = test_shares(rates.index.get_level_values("test"))
    weights = rates.index.get_level_values("test").map(shares).to_numpy(float)
    return float(np.average(rates.to_numpy(float), weights=weights)) if len(rates) else math.nan


def _unread(tested: pd.DataFrame) -> list[str]:
    """Methods with many replies that state no legal answer: what looks like a loss of physics may be one of form."""
    if "status" not in tested:
        return []
    lost = (tested["status"].astype(str) != "ok").groupby(tested["method"].astype(str), sort=False).mean()
    return [
        f"{share:.0%} of the replies of {name_of(str(method))} state no legal answer and count as wrong: part of a difference from others is one"
        " of the form of answers, not of judgement"
        for method, share in lost.items()
        if share > UNREAD
    ]


def _named(name: str, value: Estimate) -> dict[str, float]:
    numbers = {name: value.value, "se": value.se, "df": value.df, "statistic": value.statistic, "p": value.p}
    return numbers | {f"{name}_low": value.low, f"{name}_high": value.high}


def _common_tests(per_run: pd.DataFrame, weights: Mapping[str, float]) -> list[str]:
    """Tests on which every side of the contrast was tested."""
    sets = [set(per_run.loc[per_run["method"] == name, "test"]) for name in weights]
    return sorted(set.intersection(*sets))


def _bic(log_odds: Estimate, n_runs: int) -> float:
    """Bayes factor against a contrast of the mixed model: the BIC approximation, with the squared t for the likelihood ratio."""
    if n_runs < 2 or not math.isfinite(log_odds.statistic):
        return math.nan
    return bic_bayes_factor(0.0, log_odds.statistic**2 / 2, 1, n_runs).bf01


def _holm(frame: pd.DataFrame) -> pd.DataFrame:
    """With p_holm after p, corrected over the contrasts of a model and level."""
    adjusted = pd.Series(math.nan, index=frame.index)
    for _, places in frame.groupby(["model", "transfer"], observed=True, sort=False).groups.items():
        known = frame.loc[places, "p"].dropna()
        if len(known):
            adjusted.loc[known.index] = multipletests(known, method="holm")[1]
    frame.insert(list(frame.columns).index("p") + 1, "p_holm", adjusted)
    return frame


def _omnibus(fitted: CellModel, tested: pd.DataFrame) -> dict[str, Any]:
    """Training as a whole: the model against one in which the tests alone differ, with the same random effects."""
    row: dict[str, Any] = {"chi2": math.nan, "df": math.nan, "p": math.nan}
    tests = [name.partition(" | ")[2] for name in fitted.cells]
    parameters = len(tests) - len(set(tests))
    if not fitted.chosen.regularised and parameters and fitted.rate_variance is None:
        of_test = np.array([[float(own == test) for test in dict.fromkeys(tests)] for own in tests])
        statistic = 2 * (fitted.fit.log_likelihood - fitted.restricted(of_test))
        row |= {"chi2": max(0.0, statistic), "df": parameters, "p": float(chi2.sf(statistic, parameters))}
    return row | {"n_runs": int(tested["run"].nunique())}
