"""The environment: Gymnasium's own checker, what an episode is, what is remembered, and a client that learns in it."""

import copy
import pickle
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from vlm_probe.stimuli.environment import (
    ANSWERED,
    EMPTY,
    UNREAD,
    PhysicsEnv,
    action_tasks,
    environment_id,
    register_all,
)
from vlm_probe.stimuli.outcomes import OutcomeCache
from vlm_probe.stimuli.raycast import get_raycast
from vlm_probe.stimuli.simulators import STATE, get_simulator
from vlm_probe.stimuli.spaces import prompt_space
from vlm_probe.stimuli.tasks import get_task

EXAMPLES = Path(__file__).parents[2] / "examples"


class CountingMixin:
    """An engine that counts its simulations."""

    def __init__(self):
        self.engine, self.n = get_simulator(), 0
        self.name, self.version, self.render = self.engine.name, self.engine.version, self.engine.render

    def simulate(self, scene, **limits):
        self.n += 1
        return self.engine.simulate(scene, **limits)


@pytest.mark.parametrize("task", action_tasks())
@pytest.mark.parametrize(
    "settings", [{}, {"max_attempts": 3, "memory": "all"}, {"max_attempts": 2, "memory": "last-1", "actions": "text"}]
)
def test_every_action_task_passes_gymnasiums_checker(task, settings):
    env = gymnasium.make(environment_id(task), size=32, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


@pytest.mark.parametrize("task", action_tasks())
def test_observations_show_what_is_asked_for(task):
    views = "state,image,segmentation,depth"
    env = gymnasium.make(environment_id(task), size=48, renderer="raycast", views=views, max_attempts=2).unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)
    before, _ = env.reset(seed=3)
    bodies = env.scene.bodies
    assert set(before) == {"image", "segmentation", "depth", "state", "prompt", "attempts_left"}
    frame = get_raycast().render(replace(env.scene, panels=()), 48)
    if not env.scene.panels:
        np.testing.assert_array_equal(before["segmentation"], frame.segmentation)
        np.testing.assert_array_equal(before["depth"], frame.depth)
        np.testing.assert_array_equal(before["image"], frame.rgb)
    place = [STATE.index(name) for name in ("x", "y", "z")]
    np.testing.assert_allclose(before["state"][: len(bodies), place], [body.position for body in bodies], atol=1e-6)
    assert not before["state"][len(bodies) :].any()
    after, *_ = env.step(env.action_space.sample())
    assert before["state"].shape == after["state"].shape
    assert (before["state"] != after["state"]).any()


def test_a_state_can_be_all_that_is_seen():
    env = PhysicsEnv("towers-topblock", size=48, views="state")
    observation, _ = env.reset(seed=0)
    assert set(observation) == {"state", "prompt", "attempts_left"}
    for bad in ("", "images", "state,,depth"):
        with pytest.raises(ValueError, match="views are image, segmentation, depth, state"):
            PhysicsEnv("towers-topblock", views=bad)


def test_every_action_task_has_an_id_with_its_version():
    assert environment_id("towers-topblock") == f"VLMProbe/TowersTopblock-v{get_task('towers-topblock').version}"
    assert register_all() == [environment_id(name) for name in action_tasks()]
    assert all(name in gymnasium.registry for name in register_all())


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_vectorised_environments_give_what_single_ones_give(mode):
    id_ = environment_id("towers-topblock")
    many = gymnasium.make_vec(id_, 2, mode, size=32, max_attempts=2, memory="all")
    single = gymnasium.make(id_, size=32, max_attempts=2, memory="all")
    try:
        pictures, _ = many.reset(seed=5)
        after, rewards, _, _, info = many.step(np.array([3, 3]))
        for number in range(2):
            first, _ = single.reset(seed=5 + number)
            second, reward, _, _, one = single.step(3)
            np.testing.assert_array_equal(pictures["image"][number], first["image"])
            assert pictures["prompt"][number] == first["prompt"]
            np.testing.assert_array_equal(after["image"][number], second["image"])
            assert rewards[number] == reward
            assert info["answer"][number] == one["answer"]
    finally:
        many.close()


def test_the_seed_determines_scene_and_question_whatever_was_played_before():
    fresh, used = PhysicsEnv(size=32, max_attempts=3), PhysicsEnv(size=32, max_attempts=3)
    for seed in (1, 2):
        used.reset(seed=seed)
        used.step(0)
        used.step(40)
    first, info = fresh.reset(seed=7)
    again, info_again = used.reset(seed=7)
    assert info == info_again
    assert first["prompt"] == again["prompt"]
    np.testing.assert_array_equal(first["image"], again["image"])
    assert used.scene == fresh.scene
    assert used.reset()[1] == fresh.reset()[1], "what follows a seed is determined, too"
    assert fresh.reset(seed=8)[1]["scene_sha256"] != info["scene_sha256"]


@pytest.mark.parametrize("task", ["towers-topblock", "towers-sideblock"])
def test_rewards_are_the_scorers_and_the_expert_ends_the_episode(task):
    env = PhysicsEnv(task, max_attempts=3, size=32, discount=0.5)
    for seed in range(4):
        start, _ = env.reset(seed=seed)
        expert = env.task.solve(env.scene, env.question)
        wrong = env.task.mirrored(expert)
        score = env.task.score(env.scene, env.question, wrong)
        seen, reward, over, cut, info = env.step(env.action_of(wrong))
        assert (reward, over, cut, info["success"]) == (score.reward, False, False, False)
        assert seen["attempts_left"] == 2
        assert not np.array_equal(seen["image"], start["image"])
        _, reward, over, _, info = env.step(env.action_of(expert))
        assert (reward, over, info["success"], info["score"]) == (0.5, True, True, 1.0)
        with pytest.raises(RuntimeError, match="reset"):
            env.step(env.action_of(expert))


def test_after_an_attempt_the_picture_shows_where_the_bodies_ended():
    env = PhysicsEnv(size=64)
    env.reset(seed=0)
    answer = env.task.solve(env.scene, env.question)
    shown, *_, info = env.step(env.action_of(answer))
    applied = env.task.apply(env.scene, answer)
    outcome = env.task.score(env.scene, env.question, answer).outcome
    np.testing.assert_array_equal(shown["image"], get_simulator().render(applied, 64, outcome.poses()).rgb)
    assert info["simulated"]


def test_where_scoring_simulates_nothing_the_answer_is_shown_as_it_was_carried_out():
    env = PhysicsEnv("towers-sideblock", size=64)
    env.reset(seed=0)
    shown, *_, info = env.step(env.action_of((1, 0)))  # far below the top of the tower: nothing that could be let go
    assert not info["simulated"]
    applied = env.task.apply(env.scene, (1, 0))
    np.testing.assert_array_equal(shown["image"], get_simulator().render(applied, 64).rgb)


def test_memory_holds_earlier_pictures_and_answers_and_nothing_of_the_last_episode():
    env = PhysicsEnv(size=32, max_attempts=4, memory="last-2")
    first, _ = env.reset(seed=0)
    assert first["previous_status"].tolist() == [EMPTY, EMPTY]
    wrong = [a for a in (0, 1, 40) if not env.task.score(env.scene, env.question, env.answer_of(a)).success]
    second, *_ = env.step(wrong[0])
    assert second["previous_status"].tolist() == [ANSWERED, EMPTY]
    assert second["previous_answers"].tolist() == [[env.answer_of(wrong[0])], [0]]
    np.testing.assert_array_equal(second["previous_images"][0], first["image"])
    env.step(wrong[1])
    fourth, *_ = env.step(wrong[0])
    assert fourth["previous_answers"].tolist() == [[env.answer_of(wrong[1])], [env.answer_of(wrong[0])]]
    np.testing.assert_array_equal(fourth["previous_images"][0], second["image"])
    assert fourth in env.observation_space
    again, _ = env.reset()
    assert not again["previous_images"].any()
    assert again["attempts_left"] == 4


def test_texts_are_read_strictly_and_an_unreadable_one_costs_an_attempt():
    env = PhysicsEnv(size=32, max_attempts=2, memory="all", actions="text")
    start, _ = env.reset(seed=3)
    seen, reward, over, _, info = env.step("perhaps 3 or 4?")
    assert (reward, over, info["success"], info["answer"]) == (0.0, False, False, "")
    assert info["status"] == "no_answer"
    assert seen["previous_status"].tolist() == [UNREAD, EMPTY]
    np.testing.assert_array_equal(seen["image"], start["image"])
    expert = env.question.reply(env.task.solve(env.scene, env.question))
    _, reward, over, _, info = env.step(f"{expert} cm")
    assert (reward, over, info["answer"]) == (1.0, True, expert)
    env.reset()
    env.step("x" * 100_000)
    with pytest.raises(ValueError, match="text"):
        env.step(3)


@pytest.mark.parametrize("task", action_tasks())
def test_every_answer_has_one_action_and_every_prompt_fits(task):
    env = PhysicsEnv(task, size=16)
    env.reset(seed=0)
    candidates = env.question.grammar.candidates()
    for _, answer in candidates[:: max(1, len(candidates) // 50)]:
        assert env.answer_of(env.action_of(answer)) == answer
        assert env.action_of(answer) in env.action_space
    for outside in (-1, 10_000, 1.5, "3"):
        with pytest.raises(ValueError, match="not an action"):
            env.answer_of(outside)
    for seed in range(30):
        observation, _ = env.reset(seed=seed)
        assert observation["prompt"] in prompt_space(task)


def test_items_of_a_set_can_be_played(topblock, stability):
    env = PhysicsEnv(size=64)
    for item in topblock.items:
        observation, info = env.reset(options={"item": item})
        np.testing.assert_array_equal(observation["image"], np.asarray(topblock.image(item)))
        assert observation["prompt"] == item.question.prompt
        assert info["condition"] == item.condition.code
        assert env.step(env.action_of(item.answer))[1] == 1.0
    with pytest.raises(ValueError, match="this environment plays towers-topblock"):
        env.reset(options={"item": stability.items[0]})
    with pytest.raises(ValueError, match="unknown option 'scenes'"):
        env.reset(options={"scenes": 1})


def test_shifted_and_chosen_conditions():
    env = PhysicsEnv(size=32, conditions=["n3_m-2.00-0.10_2to4cm"], shifts="camera:2,colour:1")
    codes = {env.reset(seed=seed)[1]["condition"].replace("_mir", "") for seed in range(6)}
    (code,) = codes
    assert all(part in code for part in ("n3", "2to4cm", "camera2", "colour1"))
    assert env.scene.palette != "standard"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "towers-stability"}, "only actions can be tried out: use towers-topblock"),
        ({"memory": "last-0"}, "memory must be"),
        ({"max_attempts": 0}, "max_attempts must be a whole number from 1"),
        ({"discount": 2.0}, "discount"),
        ({"conditions": ["n9"]}, "has no condition 'n9'; there are n3_"),
        ({"shifts": "camra:1"}, "did you mean camera"),
        ({"render_mode": "human"}, "render_mode"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        PhysicsEnv(**arguments)


def test_repeated_answers_are_remembered_and_the_cache_is_bounded():
    task, cache, engine = get_task("towers-topblock"), OutcomeCache(2), CountingMixin()
    env = PhysicsEnv(size=16)
    env.reset(seed=0)
    ask = (task, env.scene, env.question)
    first = cache.score(*ask, 0, engine)
    assert cache.score(*ask, 0, engine) is first
    assert engine.n == 1
    full = task.score(env.scene, env.question, 0)
    assert first == full
    np.testing.assert_array_equal(first.outcome.displacement(), full.outcome.displacement())
    cache.score(*ask, 20, engine)
    cache.score(*ask, 0, engine)  # used again, so that 20 is the one to go
    cache.score(*ask, -20, engine)
    assert engine.n == 3
    cache.score(*ask, 0, engine)
    assert engine.n == 3
    cache.score(*ask, 20, engine)
    assert engine.n == 4
    assert (cache.statistics.hits, cache.statistics.misses, cache.statistics.kept) == (3, 4, 2)
    cache.clear()
    assert cache.statistics.hits == cache.statistics.kept == 0


def test_environments_of_a_process_share_a_cache():
    one, other = PhysicsEnv(size=16, cache=64), PhysicsEnv(size=16, cache=64)
    assert one.cache is other.cache
    for env in (one, other):
        env.reset(seed=123)
        env.step(0)
    assert one.cache.statistics.hits >= 1


@pytest.mark.slow
def test_ppo_learns_topblock_far_above_the_best_constant_answer(monkeypatch):
    pytest.importorskip("stable_baselines3")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    sys.modules.pop("sb3_topblock", None)
    import sb3_topblock

    result = sb3_topblock.test(sb3_topblock.train("towers-topblock", 20_000, seed=0), "towers-topblock", 200)
    assert result.policy > result.constant + 0.3, result


@pytest.mark.parametrize("task", action_tasks())
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["copy", "pickle"])
@pytest.mark.parametrize("settings", [{}, {"memory": "all", "actions": "text", "shifts": "camera:1"}], ids=["", "text"])
def test_a_copy_goes_on_as_the_original_would_in_the_middle_of_an_episode(task, copied, settings):
    env = gymnasium.make(environment_id(task), size=32, max_attempts=3, **settings)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(5)]

    def go_on(env):
        told = []
        for action in actions[1:]:  # to the end of this episode, and through the next
            observation, *rest, info = env.step(action)
            told.append((observation["image"].tobytes(), observation["prompt"], *rest, str(info)))
            if rest[1]:
                observation, info = env.reset()
                told.append((observation["image"].tobytes(), observation["prompt"], str(info)))
        return told

    fresh = copied(env)
    env.reset(seed=5)
    assert fresh.reset(seed=5)[1] == env.reset(seed=5)[1]
    if env.step(actions[0])[2]:  # right at once
        env.reset(seed=6)
    twin, other = copied(env), copied(env)
    other.reset(seed=9)  # what one copy does is nothing to another
    found = [go_on(twin), go_on(env)]
    assert found[0] == found[1] and len(found[0]) > 4
