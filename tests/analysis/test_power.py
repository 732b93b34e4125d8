from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import nct
from scipy.stats import t as student

from vlm_probe.analysis.figures.power import write
from vlm_probe.analysis.power import Scenario, grid, power
from vlm_probe.stimuli.output import claim


def test_a_grid_is_a_list_or_a_range() -> None:
    assert grid("3,10,5") == [3, 5, 10] and grid("4..4") == [4] and grid("3..5") == [3, 4, 5]
    whole = grid("50..1000")
    assert whole[0] == 50 and whole[-1] == 1000 and len(whole) == 8
    for wrong in ("3-5", "", "1..4", "9..3x"):
        with pytest.raises(ValueError, match=r"write 3,5,10|from 2 to"):
            grid(wrong)
    with pytest.raises(ValueError, match=r"write 3\.\.20"):
        grid("20..3")


def test_without_items_power_is_that_of_the_t_test() -> None:
    """With many trials of equal items, what is left is two groups of runs, whose power has a formula."""
    scenario = Scenario(effect=0.1, run_sd=0.3, item_sd=0.0, interaction_sd=0.0)
    row = power([6], [400], scenario, simulations=2000).table.iloc[0]
    # Standard deviation of a run's rate: that of its probability, and of 400 answers.
    rng = np.random.default_rng(1)
    rates = [1 / (1 + np.exp(-(eta + rng.normal(0, 0.3, 100_000)))) for eta in (0.0, math.log(0.6 / 0.4) * 1.015)]
    variance = sum(p.var() + (p * (1 - p)).mean() / 400 for p in rates)
    delta, critical = (rates[1].mean() - rates[0].mean()) / math.sqrt(variance / 6), student.ppf(0.975, 10)
    expected = nct.sf(critical, 10, delta) + nct.cdf(-critical, 10, delta)
    assert row["power_runs"] == pytest.approx(expected, abs=0.035)
    assert row["power"] == pytest.approx(expected, abs=0.035)


@pytest.mark.parametrize("against", ["method", "base"])
def test_tests_keep_their_level_and_gain_from_runs_and_items(against: str) -> None:
    found = power([4, 12], [60, 400], Scenario(against=against, interaction_sd=0.4), simulations=1500)
    table = found.table.set_index(["runs", "items"])
    assert table["type_1"].between(0.02, 0.085).all()  # .05 +- .011 with probability .95; few runs reject a little more
    assert table.loc[(12, 400), "power"] > table.loc[(4, 60), "power"] + 0.2
    assert table.loc[(12, 400), "power_equivalence"] > table.loc[(4, 60), "power_equivalence"]
    # A t test of run means takes the items for all there are: against one run of the base it is far too sure.
    assert (table["type_1_runs"].max() > 0.15) == (against == "base")
    assert power([4], [60], found.scenario, simulations=200).table.equals(
        power([4], [60], found.scenario, simulations=200).table
    )


def test_the_fewest_runs_that_suffice() -> None:
    found = power([3, 8, 16], [50, 300], Scenario(effect=0.2), simulations=300)
    needed = found.needed.set_index("items")["runs"]
    reached = found.table[found.table["power"] >= 0.8].groupby("items")["runs"].min()
    assert needed.dropna().to_dict() == reached.to_dict() and needed[300] <= 8
    assert f"{needed[300]:.0f} (300 items)" in found.notes[0]


def test_the_fast_test_finds_what_the_model_finds() -> None:
    scenario = Scenario(effect=0.25, run_sd=0.2)
    row = power([4], [40], scenario, simulations=500, check=8).table.iloc[0]
    assert row["power_model"] == pytest.approx(row["power"], abs=0.35) and row["power"] > 0.7


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"effect": 0.6}, "inside"),
        ({"against": "us"}, "`method` or the `base`"),
        ({"run_sd": -1.0}, "run_sd must be a number from 0"),
        ({"alpha": math.nan}, "alpha must be"),
    ],
)
def test_an_impossible_scenario_is_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Scenario(**wrong)  # type: ignore[arg-type]


def test_the_curve_and_the_table_are_written(tmp_path) -> None:
    found = power([3, 5, 9], [50, 100], Scenario(), simulations=200)
    folder = tmp_path / "power"
    with claim(folder, "power analysis") as output:
        write(found, output)
        made = {name: (folder / name).read_bytes() for name in output.names}
        assert set(made) == {"power.pdf", "power.png", "power.csv", "power.json"}
        write(found, output)
        assert {name: (folder / name).read_bytes() for name in output.names} == made
