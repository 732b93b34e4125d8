"""The Hugging Face backend on small untrained models: batches, lengths, sampling, prompts, identity."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlm_probe.probes.models import SPARE_TOKENS, Generation, Trial
from vlm_probe.probes.models.huggingface import HuggingFaceModel
from vlm_probe.probes.models.loading import load_model
from vlm_probe.probes.run import RunConfig, run
from vlm_probe.probes.trials import read_run, read_trials
from vlm_probe.stimuli.dataset import StimulusSet
from vlm_probe.stimuli.question import ChoiceFormat, IntegerFormat, Option, Question

SaveModel = Callable[..., Path]


@pytest.fixture(scope="module")
def model(llava: Path) -> Any:
    return load_model(str(llava))


def trials_of(stimuli: StimulusSet, count: int = 8) -> list[Trial]:
    return [Trial(item, stimuli.image(item)) for item in stimuli.items[:count]]


@pytest.mark.parametrize("name", ["stability", "topblock", "grounding"])
def test_answers_do_not_depend_on_batches(name: str, model: Any, request: pytest.FixtureRequest) -> None:
    """Batch 1 against 8, single precision: the same replies, log-probabilities within 1e-4."""
    trials = trials_of(request.getfixturevalue(name))
    together = model.generate(trials, Generation(max_new_tokens=12))
    assert together == [model.generate([trial], Generation(max_new_tokens=12))[0] for trial in trials]
    assert len(set(together)) > 1  # the untrained model does look at what it is shown
    for row, trial in zip(model.score_options(trials), trials, strict=True):
        assert np.abs(row - model.score_options([trial])[0]).max() < 1e-4


def test_layers_of_another_make_are_left_whole(llava: Path, model: Any, topblock: StimulusSet) -> None:
    """Where the last layer mixes positions after its attention, nothing of it may be left out."""
    trials = trials_of(topblock, 3)
    assert model.generate(trials, Generation()) and model._trimmed
    mixing: Any = load_model(str(llava))
    last = mixing._model.model.language_model.layers[-1].mlp
    last.register_forward_hook(lambda _, __, out: out.cumsum(dim=1))
    mixing.generate(trials, Generation())
    assert mixing._trimmed is False
    scores = mixing.score_options(trials)
    assert not (mixing._scorer._use_tree and mixing._scorer._trimmed)
    few = [mixing._prompter.replies(trial)[:2] for trial in trials]
    with torch.inference_mode():
        expected = mixing._scorer._generated(mixing._inputs(trials), few)
    for row, value in zip(scores, expected, strict=True):
        assert np.abs(row[:2] - value).max() < 1e-3


def test_a_reply_stops_at_its_own_limit(model: Any, stability: StimulusSet, topblock: StimulusSet) -> None:
    """A batch with longer answers in it does not make the others longer."""
    trials = [*trials_of(stability, 2), *trials_of(topblock, 2)]
    together = model.generate(trials, Generation())
    assert together == [model.generate([trial], Generation())[0] for trial in trials]
    # "yes" and "-20" are three bytes each; the token that ends a reply is not part of the text.
    assert max(len(getattr(reply, "text", reply)) for reply in together) <= 4 + SPARE_TOKENS


def test_sampling_is_repeatable_and_by_item(model: Any, stability: StimulusSet) -> None:
    trials = trials_of(stability, 4)
    settings = Generation(temperature=1.0, max_new_tokens=8)
    replies = model.generate(trials, settings)
    assert replies == model.generate(trials, settings)
    assert replies[2:] == model.generate(trials[2:], settings)
    assert replies != model.generate(trials, Generation(temperature=1.0, max_new_tokens=8, seed=1))
    assert replies != model.generate(trials, Generation(max_new_tokens=8))
    cold = model.generate(trials, Generation(temperature=1e-6, max_new_tokens=8))
    assert cold == model.generate(trials, Generation(max_new_tokens=8))


def test_sampling_follows_the_model_s_probabilities(model: Any, stability: StimulusSet) -> None:
    """The first token of 400 sampled replies against the softmax."""
    trial = trials_of(stability, 1)[0]
    inputs = model._inputs([trial])
    with torch.inference_mode():
        expected = torch.softmax(model._model(**inputs).logits[0, -1].float(), dim=-1)
    likely = int(expected.argmax())
    settings = [Generation(temperature=1.0, max_new_tokens=1, seed=seed) for seed in range(400)]
    replies = [model.generate([trial], one)[0] for one in settings]
    texts = [getattr(reply, "text", reply) for reply in replies]
    share = np.mean([text == model._prompter.decode([likely]) for text in texts])
    assert abs(share - float(expected[likely])) < 4 * np.sqrt(0.25 / 400)


def test_generation_settings_of_the_checkpoint_are_not_used(
    tmp_path: Path, llava: Path, model: Any, stability: StimulusSet
) -> None:
    folder = Path(shutil.copytree(llava, tmp_path / "model"))
    settings = json.loads((folder / "generation_config.json").read_text())
    settings |= {"do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0, "max_new_tokens": 3, "num_beams": 2}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    trials = trials_of(stability, 4)
    assert load_model(str(folder)).generate(trials, Generation()) == model.generate(trials, Generation())


def test_the_identity_says_what_answered(model: Any, llava: Path, save_model: SaveModel, tmp_path: Path) -> None:
    identity = model.identity
    assert len(identity.weights_sha256) == 64 and identity.adapter_sha256 == "" and identity.name == llava.name
    assert identity.details["dtype"] == "float32" and identity.details["attention"] and identity.details["versions"]
    assert identity.details["processor"]["size"] == {"height": 32, "width": 32}
    other = load_model(str(save_model(tmp_path / "other", hidden=32))).identity
    assert other.weights_sha256 != identity.weights_sha256
    assert other.details["chat_template_sha256"] == identity.details["chat_template_sha256"]


def test_a_short_name_goes_by_itself_beside_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    model: Any = load_model("tiny")
    assert model.identity.name == "tiny"


@pytest.mark.parametrize("readout", ["generate", "options"])
def test_a_run_goes_from_pictures_to_rows(
    llava: Path, model: Any, stability: StimulusSet, tmp_path: Path, readout: str
) -> None:
    config = RunConfig(str(llava), "s", readout, batch_size=5)  # type: ignore[arg-type]
    report = run(config, stability, tmp_path / "r", model=model)
    rows = read_trials(report.path)
    assert report.n_errors == 0 and len(rows) == len(stability)
    if readout == "options":
        assert all(len(row["logprobs"]) == 2 and 0 <= row["p_correct"] <= 1 for row in rows)
    alone = run(RunConfig(str(llava), "s", readout, batch_size=1), stability, tmp_path / "one", model=model)  # type: ignore[arg-type]
    others = {row["item_id"]: row for row in read_trials(alone.path)}
    for row in rows:
        other = others[row["item_id"]]
        assert (row["raw"], row["answer"], row["key"]) == (other["raw"], other["answer"], other["key"])
    observed = read_run(report.path)["observed"]
    assert observed["pictures"] == ["64 x 64 seen as 32 x 32"] and 16 < observed["prompt_tokens"] < 512


def test_without_a_chat_template_the_fallback_is_used(
    save_model: SaveModel, tmp_path: Path, stability: StimulusSet, caplog: pytest.LogCaptureFixture
) -> None:
    bare = load_model(str(save_model(tmp_path / "bare", template=None)))
    assert "no chat template" in caplog.text
    assert isinstance(bare, HuggingFaceModel)
    trials = trials_of(stability, 2)
    prompt = trials[0].item.question.prompt
    assert bare._prompter.text(trials[0].turns) == f"<image>\n{prompt}\nAnswer:"
    assert len(bare.generate(trials, Generation())) == 2
    assert len(bare.score_options(trials)) == 2


def test_replies_are_written_as_the_chat_template_writes_them(
    save_model: SaveModel, stability: StimulusSet, tmp_path: Path
) -> None:
    """White space before a reply, and the token that ends it, come from the template."""
    first = trials_of(stability, 1)[0]

    def asking(question: Question) -> Trial:
        return replace(first, item=replace(first.item, question=question))

    trial = asking(Question("Yes?", ChoiceFormat((Option("yes", "a"), Option("no", "b")))))
    template = (
        "{% for m in messages %}{{ m['role'].upper() + ':' }}{% for p in m['content'] %}"
        "{{ ' <image>' if p['type'] == 'image' else ' ' + p['text'] }}{% endfor %}"
        "{% if m['role'] == 'assistant' %}{{ '</s>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    )
    spaced = load_model(str(save_model(tmp_path / "spaced", template=template)))
    assert isinstance(spaced, HuggingFaceModel)
    replies = spaced._prompter.replies(trial)
    decode = spaced._prompter._tokenizer.decode
    assert [decode(reply) for reply in replies] == [" yes</s>", " no</s>"]
    assert spaced._prompter.reply_length(trial) == 5
    assert len(spaced._prompter.replies(asking(Question("How far?", IntegerFormat(((-20, 20),)))))) == 41


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried 9 GB"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB"),
    ],
    ids=["Linux", "Windows", "Python", "GPU"],
)
@pytest.mark.parametrize("readout", ["generate", "options"])
def test_a_batch_that_does_not_fit_is_halved(
    error: Exception,
    readout: str,
    llava: Path,
    model: Any,
    stability: StimulusSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Memory for three trials: all are answered, as ever; it is said once, and known for the batches that follow."""
    small: Any = load_model(str(llava))
    small._trimmed = False  # or the first batch would be preceded by a check of the model
    asked = []

    def in_memory_of_three(inputs: Any, work: Callable[[], Any]) -> Any:
        asked.append(len(inputs["input_ids"]))
        if asked[-1] > 3:
            raise error
        return work()

    generate, score = small._model.generate, small._scorer.score
    if readout == "generate":
        monkeypatch.setattr(
            small._model, "generate", lambda **given: in_memory_of_three(given, lambda: generate(**given))
        )
    else:
        monkeypatch.setattr(small._scorer, "score", lambda given, c: in_memory_of_three(given, lambda: score(given, c)))
    config = RunConfig(str(llava), "s", readout, batch_size=10)  # type: ignore[arg-type]
    assert run(config, stability, tmp_path / "small", model=small).n_errors == 0
    run(config, stability, tmp_path / "whole", model=model)
    columns = ("item_id", "raw", "answer", "correct", "key")
    found, expected = (
        [{name: row[name] for name in columns} for row in read_trials(tmp_path / which)] for which in ("small", "whole")
    )
    assert found == expected
    assert asked[:3] == [10, 5, 3] and max(asked[3:]) <= 3 and len(asked) <= 3 + 10
    assert caplog.text.count("does not fit in memory") == 1
    assert read_run(tmp_path / "small")["observed"]["batch_size"] == 3


def test_a_trial_that_does_not_fit_fails_alone(model: Any, stability: StimulusSet) -> None:
    """And errors of another kind are passed on as they are."""
    trials = trials_of(stability, 2)

    def fail(part: Any) -> Any:
        raise torch.OutOfMemoryError(f"CUDA out of memory ({len(part)})")

    def differ(part: Any) -> Any:
        raise RuntimeError("shapes differ")

    with pytest.raises(torch.OutOfMemoryError, match=r"\(1\)"):
        model._in_parts(trials, fail)
    model._most = None
    with pytest.raises(RuntimeError, match="shapes differ"):
        model._in_parts(trials, differ)
    assert model._most is None


def test_the_start_token_comes_once(model: Any, stability: StimulusSet) -> None:
    inputs = model._inputs(trials_of(stability, 2))
    tokens = inputs["input_ids"]
    assert ((tokens == 1).sum(dim=1) == 1).all()
    # Padding is on the left: the last token is the beginning of the reply for all.
    assert (tokens[:, -1] == 5).all()
