"""The recipe: what a packed sequence computes is what the ordinary forward pass computes; flips; resumption."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from vlm_probe.probes.tiny import pictures as drawing
from vlm_probe.probes.tiny.architecture import PIXELS, TOKENS, build_model, build_processor
from vlm_probe.probes.tiny.packing import PREFIX, Encoder, pack, read, see
from vlm_probe.probes.tiny.perception import NOTHING, ReadOuts, attributes, facts
from vlm_probe.probes.tiny.pictures import disguised, draw_scene, physics_tasks, pixel_values, render_pictures
from vlm_probe.probes.tiny.pretrain import Recipe, Stage, pretrain
from vlm_probe.probes.tiny.questions import grounding, perception, physics_format, possible_asks, prompt_texts
from vlm_probe.probes.tiny.tokenizer import IMAGE, build_tokenizer
from vlm_probe.stimuli.picture import draw
from vlm_probe.stimuli.question import IntegerFormat, Variant
from vlm_probe.stimuli.scene import COLOURS, mirror
from vlm_probe.stimuli.simulators import get_simulator
from vlm_probe.stimuli.tasks import FAMILIES, get_task


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    tokenizer = build_tokenizer(prompt_texts())
    processor = build_processor(tokenizer)
    pictures = render_pictures(np.random.default_rng(1), 24, processor)
    return build_model(tokenizer).eval(), processor, pictures


def test_packed_questions_get_the_logits_of_single_ones(parts):
    model, processor, pictures = parts
    encoder, rng = Encoder(processor.tokenizer), np.random.default_rng(1)
    asked = [p for p in pictures if possible_asks(p.task, p.scene)][:2]
    lengths = (0.4, 0.3, 0.3)
    questions = pack(asked, lambda p: perception(rng, p, possible_asks(p.task, p.scene), lengths), encoder, 160)
    pixels = pixel_values(asked)
    with torch.no_grad():
        _, final = read(model, see(model, pixels), questions, encoder)
        for number in (1, 2):
            mine = questions.segments[0] == number
            picture = [processor.tokenizer.convert_tokens_to_ids(IMAGE)] * TOKENS
            ids = torch.tensor([[encoder.bos, encoder.user, *picture, *questions.ids[0][mine].tolist()]])
            single = model(input_ids=ids, pixel_values=pixels[:1]).logits[0, PREFIX:]
            torch.testing.assert_close(model.lm_head(final[0][mine]), single, atol=1e-4, rtol=0)


def test_pictures_are_of_all_families_and_mostly_shifted(parts):
    _, _, pictures = parts
    assert {get_task(p.task).family for p in pictures} == set(FAMILIES)
    floors = {p.scene.background.floor_texture for p in pictures}
    assert "" in floors and len(floors) > 2


def test_flipped_pictures_are_what_the_mirror_image_shows(parts):
    _, processor, pictures = parts
    # Among them must be one with four panels, which stay in their order.
    for picture in pictures[:4] + [p for p in pictures if p.scene.panels][:1]:
        back = picture.flipped().flipped()
        assert back.scene == picture.scene
        np.testing.assert_array_equal(back.pixels, picture.pixels)
        np.testing.assert_allclose(back.boxes, picture.boxes, atol=1e-5)
        flipped = picture.flipped()
        frame = draw(get_simulator(), mirror(picture.scene), drawing.RENDER_PIXELS)
        rendered = drawing.see(picture.task, flipped.scene, frame, processor)
        assert (rendered.things == flipped.things).mean() > 0.97
        np.testing.assert_allclose(rendered.boxes, flipped.boxes, atol=0.02)


def test_boxes_are_where_the_pixels_are(parts):
    _, _, pictures = parts
    for picture in (p for p in pictures if not p.scene.panels):
        for index in range(len(picture.scene.bodies)):
            rows, columns = np.nonzero(picture.things == index)
            if len(rows) > 20:
                x, y, width, height = picture.boxes[0, index] * PIXELS
                assert abs((columns.min() + columns.max() + 1) / 2 - x) < 1.5 and abs(np.ptp(columns) + 1 - width) < 2.5
                assert abs((rows.min() + rows.max() + 1) / 2 - y) < 1.5 and abs(np.ptp(rows) + 1 - height) < 2.5


def test_disguised_pictures_show_the_same_things_in_the_same_colours(parts):
    _, _, pictures = parts
    rng = np.random.default_rng(3)
    for picture, other in pairwise(pictures):
        changed = disguised(rng, picture, other)
        assert changed.scene == picture.scene and changed.things is picture.things
        assert (changed.pixels != picture.pixels).mean() > 0.2
        for index, body in enumerate(picture.scene.bodies):
            mask = picture.things == index
            if mask.sum() > 20 and body.colour in COLOURS:
                before, after = (p.pixels[mask].astype(float).mean(axis=0) for p in (picture, changed))
                assert before @ after / np.linalg.norm(before) / np.linalg.norm(after) > 0.95


def test_facts_are_the_answers_of_the_grounding_tasks(parts):
    _, _, pictures = parts
    of_things, of_scenes = attributes()
    compared = 0
    for picture in pictures:
        known, task = facts(picture), grounding(get_task(picture.task).family)
        for name in possible_asks(picture.task, picture.scene):
            for detail in range(len(task.asks[name].abouts(picture.scene))):
                question = task.question(picture.scene, Variant(ask=name, detail=detail))
                truth = task.solve(picture.scene, question)
                about = question.about
                if set(about) == {"ask", "a"} and name in of_things:
                    body = [b.colour for b in picture.scene.bodies].index(about["a"])
                    found = known.things[body, list(of_things).index(name)]
                    compared += 1
                    assert found == of_things[name].index(truth)
                elif set(about) == {"ask"} and name in of_scenes:
                    found = known.scene[list(of_scenes).index(name)]
                    assert found == NOTHING or of_scenes[name].answers[found] == truth
                    compared += found != NOTHING
    assert compared > 50


def test_every_question_about_one_thing_has_a_read_out():
    of_things, of_scenes = attributes()
    for family in FAMILIES:
        for name in grounding(family).asks:
            about_two = name in ("left-right", "shift-between")
            assert name in of_things or name in of_scenes or about_two or name in ("exists", "nth-colour")


def test_read_outs_learn_what_features_say(parts):
    _, _, pictures = parts
    torch.manual_seed(0)
    outs = ReadOuts()
    features = torch.nn.Parameter(torch.randn(len(pictures), TOKENS, 128) * 0.1)
    optimizer = torch.optim.Adam([features, *outs.parameters()], lr=0.02)
    losses = []
    for _ in range(40):
        loss, _ = outs.see(features, pictures)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_physics_prompts_come_with_every_answer_in_random_order():
    rng, counts = np.random.default_rng(2), {"yes": 0, "no": 0}
    for task in physics_tasks():
        scene = draw_scene(rng, task, task.conditions()[0])
        for _ in range(60):
            exchanges = physics_format(rng, task, scene)
            assert len({e.prompt for e in exchanges}) == 1 and len({e.reply for e in exchanges}) == len(exchanges)
            assert all(e.question.parse(e.reply).status == "ok" for e in exchanges)
            grammar = exchanges[0].question.grammar
            assert len(exchanges) == (1 if isinstance(grammar, IntegerFormat) else len(grammar.candidates()))
            if exchanges[0].reply in counts:
                counts[exchanges[0].reply] += 1
    assert sum(counts.values()) > 100 and 0.35 < counts["yes"] / sum(counts.values()) < 0.65


@pytest.mark.slow
def test_the_recipe_runs_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr("vlm_probe.probes.tiny.pretrain.CHUNK", 32)
    monkeypatch.setattr("vlm_probe.probes.tiny.pictures.CHUNK", 32)
    stages = (
        Stage(3, 1e-3, whole=False, pictures=(0, 32)),
        Stage(3, 1e-3, pictures=(0, 32)),
        Stage(3, 1e-3, pictures=(32, 64)),
    )
    recipe = Recipe(processes=1, stages=stages)
    assert recipe.chunks == [0, 1]
    weights = pretrain(tmp_path, recipe)
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= {
        f.name for f in weights.iterdir()
    }
    training = json.loads((weights / "training.json").read_text())
    assert training["steps"] == [3, 3, 3] and training["recipe"]["pictures"] == 64
    before = (weights / "model.safetensors").read_bytes()
    assert (pretrain(tmp_path, recipe) / "model.safetensors").read_bytes() == before
