from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vlm_probe.paper.study.cells import Cell, make_cells
from vlm_probe.paper.study.design import Design, read_design

OBSERVERS = """
study: watch
observers: [chance, noisy-simulation]
sets: {n: 8, seed: 5, size: 32}
tests: {tasks: [towers-stability]}
"""
TRAINED = """
study: learn
models: [tiny]
methods: [none, sft, ppo]
budgets: {sft: samples=64, ppo: samples=128}
seeds: [0, 1]
training: {topblock: towers-topblock, tilt: balance-tilt}
settings: {items: 32, ppo: {rollout: 64, batch: 64}}
sets: {n: 16, seed: 5, size: 32}
tests:
  tasks: [towers-topblock, towers-stability]
  shifts: {'camera:2': trained}
controls: {tasks: [towers-stability], limit: 8}
observers: [chance]
decoding: {tasks: [towers-stability], targets: [margin], limit: 16, seeds: [0]}
contrasts:
  - {compare: ppo - none, at: [within, cross-task]}
"""


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("PROBE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PROBE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def read(tmp_path: Path) -> Callable[[str], Design]:
    """Function that reads a study from a text."""

    def call(text: str) -> Design:
        path = tmp_path / "study.yaml"
        path.write_text(text, encoding="utf-8")
        return read_design(path)

    return call


@pytest.fixture
def cells(read: Callable[[str], Design]) -> Callable[[str], list[Cell]]:
    """Function that makes the cells of a study from its text."""
    return lambda text: make_cells(read(text))


@pytest.fixture
def watching() -> str:
    """A study of observers alone: no model, and so a matter of seconds."""
    return OBSERVERS


@pytest.fixture
def trained() -> str:
    """A study with everything that there is."""
    return TRAINED
