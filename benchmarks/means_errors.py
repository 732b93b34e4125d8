"""Error rates of the tests on means: how often each of the two rejects a true null, over items that are a sample.

    python benchmarks/means_errors.py [--replications 5000] [--items 60] [--runs 3 5 10]

Every run of a method answers the same items; the other side is the untrained model (one run), or a second method with as many runs. All
have the same expected rate over items, so that every rejection is wrong. Log odds are normal, with the standard deviations of
`KINDS`: of runs, of items, and of items for one method alone.
"""

from __future__ import annotations

import argparse

from vlm_probe.analysis.power import Scenario, power

KINDS = {"usual": (0.3, 0.7, 0.2), "wide": (0.3, 2.0, 1.0), "near": (0.5, 4.0, 3.0), "settled": (0.5, 8.0, 4.0)}
EFFECT = 0.1


def main() -> None:
    """Simulate and print a table in Markdown."""
    parser = argparse.ArgumentParser(description="Error rates of the tests on means.")
    parser.add_argument("--replications", type=int, default=5000)
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--runs", type=int, nargs="+", default=[3, 5, 10])
    options = parser.parse_args()
    print(f"| data | against | runs | over runs and items | its power at {EFFECT:g} | on these items |")
    print("|---|---|---|---|---|---|")
    for kind, (run_sd, item_sd, interaction_sd) in KINDS.items():
        for against in ("base", "method"):
            scenario = Scenario(EFFECT, 0.5, against, run_sd, item_sd, interaction_sd)
            found = power(options.runs, [options.items], scenario, options.replications, seed=1).table
            for row in found.itertuples():
                numbers = f"{row.type_1:.3f} | {row.power:.3f} | {row.type_1_runs:.3f}"
                print(f"| {kind} | {against} | {row.runs} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
