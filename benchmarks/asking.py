"""What asking a model costs.

python benchmarks/asking.py whole [--model tiny] [--stimuli SET] [-n 500]    # a run against a plain transformers loop
python benchmarks/asking.py scoring [--model tiny]      # all legal answers against one plain forward pass
python benchmarks/asking.py long [--trials 50000]       # memory of a long run
python benchmarks/asking.py startup                     # probe --help
"""

from __future__ import annotations

import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from cyclopts import App, Parameter
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlm_probe.analysis.summary import summarise
from vlm_probe.probes.models import SPARE_TOKENS, Model, Trial
from vlm_probe.probes.models.catalog import lookup
from vlm_probe.probes.models.huggingface import HuggingFaceModel
from vlm_probe.probes.models.loading import load_model
from vlm_probe.probes.run import RunConfig, run
from vlm_probe.stimuli.dataset import StimulusSet
from vlm_probe.stimuli.generate import make_set

app = App(help="What asking a model costs.", default_parameter=Parameter(negative="", consume_multiple=True))
SCORED_TASKS = ("towers-stability", "towers-grounding", "towers-topblock")
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


def compare_scoring(model: HuggingFaceModel, task: str, batch_size: int, rounds: int, folder: Path) -> None:
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


@app.command
def scoring(*, model: str = "tiny", batch_size: int = 0, rounds: int = 40, threads: int = 1) -> None:
    """What scoring all legal answers costs: `score_options` against one plain forward pass over the same prompts.

    Baseline: `model(**inputs)` on the same batch of prompts and images, which gives the logits of every position and no
    score of anything. Both get inputs that are ready: making them costs the same for either.

    Both are timed in turn in one process, the order changing from round to round, after five rounds that are not counted.
    Prints, for tasks with different numbers of options, the median of the ratios in wall and in CPU time (target: <= 1.3 for
    up to 41 options), and how far the scores are from the plain computation, which reads every reply from the start, without
    a cache, a batch or padding (target: 1e-4 nats).

    Args:
        model: Short name or folder.
        batch_size: Items at once; 0: what a run takes.
        rounds: Timed.
        threads: Of torch.
    """
    torch.set_num_threads(threads)
    loaded = load_model(model)
    assert isinstance(loaded, HuggingFaceModel)
    size = batch_size or loaded.batch_size
    print(f"{model}, batches of {size}: score_options / one plain forward pass; target 1.3")
    with tempfile.TemporaryDirectory() as folder:
        for task in SCORED_TASKS:
            compare_scoring(loaded, task, size, rounds, Path(folder))


def plain_loop(model: Any, processor: Any, stimuli: StimulusSet, batch_size: int, new_tokens: int) -> list[str]:
    """What one would write by hand.

    Args:
        model: The network.
        processor: Its processor.
        stimuli: What is asked.
        batch_size: Items at once.
        new_tokens: Of a reply, at most.
    """
    replies: list[str] = []
    ordered = sorted(stimuli.items, key=lambda item: (item.question.style, len(item.question.prompt)))
    for batch in (ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)):
        turns = [
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": Image.open(stimuli.path / item.file_name).convert("RGB")},
                        {"type": "text", "text": item.question.prompt},
                    ],
                }
            ]
            for item in batch
        ]
        inputs = processor.apply_chat_template(
            turns,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(model.device)
        with torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
        replies += processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return replies


def peak_memory(model: str, stimuli: Path, batch_size: int) -> float:
    """Peak resident memory (GB) of a fresh process that loads the model and runs it."""
    code = (
        "import resource, sys, tempfile; from pathlib import Path; from vlm_probe.probes.run import RunConfig, run\n"
        "from vlm_probe.stimuli.dataset import StimulusSet\n"
        f"run(RunConfig({model!r}, 's', batch_size={batch_size}), StimulusSet.load({str(stimuli)!r}),"
        " Path(tempfile.mkdtemp()) / 'run')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout) / 1e6


def compare_run(name: str, stimuli: StimulusSet, batch_size: int, rounds: int) -> None:
    """Run the benchmark and print the ratios."""
    model: Model = load_model(name)
    assert isinstance(model, HuggingFaceModel)
    folder = lookup(name).source or name
    plain = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.padding_side = "left"
    new_tokens = model.reply_length(Trial(stimuli.items[0], stimuli.image(stimuli.items[0]))) + SPARE_TOKENS
    walls, cpus, ours = [], [], []
    for number in range(rounds + 1):
        out = Path(tempfile.mkdtemp()) / "run"
        work: dict[str, Callable[[], Any]] = {
            "plain": partial(plain_loop, plain, processor, stimuli, batch_size, new_tokens),
            "run": partial(run, RunConfig(name, "s", batch_size=batch_size), stimuli, out, model=model),
        }
        order = ["plain", "run"] if number % 2 else ["run", "plain"]
        took = {which: seconds(work[which]) for which in order}
        shutil.rmtree(out.parent)
        if number:
            walls.append(took["run"][0] / took["plain"][0])
            cpus.append(took["run"][1] / took["plain"][1])
            ours.append(took["run"][0] / len(stimuli))
    print(
        f"{name}, {len(stimuli)} items of {stimuli.card['task']}, batches of {batch_size}, "
        f"{rounds} rounds, {torch.get_num_threads()} thread(s)"
    )
    print(f"run / plain loop, wall: {statistics.median(walls):.3f} ({min(walls):.3f} to {max(walls):.3f}); target 1.1")
    print(f"run / plain loop, CPU:  {statistics.median(cpus):.3f} ({min(cpus):.3f} to {max(cpus):.3f})")
    print(f"items per second: {1 / statistics.median(ours):.0f}")
    print(f"peak memory of a run: {peak_memory(name, stimuli.path, batch_size):.2f} GB; target 1.5")


@app.command
def whole(
    *,
    model: str = "tiny",
    stimuli: Path | None = None,
    n: Annotated[int, Parameter("-n")] = 500,
    rounds: int = 5,
    batch_size: int = 16,
    threads: int = 1,
) -> None:
    """What a run costs around the model: the whole of `vlm_probe.probes.run.run` against a plain transformers loop.

    Baseline: the same model and the same batches; images opened with Pillow, prompts through the chat template and the
    processor, `generate`, `batch_decode`. Nothing is prefetched, checked, hashed, scored or written.

    Both are timed in turn in one process, the order changing from round to round, after one round that is not counted.
    Prints the ratio of the times per item, wall and CPU (target: wall <= 1.1), and the peak memory of a process that does
    nothing but the run (target: < 1.5 GB).

    Torch computes with one thread by default: with more threads than free cores both slow down up to tenfold, the plain
    loop more than the run, and the ratio then says nothing about the toolkit.

    Args:
        model: Short name or folder.
        stimuli: Folder of a set; by default a new one is made.
        n: Items, if a set is made.
        rounds: Timed.
        batch_size: Items at once.
        threads: Of torch.
    """
    torch.set_num_threads(threads)
    if stimuli is not None:
        compare_run(model, StimulusSet.load(stimuli), batch_size, rounds)
        return
    with tempfile.TemporaryDirectory() as folder:
        made = make_set("towers-stability", n, 0, Path(folder) / "set")
        compare_run(model, made, batch_size, rounds)


PARTS = 10


def resident() -> float:
    """Resident memory of this process, MB."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / 1e3


@app.command
def long(*, trials: int = 50_000) -> None:
    """A long run in little memory: resident memory of an observer's run, and of its summary.

    Items of towers-stability, each in all sixteen wordings; the items, which are in memory from the start, are counted apart.

    Args:
        trials: About how many.
    """
    with tempfile.TemporaryDirectory() as home:
        stimuli = make_set("towers-stability", -(-trials // 16), 0, Path(home) / "set", size=16)
        len(stimuli.items)
        before, seen = resident(), dict[int, float]()
        begun = time.process_time()

        def step(done: int, total: int) -> None:
            tenth = PARTS * done // total
            if tenth not in seen:
                seen[tenth] = resident()

        config = RunConfig("chance", str(stimuli.path), design="variants")
        report = run(config, stimuli, Path(home) / "run", progress=step)
        spent = time.process_time() - begun
        after = resident()
        summarise(report.path)
        found = {
            "trials": report.n,
            "items": len(stimuli),
            "mb_with_items": before,
            "mb_by_tenth": list(seen.values()),
            "mb_after": after,
            "mb_after_summary": resident(),
            "cpu_ms_per_trial": 1000 * spent / report.n,
            "log_mb": (report.path / "trials.jsonl").stat().st_size / 1e6,
        }
    print(json.dumps(found, indent=1))


REPEATS = 10
HEAVY = ("torch", "transformers", "pybullet", "pandas", "numpy", "scipy", "matplotlib")
HELP = (
    "import sys; sys.argv = ['probe', {arguments}'--help']\n"
    "from vlm_probe.probes.cli import main\n"
    "try: main()\n"
    "except SystemExit: pass\n"
    f"print(*(m for m in {HEAVY!r} if m in sys.modules), sep=',', file=sys.stderr)"
)


def cpu_seconds(code: str) -> float:
    """CPU seconds (user and system) of a fresh interpreter that runs the code; the least of `REPEATS`."""
    best = float("inf")
    for _ in range(REPEATS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return best


@app.command
def startup() -> None:
    """What help pages cost: CPU seconds, also as a ratio to `import cyclopts` (target 1.6), and which heavy modules they import."""
    bare = cpu_seconds("import cyclopts")
    print(f"import cyclopts       {bare:.3f} s CPU")
    for arguments in ("", "'run', ", "'train', "):
        code = HELP.replace("{arguments}", arguments)
        helped = cpu_seconds(code)
        found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stderr.strip()
        name = f"probe {arguments.strip(', ').strip(chr(39))} --help".replace("  ", " ")
        print(f"{name:20}  {helped:.3f} s CPU = {helped / bare:.2f} x; heavy modules: {found or 'none'}")


if __name__ == "__main__":
    app()
