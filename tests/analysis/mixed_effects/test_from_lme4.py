"""Every line of Python beside one of R on the page for people from lme4 runs as it stands there."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.analysis.mixed_effects.conftest import simulate
from vlm_probe.analysis import fit

PAGE = Path(__file__).parents[3] / "docs" / "from-lme4.md"


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What the page takes for granted: a table `d`, a fit `r` of it, two nested fits, and rows to predict."""
    d = simulate(runs=4, items=30, per_run=30)
    rng = np.random.default_rng(5)
    d["shift"] = rng.choice(["camera", "none"], len(d))
    d["correct"] = d["correct"].astype(int)
    d["said"] = np.where(d["correct"] == 1, "yes", "no")
    d["n"], d["exposure"] = 5, rng.uniform(0.5, 2, len(d))
    d["k"] = rng.binomial(5, 0.5, len(d))
    with warnings.catch_warnings(action="ignore"):
        r = fit("correct ~ method*shift + margin + (1 | run) + (1 | item)", d, family="binomial")
        m1, m2 = (fit(f"rt ~ {fixed} + (1 | run)", d) for fixed in ("method + margin", "method"))
    return {"fit": fit, "np": np, "pd": pd, "d": d, "r": r, "m1": m1, "m2": m2, "new": d.head(3)}


def python_of(page: str) -> list[str]:
    """Code spans of the last column of the table, as far as they are calls or attributes of ours."""
    rows = [line for line in page.splitlines() if line.startswith("| `") and line.count("`") >= 4]
    cells = [re.split(r"(?<!\\)\|", row)[2] for row in rows]
    spans = [span.replace("\\|", "|") for cell in cells for span in re.findall(r"`([^`]+)`", cell)]
    return [span for span in spans if re.match(r"(fit\(|print\(|pd\.|r\.|m1\.)", span)]


SPANS = python_of(PAGE.read_text(encoding="utf-8"))


def test_the_page_for_people_from_lme4_is_read_as_it_should() -> None:
    assert len(SPANS) > 40 and any("profile" in span for span in SPANS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("span", SPANS)
def test_every_snippet_of_it_runs(names: dict[str, Any], span: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = eval(span, dict(names))
    assert found is not None or (
        span.startswith("print(") and "Logistic mixed-effects model" in capsys.readouterr().out
    )
