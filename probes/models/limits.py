"""Work that a file of unknown origin decides (a template, a pattern), in a child process that may take only so much."""

from __future__ import annotations

import gc
import os
import resource
import signal
import threading
import warnings
import weakref
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from vlm_probe.stimuli.plain_json import dumps, parse

SECONDS = 3
"""Processor time of one call: ten thousand times what a chat template takes."""
MEMORY = 512 * 1024**2
"""Bytes that one call may take beyond what the process has."""
LONGEST = 8 * 1024**2
"""Bytes of a result as JSON."""
PATIENCE = 120
"""Seconds by the clock after which a child that uses no processor is given up."""


class LimitError(RuntimeError):
    """The work took more time or memory than it may, or failed; the message says which."""


class Limited:
    """A function that runs in a child process, call after call, with limits on time and memory.

    The child is a copy of this process at the time when this is made, so that the function may use whatever is loaded; it must
    not use torch, whose threads are not copied. A call costs about 0.1 ms, the copy about 30 ms once.

    Args:
        work: The function. Arguments and result travel as JSON.
        seconds: Processor time that a call may take.
        memory: Bytes that a call may take.
        longest: Bytes that its result may have.
    """

    def __init__(
        self,
        work: Callable[..., Any],
        *,
        seconds: float = SECONDS,
        memory: int = MEMORY,
        longest: int = LONGEST,
    ) -> None:
        self._seconds, self._memory, self._longest = seconds, memory, longest
        self._lock = threading.Lock()
        self._stopped = ""
        self._ours, theirs = Pipe()
        with warnings.catch_warnings():
            # Of forks in a process with threads: the child runs nothing that the threads of this process may hold locks of.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._child = os.fork()
        if self._child == 0:
            _serve(theirs, work, seconds, memory, longest)
        theirs.close()
        self.close = weakref.finalize(self, _end, self._ours, self._child, os.getpid())
        """Ends the child; done by itself when this object is no longer used."""

    @property
    def stopped(self) -> str:
        """Why it does not run any more; empty while it does."""
        return self._stopped

    def __call__(self, *given: Any) -> Any:
        """What the function returns.

        Args:
            given: Its arguments.

        Raises:
            LimitError: If it fails, or takes more than it may. After the latter, every further call fails at once.
        """
        with self._lock:
            if self._stopped:
                raise LimitError(self._stopped)
            try:
                self._ours.send_bytes(dumps(given).encode())
                if not self._ours.poll(PATIENCE):
                    raise EOFError
                failed, answer = parse(self._ours.recv_bytes(self._longest + 1024))
            except (OSError, EOFError):
                self._stopped = f"it takes more than {self._seconds:g} s or {self._memory // 1024**2} MB"
                raise LimitError(self._stopped) from None
            except BaseException:  # Ctrl-C: the answer that is on its way must not be taken for that of the next call
                self._stopped = "it was interrupted"
                raise
            finally:
                if self._stopped:
                    self.close()
        if failed:
            raise LimitError(answer)
        return answer


def _end(ours: Connection[Any, Any], child: int, owner: int) -> None:
    """End a child, unless this process is itself a copy of the one that made it."""
    ours.close()
    if os.getpid() == owner:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _serve(theirs: Connection[Any, Any], work: Callable[..., Any], seconds: float, memory: int, longest: int) -> None:
    """The child: answers calls until the connection closes. Never returns."""
    try:
        _leave_all_but(theirs.fileno())
        # Objects of the parent are never collected here: their ends may be on a GPU, or locks.
        gc.disable()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, in the middle of whatever it computes
        _limit_memory(memory)
        while True:
            given = parse(theirs.recv_bytes())
            signal.setitimer(signal.ITIMER_PROF, seconds)
            data = _answer(work, given, memory, longest)
            signal.setitimer(signal.ITIMER_PROF, 0)
            theirs.send_bytes(data)
    except BaseException:  # the parent has gone; nothing of it may run on in its copy
        os._exit(0)


def _answer(work: Callable[..., Any], given: list[Any], memory: int, longest: int) -> bytes:
    try:
        data = dumps([False, work(*given)]).encode()
        if len(data) <= longest:
            return data
        reason = f"it gives {len(data):,} bytes, and {longest:,} are the most"
    except MemoryError:
        reason = f"it takes more than {memory // 1024**2} MB"
    except BaseException as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
    return dumps([True, reason]).encode()


def _leave_all_but(kept: int) -> None:
    """Close what was open in the parent: locks and pipes would live as long as this copy. Say nothing on its terminal."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))


def _limit_memory(further: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError, IndexError):  # macOS has no such file, and does not keep to the limit
        held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = held + further
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))
