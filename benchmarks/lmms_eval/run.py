"""`probe run` against lmms-eval: the same checkpoint, the same items, greedy replies of the same length.

lmms-eval lives in an environment of its own, because it brings some hundred packages (it needs a file lock older than 4.3):

    python -m venv lmms && lmms/bin/pip install lmms-eval==0.7.3 decord "filelock<4.3"
    python benchmarks/lmms_eval/run.py --python lmms/bin/python [-n 200] [--rounds 3] [--threads 0] [--device cpu]

A set of towers-stability is made, and opened by lmms-eval as an `imagefolder` (task.yaml, functions.py). Each does what it
does by default; lmms-eval's LLaVA takes one item at a time. Both are whole processes, in single precision, in turn, the order
changing from round to round. Items per second are from the first to the last item: of probe from run.json (with scoring and
writing), of lmms-eval from its progress bar (without).

Both compute with as many threads as torch takes by itself, one per core, unless `--threads` says otherwise. With more threads than
free cores, the numbers say nothing: on a busy machine give `--threads 1` and `-n 1000`. Then items per CPU second are
told as well: (n - 8) by the CPU time that a run of n items takes longer than one of 8 (with fewer than 1000, the imports vary
by more than that).

Prints the ratios, above 1 where probe is faster (targets: at least 4 in items per second, and a shorter process), and on
how many items the two replies are the same.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from vlm_probe.probes.models import SPARE_TOKENS, Trial
from vlm_probe.probes.models.catalog import lookup
from vlm_probe.probes.models.loading import load_model
from vlm_probe.probes.trials import read_run, read_trials
from vlm_probe.stimuli.dataset import StimulusSet
from vlm_probe.stimuli.generate import make_set

HERE = Path(__file__).resolve().parent
TASK = "towers-stability"
NAMES = ("items per second", "time of the whole process", "CPU time of the whole process", "items per CPU second")
RATE = re.compile(r"Model Responding: 100%.*?\[.*?,\s*([\d.]+)(it/s|s/it)\]")

FEW, MANY = 8, 1000
"""Items of a run that is taken off another, which leaves what the items themselves cost; and how many the other has to have."""


@dataclass(frozen=True)
class Run:
    """What a process took: seconds in all, CPU seconds in all, items per second while it was asking; and its replies."""

    wall: float
    cpu: float
    rate: float
    replies: dict[str, str]


def with_probe(model: str, stimuli: StimulusSet, out: Path, limit: int, threads: int, device: str) -> Run:
    """A run of probe."""
    command = ["-m", "vlm_probe", "run", "--model", model, "--stimuli", str(stimuli.path), "--out", str(out)]
    command += ["--no-references", "--limit", str(limit), "--device", device, "--dtype", "float32"]
    wall, cpu = process([sys.executable, *command], out.with_suffix(".log"), threads, device)
    described = read_run(out)
    begun, ended = (datetime.fromisoformat(described[name]) for name in ("started", "finished"))
    replies = {row["item_id"]: row["raw"] for row in read_trials(out)}
    return Run(wall, cpu, len(replies) / (ended - begun).total_seconds(), replies)


def with_lmms_eval(
    python: str, weights: str, tasks: Path, stimuli: StimulusSet, out: Path, limit: int, threads: int, device: str
) -> Run:
    """A run of lmms-eval.

    Args:
        python: Of the environment in which it is installed.
        weights: Folder of the model.
        tasks: Folder of the task.
        stimuli: The set, whose order it keeps.
        out: Where it writes.
        limit: Items.
        threads: Of torch; 0 for as many as it takes by itself.
        device: "cpu" or "cuda".

    Raises:
        SystemExit: If it did not finish.
    """
    command = ["-m", "lmms_eval", "--model", "llava_hf", "--include_path", str(tasks), "--tasks", "probe_set"]
    place = "cuda:0" if device == "cuda" else device
    command += ["--model_args", f"pretrained={weights},device={place},device_map={place},dtype=float32"]
    command += ["--batch_size", "1", "--output_path", str(out), "--log_samples", "--limit", str(limit)]
    log = out.with_suffix(".log")
    wall, cpu = process([python, *command], log, threads, device)
    rates = RATE.findall(log.read_text(errors="replace").replace("\r", "\n"))
    if not rates:
        raise SystemExit(f"lmms-eval did not finish: {log.read_text(errors='replace')[-500:]}")
    value, unit = rates[-1]
    rate = float(value) if unit == "it/s" else 1 / float(value)
    lines = next(out.rglob("*samples*.jsonl")).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    replies = {stimuli.items[row["doc_id"]].item_id: row["filtered_resps"] for row in rows}
    return Run(wall, cpu, rate, replies)


def process(command: list[str], log: Path, threads: int, device: str) -> tuple[float, float]:
    """Wall and CPU seconds of a process without a network, and without a GPU unless it is the device; SystemExit if it fails."""
    hidden = {"HF_HUB_OFFLINE": "1"} | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})
    hidden |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
    caches = {"HF_DATASETS_CACHE": str(log.parent / "datasets"), "PROBE_CACHE": str(log.parent / "cache")}
    given = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with log.open("w") as file:
        start = time.perf_counter()
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=given | hidden | caches)
        wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        lines = log.read_text(errors="replace").strip().splitlines()
        raise SystemExit(f"{' '.join(command[:4])} failed: {lines[-1] if lines else 'no output'}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def compare(python: str, model: str, n: int, rounds: int, threads: int, device: str, folder: Path) -> None:
    """Run both in turn and print the ratios."""
    stimuli = make_set(TASK, n, 0, folder / "set")
    weights = lookup(model).source or model
    first = Trial(stimuli.items[0], stimuli.image(stimuli.items[0]))
    loaded = load_model(model)
    assert hasattr(loaded, "reply_length")
    new_tokens = loaded.reply_length(first) + SPARE_TOKENS
    tasks = folder / "tasks"
    tasks.mkdir()
    text = (HERE / "task.yaml").read_text()
    (tasks / "task.yaml").write_text(text.format(folder=stimuli.path.resolve(), new_tokens=new_tokens))
    shutil.copy(HERE / "functions.py", tasks)

    def both(limit: int, number: int) -> tuple[Run, Run]:
        taken = {}
        for which in ("probe", "lmms-eval")[:: 1 if number % 2 else -1]:
            out = folder / f"{which}_{limit}_{number}"
            if which == "probe":
                taken[which] = with_probe(model, stimuli, out, limit, threads, device)
            else:
                taken[which] = with_lmms_eval(python, weights, tasks, stimuli, out, limit, threads, device)
        return taken["probe"], taken["lmms-eval"]

    ratios: dict[str, list[float]] = {name: [] for name in NAMES}
    for number in range(rounds):
        ours, theirs = both(n, number)
        found = [ours.rate / theirs.rate, theirs.wall / ours.wall, theirs.cpu / ours.cpu]
        cpu = ["", ""]
        if n >= MANY:
            spent = [
                (run.cpu - few.cpu) / (n - FEW) for run, few in zip((ours, theirs), both(FEW, number), strict=True)
            ]
            found.append(spent[1] / spent[0])
            cpu = [f"{1 / seconds:5.0f} per CPU second, " for seconds in spent]
        for name, value in zip(NAMES, found, strict=False):
            ratios[name].append(value)
        same = sum(reply.strip() == theirs.replies.get(item, "").strip() for item, reply in ours.replies.items())
        for name, run, rate in zip(("probe", "lmms-eval"), (ours, theirs), cpu, strict=True):
            print(
                f"round {number + 1}: {name:9} {run.rate:5.0f} items/s, {rate}"
                f"{run.wall:5.1f} s ({run.wall - n / run.rate:.1f} s without the items) and {run.cpu:5.1f} CPU s in all"
            )
        print(f"round {number + 1}: the same reply on {same} of {n}", flush=True)
    for name, values in ((name, values) for name, values in ratios.items() if values):
        print(f"{name}, ratio: {statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})")


def main() -> None:
    """Read the arguments, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="the Python in whose environment lmms-eval is installed")
    parser.add_argument("--model", default="tiny", help="an alias, or the folder of a LLaVA")
    parser.add_argument("-n", type=int, default=200, help="items")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="of torch, in either process; 0: as they come")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(given.python, given.model, given.n, given.rounds, given.threads, given.device, Path(folder))


if __name__ == "__main__":
    main()
