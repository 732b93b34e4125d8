"""Mishaps: full disks, folders that cannot be written, a clock that jumps, two processes on one folder, logs edited by hand.

    python benchmarks/mishaps.py [--only full readonly]

Each makes something go wrong while a command line of `probe` works, and looks at what the command says and leaves. A disk is
full in two ways: a file system in memory (tmpfs) without room, on which writing fails with ENOSPC, and a limit to the size of a
file, with EFBIG. Where one may not mount anything, the former and the folders on a read-only file system are left out, and this is said.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import kills
from benchmarks.kills import TICK, ended, make, start
from vlm_probe.probes.trials import read_trials

ITEMS, SIZE = 60, 32
TRAIN = (
    "train --model tiny --preset tiny --tasks towers-topblock --method sft --jobs 1 --items 16 --size 48 --batch 16"
    " --budget samples=48 --save-every 16 --out"
)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a mishap: what went wrong, what happened then, and whether that is as it should be."""

    mishap: str
    then: str
    right: bool


@dataclass(frozen=True)
class Bench:
    """Where mishaps happen: a folder with a set, and runs of it that nothing happened to."""

    place: Path

    @property
    def log(self) -> Path:
        """Where commands print."""
        return self.place / "mishaps.log"

    @property
    def whole(self) -> Path:
        """A run that nothing happened to."""
        return self.place / "runs" / "heuristic"

    def run(self, out: Path, model: str = "heuristic") -> list[str]:
        """The command line of a run."""
        return f"run --model {model} --stimuli {self.place / 'set'} --no-references --out {out}".split()

    def draw(self, out: Path) -> list[str]:
        """The command line that makes a set."""
        return f"stimuli make towers-topblock -n 64 --jobs 1 --size 224 --out {out}".split()

    def analyze(self, out: Path) -> list[str]:
        """The command line of an analysis."""
        return f"analyze {self.place / 'runs'} --out {out}".split()

    def train(self, out: Path) -> list[str]:
        """The command line of a training run."""
        return f"{TRAIN} {out}".split()

    def ended(self, arguments: list[str], before: Callable[[], None] = lambda: None) -> tuple[int, str]:
        """Run to the end: exit code and what was said to be wrong, without the names of folders here."""
        code, told = ended(arguments, self.log, before)
        return code, told.replace(str(self.place), "...").removeprefix("probe: ")[:140]


def full(bench: Bench) -> Iterator[Outcome]:
    """A disk without room, and then with it."""
    commands: dict[str, tuple[str, Callable[[Path], list[str]], Callable[[Path], list[str]]]] = {
        "run": ("32k", bench.run, kills.log_faults),
        "stimuli make": ("256k", bench.draw, kills.set_faults),
        "analyze": ("64k", bench.analyze, kills.report_faults),
    }
    for name, (size, command, faults) in commands.items():
        with mounted(bench.place / f"full-{name.split()[0]}", f"size={size}") as disk:
            if disk is None:
                yield Outcome(f"a disk that fills up: probe {name}", "not tried: nothing may be mounted here", True)
                continue
            code, told = bench.ended(command(disk / "out"))
            right = code == 1 and "No space left" in told and not faults(disk / "out")
            if name == "run":
                told += f"; {len(read_trials(disk / 'out'))} of {ITEMS} rows kept"
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            again, _ = bench.ended(command(disk / "out"))
            right = right and again == 0 and not faults(disk / "out")
            if name == "run":
                right = right and kills.log_facts(disk / "out") == kills.log_facts(bench.whole)
        yield Outcome(f"a disk that fills up: probe {name}", f"exit {code}: {told}; with room, exit {again}", right)


def bounded(bench: Bench) -> Iterator[Outcome]:
    """A file that may not grow beyond a size."""
    commands: dict[str, tuple[int, Callable[[Path], list[str]], Callable[[Path], list[str]]]] = {
        "run": (40_000, bench.run, kills.log_faults),
        "train": (300_000, bench.train, kills.training_faults),  # the items fit, the adapter does not
    }
    for name, (size, command, faults) in commands.items():
        out = bench.place / f"bounded-{name}"

        def limit(size: int = size) -> None:
            # Beyond it writing fails, as on a full disk; the signal that comes with it is ignored by Python.
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

        code, told = bench.ended(command(out), limit)
        right = code == 1 and "File too large" in told and not faults(out)
        if name == "run":
            told += f"; {len(read_trials(out))} of {ITEMS} rows kept"
        again, _ = bench.ended(command(out))
        right = right and again == 0 and not faults(out)
        if name == "run":
            right = right and kills.log_facts(out) == kills.log_facts(bench.whole)
        yield Outcome(f"a file that may not grow: probe {name}", f"exit {code}: {told}; with room, exit {again}", right)


def readonly(bench: Bench) -> Iterator[Outcome]:
    """A file system that cannot be written, which binds root as well."""
    with mounted(bench.place / "readonly", "size=1m,ro") as disk:
        if disk is None:
            yield Outcome("a folder that cannot be written", "not tried: nothing may be mounted here", True)
            return
        for name, command in {
            "run": bench.run(disk / "run"),
            "analyze": bench.analyze(disk / "analysis"),
            "report": ["report", str(bench.whole), "--out", str(disk / "page.html")],
            "stimuli make": bench.draw(disk / "set"),
            "train": bench.train(disk / "adapter"),
        }.items():
            code, told = bench.ended(command)
            right = code == 1 and "readonly" in told and "Traceback" not in told
            yield Outcome(f"a folder that cannot be written: probe {name}", f"exit {code}: {told}", right)


def clock(bench: Bench) -> Iterator[Outcome]:
    """A clock that goes forth and back by up to a day whenever it is looked at."""

    def unsteady() -> None:
        import vlm_probe.probes.run as module

        rng, real = random.Random(0), time.time

        class Jumping(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return datetime.datetime.now(tz) + datetime.timedelta(seconds=rng.uniform(-86_400, 86_400))

        module.datetime = Jumping  # type: ignore[attr-defined]
        time.time = lambda: real() + rng.uniform(-86_400, 86_400)

    out = bench.place / "clock"
    code, _ = bench.ended(bench.run(out), unsteady)
    same = kills.log_facts(out) == kills.log_facts(bench.whole)
    times = [row["time"] for row in read_trials(out)]
    jumped = times != sorted(times)
    yield Outcome(
        "a clock that jumps by up to a day", f"exit {code}, the same rows but for times", code == 0 and same and jumped
    )


def twice(bench: Bench) -> Iterator[Outcome]:
    """A second process on a folder in which one is at work."""
    for name, command in {
        "run": bench.run(bench.place / "twice"),
        "analyze": bench.analyze(bench.place / "twice-analysis"),
        "train": bench.train(bench.place / "twice-adapter"),
    }.items():
        first = start(command, bench.log)
        lock = Path(command[-1]) / ".lock"
        while not lock.exists() and os.waitid(os.P_PID, first, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(TICK)
        os.kill(first, signal.SIGSTOP)
        code, told = bench.ended(command)
        os.kill(first, signal.SIGCONT)
        ends = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
        right = code == 1 and "another process" in told and ends == 0
        yield Outcome(
            f"two processes on one folder: probe {name}", f"the second: exit {code}: {told}; the first: {ends}", right
        )


def edited(bench: Bench) -> Iterator[Outcome]:
    """A log in which somebody has made a wrong answer right."""
    out = bench.place / "edited"
    shutil.copytree(bench.whole, out)
    lines = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
    wrong = next(row for row in lines if not row["correct"])
    wrong["correct"] = wrong["success"] = True
    (out / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    for name, command in {
        "analyze": f"analyze {out} --out {bench.place / 'edited-analysis'}".split(),
        "report": f"report {out} --out {bench.place / 'edited.html'}".split(),
    }.items():
        code, told = bench.ended(command)
        yield Outcome(f"a log edited by hand: probe {name}", f"exit {code}: {told}", code == 1 and "edited" in told)


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path | None]:
    """A small file system in memory; None where one may not make any."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield folder if done else None
    finally:
        if done:
            subprocess.run(["umount", str(folder)], check=True)


MISHAPS: dict[str, Callable[[Bench], Iterator[Outcome]]] = {
    "full": full,
    "bounded": bounded,
    "readonly": readonly,
    "clock": clock,
    "twice": twice,
    "edited": edited,
}


def main() -> int:
    """Let them happen and print the outcome; 1 if anything is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", nargs="*", default=list(MISHAPS), choices=MISHAPS)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    wrong = 0
    with tempfile.TemporaryDirectory() as home:
        bench = Bench(Path(home))
        os.environ["PROBE_CACHE"] = str(bench.place / "cache")
        os.chdir(home)  # where no settings lie
        make(*f"stimuli make towers-stability -n {ITEMS} --seed 3 --size {SIZE} --jobs 1 --out set".split())
        for model in ("heuristic", "tiny"):
            make(*bench.run(bench.place / "runs" / model, model))
        import vlm_probe.analysis.report  # before the forks, so that it costs once
        import vlm_probe.finetune.train  # noqa: F401

        print("| mishap | what happens | as it should be |\n|---|---|---|", flush=True)
        for name in options.only:
            for outcome in MISHAPS[name](bench):
                print(f"| {outcome.mishap} | {outcome.then} | {'yes' if outcome.right else 'NO'} |", flush=True)
                wrong += not outcome.right
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
