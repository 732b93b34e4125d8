"""The page to explore, as far as it can be tested without a browser: what is in it, and that nothing in it can be code."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.analysis.conftest import run_rows, write_run, write_study
from vlm_probe.analysis.frame import load
from vlm_probe.analysis.page.build import build, packed, script_json
from vlm_probe.analysis.page.motion import Motions
from vlm_probe.analysis.page.pictures import Pictures
from vlm_probe.analysis.page.trials import MOST_OPTIONS, probabilities, shown_trials
from vlm_probe.probes.models.observers import make_observer
from vlm_probe.probes.run import RunConfig, run
from vlm_probe.stimuli.dataset import StimulusSet
from vlm_probe.stimuli.question import IntegerFormat

HOSTILE = "</script><script>document.title = 'taken'</script><!--<script> {{data}} \u2028 & \U0001f642"


class Blocks(HTMLParser):
    """The script blocks of a page, as a browser takes them apart, and every tag."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)


def block(html: str, name: str) -> Any:
    return next(json.loads(text) for attributes, text in Blocks(html).scripts if attributes.get("id") == name)


def column(data: dict[str, Any], name: str) -> list[Any]:
    found = data["columns"][name]
    return [found["levels"][code] for code in found["codes"]]


def page_of(*paths: Path, size: int = 64, motions: int = 0) -> str:
    return build(paths, Pictures(size), Motions(motions)).html


@pytest.fixture
def observed(stability: StimulusSet, tmp_path: Path) -> Path:
    config = RunConfig("chance", str(stability.path), readout="options")
    return run(config, stability, tmp_path / "run", model=make_observer("chance")).path


def test_every_trial_of_the_log_is_there_as_it_was(tmp_path: Path) -> None:
    rows = run_rows(n=24)
    rows[0].update(answer=None, status="no_answer", correct=False, success=False, reward=0.0, raw="perhaps")
    rows[1].update(answer=None, status="error", error="StimulusError: corrupt", correct=False, success=False)
    data = block(page_of(write_run(tmp_path / "r", rows)), "data")
    assert data["n"] == 24 and set(map(len, (column(data, name) for name in data["columns"]))) == {24}
    assert column(data, "item") == [row["item_id"] for row in rows]
    assert column(data, "raw") == [row["raw"] for row in rows]
    assert column(data, "margin") == [row["margin"] for row in rows]
    expected = ["unread", "failed"] + ["right" if row["correct"] else "wrong" for row in rows[2:]]
    assert column(data, "outcome") == expected
    assert any("1 trials of" in note for note in data["notes"])  # the failed one is in no rate, and that is said
    source = data["sources"][0]
    assert source["shortcuts"] == {"height": 0.55} and json.loads(source["facts"])["model"]["name"] == "tiny"


def test_the_transfer_matrix_is_that_of_the_report(tmp_path: Path) -> None:
    write_study(tmp_path / "study", methods=("sft",), seeds=2, tasks=("towers-stability", "balance-tilt"))
    data = block(page_of(tmp_path / "study"), "data")
    trained = {(row["training"], row["test"]): row for row in data["transfer"]["rows"]}
    own = trained["SFT on towers-stability", "towers-stability"]
    assert own["transfer"] == "within" and own["n_runs"] == 2 and own["difference"] > 0.1
    assert own["difference_low"] < own["difference"] < own["difference_high"]
    # The page joins the model's numbers with its own counts by these names.
    names = {source["training"] for source in data["sources"]}
    assert {training for training, _ in trained} == names
    levels = {
        k: v for source in data["sources"] if source["training"].startswith("SFT") for k, v in source["levels"].items()
    }
    assert levels == {"towers-stability": "within", "balance-tilt": "cross-family"}


def test_pictures_are_there_once_and_motions_show_what_happens(observed: Path, stability: StimulusSet) -> None:
    page = build([observed], Pictures(48), Motions(6))
    data, pictures = block(page.html, "data"), block(page.html, "pictures")
    asked = {item.image_sha256[: data["key"]] for item in stability.items}
    assert set(pictures) == asked and page.n_pictures == len(asked)
    with Image.open(io.BytesIO(base64.b64decode(next(iter(pictures.values()))))) as picture:
        assert picture.format == "WEBP" and picture.size == (48, 48)
    assert page.n_motions == len(data["motions"]) == 6
    keys = set(column(data, "motion"))
    assert set(data["motions"]) <= keys and "pybullet" in next(iter(data["motions"].values()))[1]
    options = column(data, "options")
    assert all(math.isclose(sum(p for _, p in given), 1, abs_tol=1e-3) for given in options)
    bare = build([observed], Pictures(0), Motions(0)).html
    assert block(bare, "pictures") == {} and block(bare, "data")["motions"] == {}


def test_a_set_that_is_gone_costs_the_pictures_alone(observed: Path, tmp_path: Path) -> None:
    record = json.loads((observed / "run.json").read_text())
    record["stimuli"]["path"] = str(tmp_path / "gone")
    (observed / "run.json").write_text(json.dumps(record))
    page = build([observed], Pictures(64), Motions(5))
    assert page.n_trials == 24 and page.n_pictures == page.n_motions == 0
    assert any("no pictures of" in note for note in page.notes)


def test_nothing_a_model_says_can_be_code(tmp_path: Path) -> None:
    rows = run_rows(n=8)
    for row in rows:
        row.update(raw=HOSTILE, prompt=HOSTILE, item_id=row["item_id"] + HOSTILE, error=None)
    html = page_of(write_run(tmp_path / "r", rows))
    blocks = Blocks(html)
    assert [attributes.get("id") for attributes, _ in blocks.scripts] == ["data", "pictures", None]
    data = block(html, "data")
    assert set(column(data, "raw")) == {HOSTILE}  # and yet it is all there
    html.encode("utf-8")
    # Only what came with the page may run, and it may ask for nothing.
    policy = next(a["content"] for tag, a in blocks.tags if tag == "meta" and "http-equiv" in a)
    digest = base64.b64encode(hashlib.sha256(blocks.scripts[-1][1].encode()).digest()).decode()
    assert policy is not None and f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert "connect-src 'none'" in policy and "unsafe" not in policy
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", html)
    script = blocks.scripts[-1][1]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)


def test_the_same_logs_give_the_same_page(observed: Path) -> None:
    assert page_of(observed, motions=4) == page_of(observed, motions=4)


def test_a_table_of_other_people_is_a_page_too(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("run,test_task,item_id,correct,margin\na,mine,i1,1,0.5\na,mine,i2,0,-0.5\n")
    data = block(page_of(table), "data")
    assert column(data, "outcome") == ["right", "wrong"] and column(data, "margin") == [0.5, -0.5]
    assert column(data, "prompt") == [None, None]


def test_probabilities_are_of_all_legal_answers() -> None:
    grammar = IntegerFormat(((-20, 20),))
    logprobs = [-0.1 * abs(value - 3) - 5 for value in range(-20, 21)]
    listed, others = probabilities({"logprobs": logprobs, "options": None}, grammar)
    assert listed[0][0] == "3" and len(listed) == MOST_OPTIONS
    assert others is not None and math.isclose(sum(p for _, p in listed) + others, 1, abs_tol=1e-3)
    assert probabilities({"logprobs": logprobs, "options": None}, None) == ((), None)  # unnamed numbers say nothing
    assert probabilities({"logprobs": None, "options": ["a", "b"]}, None) == ((), None)


def test_trials_that_the_table_leaves_out_as_repeated_are_left_out(tmp_path: Path) -> None:
    plain = run_rows(n=8)
    write_run(tmp_path / "a", plain)
    write_run(tmp_path / "b", [*plain, *run_rows(n=8, manner="blank")])
    trials = load([tmp_path / "a", tmp_path / "b"])
    assert len(trials.table) == 16
    assert len(list(shown_trials(trials, {}))) == 16


def test_what_is_known_of_a_scene_is_not_said_of_its_mirror_image(topblock: StimulusSet, tmp_path: Path) -> None:
    config = RunConfig("heuristic", str(topblock.path), design="mirrored")
    folder = run(config, topblock, tmp_path / "run", model=make_observer("heuristic")).path
    page = build([folder], Pictures(0), Motions(50))
    data = block(page.html, "data")
    shown = list(zip(column(data, "manner"), column(data, "works"), column(data, "motion"), strict=True))
    assert {manner for manner, _, _ in shown} == {"", "mirrored"}
    assert all((works == "") == (motion == "") == (manner == "mirrored") for manner, works, motion in shown)
    assert page.n_motions > 0 and "the answer carried out" in next(iter(data["motions"].values()))[1]
    # What is simulated here agrees with the log.
    assert not any("unlike" in words for _, words in data["motions"].values())


def test_packing() -> None:
    assert packed(["a", None, "a"]) == {"levels": ["a", None], "codes": [0, 1, 0]}
    text = script_json({"</script>": "<!-- & -->"})
    assert not set("<>&") & set(text) and json.loads(text) == {"</script>": "<!-- & -->"}
    with pytest.raises(ValueError, match="JSON"):
        script_json(math.nan)
    with pytest.raises(ValueError, match="size must be a whole number from 0"):
        Pictures(-1)
    with pytest.raises(ValueError, match="motions must be a whole number from 0"):
        Motions(-1)
