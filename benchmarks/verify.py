"""Every number that the documents claim and that can be recomputed here: claim, stated value, value now, verdict.

    make verify                                        # some minutes on two cores
    python benchmarks/verify.py --only shortcut lme4   # some measures

The claims are in `benchmarks/claims.toml`; the stated value is read from the document itself, so that a document and what is
checked cannot drift apart. Exits with 1 if a claim fails.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import sys
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]


@dataclass(frozen=True)
class Claim:
    """A number in a document, and how it is recomputed; see the head of `claims.toml`."""

    doc: str
    text: str
    says: str
    measure: str
    given: Mapping[str, Any] = field(default_factory=dict)
    within: float = 0.0
    factor: float = 0.0

    def stated(self) -> str:
        """The number as it stands in the document, without the commas of thousands.

        Raises:
            ValueError: If it does not stand there, or not once.
        """
        found = re.findall(self.text, (ROOT / self.doc).read_text(encoding="utf-8"))
        if len(found) != 1:
            raise ValueError(f"{self.doc}: {self.text!r} is found {len(found)} times, not once: mend claims.toml")
        return str(found[0]).replace(",", "")

    def holds(self, now: float) -> bool:
        """Whether a value is what the document states, as far as the claim goes."""
        text = self.stated()
        stated = float(text)
        if self.factor:
            return stated / self.factor <= now <= stated * self.factor
        rounding = 0.5 * 10.0 ** -len(text.partition(".")[2])
        return abs(now - stated) <= self.within + rounding * (1 + 1e-9)


def read_claims() -> list[Claim]:
    """All claims."""
    data = tomllib.loads((Path(__file__).parent / "claims.toml").read_text(encoding="utf-8"))
    return [Claim(**entry) for entry in data["claim"]]


def main() -> int:
    """Recompute and print; the exit code."""
    parser = argparse.ArgumentParser(description="Recompute what the documents claim in numbers.")
    parser.add_argument("--only", nargs="*", default=[], help="names of measures")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    measures = importlib.import_module("measures")

    rows: list[dict[str, Any]] = []
    if not options.json:
        print(f"{'claim':<100} {'stated':>11} {'now':>11}  verdict")
    for claim in read_claims():
        if options.only and claim.measure not in options.only:
            continue
        begun = time.process_time()
        row: dict[str, Any] = {"doc": claim.doc, "claim": claim.says, "stated": ""}
        try:
            row["stated"] = claim.stated()
            now = float(getattr(measures, claim.measure)(**claim.given))
            row |= {"now": now, "verdict": "holds" if claim.holds(now) else "FAILS"}
        except Exception as error:  # one that cannot be checked must not hide the others
            row |= {"now": None, "verdict": f"FAILS ({type(error).__name__}: {' '.join(str(error).split())[:120]})"}
        rows.append(row | {"cpu_seconds": round(time.process_time() - begun, 1)})
        if not options.json:
            shown = "" if row["now"] is None else f"{row['now']:.6g}"
            print(
                f"{claim.doc}: {claim.says}"[:100].ljust(100),
                f"{row['stated']:>11} {shown:>11}  {row['verdict']}",
                flush=True,
            )
    failed = sum(row["verdict"] != "holds" for row in rows)
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        print(f"{len(rows) - failed} of {len(rows)} claims hold")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
