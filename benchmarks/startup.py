"""What `probe --help` costs: CPU seconds, also as a ratio to `python -c pass`, and which heavy modules it imports.

python benchmarks/startup.py
"""

from __future__ import annotations

import resource
import subprocess
import sys

REPEATS = 10
HEAVY = ("torch", "transformers", "pybullet", "pandas", "numpy", "scipy", "matplotlib")
HELP = (
    "import sys; sys.argv = ['probe', '--help']\n"
    "from vlm_probe.probes.cli import main\n"
    "try: main()\n"
    "except SystemExit: pass\n"
    f"print(*(m for m in {HEAVY!r} if m in sys.modules), sep=',', file=sys.stderr)"
)


def cpu_seconds(code: str) -> float:
    """CPU seconds (user and system) of a fresh interpreter that runs the code; the least of `REPEATS`."""
    best = float("inf")
    for _ in range(REPEATS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return best


def main() -> None:
    """Measure and print."""
    bare, helped = cpu_seconds("pass"), cpu_seconds(HELP)
    found = subprocess.run([sys.executable, "-c", HELP], check=True, capture_output=True, text=True).stderr.strip()
    print(f"python -c pass  {bare:.3f} s CPU")
    print(f"probe --help    {helped:.3f} s CPU = {helped / bare:.1f} x (at most 0.3 s)")
    print(f"heavy modules   {found or 'none'}")


if __name__ == "__main__":
    main()
