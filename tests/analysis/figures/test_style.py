"""What figures have in common."""

from __future__ import annotations

from matplotlib.figure import Figure

from vlm_probe.analysis.style import legend_above


def test_a_legend_names_what_any_panel_shows_once() -> None:
    figure = Figure(layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], label="chance")
    left.errorbar([0], [1], yerr=[0.1], fmt="o", label="base")
    right.errorbar([0], [1], yerr=[0.1], fmt="o", label="base")
    right.errorbar([0], [1], yerr=[0.1], fmt="s", label="GRPO")
    legend_above(figure)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["base", "GRPO", "chance"]
