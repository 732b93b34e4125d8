from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_probe.analysis.measures import code, cramers_v, measure_cells, permutations

LEFT_RIGHT = ("left", "right")


def answered(truth: list[str], answer: list[str | None], run: str = "r", chance: float = 0.5) -> pd.DataFrame:
    n = len(truth)
    return pd.DataFrame(
        {
            "run": run,
            "test_task": "t",
            "item_id": [f"i{i:03d}" for i in range(n)],
            "group_id": [f"g{i // 2}" for i in range(n)],
            "truth": truth,
            "answer": pd.Series(answer, dtype=object),
            "success": [int(t == a) for t, a in zip(truth, answer, strict=True)],
            "chance": chance,
        }
    )


def measured(table: pd.DataFrame) -> pd.Series:
    return measure_cells(table, n=199).table.iloc[0]


def test_a_reversal_has_information_and_a_negative_sign() -> None:
    truth = ["left", "right"] * 20
    right, turned = measured(answered(truth, truth)), measured(answered(truth, ["right", "left"] * 20))
    assert right["signed"] == 1 and turned["signed"] == -1
    assert right["information"] == turned["information"] == pytest.approx(1)
    assert turned["d_prime"] == pytest.approx(-right["d_prime"]) and turned["d_prime"] < -3
    assert turned["p_information"] == turned["p_signed"] == pytest.approx(1 / 200)


@pytest.mark.parametrize("constant", LEFT_RIGHT)
def test_a_constant_answer_has_neither(constant: str) -> None:
    truth = ["left"] * 10 + ["right"] * 30
    found = measured(answered(truth, [constant] * 40))
    assert found["signed"] == 0 and found["d_prime"] == pytest.approx(0, abs=0.5) and np.isnan(found["information"])


def test_invalid_replies_are_wrong_and_apart() -> None:
    truth = ["left", "right"] * 20
    found = measured(answered(truth, [None if i % 4 < 2 else t for i, t in enumerate(truth)]))
    assert (found["rate"], found["rate_valid"], found["invalid"], found["signed"]) == (0.5, 1.0, 0.5, 0.5)


def test_numbers_have_a_direction_and_a_correlation() -> None:
    truth = [-8, 8, -5, 5, -2, 2, -11, 11] * 5
    found = measured(answered([str(t) for t in truth], [str(-t) for t in truth]))
    assert found["signed"] == -1 and found["direction_accuracy"] == 0 and found["correlation"] == pytest.approx(-1)
    counts = [1, 2, 3, 4] * 10
    found = measured(answered([str(t) for t in counts], [str(5 - t) for t in counts]))
    assert found["signed"] == -1 and found["correlation"] == pytest.approx(-1)


def test_pairs_of_numbers_are_read_and_text_is_not_a_number() -> None:
    coded = code(answered(["-3 20", "3 20"], ["-7 5", "9"]))
    assert coded.numeric and coded.score.tolist() == [1.0, 0.0]
    assert not code(answered(["left", "balanced"], ["left", "right"])).numeric


def test_a_third_option_is_on_no_side() -> None:
    coded = code(answered(["left", "right", "balanced", "left"], ["right", "right", "left", "balanced"]))
    assert coded.score.tolist() == [-1.0, 1.0, 0.0, 0.0]


def test_unordered_options_are_scored_against_chance() -> None:
    coded = code(answered(["red", "blue", "green"], ["red", "green", None], chance=0.25))
    assert coded.kind == "options" and coded.score == pytest.approx([1.0, -1 / 3, 0.0])


def test_cramers_v_is_that_of_bergsma() -> None:
    table = np.array([[30, 10], [12, 28]])
    phi = (80 * (30 * 28 - 10 * 12) ** 2 / (40 * 40 * 42 * 38)) / 80
    corrected = max(0, phi - 1 / 79) / (2 - 1 / 79 - 1)
    assert float(cramers_v(table)) == pytest.approx(corrected**0.5)


def test_chance_has_no_information_on_average() -> None:
    rng = np.random.default_rng(0)
    tables = np.array([np.histogram2d(*rng.integers(0, 4, (2, 80)), bins=4)[0] for _ in range(300)])
    assert float(np.mean(cramers_v(tables) ** 2)) < 0.02


@given(st.lists(st.integers(0, 6), min_size=1, max_size=24), st.integers(0, 5))
def test_groups_stay_together(groups: list[int], seed: int) -> None:
    of = np.array(groups)
    for order in permutations(of, 5, np.random.default_rng(seed)):
        assert sorted(order) == list(range(len(of)))
        for group in set(groups):
            assert len(set(of[order][of == group])) == 1


def test_the_permutation_test_of_grouped_answers_keeps_its_level() -> None:
    rejected = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        truth = ["left", "left"] * 10 + ["right", "right"] * 10
        said = np.repeat(rng.choice(LEFT_RIGHT, 20), 2).tolist()  # a group gets one answer
        rejected += measured(answered(truth, said))["p_signed"] < 0.05
    assert rejected <= 7
