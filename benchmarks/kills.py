"""What commands leave that are killed, and that are given again.

    python benchmarks/kills.py kill [--kills 200] [--only probing analysis] [--seed 0]
    python benchmarks/kills.py repeat

Faults are things that a folder may not be, however its command was stopped: a log that cannot be resumed or has a trial twice, a
set, adapter or report that is half and passes for whole. Facts are all that must be the same however often a command
was stopped before it ended: rows of logs, bytes of sets and reports, weights of adapters; times are no facts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cyclopts import App, Parameter

from vlm_probe.probes.cli import main as probe
from vlm_probe.probes.cli import results
from vlm_probe.probes.trials import RUN, TRIALS, RunError, read_run, read_trials
from vlm_probe.stimuli.dataset import StimulusError, StimulusSet

app = App(
    help="What commands leave that are killed, and that are given again.",
    default_parameter=Parameter(negative="", consume_multiple=True),
)
TIMES = ("latency_s", "time")
"""Columns of a trial that say when it took place, and nothing about it."""
CLOCKED = ("step_s", "simulator_s")
"""The same of the curves of a training run."""

Facts = Any
"""Compared as JSON."""


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def log_faults(folder: Path) -> list[str]:
    """A log may be cut off anywhere, and hold no trial twice."""
    if not (folder / RUN).exists():
        return []
    try:
        read_run(folder)
        keys = [row["key"] for row in read_trials(folder)] if (folder / TRIALS).exists() else []
    except RunError as error:
        return [str(error)]
    whole = (folder / TRIALS).read_bytes().count(b"\n") if keys else 0
    return [f"{folder.name}: {whole} rows of {len(keys)} trials"] if whole != len(keys) else []


def log_facts(folder: Path) -> Facts:
    """The rows of a log as they are in it, except for times, and what its `run.json` says of how it ended."""
    lines = [json.loads(line) for line in (folder / TRIALS).read_text().splitlines()]
    rows = sorted(json.dumps({k: v for k, v in line.items() if k not in TIMES}, sort_keys=True) for line in lines)
    record = read_run(folder)
    return [rows, record["status"], record["n"], record["n_errors"], "edited" in record]


def log_ended(folder: Path) -> bool:
    """Whether a log passes for whole."""
    return (folder / RUN).exists() and read_run(folder)["status"] == "finished"


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


def files(folder: Path) -> Facts:
    """Every byte of every file, except for hidden ones, which are locks and what kills have left."""
    return {
        str(path.relative_to(folder)): digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def training_faults(folder: Path) -> list[str]:
    """A training run that says that it has ended has everything."""
    if not (folder / "training.json").exists():
        return []
    made = json.loads((folder / "training.json").read_text())
    there = ("adapter_model.safetensors", "adapter_config.json", "curves.png")
    whole = all((folder / name).is_file() for name in there) and made["adapter_sha256"]
    return [] if whole else [f"{folder.name}: half an adapter passes for a whole one"]


def training_facts(folder: Path) -> Facts:
    """The adapter's bytes, and the curves except for what is measured by the clock."""
    made = json.loads((folder / "training.json").read_text())
    curves = [{k: v for k, v in row.items() if k not in CLOCKED} for row in made["curves"]]
    return [digest(folder / "adapter_model.safetensors"), made["data_sha256"], curves]


def report_faults(folder: Path) -> list[str]:
    """A folder with a report has all that belongs to it."""
    if not (folder / "report.md").exists():
        return []
    missing = [name for name in ("analysis.json", "figures", "tables") if not (folder / name).exists()]
    return [f"{folder.name}: a report without {', '.join(missing)}"] if missing else []


def study_faults(folder: Path) -> list[str]:
    """Every step that passes for done is whole."""
    faults = []
    for mark in folder.rglob("step.json"):
        with contextlib.suppress(ValueError):
            if not json.loads(mark.read_text()).get("done"):
                continue
            home = mark.parent
            faults += set_faults(home) if (home / "card.json").exists() else log_faults(home)
            if not any((home / name).exists() for name in ("card.json", TRIALS)):
                faults.append(f"{home.name}: a step without its results passes for done")
    return faults


def study_facts(folder: Path) -> Facts:
    """The logs of all runs of a study."""
    return {str(path.parent.relative_to(folder)): log_facts(path.parent) for path in sorted(folder.rglob(TRIALS))}


TICK = 0.001
"""Seconds between two looks at a child."""


def nothing() -> None:
    """What is done before a command by default."""


def start(arguments: Sequence[str], log: Path, before: Callable[[], None] = nothing) -> int:
    """Start a command line.

    Args:
        arguments: Those of `probe`.
        log: File to which its output is appended.
        before: Called in the child first, so that it can be given limits.

    Returns:
        Its process number.
    """
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
        probe(list(arguments))
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        os._exit(code)


def ended(arguments: Sequence[str], log: Path, before: Callable[[], None] = nothing) -> tuple[int, str]:
    """Run a command line to its end: its exit code, and the last line in which it says what is wrong."""
    seen = log.stat().st_size if log.exists() else 0
    code = os.waitstatus_to_exitcode(os.waitpid(start(arguments, log, before), 0)[1])
    lines = log.read_bytes()[seen:].decode(errors="replace").splitlines()
    told = [line for line in lines if line.startswith("probe: ") or "Traceback" in line]
    return code, told[-1] if told else ""


def make(*arguments: str) -> None:
    """Run a command line that must not fail. Raises SystemExit if it does."""
    with tempfile.NamedTemporaryFile() as file:
        if ended(arguments, Path(file.name))[0]:
            raise SystemExit(f"probe {' '.join(arguments)}: {Path(file.name).read_text()}")


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


def seconds_of(processes: Sequence[int]) -> float:
    """Processor time that processes have used so far, to the nanosecond where the kernel counts that."""
    used = 0
    for process in processes:
        for thread in Path(f"/proc/{process}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError, IndexError, ValueError):
                used += int(thread.read_text().split()[0])
    return used / 1e9


def kill_all(processes: Sequence[int]) -> None:
    """SIGKILL, which nobody can answer."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


ITEMS, SIZE = 60, 32
FAMILY_TICK = 0.02
"""Seconds between two looks at a child and all that it has started, which takes longer."""
LET_END = 0.25
"""Share of the starts that nobody kills, so that ends are seen even of commands that begin again after every kill."""
STUDY = """
study: luck
observers: [chance, heuristic]
sets: {n: 16, seed: 5, size: 32}
tests: {tasks: [towers-stability]}
"""


@dataclass(frozen=True)
class Campaign:
    """A command line that is killed.

    Attributes:
        name: What is killed.
        share: Of all kills.
        command: The command line that works in a folder.
        signs: Patterns of files, NAME being that of the folder; when one of a pattern comes or grows, work of that kind has begun.
        ended: Whether a folder passes for whole.
        faults: Of a folder after a kill; empty if it is what it may be.
        facts: Of a folder in which the command has ended.
        nested: Whether the command starts processes that work for it.
        once: Whether a folder that is whole is refused when the command is given again.
    """

    name: str
    share: float
    command: Callable[[Path], list[str]]
    signs: tuple[str, ...]
    ended: Callable[[Path], bool]
    faults: Callable[[Path], list[str]]
    facts: Callable[[Path], Facts]
    nested: bool = False
    once: bool = False

    def seen(self, folder: Path, sign: str) -> set[tuple[str, int]]:
        """The files of a sign, with their sizes."""
        found = set()
        for path in folder.parent.glob(sign.replace("NAME", folder.name)):
            try:
                found.add((str(path), path.stat().st_size))
            except OSError:  # it has gone meanwhile
                continue
        return found


@dataclass
class Tally:
    """What a campaign came to."""

    name: str
    kills: int = 0
    midway: int = 0
    ends: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """In a word."""
        return f"{len(self.faults)} FAULTS" if self.faults else "nothing lost, doubled or half"


def attempt(campaign: Campaign, folder: Path, log: Path, sign: str, after: float, rng: random.Random) -> int | None:
    """Run a command line, and kill it once it has worked for so long.

    Where it has started further processes, either all are killed, or it alone, and they go on.

    Args:
        campaign: Whose command.
        folder: Where it works.
        log: Where its output goes.
        sign: That work has begun.
        after: Processor time from there, seconds, after which it is killed; infinite if it is not.
        rng: Decides who is killed.

    Returns:
        Its exit code; None if it was killed.
    """
    before = campaign.seen(folder, sign)
    child = start(campaign.command(folder), log)
    for members, worked in watched(campaign, folder, sign, before, child):
        if worked >= after:
            kill_all(members if rng.random() < 0.5 else [child])
            break
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return None if code == -signal.SIGKILL else code


def undisturbed(campaign: Campaign, folder: Path, log: Path, sign: str) -> float:
    """Run a command line undisturbed: the processor time from a sign until its folder is whole, seconds.

    Args:
        campaign: Whose command.
        folder: Where it works.
        log: Where its output goes.
        sign: That work has begun.

    Raises:
        SystemExit: If the command fails.
    """
    child, last = start(campaign.command(folder), log), 0.0
    for _, worked in watched(campaign, folder, sign, set(), child):
        last = worked if not campaign.ended(folder) else last
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise SystemExit(f"{campaign.name}, undisturbed: {log.read_text()}")
    return last


def watched(
    campaign: Campaign, folder: Path, sign: str, before: set[tuple[str, int]], child: int
) -> Iterator[tuple[list[int], float]]:
    """Look at a child again and again, from the moment at which a sign is there that was not before, until it has ended.

    Yields:
        The processes that work, and the processor time that they have used since then, seconds.
    """
    begun = -1.0
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if begun >= 0 or campaign.seen(folder, sign) - before:
            members = family_of(child) if campaign.nested else [child]
            used = seconds_of(members)
            begun = used if begun < 0 else begun
            yield members, used - begun
        time.sleep(FAMILY_TICK if campaign.nested else TICK)


def run_campaign(campaign: Campaign, kills: int, place: Path, rng: random.Random) -> Tally:
    """Kill a command so often, and look after every kill.

    Args:
        campaign: What is killed.
        kills: How often.
        place: Folder for its folders.
        rng: Decides when.
    """
    tally, log = Tally(campaign.name), place / f"{campaign.name}.log"
    expected, lasts = "", dict[str, float]()
    for sign in campaign.signs:
        whole = place / f"{campaign.name}-whole"
        lasts[sign] = undisturbed(campaign, whole, log, sign)
        if expected not in ("", facts_of(campaign, whole)):
            tally.faults.append(f"{campaign.name}: undisturbed, it does not give the same twice")
        expected = facts_of(campaign, whole)
        shutil.rmtree(whole)
    number = 0
    while tally.kills < kills:
        folder, number = place / f"{campaign.name}-{number}", number + 1
        code: int | None = None
        while code is None:
            sign = rng.choice(campaign.signs)
            after = rng.uniform(0, lasts[sign])
            if tally.kills >= kills or rng.random() < LET_END:
                after = float("inf")
            code = attempt(campaign, folder, log, sign, after, rng)
            if code is None:
                tally.kills += 1
                tally.midway += not campaign.ended(folder)
                tally.faults += campaign.faults(folder)
                if campaign.once and campaign.ended(folder):
                    code = 0  # killed between the last piece of its work and its end: the next one would be refused
        tally.ends += 1
        if code != 0:
            tally.faults.append(f"{folder.name}: ended with {code}: {log.read_text().strip().splitlines()[-1][-300:]}")
        elif facts_of(campaign, folder) != expected:
            tally.faults.append(f"{folder.name}: what came out is not what comes out undisturbed")
        shutil.rmtree(folder, ignore_errors=True)
    return tally


def facts_of(campaign: Campaign, folder: Path) -> str:
    """The facts of a folder as text."""
    return json.dumps(campaign.facts(folder), sort_keys=True)


def campaigns(place: Path) -> list[Campaign]:
    """All of them, on inputs that are made in a folder."""
    stimuli, runs = place / "set", [place / "runs" / model for model in ("tiny", "heuristic")]
    make(*f"stimuli make towers-stability -n {ITEMS} --seed 3 --size {SIZE} --jobs 1 --out {stimuli}".split())
    ask = f"run --stimuli {stimuli} --no-references --model"
    for run in runs:
        make(*f"{ask} {run.name} --out {run}".split())
    (place / "study.yaml").write_text(STUDY)
    draw = f"stimuli make towers-topblock -n 16 --size {SIZE} --jobs 1 --out"
    train = (
        "train --model tiny --preset tiny --tasks towers-topblock --method sft --jobs 1 --items 16 --size 48 --batch 16"
        " --budget samples=96 --save-every 16 --out"
    )
    return [
        Campaign(
            "probing",
            0.25,
            lambda out: f"{ask} heuristic --design variants --out {out}".split(),
            ("NAME/trials.jsonl",),
            log_ended,
            log_faults,
            log_facts,
        ),
        Campaign(
            "probing-tiny",
            0.15,
            lambda out: f"{ask} tiny --batch-size 8 --out {out}".split(),
            ("NAME/trials.jsonl",),
            log_ended,
            log_faults,
            log_facts,
        ),
        Campaign(
            "generation",
            0.2,
            lambda out: f"{draw} {out}".split(),
            (".NAME.partial-*/images/*",),
            Path.exists,
            set_faults,
            files,
            once=True,
        ),
        Campaign(
            "analysis",
            0.15,
            lambda out: f"analyze {' '.join(map(str, runs))} --out {out}".split(),
            ("NAME/.partial-*/figures/*", "NAME/analysis.json"),
            lambda out: (out / "report.md").exists(),
            report_faults,
            files,
        ),
        Campaign(
            "study",
            0.15,
            lambda out: f"study run {place / 'study.yaml'} --jobs 2 --out {out}".split(),
            ("NAME/**/images/*", "NAME/**/trials.jsonl"),
            lambda out: sum(log_ended(path.parent) for path in out.rglob("trials.jsonl")) == 2,
            study_faults,
            study_facts,
            nested=True,
        ),
        Campaign(
            "training",
            0.1,
            lambda out: f"{train} {out}".split(),
            ("NAME/checkpoints/*/*",),
            lambda out: (out / "training.json").exists(),
            training_faults,
            training_facts,
        ),
    ]


@app.command
def kill(*, kills: int = 200, only: tuple[str, ...] = (), seed: int = 0) -> int:
    """What is left of runs, sets, training runs, studies and analyses whose process is killed while it works.

    A *campaign* starts a command line again and again. Once the first piece of its work is on the disk (a row, an image, a checkpoint, a
    figure), it is killed (SIGKILL) after a random part of the processor time that it takes from there to its end; now and then it may end,
    and then begins again in another folder. After every kill the folder must be what it may be, and what
    comes out in the end must be what comes out undisturbed. Exits with 1 if anything is not as it should be.

    Args:
        kills: In all.
        only: Names of campaigns; by default all.
        seed: Of the moments.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    faults = 0
    with tempfile.TemporaryDirectory() as home:
        place = Path(home)
        os.environ["PROBE_CACHE"] = str(place / "cache")
        os.chdir(place)  # where no settings lie
        print("| what was killed | kills | of these, midway | times it came to its end | then |", flush=True)
        print("|---|---|---|---|---|", flush=True)
        for campaign in campaigns(place):
            if only and campaign.name not in only:
                continue
            warm(campaign.name)
            tally = run_campaign(
                campaign, max(1, round(campaign.share * kills)), place, random.Random(f"{seed} {campaign.name}")
            )
            cells = (tally.name, tally.kills, tally.midway, tally.ends, tally.verdict)
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
            for fault in tally.faults:
                print(f"  {fault}", flush=True)
            faults += len(tally.faults)
    return int(faults > 0)


def warm(name: str) -> None:
    """Import what a campaign's command needs, once for all its children."""
    if name == "training":
        import vlm_probe.finetune.train
    if name == "probing-tiny":
        import vlm_probe.probes.models.huggingface
    if name == "analysis":
        import vlm_probe.analysis.report  # noqa: F401


ROOT = Path(__file__).parent.parent


RECORDS = ("run.json", "config.toml", ".lock", ".vlm-probe.json", "summary.json")
"""Files that say when and where something was made, or hold hashes of these."""


def differing() -> list[str]:
    """Names of the files that differ, of those that one process has made and two have."""
    with tempfile.TemporaryDirectory() as home:
        made, logs = [], []
        for number, jobs in enumerate((1, 2)):
            place = Path(home) / str(number)
            place.mkdir()
            call(place, f"stimuli make towers-stability -n 16 --size 48 --jobs {jobs} --out set")
            call(place, "run --model heuristic --stimuli set --out run --no-references")
            without_times(place / "run")
            call(place, "analyze run --out analysis")
            made.append(contents(place))
            logs.append(log_facts(place / "run"))
        names = sorted({name for files in made for name in files})
        found = [name for name in names if len({files.get(name) for files in made}) > 1]
        share(place, "run --model heuristic --stimuli set --out shared --no-references")
        logs.append(log_facts(place / "shared"))
    return found + [f"log {number}" for number, log in enumerate(logs) if log != logs[0]]


def without_times(run: Path) -> None:
    """Set the times of a log to nothing, so that what is made of it can be compared to the byte."""
    log, record = run / "trials.jsonl", json.loads((run / "run.json").read_text())
    rows: list[dict[str, Any]] = [json.loads(line) for line in log.read_text().splitlines()]
    nothing = dict(zip(TIMES, (0.0, ""), strict=True))
    log.write_text("".join(json.dumps(row | nothing) + "\n" for row in rows))
    # As the run would have left it; a log that does not fit its record is refused.
    record["trials_sha256"] = hashlib.sha256(log.read_bytes()).hexdigest()
    (run / "run.json").write_text(json.dumps(record))


def contents(place: Path) -> dict[str, str]:
    """Hash by name of everything but the records."""
    files = (path for path in sorted(place.rglob("*")) if path.is_file() and path.name not in RECORDS)
    return {str(path.relative_to(place)): digest(path) for path in files}


def call(place: Path, arguments: str, **variables: str) -> None:
    """Run a command line in a folder. Raises CalledProcessError if it fails."""
    subprocess.run(**_call(place, arguments, variables), check=True, capture_output=True)


def share(place: Path, arguments: str) -> None:
    """Run a command line by two processes. Raises RuntimeError if one fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    ranks = [
        subprocess.Popen(**_call(place, arguments, common | {"RANK": rank, "LOCAL_RANK": rank}), **pipes)
        for rank in ("0", "1")
    ]
    told = [process.communicate()[1] for process in ranks]
    if any(process.returncode for process in ranks):
        raise RuntimeError(f"two processes on one run failed: {' '.join(told)[-500:]}")


def _call(place: Path, arguments: str, variables: dict[str, str]) -> dict[str, Any]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "PROBE_CACHE": str(place / "cache")} | variables
    return {"args": [sys.executable, "-m", "vlm_probe", *arguments.split()], "cwd": place, "env": environment}


@app.command
def repeat() -> int:
    """Whether the same commands give the same bytes, the second time, and with two processes in place of one.

    A set, a run of it, and an analysis of the run with its tables and figures; the run is made again by two processes that share it, as
    `accelerate launch` starts them. What may differ: times in logs, and the records of when and where (`run.json`); of two processes that
    share a run, the order of the rows. Prints what differs, and exits with 1 if anything does.
    """
    found = differing()
    print("\n".join(found) or "everything is the same, byte for byte but for times")
    return int(bool(found))


if __name__ == "__main__":
    app()
