"""Kills: what is left of runs, sets, trainings, studies and analyses whose process is killed while it works.

    python benchmarks/kills.py [--kills 200] [--only probing analysis] [--seed 0]

A *campaign* starts a command line again and again. Once the first piece of its work is on the disk (a row, a picture, a checkpoint, a
figure), it is killed (SIGKILL) after a random part of the processor time that it takes from there to its end; now and then it may end,
and then begins anew in another folder. After every kill the folder must be what it may be, and what
comes out in the end must be what comes out undisturbed (`benchmarks/leftovers.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import leftovers
from benchmarks.commands import TICK, family_of, kill, make, seconds_of, start

ITEMS, SIZE = 60, 32
FAMILY_TICK = 0.02
"""Seconds between two looks at a child and all that it has started, which takes longer."""
LET_END = 0.25
"""Share of the starts that nobody kills, so that ends are seen even of commands that begin anew after every kill."""
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
    """

    name: str
    share: float
    command: Callable[[Path], list[str]]
    signs: tuple[str, ...]
    ended: Callable[[Path], bool]
    faults: Callable[[Path], list[str]]
    facts: Callable[[Path], leftovers.Facts]
    nested: bool = False

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
            kill(members if rng.random() < 0.5 else [child])
            break
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return None if code == -signal.SIGKILL else code


def measure(campaign: Campaign, folder: Path, log: Path, sign: str) -> float:
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
        lasts[sign] = measure(campaign, whole, log, sign)
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
            leftovers.log_ended,
            leftovers.log_faults,
            leftovers.log_facts,
        ),
        Campaign(
            "probing-tiny",
            0.15,
            lambda out: f"{ask} tiny --batch-size 8 --out {out}".split(),
            ("NAME/trials.jsonl",),
            leftovers.log_ended,
            leftovers.log_faults,
            leftovers.log_facts,
        ),
        Campaign(
            "generation",
            0.2,
            lambda out: f"{draw} {out}".split(),
            (".NAME.partial-*/images/*",),
            Path.exists,
            leftovers.set_faults,
            leftovers.files,
        ),
        Campaign(
            "analysis",
            0.15,
            lambda out: f"analyze {' '.join(map(str, runs))} --out {out}".split(),
            ("NAME/.partial-*/figures/*", "NAME/analysis.json"),
            lambda out: (out / "report.md").exists(),
            leftovers.report_faults,
            leftovers.files,
        ),
        Campaign(
            "study",
            0.15,
            lambda out: f"study run {place / 'study.yaml'} --jobs 2 --out {out}".split(),
            ("NAME/**/images/*", "NAME/**/trials.jsonl"),
            lambda out: sum(leftovers.log_ended(path.parent) for path in out.rglob("trials.jsonl")) == 2,
            leftovers.study_faults,
            leftovers.study_facts,
            nested=True,
        ),
        Campaign(
            "training",
            0.1,
            lambda out: f"{train} {out}".split(),
            ("NAME/checkpoints/*/*",),
            lambda out: (out / "training.json").exists(),
            leftovers.training_faults,
            leftovers.training_facts,
        ),
    ]


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
        print("| what was killed | kills | of these, midway | times it came to its end | then |", flush=True)
        print("|---|---|---|---|---|", flush=True)
        for campaign in campaigns(place):
            if options.only and campaign.name not in options.only:
                continue
            warm(campaign.name)
            kills = max(1, round(campaign.share * options.kills))
            tally = run_campaign(campaign, kills, place, random.Random(f"{options.seed} {campaign.name}"))
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


if __name__ == "__main__":
    sys.exit(main())
