"""The choice of random effects: what cannot be estimated is dropped, and said."""

import pandas as pd
from scipy.stats import binomtest

from vlm_probe.analysis.random_effects import choose


def two_runs(first: list[int], second: list[int]) -> pd.DataFrame:
    """Answers of two runs to the same items."""
    items = [f"i{k}" for k in range(len(first))]
    return pd.DataFrame(
        {
            "success": [*first, *second],
            "cell": ["a"] * len(first) + ["b"] * len(second),
            "item": items * 2,
        }
    )


def test_items_that_are_separated_do_not_make_a_small_difference_certain():
    # 11 against 9 of 60, and the 9 are among the 11: McNemar's exact test of 2 changes gives p = .5, while the model
    # with a variance of items that runs off to infinity gives p < .01.
    first, second = [1] * 11 + [0] * 49, [1] * 9 + [0] * 51
    chosen = choose("success ~ cell", ["(1 | item)"], two_runs(first, second))
    assert chosen.fit.coefficients["p"].iloc[1] > 0.3 and binomtest(2, 2).pvalue == 0.5
    assert any("(quasi-)separated" in step for step in chosen.steps)


def test_items_that_leave_the_answers_open_stay():
    first, second = [1] * 11 + [0] * 49, [1] * 3 + [0] * 8 + [1] * 6 + [0] * 43
    chosen = choose("success ~ cell", ["(1 | item)"], two_runs(first, second))
    assert chosen.fit.variance_components["group"].tolist() == ["item"] and not chosen.steps
