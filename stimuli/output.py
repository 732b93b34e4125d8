"""Outputs: files that are whole or absent, and folders in which only what this program wrote is ever replaced or deleted.

A folder that this program writes to holds a manifest, `.vlm-probe.json`: what kind of output it is, and its files, each with its
hash. A folder without one is taken only if it is new or empty; a file that the manifest does not list, or that was changed
since, is left alone. Whoever writes to a folder holds its lock until everything is written.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from vlm_probe.stimuli.errors import ProbeError
from vlm_probe.stimuli.plain_json import dumps, parse_object

log = logging.getLogger(__name__)

MANIFEST, LOCK = ".vlm-probe.json", ".lock"
PROGRAM, FORMAT = "vlm-probe", 1
SHOWN = 3
"""Names of foreign files that a refusal lists."""
_PARTIAL = re.compile(r"\.(?P<stem>.+)\.\d+\.partial(?P<suffix>\.[^.]+)?")
"""Name of a file that is being written, or that was when its process was killed."""


class OutputError(ProbeError, RuntimeError):
    """Something cannot be written where it was asked for; the message says why and what to do."""


class Busy(OutputError):
    """Another process is writing there."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write a file so that it is whole or absent, also after a loss of power.

    Args:
        path: The file; its folder must be there. What is there already is replaced: see `claim` and `claim_file`.

    Yields:
        Path with the same suffix to write to. It takes the place of `path` when the block ends without an error; if nothing
        was written there, `path` stays as it is.

    Raises:
        OSError: If it cannot be written.
    """
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        if partial.exists():
            _sync(partial)
            partial.replace(path)
            _sync(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, data: str | bytes) -> None:
    """Write a text (as UTF-8) or bytes so that the file is whole or absent.

    Raises:
        OSError: If it cannot be written.
    """
    with whole_file(path) as partial:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, data: Mapping[str, Any], *, indent: int = 2) -> None:
    """Write an object as JSON so that the file is whole or absent.

    Raises:
        OSError: If it cannot be written.
        ValueError: If a number in it is not finite.
    """
    write_whole(path, dumps(data, indent=indent) + "\n")


def claim_file(path: Path, *, overwrite: bool = False) -> Path:
    """Make sure that a single output file may be written.

    Args:
        path: The file.
        overwrite: Replace one that is there.

    Returns:
        The path; its folder exists.

    Raises:
        OutputError: If it is there already, is a folder, or its folder cannot be made.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder: give the name of a file")
    if os.path.lexists(path) and not overwrite:
        raise OutputError(f"{path} exists already: choose another name, or replace it with --overwrite")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; choose another place") from error
    return path


def kind_of(folder: Path) -> str | None:
    """What kind of output a folder is by its manifest; None if it has none that this program wrote."""
    try:
        found = parse_object((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    is_ours = found.get("program") == PROGRAM and isinstance(found.get("kind"), str)
    return str(found["kind"]) if is_ours and isinstance(found.get("files"), dict) else None


def check_claim(folder: Path, kind: str, option: str = "--out") -> None:
    """Refuse a folder that `claim` would refuse, without touching anything.

    Args:
        folder: What would be written to.
        kind: Of output, such as "run".
        option: That names the folder.

    Raises:
        OutputError: If it holds anything but this kind of output, or cannot be written.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise OutputError(f"cannot write to {folder}: {nearest} is a file; choose another folder with {option}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write to {folder}: no permission in {nearest}; choose another folder with {option}")
    try:
        os.fsencode(folder).decode()
    except UnicodeError as error:
        raise OutputError(f"{str(folder)!r} is not UTF-8: choose another folder with {option}") from error
    if not folder.is_dir():
        return
    found = kind_of(folder)
    own = (LOCK, MANIFEST)  # what is there of a process that was killed before it had written its manifest
    foreign = sorted(
        path.name for path in folder.iterdir() if path.name != LOCK and _being_written(path.name) not in own
    )
    if found is None and foreign:
        more = f" and {len(foreign) - SHOWN} more" if len(foreign) > SHOWN else ""
        raise OutputError(
            f"{folder} holds files that {PROGRAM} did not write ({', '.join(foreign[:SHOWN])}{more}):"
            f" choose a new folder with {option}"
        )
    if found is not None and found != kind:
        raise OutputError(f"{folder} holds a {found}, not a {kind}: choose another folder with {option}")


def files_of(folder: Path) -> tuple[str, ...]:
    """The files that a folder's manifest lists, by their paths relative to the folder; none if it has no manifest of ours."""
    try:
        return tuple(parse_object((folder / MANIFEST).read_bytes())["files"]) if kind_of(folder) else ()
    except (OSError, ValueError):
        return ()


def lock(folder: Path, name: str = LOCK) -> int:
    """Take a folder for this process.

    Args:
        folder: What is written to; it must be there.
        name: Of the file in it that is locked.

    Returns:
        A descriptor. The lock goes when it is closed, or with the process.

    Raises:
        Busy: If another process has it.
        OSError: If the folder cannot be written.
    """
    descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise Busy(f"another process is writing to {folder}: wait for it, or choose another --out") from error
    except OSError as error:  # some network file systems have no locks
        log.warning("cannot lock %s (%s): do not start a second process there", folder, error.strerror)
    return descriptor


class OutputFolder:
    """A folder that this process has taken for one kind of output; see `claim`.

    Args:
        path: The folder.
        kind: Of output.
        option: That names the folder, for error lines.

    Raises:
        OutputError: As for `claim`.
    """

    def __init__(self, path: Path, kind: str, option: str = "--out") -> None:
        self.path, self.kind, self._option = path, kind, option
        check_claim(path, kind, option)
        try:
            self._is_new = not path.exists()
            path.mkdir(parents=True, exist_ok=True)
            self._lock = lock(path)
            try:
                check_claim(path, kind, option)  # another process may have been faster
                self._files, self._folders, scratch = self._read()
                self._sweep(scratch)
                self._write()
            except BaseException:
                os.close(self._lock)
                raise
        except OSError as error:
            raise OutputError(
                f"cannot write to {path}: {error.strerror}; choose another folder with {option}"
            ) from error

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes have the folder; one in which nothing came to be goes. The second time, nothing."""
        if self._lock < 0:
            return
        held, self._lock = self._lock, -1
        try:
            if self._is_new and {path.name for path in self.path.iterdir()} <= {MANIFEST, LOCK}:
                (self.path / MANIFEST).unlink()
                (self.path / LOCK).unlink()
                self.path.rmdir()
        except OSError as error:  # another process is faster, or the folder has gone
            log.debug("%s stays (%s)", self.path, error.strerror)
        finally:
            os.close(held)

    @property
    def names(self) -> tuple[str, ...]:
        """The files that this program wrote here, by their paths relative to the folder."""
        return tuple(self._files)

    def check(self, names: Iterable[str] | None = None) -> None:
        """Refuse to go on if a file cannot be replaced.

        Args:
            names: Of files that are about to be written; None for all that the manifest lists.

        Raises:
            OutputError: If one of them is there and is not as this program left it.
        """
        for name in self._files if names is None else names:
            path = self.path / name
            if not os.path.lexists(path):
                continue
            hashes = self._files.get(name)
            if hashes is None or (hashes and (not path.is_file() or _digest(path) not in hashes)):
                what = "was not written by this program" if hashes is None else "was changed since it was written"
                raise OutputError(f"{path} {what}: move it away, or choose another folder with {self._option}")

    def track(self, *names: str) -> None:
        """List files that are written bit by bit, or by a library: they may be replaced and deleted whatever is in them.

        Args:
            names: Paths relative to the folder.

        Raises:
            OutputError: If one of them is there and is not listed.
        """
        new = [name for name in names if self._files.get(name) != []]
        if new:
            self.check(new)
            self._files |= {name: [] for name in new}
            self._write()

    def announce(self, *folders: str) -> None:
        """List folders that a library will fill, before they are there; see `adopt` and `drop`.

        Args:
            folders: Paths relative to the folder.

        Raises:
            OutputError: If one of them is there and was not announced before.
        """
        for name in folders:
            if name not in self._folders and os.path.lexists(self.path / name):
                raise OutputError(
                    f"{self.path / name} was not written by this program: move it away, or choose another folder with"
                    f" {self._option}"
                )
        self._folders = list(dict.fromkeys([*self._folders, *folders]))
        self._write()

    def adopt(self, folder: str) -> None:
        """List all files that are in an announced folder now, because the library has finished with it."""
        below = (path for path in sorted((self.path / folder).rglob("*")) if path.is_file())
        self._files |= {path.relative_to(self.path).as_posix(): [] for path in below}
        self._folders = [name for name in self._folders if name != folder]
        self._write()

    def drop(self, folder: str) -> None:
        """Delete what a library has written to a folder; of one that it has not finished, everything."""
        self.remove(*(name for name in self._files if name.startswith(f"{folder}/")))
        if folder in self._folders:
            shutil.rmtree(self.path / folder, ignore_errors=True)
        self._folders = [name for name in self._folders if name != folder]
        for path in (self.path / folder, *(self.path / parent for parent in list(Path(folder).parents)[:-1])):
            with suppress(OSError):  # it holds something else, or has gone
                path.rmdir()
        self._write()

    @contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """Write a file, whole or not at all.

        Args:
            name: Path relative to the folder; folders on the way are made.

        Yields:
            Where to write to; if nothing is written, nothing changes.

        Raises:
            OutputError: If another file is in its place, or the disk does not take it.
        """
        self.check([name])
        path = self.path / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as partial:
                yield partial
                if not partial.exists():
                    return
                self._replacing({name: _digest(partial)})
        except OSError as error:
            raise OutputError(
                f"cannot write {path}: {error.strerror}; make room, or choose another {self._option}"
            ) from error
        self._settle([name])

    def write(self, name: str, data: str | bytes) -> None:
        """Write a text or bytes, whole or not at all. Raises OutputError as `file` does."""
        with self.file(name) as partial:
            partial.write_bytes(data.encode() if isinstance(data, str) else data)

    def write_json(self, name: str, data: Mapping[str, Any], *, indent: int = 2) -> None:
        """Write an object as JSON. Raises OutputError as `file` does, and ValueError if a number is not finite."""
        self.write(name, dumps(data, indent=indent) + "\n")

    def place(self, made: Path, name: str) -> None:
        """Move a file that a library has made to its place, without reading it.

        Args:
            made: The file, on the same disk.
            name: Path relative to the folder.

        Raises:
            OutputError: If another file is in its place, or the disk does not take it.
        """
        self.track(name)
        path = self.path / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _sync(made)
            made.replace(path)
            _sync(path.parent)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}; choose another {self._option}") from error

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for this block alone, inside this one; what a killed process leaves of it goes at the next claim."""
        name = f".partial-{os.getpid()}"
        self._write(scratch=[name])
        try:
            (self.path / name).mkdir()
            yield self.path / name
        except OSError as error:
            raise OutputError(
                f"cannot write to {error.filename or self.path}: {error.strerror}; make room, or choose another folder with"
                f" {self._option}"
            ) from error
        finally:
            shutil.rmtree(self.path / name, ignore_errors=True)
            self._write()

    def replace_all(self, made: Path, last: str = "") -> None:
        """Put new files in the place of all that this program wrote here before.

        Args:
            made: Folder that holds them (see `scratch`); they are moved.
            last: The file that is the first to go and the last to come, so that where it is, everything is.

        Raises:
            OutputError: If one of the files to replace is not as this program left it, and then nothing is changed; or if the
                disk does not take them.
        """
        try:
            self._replace_all(made, last)
        except OSError as error:
            where = error.filename or self.path  # a disk that is full does not say where
            raise OutputError(
                f"cannot write to {where}: {error.strerror}; make room, or choose another folder with {self._option}"
            ) from error

    def _replace_all(self, made: Path, last: str) -> None:
        new = {path.relative_to(made).as_posix(): _digest(path) for path in sorted(made.rglob("*")) if path.is_file()}
        self.check()
        self.check(new)
        self._replacing(new)
        if last:
            (self.path / last).unlink(missing_ok=True)
        self.remove(*(name for name in self._files if name not in new))
        for name in sorted(new, key=lambda name: name == last):
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            _sync(made / name)
            (made / name).replace(self.path / name)
        for folder in {self.path, *((self.path / name).parent for name in new)}:
            _sync(folder)
        self._settle(new)

    def remove(self, *names: str) -> None:
        """Delete files of this program, and the folders that become empty. What is not listed, or was changed, stays."""
        for name in names:
            with suppress(OutputError):
                self.check([name])
                if name in self._files:
                    (self.path / name).unlink(missing_ok=True)
            self._files.pop(name, None)
            for parent in list(Path(name).parents)[:-1]:
                with suppress(OSError):  # it holds something else, or has gone
                    (self.path / parent).rmdir()
        self._write()

    def _sweep(self, scratch: Iterable[str]) -> None:
        """Delete what a process that was killed left half written."""
        for name in scratch:
            shutil.rmtree(self.path / name, ignore_errors=True)
        own = {MANIFEST, *self._files}
        for folder in {(self.path / name).parent for name in own}:
            for path in folder.iterdir() if folder.is_dir() else ():
                whole = path.with_name(_being_written(path.name))
                if whole != path and whole.relative_to(self.path).as_posix() in own and path.is_file():
                    path.unlink()

    def _replacing(self, new: Mapping[str, str]) -> None:
        """Note hashes before the files are there: after a kill between the two, old and new are both known."""
        for name, digest in new.items():
            if self._files.get(name) != []:
                self._files[name] = [*self._files.get(name, [])[-1:], digest]
        self._write()

    def _settle(self, names: Iterable[str]) -> None:
        self._files |= {name: self._files[name][-1:] for name in names}
        self._write()

    def _read(self) -> tuple[dict[str, list[str]], list[str], list[str]]:
        if not (self.path / MANIFEST).exists():
            return {}, [], []
        try:
            found = parse_object((self.path / MANIFEST).read_bytes())
            files = {str(name): [str(digest) for digest in digests] for name, digests in found["files"].items()}
            scratch = [str(name) for name in found.get("scratch", [])]
            folders = [str(name) for name in found.get("folders", [])]
            if any(Path(name).is_absolute() or ".." in Path(name).parts for name in (*files, *folders, *scratch)):
                raise ValueError("it names files outside its folder")
            if any("/" in name or not name.startswith(".partial-") for name in scratch):
                raise ValueError("it names a folder that is no temporary one")
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise OutputError(
                f"{self.path / MANIFEST} is damaged ({error}): choose another folder with {self._option}"
            ) from error
        return files, folders, scratch

    def _write(self, scratch: Iterable[str] = ()) -> None:
        data = {"program": PROGRAM, "format": FORMAT, "kind": self.kind, "files": dict(sorted(self._files.items()))}
        further = {"folders": self._folders, "scratch": list(scratch)}
        write_json(self.path / MANIFEST, data | {name: names for name, names in further.items() if names}, indent=1)


def claim(folder: Path, kind: str, option: str = "--out") -> OutputFolder:
    """Take a folder for one kind of output. Every command that writes to a folder begins with this.

    Args:
        folder: New, empty, or of the same kind of output, with everything in it as this program left it.
        kind: Of output, such as "run", "report" or "study".
        option: That names the folder, for error lines.

    Returns:
        The folder, with its lock. It is a context manager that gives the lock back.

    Raises:
        OutputError: If the folder holds anything else, cannot be written, or another process is writing to it.
    """
    return OutputFolder(folder, kind, option)


def check_absent(path: Path, option: str = "--out") -> None:
    """Refuse a path where `whole_folder` would find something. Raises OutputError."""
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        raise OutputError(f"{path} exists already: choose another {option}, or delete it first")


@contextmanager
def whole_folder(path: Path, kind: str, option: str = "--out") -> Iterator[Path]:
    """Make a folder that is whole or absent.

    Args:
        path: The folder to make; an empty one may be there.
        kind: Of output, such as "stimulus set".
        option: That names the folder, for error lines.

    Yields:
        A folder to fill. It becomes `path` when the block ends without an error.

    Raises:
        OutputError: If `path` exists already or cannot be written, or another process is making it.
    """
    check_absent(path, option)
    check_claim(path, kind, option)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock_beside(path):
            check_absent(path, option)
            for stale in path.parent.glob(f".{path.name}.partial-*"):
                if kind_of(stale) == kind:  # of a process that was killed: this one has the lock
                    shutil.rmtree(stale, ignore_errors=True)
            partial.mkdir()
            try:
                write_json(
                    partial / MANIFEST, {"program": PROGRAM, "format": FORMAT, "kind": kind, "files": {}}, indent=1
                )
                yield partial
                for folder, _, files in os.walk(partial):
                    for name in files:
                        _sync(Path(folder, name))
                    _sync(Path(folder))
                partial.rename(path)
                _sync(path.parent)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; choose another {option}") from error


@contextmanager
def _lock_beside(path: Path) -> Iterator[None]:
    """Keep other processes from making the same folder. The file that is locked lies next to it, and goes afterwards."""
    name = f".{path.name}{LOCK}"
    while True:
        try:
            descriptor = lock(path.parent, name)
        except Busy as error:
            raise Busy(f"another process is making {path}: wait for it, or choose another --out") from error
        # The process before may have deleted the file between its being opened and locked here.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), (path.parent / name).stat()):
                break
        os.close(descriptor)
    try:
        yield
    finally:
        (path.parent / name).unlink(missing_ok=True)
        os.close(descriptor)


def _being_written(name: str) -> str:
    """The name that a half written file would have got; any other name as it is."""
    found = _PARTIAL.fullmatch(name)
    return name if found is None else found["stem"] + (found["suffix"] or "")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Force a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir():
            raise
        log.debug("cannot sync the folder %s (%s)", path, error.strerror)  # some network file systems cannot
    finally:
        os.close(descriptor)
