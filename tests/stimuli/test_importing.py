"""Pictures and tables of other people become sets that work like our own, and what is wrong with them is named."""

import csv
import json
import logging
import re

import numpy as np
import pytest
from PIL import Image, ImageCms

from vlm_probe.probes.cli import main
from vlm_probe.probes.models import ModelError
from vlm_probe.probes.models.observers import make_observer
from vlm_probe.probes.readout import Scorer
from vlm_probe.probes.run import RunConfig, run
from vlm_probe.probes.trials import read_trials
from vlm_probe.stimuli.answer_cells import read_answer, read_grammar
from vlm_probe.stimuli.audit import audit
from vlm_probe.stimuli.dataset import StimulusError, StimulusSet
from vlm_probe.stimuli.importing import ImportProblems, import_set
from vlm_probe.stimuli.question import ChoiceFormat, IntegerFormat
from vlm_probe.stimuli.sheet import contact_sheet
from vlm_probe.stimuli.tables import read_table


def write(path, rows):
    """A table with the columns of its first row."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def pictures(tmp_path):
    """A folder with four small pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (40, 40), (60 * number, 90, 120)).save(folder / f"p{number}.png")
    return folder


def trials(n=4, **columns):
    return [
        {"file": f"p{i}.png", "answer": ("stands", "falls")[i % 2], **{k: v[i] for k, v in columns.items()}}
        for i in range(n)
    ]


def test_a_table_of_generated_items_gives_the_same_items_but_for_their_scenes(stability, tmp_path):
    rows = [
        {
            "stimulus": item.file_name,
            "truth": item.answer,
            "m": item.margin,
            "pair": item.pair_id,
            "group": item.group_id,
            "count": item.condition.count,
            "mirrored": "yes" if item.condition.mirrored else "no",
            "kind": item.condition.build,
        }
        for item in stability.items
    ]
    made = import_set(
        stability.path,
        write(tmp_path / "trials.csv", rows),
        tmp_path / "set",
        task="towers-stability",
        columns={"file": "stimulus", "answer": "truth", "margin": "m"},
        conditions=["kind"],
    )
    for old, new in zip(stability.items, StimulusSet.load(made.path).items, strict=True):
        assert (new.answer, new.margin, new.pair_id, new.group_id) == (
            old.answer,
            old.margin,
            old.pair_id,
            old.group_id,
        )
        assert (new.condition.count, new.condition.build) == (old.condition.count, old.condition.build)
        assert new.condition.mirrored == old.condition.mirrored
        assert new.scene is None
        np.testing.assert_array_equal(np.asarray(made.image(new)), np.asarray(stability.image(old)))
    assert made.items[0].question.prompt.startswith("Will this tower stay up?")
    assert made.card["labels"] == {"falls": 12, "stands": 12}


def test_margins_are_put_into_bins_of_which_none_straddles_the_boundary(pictures, tmp_path):
    table = write(tmp_path / "trials.csv", trials(margin=["0.3", "-0.1", "0", "-0.45"]))
    items = import_set(pictures, table, tmp_path / "set", task="towers-stability").items
    bins = [item.condition.margin_bin for item in items]
    assert bins[2] == (0.0, 0.0)  # which may as well not have been stated
    for item, (low, high) in zip(items, bins, strict=True):
        assert low <= item.margin <= high and low * high >= 0
    assert len(set(bins)) == 4
    same = trials(margin=["0.2", "-0.2", "0.2", "-0.2"])
    items = import_set(pictures, write(tmp_path / "same.csv", same), tmp_path / "one", task="towers-stability").items
    assert {item.condition.margin_bin for item in items} == {(0.0, 0.2), (-0.2, 0.0)}


def test_margins_that_contradict_their_answers_are_noted(pictures, tmp_path):
    """The expected signs are not written down anywhere: they are those of the task's own scenes."""
    good = trials(margin=["0.3", "-0.2", "0", "-0.4"])
    notes = [
        import_set(
            pictures, write(tmp_path / "trials.csv", rows), tmp_path / f"set{number}", task="towers-stability"
        ).card["imported"]["notes"]
        for number, rows in enumerate(
            (
                good,
                [*good[:3], good[3] | {"margin": "0.4"}],
                trials(margin=["-0.3", "0.2", "0", "0.4"]),
                trials(margin=[""] * 4),
            )
        )
    ]
    told = [[(note, n) for note, n in found.items() if "contradicts" in note] for found in notes]
    assert told[0] == told[3] == []
    assert told[1][0][1] == 1
    assert "line 5" in told[1][0][0]
    assert "stands +" in told[1][0][0]
    assert "look at the rows" in told[1][0][0]
    assert told[2][0][1] == 3
    assert "turn the sign" in told[2][0][0]


def test_it_works_wherever_a_generated_set_works(pictures, tmp_path, caplog):
    # Twelve pictures, because the audit asks for ten groups.
    for number in range(12):
        Image.new("RGB", (40, 40), (20 * number, 90, 120)).save(pictures / f"p{number}.png")
    table = write(tmp_path / "trials.csv", trials(12))
    made = import_set(pictures, table, tmp_path / "set", task="towers-stability")
    contact_sheet(made, tmp_path / "sheet.png", 6)
    report = run(RunConfig("chance", str(made.path)), made, tmp_path / "run", model=make_observer("chance"))
    assert (report.n, report.n_errors) == (12, 0)
    rows = read_trials(tmp_path / "run")
    assert all(row["correct"] == (row["answer"] == row["truth"]) for row in rows)
    assert {row["chance"] for row in rows} == {0.5}
    with caplog.at_level(logging.WARNING):
        scores = {shortcut.name: shortcut for shortcut in audit(made).shortcuts}
    assert "left out" in caplog.text
    assert scores["always stands"].score == 0.5
    assert {s.kind for s in scores.values()} == {"constant", "order", "prompt", "pixels"}
    for name in ("ideal", "heuristic", "noisy-simulation"):
        with pytest.raises(ModelError, match="needs the scene behind a picture"):
            make_observer(name).check(made.items)


def test_a_question_of_ones_own_with_a_range_a_tolerance_and_working_answers(pictures, tmp_path):
    rows = [
        {"file": "p0.png", "answer": "3", "prompt": "How far?", "options": "-20..20", "tolerance": "2", "working": ""},
        {
            "file": "p1.png",
            "answer": "-4",
            "prompt": "How far?",
            "options": "-20..20",
            "tolerance": "",
            "working": "-4;-6",
        },
        {
            "file": "p2.png",
            "answer": "5, 6",
            "prompt": "Where?",
            "options": "0..9, 0..9",
            "tolerance": "1",
            "working": "",
        },
        {"file": "p3.png", "answer": "no", "prompt": "Yes or no?", "options": "yes|no", "tolerance": "", "working": ""},
    ]
    made = import_set(pictures, write(tmp_path / "t.tsv", rows), tmp_path / "My set", columns={"id": "file"})
    first, second, third, fourth = made.items
    assert made.card["task"] == "own-my-set"
    assert [item.item_id for item in made.items] == ["p0.png", "p1.png", "p2.png", "p3.png"]
    scorer = Scorer()
    assert [a for a in range(-20, 21) if scorer.score(first, a).success] == [1, 2, 3, 4, 5]
    assert [a for a in range(-20, 21) if scorer.score(second, a).success] == [-6, -4]
    assert scorer.right_answers(third) == {(x, y) for x in (4, 5, 6) for y in (5, 6, 7)}
    assert scorer.describe(third)["chance"] == 9 / 100
    assert scorer.score(fourth, "no").success and not scorer.score(fourth, "yes").success
    run(RunConfig("chance", str(made.path)), made, tmp_path / "run", model=make_observer("chance"))
    assert all(row["error"] is None for row in read_trials(tmp_path / "run"))


def test_answers_are_meanings_or_words():
    grammar = read_grammar("yes=stands|no=falls")
    assert read_answer(grammar, "Yes") == read_answer(grammar, "stands") == "stands"
    with pytest.raises(ValueError, match="a word means different things"):
        read_answer(grammar, "yes", strict=True)
    assert isinstance(read_grammar("yes|no"), ChoiceFormat)
    assert read_grammar("-30..30, 0..50") == IntegerFormat(((-30, 30), (0, 50)))
    for broken in ("yes", "yes|yes", "|", "a=x|b=x"):
        with pytest.raises(ValueError, match="not at least two different words"):
            read_grammar(broken)


def test_all_wordings_are_used_in_turn_by_whole_groups(pictures, tmp_path):
    table = write(tmp_path / "t.csv", trials(pair=["a", "a", "b", "b"]))
    made = import_set(pictures, table, tmp_path / "set", task="towers-stability", wordings="all")
    prompts = [item.question.prompt for item in made.items]
    assert prompts[0] == prompts[1] != prompts[2] == prompts[3]
    assert [item.role for item in made.items] == ["base", "foil1", "base", "foil1"]


def test_every_problem_is_named_with_its_row_and_column_and_nothing_is_written(pictures, tmp_path):
    (pictures / "broken.png").write_bytes(b"not a picture")
    Image.new("RGB", (8, 8)).save(pictures / "tiny.png")
    rows = [
        {"file": "p0.png", "answer": "stands", "id": "a", "margin": "0.3", "count": "3", "n_stands": "4"},
        {"file": "p9.png", "answer": "falls", "id": "a", "margin": "0.3", "count": "3", "n_stands": "4"},
        {"file": "p1.png", "answer": "perhaps", "id": "b", "margin": "big", "count": "2.5", "n_stands": "-1"},
        {"file": "broken.png", "answer": "falls", "id": "c", "margin": "nan", "count": "", "n_stands": ""},
        {"file": "tiny.png", "answer": "", "id": "d", "margin": "", "count": "0", "n_stands": ""},
        {"file": "../t.csv", "answer": "falls", "id": "e", "margin": "", "count": "", "n_stands": ""},
    ]
    with pytest.raises(ImportProblems) as caught:
        import_set(pictures, write(tmp_path / "t.csv", rows), tmp_path / "set", task="towers-stability")
    expected = [
        ("line 3, column 'id'", "'a' is the id of line 2 already"),
        ("line 3, column 'file'", "there is no picture 'p9.png'"),
        ("line 4, column 'margin'", "'big' is not a number"),
        ("line 4, column 'count'", "'2.5' is not a whole number from 1"),
        ("line 4, column 'answer'", "'perhaps' is not one of stands (yes), falls (no)"),
        ("line 5, column 'file'", "cannot be read as a picture (it is none of PNG, JPEG"),
        ("line 5, column 'margin'", "'nan' is not a finite number"),
        ("line 6, column 'file'", "8 x 8 pixels: at least 16"),
        ("line 6, column 'count'", "'0' is not a whole number"),
        ("line 6, column 'answer'", "is empty"),
        ("line 7, column 'file'", "lies outside the folder"),
    ]
    problems = caught.value.problems
    assert len(problems) == len(expected)
    for (place, text), problem in zip(expected, problems, strict=True):
        assert place in problem and text in problem
    assert not (tmp_path / "set").exists()
    assert [p for p in tmp_path.iterdir() if "partial" in p.name] == []


def test_tables_that_cannot_be_used_at_all(pictures, tmp_path):
    def attempt(rows, **arguments):
        return import_set(pictures, write(tmp_path / "t.csv", rows), tmp_path / "set", **arguments)

    with pytest.raises(StimulusError, match=r"has no column 'answer'.*it has file, truth"):
        attempt([{"file": "p0.png", "truth": "stands"}], task="towers-stability")
    with pytest.raises(StimulusError, match="did you mean 'truth'"):
        attempt([{"file": "p0.png", "truth": "stands"}], task="towers-stability", columns={"answer": "truht"})
    with pytest.raises(StimulusError, match="without a task"):
        attempt(trials())
    with pytest.raises(StimulusError, match="depends on the scene"):
        attempt(trials(), task="towers-grounding")
    with pytest.raises(StimulusError, match="--conditions"):
        attempt(trials(), task="towers-stability", conditions=["surface"])
    (tmp_path / "t.jsonl").write_text('{"file": "p0.png", "answer": "stands"}\n{"file"\n')
    with pytest.raises(StimulusError, match="line 2, is damaged"):
        import_set(pictures, tmp_path / "t.jsonl", tmp_path / "set", task="towers-stability")


def test_odd_pictures_are_converted_with_a_note(pictures, tmp_path):
    Image.new("L", (30, 60), 200).save(pictures / "p0.png")
    clear = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    clear.putpixel((20, 20), (255, 0, 0, 255))
    clear.save(pictures / "p1.png")
    made = import_set(pictures, write(tmp_path / "t.csv", trials()), tmp_path / "set", task="towers-stability")
    grey, transparent = (np.asarray(made.image(item)) for item in made.items[:2])
    assert grey.shape == (60, 60, 3)
    assert (grey == 200).all(), "padded in the colour of the border"
    assert transparent[0, 0].tolist() == [255, 255, 255] and transparent[20, 20].tolist() == [255, 0, 0]
    notes = " ".join(made.card["imported"]["notes"])
    assert all(part in notes for part in ("from L to RGB", "from RGBA to RGB", "not square", "different sizes"))
    scaled = import_set(pictures, tmp_path / "t.csv", tmp_path / "small", task="towers-stability", size=32)
    assert {scaled.image(item).size for item in scaled.items} == {(32, 32)}


def test_photographs_are_shown_as_a_viewer_shows_them(pictures, tmp_path):
    """Turned as the camera was held, with all bits of grey, in the colours of their profile; the rest in one clear line."""
    half = Image.new("RGB", (40, 40), (200, 30, 30))
    half.paste((30, 30, 200), (0, 0, 40, 20))  # the upper half is blue
    held = Image.Exif()
    held[0x0112] = 6
    half.rotate(90).save(pictures / "p0.jpg", exif=held, quality=95)
    Image.fromarray(np.full((40, 40), 128 * 257, np.uint16)).save(pictures / "p1.png")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # A profile whose red is sRGB's blue, and the other way round.
    swapped = profile.replace(b"rXYZ", b"temp", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"temp", b"bXYZ", 1)
    half.save(pictures / "p2.png", icc_profile=swapped.replace("sRGB".encode("utf-16-be"), "BGR ".encode("utf-16-be")))
    half.save(pictures / "p3.png", icc_profile=profile)
    rows = [{**row, "file": "p0.jpg"} if row["file"] == "p0.png" else row for row in trials()]
    made = import_set(pictures, write(tmp_path / "t.csv", rows), tmp_path / "set", task="towers-stability")
    turned, grey, other, plain = (np.asarray(made.image(item)).astype(int) for item in made.items)
    assert np.abs(turned[10, 20] - (30, 30, 200)).max() < 8 and np.abs(turned[30, 20] - (200, 30, 30)).max() < 8
    assert (grey == 128).all()
    assert np.abs(other - plain[..., ::-1]).max() < 8 and (plain == np.asarray(half)).all()
    assert made.card["imported"]["notes"]["pictures whose colour profile was applied"] == 1
    Image.fromarray(np.full((40, 40), 0.5, np.float32)).save(pictures / "p1.tif")
    (pictures / "p2.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    rows = [{"file": file, "answer": "falls"} for file in ("p1.tif", "p2.heic")]
    with pytest.raises(ImportProblems) as raised:
        import_set(pictures, write(tmp_path / "u.csv", rows), tmp_path / "none", task="towers-stability")
    assert all(line.endswith("PNG or JPEG") and str(tmp_path) not in line for line in raised.value.problems)
    assert "do not say which of them is white" in raised.value.problems[0]


def test_responses_of_participants_travel_with_the_set(pictures, tmp_path):
    table = write(tmp_path / "t.csv", trials())
    answers = [
        {"subject": f"s{s}", "stim": f"p{i}.png", "said": "yes" if (s + i) % 2 else "falls", "RT": f"{0.4 + s}"}
        for s in range(3)
        for i in range(4)
    ]
    answers[5]["said"] = ""
    mapping = {"participant": "subject", "item": "stim", "response": "said", "rt": "RT"}
    long = write(tmp_path / "r.csv", answers)
    made = import_set(
        pictures, table, tmp_path / "set", task="towers-stability", responses=long, response_columns=mapping
    )
    found = StimulusSet.load(made.path).responses()
    assert len(found) == 11
    assert (found[0].item_id, found[0].participant, found[0].response) == (made.items[0].item_id, "s0", "falls")
    assert (found[1].response, found[1].rt, found[1].count) == ("stands", 0.4, 1)
    assert made.card["responses"]["participants"] == 3
    assert "human responses left out, because they are empty" in made.card["imported"]["notes"]
    (made.path / "responses.csv").write_text("edited")
    with pytest.raises(StimulusError, match="edited by hand"):
        made.responses()
    answers[0]["said"], answers[1]["stim"], answers[2]["RT"] = "maybe", "q1.png", "fast"
    with pytest.raises(ImportProblems) as caught:
        write(long, answers)
        import_set(pictures, table, tmp_path / "two", task="towers-stability", responses=long, response_columns=mapping)
    first, second, third = caught.value.problems
    assert "r.csv, line 2, column 'said': 'maybe'" in first
    assert "r.csv, line 3, column 'stim': there is no item 'q1.png' (did you mean 'p1.png'?)" in second
    assert "r.csv, line 4, column 'RT': 'fast' is not a number" in third


def test_responses_as_counts(pictures, tmp_path):
    table = write(tmp_path / "t.csv", trials(n_yes=[7, 0, 2, ""], response_falls=[1, 8, 6, 3]))
    made = import_set(pictures, table, tmp_path / "set", task="towers-stability")
    assert [(r.response, r.count) for r in made.responses()] == [
        ("stands", 7),
        ("falls", 1),
        ("falls", 8),
        ("stands", 2),
        ("falls", 6),
        ("falls", 3),
    ]
    assert made.responses()[0].participant == ""
    assert made.card["responses"]["n"] == 27


def test_sets_without_responses_have_none(stability):
    assert stability.responses() == []


@pytest.mark.parametrize("kind", ["generated", "imported"])
def test_a_set_opens_as_an_imagefolder_and_as_a_table(kind, stability, pictures, tmp_path):
    datasets = pytest.importorskip("datasets")
    found = stability
    if kind == "imported":
        table = write(tmp_path / "t.csv", trials(n_yes=[1, 2, 3, 4]))
        found = import_set(pictures, table, tmp_path / "set", task="towers-stability")
    loaded = datasets.load_dataset(
        "imagefolder", data_dir=str(found.path), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(loaded) == len(found)
    assert loaded["item_id"] == [item.item_id for item in found.items]
    np.testing.assert_array_equal(np.asarray(loaded[1]["image"]), np.asarray(found.image(found.items[1])))
    rows = list(found.flat_rows())
    assert [row["meaning"] for row in rows] == [item.answer for item in found.items]
    assert all(isinstance(value, (str, int, float)) for row in rows for value in row.values())
    assert rows[0]["condition_count"] == found.items[0].condition.count
    assert json.dumps(rows)


def test_the_commands_import_and_export(pictures, tmp_path, monkeypatch, capsys):
    def probe(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["stimuli", *arguments])
        return ended.value.code, *capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    rows = [{"stim": f"p{i}.png", "truth": ("yes", "no")[i % 2], "note": "x"} for i in range(4)]
    table = str(write(tmp_path / "t.csv", rows))
    command = ["import", "--images", str(pictures), "--table", table, "--task", "towers"]
    mapped = ["--columns", "file=stim,answer=truth", "--out", "set"]
    code, out, told = probe(*command, *mapped)
    assert code == 0
    assert "set: 4 items of towers-stability (2 falls, 2 stands)" in out
    assert "note: columns not used: note" in told
    code, out, _ = probe("export", "set", "--csv", "flat.csv")
    assert code == 0
    with (tmp_path / "flat.csv").open(encoding="utf-8", newline="") as file:
        assert [row["meaning"] for row in csv.DictReader(file)] == ["stands", "falls", "stands", "falls"]
    rows[2]["stim"] = "q2.png"
    write(tmp_path / "t.csv", rows)
    code, out, told = probe(*command, "--columns", "file=stim,answer=truth", "--out", "other")
    assert (code, out) == (1, "")
    assert "t.csv, line 4, column 'stim': there is no picture 'q2.png'" in told
    assert "1 problem(s); nothing was written" in told
    assert probe(*command, "--columns", "file", "--out", "other")[0] == 1
    assert not (tmp_path / "other").exists()


def test_ids_like_formulas_come_back_from_a_spreadsheet(pictures, tmp_path):
    ids = ["=SUM(A1:A3)", "+49 123", "-1+1", "@cell"]
    rows = [row | {"id": name, "=cue()": f"-{name}"} for row, name in zip(trials(), ids, strict=True)]
    table = write(tmp_path / "t.csv", rows)
    answers = [{"item": name, "participant": "@anna", "response": "falls", "rt": "0.5"} for name in ids]
    made = import_set(
        *(pictures, table, tmp_path / "set"),
        task="towers-stability",
        conditions=["=cue()"],
        responses=write(tmp_path / "r.csv", answers),
    )
    assert [item.item_id for item in made.items] == ids
    assert [(r.item_id, r.participant, r.rt) for r in made.responses()] == [(name, "@anna", 0.5) for name in ids]
    with pytest.raises(SystemExit):
        main(["stimuli", "export", str(made.path), "--csv", str(tmp_path / "flat.csv")])
    for file in (tmp_path / "flat.csv", made.path / "responses.csv"):
        with file.open(encoding="utf-8", newline="") as opened:
            cells = [cell for row in csv.reader(opened) for cell in row]
        assert not [cell for cell in cells if cell[:1] in ("=", "+", "@", "\t", "\r")]
        assert all(re.fullmatch(r"-[0-9.]+", cell) for cell in cells if cell.startswith("-"))
    flat, _ = read_table(tmp_path / "flat.csv")
    assert [row.cells["item_id"] for row in flat] == ids
    again = import_set(
        *(made.path, tmp_path / "flat.csv", tmp_path / "again"),
        task="towers-stability",
        columns={"file": "file_name", "id": "item_id", "answer": "meaning"},
    )
    assert [item.item_id for item in again.items] == ids
