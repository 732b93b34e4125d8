"""A long run in little memory: resident memory of an observer's run of 50,000 trials, and of its summary.

    python benchmarks/long_run.py [--trials 50000]

Items of towers-stability, each in all sixteen wordings; the items, which are in memory from the start, are counted apart.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from vlm_probe.analysis.summary import summarise
from vlm_probe.probes.run import RunConfig, run
from vlm_probe.stimuli.generate import make_set

STEPS = 10


def resident() -> float:
    """Resident memory of this process, MB."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / 1e3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--trials", type=int, default=50_000)
    trials = parser.parse_args().trials
    with tempfile.TemporaryDirectory() as home:
        stimuli = make_set("towers-stability", -(-trials // 16), 0, Path(home) / "set", size=16)
        len(stimuli.items)
        before, seen = resident(), dict[int, float]()
        begun = time.process_time()

        def step(done: int, total: int) -> None:
            tenth = STEPS * done // total
            if tenth not in seen:
                seen[tenth] = resident()

        config = RunConfig("chance", str(stimuli.path), design="variants")
        report = run(config, stimuli, Path(home) / "run", progress=step)
        spent = time.process_time() - begun
        after = resident()
        summarise(report.path)
        found = {
            "trials": report.n,
            "items": len(stimuli),
            "mb_with_items": before,
            "mb_by_tenth": list(seen.values()),
            "mb_after": after,
            "mb_after_summary": resident(),
            "cpu_ms_per_trial": 1000 * spent / report.n,
            "log_mb": (report.path / "trials.jsonl").stat().st_size / 1e6,
        }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
