"""What a whole analysis costs: `probe analyze` on the committed study and on simulated trials, in processes of their own.

    python benchmarks/analyze.py [study] [simulated] [-n 100000] [--keep FOLDER]

- study: `paper/results` (83,568 trials of 964 logs, 380 cells, of which 16 have all answers alike and so profile intervals).
- simulated: an untrained model, SFT, PPO and GRPO with five seeds each, four tasks, one shift; `-n` trials.

Prints wall and CPU time, peak memory, and the CPU time as a multiple of a yardstick, a fixed piece of arithmetic that is measured before and
after on the same machine: machines differ, ratios less. Targets: study 180 s and 180 yardsticks, simulated 60 s; 2 GB.
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

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.analysis.conftest import write_study

METHODS, SEEDS = ("sft", "ppo", "grpo"), 5
TASKS = ("towers-stability", "towers-topblock", "balance-tilt", "support-hold")
STUDY = ROOT / "paper" / "results"


def yardstick() -> float:
    """CPU seconds of a fixed piece of work: factorising, exponentials and plain Python, about a second on a core of 2024."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(700, 700))
    a = a @ a.T + 700 * np.eye(700)
    start = time.process_time()
    for _ in range(12):
        np.linalg.solve(np.linalg.cholesky(a), a)
    for _ in range(40):
        np.log1p(np.exp(-np.abs(a))).sum()
    total = 0
    for number in range(4_000_000):
        total += number & 7
    return time.process_time() - start


def simulate(logs: Path, n: int) -> None:
    """Logs of a simulated study with about `n` trials."""
    # Per run: four tasks, and the shifted one; the untrained model has no shifted one.
    per_test = n // (len(METHODS) * SEEDS * (len(TASKS) + 1) + len(TASKS))
    write_study(logs, methods=METHODS, seeds=SEEDS, tasks=TASKS, n=per_test, shifts=(("camera", 2),))


def measure(name: str, logs: Path, report: Path) -> None:
    """Run the command, and print what it took."""
    unit = yardstick()
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "vlm_probe", "analyze", str(logs), "--out", str(report)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT, env=environment)
    wall, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    unit = (unit + yardstick()) / 2
    print(f"{name}: wall {wall:.1f} s, CPU {cpu:.1f} s, {cpu / unit:.0f} yardsticks of {unit:.2f} s")
    print(f"{name}: peak memory {used.ru_maxrss / 1e6:.2f} GB")


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", nargs="*", choices=["study", "simulated"], default=[], help="default: both")
    parser.add_argument("-n", type=int, default=100_000, help="simulated trials")
    parser.add_argument("--keep", type=Path, help="folder for logs and reports; by default they are removed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = options.keep or Path(temporary)
        for name in options.what or ["study", "simulated"]:
            logs = STUDY if name == "study" else home / "logs"
            if name == "simulated" and not logs.exists():
                simulate(logs, options.n)
            measure(name, logs, home / f"report-{name}")


if __name__ == "__main__":
    main()
