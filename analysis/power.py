"""Power by simulation: how many runs and items it takes to find a difference, or to show that there is none.

What is simulated is the data of the planned contrast: every run answers every item, with log odds

    mean of the method + effect of the run + effect of the item + effect of the item for this method

all normal. What is computed of every data set is the test of that contrast over runs and items on means (`vlm_probe.analysis.run_means`): the
difference of mean success rates with the variance of crossed random effects, runs + items - residual (Clark, 1973; Baayen,
Davidson & Bates, 2008), and t with Satterthwaite's degrees of freedom. `check` fits the mixed-effects model itself to
some of the data sets.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit
from scipy.stats import t as student

from vlm_probe.analysis.effect_sizes import log_odds_of
from vlm_probe.analysis.result import Result
from vlm_probe.analysis.run_means import crossed
from vlm_probe.analysis.selection import Floats
from vlm_probe.stimuli.errors import InvalidInput
from vlm_probe.stimuli.ranges import SEED, OutOfRange, Range, check_ranges, ranged, whole

CHUNK = 4_000_000
"""Answers that are simulated at once: some 100 MB."""
LARGEST = 100_000_000
"""Means of items that are kept: some 2 GB."""
LEVELS, SIMULATIONS, FITS = whole(2, 1_000_000), whole(100, 1_000_000), whole(0, 100_000)
RATE, SPREAD = Range(above=0, below=1), Range(0, 100)
CHECKED_ROWS = 4000
"""Most rows of a data set that `check` fits the mixed-effects model to."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Scenario:
    """What is assumed of the data.

    Attributes:
        effect: Difference of the mean success rates.
        base: Success rate of the method that is compared with.
        against: "method": another method with as many runs; "base": the untrained model, a single run.
        run_sd: Standard deviation between runs, log odds.
        item_sd: Of items.
        interaction_sd: Of items for one method alone: some items profit from a training and others do not.
        alpha: Level of the test.
        bound: For equivalence: the smallest difference of rates that would matter.

    Raises:
        OutOfRange: If a number is outside its range.
        ValueError: If the rates are not between 0 and 1, or there is nothing like it to compare with.
    """

    effect: float = ranged(0.1, Range(above=-1, below=1))
    base: float = ranged(0.5, RATE)
    against: str = "method"
    run_sd: float = ranged(0.3, SPREAD)
    item_sd: float = ranged(0.7, SPREAD)
    interaction_sd: float = ranged(0.2, SPREAD)
    alpha: float = ranged(0.05, RATE)
    bound: float = ranged(0.1, RATE)

    def __post_init__(self) -> None:
        check_ranges(self)
        if not 0 < self.base + self.effect < 1:
            raise InvalidInput(
                f"rates of {self.base:g} and {self.base + self.effect:g} are not both inside (0, 1): choose another effect or base"
            )
        if self.against not in ("method", "base"):
            raise InvalidInput(f"a method is compared against another `method` or the `base`, not {self.against!r}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Power(Result):
    """Power over runs and items.

    Attributes:
        scenario: What was assumed.
        target: Power that `needed` asks for.
    """

    scenario: Scenario
    target: float = 0.8

    @property
    def needed(self) -> pd.DataFrame:
        """The fewest runs of the grid with at least the target power, by number of items."""
        rows = []
        for items, own in self.table.groupby("items"):
            enough = own.loc[own["power"] >= self.target, "runs"]
            rows.append({"items": items, "runs": int(enough.min()) if len(enough) else None})
        return pd.DataFrame(rows)


def grid(text: str, name: str = "grid", most: int = 8) -> list[int]:
    """The numbers that "3,5,10" or "3..20" stands for; a range by up to `most` numbers in nearly equal ratios.

    Args:
        text: As a user wrote it.
        name: What they are numbers of, for messages.
        most: How many numbers of a range.

    Raises:
        ValueError: If it is neither, or one of the numbers is not in `LEVELS`: no variance can be estimated from a single run or item.
    """
    if not re.fullmatch(r"\d+(,\d+)*|\d+\.\.\d+", text, re.ASCII):
        raise InvalidInput(f"{name} {text[:40]!r} is no list of numbers: write 3,5,10 or 3..20")
    numbers = [int(part) if len(part) < 20 else 10**20 for part in re.findall(r"\d+", text)]
    for number in numbers:
        LEVELS.check(name, number)
    low, high = numbers[0], numbers[-1]
    if ".." in text and high < low:
        raise InvalidInput(f"{name} {text!r} ends before it begins: write {high}..{low}")
    if ".." in text:
        numbers += [_round(step) for step in np.geomspace(low, high, most)[1:-1] if low < high]
    return sorted(set(numbers))


def power(
    runs: Sequence[int],
    items: Sequence[int],
    scenario: Scenario,
    simulations: int = 1000,
    seed: int = 0,
    check: int = 0,
    progress: Progress | None = None,
) -> Power:
    """Simulate the planned contrast for every number of runs (per method) and items.

    Args:
        runs: Numbers of runs of a method, that is of seeds.
        items: Numbers of items that every run is tested on.
        scenario: What is assumed.
        simulations: Data sets per cell, with the effect and as many without.
        seed: Of the simulation.
        check: Data sets of the smallest and the middle cell that the mixed-effects model is fitted to.
        progress: Told how many cells are done.

    Raises:
        OutOfRange: If a number is outside its range, or the data sets would not fit into the memory.

    Returns:
        One row per cell: `power` of the test over runs and items, `power_runs` of the t test of runs on these items, `type_1` and
        `type_1_runs`, how often they reject without an effect, and `power_equivalence`, how often TOST then finds equivalence.
    """
    SIMULATIONS.check("simulations", simulations)
    SEED.check("seed", seed)
    FITS.check("check", check)
    cells = [(r, i) for i in items for r in runs]
    if max(r * i for r, i in cells) > CHUNK or simulations * max(items) > LARGEST:
        raise OutOfRange(
            "items",
            f"must be fewer: {max(runs)} runs of {max(items)} items, {simulations} times, do not fit into the memory",
        )
    checked = _checked(cells) if check else []
    rows = []
    for done, (r, i) in enumerate(cells):
        rng = np.random.default_rng([seed, r, i])
        there, absent = (
            _tests(*_simulated(r, i, effect, scenario, simulations, rng), scenario) for effect in (scenario.effect, 0.0)
        )
        row: dict[str, Any] = {
            "runs": r,
            "items": i,
            "power": there["rejected"].mean(),
            "power_runs": there["rejected_runs"].mean(),
            "type_1": absent["rejected"].mean(),
            "type_1_runs": absent["rejected_runs"].mean(),
            "power_equivalence": absent["equivalent"].mean(),
        }
        if check:
            row["power_model"] = _by_model(r, i, scenario, check, rng) if (r, i) in checked else math.nan
        rows.append(row)
        if progress is not None:
            progress(done + 1, len(cells))
    error = math.sqrt(0.25 / simulations)
    what = "a second method with as many runs" if scenario.against == "method" else "the untrained model (one run)"
    notes = [
        "power_runs takes the items as they are; where type_1_runs exceeds alpha, it claims more than these runs and items can carry"
    ]
    table = pd.DataFrame(rows)
    found = Power(title="", table=table, how="", scenario=scenario).needed
    counts = [
        f"{'more' if pd.isna(r) else int(r)} ({i} items)" for i, r in zip(found["items"], found["runs"], strict=True)
    ]
    notes.insert(0, f"fewest of these runs per method with a power of {Power.target:g}: {', '.join(counts)}")
    return Power(
        title=f"Power for a difference of {scenario.effect:g} in success rate against {what}",
        table=table,
        how=(
            f"{simulations} simulated data sets per cell with the effect and as many without, seed {seed} (simulation error at most"
            f" {error:.3f}); rates {scenario.base:g} and {scenario.base + scenario.effect:g}; log-odds standard deviations: runs"
            f" {scenario.run_sd:g}, items {scenario.item_sd:g}, items by method {scenario.interaction_sd:g}; alpha"
            f" {scenario.alpha:g}, two-sided; t with Satterthwaite's df and the variance of crossed random effects; equivalence within"
            f" +-{scenario.bound:g}"
            + (
                f"; power_model: {check} fits of success ~ method + (0 + trained | run) + (1 | item) + (1 | item:method)"
                if check
                else ""
            )
        ),
        notes=tuple(notes),
        scenario=scenario,
    )


def _simulated(
    runs: int, items: int, effect: float, scenario: Scenario, simulations: int, rng: np.random.Generator
) -> tuple[list[Floats], list[Floats]]:
    """Mean success per run and per item of both sides: ([(sims, runs), (sims, runs of the other)], [(sims, items)] * 2)."""
    other_runs = runs if scenario.against == "method" else 1
    sides: list[list[Floats]] = [[], []]
    of_items: list[list[Floats]] = [[], []]
    step = max(1, CHUNK // ((runs + other_runs) * items))
    for start in range(0, simulations, step):
        n = min(step, simulations - start)
        shared = rng.normal(0, scenario.item_sd, (n, 1, items))
        for side, count in enumerate((runs, other_runs)):
            answers = _answers(n, count, items, effect, side, shared, scenario, rng)
            sides[side].append(answers.mean(2, dtype=float))
            of_items[side].append(answers.mean(1, dtype=float))
    return [np.concatenate(x) for x in sides], [np.concatenate(x) for x in of_items]


def _answers(
    n: int,
    count: int,
    items: int,
    effect: float,
    side: int,
    shared: Floats,
    scenario: Scenario,
    rng: np.random.Generator,
) -> Any:
    """Right or wrong (n, runs, items) of one side: 0 is the one with the effect, 1 the one that it is compared with."""
    untrained = side == 1 and scenario.against == "base"
    run_sd = 0.0 if untrained else scenario.run_sd
    rate = scenario.base + (effect if side == 0 else 0.0)
    spread = math.sqrt(run_sd**2 + scenario.item_sd**2 + scenario.interaction_sd**2)
    own = log_odds_of(rate, spread) + shared + rng.normal(0, scenario.interaction_sd, (n, 1, items))
    eta = own + rng.normal(0, run_sd, (n, count, 1)) if run_sd else np.broadcast_to(own, (n, count, items))
    return rng.random((n, count, items), dtype=np.float32) < expit(eta.astype(np.float32))


def _tests(of_runs: list[Floats], of_items: list[Floats], scenario: Scenario) -> dict[str, Any]:
    """Both tests of every data set, and whether the difference is equivalent to 0."""
    first, second = of_runs
    runs, items = first.shape[1], of_items[0].shape[1]
    difference = first.mean(1) - second.mean(1)
    between, df = first.var(1, ddof=1) / runs, float(runs - 1)
    # Of a mean of answers to one item, the part that is chance, for it is in the variance between runs as well.
    residual = (of_items[0] * (1 - of_items[0])).mean(1) / (runs - 1) / items
    if scenario.against == "method":
        between, df = between + second.var(1, ddof=1) / runs, float(2 * runs - 2)
        residual = residual + (of_items[1] * (1 - of_items[1])).mean(1) / (runs - 1) / items
    within = (of_items[0] - of_items[1]).var(1, ddof=1) / items
    variance, freedom = crossed((between, df), (within, items - 1), (residual, df * (items - 1)))
    freedom = np.where(np.isnan(freedom), 1e9, freedom)
    se, se_runs = np.sqrt(variance), np.sqrt(between)
    return {
        "rejected": np.abs(difference) > student.ppf(1 - scenario.alpha / 2, freedom) * se,
        "rejected_runs": np.abs(difference) > student.ppf(1 - scenario.alpha / 2, df) * se_runs,
        "equivalent": np.abs(difference) + student.ppf(1 - scenario.alpha, freedom) * se < scenario.bound,
    }


def _by_model(runs: int, items: int, scenario: Scenario, fits: int, rng: np.random.Generator) -> float:
    """Share of data sets in which the mixed-effects model finds the effect."""
    from vlm_probe.analysis.cell_model import UNTRAINED, fit_cells
    from vlm_probe.analysis.mixed_effects import FitError

    found = tried = 0
    for _ in range(fits):
        shared = rng.normal(0, scenario.item_sd, (1, 1, items))
        parts = []
        for side, count in enumerate((runs, runs if scenario.against == "method" else 1)):
            answers = _answers(1, count, items, scenario.effect, side, shared, scenario, rng)[0]
            method = "treated" if side == 0 else "other" if scenario.against == "method" else UNTRAINED
            run, item = np.indices(answers.shape)
            parts.append(
                pd.DataFrame({"success": answers.ravel().astype(int), "item": item.ravel()}).assign(
                    run=[f"{method} {r}" for r in run.ravel()], method=method, training=method, test="test"
                )
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fitted = fit_cells(pd.concat(parts, ignore_index=True), ["method"])
        except FitError:
            continue
        tried += 1
        weights = {name: 1.0 if name == "treated" else -1.0 for name in fitted.cells}
        found += fitted.contrast(weights).p < scenario.alpha
    return found / tried if tried else math.nan


def _checked(cells: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The smallest and the middle one of the cells that are small enough to be fitted often."""
    small = sorted((c for c in cells if 2 * c[0] * c[1] <= CHECKED_ROWS), key=lambda c: c[0] * c[1])
    return [small[0], small[len(small) // 2]] if small else []


def _round(value: float) -> int:
    """To two significant digits, as participants choose numbers."""
    digits = max(0, math.floor(math.log10(value)) - 1)
    return int(round(value / 10**digits) * 10**digits)
