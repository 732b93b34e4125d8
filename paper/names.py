"""What training runs, tests and levels are called in the paper: short, since figures are one column wide."""

from __future__ import annotations

import re

import pandas as pd

from vlm_probe.analysis.levels import family_of
from vlm_probe.analysis.style import name_of
from vlm_probe.stimuli.tasks import FAMILIES

SHORT = {"topblock": "top block", "sideblock": "side block"}
LEVELS = {
    "within": "trained task, new items",
    "shifted": "trained task, shifted",
    "cross-task": "same family, other task",
    "cross-family": "other families",
    "zero-shot": "held-out questions",
}
CITED = {
    "sft": "supervised fine-tuning on an expert's answers (SFT)",
    "ppo": r"proximal policy optimisation \citep[PPO]{schulman2017ppo}",
    "grpo": r"group-relative policy optimisation \citep[GRPO]{shao2024deepseekmath}",
    "rloo": r"REINFORCE with the other replies as baseline \citep[RLOO]{ahmadian2024rloo}",
}
"""Methods at their first mention, as LaTeX."""
SHIFTS = {"visual": "look", "size": "size", "mass": "mass", "friction": "friction", "gravity": "gravity"}


def task_name(task: str) -> str:
    """A task without its family, in words."""
    name = task.removeprefix(f"{family_of(task)}-")
    return SHORT.get(name, name)


def test_name(task: str, shift: str) -> str:
    """A test: the task, with what is shifted in it."""
    return task_name(task) + ("" if shift == "none" else f", {SHIFTS.get(shift, shift)}")


def training_name(tasks: str, regime: str = "") -> str:
    """A condition of training, whatever the method."""
    listed = tasks.split("+")
    name = task_name(listed[0]) if len(listed) == 1 else f"{len(listed)} tasks jointly"
    if not regime:
        return name
    special = "varied look" if regime.startswith("shift visual") else regime
    return f"{name}, {special}"


def key_of(text: str) -> str:
    """A name as part of the name of a number."""
    return re.sub(r"[^A-Za-z0-9+@-]+", "-", text).strip("-").lower()


def contrast_sides(contrast: str, methods: list[str]) -> tuple[str, str]:
    """The sides of a contrast as `vlm_probe.analysis.contrasts` names it ("SFT − base"), in the words of a study's file ("sft", "none").

    Args:
        contrast: Its name.
        methods: Methods of the study.

    Raises:
        KeyError: If one of its sides is none of these.
    """
    known = {name_of(method): method for method in [*methods, "none"]} | {"RL": "rl"}
    left, right = contrast.split(" − ")
    return known[left], known[right]


def side_name(side: str) -> str:
    """A side of a contrast in print."""
    return "RL" if side == "rl" else name_of(side)


def condition_keys(trials: pd.DataFrame) -> list[tuple[str, str]]:
    """The conditions of training, (tasks, regime): single tasks first, then joint ones, then special regimes."""
    trained = trials[trials["method"].astype(str) != "none"]
    found = {(str(t), str(r)) for t, r in zip(trained["train_tasks"], trained["regime"], strict=True)}
    order = {family: i for i, family in enumerate(FAMILIES)}
    return sorted(found, key=lambda c: (bool(c[1]), c[0].count("+"), order.get(family_of(c[0].split("+")[0]), 9), c))
