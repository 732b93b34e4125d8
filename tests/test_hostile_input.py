"""Files that somebody else has written, on purpose or by accident: one clear line for each, never a traceback."""

from __future__ import annotations

import csv
import hashlib
import json
import random
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from cyclopts import App, CycloptsError
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vlm_probe.analysis.frame import FrameError, load
from vlm_probe.analysis.page.build import build, script_json
from vlm_probe.analysis.page.motion import Motions
from vlm_probe.analysis.page.pictures import Pictures
from vlm_probe.analysis.registration import read_registration
from vlm_probe.analysis.training import read_curves
from vlm_probe.paper.study.design import read_design
from vlm_probe.paper.study.fields import StudyError
from vlm_probe.probes.cli import app, main
from vlm_probe.probes.models import Generation, Identity, Model, ModelError, Trial
from vlm_probe.probes.models.adapter_folder import CONFIG, TRAINING, read_adapter
from vlm_probe.probes.models.footprint import read_weights
from vlm_probe.probes.readout import Scorer, rescore
from vlm_probe.probes.run import RunConfig, run
from vlm_probe.probes.trials import RunError, archive_runs, read_run, read_trials
from vlm_probe.stimuli.dataset import StimulusError, StimulusSet
from vlm_probe.stimuli.errors import ProbeError, is_text
from vlm_probe.stimuli.importing import ImportProblems, import_set
from vlm_probe.stimuli.opening import LARGEST_EDGE, open_picture
from vlm_probe.stimuli.output import claim
from vlm_probe.stimuli.plain_json import parse
from vlm_probe.stimuli.tasks import UnknownTask

ROOT = Path(__file__).parent.parent
NASTY: tuple[Any, ...] = (None, [], {}, "", "../../x", -1, 1e308, True, "\x00", [[[]]], {"a": 1}, "x" * 500, 10**40)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything in a JSON value; of a list, its first entry."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


def mutations(value: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The value with one thing in it replaced or left out, again and again."""
    rng = random.Random(0)
    for path in places(value):
        for nasty in (*rng.sample(NASTY, 1), *([...] * (len(path) == 1))) if path else ():
            changed = deepcopy(value)
            inner = changed
            for key in path[:-1]:
                inner = inner[key]
            if nasty is ...:
                del inner[path[-1]]
            else:
                inner[path[-1]] = nasty
            yield f"{path} {nasty!r:.30}", changed


@pytest.fixture(scope="module")
def finished(stability: StimulusSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the heuristic observer."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    run(RunConfig("heuristic", str(stability.path)), stability, folder)
    return folder


def write_set(folder: Path, like: StimulusSet, rows: list[dict[str, Any]], **card: Any) -> Path:
    """A set whose card goes with its rows, as somebody who means harm would make it."""
    folder.mkdir(parents=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (folder / "card.json").write_text(json.dumps(like.card | {"content_sha256": digest, "n": len(rows)} | card))
    return folder


def test_a_card_with_anything_in_it(stability: StimulusSet, tmp_path: Path) -> None:
    for number, (what, card) in enumerate(mutations(stability.card)):
        folder = tmp_path / str(number)
        folder.mkdir()
        shutil.copyfile(stability.path / "metadata.jsonl", folder / "metadata.jsonl")
        (folder / "card.json").write_text(json.dumps(card))
        try:
            opened = StimulusSet.load(folder)
            assert isinstance(opened.card["task"], str), what
            opened.responses()
        except StimulusError as error:
            assert "\n" not in str(error), what


def test_items_with_anything_in_them(stability: StimulusSet, tmp_path: Path) -> None:
    row = next(stability.rows())
    for number, (what, changed) in enumerate(mutations(row)):
        opened = StimulusSet.load(write_set(tmp_path / str(number), stability, [changed]))
        try:
            (item,) = opened.items
            columns = Scorer().row(item, "yes", None)
        except (StimulusError, UnknownTask) as error:
            assert "\n" not in str(error), what
        else:
            json.dumps([columns, *opened.flat_rows()], allow_nan=False)


@pytest.mark.parametrize("file", ["run.json", "trials.jsonl"])
def test_runs_with_anything_in_them(finished: Path, stability: StimulusSet, tmp_path: Path, file: str) -> None:
    record = json.loads((finished / "run.json").read_text())
    del record["trials_sha256"]  # else every change of the log is told at once
    lines = (finished / "trials.jsonl").read_text().splitlines()[:4]
    for number, (what, data) in enumerate(mutations(record if file == "run.json" else json.loads(lines[0]))):
        folder = tmp_path / str(number)
        with claim(folder, "run") as output:
            output.track("trials.jsonl", "run.json")
            output.write("notes.txt", "")
        changed = [json.dumps(data), *lines[1:]] if file == "trials.jsonl" else lines
        (folder / "trials.jsonl").write_text("\n".join(changed) + "\n")
        (folder / "run.json").write_text(json.dumps(data if file == "run.json" else record))
        for use in (lambda path: load([path]), lambda path: rescore(path, stability)):
            try:
                use(folder)
            except (RunError, FrameError) as error:
                assert "\n" not in str(error), what


def test_the_page_shows_whatever_is_in_a_log(finished: Path, tmp_path: Path) -> None:
    attack = "</script><script>alert(1)</script>\u2028\u2029<img src=x onerror=alert(2)><!--"
    rows = [json.loads(line) for line in (finished / "trials.jsonl").read_text().splitlines()]
    record = json.loads((finished / "run.json").read_text())
    del record["trials_sha256"]
    record["model"]["name"] = attack
    for row in rows:
        row |= {"raw": attack, "prompt": attack, "model": attack, "item_id": row["item_id"] + attack}
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = build([folder], Pictures(0), Motions(0)).html
    blocks = re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)
    assert page.count("<script") == page.count("</script>") == len(blocks) == 3
    assert "<img src=x" not in page and "\u2028" not in page and "<!--" not in page.partition("<script")[2]
    assert attack in parse(script_json({"raw": attack}))["raw"]
    assert any(attack in json.dumps(parse(block), ensure_ascii=False) for block in blocks[:1])


def png_of(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_pictures_that_are_none(tmp_path: Path) -> None:
    small, frames, texts = tmp_path / "small.png", tmp_path / "frames.gif", tmp_path / "texts.png"
    Image.new("RGB", (40, 40), "red").save(small)
    still = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    still[0].save(frames, save_all=True, append_images=still[1:])
    info = PngInfo()
    info.add_text("a", "x" * 50_000_000, zip=True)
    Image.new("RGB", (40, 40)).save(texts, pnginfo=info)
    assert [open_picture(path)[0].size for path in (small, frames)] == [(40, 40)] * 2
    assert [open_picture(path)[1] for path in (small, frames)] == [False, True]
    edge = LARGEST_EDGE + 1
    for source, reason in (
        (png_of(edge, edge), "too many"),
        (png_of(20, edge), "too many"),
        (png_of(60_000, 20), "too many"),
        (png_of(100_000, 100_000), "too large"),
        (texts, "."),
        (small.read_bytes()[:-20], "."),
        (png_of(40, 40), "."),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n", "none of PNG"),
        (b"<svg/>", "none of PNG"),
    ):
        with pytest.raises(ValueError, match=reason):
            open_picture(source)


def test_limits_hold_for_the_square_that_a_picture_is_padded_to(tmp_path: Path, stability: StimulusSet) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (20, 60_000)).save(pictures / "strip.png")
    table = tmp_path / "table.csv"
    table.write_text("file,answer\nstrip.png,falls\n")
    for size in (None, 64):
        with pytest.raises(ImportProblems, match="20 x 60000 pixels are too many: scale it to edges of at most 10,954"):
            import_set(pictures, table, tmp_path / "set", task="towers-stability", size=size)
    for size in (8, 10**9, 64.5):
        with pytest.raises(ValueError, match="size must be a whole number from 16 to 4,096"):
            import_set(pictures, table, tmp_path / "set", task="towers-stability", size=size)  # type: ignore[arg-type]
    # Nor may a model scale the short edge of a strip up: sets of other programs have pictures of every shape.
    Image.new("RGB", (20, 2000)).save(tmp_path / "long.png")
    data = (tmp_path / "long.png").read_bytes()
    row = next(stability.rows()) | {"file_name": "long.png", "image_sha256": hashlib.sha256(data).hexdigest()}
    made = StimulusSet.load(write_set(tmp_path / "made", stability, [row]))
    (made.path / "long.png").write_bytes(data)
    with pytest.raises(StimulusError, match="50 times as long"):
        made.image(made.items[0])
    for number, card in enumerate(({"image_size": 10**9}, {"n": -1}, {"image_size": True})):
        with pytest.raises(StimulusError, match="must be a whole number from 0 to"):
            StimulusSet.load(write_set(tmp_path / str(number), stability, [row], **card))


def test_tables_cannot_reach_out_of_their_folder(tmp_path: Path) -> None:
    pictures, outside = tmp_path / "pictures", tmp_path / "outside.png"
    pictures.mkdir()
    Image.new("RGB", (40, 40)).save(outside)
    (pictures / "link.png").symlink_to(outside)
    (pictures / "ring.png").symlink_to(pictures / "ring.png")
    (pictures / "bomb.png").write_bytes(png_of(100_000, 100_000))
    names = ("../outside.png", str(outside), "link.png", "ring.png", "a\0b.png", "x" * 5000, "bomb.png", "..", ".")
    table = tmp_path / "table.jsonl"
    table.write_text("".join(json.dumps({"file": name, "answer": "falls"}) + "\n" for name in names))
    with pytest.raises(ImportProblems) as told:
        import_set(pictures, table, tmp_path / "set", task="towers-stability")
    assert len(told.value.problems) == len(names) and not (tmp_path / "set").exists()


def test_sets_cannot_reach_out_of_their_folder(stability: StimulusSet, tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("item_id,participant,response,rt,count\n")
    digest = hashlib.sha256(secret.read_bytes()).hexdigest()
    rows = list(stability.rows())[:1]
    for number, name in enumerate(("../secret.csv", str(secret))):
        row = rows[0] | {"file_name": name, "image_sha256": digest}
        made = write_set(tmp_path / str(number), stability, [row], responses={"file": name, "sha256": digest})
        opened = StimulusSet.load(made)
        with pytest.raises(StimulusError, match="outside the set"):
            opened.responses()
        with pytest.raises(StimulusError, match="outside the set"):
            opened.image(opened.items[0])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("long.csv", "file,answer\n" + "x" * 200_000 + ",yes\n"),
        ("nul.csv", 'file,answer\n"a\0b.png",yes\n'),
        ("deep.jsonl", '{"file": ' + "[" * 100_000 + "}\n"),
        ("bytes.csv", "file,answer\n\udcff,yes\n"),
        ("empty.csv", ""),
        ("list.jsonl", "[1]\n"),
        ("twice.jsonl", '{"file": "a.png", "answer": "falls", "answer": "stands"}\n'),
    ],
)
def test_tables_that_are_none(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(StimulusError) as told:
        import_set(tmp_path / "pictures", tmp_path / name, tmp_path / "set", task="towers-stability")
    assert "\n" not in str(told.value)


def test_half_a_character_in_a_table_is_named_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for column, row in (("id", {"file": "a.png", "id": "x\ud83d"}), ("\\udc00", {"\udc00": 1})):
        (tmp_path / "t.jsonl").write_text('{"file": "a.png", "answer": "falls"}\n' + json.dumps(row))
        with pytest.raises(StimulusError, match=rf"t\.jsonl, line 2, column '{re.escape(column)}'.*half a character"):
            import_set(tmp_path / "pictures", tmp_path / "t.jsonl", tmp_path / "set", task="towers-stability")


def test_a_reply_with_half_a_character_is_logged(stability: StimulusSet, tmp_path: Path) -> None:
    class Torn(Model):
        needs_images, identity = False, Identity("torn")

        def generate(self, trials: Sequence[Trial], settings: Generation) -> list[str]:
            return ["yes \ud83d"] * len(trials)

        def score_options(self, trials: Sequence[Trial]) -> list[Any]:
            raise NotImplementedError

    run(RunConfig("torn", "s"), stability, tmp_path / "run", model=Torn())
    assert {row["raw"] for row in read_trials(tmp_path / "run")} == {"yes \ufffd"}


def test_a_table_of_trials_with_words_for_numbers(tmp_path: Path) -> None:
    with (tmp_path / "trials.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("run", "test_task", "item_id", "correct", "margin"), ("a", "b", "c", 1, "wide")])
    with pytest.raises(FrameError, match="margin"):
        load([tmp_path / "trials.csv"])


@pytest.mark.parametrize(
    "text",
    [
        "study: ../../evil\n",
        "study: a\nmodels: [tiny]\ntraining: {../../evil: towers-stability}\nmethods: [sft]\ntests: {tasks: [towers]}\n",
        "study: !!python/object/apply:os.system ['true']\n",
        "study: &a [*a]\n",
        "study: {" * 5000,
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(8))
        + "study: *i\n",
        "\x00",
        "- 1\n",
    ],
    ids=["folder", "training", "python", "ring", "deep", "laughs", "nul", "list"],
)
def test_studies_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(StudyError) as told:
        read_design(tmp_path / "study.yaml")
    assert "\n" not in str(told.value) and len(str(told.value)) < 1000


def test_adapters_that_are_none(llava: Path, save_adapter: Any, tmp_path: Path) -> None:
    good = save_adapter(llava, tmp_path / "good")
    config = json.loads((good / CONFIG).read_text())
    damage = {
        CONFIG: ["[1]", "{", json.dumps(config | {"megatron_config": {"a": 1}, "megatron_core": "antigravity"})],
        TRAINING: ["[1]", "{", '{"base": "tiny"}', '{"budget": [1]}', "[" * 100_000],
    }
    for file, texts in damage.items():
        for number, text in enumerate(texts):
            bad = tmp_path / f"{file}-{number}"
            shutil.copytree(good, bad)
            (bad / file).write_text(text)
            with pytest.raises(ModelError) as told:
                read_adapter(bad)
            assert "\n" not in str(told.value)


def test_weights_whose_head_claims_more_than_there_can_be(tmp_path: Path) -> None:
    for number, head in enumerate(
        (struct.pack("<Q", 2**62), struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 2) + b"{}")
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(head)
        with pytest.raises(ModelError, match="copy or download"):
            read_weights(folder)


def damages(whole: bytes) -> dict[str, bytes]:
    """A file as accidents and strangers leave it."""
    return {
        "half": whole[: len(whole) // 2],
        "empty": b"",
        "deep": b"[" * 100_000,
        "binary": random.Random(0).randbytes(3000),
        "zeros": bytes(1000),
        "list": b"[[1, null]]",
        "number": b"7",
        "object": b"{}",
        "surrogate": b'{"study": "\\ud83d", "n": 1}',
        "another encoding": "Zürich".encode("utf-16"),
    }


@pytest.fixture(scope="module")
def sound(finished: Path, stability: StimulusSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one file of every kind that is read, all of them sound."""
    folder = tmp_path_factory.mktemp("sound")
    shutil.copytree(stability.path, folder / "set")
    shutil.copytree(finished, folder / "run")
    archive_runs([folder / "run"], folder, folder / "archive")
    table = load([folder / "run"]).table
    table.to_csv(folder / "table.csv", index=False)
    table.to_parquet(folder / "table.parquet")
    shutil.copyfile(ROOT / "paper/results/registration.json", folder / "registration.json")
    shutil.copyfile(ROOT / "examples/study/study.yaml", folder / "study.yaml")
    (folder / "training").mkdir()
    facts = {"method": "sft", "tasks": ["towers-stability"], "curves": [{"samples": 1, "success": 0.5}]}
    (folder / "training" / "training.json").write_text(json.dumps(facts))
    (folder / "items.jsonl").write_text(json.dumps({"file": "a.png", "answer": "stands"}) + "\n")
    (folder / "items.csv").write_text("file,answer\na.png,stands\n")
    shutil.copyfile(next((stability.path / "images").iterdir()), folder / "a.png")
    return folder


def read_settings(file: Path) -> None:
    """Read a file of options as the command line does."""
    app.parse_args(["models", "--config", str(file)], exit_on_error=False, print_error=False)


def import_items(file: Path) -> None:
    """Import a table of items, to nowhere."""
    with TemporaryDirectory() as folder:
        import_set(file.parent, file, Path(folder) / "set", task="towers-stability")


READERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "set/card.json": (lambda file: StimulusSet.load(file.parent).items, "card.json"),
    "set/metadata.jsonl": (lambda file: StimulusSet.load(file.parent).items, "metadata.jsonl"),
    "run/run.json": (lambda file: load([file.parent]), "run"),
    "run/trials.jsonl": (lambda file: load([file.parent]), "trials.jsonl"),
    "archive/logs.parquet": (lambda file: load([file.parent]), "archive"),
    "archive/runs.parquet": (lambda file: load([file.parent]), "archive"),
    "table.csv": (lambda file: load([file]), "table.csv"),
    "table.parquet": (lambda file: load([file]), "table.parquet"),
    "registration.json": (read_registration, "registration.json"),
    "study.yaml": (read_design, "study.yaml"),
    "training/training.json": (lambda file: read_curves(file.parent), "training.json"),
    "items.csv": (import_items, "items.csv"),
    "items.jsonl": (import_items, "items.jsonl"),
    "config.toml": (read_settings, "config.toml"),
}


@pytest.mark.parametrize("name", READERS)
def test_every_reader_names_what_is_damaged(sound: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "files"
    shutil.copytree(sound, folder)
    file, (read, named) = folder / name, READERS[name]
    if not file.exists():
        file.write_text("json = true\n")
    read(file)
    told = 0
    for what, data in damages(file.read_bytes()).items():
        file.write_bytes(data)
        try:
            read(file)
        except ProbeError as error:
            told += 1
            problems = error.problems if isinstance(error, ImportProblems) else [str(error)]
            assert all(named in text and "\n" not in text and len(text) < 700 for text in problems), (what, problems)
            assert is_text("".join(problems)), what
        except CycloptsError as error:  # what is TOML, and names no option
            assert named in str(error), what
    assert told >= 4


BAD = (
    *("run.json", "trials.jsonl", "card.json", "metadata.jsonl", "training.json", "adapter_config.json", "config.json"),
    *("adapter_model.safetensors", "model.safetensors", "tokenizer.json", "settings.json", "registration.json"),
    *(
        "logs.parquet",
        "runs.parquet",
        "state.json",
        "x.yaml",
        "t.csv",
        "t.jsonl",
        "t.parquet",
        "main.tex",
        "config.toml",
    ),
)
"""Files that a folder may hold for one command or another."""


def commands_on(bad: str, good: Path, run: Path) -> Iterator[list[str]]:
    """Every command, with a damaged folder or file wherever it takes one."""
    asked = ["--stimuli", str(good), "--limit", "2", "--no-references"]
    adapt = ["train", "--tasks", "towers-topblock", "--method", "sft", "--budget", "samples=16", "--items", "16"]
    yield ["run", "--model", "chance", "--stimuli", bad]
    yield ["run", "--model", "chance", *asked, "--out", bad]
    yield ["run", "--model", f"./{bad}", *asked]
    yield ["run", "--model", "tiny", *asked, "--adapter", bad]
    yield ["run", "--model", "chance", *asked, "--examples", "1", "--examples-from", bad]
    yield ["run", "--model", "chance", *asked, "--config", f"{bad}/config.toml", "--readout", "lips"]
    yield ["stimuli", "make", "towers", "-n", "4", "--out", bad]
    yield from (["stimuli", name, bad] for name in ("show", "check", "audit"))
    yield ["stimuli", "export", bad, "--csv", "out.csv"]
    yield ["stimuli", "list", "--config", f"{bad}/run.json"]
    for table in ("t.csv", "t.jsonl", "t.parquet"):
        yield [
            "stimuli",
            "import",
            "--images",
            bad,
            "--table",
            f"{bad}/{table}",
            "--out",
            "o",
            "--task",
            "towers-count",
        ]
    yield from (["adapters", name, bad] for name in ("show", "verify"))
    yield ["adapters", "list", "nowhere"]
    yield ["adapters", "merge", bad, "--out", "o"]
    yield ["check", f"task_{bad}:Task"]
    yield ["models", "--config", bad]
    yield ["score", bad]
    yield from ([*adapt, "--model", "tiny", option, bad] for option in ("--init", "--avoid", "--out"))
    yield [*adapt, "--model", f"./{bad}"]
    yield ["decode", "--model", "tiny", "--stimuli", bad, "--target", "margin"]
    yield ["analyze", bad]
    yield ["analyze", str(run), "--registered", f"{bad}/registration.json"]
    yield from ([name, bad] for name in ("report", "view", "paper"))
    yield ["paper", bad, "--manuscript", f"{bad}/main.tex"]
    yield ["power", "--runs", bad]
    yield from (["study", name, f"{bad}/x.yaml"] for name in ("plan", "freeze", "run", "status"))
    yield ["study", "pack", f"{bad}/x.yaml", "--to", "o"]
    yield ["pretrain", "--out", "o", "--config", f"{bad}/t.csv"]
    yield ["doctor", "--model", f"./{bad}"]
    yield ["ask", "what?", "--model", f"./{bad}"]
    yield ["ask", "what?", "--model", "tiny", "--image", f"{bad}/t.csv"]
    yield ["stimuli", "matched", bad, "--out", "o"]
    yield ["trials", "export", bad, "--csv", "o.csv"]


def every_command(of: App, path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """The names of all commands of the command line."""
    below = {name for name in of if not name.startswith("-")}
    return set().union(*(every_command(of[name], (*path, name)) for name in below)) if below else {path}


@pytest.mark.parametrize("what", ["binary", "list", "deep"])
def test_every_command_tells_it_in_one_line(
    tmp_path: Path,
    stability: StimulusSet,
    finished: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROBE_CACHE", str(tmp_path / "cache"))
    data = damages(b"")[what]
    (tmp_path / what).mkdir()
    for name in BAD:
        (tmp_path / what / name).write_bytes(data)
    (tmp_path / f"task_{what}.py").write_bytes(data)
    seen = set()
    for arguments in commands_on(what, stability.path, finished):
        seen |= {tuple(arguments[:1]), tuple(arguments[:2])}
        with pytest.raises(SystemExit) as end:  # anything else is a traceback
            main(arguments)
        told = capsys.readouterr().err
        assert end.value.code in (1, 2), (arguments, told)
        assert told.startswith("probe: ") and told.count("\n") == 1, (arguments, told)
    assert every_command(app) <= seen, "a new command belongs into the list"


def test_nothing_here_runs_what_it_reads() -> None:
    """No pickles, no code of models, no YAML beyond plain data, no shells: searched for in every source."""
    sources = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    sources = sources or [str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py")]
    forbidden = re.compile(
        r"\bpickle\b|allow_pickle\s*=\s*True|weights_only\s*=\s*False|trust_remote_code\W+True|yaml\.(unsafe_|full_)?load\((?!.*Loader=_Loader)"
        r"|(?<![.\w])(eval|exec)\(|shell\s*=\s*True|os\.system\("
    )
    found = [
        f"{name}:{number}: {line.strip()}"
        for name in sources
        if name.split("/")[0] in ("stimuli", "probes", "analysis", "finetune", "paper")
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1)
        if forbidden.search(line)
    ]
    assert not found


def test_an_edit_of_a_log_is_noted_for_good(finished: Path, stability: StimulusSet, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    log = folder / "trials.jsonl"
    log.write_text(log.read_text().replace('"success": false', '"success": true', 1))
    with pytest.raises(RunError, match="not what the run wrote"):
        load([folder])
    run(RunConfig("heuristic", str(stability.path)), stability, folder)  # nothing is left to ask, and the hash is new
    assert len(read_run(folder)["edited"]) == 1
    assert any("edited by hand" in note for note in load([folder]).notes)
    rescore(folder, stability)
    assert len(read_run(folder)["edited"]) == 1 and load([folder]).table["success"].sum() == sum(
        row["success"] for row in read_trials(finished)
    )
