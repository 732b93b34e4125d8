"""Several processes on one run: each asks its share of the trials, and what they write becomes one log.

`accelerate launch` and `torchrun` start the same command several times and tell each process its number. The first
process opens the run and says what is left to ask; every further one writes a log of its own next to it
(`trials.1.jsonl`, ...), because appending to one file from several machines is safe on no network file system; and at
the end, or when the run is next started after a kill, the first process takes the rows of the others over.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from vlm_probe.probes.trials import RunError, ShardLog, TrialLog, shard_name
from vlm_probe.stimuli.output import OutputError, OutputFolder

Value = TypeVar("Value")

LONGEST_WAIT = timedelta(days=30)
"""How long one process may wait for the others: as long as a run takes. One that has died is noticed at once."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: Number of this process; 0 is the first, which alone writes the run's own files and prints.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that prints."""
        return self.rank == 0

    def share(self, everything: Sequence[Value]) -> list[Value]:
        """This process's part: every count-th, so that short and long prompts are spread evenly."""
        return list(everything[self.rank :: self.count])

    def in_turn(self, make: Callable[[], Value]) -> Value:
        """Do something in the first process, and then in the others, which find what it has made.

        Raises:
            RunError: If a process has ended.
        """
        if not self.first:
            self.broadcast(None)
        value = make()
        if self.first:
            self.broadcast(None)
        return value

    def broadcast(self, value: Any) -> Any:
        """The first process's value, in every process.

        Raises:
            RunError: If a process has ended.
        """
        if self.count == 1:
            return value
        box = [value]
        self._talk(lambda distributed: distributed.broadcast_object_list(box, src=0))
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """All processes' values in the first one, an empty list in the others.

        Raises:
            RunError: If one has ended.
        """
        if self.count == 1:
            return [value]
        values: list[Any] | None = [None] * self.count if self.first else None
        self._talk(lambda distributed: distributed.gather_object(value, values, dst=0))
        return values or []

    def open_log(self, folder: Path | OutputFolder, run: Mapping[str, Any]) -> TrialLog:
        """The log that this process appends to: the run's own in the first, one next to it in the others.

        Its `done` is the same everywhere.

        Args:
            folder: Of the run.
            run: What goes into `run.json`, the same in all processes.

        Raises:
            OutputError: If the folder cannot be claimed.
            RunError: If it cannot be opened, or a process would ask something else than the first one.
        """
        if self.count == 1:
            return TrialLog(folder, run)
        if self.first:
            try:
                log = TrialLog(folder, run)
                log.output.track(*map(shard_name, range(1, self.count)))
            except (RunError, OutputError):
                self.broadcast(None)
                raise
            self.broadcast((log.done, run["fingerprint"]))
            return log
        told = self.broadcast(None)
        if told is None:
            raise RunError(f"process {self.rank} has nothing to do: the first process could not open {folder}")
        done, fingerprint = told
        differ = sorted(name for name in fingerprint if fingerprint[name] != run["fingerprint"].get(name))
        if differ:
            raise RunError(
                f"process {self.rank} would not ask the same as the first one: {', '.join(differ)} differ; give all the"
                " machines the same model, stimuli and packages"
            )
        return ShardLog(folder.path if isinstance(folder, OutputFolder) else folder, self.rank, run, done)

    def finish(self, log: TrialLog, n_errors: int, observed: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Wait for all processes, and make one log of theirs.

        Args:
            log: This process's log.
            n_errors: How many of its trials failed.
            observed: What its model has seen.

        Returns:
            In the first process, both for the whole run; in the others, their own.

        Raises:
            RunError: If another process has ended early.
        """
        if not self.first:
            log.close()  # so that the first process may take it over
        told = self.gather((n_errors, dict(observed)))
        if not self.first or self.count == 1:
            return n_errors, dict(observed)
        log.absorb()
        merged: Any = {}
        for _, seen in told:
            merged = _merged(merged, seen)
        return sum(errors for errors, _ in told), merged

    def leave(self) -> None:
        """Take leave of the other processes."""
        if self.count > 1:
            import torch.distributed as distributed

            distributed.destroy_process_group()

    def _talk(self, say: Callable[[Any], None]) -> None:
        import torch.distributed as distributed

        try:
            say(distributed)
        except RuntimeError as error:  # a connection that is cut, in words that differ from version to version
            raise RunError(
                "another process of this run ended early; what was answered is kept: give the same command again"
            ) from error


ALONE = Processes()


def join() -> Processes:
    """This process among those that a launcher has started; alone if none has.

    Every process gets a GPU of its own, where there are GPUs.

    Raises:
        RunError: If the environment is not one of `accelerate launch` or `torchrun`, or there are too few GPUs.
    """
    count = _number("WORLD_SIZE", 1)
    if count == 1:
        return ALONE
    rank, local_rank = _number("RANK", -1), _number("LOCAL_RANK", 0)
    if not 0 <= rank < count or not os.environ.get("MASTER_ADDR"):
        raise RunError(
            f"WORLD_SIZE is {count}, but RANK or MASTER_ADDR is missing: start with `accelerate launch` or `torchrun`, or"
            " unset WORLD_SIZE"
        )
    import torch

    if torch.cuda.is_available():
        cards = torch.cuda.device_count()
        # Some clusters show every process one card only, its own.
        if local_rank >= cards > 1:
            raise RunError(f"process {local_rank} of this machine has no GPU ({cards} are here): start fewer processes")
        torch.cuda.set_device(local_rank % cards)
    # Short messages between processes, whatever the model runs on.
    torch.distributed.init_process_group("gloo", rank=rank, world_size=count, timeout=LONGEST_WAIT)
    if rank > 0:
        logging.disable(logging.WARNING)  # the first process says it for all
    return Processes(rank, count)


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable) or str(default)
    if not text.lstrip("-").isdigit():
        raise RunError(f"{variable} is {text!r}, which is no number: unset it, or start with `accelerate launch`")
    return int(text)


def _merged(one: Any, other: Any) -> Any:
    """What two processes have seen, as one process would have it."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {name: _merged(one.get(name), other.get(name)) for name in {**one, **other}}
    if isinstance(one, list) and isinstance(other, list):
        return sorted({*one, *other}, key=str)
    if one is None or other is None:
        return other if one is None else one
    # Extremes: of several numbers the largest, which is what a single process keeps.
    return max(one, other) if isinstance(one, int | float) and isinstance(other, int | float) else one
