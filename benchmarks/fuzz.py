"""Fuzzing: bytes that atheris grows towards new branches, through everything that reads what others wrote.

    pip install atheris
    python benchmarks/fuzz.py replies --seconds 60      # or logs, records, sets, studies

`replies` must keep what `tests/probes/test_replies.py` asks of any reply. The others begin with a valid file and must either be read, or be
refused by the one exception of their kind. Anything else ends the process with the input that did it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["vlm_probe"], enable_loader_override=False):
    from tests.probes.test_replies import TASKS, check, item_of
    from vlm_probe.paper.study.design import read_design
    from vlm_probe.paper.study.fields import StudyError
    from vlm_probe.probes.readout import Scorer
    from vlm_probe.probes.run import RunConfig, run
    from vlm_probe.probes.trials import RUN, TRIALS, RunError, read_run, read_trials
    from vlm_probe.stimuli.dataset import METADATA, StimulusError, StimulusSet
    from vlm_probe.stimuli.generate import make_set

Target = Callable[[bytes], None]
STUDY = "study: one\nmodels: [tiny]\nmethods: [none, sft]\nseeds: [0]\ntraining: {a: towers-topblock}\nsets: {n: 8, seed: 1}\n"


def replies(place: Path) -> tuple[Target, list[bytes]]:
    """A reply to any task; the first byte says to which."""
    scorer, worth = Scorer(), {name: {None} for name in TASKS}

    def target(data: bytes) -> None:
        provider = atheris.FuzzedDataProvider(data)
        name = TASKS[provider.ConsumeIntInRange(0, len(TASKS) - 1)]
        check(item_of(name), scorer, worth[name], provider.ConsumeUnicode(400))  # type: ignore[arg-type]

    return target, [b"\0<answer>stands</answer>", b"\1answer: -12 cm", b"\2left"]


def _file(path: Path, read: Callable[[], Any], refused: type[Exception]) -> tuple[Target, list[bytes]]:
    """Bytes in the place of a file."""
    valid = path.read_bytes()

    def target(data: bytes) -> None:
        path.write_bytes(data)
        try:
            read()
        except refused as error:
            assert "\n" not in str(error) and len(str(error)) < 2000, str(error)[:200]

    return target, [valid]


def logs(place: Path) -> tuple[Target, list[bytes]]:
    """The log of a run."""
    folder = _run(place)
    return _file(folder / TRIALS, lambda: read_trials(folder), RunError)


def records(place: Path) -> tuple[Target, list[bytes]]:
    """The `run.json` of a run."""
    folder = _run(place)
    return _file(folder / RUN, lambda: read_run(folder), RunError)


def sets(place: Path) -> tuple[Target, list[bytes]]:
    """The items of a stimulus set."""
    folder = make_set("towers-topblock", 1, 0, place / "set", size=16).path
    return _file(folder / METADATA, lambda: list(StimulusSet.load(folder).items), StimulusError)


def studies(place: Path) -> tuple[Target, list[bytes]]:
    """The file of a study."""
    (place / "study.yaml").write_text(STUDY)
    return _file(place / "study.yaml", lambda: read_design(place / "study.yaml"), StudyError)


def _run(place: Path) -> Path:
    stimuli = make_set("towers-topblock", 1, 0, place / "set", size=16)
    return run(RunConfig("chance", str(stimuli.path)), stimuli, place / "run").path


TARGETS = {one.__name__: one for one in (replies, logs, records, sets, studies)}


def main() -> None:
    """Fuzz one target for a while. libFuzzer prints what it does, and ends the process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp())
    target, seeds = TARGETS[options.target](place)
    (place / "corpus").mkdir()
    for number, seed in enumerate(seeds):
        (place / "corpus" / str(number)).write_bytes(seed)
    atheris.Setup([sys.argv[0], f"-max_total_time={options.seconds}", "-max_len=8192", str(place / "corpus")], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
