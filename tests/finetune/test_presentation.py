"""Rows come in the order of the training; successes find their way back to it, whatever the number of answers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset

from vlm_probe.finetune.curriculum import EVIDENCE, OPEN_AT_FIRST, STEP
from vlm_probe.finetune.mixture import parse_mixture
from vlm_probe.finetune.sampling import Order, OrderKeeping, Results, present

FIRST = {"a": 0, "b": 30}
TABLE = Dataset.from_dict({"index": list(range(50)), "text": [f"item {i}" for i in range(50)]})


def order(kind: str = "none", places: int = 96) -> Order:
    hard = {"a": np.linspace(0, 1, 30), "b": np.linspace(0, 1, 20)}
    return Order(parse_mixture("a:2,b"), hard, kind, places, 8, 3)  # type: ignore[arg-type]


def test_rows_are_those_of_the_places_in_any_batch() -> None:
    shown = order()
    rows = present(TABLE, shown, FIRST)
    assert len(rows) == 96
    loaded = [int(i) for batch in torch.utils.data.DataLoader(rows, batch_size=5) for i in batch["index"]]
    assert loaded == [FIRST[shown[place].task] + shown[place].item for place in range(96)]
    assert rows[[7, 7, 2]]["place"] == [7, 7, 2]
    assert rows[7]["text"] == f"item {loaded[7]}" == rows[[7]]["text"][0]
    again = present(TABLE, order(), FIRST)
    assert [again[i]["index"] for i in range(20)] == loaded[:20]


def test_rows_are_looked_up_when_they_are_asked_for() -> None:
    """The third block is not decided before the first one has been answered."""
    adaptive = order("adaptive")
    rows = present(TABLE, adaptive, FIRST)
    rows[15]
    with pytest.raises(RuntimeError, match="before block 0 was recorded"):
        rows[16]
    Results(adaptive).note(range(8), [1.0] * 8)
    rows[16]


def test_several_answers_to_one_presentation_are_one_success(tmp_path: Path) -> None:
    adaptive = order("adaptive", places=800)
    results, rows = Results(adaptive), present(TABLE, adaptive, FIRST)
    for block in range(100):
        places = range(block * 8, block * 8 + 8)
        rows[places[-1]]
        # Four answers each, three of them right.
        results.note([place for place in places for _ in range(4)], [1.0, 1.0, 1.0, 0.0] * 8)
    assert len(adaptive.results) == 100
    first = next(i for i, b in enumerate(adaptive.summary()["blocks"]) if b["open"]["a"] > OPEN_AT_FIRST)
    recorded = sum(result["a"][1] for result in adaptive.results[: first - 1])
    assert recorded >= EVIDENCE and adaptive.summary()["blocks"][first]["open"]["a"] == OPEN_AT_FIRST + STEP
    keeping = OrderKeeping(adaptive)
    (tmp_path / "checkpoint-5").mkdir()
    keeping.on_save(
        SimpleNamespace(output_dir=tmp_path), SimpleNamespace(global_step=5, is_world_process_zero=True), None
    )
    resumed = order("adaptive", places=800)
    OrderKeeping(resumed).resume(tmp_path / "checkpoint-5")
    assert [resumed[place] for place in range(800)] == [adaptive[place] for place in range(800)]


def test_successes_of_a_block_may_come_in_parts() -> None:
    adaptive = order("adaptive")
    results = Results(adaptive)
    results.note(range(5), [1.0] * 5)
    assert len(adaptive.results) == 0
    results.note(range(5, 11), [0.0] * 6)
    assert len(adaptive.results) == 1
    results.note(range(11, 16), [0.0] * 5)
    assert len(adaptive.results) == 2
