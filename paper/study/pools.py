"""Where cells are done: in processes of this machine, or as jobs of Slurm, one per cell.

A pool starts cells and tells which have ended. How a cell went stands in its own folder; a pool knows only of processes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vlm_probe.paper.study.fields import StudyError
from vlm_probe.paper.study.launch import IN_PROCESS, Launch
from vlm_probe.paper.study.store import CELLS, JOB, LOG, Store, read_json
from vlm_probe.stimuli.output import write_json

GRACE = 30.0
"""Seconds that a process has to end before it is killed."""
SQUEUE_EVERY = 20.0
"""Seconds between questions to Slurm whether jobs are still there."""
SETTLE = 2.0
"""The same, while a job has a result and Slurm may not have let go of it yet."""


class Pool(Protocol):
    """What does cells."""

    jobs: int
    """Cells at a time."""
    processes: int
    """That each may start for stimuli."""
    launch: Launch
    """How accelerate starts their steps, if it does."""

    def adopt(self, cells: Sequence[str]) -> list[str]:
        """Those of the cells for which an earlier driver has started a job that is still there; they are watched from now on."""
        ...

    def start(self, cells: Sequence[str]) -> None:
        """Start cells, whose work is in their folders."""
        ...

    def ended(self) -> dict[str, str]:
        """Cells that have ended since the last question, each with how its process ended, if that was not by itself."""
        ...

    def stop(self) -> str:
        """Stop what is under way, if it is this pool's to stop; a sentence about what goes on."""
        ...


@dataclass
class LocalPool:
    """Processes of this machine.

    Attributes:
        store: The study.
        jobs: Cells at a time.
        processes: That each may start for stimuli.
        threads: Of each.
        launch: How accelerate starts their steps, if it does.
    """

    store: Store
    jobs: int
    processes: int = 1
    threads: int = 1
    launch: Launch = IN_PROCESS
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def adopt(self, cells: Sequence[str]) -> list[str]:
        """None: a process that is still at a cell holds the cell's lock, which the driver sees."""
        return []

    def start(self, cells: Sequence[str]) -> None:
        """Start a process for each."""
        environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(self.threads)}
        for cell in cells:
            with (self.store.cell_folder(cell) / LOG).open("ab") as log:
                # In a session of its own, so that Ctrl-C comes to it once, from the driver.
                self._running[cell] = subprocess.Popen(
                    worker_command(self.store.folder, cell),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    start_new_session=True,
                )

    def ended(self) -> dict[str, str]:
        """Those whose processes have ended."""
        over = {cell: code for cell, process in self._running.items() if (code := process.poll()) is not None}
        for cell in over:
            del self._running[cell]
        return {cell: how_it_died(code) for cell, code in over.items()}

    def stop(self) -> str:
        """End the processes; runs and training runs keep what they have."""
        for process in self._running.values():
            process.terminate()
        deadline = time.monotonic() + GRACE
        for process in self._running.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()
        return ""


@dataclass(frozen=True)
class CellJob:
    """A cell as submitit's function: a process of its own, so that the signals of Slurm reach this one first.

    When a job is preempted or its time is over, submitit asks for a checkpoint and puts the job back into the queue; steps
    resume where they were, so that there is nothing to hand over.

    Attributes:
        folder: Of the study.
        cell: Its id.
    """

    folder: Path
    cell: str

    def __call__(self) -> int:
        """Do the cell; the exit code of its process."""
        with (Store(self.folder).cell_folder(self.cell) / LOG).open("ab") as log:
            process = subprocess.Popen(
                worker_command(self.folder, self.cell),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_ignore_warnings,
            )
            try:
                return process.wait()
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()

    def checkpoint(self) -> Any:
        """The same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass
class SubmititPool:
    """Jobs through submitit: of Slurm, or of submitit's own executor on this machine.

    Args:
        store: The study.
        jobs: Cells at a time, each a job.
        options: Of submitit's executor, such as `slurm_partition`.
        cluster: "slurm" or "local".
        processes: That each may start for stimuli.
        launch: How accelerate starts their steps, if it does.

    Raises:
        StudyError: If submitit or Slurm is not there, or does not know an option.
    """

    store: Store
    jobs: int
    options: Mapping[str, Any]
    cluster: str = "slurm"
    processes: int = 1
    launch: Launch = IN_PROCESS
    _jobs: dict[str, Any] = field(default_factory=dict)
    _asked: float = 0.0

    def __post_init__(self) -> None:
        try:
            import submitit
        except ModuleNotFoundError as error:
            raise StudyError("jobs need submitit, which is not installed: pip install 'vlm-probe[slurm]'") from error
        folder = self.store.folder.resolve() / CELLS / ".submitit"
        try:
            self._executor = submitit.AutoExecutor(folder=folder, cluster=self.cluster)
            self._executor.update_parameters(name=self.store.folder.resolve().name, **self.options)
        except (RuntimeError, ValueError, NameError, TypeError) as error:
            raise StudyError(f"jobs cannot be submitted: {' '.join(str(error).split())}") from error

    def adopt(self, cells: Sequence[str]) -> list[str]:
        """Those with a job that Slurm still has."""
        if self.cluster != "slurm":
            return []
        import submitit

        noted = {cell: str(read_json(self.store.cell_folder(cell) / JOB).get("job", "")) for cell in cells}
        alive = _still_there([job for job in noted.values() if job])
        for cell, job in noted.items():
            if job in alive:
                self._jobs[cell] = submitit.SlurmJob(folder=self._executor.folder, job_id=job, tasks=[0])
        return list(self._jobs)

    def start(self, cells: Sequence[str]) -> None:
        """Submit them, as one array where there are several.

        Raises:
            StudyError: If Slurm does not take them.
        """
        folder = self.store.folder.resolve()
        work = [CellJob(folder, cell) for cell in cells]
        try:
            if len(work) == 1:
                jobs = [self._executor.submit(work[0])]
            else:
                with self._executor.batch():
                    jobs = [self._executor.submit(one) for one in work]
        except Exception as error:  # what sbatch says, in submitit's words
            raise StudyError(f"Slurm does not take the jobs: {' '.join(str(error).split())[-300:]}") from error
        for cell, job in zip(cells, jobs, strict=True):
            write_json(self.store.cell_folder(cell) / JOB, {"job": job.job_id})
            self._jobs[cell] = job

    def ended(self) -> dict[str, str]:
        """Those whose jobs have a result; of Slurm's, those that it does not have any more.

        A result alone does not say that a job is over: one that Slurm puts back into the queue has that of its interrupted try.
        """
        over = {cell: "" for cell, job in self._jobs.items() if job.done()}
        if self.cluster == "slurm":
            if time.monotonic() - self._asked < (SETTLE if over else SQUEUE_EVERY):
                return {}
            self._asked = time.monotonic()
            alive = _still_there([job.job_id for job in self._jobs.values()])
            lost = [cell for cell, job in self._jobs.items() if job.job_id not in alive]
            over = {cell: over.get(cell, f"Slurm has ended job {self._jobs[cell].job_id}") for cell in lost}
        for cell in over:
            job = self._jobs.pop(cell)
            (self.store.cell_folder(cell) / JOB).unlink(missing_ok=True)
            if not over[cell]:
                over[cell] = _result(job)
        return over

    def stop(self) -> str:
        """Jobs of Slurm go on; those on this machine are ended."""
        if self.cluster == "slurm":
            jobs = " ".join(sorted({str(job.job_id) for job in self._jobs.values()}))
            return f"jobs that are submitted go on ({jobs}): end them with `scancel {jobs}`" if jobs else ""
        for job in self._jobs.values():
            job.cancel()
        return ""


def worker_command(folder: Path, cell: str) -> list[str]:
    """The command line of a cell's process.

    Args:
        folder: Of the study.
        cell: Its id.
    """
    return [sys.executable, "-P", "-m", "vlm_probe.probes.cli.worker", str(folder.resolve()), cell]


def how_it_died(code: int) -> str:
    """In words, if a process was ended by a signal."""
    if code >= 0:
        return ""
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = "; was there enough memory?" if -code == signal.SIGKILL else ""
    return f"its process was ended by {name}{hint}"


def _result(job: Any) -> str:
    try:
        return how_it_died(int(job.result()))
    except Exception as error:  # of submitit, or what the job raised
        lines = [line for line in str(error).splitlines() if line.strip()]
        return f"the job failed: {lines[-1] if lines else type(error).__name__}"[:300]


def _still_there(jobs: Sequence[str]) -> set[str]:
    """Jobs that Slurm has, waiting or running. All of them if it cannot be asked: that is no news of their end."""
    if not jobs:
        return set()
    command = ["squeue", "--noheader", "--array", "--format=%i|%F_%K", "--jobs", ",".join(jobs)]
    asked = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    if asked.returncode and "Invalid job id" not in asked.stderr:
        return set(jobs)
    known = {part.strip() for line in asked.stdout.splitlines() for part in line.split("|")}
    return known & set(jobs)


def _ignore_warnings() -> None:
    """Slurm warns every process of a job with this signal, of which an unprepared one dies."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
