"""What a whole analysis costs: `probe analyze` on many trials, in a process of its own.

    python benchmarks/analyze.py [-n 100000] [--keep FOLDER]

Writes logs of a simulated study (an untrained model, SFT, PPO and GRPO with five seeds each, four tasks, one shift), then
runs the command on them. Prints wall and CPU time and the peak memory (targets for 100,000 trials on two cores: 60 s, 2 GB).
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.analysis.conftest import write_study

METHODS, SEEDS = ("sft", "ppo", "grpo"), 5
TASKS = ("towers-stability", "towers-topblock", "balance-tilt", "support-hold")


def main() -> None:
    """Write the logs, run the command, print what it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("-n", type=int, default=100_000, help="trials")
    parser.add_argument("--keep", type=Path, help="folder for logs and report; by default they are removed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = options.keep or Path(temporary)
        logs = home / "logs"
        # Per run: four tasks, and the shifted one; the untrained model has no shifted one.
        per_test = options.n // (len(METHODS) * SEEDS * (len(TASKS) + 1) + len(TASKS))
        if not logs.exists():
            write_study(logs, methods=METHODS, seeds=SEEDS, tasks=TASKS, n=per_test, shifts=(("camera", 2),))
        trials = sum(1 for log in logs.rglob("trials.jsonl") for _ in log.open("rb"))
        start = time.perf_counter()
        command = [sys.executable, "-m", "vlm_probe", "analyze", str(logs), "--out", str(home / "report")]
        subprocess.run(
            command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT / "src")}
        )
        wall, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        print(f"{trials} trials of {len(METHODS) * SEEDS + 1} runs")
        print(f"wall {wall:.1f} s, CPU {used.ru_utime + used.ru_stime:.1f} s (target: 60 s on two cores)")
        print(f"peak memory {used.ru_maxrss / 1e6:.2f} GB (target: < 2 GB)")


if __name__ == "__main__":
    main()
