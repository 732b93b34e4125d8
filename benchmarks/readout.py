"""What scoring all legal answers costs: `score_options` against one plain forward pass over the same prompts.

Baseline: `model(**inputs)` on the same batch of prompts and pictures, which gives the logits of every position and no
score of anything. Both get inputs that are ready: making them costs the same for either.

    python benchmarks/readout.py [--model tiny] [--batch-size 0] [--rounds 40] [--threads 1]

Both are timed in turn in one process, the order changing from round to round, after five rounds that are not counted.
Prints, for tasks with different numbers of options, the median of the ratios in wall and in CPU time (target: <= 1.3 for
up to 41 options), and how far the scores are from the plain computation, which reads every reply from the start, without
a cache, a batch or padding (target: 1e-4 nats).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlm_probe.probes.models import Trial
from vlm_probe.probes.models.huggingface import HuggingFaceModel
from vlm_probe.probes.models.loading import load_model
from vlm_probe.stimuli.generate import make_set

TASKS = ("towers-stability", "towers-grounding", "towers-topblock")
WARM_UP = 5
CHECKED = 8
"""Replies per trial that are scored by the plain computation, too."""


def plain_score(model: Any, inputs: dict[str, torch.Tensor], reply: Sequence[int]) -> float:
    """The log-probability of one reply (nats): prompt and reply read at once, by a plain forward pass.

    Args:
        model: The network.
        inputs: Of one prompt, as the processor makes them.
        reply: Its tokens.
    """
    ids = inputs["input_ids"]
    whole = torch.cat([ids, torch.tensor([reply], device=ids.device)], dim=1)
    rest = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        logits = model(input_ids=whole, attention_mask=torch.ones_like(whole), **rest).logits
    steps = torch.log_softmax(logits[0, ids.shape[1] - 1 : -1].float(), dim=-1)
    return float(steps[torch.arange(len(reply)), torch.tensor(reply, device=ids.device)].sum())


def seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(model: HuggingFaceModel, task: str, batch_size: int, rounds: int, folder: Path) -> None:
    """Time one task's items and print its line."""
    stimuli = make_set(task, batch_size, 0, folder / task)
    trials = [Trial(item, stimuli.image(item)) for item in stimuli.items]
    inputs = model._inputs(trials)
    candidates = [model._prompter.replies(trial) for trial in trials]

    def plain() -> None:
        with torch.inference_mode():
            model._model(**inputs)

    def scored() -> None:
        model._scorer.score(inputs, candidates)

    walls, cpus = [], []
    for number in range(rounds + WARM_UP):
        first, second = (plain, scored) if number % 2 else (scored, plain)
        took = {first: seconds(first), second: seconds(second)}
        if number >= WARM_UP:
            walls.append(took[scored][0] / took[plain][0])
            cpus.append(took[scored][1] / took[plain][1])
    worst = 0.0
    for trial, scores in zip(trials, model.score_options(trials), strict=True):
        replies, alone = model._prompter.replies(trial), model._inputs([trial])
        for i in np.unique(np.linspace(0, len(replies) - 1, CHECKED).astype(int)):
            worst = max(worst, abs(plain_score(model._model, alone, replies[i]) - scores[i]))
    options, tokens = max(map(len, candidates)), inputs["input_ids"].shape[1]
    low, high = np.quantile(walls, [0.25, 0.75])
    print(
        f"{task:18} {options:3} options {tokens:4} tokens   wall {statistics.median(walls):.3f}"
        f" (quartiles {low:.3f} to {high:.3f})   CPU {statistics.median(cpus):.3f}   off by {worst:.1e} nats"
    )


def main() -> None:
    """Read the arguments, compare task by task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--batch-size", type=int, default=0, help="0: what a run takes")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = load_model(given.model)
    assert isinstance(model, HuggingFaceModel)
    size = given.batch_size or model.batch_size
    print(f"{given.model}, batches of {size}: score_options / one plain forward pass; target 1.3")
    with tempfile.TemporaryDirectory() as folder:
        for task in TASKS:
            compare(model, task, size, given.rounds, Path(folder))


if __name__ == "__main__":
    main()
