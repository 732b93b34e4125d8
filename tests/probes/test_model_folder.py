"""Model folders of unknown origin: who answered is known by every file that is loaded, and what is wrong is said in one line."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from vlm_probe.probes.models import Generation, ModelError, Trial
from vlm_probe.probes.models.limits import Limited, LimitError
from vlm_probe.probes.models.loading import load_model
from vlm_probe.probes.models.model_folder import INDEX, WEIGHTS, file_hashes, weights_hash
from vlm_probe.probes.models.network import load_config, load_processor
from vlm_probe.probes.run import RunConfig, run
from vlm_probe.probes.trials import RunError, read_run, read_trials
from vlm_probe.stimuli.dataset import StimulusSet

Copy = Callable[[], Path]
TEMPLATE = "chat_template.jinja"
LOOPS = "{% for a in range(50000) %}{% for b in range(50000) %}{% for c in range(50000) %}{% endfor %}{% endfor %}{% endfor %}"


@pytest.fixture
def copy(llava: Path, tmp_path: Path) -> Copy:
    """Makes a new copy of the small model."""
    numbers = iter(range(1000))
    return lambda: Path(shutil.copytree(llava, tmp_path / "models" / str(next(numbers)) / "model"))


def refused(folder: Path, **settings: Any) -> str:
    with pytest.raises(ModelError) as error:
        load_model(str(folder), **settings)
    message = str(error.value)
    assert "\n" not in message and len(message) < 700
    message.encode()
    return message


def edit(file: Path, **entries: Any) -> None:
    """Change entries of a JSON file; "a__b" is the entry b of a."""
    settings = json.loads(file.read_text())
    for path, value in entries.items():
        *outer, last = path.split("__")
        inner = settings
        for name in outer:
            inner = inner[name]
        inner[last] = value
    file.write_text(json.dumps(settings))


def divide(folder: Path, *names: str) -> dict[str, str]:
    """Divide the weights among files of these names, and give the map of the index."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    places = {key: names[number % len(names)] for number, key in enumerate(sorted(tensors))}
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        save_file({k: v for k, v in tensors.items() if places[k] == name}, folder / name, {"format": "pt"})
    write_index(folder, places)
    return places


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def half_a_run(folder: Path, stimuli: StimulusSet, out: Path) -> None:
    """A run that was stopped: six of eight trials are in the log."""
    run(RunConfig(str(folder), "s", limit=8), stimuli, out)
    lines = (out / "trials.jsonl").read_text().splitlines(keepends=True)
    (out / "trials.jsonl").write_text("".join(lines[:6]))
    record = json.loads((out / "run.json").read_text())
    del record["trials_sha256"]
    (out / "run.json").write_text(json.dumps(record | {"status": "running"}))


def merge_dropped(folder: Path) -> None:
    words = json.loads((folder / "tokenizer.json").read_text())
    words["added_tokens"] = words["added_tokens"][:-1]
    (folder / "tokenizer.json").write_text(json.dumps(words))


CHANGES: dict[str, Callable[[Path], Any]] = {
    "config.json": lambda folder: edit(folder / "config.json", vision_feature_layer=-2),
    "tokenizer.json": merge_dropped,
    "tokenizer_config.json": lambda folder: edit(folder / "tokenizer_config.json", model_max_length=512),
    "special_tokens_map.json": lambda folder: (folder / "special_tokens_map.json").write_text('{"eos_token": "</s>"}'),
    "processor_config.json": lambda folder: edit(folder / "processor_config.json", image_processor__resample=3),
    "generation_config.json": lambda folder: edit(folder / "generation_config.json", max_new_tokens=9),
    TEMPLATE: lambda folder: (folder / TEMPLATE).write_text((folder / TEMPLATE).read_text() + " "),
    "additional_chat_templates/tools.jinja": lambda folder: (
        (folder / "additional_chat_templates").mkdir(),
        (folder / "additional_chat_templates/tools.jinja").write_text("{{ messages }}"),
    ),
    "model.safetensors": lambda folder: save_file(
        {name: tensor * 1.5 for name, tensor in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS, {"format": "pt"}
    ),
}


@pytest.fixture(scope="module")
def half(llava: Path, stability: StimulusSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and a run of it that was stopped."""
    home = tmp_path_factory.mktemp("half")
    shutil.copytree(llava, home / "model")
    half_a_run(home / "model", stability, home / "run")
    return home


@pytest.mark.parametrize("file", CHANGES)
def test_a_run_of_a_model_that_has_changed_is_refused(
    half: Path, file: str, stability: StimulusSet, tmp_path: Path
) -> None:
    home = Path(shutil.copytree(half, tmp_path / "home"))
    config = RunConfig(str(home / "model"), "s", limit=8)
    CHANGES[file](home / "model")
    with pytest.raises(RunError, match=f"file {file}") as error:
        run(config, stability, home / "run")
    assert len(read_trials(home / "run")) == 6 and "\n" not in str(error.value)


def test_what_decides_no_answer_may_change(half: Path, stability: StimulusSet, tmp_path: Path) -> None:
    home = Path(shutil.copytree(half, tmp_path / "home"))
    for name in ("README.md", "training.json", "LICENSE.txt", "notes.pdf"):
        (home / "model" / name).write_text("{}")
    report = run(RunConfig(str(home / "model"), "s", limit=8), stability, home / "run")
    assert report.n_errors == 0 and len(read_trials(home / "run")) == 8
    record = read_run(home / "run")
    assert record["model"]["files"] == file_hashes(half / "model")
    keys = {row["key"] for row in read_trials(home / "run")}
    edit(home / "model" / "config.json", vision_feature_layer=-2)
    run(RunConfig(str(home / "model"), "s", limit=8), stability, home / "other")
    assert keys.isdisjoint(row["key"] for row in read_trials(home / "other"))


def test_the_hash_of_weights_is_that_of_what_is_loaded(copy: Copy) -> None:
    folder = copy()
    (folder / "another.safetensors").write_bytes(b"not loaded")
    alone = f"{WEIGHTS} {hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()}\n"
    assert weights_hash(folder) == hashlib.sha256(alone.encode()).hexdigest()
    divide(folder, "part-1.safetensors", "deep/part-2.safetensors")
    assert {"part-1.safetensors", "deep/part-2.safetensors", INDEX} <= set(file_hashes(folder))
    assert load_model(str(folder)).identity.weights_sha256 == weights_hash(folder)


@pytest.mark.parametrize(
    "name", ["/somewhere/else/part-1.safetensors", "../part-1.safetensors", "a/../../x.safetensors"]
)
def test_an_index_that_leads_out_of_the_folder_is_refused(copy: Copy, name: str) -> None:
    folder = copy()
    shutil.copyfile(folder / WEIGHTS, folder.parent / "part-1.safetensors")
    places = divide(folder, "part-1.safetensors")
    write_index(folder, dict.fromkeys(places, name))
    assert f"{folder / INDEX} names weights outside its folder ({name!r})" in refused(folder)


def test_links_are_followed_into_the_cache_of_the_hub_only(
    copy: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, home = copy(), tmp_path / "hub"
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    expected = weights_hash(folder)
    elsewhere = tmp_path / digest
    shutil.move(folder / WEIGHTS, elsewhere)
    (folder / WEIGHTS).symlink_to(elsewhere)
    assert "is a link out of its folder" in refused(folder)
    blobs = home / "models--owner--name" / "blobs"
    blobs.mkdir(parents=True)
    (folder / WEIGHTS).unlink()
    # As huggingface_hub lays files out that several models share: under a name that is another hash.
    (home / "blobs").mkdir()
    shutil.move(elsewhere, home / "blobs" / ("0" * 64))
    (blobs / digest).symlink_to(home / "blobs" / ("0" * 64))
    snapshot = Path(shutil.move(folder, home / "models--owner--name" / "snapshots" / "main"))
    (snapshot / WEIGHTS).symlink_to(Path("../../blobs") / digest)
    assert weights_hash(snapshot) == expected == load_model(str(snapshot)).identity.weights_sha256
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home))
    assert weights_hash(snapshot) == expected
    (home / "blobs" / ("0" * 64)).write_bytes(b"never read, since its name in the cache is its hash")
    assert weights_hash(snapshot) == expected


def test_an_adapter_inside_a_model_folder_is_refused(
    copy: Copy, llava: Path, save_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folder = copy()
    shutil.copytree(save_adapter(llava, tmp_path / "adapter"), folder, dirs_exist_ok=True)
    assert "is a model with an adapter inside (adapter_config.json)" in refused(folder)


SETTINGS: list[tuple[str, dict[str, Any], str]] = [
    ("config.json", {"text_config__num_hidden_layers": 1_000_000}, "text_config.num_hidden_layers is 1,000,000"),
    ("config.json", {"vision_config__num_hidden_layers": 10**9}, "vision_config.num_hidden_layers is 1,000,000,000"),
    ("config.json", {"text_config__num_hidden_layers": -1}, "text_config.num_hidden_layers is -1"),
    ("config.json", {"text_config__num_hidden_layers": "four"}, "num_hidden_layers"),
    ("config.json", {"text_config__hidden_size": 10**6}, "does not fit the weights"),
    ("config.json", {"text_config__vocab_size": 10**9}, "does not fit the weights"),
    ("config.json", {"vision_config__image_size": 10**6}, "does not fit the weights"),
    ("config.json", {"vision_config__patch_size": 0}, "vision_config.patch_size"),
    ("config.json", {"text_config__hidden_act": "no such thing"}, "text_config.hidden_act"),
    ("config.json", {"text_config__rms_norm_eps": float("nan")}, "text_config.rms_norm_eps is NaN"),
    ("config.json", {"text_config": []}, "text_config"),
    ("config.json", {"model_type": [1]}, "is damaged"),
    ("config.json", {"dtype": "float99"}, "dtype"),
    ("config.json", {"eos_token_id": "two"}, "eos_token_id"),
    ("config.json", {"_attn_implementation": "somebody/code"}, "names code of the hub to run"),
    ("config.json", {"transformers_weights": "../x.safetensors"}, "outside its folder"),
    ("generation_config.json", {"eos_token_id": "two"}, "eos_token_id is two"),
    ("generation_config.json", {"eos_token_id": [float("nan")]}, "eos_token_id[0] is NaN"),
    ("generation_config.json", {"eos_token_id": 10**9}, "eos_token_id is 1000000000"),
    ("generation_config.json", {"eos_token_id": [2, True]}, "eos_token_id is [2, True]"),
    ("generation_config.json", {"pad_token_id": {}}, "pad_token_id is {}"),
    ("generation_config.json", {"temperature": float("inf")}, "temperature is inf"),
    ("generation_config.json", {"max_new_tokens": "many"}, "max_new_tokens"),
    ("tokenizer_config.json", {"tokenizer_class": 7}, "tokenizer_class"),
    ("tokenizer_config.json", {"eos_token": 7}, "eos_token"),
    ("tokenizer_config.json", {"padding_side": "up"}, "padding_side"),
    ("processor_config.json", {"image_processor__image_std": [0, 0, 0]}, "image_processor.image_std"),
    ("processor_config.json", {"image_processor__rescale_factor": 0}, "image_processor.rescale_factor"),
    ("processor_config.json", {"image_processor__size": -1}, "image_processor.size"),
    ("processor_config.json", {"image_processor__size": {"height": 10**6, "width": 10**6}}, "image_processor.size"),
    ("processor_config.json", {"num_additional_image_tokens": 10**9}, "num_additional_image_tokens"),
]


@pytest.mark.parametrize(("file", "entries", "told"), SETTINGS, ids=[str(row[1])[:60] for row in SETTINGS])
def test_settings_that_cannot_be_are_named(copy: Copy, file: str, entries: dict[str, Any], told: str) -> None:
    folder = copy()
    edit(folder / file, **entries)
    start = time.process_time()
    message = refused(folder)
    assert time.process_time() - start < 20
    assert f"{folder / file}" in message and told in message


@pytest.mark.parametrize(
    "weight_map",
    [{"a": 7}, [1], None, {}, {"a": ["b"]}, {"a": "."}, {"a": "\0"}, {"a": "missing.safetensors"}],
    ids=str,
)
def test_an_index_that_is_none_is_named(copy: Copy, weight_map: Any) -> None:
    folder = copy()
    (folder / WEIGHTS).unlink()
    write_index(folder, weight_map)
    assert INDEX in refused(folder)


def hostile_texts(text: bytes) -> Iterator[bytes]:
    """A file cut off, nested, of other kinds, and with half a surrogate pair."""
    yield from (b"", text[: len(text) // 2], b"[" * 100_000, b'{"a":' * 900 + b"1" + b"}" * 900, b"[1]", b"null", b"7")
    yield from (b"\xff\xfe{}", b"\0" * 64, text + b"}", b'{"model_type": "\\ud83d"}', b'{"a": NaN}', b"1" * 5000)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "processor_config.json", INDEX])
def test_files_of_a_model_may_hold_anything(copy: Copy, file: str) -> None:
    """Read, or refused in one line that names a file; never another exception. The rest of the files: below."""
    read_or_refused(copy(), file)


@pytest.mark.slow
@pytest.mark.parametrize(
    "file", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", TEMPLATE, WEIGHTS]
)
def test_the_other_files_of_a_model_may_hold_anything(copy: Copy, file: str) -> None:
    read_or_refused(copy(), file)


def read_or_refused(folder: Path, file: str) -> None:
    if file == INDEX:
        divide(folder, "part.safetensors")
    whole = (folder / file).read_bytes() if (folder / file).is_file() else b"{}"
    for text in hostile_texts(whole):
        (folder / file).write_bytes(text)
        try:
            load_config(folder, "model")
            load_processor(folder, "model")
            if file in (TEMPLATE, WEIGHTS):
                load_model(str(folder))
        except ModelError as error:
            assert "\n" not in str(error) and "model" in str(error), text[:40]
            str(error).encode()


TEMPLATES = {
    "loops": (LOOPS, "more than 3 s"),
    "loops in replies": ("{% if messages|length > 1 %}" + LOOPS + "{% endif %}", "more than 3 s"),
    "memory": ("{{ 'x' * 10**11 }}", "more than 512 MB"),
    "doubling": (
        "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "more than 512 MB",
    ),
    "long": ("{{ 'x' * 3000000 }}", "1,048,576 are the most"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    "syntax": ("{% for m in %}", "Expected an expression"),
    "brackets": ("{{ " + "[" * 10_000, "failed"),
    "raises": ("{{ raise_exception('no pictures here') }}", "no pictures here"),
    "undefined": ("{{ a.b.c }}", "'a' is undefined"),
    "escape": ("{{ ''.__class__.__mro__ }}", "unsafe"),
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_hostile_template_is_stopped(copy: Copy, kind: str) -> None:
    folder = copy()
    text, told = TEMPLATES[kind]
    (folder / TEMPLATE).write_text((folder / TEMPLATE).read_text() + text)
    start = time.process_time()
    message = refused(folder)
    assert f"the chat template {folder / TEMPLATE} failed" in message and told in message
    assert time.process_time() - start < 20


def test_a_template_in_another_file_is_named(copy: Copy) -> None:
    for file in ("tokenizer_config.json", "processor_config.json", "chat_template.json"):
        folder = copy()
        (folder / TEMPLATE).unlink()
        if not (folder / file).is_file():
            (folder / file).write_text("{}")
        edit(folder / file, chat_template="{% for m in %}")
        assert f"chat_template in {folder / file} failed" in refused(folder)


def test_work_in_a_child_is_limited() -> None:
    def work(kind: str) -> Any:
        if kind == "loop":
            while True:
                pass
        return {"fine": [kind], "memory": "x" * (10**10 if kind == "memory" else 1), "pid": None}

    fine = Limited(work)
    assert [fine("a")["fine"] for _ in range(3)] == [["a"]] * 3
    with pytest.raises(LimitError, match="512 MB"):
        fine("memory")
    assert fine("b")["fine"] == ["b"]  # what fails in Python does not end the child
    short = Limited(work, seconds=0.2)
    with pytest.raises(LimitError, match=r"more than 0\.2 s"):
        short("loop")
    with pytest.raises(LimitError, match=r"more than 0\.2 s"):
        short("a")  # at once, and not after another child


def test_the_date_is_that_of_the_beginning_of_the_run(
    copy: Copy, stability: StimulusSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = copy(), tmp_path / "run"
    (folder / TEMPLATE).write_text("{{ strftime_now('%d %b %Y, %H:%M:%S') }}" + (folder / TEMPLATE).read_text())
    model: Any = load_model(str(folder))
    model.set_moment("2024-02-29T12:34:56")
    trial = Trial(stability.items[0], stability.image(stability.items[0]))
    assert model._prompter.text(trial.turns).startswith("29 Feb 2024, 12:34:56")
    run(RunConfig(str(folder), "s", limit=8), stability, out, model=model)
    assert read_run(out)["moment"] == "2024-02-29T12:34:56"
    lines = (out / "trials.jsonl").read_text().splitlines(keepends=True)
    (out / "trials.jsonl").write_text("".join(lines[:6]))
    later: Any = load_model(str(folder))
    assert not later.moment.startswith("2024")
    run(RunConfig(str(folder), "s", limit=8), stability, out, model=later)
    assert later.moment == "2024-02-29T12:34:56" == read_run(out)["moment"]
    assert later._prompter.text(trial.turns).startswith("29 Feb 2024")


def test_a_template_without_a_date_has_none(llava: Path, stability: StimulusSet, tmp_path: Path) -> None:
    run(RunConfig(str(llava), "s", limit=2), stability, tmp_path / "run")
    assert read_run(tmp_path / "run")["moment"] == ""


@pytest.mark.parametrize("readout", ["generate", "options"])
def test_logits_that_are_not_finite_fail_the_trial(
    copy: Copy, stability: StimulusSet, tmp_path: Path, readout: str
) -> None:
    folder = copy()
    tensors = load_file(folder / WEIGHTS)
    name = next(name for name in tensors if name.endswith("layers.1.mlp.down_proj.weight"))
    save_file(tensors | {name: tensors[name] * float("nan")}, folder / WEIGHTS, {"format": "pt"})
    report = run(RunConfig(str(folder), "s", readout, limit=4), stability, tmp_path / "run")  # type: ignore[arg-type]
    scoring = {"generate": "generation", "options": "loglikelihood"}[readout]
    errors = {str(row["error"]) for row in read_trials(report.path)}
    assert report.n_errors == 4 and all(row["raw"] is None for row in read_trials(report.path))
    assert all(f"{folder.name} gave logits that are not finite (scoring: {scoring})" in error for error in errors)


@pytest.mark.parametrize("readout", ["generate", "options"])
def test_only_the_trials_whose_logits_are_not_finite_fail(
    llava: Path, stability: StimulusSet, tmp_path: Path, readout: str
) -> None:
    """One image of eight spoils its row; the first batch is also that on which options are checked."""
    model: Any = load_model(str(llava))
    bad = stability.items[3].item_id
    make = model._make_inputs

    def spoiled(trials: Any) -> Any:
        inputs = make(trials)
        for row, trial in enumerate(trials):
            if trial.item.item_id == bad:
                inputs["pixel_values"][row] = float("nan")
        return inputs

    model._make_inputs = spoiled
    run(RunConfig(str(llava), "s", readout, limit=8), stability, tmp_path / "run", model=model)  # type: ignore[arg-type]
    run(RunConfig(str(llava), "s", readout, limit=8), stability, tmp_path / "sound")  # type: ignore[arg-type]
    rows = {row["item_id"]: row for row in read_trials(tmp_path / "run")}
    assert [item for item, row in rows.items() if row["error"]] == [bad]
    for sound in read_trials(tmp_path / "sound"):
        if sound["item_id"] != bad:
            assert rows[sound["item_id"]]["answer"] == sound["answer"]
    assert model._scorer._use_tree is not False


def test_a_token_that_is_masked_fails_nothing(llava: Path, stability: StimulusSet) -> None:
    """Some models never say some tokens: their logits are minus infinity, and those of others are fine."""
    model: Any = load_model(str(llava))
    trial = Trial(stability.items[0], stability.image(stability.items[0]))
    head = model._model.lm_head

    def mask(_: Any, __: Any, logits: Any) -> Any:
        logits[..., 5:7] = -float("inf")
        return logits

    head.register_forward_hook(mask)
    assert model.generate([trial], Generation()) and len(model.score_options([trial])[0]) == 2


def test_a_prompt_beyond_the_context_fails_its_trial(copy: Copy, stability: StimulusSet, tmp_path: Path) -> None:
    folder = copy()
    edit(folder / "config.json", text_config__max_position_embeddings=64)
    report = run(RunConfig(str(folder), "s", limit=2), stability, tmp_path / "run")
    assert report.n_errors == 2
    assert "reads 64 tokens, and a prompt has" in str(read_trials(report.path)[0]["error"])


def test_quantisation_is_read_from_the_model(tmp_path: Path, stability: StimulusSet) -> None:
    """Of a checkpoint that is stored in 4 bits, without an option; its weights are counted unpacked."""
    pytest.importorskip("bitsandbytes")
    from vlm_probe.probes.models.device import parameter_count
    from vlm_probe.probes.models.footprint import read_weights

    plain: Any = load_model("tiny")
    four: Any = load_model("tiny", load_in_4bit=True)
    assert four.identity.details["quantisation"] == "bitsandbytes 4-bit nf4"
    four._model.save_pretrained(tmp_path / "stored")
    four._prompter._processor.save_pretrained(tmp_path / "stored")
    stored: Any = load_model(str(tmp_path / "stored"))
    details = stored.identity.details
    assert details["quantisation"] == "bitsandbytes 4-bit nf4" and details["load_in_4bit"]
    assert plain.identity.details["quantisation"] == "none" and not plain.identity.details["load_in_4bit"]
    number = parameter_count(plain._model)
    assert details["parameters"]["total"] == number == plain.identity.details["parameters"]["total"]
    assert number == sum(parameter.numel() for parameter in plain._model.parameters())
    assert read_weights(tmp_path / "stored").parameters == number
    report = run(RunConfig(str(tmp_path / "stored"), "s", limit=2), stability, tmp_path / "run")
    assert report.n_errors == 0 and "bitsandbytes" in read_run(report.path)["versions"]
