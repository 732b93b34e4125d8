"""The documentation as a site: built without a warning, whole, and legible at either width."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
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
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
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
    for package, name in (
        ("vlm_probe.analysis.mixed_effects", "fitting.fit"),
        ("vlm_probe.stimuli", "dataset.StimulusSet"),
    ):
        page = (site / f"reference/{package}.html").read_text(encoding="utf-8")
        assert f'id="{package}.{name}"' in page and "Raises" in page


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where the site is served: from the disk, browsers do not let it search."""
    handler = functools.partial(Quiet, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("width", "phone"), [(1280, False), (390, True)])
def test_pages_fit_the_screen(site: Path, address: str, chromium: Browser, width: int, phone: bool) -> None:
    chromium.resize(width, 844, phone=phone)
    for page in sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html")):
        chromium.open(f"{address}/{page}")
        wide = chromium.run("return document.documentElement.scrollWidth")
        assert wide <= width, f"{page} is {wide} pixels wide on a screen of {width}"
        broken = chromium.run(
            "return [...document.images].filter((i) => i.complete && !i.naturalWidth).map((i) => i.src)"
        )
        assert broken == [], page
    assert chromium.errors() == []


def test_what_is_searched_is_found(address: str, chromium: Browser) -> None:
    chromium.resize(1280, 844)
    chromium.open(f"{address}/index.html?q=equivalence")
    chromium.wait("return document.querySelectorAll('.md-search-result__item').length", 120)
    asked = chromium.run("return performance.getEntriesByType('resource').map((r) => new URL(r.name).host)")
    assert set(asked) == {address.removeprefix("http://")}, "the site asks other hosts"
