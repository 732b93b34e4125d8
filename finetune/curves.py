"""The figure of a training run: success, reward and what went on underneath, over the samples seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm_probe.finetune.monitor import BY_TASK

PANELS = (
    (
        "share of replies",
        (
            ("success", "success"),
            ("first_success", "at the first attempt"),
            ("parse_rate", "read"),
            ("zero_spread", "groups without spread"),
        ),
    ),
    ("reward", (("reward", "mean"), ("reward_sd", "standard deviation"))),
    ("loss", (("loss", "loss"), ("value_loss", "value loss"))),
    (
        "entropy, KL (nats per token)",
        (("entropy", "entropy"), ("kl", "KL from the start"), ("policy_kl", "KL per rollout")),
    ),
    ("explained variance", (("explained_variance", "of the returns"),)),
    ("gradient norm", (("gradient_norm", "norm"),)),
    ("auxiliary loss", (("auxiliary_loss", "squared error"),)),
)
INCH = 25.4


def draw_curves(rows: Sequence[dict[str, Any]], title: str, file: Path) -> None:
    """Draw the curves of a run.

    Args:
        rows: Log rows, with `samples` and the measures that the method has.
        title: What was trained.
        file: PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tasks = dict.fromkeys(name for row in rows for name in row if name.startswith(BY_TASK))
    by_task = ("success by task", tuple((name, name.removeprefix(BY_TASK)) for name in tasks))
    wanted = (PANELS[0], by_task, *PANELS[1:])
    panels = [(label, [line for line in lines if any(line[0] in row for row in rows)]) for label, lines in wanted]
    panels = [(label, lines) for label, lines in panels if lines]
    across = min(3, max(1, len(panels)))
    down = -(-len(panels) // across) or 1
    figure = Figure(figsize=(across * 60 / INCH, (down * 48 + 8) / INCH), layout="constrained", dpi=200)
    FigureCanvasAgg(figure)
    for place, (label, lines) in enumerate(panels):
        axes = figure.add_subplot(down, across, place + 1)
        for name, text in lines:
            points = [(row["samples"], row[name]) for row in rows if row.get(name) is not None]
            axes.plot(*zip(*points, strict=True), label=text, linewidth=1)
        # A share without a legend would not say of what.
        axes.set_ylabel("success" if [name for name, _ in lines] == ["success"] else label, fontsize=7)
        axes.set_xlabel("samples", fontsize=7)
        axes.tick_params(labelsize=6)
        axes.spines[["top", "right"]].set_visible(False)
        if label in ("share of replies", "success by task"):
            axes.set_ylim(-0.02, 1.02)
        if len(lines) > 1:
            axes.legend(fontsize=6, frameon=False)
    figure.suptitle(title, fontsize=8)
    figure.savefig(file)
