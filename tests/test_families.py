"""Every family through every path: each works, and then exactly, or is refused in one line. docs/families.md has what came of it.

With PROBE_WRITE_PAGE=1 the slow test writes the page's rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.families import FAMILIES, RECIPES, families, save_family
from vlm_probe.finetune.config import make_config
from vlm_probe.finetune.policy import silent_tokens
from vlm_probe.finetune.reward import RewardScorer, ScoredReply
from vlm_probe.finetune.train import train
from vlm_probe.probes.models import Generation, Trial, Turn
from vlm_probe.probes.models.activations import HiddenStates, Site
from vlm_probe.probes.models.huggingface import end_tokens
from vlm_probe.probes.models.loading import load_model
from vlm_probe.stimuli.dataset import StimulusSet
from vlm_probe.stimuli.errors import ProbeError

__all__ = ["families", "save_family"]

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
COLUMNS = ("replies", "log-likelihoods", "several images", "no image", "decode", "sft", "grpo", "ppo")
SETTINGS = Generation(max_new_tokens=4)
SaveFamily = Callable[[str], Path]


def alike(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True)) < 1e-4


def trials(stimuli: StimulusSet, images: int) -> list[Trial]:
    """Trials with prompts of different lengths, and at most so many images."""
    items = stimuli.items[:24:6]
    shown: list[Any] = [stimuli.image(item) if images else None for item in items]
    told = [
        turn
        for item, picture in zip(items[:2], shown, strict=False)
        for turn in (Turn("user", item.question.prompt, (picture,)), Turn("assistant", "red"))
    ]
    contexts = [told[: 2 * (number % images)] if images > 1 else [] for number in range(len(items))]
    return [Trial(item, image, tuple(before)) for item, image, before in zip(items, shown, contexts, strict=True)]


def answers(model: Any, asked: list[Trial]) -> None:
    """Replies are the same alone."""
    assert model.generate(asked, SETTINGS) == [model.generate([trial], SETTINGS)[0] for trial in asked]


def scores(model: Any, asked: list[Trial]) -> None:
    """Log-likelihoods are the same alone and without the tree, and depend on the image."""
    together = model.score_options(asked)
    assert alike(together, [model.score_options([trial])[0] for trial in asked])
    for trial, found in zip(asked, together, strict=True):
        few = [model._prompter.replies(trial)[:2]]
        with torch.inference_mode():
            assert alike([found[:2]], model._scorer._generated(model._inputs([trial]), few))
    if asked[0].image is not None:
        blank = Trial(asked[0].item, Image.new("RGB", asked[0].image.size, "white"), asked[0].context)
        assert np.abs(model.score_options([blank])[0] - together[0]).max() > 1e-3


def states(model: Any, asked: list[Trial]) -> None:
    """Hidden states of the vision tower and of the language model do not depend on the batch."""
    sites = [Site("vision", 2, "image"), Site("language", 1, "image"), Site("language", 2, "last")]
    together = HiddenStates(model, sites).read(asked)
    for site in sites:
        alone = np.concatenate([HiddenStates(model, sites).read([trial])[site] for trial in asked])
        assert np.abs(together[site] - alone).max() < 1e-3


def learns(folder: Path, method: str, out: Path) -> None:
    """The first gradient is the same in any micro-batch; for PPO, whose rollouts are those of GRPO, there is one."""
    norms = []
    for micro in (4, 2)[: 1 if method == "ppo" else 2]:
        settings = {
            **{"model": str(folder), "tasks": ("towers-topblock",), "method": method, "items": 8, "size": 64},
            **{"batch": 4, "rollout": 4, "generations": 1 if method == "ppo" else 2, "epochs": 1},
            **{"budget": "steps=1", "learning_rate": 1e-3, "beta": 0.05, "micro_batch": micro, "seed": 2},
        }
        norms.append(train(make_config(settings), out / f"{method}-{micro}")["curves"][0]["gradient_norm"])
    assert norms[0] > 0 and norms[0] == pytest.approx(norms[-1], rel=1e-3)


def outcome(work: Callable[[], None], folder: Path) -> str:
    """What came of something: "yes", or the line with which it is refused."""
    try:
        work()
    except ProbeError as error:
        assert "\n" not in str(error)
        return str(error).replace(str(folder), "it").replace(folder.name, "it")
    return "yes"


def outcomes(folder: Path, stimuli: StimulusSet, out: Path, columns: Sequence[str] = COLUMNS) -> dict[str, str]:
    loaded: dict[int, Any] = {}

    def model(images: int = 1) -> Any:
        if images not in loaded:
            loaded[images] = load_model(str(folder), images=images)
        return loaded[images]

    def several() -> None:
        answers(model(3), trials(stimuli, 3))
        scores(model(3), trials(stimuli, 3))

    def without() -> None:
        model().check_without_images()
        answers(model(), trials(stimuli, 0))
        scores(model(), trials(stimuli, 0))

    works: dict[str, Callable[[], None]] = {
        "replies": lambda: answers(model(), trials(stimuli, 1)),
        "log-likelihoods": lambda: scores(model(), trials(stimuli, 1)),
        "several images": several,
        "no image": without,
        "decode": lambda: states(model(), trials(stimuli, 1)),
        **{name: lambda name=name: learns(folder, name, out) for name in ("sft", "grpo", "ppo")},  # type: ignore[misc]
    }
    return {column: outcome(works[column], folder) for column in columns}


def row(name: str, found: dict[str, str]) -> str:
    """A family's row of the page."""
    reasons = list(dict.fromkeys(why for why in found.values() if why != "yes"))
    cells = ["yes" if found[column] == "yes" else "no" for column in COLUMNS]
    return f"| {name} | {' | '.join(cells)} | {'; '.join(reasons)} |"


def documented() -> dict[str, str]:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return {line.split("|")[1].strip(): line for line in lines if line.startswith("|")}


@pytest.fixture(autouse=True)
def _trained_quickly(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Random weights say nothing that can be read, and the loss is a mean over tokens only where replies are as long."""
    monkeypatch.setenv("PROBE_CACHE", str(tmp_path_factory.getbasetemp() / "training"))
    monkeypatch.setattr(
        RewardScorer,
        "_one",
        lambda _, reply, item: ScoredReply(item.question.parse("3"), False, len(reply.encode()) % 5 / 4),
    )
    monkeypatch.setattr("vlm_probe.finetune.train._draw", lambda *_: None)
    monkeypatch.setattr(
        "vlm_probe.finetune.train.silent_tokens",
        lambda model, processor: [*silent_tokens(model, processor), *end_tokens(model, processor.tokenizer, "it")],
    )


def test_the_page_has_every_family() -> None:
    assert {*documented()} - {"Family", "---"} == {*FAMILIES, *RECIPES}


@pytest.mark.parametrize("name", ["mllama", "lfm2-vl"])
def test_a_further_family_is_asked(name: str, save_family: SaveFamily, grounding: StimulusSet, tmp_path: Path) -> None:
    """One whose images come in by cross-attention, and one that is partly recurrent."""
    asked = COLUMNS[:4]
    assert outcomes(save_family(name), grounding, tmp_path, asked) == dict.fromkeys(asked, "yes")


def test_what_cannot_be_trained_is_said_before_items_are_made(
    save_family: SaveFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL does not find the part of Llama 4 that it scores replies with."""
    monkeypatch.setenv("PROBE_CACHE", str(tmp_path / "cache"))
    refused = outcomes(save_family("llama4"), None, tmp_path / "runs", ("sft",))["sft"]  # type: ignore[arg-type]
    assert refused.startswith("it cannot be trained by sft (")
    assert not list((tmp_path / "cache").glob("training/*"))


SIZES = {
    "gemma4": "384 x 384",
    "lfm2-vl": "64 x 64",
    "molmo2": "5 of 32 x 32",
    "deepseek-vl-hybrid": "32 x 32 and 128 x 128",
    "video-llava": "32 x 32",
    "mllama": "4 of 32 x 32",
}


@pytest.mark.parametrize(
    "name", [name if name == "gemma4" else pytest.param(name, marks=pytest.mark.slow) for name in SIZES]
)
def test_sizes_of_images_are_right(name: str, save_family: SaveFamily, grounding: StimulusSet) -> None:
    model: Any = load_model(str(save_family(name)))
    model.score_options(trials(grounding, 1)[:1])
    assert model.observed["pictures"] == [f"64 x 64 seen as {SIZES[name]}"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAMILIES, *RECIPES])
def test_every_family_does_what_the_page_says(
    name: str, save_family: SaveFamily, grounding: StimulusSet, tmp_path: Path
) -> None:
    made = row(name, outcomes(save_family(name), grounding, tmp_path))
    if os.environ.get("PROBE_WRITE_PAGE"):
        text = PAGE.read_text(encoding="utf-8").splitlines()
        lines = [line for line in text if not line.startswith(f"| {name} |")]
        end = max(number for number, line in enumerate(lines) if line.startswith("|"))
        lines.insert(end + 1, made)
        PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert documented()[name] == made
