"""The contract of every registered task: a new task is tested the moment it is registered."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stimuli import design
from stimuli.picture import draw
from stimuli.question import Variant
from stimuli.scene import Scene
from stimuli.simulators import BACKGROUND, FLOOR, get_simulator
from stimuli.tasks import UnknownTask, get_task, task_names

TASKS = task_names()


def groups(name: str, count: int, seed: int = 0):
    """Members of the first groups of a design, with their question."""
    task = get_task(name)
    for group in design.plan(task, count, seed):
        for attempt in range(20):
            try:
                found = design.members(task, group, design.group_rng(task, seed, group.index, attempt))
                questions = [task.question(m.scene, group.variant) for m in found]
            except ValueError:
                continue
            break
        else:
            pytest.fail(f"no group on {group.condition}")
        yield task, group, found, questions


@pytest.mark.parametrize("name", TASKS)
def test_sampling_is_deterministic_and_scenes_survive_json(name):
    first = [m.scene for _, _, found, _ in groups(name, 6) for m in found]
    second = [m.scene for _, _, found, _ in groups(name, 6) for m in found]
    assert first == second
    for scene in first:
        assert Scene.from_dict(json.loads(scene.to_json())) == scene


@pytest.mark.parametrize("name", TASKS)
def test_labels_equal_simulation_and_the_expert_gets_the_top_reward(name):
    for task, _, found, questions in groups(name, 8):
        for member, question in zip(found, questions, strict=True):
            scene = member.scene
            answer = task.solve(scene, question)
            assert question.parse(question.reply(answer)).value == answer
            assert task.score(scene, question, answer).reward == 1.0
            expert = task.demonstrate(scene, question, np.random.default_rng(0))
            assert task.score(scene, question, expert) == task.score(scene, question, expert)
            assert task.score(scene, question, expert).success
            low, high = member.condition.margin_bin
            if task.kind != "grounding" and not member.condition.mirrored:
                assert low <= task.margin(scene) <= high


@pytest.mark.parametrize("name", TASKS)
def test_scores_are_bounded_and_reward_one_means_success(name):
    rng = np.random.default_rng(0)
    for task, _, found, questions in groups(name, 3):
        scene, question = found[0].scene, questions[0]
        candidates = question.grammar.candidates()
        picked = rng.choice(len(candidates), min(8, len(candidates)), replace=False)
        for _, answer in (candidates[i] for i in picked):
            score = task.score(scene, question, answer)
            assert 0.0 <= score.reward <= 1.0
            assert (score.reward == 1.0) == score.success
            if task.kind == "judgement":
                assert score.reward == float(answer == task.solve(scene, question))


@pytest.mark.parametrize("name", TASKS)
def test_mirror_images_have_mirrored_margins_and_answers(name):
    for task, _, found, questions in groups(name, 6):
        half = len(found) // 2
        for plain, mirrored, question, other in zip(found, found[half:], questions, questions[half:], strict=False):
            margin = task.margin(plain.scene)
            expected = -margin if task.signed_side else margin
            assert task.margin(mirrored.scene) == pytest.approx(expected, abs=1e-9)
            answer = task.solve(plain.scene, question)
            if task.kind == "action":
                # The middle of an even number of working answers is not symmetric: compare by what works.
                assert task.score(mirrored.scene, other, task.mirrored(answer)).success
            elif isinstance(answer, str):
                assert task.solve(mirrored.scene, other) == task.mirrored(answer)


@pytest.mark.parametrize("name", TASKS)
def test_foils_differ_in_one_body_and_in_the_outcome(name):
    for task, _, found, questions in groups(name, 6):
        base = found[0]
        for foil in (m for m in found[1 : len(found) // 2]):
            changed = [a.name for a, b in zip(base.scene.bodies, foil.scene.bodies, strict=True) if a != b]
            assert len(changed) == 1
            # Markers may show what changed; all else is the same.
            same = [replace(m.scene, bodies=(), markers=(), pushes=()) for m in (base, foil)]
            assert same[0] == same[1]
            assert task.solve(base.scene, questions[0]) != task.solve(foil.scene, questions[0])


@pytest.mark.parametrize("name", TASKS)
def test_every_object_is_inside_the_picture(name):
    simulator = get_simulator()
    for _, _, found, _ in groups(name, 12, seed=3):
        for member in found:
            scene = replace(member.scene, panels=())
            mask = draw(simulator, scene, 96).segmentation
            border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
            assert set(border.tolist()) <= {FLOOR, BACKGROUND}, member.condition.code
            assert set(range(len(scene.bodies) + len(scene.markers))) <= set(mask.ravel().tolist())


@pytest.mark.parametrize("name", TASKS)
def test_prompts_come_in_four_wordings_and_do_not_leak_the_answer(name):
    for task, group, found, _ in groups(name, 2):
        scene = found[0].scene
        variants = [replace(v, ask=group.variant.ask, detail=group.variant.detail) for v in task.variants()]
        assert len({task.question(scene, replace(v, order=0, polarity=0)).prompt for v in variants}) >= 4
        prompts = {task.question(m.scene, group.variant).prompt for m in found[: len(found) // 2]}
        # Where the prompt itself states the weights, foils may have the same picture and other weights.
        assert len(prompts) == 1 or scene.shown == "text", "foils must share their prompt"
        think = task.question(scene, replace(variants[0], style="think"))
        assert "<think>" in think.prompt
        assert "<answer>" in think.prompt


@pytest.mark.parametrize("name", TASKS)
@settings(max_examples=60, deadline=None)
@given(reply=st.text(max_size=60))
def test_any_reply_is_parsed_without_an_exception(name, reply):
    task = get_task(name)
    scene = task.sample_matched(np.random.default_rng(0), task.conditions()[0])[0]
    ask = task.conditions()[0].build if task.kind == "grounding" else ""
    parsed = task.question(scene, Variant(ask=ask)).parse(reply)
    assert parsed.status == "ok" or parsed.value is None


def test_unknown_tasks_name_their_neighbours():
    with pytest.raises(UnknownTask, match="did you mean towers-stability"):
        get_task("tower-stability")


@pytest.mark.parametrize("name", [n for n in TASKS if get_task(n).kind == "action"])
def test_the_wrong_sign_and_the_middle_fail(name):
    for task, _, found, questions in groups(name, 6, seed=5):
        scene, question = found[0].scene, questions[0]
        answer = task.solve(scene, question)
        wrong = -answer if isinstance(answer, int) else (-answer[0], answer[1])
        assert not task.score(scene, question, wrong).success
        middle = next(iter(task.rules().values()))(scene)
        assert not task.score(scene, question, middle).success
