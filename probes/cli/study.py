"""`probe study`: a whole experiment from one file: planned, registered, run cell by cell, watched."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from vlm_probe.probes.cli.settings import Config, Json
from vlm_probe.stimuli.ranges import PROCESSES, whole

if TYPE_CHECKING:
    from vlm_probe.paper.study.cells import Cell
    from vlm_probe.paper.study.design import Design
    from vlm_probe.paper.study.drive import Event
    from vlm_probe.paper.study.launch import Launch
    from vlm_probe.paper.study.overview import Overview
    from vlm_probe.paper.study.pools import Pool
    from vlm_probe.paper.study.store import Store

app = App(name="study", help="Plan, register, run and watch a whole study, declared in one file.")

File = Annotated[Path, Parameter(name="STUDY", help="The YAML file that declares the study.")]
Out = Annotated[Path | None, Parameter(help="Folder of the study; by default studies/NAME.")]
Only = Annotated[
    tuple[str, ...],
    Parameter(help="Cells whose names match, such as 'adapters/*' or 'runs/*_sft_*'; may be repeated."),
]
Cells = Annotated[int, Parameter(name="--jobs", validator=whole(1, 10_000))]
REDRAW = 2.0
"""Seconds between two looks of a live table."""


@app.command
def plan(
    study: File,
    /,
    *,
    out: Out = None,
    jobs: Cells = 1,
    pilot: Annotated[bool, Parameter(negative=())] = False,
    json: Json = False,
    config: Config = None,
) -> int:
    """Print the cells of a study, the number of trials, and what they will take in time and on the disk.

    Args:
        jobs: Cells that will be done at a time.
        pilot: First time a small part of every kind of cell, as far as that was not done before.
    """
    from vlm_probe.paper.study.cost import CostModel
    from vlm_probe.paper.study.overview import Plan, look_at
    from vlm_probe.probes.cli.console import show, show_json, tell
    from vlm_probe.probes.cli.resources import cores

    design, cells, store = _open(study, out)
    if pilot:
        from vlm_probe.paper.study.cost import pilot as time_it

        for line in time_it(cells, store, design.sets.size, max(1, cores() // jobs)):
            tell(f"could not be timed: {line}")
    made = Plan(design, cells, CostModel.of(cells, store), look_at(cells, store), jobs)
    if json:
        show_json(made.to_dict())
    else:
        show(made)
    return 0


@app.command
def freeze(
    study: File,
    /,
    *,
    out: Out = None,
    jobs: Cells = 1,
    again: Annotated[bool, Parameter(negative=())] = False,
    json: Json = False,
    config: Config = None,
) -> int:
    """Register a study before it is run: its design, planned contrasts and items, under one hash, in STUDY/registration.json.

    The test sets are made first, if they are not there. Publish the hash where its date can be checked. `probe analyze
    --registered` then tells what was planned from what was not.

    Args:
        jobs: Sets that are made at a time.
        again: Register a design that has changed since; the earlier record is kept.
    """
    from vlm_probe.paper.study.drive import drive
    from vlm_probe.paper.study.fields import StudyError
    from vlm_probe.paper.study.pools import LocalPool
    from vlm_probe.paper.study.registration import REGISTRATION, register
    from vlm_probe.probes.cli.console import show, show_json

    design, cells, store = _open(study, out)
    sets = [cell for cell in cells if cell.kind == "sets"]
    with store.held() as output:
        pool = LocalPool(store, jobs)
        moved = store.tidy(cells, output)
        with _Watch(sets, store, pool, moved) as watch:
            drive(sets, store, pool, watch)
        failures = _overview(sets, store, jobs).failures
        if failures:
            raise StudyError(f"{failures[0].step} could not be made: {failures[0].reason}")
        record = register(design, cells, store, output, again)
    if json:
        show_json(record)
        return 0
    n = sum(entry["n"] for entry in record["sets"].values())
    show(f"{design.name}: {len(design.contrasts)} contrasts and {n} items of {len(record['sets'])} sets are registered")
    show(f"in {store.folder / REGISTRATION}, on {record['registered']}")
    show(f"SHA-256 {record['sha256']}")
    if record["done_before"]:
        show(f"{len(record['done_before'])} steps were begun before that, which is in the record as well")
    return 0


@app.command
def run(
    study: File,
    /,
    *,
    out: Out = None,
    jobs: Cells = 1,
    executor: Literal["local", "slurm", "rehearsal"] = "local",
    partition: str = "",
    time_limit: Annotated[int, Parameter(name="--time", validator=whole(1, 1_000_000))] = 240,
    gpus: Annotated[int, Parameter(validator=whole(0, 1024))] = 0,
    launch: str = "",
    sbatch: tuple[str, ...] = (),
    only: Only = (),
    json: Json = False,
    config: Config = None,
) -> int:
    """Do the cells that are missing. The same command again resumes where it was stopped, and tries failed cells again.

    With `--only`, do the cells of these names, and before them what they need.

    Exits with 3 if some cells failed: they are listed with the reason and the command that repeats them by hand.

    Args:
        jobs: Cells at a time.
        executor: `local`: processes of this machine. `slurm`: one job per cell. `rehearsal`: the same jobs on this machine, without
            Slurm.
        partition: Of Slurm.
        time_limit: Minutes that a job may take; a cell that takes longer is put back into the queue and goes on.
        gpus: GPUs of a job, or of a cell that is launched.
        launch: Start training runs and runs with accelerate, by one of the configurations `single-gpu`, `multi-gpu` and `zero3`, or by a
            file of your own.
        sbatch: Further options of sbatch, such as `cpus_per_task=8` or `mem=32G`; may be repeated.
    """
    from vlm_probe.paper.study.cells import matching, with_needs
    from vlm_probe.paper.study.drive import drive
    from vlm_probe.paper.study.launch import find_launch
    from vlm_probe.probes.cli.console import show_json
    from vlm_probe.probes.cli.errors import FAILED_TRIALS, SUCCESS

    design, cells, store = _open(study, out)
    wanted = with_needs(cells, matching(cells, only))
    _tell_deviations(design, cells, store)
    # A polite end is an interruption, as it is for cells: a driver in the background does not hear Ctrl-C.
    with store.held() as output, _interrupted_by(signal.SIGTERM):
        pool = _pool(store, executor, jobs, partition, time_limit, gpus, sbatch, find_launch(launch, gpus))
        moved = store.tidy(cells, output)
        with _Watch(wanted, store, pool, moved) as watch:
            drive(wanted, store, pool, watch)
    overview = _overview(wanted, store, jobs)
    if json:
        show_json(overview.to_dict())
    else:
        _show(overview)
    return SUCCESS if overview.count("done") == len(wanted) else FAILED_TRIALS


@app.command
def status(
    study: File,
    /,
    *,
    out: Out = None,
    jobs: Cells = 1,
    watch: Annotated[bool, Parameter(negative=())] = False,
    only: Only = (),
    json: Json = False,
    config: Config = None,
) -> int:
    """Show how far a study is: cells done, at work, failed and missing, the time they took, and what is left.

    Args:
        jobs: Cells that are done at a time, for the time that is left.
        watch: Draw the table again every two seconds, until nothing is at work.
    """
    from vlm_probe.paper.study.cells import matching
    from vlm_probe.probes.cli.console import show_json

    design, all_cells, store = _open(study, out)
    cells = matching(all_cells, only)
    _tell_deviations(design, all_cells, store)
    if watch:
        from rich.live import Live

        with Live(_overview(cells, store, jobs), auto_refresh=False) as live:
            while (now := _overview(cells, store, jobs)).count("running"):
                live.update(now, refresh=True)
                time.sleep(REDRAW)
            live.update(now, refresh=True)
        return 0
    if json:
        show_json(_overview(cells, store, jobs).to_dict())
    else:
        _show(_overview(cells, store, jobs))
    return 0


@app.command
def pack(
    study: File,
    /,
    *,
    to: Path,
    out: Out = None,
    json: Json = False,
    config: Config = None,
) -> int:
    """Pack what is done of a study into a folder of a few megabytes, for a repository: every trial, and how it came about.

    The folder can be read in place of the runs: `probe analyze FOLDER`. Logs are kept byte for byte; weights and images stay behind.

    Args:
        to: The folder; what an earlier packing left there is replaced.
    """
    from vlm_probe.paper.study.overview import size_text
    from vlm_probe.paper.study.pack import pack as pack_it
    from vlm_probe.paper.study.registration import deviations, read_registration
    from vlm_probe.probes.cli.console import show, show_json

    design, cells, store = _open(study, out)
    record = read_registration(store)
    differ = deviations(record, design, cells) if record else ["it was not registered"]
    made = pack_it(study, cells, store, _overview(cells, store, 1), differ, to)
    if json:
        show_json(made)
    else:
        show(f"{made['runs']} runs with {made['trials']:,} trials are in {to}: {size_text(made['bytes'])}")
    return 0


def _open(study: Path, out: Path | None) -> tuple[Design, list[Cell], Store]:
    """The design, its cells, and where they are."""
    from vlm_probe.paper.study.cells import make_cells
    from vlm_probe.paper.study.design import read_design
    from vlm_probe.paper.study.store import Store

    design = read_design(study)
    cells = make_cells(design)
    return design, cells, Store(out or Path("studies") / design.name)


@contextmanager
def _interrupted_by(number: signal.Signals) -> Iterator[None]:
    """Take a signal for Ctrl-C."""
    before = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def _tell_deviations(design: Design, cells: list[Cell], store: Store) -> None:
    """Say where a study is not as it was registered; nothing if it never was."""
    from vlm_probe.paper.study.registration import deviations, read_registration
    from vlm_probe.probes.cli.console import tell

    record = read_registration(store)
    for line in deviations(record, design, cells) if record else []:
        tell(f"not as registered on {record['registered']}: {line}")


def _overview(cells: list[Cell], store: Store, jobs: int) -> Overview:
    from vlm_probe.paper.study.cost import CostModel
    from vlm_probe.paper.study.overview import look_at

    return look_at(cells, store, CostModel.of(cells, store), jobs)


def _show(overview: Overview) -> None:
    from vlm_probe.probes.cli.console import show

    show(overview.table())
    for line in overview.failed():
        show(line)


def _pool(
    store: Store,
    executor: str,
    jobs: int,
    partition: str,
    minutes: int,
    gpus: int,
    sbatch: tuple[str, ...],
    launch: Launch,
) -> Pool:
    from vlm_probe.paper.study.pools import LocalPool, SubmititPool
    from vlm_probe.probes.cli.errors import UsageError
    from vlm_probe.probes.cli.resources import cores

    share = max(1, cores() // jobs)
    if executor != "slurm" and (partition or sbatch or (gpus and not launch.config)):
        raise UsageError(
            "--partition, --sbatch, and --gpus without --launch, are for Slurm: give --executor slurm as well"
        )
    if executor == "local":
        return LocalPool(store, jobs, processes=share, threads=share, launch=launch)
    if executor == "rehearsal":
        return SubmititPool(store, jobs, {"timeout_min": minutes}, cluster="local", processes=share, launch=launch)
    further = {}
    for text in sbatch:
        name, sign, value = text.removeprefix("--").partition("=")
        if not sign or not name:
            raise UsageError(f"--sbatch {text!r} is no option with a value: write it as in cpus_per_task=8")
        further[name.replace("-", "_")] = value
    cpus = further.pop("cpus_per_task", "1")
    if not cpus.isdecimal() or not PROCESSES.holds(int(cpus[:9])):
        raise UsageError(f"--sbatch cpus_per_task={cpus} is no number of processors")
    options: dict[str, Any] = {"timeout_min": minutes, "slurm_array_parallelism": jobs, "cpus_per_task": int(cpus)}
    options |= {"slurm_partition": partition} if partition else {}
    options |= {"gpus_per_node": gpus} if gpus else {}
    options |= {"slurm_additional_parameters": further} if further else {}
    return SubmititPool(store, jobs, options, processes=int(cpus), launch=launch)


class _Watch:
    """What a user sees while a study runs: a live table on a terminal, lines elsewhere."""

    def __init__(self, cells: list[Cell], store: Store, pool: Pool, moved: list[str]) -> None:
        self._cells, self._store, self._pool, self._moved = cells, store, pool, moved
        self._live: Any = None
        self._drawn = 0.0

    def __enter__(self) -> _Watch:
        import sys

        from vlm_probe.paper.study.store import ASIDE
        from vlm_probe.probes.cli.console import tell

        if self._moved:
            tell(
                f"the design has changed: {len(self._moved)} results of an earlier one are in {self._store.folder}/{ASIDE}"
            )
        missing = sum(not all(map(self._store.done, cell.steps)) for cell in self._cells)
        tell(f"{missing} of {len(self._cells)} cells to do, {self._pool.jobs} at a time, in {self._store.folder}")
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
            self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)

    def __call__(self, event: Event | None) -> None:
        """Something has happened, or time has passed."""
        if self._live is not None and (event is None or event.cell is not None):
            if event is not None or time.monotonic() - self._drawn > REDRAW:
                self._live.update(_overview(self._cells, self._store, self._pool.jobs), refresh=True)
                self._drawn = time.monotonic()
        elif event is not None:
            self._line(event)

    def _line(self, event: Event) -> None:
        from vlm_probe.probes.cli.console import tell

        if event.cell is None or event.what == "started":
            tell(event.what if event.cell is None else f"{event.cell.id}: started")
            return
        look = self._store.look(event.cell)
        if look.ended is not None and look.ended.failures:
            tell(f"{event.cell.id}: failed: {look.ended.failures[0].reason}")
        else:
            tell(f"{event.cell.id}: {'done' if look.state == 'done' else 'waits for what failed'}")
