"""Human answers predicted by a model's: a logistic mixed model with participant and item effects."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd

from vlm_probe.analysis.alignment import LARGEST_SHARE, THIN, largest_share
from vlm_probe.analysis.effect_sizes import odds_of
from vlm_probe.analysis.humans import of_the_same_items
from vlm_probe.analysis.mixed_effects import FitError, FitResult, FitWarning, fit
from vlm_probe.analysis.result import Result
from vlm_probe.analysis.selection import (
    CELL,
    Floats,
    cells,
    judgements,
    plain_trials,
    present,
    signal_probability,
    truth_is_signal,
)

RANDOM = ("(1 + model | participant)", "(1 + model || participant)", "(1 | participant)")
"""Participant effects from the maximal ones down; the first that is not singular is taken."""
CERTAINTY = 0.02
"""Probabilities are kept this far from 0 and 1, so that answers without grades have finite log odds."""


def alignment_model(trials: pd.DataFrame, responses: pd.DataFrame) -> Result:
    """How well the model's P(signal) of an item predicts what participants answer to it, alone and next to the truth.

        said signal ~ model (+ truth) + (1 + model | participant) + (1 | item)

    `model`: log odds of the run's P(signal), per standard deviation over the items. Next to the truth its coefficient says
    whether the model errs where participants err; alone it also gets the credit of both being right. Tests of `model` have the
    degrees of freedom between participants (where it has a random slope) or items, whichever are fewer.

    Args:
        trials: A trial table of two-option judgements.
        responses: Human responses: `item_id`, `response`, and `participant` or `count` (counts know no participants, and have item
            effects alone).

    Raises:
        ValueError: If no judged item has human responses.
    """
    found, people = of_the_same_items(plain_trials(judgements(trials)), responses)
    found = found.assign(_p=signal_probability(found), _t=truth_is_signal(found))
    found = found[found["_p"].notna()]
    columns, rows, notes = present(found, CELL), [], []
    for key, own in cells(found, [*columns, "run"]):
        *cell, run = key
        item = own.groupby("item_id")[["_p", "_t"]].mean()
        if item["_p"].nunique() < 2:
            notes.append(f"{run}: it said the same about every item, from which nothing can be predicted")
            continue
        if largest_share(_log_odds(item)) > LARGEST_SHARE:
            notes.append(f"{run}: {THIN}")
            continue
        data = _data(people, item, str(own["signal"].iloc[0]))
        for predictors in ("model", "model + truth"):
            row = {**dict(zip(columns, cell, strict=True)), "run": run, "predictors": predictors}
            try:
                fitted = _fit(predictors, data)
            except FitError as error:
                notes.append(f"{run}, {predictors}: {error}")
                continue
            notes += [f"{run}, {predictors}: {text}" for text in fitted.warnings if not text.startswith("singular")]
            if "model" not in fitted.coefficients.index:
                notes.append(f"{run}, {predictors}: the run says nothing beyond the truth that could be told from it")
                continue
            told: dict[Any, Any] = fitted.coefficients.to_dict("index")["model"]
            rows.append(
                row
                | {name: float(told[name]) for name in ("estimate", "se", "df", "statistic", "p", "ci_low", "ci_high")}
                | {
                    "odds_ratio": odds_of(told["estimate"]),
                    "formula": fitted.formula,
                    "n_responses": int(data["n"].sum()),
                }
                | {
                    "n_items": data["item"].nunique(),
                    "n_people": data["participant"].nunique() if "participant" in data else 0,
                }
            )
    return Result(
        title="Human answers predicted by models, with 95 % Wald intervals",
        table=pd.DataFrame(rows),
        how=(
            "logistic mixed model (Laplace) of the signal answer on the log odds of the run's P(signal), per standard deviation over"
            " items, with participant and item effects; the first of the participant effects "
            + ", ".join(RANDOM)
            + f" that is not singular; Wald intervals and t tests with df between participants or items; {len(found)} trials"
        ),
        notes=tuple(dict.fromkeys(notes)),
    )


def _data(people: pd.DataFrame, item: pd.DataFrame, signal: str) -> pd.DataFrame:
    """One row per response, or per item where only counts are known."""
    kept = people[people["item_id"].isin(item.index)]
    own = item.loc[kept["item_id"]]
    data = pd.DataFrame(
        {
            "said": (kept["response"].astype(str) == signal).to_numpy(float),
            "n": kept["count"].to_numpy(float) if "count" in kept.columns else 1.0,
            "item": kept["item_id"].to_numpy(),
            "truth": own["_t"].to_numpy(float) - 0.5,
        }
    )
    log_odds = _log_odds(item)
    spread = float(log_odds.std()) or 1.0
    scaled: dict[Any, float] = dict(zip(item.index, (log_odds - log_odds.mean()) / spread, strict=True))
    data["model"] = data["item"].map(scaled)
    known = "participant" in kept.columns and bool((kept["participant"].fillna("").astype(str) != "").all())
    data["said"] *= data["n"]
    if known:
        return data.assign(participant=kept["participant"].astype(str).to_numpy())
    return data.groupby("item").agg({"said": "sum", "n": "sum", "truth": "first", "model": "first"}).reset_index()


def _log_odds(item: pd.DataFrame) -> Floats:
    """Of the run's P(signal) by item, kept away from infinity."""
    p = np.clip(item["_p"].to_numpy(float), CERTAINTY, 1 - CERTAINTY)
    return np.asarray(np.log(p / (1 - p)))


def _fit(predictors: str, data: pd.DataFrame) -> FitResult:
    candidates = RANDOM if "participant" in data else ("",)
    for random in candidates:
        formula = " + ".join(filter(None, [f"said ~ {predictors}", random, "(1 | item)"]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FitWarning)
            fitted = fit(formula, data, family="binomial", trials="n")
        if not any("participant" in text and text.startswith("singular") for text in fitted.warnings):
            break
    return fitted
