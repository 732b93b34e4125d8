"""A fit from end to end, on simulated trials."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from analysis import FitError, SeparationError, fit

FORMULA = "correct ~ method*margin + (1|run) + (1 + margin|item)"


@pytest.fixture(scope="module")
def trials():
    rng = np.random.default_rng(1)
    item_effect, item_margin = rng.normal(0, 0.7, 60), rng.uniform(-0.7, 0.7, 60)
    rows = []
    for m, method in enumerate(["none", "sft", "ppo"]):
        for seed in range(5):
            item = rng.choice(60, 50, replace=False)
            predictor = 0.2 + 0.4 * m + rng.normal(0, 0.4) + item_effect[item] + 0.8 * item_margin[item]
            correct = rng.random(50) < expit(predictor)
            rows.append(
                pd.DataFrame(
                    {
                        "correct": correct,
                        "method": method,
                        "run": f"{method}-{seed}",
                        "item": item,
                        "margin": item_margin[item],
                    }
                )
            )
    table = pd.concat(rows, ignore_index=True)
    table["method"] = pd.Categorical(table["method"], ["none", "sft", "ppo"])
    return table


@pytest.fixture(scope="module")
def result(trials):
    with warnings.catch_warnings(action="ignore"):
        return fit(FORMULA, trials, family="binomial")


def test_it_prints_the_table_of_a_paper(result):
    text = str(result)
    assert "method[T.ppo]:margin" in text
    assert "run 15; item 60" in text
    assert "converged" in text
    json.dumps(result.to_dict(), allow_nan=False)


def test_method_is_tested_between_runs(result):
    assert result.coefficients.loc["method[T.ppo]", "df"] == 12


def test_means_are_on_both_scales_and_contrasts_are_their_differences(result):
    means = result.means("method").set_index("method")
    contrast = result.contrast("method", "treatment").set_index("contrast")
    assert contrast.loc["ppo - none", "estimate"] == pytest.approx(
        means.loc["ppo", "estimate"] - means.loc["none", "estimate"]
    )
    np.testing.assert_allclose(means["response"], expit(means["estimate"]))


def test_predictions_of_the_same_rows_are_the_same(result, trials):
    np.testing.assert_allclose(result.predict(), result.predict(trials), rtol=1e-10)


def test_separation_is_named(trials):
    trials = trials.assign(correct=trials["correct"] | (trials["method"] == "ppo"))
    with pytest.raises(SeparationError, match="method = ppo"):
        fit(FORMULA, trials, family="binomial")


def test_a_column_that_is_not_there_is_named(trials):
    with pytest.raises(FitError, match="did you mean method"):
        fit("correct ~ metod + (1|run)", trials, family="binomial")
