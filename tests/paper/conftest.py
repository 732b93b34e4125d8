from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from vlm_probe.analysis.levels import transfer_level
from vlm_probe.probes.trials import COLUMNS
from vlm_probe.stimuli.shifts import parse_shifts
from vlm_probe.stimuli.tasks import get_task

Rows = list[dict[str, Any]]
BINS = ((-0.7, -0.4), (-0.4, -0.2), (-0.2, -0.1), (0.1, 0.2), (0.2, 0.4), (0.4, 0.7))
MANNERS = ("blank", "mirrored", "shuffled", "other-picture", "description", "facts")
EFFECTS = {"within": 3.0, "shifted": 1.5}
JOINT = "balance-tilt+towers-stability"
SMALL: dict[str, Any] = {
    "conditions": {"topblock": ("towers-topblock", ""), "stability": ("towers-stability", ""), "joint": (JOINT, "")},
    "methods": ("sft", "ppo", "grpo"),
    "seeds": 2,
    "n": 24,
    "tests": [
        *(("towers-stability", ""), ("towers-topblock", ""), ("towers-direction", ""), ("balance-tilt", "")),
        *(("towers-topblock", "visual:2"), ("towers-stability", "visual:2"), ("towers-grounding", "")),
    ],
}
"""A study that is small, and still has everything that the manuscript speaks of."""


def write_run(folder: Path, model: str, training: Mapping[str, Any] | None, test: tuple[str, str], rows: Rows) -> None:
    """A run's folder, as `probe run` leaves it."""
    folder.mkdir(parents=True)
    record = {
        "format": 1,
        "status": "finished",
        "config": {"temperature": 0.0},
        "seed": 0,
        "n": len(rows),
        "model": {
            "name": model,
            "revision": "",
            "weights_sha256": "ab" * 32,
            "adapter_sha256": training["adapter_sha256"] if training else "",
            "details": {"parameters": {"total": 2_000_000}},
        },
        "observed": {"pictures": ["96 x 96 seen as 80 x 80"]},
        "training": training,
        "stimuli": {
            "path": f"sets/{folder.name}",
            "content_sha256": hashlib.sha256(str(test).encode()).hexdigest(),
            "task": test[0],
            "n": len(rows),
            "baselines": {"chance": 0.5, "constant": {"answer": "a", "score": 0.5}, "shortcuts": {"a rule": 0.6}},
        },
        "versions": {},
    }
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "trials.jsonl").write_text(text, encoding="utf-8")


def asked(test: tuple[str, str], n: int, eta: float, who: str, rng: np.random.Generator, manner: str = "") -> Rows:
    """Trials of one who is right with log odds `eta` on an item in the middle."""
    task, shift = test
    items = np.random.default_rng(sum(map(ord, task + shift)))
    hard = items.normal(0, 0.7, n)
    margins = [float(items.uniform(*BINS[i % len(BINS)])) for i in range(n)]
    kind = ("count", "colour: top", "left or right")
    two = task == "towers-stability"
    rows: Rows = []
    for i in range(n):
        right = bool(rng.random() < expit(eta * (1.6 * abs(margins[i]) + 0.4) - hard[i]))
        truth = ("stands" if margins[i] > 0 else "falls") if two else "a"
        wrong = ("falls" if margins[i] > 0 else "stands") if two else "b"
        item = f"{task}{shift}-{i}"
        given: dict[str, Any] = {
            "key": hashlib.sha256(f"{who}{item}{manner}".encode()).hexdigest(),
            "item_id": item,
            "task": task,
            "model": who.partition(" ")[0],
            "readout": "generate",
            "prompt": "What happens?",
            "raw": truth if right else wrong,
            "answer": truth if right else wrong,
            "answer_text": truth if right else wrong,
            "status": "ok",
            "options": ["stands", "falls"] if two else None,
            "truth": truth,
            "correct": right,
            "success": right,
            "reward": float(right),
            "chance": 0.5,
            "margin": margins[i],
            "condition": {
                "count": 2 + i % 3,
                "margin_bin": list(BINS[i % len(BINS)]),
                "build": kind[i % 3] if "grounding" in task else "plain",
                "shifts": [list(s) for s in parse_shifts(shift)],
            },
            "variant": {"polarity": 0, "order": 0},
            "manner": {"control": manner or "intact", "code": manner},
            "attempt": 1,
            "attempts": 1,
            "memory": "none",
            "pair_id": f"{task}{shift}-p{i // 2}",
            "group_id": f"{task}{shift}-g{i // 4}",
        }
        rows.append({name: given.get(name) for name in COLUMNS})
    return rows


def training_facts(method: str, tasks: str, shift: str, seed: int) -> dict[str, Any]:
    """What `probe train` writes down, as far as it is read here."""
    curves = [
        {"step": s, "samples": 100 * s, "success": float(1 - np.exp(-s / 4) / (1 + 0.1 * seed))} for s in range(1, 11)
    ]
    return {
        "method": method,
        "model": "tiny",
        "tasks": tasks.split("+"),
        "shift": shift,
        "seed": seed,
        "adapter_sha256": hashlib.sha256(f"{method}{tasks}{shift}{seed}".encode()).hexdigest(),
        "capacity": {"rank": 16, "alpha": 32, "trainable": 163840, "total": 2350464},
        "budget": {"samples": 1000, "steps": 10},
        "config": {
            "learning_rate": 0.002,
            "batch": 32,
            "generations": 16,
            "temperature": 1.0,
            "items": 512,
            "where": "language",
        },
        "seconds": 12.0,
        "cpu_seconds": 10.0,
        "curves": curves,
    }


def decoded(target: str, task: str, adapter_sha256: str, seed: int) -> dict[str, Any]:
    """A `decode.json` of a bare model beside one with an adapter."""
    rng = np.random.default_rng(seed)
    sites = [("vision", "image", layer) for layer in range(3)]
    sites += [("language", position, layer) for position in ("last", "image") for layer in range(4)]
    base, compared = [], []
    for part, position, layer in sites:
        score, gain = 0.2 + 0.1 * layer, float(rng.normal(0, 0.03))
        name = f"{part}-{layer}-{position}"
        base.append(
            {"site": name, "part": part, "layer": layer, "position": position, "score": score}
            | {"ci": [score - 0.1, score + 0.1], "p_familywise": 0.05}
        )
        compared.append(
            {"site": name, "score": score + gain, "score_ci": [score + gain - 0.1, score + gain + 0.1]}
            | {"difference": gain, "ci": [gain - 0.05, gain + 0.05]}
        )
    return {
        "config": {"compare": "adapters/some", "target": target},
        "stimuli": {"task": task, "items": 24, "groups": 6},
        "target": {"name": target},
        "metric": "R2" if target == "margin" else "balanced accuracy",
        "chance": 0.0 if target == "margin" else 0.5,
        "settings": {"permutations": 20},
        "sites": base,
        "references": {
            "pixels": {"score": 0.1, "ci": [0.0, 0.2]},
            "cues": {"score": 0.8, "ci": [0.7, 0.9]},
        },
        "compare": {"model": {"adapter_sha256": adapter_sha256}, "sites": compared},
    }


def write_study(
    folder: Path, design: Mapping[str, Any] = SMALL, effects: Mapping[str, float] = EFFECTS, seed: int = 0
) -> Path:
    """A study's folder with made-up answers: trainings raise the log odds of success by what their level of transfer says.

    Args:
        folder: To write to.
        design: As `SMALL`.
        effects: Level of transfer -> what is added to the log odds; 0 where it is not named.
        seed: Of the answers.
    """
    rng = np.random.default_rng(seed)
    who: list[tuple[str, dict[str, Any] | None]] = [("tiny_none", None)]
    for name, (tasks, shift) in design["conditions"].items():
        for method in design["methods"]:
            for number in range(design["seeds"]):
                who.append((f"tiny_{method}_{name}_s{number}", training_facts(method, tasks, shift, number)))
    for name, training in who:
        drift = float(rng.normal(0, 0.1)) if training else 0.0
        for test in design["tests"]:
            level = _level(test, training)
            eta = 0.2 + drift + effects.get(level, 0.0) + (2.0 if "grounding" in test[0] else 0.0)
            out = folder / "runs" / name / "_".join(filter(None, (test[0], test[1].replace(":", ""))))
            write_run(out, "tiny", training, test, asked(test, design["n"], eta, name, rng))
        for task in (t for t in ("towers-stability", "towers-topblock") if (t, "") in design["tests"]):
            rows = asked(
                (task, ""), design["n"] // 2, 0.2 + effects.get(_level((task, ""), training), 0.0), f"{name} c", rng
            )
            for manner in MANNERS:
                rows += asked((task, ""), design["n"] // 2, 0.0, f"{name} c", rng, manner)
            plain = {
                json.loads(line)["item_id"]: line for line in (folder / "runs" / name / task / "trials.jsonl").open()
            }
            rows = [json.loads(plain[row["item_id"]]) if not row["manner"]["code"] else row for row in rows]
            write_run(folder / "runs" / name / f"{task}_controls", "tiny", training, (task, ""), rows)
        if training is not None:
            (folder / "adapters" / name).mkdir(parents=True)
            (folder / "adapters" / name / "training.json").write_text(json.dumps(training), encoding="utf-8")
            if name.endswith("_s0") and "joint" not in name:
                for number, target in enumerate(("margin", "label")):
                    out = folder / "decoding" / name / "towers-stability" / f"{target}_vs_{name}"
                    out.mkdir(parents=True)
                    text = json.dumps(decoded(target, "towers-stability", training["adapter_sha256"], number))
                    (out / "decode.json").write_text(text, encoding="utf-8")
    for observer, eta in (("chance", 0.0), ("heuristic", 1.0), ("ideal", 9.0), ("noisy-simulation", 2.0)):
        for test in design["tests"]:
            if get_task(test[0]).kind != "grounding":
                out = folder / "observers" / observer / "_".join(filter(None, (test[0], test[1].replace(":", ""))))
                write_run(out, observer, None, test, asked(test, design["n"], eta, observer, rng))
    (folder / "registration.json").write_text(json.dumps(registration(design)), encoding="utf-8")
    return folder


def registration(design: Mapping[str, Any]) -> dict[str, Any]:
    """What `probe study freeze` would have written: every method against the untrained model at every level."""
    planned = [("rl", "sft"), *((method, "none") for method in design["methods"])]
    contrasts = [
        {"positive": a, "negative": b, "level": level, "training": ""}
        for a, b in planned
        for level in ("within", "shifted", "cross-task", "cross-family", "zero-shot")
    ]
    trainings = [
        {
            "name": name,
            "tasks": tasks.split("+"),
            "methods": list(design["methods"]),
            "seeds": list(range(design["seeds"])),
        }
        | {"settings": {"shift": shift} if shift else {}}
        for name, (tasks, shift) in design["conditions"].items()
    ]
    record = {
        "study": "made-up",
        "registered": "2026-01-02T03:04:05+00:00",
        "design": {"trainings": trainings, "contrasts": contrasts, "settings": {}, "budgets": {}, "bound": 0.15},
        "sets": {"_".join(t): {"content_sha256": hashlib.sha256(str(t).encode()).hexdigest()} for t in design["tests"]},
        "done_before": [],
    }
    text = json.dumps(record, sort_keys=True, ensure_ascii=False)
    return {"sha256": hashlib.sha256(text.encode()).hexdigest(), **record}


def _level(test: tuple[str, str], training: Mapping[str, Any] | None) -> str:
    if training is None:
        return ""
    return transfer_level(test[0], parse_shifts(test[1]), tuple(training["tasks"]), parse_shifts(training["shift"]))


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small study in which trainings help within their task, and nowhere else."""
    return write_study(tmp_path_factory.mktemp("studies") / "small")


@pytest.fixture
def make_study(tmp_path: Path) -> Callable[..., Path]:
    """Function that writes a study: `(effects, conditions, methods)`."""

    def call(effects: Mapping[str, float], methods: Sequence[str] = SMALL["methods"], **design: Any) -> Path:
        return write_study(tmp_path / "study", SMALL | {"methods": tuple(methods)} | design, effects)

    return call
