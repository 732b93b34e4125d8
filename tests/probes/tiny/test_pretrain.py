"""The recipe: what a packed sequence computes is what the ordinary forward pass computes; flips; resumption."""

import json

import numpy as np
import pytest
import torch

from probes.tiny.architecture import TOKENS, build_model, build_processor
from probes.tiny.packing import PREFIX, Encoder, pack, read, see
from probes.tiny.pictures import pixel_values, render_pictures
from probes.tiny.pretrain import Recipe, pretrain
from probes.tiny.questions import PHYSICS, perception, physics_format, prompt_texts
from probes.tiny.tokenizer import IMAGE, build_tokenizer
from stimuli.tasks import get_task


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    tokenizer = build_tokenizer(prompt_texts())
    processor = build_processor(tokenizer)
    pictures = render_pictures(np.random.default_rng(0), 12, processor)
    return build_model(tokenizer).eval(), processor, pictures


def test_packed_questions_get_the_logits_of_single_ones(parts):
    model, processor, pictures = parts
    encoder, rng = Encoder(processor.tokenizer), np.random.default_rng(1)
    questions = pack(pictures[:2], lambda p: perception(rng, p.scene, (0.4, 0.3, 0.3)), encoder, 160)
    pixels = pixel_values(pictures[:2])
    with torch.no_grad():
        _, final = read(model, see(model, pixels), questions, encoder)
        for number in (1, 2):
            mine = questions.segments[0] == number
            picture = [processor.tokenizer.convert_tokens_to_ids(IMAGE)] * TOKENS
            ids = torch.tensor([[encoder.bos, encoder.user, *picture, *questions.ids[0][mine].tolist()]])
            single = model(input_ids=ids, pixel_values=pixels[:1]).logits[0, PREFIX:]
            torch.testing.assert_close(model.lm_head(final[0][mine]), single, atol=1e-4, rtol=0)


def test_flipped_pictures_are_labelled_as_the_mirror_image(parts):
    _, _, pictures = parts
    for picture in pictures:
        back = picture.flipped().flipped()
        assert back.scene == picture.scene
        np.testing.assert_array_equal(back.pixels, picture.pixels)
        np.testing.assert_array_equal(back.blocks, picture.blocks)


def test_patches_name_the_block_that_stands_there(parts):
    _, _, pictures = parts
    for picture in pictures:
        for index in range(len(picture.scene.bodies)):
            columns = np.nonzero((picture.patches == index).any(axis=0))[0]
            # The picture is about 60 cm wide, so a patch is 10 cm.
            assert len(columns) and abs((columns.mean() - 2.5) * 10 - picture.blocks[index, 0]) < 12


def test_answers_to_physics_prompts_are_random_and_well_formed(parts):
    _, _, pictures = parts
    rng, counts = np.random.default_rng(2), {"yes": 0, "no": 0}
    prompts = {
        task.question(picture.scene, variant).prompt: task.question(picture.scene, variant)
        for task in map(get_task, PHYSICS)
        for picture in pictures[:1]
        for variant in task.variants()
    }
    for _ in range(600):
        prompt, answer = physics_format(rng, pictures[0].scene)
        if prompt in prompts:
            assert prompts[prompt].parse(answer).status == "ok"
            if answer in counts:
                counts[answer] += 1
    assert 0.35 < counts["yes"] / sum(counts.values()) < 0.65


@pytest.mark.slow
def test_the_recipe_runs_and_resumes(tmp_path):
    recipe = Recipe(processes=1, pictures=32, eye_steps=3, steps=3)
    weights = pretrain(tmp_path, recipe)
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= {
        f.name for f in weights.iterdir()
    }
    assert json.loads((weights / "training.json").read_text())["steps"] == [3, 3]
    before = (weights / "model.safetensors").read_bytes()
    assert (pretrain(tmp_path, recipe) / "model.safetensors").read_bytes() == before
