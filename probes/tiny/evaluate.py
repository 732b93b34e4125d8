"""What `tiny` can do, measured on new images through the ordinary Hugging Face path, and written next to the weights.

Run as `python -m vlm_probe.probes.tiny.evaluate [FOLDER]`: it writes `evaluation.json` and `MODEL_CARD.md` there.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import rankdata
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlm_probe.probes.allocation import keep_freed_memory
from vlm_probe.probes.tiny import WEIGHTS
from vlm_probe.probes.tiny.card import model_card
from vlm_probe.probes.tiny.pictures import RENDER_PIXELS, draw_scene, physics_tasks, shift_if_possible
from vlm_probe.probes.tiny.questions import grounding, sayable
from vlm_probe.stimuli.condition import Condition
from vlm_probe.stimuli.output import write_json, write_whole
from vlm_probe.stimuli.picture import draw
from vlm_probe.stimuli.plain_json import dumps, parse
from vlm_probe.stimuli.question import PARAPHRASES, Question, Variant
from vlm_probe.stimuli.scene import Scene, mirror
from vlm_probe.stimuli.shifts import LEVELS, VISUAL, Shifts, parse_shifts
from vlm_probe.stimuli.simulators import get_simulator
from vlm_probe.stimuli.tasks import FAMILIES, SamplingFailed, Task, get_task, task_names
from vlm_probe.stimuli.tasks.grounding import GroundingTask

SEED = 20_261_201
"""Of the held-out scenes; pretraining has other ones."""
BATCH = 32
MAX_NEW_TOKENS = 40
SHIFTS = ("", *(f"visual:{level}" for level in LEVELS))
"""Under which every question is asked: none, and all visual shifts at once; pretraining saw all but the last."""
SINGLE_SHIFTS = tuple(f"{name}:{level}" for level in LEVELS for name in VISUAL)


@dataclass(frozen=True)
class Loaded:
    """A model and its processor."""

    model: Any
    processor: Any


@dataclass(frozen=True)
class Asked:
    """A question about the image of a scene."""

    scene: Scene
    question: Question


def load(folder: Path = WEIGHTS) -> Loaded:
    """Model (float32) and processor from a folder in the hub layout."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return Loaded(model, AutoProcessor.from_pretrained(folder))


def replies(loaded: Loaded, items: Sequence[Asked]) -> list[str]:
    """Greedy replies.

    Args:
        loaded: Model and processor.
        items: What is asked.
    """
    out: list[str] = []
    for start in range(0, len(items), BATCH):
        inputs = _inputs(loaded, items[start : start + BATCH])
        with torch.no_grad():
            ids = loaded.model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        new = ids[:, inputs["input_ids"].shape[1] :]
        out += loaded.processor.batch_decode(new, skip_special_tokens=True)
    return out


def accuracies(
    loaded: Loaded, family: str, per_ask: int, shifts: str = "", seed: int = SEED, asks: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Accuracy of every question of a family's grounding task, over all paraphrases and option orders.

    Args:
        loaded: What to ask.
        family: Whose grounding task.
        per_ask: Questions of each kind.
        shifts: Under which the scenes are shown, as on the command line.
        seed: Of the scenes.
        asks: The kinds of question; by default all, those that the designed set leaves out too.
    """
    task = grounding(family)
    results: dict[str, dict[str, Any]] = {}
    for ask in asks or task.asks:
        rng = np.random.default_rng([seed, list(task.asks).index(ask)])
        wordings = list(product(range(PARAPHRASES), range(2)))
        conditions = _conditions(task, ask)
        items = []
        for i in range(per_ask):
            paraphrase, order = wordings[i % len(wordings)]
            variant = Variant(paraphrase, order=order, ask=ask)
            condition = conditions[i // len(wordings) % len(conditions)]
            items.append(_grounding_item(task, rng, condition, variant, parse_shifts(shifts)))
        right, parsed = _marked(loaded, task, items)
        # Wordings take turns, two orders of the options for each.
        by_paraphrase = [right[p * 2 :: 8] + right[p * 2 + 1 :: 8] for p in range(PARAPHRASES)]
        results[ask] = {
            "n": per_ask,
            "accuracy": round(float(np.mean(right)), 4),
            "parsed": round(float(np.mean(parsed)), 4),
            "by_paraphrase": [round(float(np.mean(marks)), 3) for marks in by_paraphrase if marks],
        }
    return results


def single_shifts(loaded: Loaded, family: str, per_shift: int, seed: int = SEED + 3) -> dict[str, float]:
    """Accuracy over the designed questions of a family's grounding task under each level of each visual shift alone.

    Args:
        loaded: The model.
        family: Whose grounding task is asked.
        per_shift: Questions per shift and level.
        seed: Of the scenes.
    """
    task, results = grounding(family), {}
    conditions, variants = task.conditions(), task.variants()
    for number, name in enumerate(SINGLE_SHIFTS):
        rng, items = np.random.default_rng([seed, number]), []
        for i in range(per_shift):
            condition = conditions[rng.integers(len(conditions))]
            variant = replace(variants[i % len(variants)], ask=condition.build.partition(":")[0])
            items.append(_grounding_item(task, rng, condition, variant, parse_shifts(name)))
        results[name] = round(float(np.mean(_marked(loaded, task, items)[0])), 4)
    return results


def parse_rates(loaded: Loaded, name: str, per_style: int, seed: int = SEED + 1) -> dict[str, float]:
    """Share of replies to a task that the question's own parser accepts, for each style, over all wordings.

    Args:
        loaded: The model.
        name: Of the task.
        per_style: Replies of each style.
        seed: Of the scenes.
    """
    task, rates = get_task(name), {}
    for style in ("direct", "think"):
        rng, items = np.random.default_rng(seed), []
        conditions, variants = task.conditions(), task.variants()
        for i in range(per_style):
            condition = conditions[rng.integers(len(conditions))]
            variant = replace(variants[i % len(variants)], style=style)
            if isinstance(task, GroundingTask):
                variant = replace(variant, ask=condition.build.partition(":")[0])
                items.append(_grounding_item(task, rng, condition, variant, ()))
            else:
                scene = _drawn(rng, task, condition)
                items.append(Asked(scene, task.question(scene, variant)))
        ok = [item.question.parse(r).status == "ok" for item, r in zip(items, replies(loaded, items), strict=True)]
        rates[style] = round(float(np.mean(ok)), 4)
    return rates


def judgement(loaded: Loaded, name: str, scenes: int, seed: int = SEED + 2) -> dict[str, Any]:
    """Answers to a judgement task before any adaptation: accuracy, bias and the area under the ROC curve.

    Scenes come with their foils as in the designed set, which balances the answers. The answer is the option whose first token
    is the likeliest. The area is that of each answer's log-odds against the truth, averaged over the answers.

    Args:
        loaded: The model.
        name: Of the task.
        scenes: How many are asked about, at least.
        seed: Of the scenes.
    """
    task = get_task(name)
    rng = np.random.default_rng(seed)
    conditions, variants = task.conditions(), task.variants()
    items: list[Asked] = []
    group = 0
    while len(items) < scenes:
        try:
            members = task.sample_matched(rng, conditions[group % len(conditions)])
        except SamplingFailed:
            continue  # a rare draw: the next one is another
        members = tuple(mirror(s) for s in members) if rng.random() < 0.5 else members
        # All members of a group are asked in the same words.
        items += [Asked(scene, task.question(scene, variants[group % len(variants)])) for scene in members]
        group += 1
    truth = [task.statics_answer(item.scene) or task.solve(item.scene, item.question) for item in items]
    odds, texts = _option_logits(loaded, items)
    answers = [max(row, key=lambda value: row[value]) for row in odds]
    values = sorted({value for row in odds for value in row}, key=str)
    areas = []
    for value in values:
        # Not every item has every option: it may be the colours of what is there.
        asked = [(row, t == value) for row, t in zip(odds, truth, strict=True) if value in row]
        is_it = np.array([right for _, right in asked])
        if is_it.any() and not is_it.all():
            areas.append(_auc([_log_odds(row, value) for row, _ in asked], is_it))
    return {
        "n": len(items),
        "chance": round(float(np.mean([1 / len(row) for row in odds])), 4),
        "accuracy": round(float(np.mean([a == t for a, t in zip(answers, truth, strict=True)])), 4),
        "best_constant": round(max(float(np.mean([t == v for t in truth])) for v in values), 4),
        "auc": round(float(np.mean(areas)), 4),
        "answers": {str(v): round(float(np.mean([a == v for a in answers])), 4) for v in values},
        "words": {w: round(float(np.mean([t == w for t in texts])), 4) for w in sorted(set(texts))},
    }


def evaluate(
    folder: Path, per_ask: int = 200, per_shift: int = 100, scenes: int = 400, jobs: int = 2
) -> dict[str, Any]:
    """Measure everything, and write `evaluation.json` and `MODEL_CARD.md` into the folder.

    Args:
        folder: The weights, in the hub layout, with `training.json` next to them.
        per_ask: Questions of each kind under each of `SHIFTS`, and prompts of each task and style.
        per_shift: Questions of each family under each of `SINGLE_SHIFTS`.
        scenes: Scenes of each judgement task.
        jobs: Processes.
    """
    work: list[tuple[str, Callable[..., Any], tuple[Any, ...]]] = []
    for family, shifts in product(FAMILIES, SHIFTS):
        work.append((f"perception/{shifts or 'plain'}/{family}", accuracies, (family, per_ask, shifts)))
    for name in (task.name for task in map(get_task, task_names()) if task.family in FAMILIES):
        work.append((f"parse_rates/{name}", parse_rates, (name, per_ask // 2)))
    for task in physics_tasks():
        if task.kind == "judgement":
            work.append((f"before_adaptation/{task.name}", judgement, (task.name, scenes)))
    for family in FAMILIES:
        work.append((f"single_shifts/{family}", single_shifts, (family, per_shift)))
    facts: dict[str, Any] = {"seed": SEED, "parameters": sum(p.numel() for p in load(folder).model.parameters())}
    # Questions that no condition of a designed set asks.
    designed = {family: {c.build.partition(":")[0] for c in grounding(family).conditions()} for family in FAMILIES}
    facts["extra"] = {
        family: [ask for ask in grounding(family).asks if ask not in designed[family]] for family in FAMILIES
    }
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _start, (folder,)) as pool:
        for (path, _, _), found in zip(work, pool.map(_measure, [(f, a) for _, f, a in work]), strict=True):
            *parents, last = path.split("/")
            place = facts
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = found
            sys.stderr.write(f"{path}: {dumps(found)}\n")
    write_json(folder / "evaluation.json", facts, indent=1)
    training = parse((folder / "training.json").read_text(encoding="utf-8"))
    write_whole(folder / "MODEL_CARD.md", model_card(facts, training))
    return facts


_loaded: Loaded | None = None


def _start(folder: Path) -> None:
    global _loaded  # of a worker process
    torch.set_num_threads(1)
    keep_freed_memory()
    _loaded = load(folder)


def _measure(work: tuple[Callable[..., Any], tuple[Any, ...]]) -> Any:
    return work[0](_loaded, *work[1])


def _conditions(task: GroundingTask, ask: str) -> list[Condition]:
    """The conditions under which the designed set asks that; those of its first question for one that it leaves out."""
    conditions = [c for c in task.conditions() if c.build.partition(":")[0] == ask]
    first = next(iter(task.asks))
    return conditions or [
        replace(c, build=ask) for c in task.conditions() if c.build == first and (ask != "shift-between" or c.count > 1)
    ]


def _marked(loaded: Loaded, task: Task, items: Sequence[Asked]) -> tuple[list[bool], list[bool]]:
    """Whether each reply is right, and whether it can be parsed."""
    answers = [item.question.parse(r) for item, r in zip(items, replies(loaded, items), strict=True)]
    right = [
        a.value is not None and task.score(item.scene, item.question, a.value).success
        for item, a in zip(items, answers, strict=True)
    ]
    return right, [a.status == "ok" for a in answers]


def _inputs(loaded: Loaded, items: Sequence[Asked]) -> Any:
    simulator = get_simulator()
    pictures = [Image.fromarray(draw(simulator, item.scene, RENDER_PIXELS).rgb) for item in items]
    turns = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": item.question.prompt}]}]
        for item in items
    ]
    texts = [loaded.processor.apply_chat_template(turn, add_generation_prompt=True) for turn in turns]
    return loaded.processor(images=pictures, text=texts, padding=True, return_tensors="pt")


def _option_logits(loaded: Loaded, items: Sequence[Asked]) -> tuple[list[dict[Any, float]], list[str]]:
    """For each item the log-probability of the first token of every answer, and the text of the likeliest."""
    found: list[dict[Any, float]] = []
    said: list[str] = []
    tokenizer = loaded.processor.tokenizer
    for start in range(0, len(items), BATCH):
        batch = items[start : start + BATCH]
        with torch.no_grad():
            logits = loaded.model(**_inputs(loaded, batch)).logits[:, -1].log_softmax(-1)
        for item, row in zip(batch, logits, strict=True):
            candidates = item.question.grammar.candidates()
            firsts = [tokenizer(text, add_special_tokens=False)["input_ids"][0] for text, _ in candidates]
            if len(set(firsts)) < len(firsts):
                raise ValueError(f"answers of {item.question.prompt!r} begin with the same token")
            values = row[firsts].tolist()
            found.append({value: v for (_, value), v in zip(candidates, values, strict=True)})
            said.append(candidates[int(np.argmax(values))][0])
    return found, said


def _drawn(rng: np.random.Generator, task: Task, condition: Condition) -> Scene:
    """A scene on the condition, drawn again in the rare case that none was found."""
    while True:
        try:
            return draw_scene(rng, task, condition)
        except SamplingFailed:
            continue


def _grounding_item(
    task: GroundingTask, rng: np.random.Generator, condition: Condition, variant: Variant, shifts: Shifts
) -> Asked:
    """A question about a random object of the first drawn scene that allows it."""
    while True:
        scene = _drawn(rng, task, condition)
        if variant.ask in task.possible_asks(scene):
            scene = shift_if_possible(rng, scene, shifts)
            question = task.question(scene, replace(variant, detail=int(rng.integers(5040))))
            if sayable(task.solve(scene, question), question):
                return Asked(scene, question)


def _log_odds(row: dict[Any, float], value: Any) -> float:
    return row[value] - float(np.logaddexp.reduce([score for v, score in row.items() if v != value]))


def _auc(evidence: Any, truth: Any) -> float:
    """Area under the ROC curve: chance that a scene of which it is true gets more evidence than one of which it is not."""
    ranks = rankdata(evidence)
    positives, negatives = truth.sum(), (~truth).sum()
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def main() -> None:
    """Command line: `python -m vlm_probe.probes.tiny.evaluate [FOLDER]`."""
    parser = argparse.ArgumentParser(description="Measure the embedded model and write its card.")
    parser.add_argument("folder", type=Path, nargs="?", default=WEIGHTS)
    parser.add_argument("--per-ask", type=int, default=200)
    parser.add_argument("--per-shift", type=int, default=100)
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    facts = evaluate(arguments.folder, arguments.per_ask, arguments.per_shift, arguments.scenes, arguments.jobs)
    sys.stdout.write(dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
