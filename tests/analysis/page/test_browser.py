"""The page in headless Chromium: nothing to complain of, filters that filter, keys that work, replies that stay text."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.analysis.conftest import run_rows, write_run, write_study
from tests.analysis.page.browser import CHROMIUM, DRIVER, Browser, browser
from vlm_probe.analysis.frame import load
from vlm_probe.analysis.page.build import build
from vlm_probe.analysis.page.motion import Motions
from vlm_probe.analysis.page.pictures import Pictures
from vlm_probe.analysis.page.server import View, make_server
from vlm_probe.analysis.proportions import wilson
from vlm_probe.probes.models.observers import make_observer
from vlm_probe.probes.run import RunConfig, run
from vlm_probe.stimuli.dataset import StimulusSet

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
]
HOSTILE = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\"></script>"
LEFT, RIGHT, END, ENTER, ESCAPE = "\ue012", "\ue014", "\ue010", "\ue007", "\ue00c"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        opened.resize(1200, 900)
        yield opened


def write(folder: Path, *runs: Path, motions: int = 0) -> str:
    folder.mkdir(exist_ok=True)
    page = folder / "page.html"
    page.write_text(build(runs, Pictures(64), Motions(motions)).html, encoding="utf-8")
    return page.as_uri()


def set_filter(chromium: Browser, name: str, label: str) -> str:
    """Choose a level by what it is called, or type a text, as a reader does; returns the count."""
    chromium.run(
        "const e = document.getElementById('filter').elements[arguments[0]];"
        "if (e.tagName === 'SELECT') e.value = [...e.options].find((o) => o.text === arguments[1]).value;"
        "else e.value = arguments[1];"
        "e.dispatchEvent(new Event('input', {bubbles: true}));",
        name,
        label,
    )
    return str(chromium.run("return document.getElementById('count').textContent"))


def test_a_study_is_explored(chromium: Browser, tmp_path: Path) -> None:
    write_study(tmp_path / "study", methods=("sft",), seeds=2)
    table = load([tmp_path / "study"]).table
    chromium.open(write(tmp_path / "page", tmp_path / "study"))
    assert chromium.run("return document.getElementById('count').textContent") == f"All {len(table)} trials"

    # The overview states what the log says, with the interval that `analysis` computes.
    own = table[(table["run"] == "tiny sft towers-stability seed 1") & (table["test_task"] == "towers-stability")]
    expected = wilson(own["success"].sum(), len(own))
    row = chromium.run(
        "return [...document.querySelectorAll('#table tbody tr')].map((r) => [...r.children].map((c) => c.textContent))"
        ".find((r) => r[0] === 'tiny sft towers-stability seed 1' && r[1] === 'towers-stability')"
    )
    written = [f"{value:.3f}".replace("0.", ".", 1) for value in (expected.value, expected.low, expected.high)]
    assert row[2:5] == [str(len(own)), written[0], f"[{written[1]}, {written[2]}]"]

    # Filters narrow, one after the other, and the address keeps them.
    base = table[table["method"] == "none"]
    assert set_filter(chromium, "training", "base") == f"{len(base)} of {len(table)} trials"
    tilt = base[base["test_task"] == "balance-tilt"]
    assert set_filter(chromium, "test", "balance-tilt") == f"{len(tilt)} of {len(table)} trials"
    right = tilt[tilt["success"] == 1]
    assert set_filter(chromium, "outcome", "right") == f"{len(right)} of {len(table)} trials"
    above = right[right["margin"] >= 0.3]
    assert set_filter(chromium, "low", "0.3") == f"{len(above)} of {len(table)} trials"
    address = chromium.run("return location.href")
    chromium.open("about:blank")
    chromium.open(address)
    assert chromium.run("return document.getElementById('count').textContent").startswith(f"{len(above)} of")
    chromium.run("document.querySelector('button[type=reset]').click()")
    assert chromium.run("return document.getElementById('count').textContent") == f"All {len(table)} trials"

    # A cell of the matrix shows its trials; the other measure is that of the mixed-effects model.
    trained = table[(table["method"] == "sft") & (table["test_task"] == "balance-tilt")]
    rate = trained.groupby("run", observed=True)["success"].mean().mean()
    told = chromium.run(
        "const b = [...document.querySelectorAll('#matrix button')].find((b) => b.ariaLabel.startsWith('SFT'));"
        "b.click(); return b.ariaLabel"
    )
    start = f"SFT on towers-stability on balance-tilt: {rate:.3f} of 96 trials, 2 runs; cross-family; from base "
    assert told.startswith(start.replace("0.", ".", 1)) and "Holm p" in told
    assert chromium.run("return document.getElementById('count').textContent").startswith(f"{2 * 48} of")
    chromium.run("document.querySelectorAll('#measures button')[1].click()")
    assert "Holm" in chromium.run("return document.getElementById('cell').textContent")
    assert chromium.errors() == []


def test_pictures_pairs_and_keys(chromium: Browser, stability: StimulusSet, tmp_path: Path) -> None:
    config = RunConfig("chance", str(stability.path), readout="options")
    folder = run(config, stability, tmp_path / "run", model=make_observer("chance")).path
    chromium.open(write(tmp_path / "page", folder, motions=8))
    chromium.run("document.getElementById('trials').scrollIntoView()")
    chromium.wait(
        "const i = document.querySelectorAll('.trial img'); return i.length && [...i].every((x) => x.naturalWidth)"
    )
    chromium.run("document.querySelector('.trial').focus()")
    chromium.press(RIGHT, RIGHT, LEFT)
    assert chromium.run("return document.activeElement.dataset.unit") == "1"
    chromium.press(END)
    assert chromium.run("return document.activeElement.dataset.unit") == "23"
    chromium.run("document.getElementById('filter').elements.pairs.click(); document.querySelector('.trial').focus()")
    assert chromium.run("return [...document.querySelectorAll('.unit')].every((u) => u.children.length === 2)")
    chromium.press(ENTER)
    assert chromium.run("return document.getElementById('detail').open")
    assert chromium.run("return document.querySelectorAll('.side').length") == 2
    shown = chromium.run("return document.getElementById('detail').textContent")
    assert "Probability of the legal answers" in shown and "Nobody else was asked" in shown
    chromium.wait("const i = document.querySelector('img.motion'); return i && i.naturalWidth > 400")
    first = chromium.run("return document.querySelector('#detail h2').textContent")
    chromium.press(RIGHT)
    assert chromium.run("return document.querySelector('#detail h2').textContent") != first
    chromium.press(ESCAPE)
    assert not chromium.run("return document.getElementById('detail').open")
    assert chromium.run("return document.activeElement.dataset.unit") == "1"
    chromium.press("/")
    assert chromium.run("return document.activeElement.name") == "text"
    assert chromium.errors() == []


def test_a_reply_is_text(chromium: Browser, tmp_path: Path) -> None:
    rows = run_rows(n=8)
    for row in rows:
        row.update(raw=HOSTILE, prompt=HOSTILE, item_id=row["item_id"] + HOSTILE, answer=None, status="no_answer")
        row.update(correct=False, success=False, reward=0.0)
    rows[0].update(error="ModelError: out of memory", status="error")
    chromium.open(write(tmp_path / "page", write_run(tmp_path / "r", rows)))
    row = chromium.run("return [...document.querySelectorAll('#table tbody td')].map((c) => c.textContent)")
    assert row[1:3] == ["7", ".000"] and row[-2:] == [
        "1.000",
        "1",
    ]  # unread replies are wrong, the failed trial is none
    chromium.run("document.getElementById('trials').scrollIntoView()")
    chromium.wait("return document.querySelectorAll('.trial').length === 8")
    chromium.run("document.querySelector('.trial').click()")
    assert chromium.run("return document.querySelector('pre.raw').textContent") == HOSTILE
    assert chromium.run("return document.title") == "8 trials of 1 run"
    assert chromium.run("return document.querySelectorAll('img[onerror], script:not(head script)').length") == 3
    assert set_filter(chromium, "text", "onerror") == "All 8 trials"
    assert set_filter(chromium, "text", "nobody says this") == "0 of 8 trials"
    assert chromium.errors() == []


def test_news_of_a_run_that_goes_on(chromium: Browser, tmp_path: Path) -> None:
    write_run(tmp_path / "a", run_rows(n=8))
    with make_server(View([tmp_path], Pictures(0), Motions(0)), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        chromium.open(f"http://127.0.0.1:{server.server_address[1]}/")
        assert set_filter(chromium, "outcome", "right") != "All 8 trials"
        write_run(tmp_path / "b", run_rows("balance-tilt", n=8))
        chromium.wait("return !document.getElementById('news').hidden")
        chromium.run("document.querySelector('#news button').click()")
        chromium.wait("return document.title === '16 trials of 1 run'")
        # The reader's filters are kept.
        assert chromium.run("return document.getElementById('count').textContent").endswith(" of 16 trials")
        server.shutdown()
    assert chromium.errors() == []


def test_two_thousand_trials_open_within_a_second_and_a_phone_shows_them(chromium: Browser, tmp_path: Path) -> None:
    for seed in range(4):
        write_run(
            tmp_path / "runs" / str(seed),
            run_rows(n=500, seed=seed),
            method="sft",
            train_tasks=["balance-tilt"],
            seed=seed,
        )
    address = write(tmp_path / "page", tmp_path / "runs")
    took = []
    for _ in range(3):
        chromium.open("about:blank")
        chromium.open(address)
        took.append(chromium.run("return performance.getEntriesByType('navigation')[0].loadEventEnd"))
    assert min(took) < 1000, took
    assert chromium.run("return document.getElementById('count').textContent") == "All 2000 trials"
    for part in (0.3, 0.9):
        chromium.run("scrollTo(0, document.body.scrollHeight * arguments[0])", part)
        chromium.wait("return document.querySelectorAll('.unit').length > 4")
        assert chromium.run("return document.querySelectorAll('.unit').length") < 150
    try:
        chromium.resize(390, 844, phone=True)
        chromium.open("about:blank")
        chromium.open(address)
        assert chromium.run("return document.documentElement.scrollWidth") == 390
        assert chromium.run("return document.getElementById('filters').open") is False
        assert chromium.run("return getComputedStyle(document.body).fontSize") == "15px"
    finally:
        chromium.resize(1200, 900)
    assert chromium.errors() == []
