"""What `tiny` can do, measured on new pictures through the ordinary Hugging Face path, and written beside the weights.

Run as `python -m probes.tiny.evaluate [FOLDER]`: it writes `evaluation.json` and `MODEL_CARD.md` there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import rankdata
from transformers import AutoModelForImageTextToText, AutoProcessor

from probes.tiny import WEIGHTS
from probes.tiny.card import model_card
from probes.tiny.pictures import RENDER_PIXELS
from probes.tiny.questions import sayable
from stimuli.picture import draw
from stimuli.question import PARAPHRASES, Question, Variant
from stimuli.scene import Scene, mirror
from stimuli.simulators import get_simulator
from stimuli.tasks import Task, get_task
from stimuli.tasks.towers.grounding import ASKS, TowersGrounding
from stimuli.tasks.towers.tower import tower_blocks

SEED = 20_260_000
"""Of the held-out scenes; pretraining has other ones."""
BATCH = 32
MAX_NEW_TOKENS = 40
TASKS = (
    "towers-stability",
    "towers-direction",
    "towers-count",
    "towers-topblock",
    "towers-sideblock",
    "towers-grounding",
)


@dataclass(frozen=True)
class Loaded:
    """A model and its processor."""

    model: Any
    processor: Any


@dataclass(frozen=True)
class Item:
    """A picture's scene and a question about it."""

    scene: Scene
    question: Question


def load(folder: Path = WEIGHTS) -> Loaded:
    """Model (float32) and processor from a folder in the hub layout."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return Loaded(model, AutoProcessor.from_pretrained(folder))


def replies(loaded: Loaded, items: Sequence[Item]) -> list[str]:
    """Greedy replies."""
    out: list[str] = []
    for start in range(0, len(items), BATCH):
        inputs = _inputs(loaded, items[start : start + BATCH])
        with torch.no_grad():
            ids = loaded.model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        new = ids[:, inputs["input_ids"].shape[1] :]
        out += loaded.processor.batch_decode(new, skip_special_tokens=True)
    return out


def accuracies(loaded: Loaded, per_ask: int, seed: int = SEED, stones: bool = False) -> dict[str, dict[str, Any]]:
    """Accuracy of every question of towers-grounding, over all paraphrases and option orders.

    Args:
        loaded: What to ask.
        per_ask: Questions of each kind.
        seed: Of the scenes.
        stones: Whether to ask the stepping stones as well.
    """
    task = get_task("towers-grounding")
    rng = np.random.default_rng(seed)
    results: dict[str, dict[str, Any]] = {}
    for ask in (*ASKS, *([ask for ask in TowersGrounding.asks if ask not in ASKS] if stones else ())):
        conditions = [c for c in task.conditions() if c.build.partition(":")[0] == ask]
        if not conditions:
            conditions = [replace(c, build=ask) for c in task.conditions() if c.build == ASKS[0]]
        wordings = list(product(range(PARAPHRASES), range(2)))
        items = []
        for i in range(per_ask):
            paraphrase, order = wordings[i % len(wordings)]
            variant = Variant(paraphrase, order=order, ask=ask)
            items.append(_grounding_item(task, rng, conditions[i % len(conditions)], variant))
        right, parsed = [], []
        for item, reply in zip(items, replies(loaded, items), strict=True):
            answer = item.question.parse(reply)
            parsed.append(answer.status == "ok")
            right.append(answer.value is not None and task.score(item.scene, item.question, answer.value).success)
        by_paraphrase = [
            round(float(np.mean(right[p * 2 :: 8] + right[p * 2 + 1 :: 8])), 3) for p in range(PARAPHRASES)
        ]
        clear = [r for r, item in zip(right, items, strict=True) if not _lone_tower(item)]
        results[ask] = {
            "n": per_ask,
            "accuracy": round(float(np.mean(right)), 4),
            "parsed": round(float(np.mean(parsed)), 4),
            "by_paraphrase": by_paraphrase,
            "n_clear": len(clear),
            "accuracy_clear": round(float(np.mean(clear)), 4),
        }
    return results


def parse_rates(loaded: Loaded, per_task: int, seed: int = SEED + 1) -> dict[str, dict[str, float]]:
    """Share of replies that the question's own parser accepts, for every task and style, over all wordings."""
    rates: dict[str, dict[str, float]] = {}
    for name in TASKS:
        task = get_task(name)
        rng = np.random.default_rng(seed)
        rates[name] = {}
        for style in ("direct", "think"):
            items = []
            conditions, variants = task.conditions(), task.variants()
            for i in range(per_task):
                condition = conditions[i % len(conditions)]
                variant = replace(variants[i % len(variants)], style=style)
                if task.kind == "grounding":
                    variant = replace(variant, ask=condition.build.partition(":")[0])
                    items.append(_grounding_item(task, rng, condition, variant))
                else:
                    scene = _scene(task, rng, condition)
                    items.append(Item(scene, task.question(scene, variant)))
            ok = [q.question.parse(r).status == "ok" for q, r in zip(items, replies(loaded, items), strict=True)]
            rates[name][style] = round(float(np.mean(ok)), 4)
    return rates


def stability(loaded: Loaded, scenes: int, seed: int = SEED + 2) -> dict[str, Any]:
    """Answers to towers-stability before any adaptation: bias, accuracy and the area under the ROC curve.

    Towers come as in the designed set, half standing and half falling. Truth is the sign of the margin, on which the
    simulator agrees outside the ambiguous band that the set leaves out.
    """
    task = get_task("towers-stability")
    rng = np.random.default_rng(seed)
    towers: list[Scene] = []
    conditions = task.conditions()
    while len(towers) < scenes:
        towers += task.sample_matched(rng, conditions[len(towers) // 2 % len(conditions)])
    stands = np.array([task.margin(scene) > 0 for scene in towers])
    yes, no = (loaded.processor.tokenizer(w, add_special_tokens=False)["input_ids"][0] for w in ("yes", "no"))
    result: dict[str, Any] = {"towers": len(towers)}
    evidence = []
    for polarity, name in enumerate(("stay", "fall")):
        items = [
            # Standing and falling towers alternate; both members of a pair must be asked in the same words.
            Item(scene, task.question(scene, Variant(i // 2 % PARAPHRASES, polarity, i // 2 // PARAPHRASES % 2)))
            for i, scene in enumerate(towers)
        ]
        odds = []
        for start in range(0, len(items), BATCH):
            with torch.no_grad():
                logits = loaded.model(**_inputs(loaded, items[start : start + BATCH])).logits[:, -1]
            odds += (logits[:, yes] - logits[:, no]).tolist()
        values = np.array(odds)
        said_yes = values > 0
        for_standing = values if polarity == 0 else -values
        evidence.append(for_standing)
        result[name] = {
            "share_yes": round(float(said_yes.mean()), 4),
            "mean_p_yes": round(float((1 / (1 + np.exp(-values))).mean()), 4),
            "accuracy": round(float(((for_standing > 0) == stands).mean()), 4),
            "auc": round(_auc(for_standing, stands), 4),
        }
    result["auc_both_polarities"] = round(_auc((evidence[0] + evidence[1]) / 2, stands), 4)
    return result


def evaluate(folder: Path, per_ask: int = 600, per_task: int = 200, towers: int = 600) -> dict[str, Any]:
    """Measure everything, and write `evaluation.json` and `MODEL_CARD.md` into the folder."""
    loaded = load(folder)
    facts = {
        "seed": SEED,
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
        "perception": accuracies(loaded, per_ask, stones=True),
        "parse_rates": parse_rates(loaded, per_task),
        "stability_before_adaptation": stability(loaded, towers),
    }
    (folder / "evaluation.json").write_text(json.dumps(facts, indent=1) + "\n")
    training = folder / "training.json"
    (folder / "MODEL_CARD.md").write_text(model_card(facts, json.loads(training.read_text())))
    return facts


def _inputs(loaded: Loaded, items: Sequence[Item]) -> Any:
    simulator = get_simulator()
    pictures = [Image.fromarray(draw(simulator, item.scene, RENDER_PIXELS).rgb) for item in items]
    turns = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": item.question.prompt}]}]
        for item in items
    ]
    texts = [loaded.processor.apply_chat_template(turn, add_generation_prompt=True) for turn in turns]
    return loaded.processor(images=pictures, text=texts, padding=True, return_tensors="pt")


def _scene(task: Task, rng: np.random.Generator, condition: Any) -> Scene:
    scenes = task.sample_matched(rng, condition)
    scene = scenes[rng.integers(len(scenes))]
    return mirror(scene) if rng.random() < 0.5 else scene


def _grounding_item(task: Task, rng: np.random.Generator, condition: Any, variant: Variant) -> Item:
    """A question about a random object of the first drawn scene that allows it."""
    while True:
        scene = _scene(task, rng, condition)
        if variant.ask in TowersGrounding().possible_asks(scene):
            question = task.question(scene, replace(variant, detail=int(rng.integers(5040))))
            if sayable(task.solve(scene, question), question):
                return Item(scene, question)


def _lone_tower(item: Item) -> bool:
    """Whether the question counts from the bottom of a "tower" of one block beside another: nothing shows which is it."""
    return "n" in item.question.about and len(tower_blocks(item.scene)) == 1 < len(item.scene.bodies)


def _auc(evidence: Any, truth: Any) -> float:
    """Area under the ROC curve: chance that a standing tower gets more evidence for standing than a falling one."""
    ranks = rankdata(evidence)
    positives, negatives = truth.sum(), (~truth).sum()
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def main() -> None:
    """Command line: `python -m probes.tiny.evaluate [FOLDER]`."""
    parser = argparse.ArgumentParser(description="Measure the embedded model and write its card.")
    parser.add_argument("folder", type=Path, nargs="?", default=WEIGHTS)
    parser.add_argument("--per-ask", type=int, default=600)
    parser.add_argument("--per-task", type=int, default=200)
    parser.add_argument("--towers", type=int, default=600)
    arguments = parser.parse_args()
    facts = evaluate(arguments.folder, arguments.per_ask, arguments.per_task, arguments.towers)
    sys.stdout.write(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
