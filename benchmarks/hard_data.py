"""Simulated data sets that make mixed models hard: unbalanced, nearly singular, counts with an offset, overdispersed.

Levels have spaces and letters beyond ASCII, groups are whole numbers with gaps, the response is text, rows are missing. `benchmarks/
lme4_agreement.py` compares fits of them with those of lme4.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import expit


def unbalanced(rng: np.random.Generator) -> pd.DataFrame:
    """Three factors, crossed participants and items of very different numbers, a slope that varies by item, missing participants."""
    n = 1500
    table = pd.DataFrame(
        {
            "subj": rng.choice(40, n, p=rng.dirichlet(np.full(40, 0.6))),
            "item": rng.choice(25, n, p=rng.dirichlet(np.full(25, 0.8))),
            "A": rng.choice(["très bas", "haut niveau"], n, p=[0.8, 0.2]),
            "B": rng.choice(["b 1", "b-2", "b:3"], n, p=[0.6, 0.3, 0.1]),
            "C": rng.choice(["x", "y"], n),
            "m": rng.gamma(2, 1, n),
        }
    )
    of_person, of_item, slope = rng.normal(0, 1.1, 40), rng.normal(0, 0.7, 25), rng.normal(0, 0.5, 25)
    depth = np.log(table["m"])
    predictor = -0.5 + 0.8 * (table["A"] == "haut niveau") - 0.6 * (table["B"] == "b-2") + 0.4 * depth
    predictor += of_person[table["subj"]] + of_item[table["item"]] + slope[table["item"]] * depth
    table["resp"] = np.where(rng.random(n) < expit(predictor), "yes", "no")
    table["subj"] = table["subj"].astype(float)
    table.loc[::97, "subj"] = np.nan
    return table


def nested(rng: np.random.Generator) -> pd.DataFrame:
    """Participants within laboratories with slopes that follow from their intercepts, weights, and no variance between laboratories."""
    person = np.repeat(np.arange(24), 30)
    laboratory = person // 4
    table = pd.DataFrame(
        {
            "lab": laboratory,
            "p": np.array(list("abcd"))[person % 4],
            "t": np.tile(np.arange(30) % 10, 24),
            "cond": np.tile(np.repeat(["ctl", "trt", "pla"], 10), 24),
        }
    )
    level = rng.normal(0, 2, 24)[person]
    table["w"] = rng.choice([0.5, 1, 2, 4], len(table))
    slope = 0.5 + 0.095 * level
    noise = rng.normal(0, 0.05, 6)[laboratory] + rng.normal(0, 3, len(table)) / np.sqrt(table["w"])
    table["y"] = 10 + level + slope * table["t"] + 0.9 * (table["cond"] == "trt") + noise
    return table


def counts(rng: np.random.Generator) -> pd.DataFrame:
    """Counts out of 1 to 39 trials with a curved effect, an offset, and few years; and counts of events, overdispersed."""
    n = 260
    table = pd.DataFrame(
        {
            "site": rng.integers(1, 19, n),
            "year": rng.integers(2001, 2006, n),
            "x": rng.normal(3, 2, n),
            "N": rng.integers(1, 40, n),
            "e": rng.lognormal(0, 0.6, n),
        }
    )
    of_site, of_year = rng.normal(0, 0.6, 19)[table["site"]], rng.normal(0, 0.3, 6)[table["year"] - 2000]
    predictor = -1 + 0.25 * table["x"] - 0.03 * table["x"] ** 2 + np.log(table["e"]) + of_site + of_year
    table["k"] = rng.binomial(table["N"], expit(predictor))
    table["events"] = rng.poisson(np.exp(0.2 + 0.2 * table["x"] + of_site + rng.normal(0, 0.4, n)) * table["e"])
    table["obs"] = np.arange(n)
    return table


def visits(rng: np.random.Generator) -> pd.DataFrame:
    """Patients at up to seven visits, as in the toenail trial (De Backer et al., 1998): patients differ so much that most answer alike
    at all visits, and the Laplace approximation errs. Yes or no, counts out of 1 to 4, and counts of events.
    """
    patient = np.repeat(np.arange(150), 7)
    table = pd.DataFrame({"id": patient, "month": np.tile([0.0, 1, 2, 3, 6, 9, 12], 150)})
    table["trt"] = rng.integers(0, 2, 150)[patient]
    level = rng.normal(0, 3.5, 150)[patient]
    predictor = -1.5 - 0.15 * table["trt"] - 0.35 * table["month"] - 0.15 * table["trt"] * table["month"] + level
    table["y"] = rng.binomial(1, expit(predictor))
    table["N"] = rng.integers(1, 5, len(table))
    table["k"] = rng.binomial(table["N"], expit(-1 - 0.2 * table["month"] + level / 2))
    table["events"] = rng.poisson(np.exp(-0.5 - 0.1 * table["month"] + level / 3))
    table["dose"] = rng.uniform(0.5, 2, len(table)).round(3)
    return table[rng.random(len(table)) > 0.1].reset_index(drop=True)


HARD = {"unbalanced": unbalanced, "nested": nested, "counts": counts, "visits": visits}


def simulate(name: str) -> pd.DataFrame:
    """One of the data sets, always the same."""
    return HARD[name](np.random.default_rng([91, list(HARD).index(name)]))
