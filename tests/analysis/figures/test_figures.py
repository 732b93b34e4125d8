"""Every figure: PDF and PNG of the column's width, with text that fits, the same bytes for the same data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.special import expit

from vlm_probe.analysis.figures.calibration import calibration
from vlm_probe.analysis.figures.caterpillar import caterpillar
from vlm_probe.analysis.figures.heatmap import heatmap
from vlm_probe.analysis.figures.learning import learning_curves
from vlm_probe.analysis.figures.means import means
from vlm_probe.analysis.figures.psychometric import psychometric_curves
from vlm_probe.analysis.sections.contrasts import forest
from vlm_probe.analysis.style import COLUMN_MM, DPI, PAGE_MM

METHODS = ("none", "sft", "grpo")
TESTS = ("towers-stability", "towers-stability@camera:2", "towers-topblock", "balance-tilt")


def draw_means(stem: Path) -> None:
    cells, runs = [], []
    for number, method in enumerate(METHODS):
        for test in TESTS:
            rate = 0.5 + 0.2 * number * (test == TESTS[0])
            trained = "none" if method == "none" else "towers-stability"
            who = {"method": method, "trained_on": trained, "test": test}
            cells.append(who | {"rate": rate, "rate_low": rate - 0.1, "rate_high": min(1.0, rate + 0.1)})
            runs += [who | {"run": f"{method} {k}", "rate": rate + 0.03 * k} for k in range(1 if number == 0 else 3)]
    baselines = pd.DataFrame({"test": TESTS, "chance": 0.5, "best_baseline": [0.76, 0.76, None, 0.6]})
    means(pd.DataFrame(cells), pd.DataFrame(runs), baselines, stem)


def draw_heatmap(stem: Path) -> None:
    rng, rows = np.random.default_rng(0), []
    for training in ("SFT on towers-stability", "GRPO on towers-stability", "GRPO on balance-tilt"):
        for test in TESTS:
            difference = float(rng.normal(0, 0.15))
            within = training.endswith(test)
            rows.append(
                {
                    "training": training,
                    "test": test,
                    "rate": 0.5 + difference,
                    "difference": difference if test != TESTS[1] else np.nan,
                    "reliable": abs(difference) > 0.15,
                    "within": within,
                }
            )
    heatmap(pd.DataFrame(rows), stem)


def draw_forest(stem: Path) -> None:
    table = pd.DataFrame(
        {
            "group": ["Within task", "Within task", "Cross task", "Cross task"],
            "label": ["SFT − base", "GRPO − base", "SFT − base", "GRPO − SFT"],
            "estimate": [0.42, 0.35, 0.02, np.nan],
            "low": [0.3, 0.2, -0.06, np.nan],
            "high": [0.54, 0.5, 0.1, np.nan],
        }
    )
    forest(table, stem, "Difference in success rate", bound=0.1)


def draw_curves(stem: Path) -> None:
    x, points, curves = np.linspace(-0.9, 0.9, 8), [], []
    for number, method in enumerate(METHODS):
        p = expit(3 * number * x)
        head = {"panel": "towers-stability", "signal": "stands", "other": "falls", "method": method}
        points.append(pd.DataFrame({**head, "margin": x, "p_signal": p, "low": p - 0.05, "high": p + 0.05}))
        curves.append(pd.DataFrame({**head, "margin": x, "p_signal": p, "low": p - 0.03, "high": p + 0.03}))
    psychometric_curves(pd.concat(points), pd.concat(curves), stem)


def draw_calibration(stem: Path) -> None:
    confidence = np.array([0.55, 0.65, 0.75, 0.85, 0.95])
    parts = [
        pd.DataFrame(
            {"method": m, "confidence": confidence, "rate": y, "rate_low": y - 0.1, "rate_high": y + 0.1, "n": n}
        )
        for m, y, n in (("none", np.full(5, 0.5), 100), ("sft", confidence - 0.05, [10, 20, 50, 100, 400]))
    ]
    calibration(pd.concat(parts), stem)


def draw_learning(stem: Path) -> None:
    samples, runs, mean = np.arange(0, 2001, 100), [], []
    for number, method in enumerate(METHODS[1:]):
        for seed in range(3):
            value = 0.9 * (1 - np.exp(-samples / (400 + 300 * number + 50 * seed)))
            runs.append(pd.DataFrame({"panel": "t", "method": method, "run": seed, "samples": samples, "value": value}))
        own = pd.concat(runs[-3:]).groupby("samples")["value"].mean().to_numpy()
        frame = {"panel": "t", "method": method, "samples": samples, "mean": own, "low": own - 0.05, "high": own + 0.05}
        mean.append(pd.DataFrame(frame))
    learning_curves(pd.concat(runs), pd.concat(mean), stem, criterion=0.6)


def draw_caterpillar(stem: Path) -> None:
    rng = np.random.default_rng(0)
    parts = [
        pd.DataFrame(
            {
                "group": g,
                "level": [f"{g} {k}" for k in range(n)],
                "name": "(Intercept)",
                "mode": rng.normal(0, 1, n),
                "sd": 0.4,
            }
        )
        for g, n in (("run", 7), ("item", 200))
    ]
    caterpillar(pd.concat(parts), stem)


FIGURES = {f.__name__.removeprefix("draw_"): f for f in (
    draw_means, draw_heatmap, draw_forest, draw_curves, draw_calibration, draw_learning, draw_caterpillar
)}  # fmt: skip


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_a_figure(draw: Callable[[Path], None], tmp_path: Path) -> None:
    draw(tmp_path / "a")
    draw(tmp_path / "deep" / "a")
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["a.pdf", "a.png"]
    for suffix in (".pdf", ".png"):
        first = (tmp_path / f"a{suffix}").read_bytes()
        assert first == (tmp_path / "deep" / f"a{suffix}").read_bytes()
    assert b"/CreationDate" not in (tmp_path / "a.pdf").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        width = picture.width / DPI * 25.4
        assert min(abs(width - COLUMN_MM), abs(width - PAGE_MM)) < 0.5
        # Ink at the edge of the picture would be text that is cut off.
        grey = np.asarray(picture.convert("L"))
    assert all(edge.min() > 200 for edge in (grey[0], grey[-1], grey[:, 0], grey[:, -1]))
