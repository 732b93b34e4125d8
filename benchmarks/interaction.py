"""What a second and a third attempt are worth, after training in the closed loop: the numbers and the picture of docs/interaction.md.

    python benchmarks/interaction.py --out DIR [--shown 6144] [--samples 3072 --method sft] [--shift visual:2] [-n 300] [--seed 0]

Shows `tiny` an expert who answers towers-topblock after attempts that failed (SFT), and may then show it more (`--samples`) of other
items, or let it try for itself (`--method grpo` or `ppo`), with several attempts per scene and the memory of all of them. The
adapters are asked new items: greedily with memory, sampled with memory, and with as many independent guesses (sampled, no memory):
the last two have the same first attempts, so that they differ by what was seen. Prints a table, and the differences with
bootstrap intervals over groups of items; draws an episode that took every attempt. What is there already is not done again.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vlm_probe.analysis.summary import Summary, summarise
from vlm_probe.finetune.config import make_config
from vlm_probe.finetune.train import train
from vlm_probe.probes.allocation import keep_freed_memory
from vlm_probe.probes.episodes import Ask, Episodes
from vlm_probe.probes.memory import Memory
from vlm_probe.probes.presentation import PLAIN, Presenter
from vlm_probe.probes.readout import Scorer
from vlm_probe.probes.run import RunConfig, run
from vlm_probe.probes.trials import read_trials
from vlm_probe.stimuli.dataset import StimulusSet
from vlm_probe.stimuli.generate import make_set
from vlm_probe.stimuli.shifts import parse_shifts

TASK = "towers-topblock"
EDGE, TEXT = 224, 46
METHODS: dict[str, dict[str, Any]] = {
    "sft": {},
    "grpo": {"generations": 8, "batch": 64, "schedule": "constant", "learning_rate": 5e-4, "temperature": 1.0},
    "ppo": {"generations": 1, "batch": 32, "epochs": 2},
}


@dataclass(frozen=True)
class Asked:
    """How an adapter is asked: a name, the memory, and the temperature."""

    name: str
    memory: str
    temperature: float


WAYS = (Asked("memory", "all", 0.0), Asked("sampled", "all", 1.0), Asked("guesses", "none", 1.0))


def adapters(out: Path, arguments: argparse.Namespace) -> dict[str, Path]:
    """The adapter that was shown what to do, and the one that went on in the closed loop; trained, or found there."""
    given: dict[str, Any] = {"model": "tiny", "tasks": (TASK,), "seed": arguments.seed, "items": arguments.items}
    shown, tried = out / "shown", out / f"tried_{arguments.method}"
    loop = {"attempts": arguments.attempts, "memory": "all"}
    first = loop | {"method": "sft", "budget": f"samples={arguments.shown}"}
    further = loop | {"method": arguments.method, "budget": f"samples={arguments.samples}", "init": str(shown)}
    # Other items than before: the same ones again would teach what is right for them, and not how to correct.
    further |= {"rollout": 64, "seed": arguments.seed + 1} | METHODS[arguments.method]
    runs = {"sft": (shown, first)} | ({f"then {arguments.method}": (tried, further)} if arguments.samples else {})
    for folder, settings in runs.values():
        config = make_config(given | settings, "tiny")
        train(config, folder, progress=lambda done, n: print(f"\r{done}/{n}  ", end="", file=sys.stderr))
    return {name: folder for name, (folder, _) in runs.items()}


def asked(folder: Path, way: Asked, stimuli: StimulusSet) -> Path:
    """Where the replies of an adapter go that is asked a set in that way."""
    return folder.with_name(f"{folder.name}_{way.name}_{stimuli.path.name}")


def ask(folder: Path, way: Asked, stimuli: StimulusSet, attempts: int, model: Any) -> Summary:
    """What an adapter scores when it is asked in that way.

    Args:
        folder: Of the adapter.
        way: How it is asked.
        stimuli: What it is asked.
        attempts: At most how many.
        model: The model with the adapter attached.
    """
    out = asked(folder, way, stimuli)
    settings = {"temperature": way.temperature, "attempts": attempts, "memory": way.memory}
    run(RunConfig("tiny", str(stimuli.path), adapter=str(folder), **settings), stimuli, out, model=model)  # type: ignore[arg-type]
    return summarise(out)


def solved(folder: Path, attempts: int) -> dict[str, list[float]]:
    """Item -> whether it was solved within one attempt, within two, ..."""
    when: dict[str, int] = {}
    for row in read_trials(folder):
        when.setdefault(row["item_id"], attempts + 1)
        if row["success"]:
            when[row["item_id"]] = min(when[row["item_id"]], row["attempt"])
    return {item: [float(first <= k) for k in range(1, attempts + 1)] for item, first in when.items()}


def difference(one: dict[str, float], other: dict[str, float], stimuli: StimulusSet) -> str:
    """Mean difference over items, with its 95 % bootstrap interval over groups."""
    groups = sorted({item.group_id for item in stimuli.items})
    place = {item.item_id: groups.index(item.group_id) for item in stimuli.items}
    shared = sorted(one.keys() & other.keys())
    each = np.array([one[item] - other[item] for item in shared])
    where = np.array([place[item] for item in shared])
    sums, sizes = np.bincount(where, each, len(groups)), np.bincount(where, minlength=len(groups))
    drawn = np.random.default_rng(0).integers(len(groups), size=(4000, len(groups)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{each.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def differences(folder: Path, stimuli: StimulusSet, attempts: int) -> None:
    """Print what further attempts add to the first, and memory to independent guesses."""
    found = {way.name: solved(asked(folder, way, stimuli), attempts) for way in WAYS}

    def within(way: str, k: int) -> dict[str, float]:
        return {item: row[k - 1] for item, row in found[way].items()}

    first, last = within("memory", 1), within("memory", attempts)
    guesses = within("guesses", attempts)
    print(f"  within {attempts} less within 1, memory, greedy       {difference(last, first, stimuli)}")
    print(f"  memory, greedy, less {attempts} independent guesses   {difference(last, guesses, stimuli)}")
    sampled = within("sampled", attempts)
    print(f"  memory, sampled, less {attempts} independent guesses  {difference(sampled, guesses, stimuli)}")
    # Both have the same first attempts, which missed: what does the second one add, with what was seen and without?
    missed = [item for item, row in found["sampled"].items() if not row[0] and not found["guesses"][item][0]]
    seen, fresh = ({item: within(way, 2)[item] for item in missed} for way in ("sampled", "guesses"))
    print(
        f"  second attempt after {len(missed)} misses: {sum(seen.values()) / len(missed):.3f} with memory,"
        f" {sum(fresh.values()) / len(missed):.3f} as a new guess, {difference(seen, fresh, stimuli)}"
    )


def episode(folder: Path, stimuli: StimulusSet, attempts: int, file: Path) -> None:
    """Draw an episode that took all attempts and ended well: what was seen, what was said, and what came of it."""
    tries = range(1, attempts + 1)
    rows = {(row["item_id"], row["attempt"]): row for row in read_trials(folder)}
    # There is no picture of what a reply that cannot be read did.
    read = [i for i in stimuli.items if all(rows.get((i.item_id, k), {}).get("status") == "ok" for k in tries)]
    solved = [item for item in read if rows[item.item_id, attempts]["success"]]
    if not solved:
        print("no episode took all attempts and ended well: no picture")
        return
    item = solved[0]
    scorer = Scorer()
    episodes = Episodes(scorer, lambda _: "", (), folder, True, EDGE)
    following: Ask | None = Ask(Presenter(stimuli), item, PLAIN, Memory(attempts, "all"))
    for attempt in range(1, attempts):
        assert following is not None
        following = episodes.following(following, rows[item.item_id, attempt])
    assert following is not None
    turns = following.trial(with_picture=True).turns
    pictures = [image for turn in turns for image in turn.images]
    last = scorer.attempt(item, rows[item.item_id, attempts], EDGE)
    assert last.picture is not None
    pictures.append(Image.fromarray(last.picture))
    replies = [f"attempt {k}: {rows[item.item_id, k]['answer_text']} cm" for k in tries]
    captions = ["the scene", *(f"{reply}\nit falls" for reply in replies[:-1]), f"{replies[-1]}\nit stands"]
    gap = 8
    sheet = Image.new("RGB", (len(pictures) * (EDGE + gap) - gap, EDGE + TEXT), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        sheet.paste(picture.resize((EDGE, EDGE)), (number * (EDGE + gap), 0))
        pen.multiline_text((number * (EDGE + gap) + 2, EDGE + 4), caption, fill="black", font=font)
    sheet.save(file)
    print(f"picture: {file}")


def main() -> None:
    """Train, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--method", default="sft", choices=("sft", "ppo", "grpo"))
    parser.add_argument("--shown", type=int, default=6144)
    parser.add_argument("--samples", type=int, default=0)
    parser.add_argument("--items", type=int, default=2048)
    parser.add_argument("--attempts", type=int, default=3)
    parser.add_argument("-n", type=int, default=300)
    parser.add_argument("--shift", default="", help="of the items that are asked, such as visual:2")
    parser.add_argument("--test-seed", type=int, default=77, help="of the items that are asked")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    keep_freed_memory()
    from vlm_probe.probes.models.loading import load_model

    arguments.out.mkdir(parents=True, exist_ok=True)
    place = arguments.out / ("new" if not arguments.shift else arguments.shift.replace(":", "-"))
    if not place.is_dir():
        make_set(TASK, arguments.n, arguments.test_seed, place, shifts=parse_shifts(arguments.shift))
    stimuli = StimulusSet.load(place)
    attempts = arguments.attempts
    print(f"{TASK}, {len(stimuli)} new items, {attempts} attempts\n")
    headers = (*(f"within {k}" for k in range(1, attempts + 1)), f"{attempts} like the first", "same", "read")
    print(f"{'trained':20}{'asked with':12}" + "".join(f"{h:>18}" for h in headers))
    shown: Summary | None = None
    trained = adapters(arguments.out, arguments)
    for name, folder in trained.items():
        model = load_model("tiny", adapter=folder)
        for way in WAYS:
            shown = ask(folder, way, stimuli, attempts, model)
            numbers = [cell.success.value for cell in shown.attempts]
            numbers += [1 - (1 - shown.accuracy.value) ** attempts, shown.attempts[1].same]
            numbers += [min(cell.parse_rate for cell in shown.attempts)]
            print(f"{name:20}{way.name:12}" + "".join(f"{number:18.3f}" for number in numbers), flush=True)
        differences(folder, stimuli, attempts)
    assert shown is not None
    guess = shown.guesses[-1]
    print(
        f"\n{attempts} random answers {guess['chance']:.3f}, best {attempts} constants {guess['constants']['score']:.3f}"
    )
    episode(asked(list(trained.values())[-1], WAYS[0], stimuli), stimuli, attempts, arguments.out / "interaction.png")


if __name__ == "__main__":
    main()
