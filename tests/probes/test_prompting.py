"""The one place that makes prompts: chat templates of every kind, what replies are made of, and models that think."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from transformers import AutoProcessor, BlipImageProcessor, LogitsProcessor, LogitsProcessorList

from tests.families import tokenizer_of
from vlm_probe.analysis.summary import summarise
from vlm_probe.probes.models import Generation, ModelError, Reply, Trial, Turn
from vlm_probe.probes.models.dummy_inputs import dummy_inputs
from vlm_probe.probes.models.loading import load_model
from vlm_probe.probes.models.prompting import Prompter, turns_of, with_tokens
from vlm_probe.probes.models.thinking import Thinking, closes_thought, opened, read_arguments, split, tags_of
from vlm_probe.probes.readout import rescore
from vlm_probe.probes.run import RunConfig, run
from vlm_probe.probes.tiny import WEIGHTS
from vlm_probe.probes.trials import read_run, read_trials
from vlm_probe.stimuli.dataset import StimulusSet

MESSAGE = "{% for p in m.content %}{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}"
ASKED = "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"


def template(
    start: str = "<s>", user: str = MESSAGE, reply: str = MESSAGE, end: str = "</s>", asked: str = "<assistant>"
) -> str:
    """A chat template of the form that many models have."""
    return (
        f"{start}{{% for m in messages %}}{{% if m.role == 'user' %}}<user>{user}{{% else %}}<assistant>{reply}{end}{{% endif %}}"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{asked}{{% endif %}}"
    )


TEXT = "{{ m.content | string | trim }}"
THINKING = template(asked="<assistant><seed:think>")
KINDS = {
    "parts": (template(), "<s><user><image>{q}<assistant>", ["7", "</s>"]),
    "replies as text": (template(reply=TEXT), "<s><user><image>{q}<assistant>", ["7", "</s>"]),
    "all as text": (template(user=TEXT, reply=TEXT), "<s><user><image>\n{q}<assistant>", ["7", "</s>"]),
    "no end token": (template(end=" "), "<s><user><image>{q}<assistant>", ["7", "</s>"]),
    "a newline first": ("\n" + template(), "\n<s><user><image>{q}<assistant>", ["7", "</s>"]),
    "a system prompt": (template("<s>Be brief. "), "<s>Be brief. <user><image>{q}<assistant>", ["7", "</s>"]),
    "an empty thought in the history": (
        template(reply="<think>\n\n</think>\n\n" + MESSAGE), "<s><user><image>{q}<assistant>", ["7", "</s>"]),
    "no replies": (
        template(reply="{{ raise_exception('none') }}"), "<s><user><image>{q}<assistant>", ["7", "</s>"]),
}  # fmt: skip


def with_template(text: str, folder: Path) -> Path:
    """A copy of the embedded model with another chat template."""
    shutil.copytree(WEIGHTS, folder)
    (folder / "chat_template.jinja").write_text(text)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_templates_of_every_kind(kind: str, tmp_path: Path) -> None:
    """The prompt, with one start token, and a reply: exactly the answer and the token that ends it."""
    text, prompt, reply = KINDS[kind]
    loaded: Any = load_model(str(with_template(text, tmp_path / "m")))
    prompter = loaded._prompter
    assert prompter.text([dummy_inputs()]) == prompt.format(q=dummy_inputs().text)
    assert [
        prompter.decode([token], special=True) for token in prompter.reply_tokens([dummy_inputs()], ("7",))[0]
    ] == reply
    ids = prompter.inputs([[dummy_inputs()]])["input_ids"][0].tolist()
    assert ids.count(prompter.encode("<s>")[0]) == 1
    assert prompter.thinks is None and not prompter.thinking_used


def test_a_start_token_that_the_tokenizer_adds_is_not_written_twice(tmp_path: Path) -> None:
    """Also where the template writes it late, and where the configuration names none."""
    from tokenizers.processors import TemplateProcessing

    processor = AutoProcessor.from_pretrained(WEIGHTS)
    start = processor.tokenizer.convert_tokens_to_ids("<s>")
    adds = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    for text, name in ((KINDS["a newline first"][0], None), (template(), "<s>"), (template(""), "<s>")):
        processor.tokenizer.bos_token = name
        processor.tokenizer._tokenizer.post_processor = adds
        processor.chat_template = text
        prompter = Prompter(processor, [processor.tokenizer.eos_token_id], "m")
        assert prompter.inputs([[dummy_inputs()]])["input_ids"][0].tolist().count(start) == 1


def test_of_named_templates_the_default_is_used(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(WEIGHTS, tmp_path / "m"))
    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": "tools", "template": "{{ 1 / 0 }}"}, {"name": "default", "template": template("<s>Default. ")}]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": named}))
    loaded: Any = load_model(str(folder))
    assert loaded._prompter.text([dummy_inputs()]).startswith("<s>Default. <user><image>")


@pytest.mark.parametrize(
    ("text", "images", "words"),
    [
        (template(user="{{ m.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join }}"), 1,
         r"(has no place for|does not take) an image in one prompt.*: use another model"),
        (template("{% if messages | length > 1 %}{{ raise_exception('One image only!') }}{% endif %}<s>"), 2,
         r"does not take 2 images in one prompt \(.*One image only!.*\): give fewer --examples or --attempts"),
        (template(user="{% if loop.first %}" + MESSAGE + "{% else %}{{ m.content[-1].text }}{% endif %}"), 2,
         r"(has no place for|does not take) 2 images in one prompt.*: give fewer --examples"),
    ],
)  # fmt: skip
def test_templates_without_a_place_for_the_images_are_refused_before_any_work(
    text: str, images: int, words: str, tmp_path: Path
) -> None:
    folder = with_template(text, tmp_path / "m")
    if images == 2:
        load_model(str(folder))
    with pytest.raises(ModelError, match=words):
        load_model(str(folder), images=images)


def test_images_that_the_processor_inserts_are_not_marked_as_well() -> None:
    """BLIP-2 and its kin, without a chat template."""
    import transformers as t

    tokenizer = tokenizer_of()
    processor = t.Blip2Processor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer, num_query_tokens=4)
    for kind, form in (("Blip2Processor", "Question: {q} Answer:"), ("OtherProcessor", "{q}\nAnswer:")):
        processor.__class__ = type(kind, (t.Blip2Processor,), {})
        prompter = Prompter(processor, [1], "m")
        assert prompter.text([dummy_inputs()]) == form.format(q=dummy_inputs().text)
        ids = prompter.inputs([[dummy_inputs()]])["input_ids"][0]
        assert int((ids == tokenizer.convert_tokens_to_ids("<image>")).sum()) == 4


# Thoughts


def test_tags_of_thoughts() -> None:
    pairs = {
        "<think>": "</think>",
        "<seed:think>": "</seed:think>",
        "◁think▷": "◁/think▷",
        "[THINK]": "[/THINK]",
        "<|begin_of_thought|>": "<|end_of_thought|>",
        "<|START_THINKING|>": "<|END_THINKING|>",
        "<|channel>thought": "<channel|>",
        "<|thinking|>": "<|/thinking|>",
    }
    for opening, closing in pairs.items():
        assert tags_of(opening).closing == closing and opened(f"\n{opening}so") == opening
        assert split(f"{opening} so {closing} left", None) == ("so", " left", True)
        assert split(f"so {closing} left", tags_of(opening)) == ("so", " left", True)
        assert split("so, left", tags_of(opening)) == ("so, left", "", False)
        assert closes_thought(f"<assistant>{opening}\n\n{closing}\n\n") and not closes_thought(f"<assistant>{opening}")
    for text in ("left", "<b>left</b>", "[left]", "<|im_end|>", "I think left", "<answer>left</answer>"):
        assert split(text, None) == (None, text, True)


def test_arguments_of_templates() -> None:
    assert read_arguments("a=true, b=2,c=0.5,d=high,e=none") == {"a": True, "b": 2, "c": 0.5, "d": "high", "e": None}
    assert read_arguments('{"a": [1]}') == {"a": [1]} and read_arguments("") == {}
    for wrong, words in (
        ("a", "write key=value"),
        ("messages=1", "cannot set 'messages'"),
        ('{"a": ', "write key=value"),
    ):
        with pytest.raises(ModelError, match=words):
            Thinking(arguments=wrong)


REAL = {
    # Name in TRL: whether the model thinks by default, when it is switched off, and when it is switched on.
    "qwen3_5_think": (True, False, True),
    "qwen3_5_nothink": (False, False, True),
    "qwen3_6": (True, False, True),
    "qwen3_8": (True, False, True),
    "glm4moe": (True, False, True),
    "gemma4_v5": (False, False, True),
    "qwen3": (True, False, True),
    "qwen3_vl": (None, False, "has no switch for thinking"),
    "smolvlm": (None, False, "has no switch for thinking"),
    "gemma3": (None, False, "has no switch for thinking"),
}


@pytest.mark.parametrize("name", REAL)
def test_real_templates_are_switched_as_they_document(name: str) -> None:
    processor = AutoProcessor.from_pretrained(WEIGHTS)
    processor.chat_template = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()
    processor.tokenizer.chat_template = None
    for mode, thinks in zip(("auto", "off", "on"), REAL[name], strict=True):
        if isinstance(thinks, str):
            with pytest.raises(ModelError, match=thinks):
                Prompter(processor, [1], name, Thinking(mode))  # type: ignore[arg-type]
            continue
        prompter = Prompter(processor, [1], name, Thinking(mode))  # type: ignore[arg-type]
        assert prompter.thinks is thinks
        prompt = prompter.text([dummy_inputs()])
        assert prompt.rstrip().endswith("<think>") == (prompter.tags is not None)
        # As transformers renders it, by the template's own switch.
        switch = {} if mode == "auto" or thinks is None else {"enable_thinking": mode == "on"}
        content = [{"type": "image"}, {"type": "text", "text": dummy_inputs().text}]
        if prompter._forms["user"]:
            turns = [{"role": "user", "content": content}]
            assert prompt == processor.apply_chat_template(turns, add_generation_prompt=True, **switch)


class Says(LogitsProcessor):
    """Has the rows of a batch say something first, each its own words."""

    def __init__(self, words: list[list[int]], start: int) -> None:
        self.words, self.start = words, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.start
        for row, words in enumerate(self.words[: len(scores)]):
            if step < len(words):
                scores[row] = -1e9
                scores[row, words[step]] = 0.0
        return scores


def saying(model: Any, *texts: str) -> None:
    """Have a model say these texts, row by row, whenever it generates replies; then it goes on as it likes."""
    whole = model._model.generate
    words = [model._prompter.encode(text) for text in texts]

    def generate(**given: Any) -> Any:
        if "stopping_criteria" in given:
            forced = Says(words, given["input_ids"].shape[1])
            given["logits_processor"] = LogitsProcessorList([forced, *given["logits_processor"]])
        return whole(**given)

    model._model.generate = generate


def trials_of(stimuli: StimulusSet, n: int) -> list[Trial]:
    return [Trial(item, stimuli.image(item)) for item in stimuli.items[:n]]


def test_a_thought_is_kept_apart_and_does_not_cut_the_answer(stability: StimulusSet, tmp_path: Path) -> None:
    """Of several lengths in one batch; one is cut, one was opened by the model itself, and one is none."""
    folder = with_template(THINKING, tmp_path / "m")
    model: Any = load_model(str(folder), thinking=Thinking(max_tokens=60))
    trials = trials_of(stability, 3)
    saying(model, "no, so yes.</seed:think>\n\nyes</s>", "yes or no " * 30, "7</seed:think>no</s>")
    assert model.generate(trials, Generation()) == [
        Reply("\n\nyes", "", "no, so yes."),
        Reply(
            "",
            "unfinished",
            ("yes or no " * 30)[: len(model._prompter.decode(model._prompter.encode("yes or no " * 30)[:60]))].strip(),
        ),
        Reply("no", "", "7"),
    ]
    plain: Any = load_model(str(with_template(template(), tmp_path / "plain")), thinking=Thinking(max_tokens=60))
    saying(plain, "<think>it leans to the left, I think</think>yes</s>", "yes</s>", "no")
    first, second, _ = plain.generate(trials, Generation())
    assert first == Reply("yes", "", "it leans to the left, I think") and second == "yes"


def test_options_are_scored_after_the_thought(stability: StimulusSet, tmp_path: Path) -> None:
    """The tokens of the prompt, the thought and the answer in one pass have the same log-probabilities."""
    model: Any = load_model(str(with_template(THINKING, tmp_path / "m")), thinking=Thinking(max_tokens=60))
    trials, thoughts = trials_of(stability, 2), ("so left.</seed:think>\n", "so right, and right.</seed:think>\n")
    saying(model, *thoughts)
    scored = model.score(trials, Generation())
    assert [one.thought for one in scored] == ["so left.", "so right, and right."]
    prompter = model._prompter
    for trial, thought, one in zip(trials, thoughts, scored, strict=True):
        for reply, score in zip(prompter.replies(trial, thought), one.logprobs, strict=True):
            added = [*prompter.encode(thought), *reply]
            inputs = with_tokens(model._make_inputs([trial]), [added], prompter.pad_token, side="right")
            with torch.inference_mode():
                steps = torch.log_softmax(model._model(**model._move(inputs)).logits[0].double(), dim=-1)
            ids = inputs["input_ids"][0]
            expected = sum(float(steps[place - 1, ids[place]]) for place in range(len(ids) - len(reply), len(ids)))
            assert abs(expected - score) < 1e-3
    saying(model, "so " * 80, "7</seed:think>")
    cut, whole = model.score(trials, Generation())
    assert cut.logprobs is None and cut.ended == "unfinished" and whole.logprobs is not None
    with pytest.raises(ModelError, match="give a larger --max-thinking-tokens"):
        model.score_options(trials)


@pytest.mark.parametrize("readout", ["generate", "options"])
def test_runs_of_a_model_that_thinks(
    readout: Any, stability: StimulusSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it thought is a column, thoughts that are cut are counted, and thinking is part of what a run is."""
    folder = with_template(THINKING, tmp_path / "m")
    config = RunConfig(str(folder), str(stability.path), readout=readout, limit=4, max_thinking_tokens=30)
    model: Any = load_model(str(folder), thinking=config.thoughts)
    saying(model, "yes, no.</seed:think>yes</s>", "no " * 40, "no.</seed:think>no</s>", "</seed:think>no</s>")
    report = run(config, stability, tmp_path / "r", model=model)
    rows = read_trials(report.path)
    assert report.n_errors == 0 and sorted(row["status"] for row in rows) == ["ok", "ok", "ok", "unfinished"]
    assert {row["thought"] for row in rows} >= {"yes, no.", "no.", ""}
    assert all(row["answer"] is not None for row in rows if row["status"] == "ok")
    summary = summarise(report.path)
    assert (summary.thoughts, summary.thoughts_cut) == (4, 1) and summary.accuracy.n == 4
    assert "1 of 4" in str(summary) and "on (default of its chat template), at most 30 tokens" in str(summary)
    assert read_run(report.path)["fingerprint"]["thinking"].startswith("on (default")
    assert rescore(report.path, stability).changed == 0
    off = load_model(str(folder), thinking=Thinking("off"))
    with pytest.raises(Exception, match=r"another configuration: .*thinking"):
        run(replace(config, thinking="off"), stability, tmp_path / "r", model=off)


def test_a_thought_can_be_closed_at_once(stability: StimulusSet, tmp_path: Path, caplog: Any) -> None:
    for asked, closed in (("<assistant><seed:think>", "</seed:think>"), ("<assistant><think>\n", "\n</think>\n\n")):
        folder = with_template(template(asked=asked), tmp_path / str(len(asked)))
        model: Any = load_model(str(folder), thinking=Thinking("off"))
        assert model._prompter.text([dummy_inputs()]).endswith(asked + closed) and model._prompter.thinks is False
        assert "no switch for thinking: the thought is closed" in caplog.text
        assert len(model.score_options(trials_of(stability, 1))[0]) == 2


@pytest.mark.parametrize("history", ["", "<musing>\n</musing>"])
def test_a_tag_at_the_end_of_the_prompt_opens_a_thought_by_any_name(history: str, tmp_path: Path) -> None:
    """It is known by its place: where the template writes a reply, it is not there, or holds nothing."""
    text = template(asked="<assistant>\n<musing>\n", reply=f"\n{history}{MESSAGE}")
    prompter = load_model(str(with_template(text, tmp_path / "m")))._prompter  # type: ignore[attr-defined]
    assert prompter.thinks and prompter.tags == tags_of("<musing>") and prompter.tags.closing == "</musing>"


def test_arguments_reach_the_template(tmp_path: Path) -> None:
    folder = with_template("{% if effort is defined %}{{ effort }}{% endif %}" + template(), tmp_path / "m")
    model: Any = load_model(str(folder), thinking=Thinking(arguments="effort=high"))
    assert model._prompter.text([dummy_inputs()]).startswith("high<s>")
    assert "effort=high" in model.identity.details["thinking"]
    with pytest.raises(ModelError, match=r"chat_template.jinja has no argument 'other'"):
        load_model(str(folder), thinking=Thinking(arguments="other=1"))


def test_turns_of_text_and_of_parts() -> None:
    one, two = (dummy_inputs(number).images[0] for number in (0, 1))
    texts = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert turns_of(texts, [one]) == [Turn("user", "a", (one,)), Turn("assistant", "b"), Turn("user", "c")]
    parts: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]},
        {"role": "user", "content": [{"type": "image", "image": two}, {"type": "text", "text": "c"}]},
    ]
    assert turns_of(parts, [one]) == [Turn("user", "a", (one,)), Turn("user", "c", (two,))]
