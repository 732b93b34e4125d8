"""Leakage: scenes of training runs and of pretraining that are asked about in tests, themselves, as mirror images or as foils.

    python benchmarks/leakage.py [STUDY] [--pretrained 60000]    # by default the committed study, paper/results

Nothing is simulated or drawn. What was asked is read from the logs of the study. What its training runs could have been shown is drawn
again from their seeds: of every group of matched scenes (a scene, its foils and their mirror images) as many draws as a training run
could have come to. Every scene is known by its hash, and, since towers on a grid of millimetres can coincide, by its
geometry as well: bodies of the same shape, size and mass in the same places, in whatever look.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
from vlm_probe.finetune.data import FIRST_SEED
from vlm_probe.probes.tiny.pictures import CHUNK, sample_scene
from vlm_probe.probes.tiny.pretrain import Recipe as Pretraining
from vlm_probe.probes.trials import read_trials, runs_below
from vlm_probe.stimuli import design
from vlm_probe.stimuli.scene import Scene, mirror
from vlm_probe.stimuli.shifts import Shifts, parse_shifts
from vlm_probe.stimuli.standard import STANDARD_N, STANDARD_SEED
from vlm_probe.stimuli.tasks import get_task, task_names

DRAWS = 3
"""Draws of a group that are looked at: a training run takes the first, and a later one where an expert or the engine objects to it."""
PRETRAINED = CHUNK * len(Pretraining().chunks)
"""Images of pretraining."""


@dataclass(frozen=True, order=True)
class Recipe:
    """What decides the scenes of a set or of a training run."""

    task: str
    n: int
    seed: int
    shifts: Shifts = ()


@dataclass(frozen=True)
class Shared:
    """What tests share with something that was learned from.

    Attributes:
        scenes: Test scenes that were shown, themselves or mirrored.
        alike: Test scenes that are built like one that was shown, or like its mirror image.
        tested: Number of test scenes.
        shown: Number of scenes that were or could have been shown.
    """

    scenes: int
    alike: int
    tested: int
    shown: int


def drawn(recipe: Recipe, draws: int = 1) -> Iterator[Scene]:
    """The scenes of a set or of a training run, group by group: the first draws of each that are possible.

    Args:
        recipe: What decides the scenes.
        draws: Of every group.
    """
    task = get_task(recipe.task)
    for plan in design.plan(task, -(-recipe.n // design.group_size(task)), recipe.seed, shifts=recipe.shifts):
        left = draws
        for attempt in range(30):
            rng, shifting = (of(task, recipe.seed, plan.index, attempt) for of in (design.group_rng, design.shift_rng))
            try:
                members = design.members(task, plan, rng, shifting)
            except ValueError:
                continue
            yield from (member.scene for member in members)
            left -= 1
            if not left:
                break


def pretrained(n: int = PRETRAINED) -> Iterator[Scene]:
    """The first scenes that the embedded model was pretrained on."""
    for chunk in range(-(-n // CHUNK)):
        rng = np.random.default_rng([0, 1, chunk])  # as pretraining draws them
        for _ in range(min(CHUNK, n - chunk * CHUNK)):
            yield sample_scene(rng)[1]


def geometry(scene: Scene) -> tuple[Any, ...]:
    """What a scene is built of and where, whatever it looks like."""

    def rounded(numbers: Iterable[float]) -> tuple[float, ...]:
        return tuple(round(number, 4) for number in numbers)

    bodies = (
        (
            body.shape,
            rounded(body.size),
            rounded(body.position),
            rounded(body.orientation),
            rounded(body.velocity),
            round(body.mass, 4),
        )
        for body in scene.bodies
    )
    return (*sorted(bodies), *((rounded(push.force), rounded(push.point)) for push in scene.pushes))


def shared(shown: Iterable[Scene], hashes: set[str], scenes: Iterable[Scene]) -> Shared:
    """What tests share with scenes that were shown.

    Args:
        shown: Scenes that were learned from.
        hashes: Of the scenes that were asked about.
        scenes: These scenes, as far as their geometry is to be compared.
    """
    known, built, n = set[str](), set[Any](), 0
    for scene in shown:
        n += 1
        for one in (scene, mirror(scene)):
            known.add(one.content_hash)
            built.add(geometry(one))
    distinct = {scene.content_hash: scene for scene in scenes}
    alike = sum(geometry(scene) in built for scene in distinct.values())
    return Shared(len(known & hashes), alike, len(hashes), n)


def asked(study: Path) -> dict[str, set[str]]:
    """Task -> hashes of the scenes that a study asked about, in any of its runs."""
    found: dict[str, set[str]] = {}
    for run in runs_below(study):
        for row in read_trials(run):
            found.setdefault(str(row["task"]), set()).add(str(row["scene_sha256"]))
    return found


def test_recipes(study: Path) -> list[Recipe]:
    """What decides the scenes of a study's sets, from their cards."""
    cards = [json.loads(card.read_text(encoding="utf-8")) for card in sorted((study / "sets").glob("*/card.json"))]
    return [Recipe(card["task"], card["n"], card["seed"], tuple(card["shifts"].items())) for card in cards]


def training_recipes(registration: Mapping[str, Any]) -> list[Recipe]:
    """What decides the scenes of all training runs that were registered, whether they have been done or not."""
    registered = registration["design"]
    found = set()
    for training in registered["trainings"]:
        settings = registered["settings"] | training["settings"]
        shifts = parse_shifts(settings.get("shift", ""))
        for seed in training["seeds"]:
            # Of a mixture too, every task's share is the beginning of what the whole would be.
            found |= {Recipe(task, settings["items"], FIRST_SEED + seed, shifts) for task in training["tasks"]}
    return sorted(found)


def main() -> int:
    """Compare, and print; 1 if a test scene was shown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("study", nargs="?", type=Path, default=ROOT / "paper" / "results")
    parser.add_argument("--pretrained", type=int, default=PRETRAINED, help=f"scenes of pretraining, of {PRETRAINED:,}")
    options = parser.parse_args()
    begun, leaked = time.process_time(), 0
    hashes = asked(options.study)
    everything = set().union(*hashes.values())
    recipes = test_recipes(options.study)
    tests = [scene for recipe in recipes for scene in drawn(recipe, DRAWS)]
    again = len(everything & {scene.content_hash for scene in tests})
    print(
        f"{len(everything)} scenes were asked about in {options.study}; {again} of them are drawn again from its cards."
    )
    tests = [scene for scene in tests if scene.content_hash in everything]
    print("\n| what was shown | scenes and foils that it could have been | of these asked about | asked about alike |")
    print("|---|---|---|---|", flush=True)

    def row(name: str, shown: Iterable[Scene], asked_about: set[str], scenes: list[Scene]) -> int:
        found = shared(shown, asked_about, scenes)
        print(f"| {name} | {found.shown:,} | {found.scenes} of {found.tested} | {found.alike} |", flush=True)
        return found.scenes

    for recipe in training_recipes(json.loads((options.study / "registration.json").read_text(encoding="utf-8"))):
        shift = f", {dict(recipe.shifts)}" if recipe.shifts else ""
        name = f"training on {recipe.task}, seed {recipe.seed - FIRST_SEED}{shift}"
        leaked += row(name, drawn(recipe, DRAWS), everything, tests)
    standard = [s for task in task_names() for s in drawn(Recipe(task, STANDARD_N, STANDARD_SEED))]
    both = everything | {scene.content_hash for scene in standard}
    leaked += row("pretraining; tests and standard sets", pretrained(options.pretrained), both, tests + standard)
    print(f"\n{time.process_time() - begun:.0f} CPU seconds", file=sys.stderr)
    return int(leaked > 0)


if __name__ == "__main__":
    sys.exit(main())
