"""The shipped weights: they load as they are, see what their card says, and answer in the required format."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, SiglipImageProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from probes.tiny import WEIGHTS
from probes.tiny.card import model_card
from probes.tiny.evaluate import Item, accuracies, load, parse_rates, replies
from probes.tiny.pictures import RENDER_PIXELS, sample_scene
from stimuli.question import Variant
from stimuli.simulators import get_simulator
from stimuli.tasks import get_task

ASKED = 60
# 60 questions tell a proportion within about 0.06: bounds lie that far below what the card reports.
LEAST = {"count": 0.9, "nth-colour": 0.9, "left-right": 0.85, "exists": 0.85, "shift": 0.8}


@pytest.fixture(scope="module")
def tiny():
    return load()


def picture(seed):
    scene = sample_scene(np.random.default_rng(seed))
    return Image.fromarray(get_simulator().render(scene, RENDER_PIXELS).rgb)


def test_the_files_are_small_half_precision_safetensors():
    assert sum(f.stat().st_size for f in WEIGHTS.iterdir()) < 12e6
    stored = AutoModelForImageTextToText.from_pretrained(WEIGHTS, dtype="auto")
    assert stored.dtype == torch.float16
    assert 1.5e6 < sum(p.numel() for p in stored.parameters()) < 3e6


def test_the_card_says_what_was_measured():
    facts = json.loads((WEIGHTS / "evaluation.json").read_text())
    training = json.loads((WEIGHTS / "training.json").read_text())
    assert (WEIGHTS / "MODEL_CARD.md").read_text() == model_card(facts, training)


def test_perception_is_as_good_on_new_pictures(tiny):
    measured = accuracies(tiny, ASKED, seed=77)
    assert {ask for ask, least in LEAST.items() if measured[ask]["accuracy"] < least} == set()


def test_replies_to_every_task_can_be_parsed(tiny):
    rates = parse_rates(tiny, 24, seed=78)
    assert {(task, style) for task, r in rates.items() for style in r if r[style] < 0.85} == set()


def test_both_backends_of_the_image_processor_make_the_same_pixels(tiny):
    settings = tiny.processor.image_processor.to_dict()
    kept = {k: settings[k] for k in ("size", "image_mean", "image_std", "resample")}
    for seed in range(4):
        image = picture(seed)
        values = [
            torch.as_tensor(np.asarray(backend(**kept)(images=[image], return_tensors="pt")["pixel_values"]))
            for backend in (SiglipImageProcessor, SiglipImageProcessorPil)
        ]
        torch.testing.assert_close(values[0], values[1], atol=1e-5, rtol=0)


def test_a_batch_answers_like_single_prompts(tiny):
    task = get_task("towers-grounding")
    scene = task.sample_matched(np.random.default_rng(3), task.conditions()[2])[0]
    asks = ("count", "shift", "exists", "left-right")
    items = [Item(scene, task.question(scene, Variant(ask=ask))) for ask in asks]
    assert replies(tiny, items) == [replies(tiny, [item])[0] for item in items]


def test_plain_llava_prompts_work(tiny):
    turn = [{"role": "user", "content": "<image>\nHow many blocks are there? Answer with a number."}]
    text = tiny.processor.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    inputs = tiny.processor(images=picture(5), text=text, return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    assert ids.count(tiny.processor.tokenizer.bos_token_id) == 1
    out = tiny.model.generate(**inputs, max_new_tokens=8)[0, len(ids) :]
    assert tiny.processor.tokenizer.decode(out, skip_special_tokens=True) == str(
        len(sample_scene(np.random.default_rng(5)).bodies)
    )


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
