"""What a run costs around the model: the whole of `vlm_probe.probes.run.run` against a plain transformers loop.

Baseline: the same model and the same batches; pictures opened with Pillow, prompts through the chat template and the
processor, `generate`, `batch_decode`. Nothing is prefetched, checked, hashed, scored or written.

    python benchmarks/run.py [--model tiny] [--stimuli SET] [-n 500] [--rounds 5] [--batch-size 16] [--threads 1]

Both are timed in turn in one process, the order changing from round to round, after one round that is not counted.
Prints the ratio of the times per item, wall and CPU (target: wall <= 1.1), and the peak memory of a process that does
nothing but the run (target: < 1.5 GB).

Torch computes with one thread by default here: with more threads than free cores both slow down up to tenfold, the plain
loop more than the run, and the ratio then says nothing about the toolkit.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlm_probe.probes.models import Model, Trial
from vlm_probe.probes.models.catalog import lookup
from vlm_probe.probes.models.huggingface import HuggingFaceModel
from vlm_probe.probes.models.loading import load_model
from vlm_probe.probes.models.reply_limits import SPARE_TOKENS
from vlm_probe.probes.run import RunConfig, run
from vlm_probe.stimuli.dataset import StimulusSet
from vlm_probe.stimuli.generate import make_set

TASK = "towers-stability"


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


def timed(work: Any) -> tuple[float, float]:
    """Wall and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


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


def compare(name: str, stimuli: StimulusSet, batch_size: int, rounds: int) -> None:
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
        work = {
            "plain": partial(plain_loop, plain, processor, stimuli, batch_size, new_tokens),
            "run": partial(run, RunConfig(name, "s", batch_size=batch_size), stimuli, out, model=model),
        }
        order = ["plain", "run"] if number % 2 else ["run", "plain"]
        took = {which: timed(work[which]) for which in order}
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


def main() -> None:
    """Read the arguments, make a set if none is given, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--stimuli", type=Path, help="folder of a set; by default a new one is made")
    parser.add_argument("-n", type=int, default=500, help="items, if a set is made")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.stimuli is not None:
        compare(given.model, StimulusSet.load(given.stimuli), given.batch_size, given.rounds)
        return
    with tempfile.TemporaryDirectory() as folder:
        stimuli = make_set(TASK, given.n, 0, Path(folder) / "set")
        compare(given.model, stimuli, given.batch_size, given.rounds)


if __name__ == "__main__":
    main()
