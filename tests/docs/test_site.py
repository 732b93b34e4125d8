"""The documentation as a site: built without a warning, whole, and legible at either width."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.analysis.page.browser import CHROMIUM, DRIVER, Browser, browser
from tests.docs.blocks import ROOT

pytestmark = pytest.mark.slow
pytest.importorskip("mkdocs", reason="needs the extra `docs`")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs chromium and chromedriver")
    with browser() as opened:
        yield opened


def test_every_package_and_command_has_its_reference(site: Path) -> None:
    commands = (site / "reference/cli.html").read_text(encoding="utf-8")
    assert all(f'id="probe-{name}"' in commands for name in ("run", "stimuli-make", "train", "analyze", "study-run"))
    for package, name in (("analysis.mixed_effects", "fitting.fit"), ("stimuli", "dataset.StimulusSet")):
        page = (site / f"reference/{package}.html").read_text(encoding="utf-8")
        assert f'id="{package}.{name}"' in page and "Raises" in page


@pytest.mark.parametrize(("width", "phone"), [(1280, False), (390, True)])
def test_pages_fit_the_screen(site: Path, chromium: Browser, width: int, phone: bool) -> None:
    chromium.resize(width, 844, phone=phone)
    for page in sorted(site.rglob("*.html")):
        chromium.open(page.as_uri())
        wide = chromium.run("return document.documentElement.scrollWidth")
        assert wide <= width, f"{page.name} is {wide} pixels wide on a screen of {width}"
        broken = chromium.run(
            "return [...document.images].filter((i) => i.complete && !i.naturalWidth).map((i) => i.src)"
        )
        assert broken == [], page.name
    assert chromium.errors() == []
