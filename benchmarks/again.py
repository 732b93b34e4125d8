"""Again: whether the same commands give the same bytes, the second time, and with two processes in place of one.

    python benchmarks/again.py

A set, a run of it, and an analysis of the run with its tables and figures; the run is made once more by two processes that share it, as
`accelerate launch` starts them. What may differ: times in logs, and the records of when and where (`run.json`); of two processes that
share a run, the order of the rows.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.leftovers import TIMES, digest, log_facts

RECORDS = ("run.json", "config.toml", ".lock", "summary.json")
"""Files that say when and where something was made."""


def differing() -> list[str]:
    """Names of the files that differ, of those that one process has made and two have."""
    with tempfile.TemporaryDirectory() as home:
        made, logs = [], []
        for number, jobs in enumerate((1, 2)):
            place = Path(home) / str(number)
            place.mkdir()
            probe(place, f"stimuli make towers-stability -n 16 --size 48 --jobs {jobs} --out set")
            probe(place, "run --model heuristic --stimuli set --out run --no-references")
            without_times(place / "run")
            probe(place, "analyze run --out analysis")
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


def probe(place: Path, arguments: str, **variables: str) -> None:
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


def main() -> int:
    """Make everything twice and print what differs; 1 if anything does."""
    found = differing()
    print("\n".join(found) or "everything is the same, byte for byte but for times")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
