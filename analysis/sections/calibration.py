"""Calibration, of runs that scored the options."""

from __future__ import annotations

from functools import partial

from vlm_probe.analysis.calibration import calibration
from vlm_probe.analysis.figures.calibration import calibration as draw
from vlm_probe.analysis.material import ReportData
from vlm_probe.analysis.section import Figure, MissingData, Section
from vlm_probe.analysis.style import name_of

CELL = ("model", "method")


def section(material: ReportData) -> Section:
    """Calibration by method. Raises Unanswerable if no run scored the options."""
    options = material.options
    if options.empty or options["confidence"].isna().all():
        raise MissingData("no run has option probabilities: add runs with `probe run --readout options`")
    over_tests = calibration(options, by=CELL)
    by_test = calibration(options, by=("model", "method", "test_task"))
    answer = []
    for row in over_tests.table.to_dict("records"):
        gap = row["confidence"] - row["success_rate"]
        answer.append(
            f"{row['model']}, {name_of(str(row['method']))}: mean confidence {row['confidence']:.2f}, success rate {row['success_rate']:.2f}"
            f" ({'over' if gap > 0 else 'under'}confident by {abs(gap):.2f}), {row['n_trials']} trials."
        )
    bins = over_tests.bins
    if bins["model"].nunique() > 1:
        bins = bins.assign(method=[f"{m} {k}" for m, k in zip(bins["model"], bins["method"], strict=True)])
    caption = (
        "Success rate over the probability that the model gave its answer, in classes of equal width; size: trials in the class;"
        f" 95 % Wilson intervals, in which trials count as independent; {int(bins['n'].sum())} trials."
    )

    return Section(
        "calibration",
        "Calibration",
        "Are answers that a model calls likely more often right?",
        tuple(answer),
        {"methods": over_tests, "tests": by_test},
        (Figure("calibration", caption, partial(draw, bins)),),
    )
