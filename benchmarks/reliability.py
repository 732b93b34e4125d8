"""Bad luck: what is left of runs, sets, trainings, studies and analyses that are killed, or whose disk fills up.

    python benchmarks/reliability.py [--kills 200] [--only probing analysis] [--seed 0]

A *campaign* starts a command line of `probe` again and again and kills it (SIGKILL) at a random moment of its processor time, until
it has been killed so often; whenever it comes to its end, it begins anew in another folder. After every kill the folder must be what
it may be, and what comes out at the end must be what comes out undisturbed: nothing lost, nothing doubled, no half folder that
passes for a whole one. Commands run in children of this process, forked when everything is imported, so that hundreds of
kills cost minutes. The *mishaps* come after: a full disk, a folder that cannot be written, a clock that jumps, two processes on one folder.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
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

from probes.cli import main as probe
from probes.cli import results
from probes.trials import RUN, RunError, read_run, read_trials
from stimuli.dataset import StimulusError, StimulusSet
from stimuli.generate import make_set

ITEMS, SIZE = 240, 32
TICK = 0.001
"""Seconds between two looks at how much processor time a command has used."""
TIMES = ("latency_s", "time")
"""Columns of a trial that say when it took place, and nothing about it."""
STUDY = """
study: luck
observers: [chance, heuristic]
sets: {n: 16, seed: 5, size: 32}
tests: {tasks: [towers-stability]}
"""

Facts = Any
"""What must be the same however often a command was killed; compared as JSON."""


@dataclass(frozen=True)
class Campaign:
    """A command line that is killed.

    Attributes:
        name: What is killed.
        share: Of all kills.
        command: The command line that works in a folder.
        allowed: Faults of a folder after a kill; empty if it is what it may be.
        facts: Of a folder in which the command has ended.
    """

    name: str
    share: float
    command: Callable[[Path], list[str]]
    allowed: Callable[[Path], list[str]]
    facts: Callable[[Path], Facts]


@dataclass
class Tally:
    """What a campaign came to."""

    name: str
    kills: int = 0
    ends: int = 0
    faults: list[str] | None = None

    @property
    def verdict(self) -> str:
        """In a word."""
        return f"{len(self.faults)} FAULTS" if self.faults else "nothing lost, doubled or half"


def start(arguments: list[str], log: Path, before: Callable[[], None] = lambda: None) -> int:
    """Start a command line in a child; its process number."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setsid()
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        before()
        if arguments[0] == "run":
            # Drawing takes longer than everything else together, and nothing can be lost by it.
            results.write_figure = lambda run, references: None
        probe(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        os._exit(code)


def family_of(process: int) -> list[int]:
    """A process and all that it has started, directly or not."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    found = [process]
    for member in found:
        found += parents.get(member, [])
    return found


def seconds_of(processes: list[int]) -> float:
    """Processor time that processes have used so far, to the nanosecond where the kernel counts that."""
    used = 0
    for process in processes:
        for thread in Path(f"/proc/{process}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError, IndexError, ValueError):
                used += int(thread.read_text().split()[0])
    return used / 1e9


def attempt(arguments: list[str], log: Path, limit: float, rng: random.Random) -> int | None:
    """Run a command line, and kill it once it has used so much processor time.

    Where it has started further processes, either all are killed, or it alone, and they go on.

    Returns:
        Its exit code; None if it was killed.
    """
    child = start(arguments, log)
    nested = arguments[0] == "study"
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        members = family_of(child) if nested else [child]
        if seconds_of(members) >= limit:
            for process in members if rng.random() < 0.5 else [child]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(TICK)


def run_campaign(campaign: Campaign, kills: int, place: Path, rng: random.Random) -> Tally:
    """Kill a command so often, and look after every kill."""
    tally, log = Tally(campaign.name, faults=[]), place / f"{campaign.name}.log"
    faults: list[str] = tally.faults or []
    tally.faults = faults
    whole = place / f"{campaign.name}-whole"
    child = start(campaign.command(whole), log)
    used, ended, status = 0.0, 0, 0
    while not ended:
        used = max(used, seconds_of(family_of(child)))
        time.sleep(TICK)
        ended, status = os.waitpid(child, os.WNOHANG)
    if status:
        raise SystemExit(f"{campaign.name}, undisturbed: {log.read_text()}")
    expected = campaign.facts(whole)
    number = 0
    while tally.kills < kills:
        folder, number = place / f"{campaign.name}-{number}", number + 1
        while True:
            code = attempt(campaign.command(folder), log, rng.uniform(0, used) if tally.kills < kills else 1e9, rng)
            if code is not None:
                break
            tally.kills += 1
            faults += campaign.allowed(folder)
        tally.ends += 1
        if code != 0:
            faults.append(f"{folder.name}: ended with {code}: {log.read_text().strip().splitlines()[-1][-300:]}")
        elif json.dumps(campaign.facts(folder), sort_keys=True) != json.dumps(expected, sort_keys=True):
            faults.append(f"{folder.name}: what came out is not what comes out undisturbed")
        shutil.rmtree(folder, ignore_errors=True)
    return tally


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def log_facts(folder: Path) -> Facts:
    """The rows of a log as they are in it, but for times, and what its `run.json` says of how it ended."""
    lines = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    rows = sorted(json.dumps({k: v for k, v in line.items() if k not in TIMES}, sort_keys=True) for line in lines)
    record = read_run(folder)
    return [rows, record["status"], record["n"], record["n_errors"], "edited" in record]


def log_faults(folder: Path) -> list[str]:
    """A log may be cut off anywhere, and hold no trial twice."""
    if not (folder / RUN).exists():
        return []
    try:
        read_run(folder)
        keys = [row["key"] for row in read_trials(folder)] if (folder / "trials.jsonl").exists() else []
    except RunError as error:
        return [str(error)]
    whole = (folder / "trials.jsonl").read_bytes().count(b"\n") if keys else 0
    return [f"{folder.name}: {whole} rows of {len(keys)} trials"] if whole != len(keys) else []


def set_facts(folder: Path) -> Facts:
    """Every byte of a set."""
    return {str(path.relative_to(folder)): digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def set_faults(folder: Path) -> list[str]:
    """A set is whole or absent."""
    if not folder.exists():
        return []
    try:
        opened = StimulusSet.load(folder)
        for item in opened.items:
            opened.image(item)
    except StimulusError as error:
        return [str(error)]
    return []


def training_facts(folder: Path) -> Facts:
    """The adapter's bytes, and the curves but for what is measured by the clock."""
    made = json.loads((folder / "training.json").read_text())
    curves = [{k: v for k, v in row.items() if k not in ("step_s", "simulator_s")} for row in made["curves"]]
    return [digest(folder / "adapter_model.safetensors"), made["data_sha256"], curves]


def training_faults(folder: Path) -> list[str]:
    """A training that says that it has ended has everything."""
    if not (folder / "training.json").exists():
        return []
    made = json.loads((folder / "training.json").read_text())
    there = all(
        (folder / name).is_file() for name in ("adapter_model.safetensors", "adapter_config.json", "curves.png")
    )
    return [] if there and made["adapter_sha256"] else [f"{folder.name}: half an adapter passes for a whole one"]


def report_facts(folder: Path) -> Facts:
    """Every byte of a report."""
    return {name: found for name, found in set_facts(folder).items() if not name.startswith(".")}


def report_faults(folder: Path) -> list[str]:
    """A folder with a report has all that belongs to it."""
    if not (folder / "report.md").exists():
        return []
    missing = [name for name in ("analysis.json", "figures", "tables") if not (folder / name).exists()]
    return [f"{folder.name}: a report without {', '.join(missing)}"] if missing else []


def study_facts(folder: Path) -> Facts:
    """The logs of all runs of a study."""
    return {
        str(path.parent.relative_to(folder)): log_facts(path.parent) for path in sorted(folder.rglob("trials.jsonl"))
    }


def study_faults(folder: Path) -> list[str]:
    """Every step that passes for done is whole."""
    faults = []
    for mark in folder.rglob("step.json"):
        with contextlib.suppress(ValueError):
            if not json.loads(mark.read_text()).get("done"):
                continue
            home = mark.parent
            faults += set_faults(home) if (home / "card.json").exists() else log_faults(home)
            if not any((home / name).exists() for name in ("card.json", "trials.jsonl")):
                faults.append(f"{home.name}: a step without its results passes for done")
    return faults


def campaigns(place: Path) -> list[Campaign]:
    """All of them, on inputs that are made in a folder."""
    stimuli = make_set("towers-stability", ITEMS, 3, place / "set", size=SIZE).path
    for model in ("chance", "heuristic"):
        _finish(
            [
                "run",
                "--model",
                model,
                "--stimuli",
                str(stimuli),
                "--out",
                str(place / "runs" / model),
                "--no-references",
            ]
        )
    (place / "study.yaml").write_text(STUDY)
    common = ["--model", "tiny", "--preset", "tiny", "--tasks", "towers-topblock", "--method", "sft", "--jobs", "1"]
    small = ["--items", "16", "--size", "48", "--batch", "16", "--budget", "samples=160", "--save-every", "16"]
    return [
        Campaign(
            "probing",
            0.3,
            lambda out: [
                "run",
                "--model",
                "heuristic",
                "--stimuli",
                str(stimuli),
                "--out",
                str(out),
                "--no-references",
            ],
            log_faults,
            log_facts,
        ),
        Campaign(
            "generation",
            0.25,
            lambda out: [
                "stimuli",
                "make",
                "towers-topblock",
                "-n",
                "16",
                "--size",
                "32",
                "--jobs",
                "1",
                "--out",
                str(out),
            ],
            set_faults,
            set_facts,
        ),
        Campaign(
            "analysis",
            0.2,
            lambda out: [
                "analyze",
                *(str(place / "runs" / m) for m in ("chance", "heuristic")),
                "--out",
                str(out),
            ],
            report_faults,
            report_facts,
        ),
        Campaign(
            "training",
            0.15,
            lambda out: ["train", *common, *small, "--out", str(out)],
            training_faults,
            training_facts,
        ),
        Campaign(
            "study",
            0.1,
            lambda out: ["study", "run", str(place / "study.yaml"), "--jobs", "2", "--out", str(out)],
            study_faults,
            study_facts,
        ),
    ]


def _finish(arguments: list[str]) -> None:
    with tempfile.NamedTemporaryFile() as log:
        _, status = os.waitpid(start(arguments, Path(log.name)), 0)
        if status:
            raise SystemExit(f"probe {' '.join(arguments)}: {Path(log.name).read_text()}")


def mishaps(place: Path) -> Iterator[tuple[str, str, bool]]:
    """What goes wrong beside kills: what happens, what `probe` says, and whether it is as it should be."""
    stimuli, whole, log = place / "set", place / "runs" / "heuristic", place / "mishaps.log"
    expected = log_facts(whole)

    def command(out: Path) -> list[str]:
        return ["run", "--model", "heuristic", "--stimuli", str(stimuli), "--out", str(out), "--no-references"]

    def ended(arguments: list[str], before: Callable[[], None] = lambda: None) -> tuple[int, str]:
        log.write_text("")
        _, status = os.waitpid(start(arguments, log, before), 0)
        told = [line for line in log.read_text().splitlines() if line.startswith("probe: ") or "Traceback" in line]
        return os.waitstatus_to_exitcode(status), told[-1] if told else ""

    def bounded() -> None:
        # Beyond it writing fails, as on a full disk; the signal that comes with it is ignored by Python.
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    full = place / "full"
    code, told = ended(command(full), bounded)
    kept = len(read_trials(full))
    again, _ = ended(command(full))
    right = code == 1 and "rows written so far are kept" in told and again == 0 and log_facts(full) == expected
    yield "no room for the log", f"exit {code}, {kept} of {ITEMS} rows kept; finished once there is room", right

    with _mounted(place / "small", "size=256k") as small:
        if small is not None:
            code, told = ended(
                ["stimuli", "make", "towers-topblock", "-n", "64", "--jobs", "1", "--out", str(small / "set")]
            )
            right = code == 1 and "No space left" in told and not (small / "set").exists() and not any(small.iterdir())
            yield "a disk that fills up while a set is made", f"exit {code}: {told[:90]}", right
            code, told = ended(command(small / "run"))
            filled = log_faults(small / "run")
            yield (
                "a disk that fills up during a run",
                f"exit {code}: {told[:90] or 'it fits'}",
                code in (0, 1) and not filled,
            )

    with _mounted(place / "readonly", "size=1m", read_only=True) as fixed:
        if fixed is not None:
            for name, arguments in {
                "run": command(fixed / "run"),
                "analyze": ["analyze", str(whole), "--out", str(fixed / "analysis")],
                "report": ["report", str(whole), "--out", str(fixed / "page.html")],
                "stimuli make": ["stimuli", "make", "towers-topblock", "-n", "8", "--out", str(fixed / "set")],
            }.items():
                code, told = ended(arguments)
                yield (
                    f"a folder that cannot be written: probe {name}",
                    f"exit {code}: {told[:90]}",
                    code == 1 and bool(told),
                )

    def unsteady() -> None:
        import probes.run as module

        rng = random.Random(0)

        class Jumping(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return datetime.datetime.now(tz) + datetime.timedelta(seconds=rng.uniform(-86_400, 86_400))

        module.datetime = Jumping  # type: ignore[attr-defined]
        real = time.time
        time.time = lambda: real() + rng.uniform(-86_400, 86_400)

    code, _ = ended(command(place / "clock"), unsteady)
    right = code == 0 and log_facts(place / "clock") == expected
    yield "a clock that jumps by up to a day", f"exit {code}, the same rows", right

    for name, arguments in {
        "run": command(place / "twice"),
        "analyze": ["analyze", *map(str, (place / "runs").iterdir()), "--out", str(place / "twice-analysis")],
    }.items():
        first = start(arguments, log)
        lock = Path(arguments[-1] if name == "analyze" else arguments[-2]) / ".lock"
        while not lock.exists() and not os.waitpid(first, os.WNOHANG)[0]:
            time.sleep(TICK)
        os.kill(first, signal.SIGSTOP)
        code, told = ended(arguments)
        os.kill(first, signal.SIGCONT)
        ends = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
        right = code == 1 and "another process" in told and ends == 0
        yield f"two processes on one folder: probe {name}", f"the second: exit {code}, the first: {ends}", right


@contextlib.contextmanager
def _mounted(folder: Path, options: str, read_only: bool = False) -> Iterator[Path | None]:
    """A small file system in memory; None where one may not make any."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options + (",ro" if read_only else ""), "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield folder if done else None
    finally:
        if done:
            subprocess.run(["umount", str(folder)], check=True)


def main() -> int:
    """Run them and print what came of it; 1 if anything is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    faults = 0
    with tempfile.TemporaryDirectory() as home:
        place = Path(home)
        os.environ["PROBE_CACHE"] = str(place / "cache")
        os.chdir(place)  # where no settings lie
        print("| what was killed | kills | times it came to its end | then |\n|---|---|---|---|", flush=True)
        for campaign in campaigns(place):
            if options.only and campaign.name not in options.only:
                continue
            kills = max(1, round(campaign.share * options.kills))
            if campaign.name == "training":
                import finetune.train  # noqa: F401  # before the fork, so that it costs once
            tally = run_campaign(campaign, kills, place, random.Random(f"{options.seed} {campaign.name}"))
            print(f"| {tally.name} | {tally.kills} | {tally.ends} | {tally.verdict} |", flush=True)
            for fault in tally.faults or ():
                print(f"  {fault}", flush=True)
            faults += len(tally.faults or ())
        if not options.only or "mishaps" in options.only:
            print("\n| mishap | what happens | as it should be |\n|---|---|---|", flush=True)
            for what, said, right in mishaps(place):
                print(f"| {what} | {said.replace(str(place), '...')} | {'yes' if right else 'NO'} |", flush=True)
                faults += not right
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
