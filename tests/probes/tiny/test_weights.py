"""The shipped weights: they load as they are, see what their card says, and answer in the required format."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, SiglipImageProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from vlm_probe.probes.tiny import WEIGHTS
from vlm_probe.probes.tiny.card import GOALS, model_card, shortfalls
from vlm_probe.probes.tiny.evaluate import Asked, accuracies, judgement, load, parse_rates, replies
from vlm_probe.probes.tiny.pictures import RENDER_PIXELS
from vlm_probe.stimuli.condition import Condition
from vlm_probe.stimuli.question import Variant
from vlm_probe.stimuli.simulators import get_simulator
from vlm_probe.stimuli.tasks import FAMILIES, get_task

FACTS = json.loads((WEIGHTS / "evaluation.json").read_text())
# Few questions tell a proportion only roughly: the fast test asks this many of each kind and pools them over a family.
FEW, MANY = 4, 200


@pytest.fixture(scope="module")
def tiny():
    return load()


def tower(seed):
    rng = np.random.default_rng(seed)
    return get_task("towers-grounding").sample_scene(rng, Condition(2 + seed % 3, build="count"))


def picture(seed):
    scene = tower(seed)
    return Image.fromarray(get_simulator().render(scene, RENDER_PIXELS).rgb)


def test_the_files_are_small_half_precision_safetensors():
    assert sum(f.stat().st_size for f in WEIGHTS.iterdir()) < 12e6
    stored = AutoModelForImageTextToText.from_pretrained(WEIGHTS, dtype="auto")
    assert stored.dtype == torch.float16
    assert 1.5e6 < sum(p.numel() for p in stored.parameters()) < 3e6


def test_the_card_says_what_was_measured():
    training = json.loads((WEIGHTS / "training.json").read_text())
    assert (WEIGHTS / "MODEL_CARD.md").read_text() == model_card(FACTS, training)


def test_the_card_names_what_misses_its_goal():
    worse = copy.deepcopy(FACTS)
    worse["perception"]["visual:2"]["support"]["above"]["accuracy"] = GOALS["visual:2"] - 0.01
    worse["perception"]["plain"]["towers"]["count"]["accuracy"] = GOALS["plain"] - 0.01
    named = {name.split(" (")[0] for name in shortfalls(worse)} - {name.split(" (")[0] for name in shortfalls(FACTS)}
    assert named <= {"support above", "towers count"}
    assert "support above (visual:2: 0.890)" in shortfalls(worse)


@pytest.mark.parametrize("family", FAMILIES)
def test_perception_is_as_good_on_new_pictures(tiny, family):
    for shifts in ("", "visual:1"):
        measured = accuracies(tiny, family, FEW, shifts, seed=77)
        stated = FACTS["perception"][shifts or "plain"][family]
        expected = np.mean([stated[ask]["accuracy"] for ask in measured])
        n = FEW * len(measured)
        # Four standard errors, and a question's worth for what is always right.
        slack = 4 * np.sqrt(expected * (1 - expected) / n) + 1 / n
        assert np.mean([found["accuracy"] for found in measured.values()]) >= expected - slack


@pytest.mark.slow
@pytest.mark.parametrize("shifts", ["", "visual:1", "visual:2", "visual:3"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_question_is_answered_as_well_as_the_card_says(tiny, family, shifts):
    measured = accuracies(tiny, family, MANY, shifts, seed=79)
    stated = FACTS["perception"][shifts or "plain"][family]
    for ask, found in measured.items():
        # Both are estimates from 200 questions.
        pooled = (found["accuracy"] + stated[ask]["accuracy"]) / 2
        slack = 4 * np.sqrt(2 * pooled * (1 - pooled) / MANY)
        assert abs(found["accuracy"] - stated[ask]["accuracy"]) <= slack + 1 / MANY, ask


def test_replies_to_every_task_can_be_parsed(tiny):
    # Two of each kind: only what is broken shows; the card has the rates.
    rates = {name: parse_rates(tiny, name, 2, seed=78) for name in FACTS["parse_rates"]}
    assert np.mean([rate for of_styles in rates.values() for rate in of_styles.values()]) > 0.97


def test_judgements_are_those_of_the_card(tiny):
    found, stated = judgement(tiny, "towers-stability", 60, seed=80), FACTS["before_adaptation"]["towers-stability"]
    assert found["chance"] == 0.5 and abs(found["accuracy"] - stated["accuracy"]) < 4 * np.sqrt(0.25 / 60)


def test_both_backends_of_the_image_processor_make_the_same_pixels(tiny):
    settings = tiny.processor.image_processor.to_dict()
    kept = {k: settings[k] for k in ("size", "image_mean", "image_std", "resample")}
    for seed in range(4):
        image = picture(seed)
        values = [
            torch.as_tensor(np.asarray(backend(**kept)(images=[image], return_tensors="pt")["pixel_values"]))
            for backend in (SiglipImageProcessor, SiglipImageProcessorPil)
        ]
        off = (values[0] - values[1]).abs()
        # They round halves differently: one grey level, on hardly any pixel.
        assert off.max() < 1.01 / 127.5 and (off > 1e-5).float().mean() < 1e-3


def test_a_batch_answers_like_single_prompts(tiny):
    task = get_task("towers-grounding")
    scene = task.sample_matched(np.random.default_rng(3), task.conditions()[2])[0]
    asks = ("count", "shift", "exists", "left-right")
    items = [Asked(scene, task.question(scene, Variant(ask=ask))) for ask in asks]
    assert replies(tiny, items) == [replies(tiny, [item])[0] for item in items]


def test_plain_llava_prompts_work(tiny):
    turn = [{"role": "user", "content": "<image>\nHow many blocks are there? Answer with a number."}]
    text = tiny.processor.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    inputs = tiny.processor(images=picture(5), text=text, return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    assert ids.count(tiny.processor.tokenizer.bos_token_id) == 1
    out = tiny.model.generate(**inputs, max_new_tokens=8)[0, len(ids) :]
    assert tiny.processor.tokenizer.decode(out, skip_special_tokens=True) == str(len(tower(5).bodies))


def test_several_pictures_and_turns_are_accepted(tiny):
    question = {"type": "text", "text": "How many blocks are there?"}
    turns = [
        {"role": "system", "content": [{"type": "text", "text": "You are a helpful assistant."}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "image"}, question]},
        {"role": "assistant", "content": [{"type": "text", "text": "3"}]},
        {"role": "user", "content": [{"type": "image"}, question]},
    ]
    text = tiny.processor.apply_chat_template(turns, add_generation_prompt=True)
    inputs = tiny.processor(images=[picture(i) for i in range(3)], text=text, return_tensors="pt")
    assert tiny.model.generate(**inputs, max_new_tokens=4).shape[0] == 1
