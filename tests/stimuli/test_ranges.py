"""Ranges: what is in them, how they are told, and that no setting that is a number lacks one."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from decimal import Decimal
from fractions import Fraction
from typing import Any, get_origin, get_type_hints

import numpy as np
import pytest

from vlm_probe.analysis.material import Settings
from vlm_probe.analysis.power import Scenario
from vlm_probe.finetune.config import TrainConfig
from vlm_probe.finetune.policy import Capacity
from vlm_probe.probes.decoding.config import DecodeConfig
from vlm_probe.probes.episodes import Memory
from vlm_probe.probes.models import Generation
from vlm_probe.probes.run import RunConfig
from vlm_probe.probes.tiny.pretrain import Recipe as Pretraining
from vlm_probe.stimuli.generate import Recipe
from vlm_probe.stimuli.ranges import OutOfRange, Range, check_ranges, ranged, whole

CONFIGS = (Settings, Scenario, TrainConfig, Capacity, DecodeConfig, Memory, Generation, RunConfig, Pretraining, Recipe)


def test_what_is_in_a_range() -> None:
    rate, count = Range(0, 1), whole(1, 10)
    assert all(map(rate.holds, (0, 1, 0.5, np.float32(0.5), np.int64(1), Fraction(1, 2))))
    assert not any(
        map(rate.holds, (-1e-9, 1 + 1e-9, math.nan, math.inf, True, "0.5", None, [0.5], Decimal(1), 10**400))
    )
    assert all(map(count.holds, (1, 10, np.int64(3)))) and not any(map(count.holds, (0, 11, 1.0, True, "3", math.nan)))
    assert Range().holds(-1e300) and not Range().holds(-math.inf)
    assert not Range(above=0, below=1).holds(0) and not Range(above=0, below=1).holds(1)


@pytest.mark.parametrize(
    ("allowed", "text"),
    [
        (whole(16, 4096), "a whole number from 16 to 4,096"),
        (whole(1), "a whole number of at least 1"),
        (whole(0, 10**18), "a whole number from 0 to 10^18"),
        (whole(), "a whole number"),
        (whole(0, 1), "0 or 1"),
        (Range(), "a finite number"),
        (Range(0, 1), "a number from 0 to 1"),
        (Range(above=0, most=1), "a number above 0 and at most 1"),
        (Range(0, below=1), "a number of at least 0 and below 1"),
        (Range(above=-1, below=1), "a number above -1 and below 1"),
    ],
)
def test_ranges_are_told_in_words(allowed: Range, text: str) -> None:
    assert str(allowed) == text
    with pytest.raises(OutOfRange, match=f"^size must be {re.escape(text)}, got nan$"):
        allowed.check("size", math.nan)


def test_the_error_of_a_worker_process_comes_back_whole() -> None:
    error = OutOfRange("size", "must be 1, got 2")
    again = copy.copy(error)  # as pickling does, by the arguments
    assert (str(again), again.name, again.reason) == ("size must be 1, got 2", "size", "must be 1, got 2")


def test_long_values_do_not_fill_the_message() -> None:
    for value in (10**5000, "x" * 5000, [0] * 5000, np.zeros((9, 9))):
        with pytest.raises(OutOfRange) as told:
            whole(1, 2).check("size", value)
        assert len(str(told.value)) < 120 and "\n" not in str(told.value)


def test_fields_of_several_values_and_of_none() -> None:
    @dataclasses.dataclass(frozen=True)
    class Config:
        examples: tuple[int, ...] = ranged((0,), whole(0, 5))
        limit: int | None = ranged(None, whole(1, 5))
        n: int = ranged(1, whole(1, 5))

    for good in (Config(), Config(examples=()), Config(examples=(0, 5), limit=5)):
        check_ranges(good)
    for bad in (Config(examples=(0, 6)), Config(limit=0), Config(n=None)):  # type: ignore[arg-type]
        with pytest.raises(OutOfRange):
            check_ranges(bad)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.__module__}.{config.__name__}")
def test_every_number_of_a_configuration_has_a_range(config: type[Any]) -> None:
    required = {
        entry.name: {"tasks": ("towers-stability",), "n": 1, "seed": 0}.get(entry.name, "sft")
        for entry in dataclasses.fields(config)
        if entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
    }
    hints = get_type_hints(config)
    kinds = (int, float, int | None, float | None, tuple[int, ...], tuple[float, ...])
    numbers = [entry for entry in dataclasses.fields(config) if hints[entry.name] in kinds]
    assert numbers
    for entry in numbers:
        for value in (math.nan, math.inf, 10**30, -(10**30), "1", True):
            given = (value,) if get_origin(hints[entry.name]) is tuple else value
            with pytest.raises(OutOfRange, match=f"^{entry.name} must be"):
                config(**required | {entry.name: given})
