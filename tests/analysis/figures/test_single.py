from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scipy.stats import norm

from vlm_probe.analysis.figures.single import draw, psychometric
from vlm_probe.analysis.style import COLUMN_MM, DPI

Make = Callable[..., list[dict[str, Any]]]


def test_a_psychometric_function_has_the_width_of_a_column(tmp_path: Path, judgements: Make) -> None:
    noisy = judgements(lambda margin: float(norm.cdf(margin / 0.3)), seed=1, graded=True)
    path = draw({"tiny": judgements(lambda _: 0.7)}, tmp_path / "deep" / "p.png", {"noisy simulation": noisy})
    assert path == tmp_path / "deep" / "p.png"
    with Image.open(path) as picture:
        assert picture.width == pytest.approx(COLUMN_MM / 25.4 * DPI, abs=2)
        assert picture.info["dpi"][0] == pytest.approx(DPI, abs=1)
    assert [p.name for p in path.parent.iterdir()] == ["p.png"]


def test_equal_data_give_equal_bytes(tmp_path: Path, judgements: Make) -> None:
    for suffix in ("png", "pdf"):
        first = psychometric({"a": judgements(lambda _: 0.7)}, tmp_path / f"1.{suffix}")
        second = psychometric({"a": judgements(lambda _: 0.7)}, tmp_path / f"2.{suffix}")
        assert first.read_bytes() == second.read_bytes()


def test_an_action_is_drawn_by_condition(tmp_path: Path, actions: Make) -> None:
    path = draw({"tiny": actions()}, tmp_path / "a.png")
    assert path is not None and path.stat().st_size > 5000


def test_unread_and_failed_trials_are_no_obstacle(tmp_path: Path, judgements: Make) -> None:
    rows = judgements(lambda _: 0.5, per_bin=4)
    for row in rows[:4]:
        row.update(answer=None, status="no_answer", success=False)
    for row in rows[4:8]:
        row.update(answer=None, error="OSError: gone")
    assert draw({"tiny": rows}, tmp_path / "a.png") is not None
    assert draw({"tiny": []}, tmp_path / "b.png") is None


def test_a_psychometric_function_needs_a_judgement(tmp_path: Path, actions: Make) -> None:
    with pytest.raises(ValueError, match="two-option"):
        psychometric({"a": actions()}, tmp_path / "a.png")
