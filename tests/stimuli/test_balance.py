"""The balance family: closed forms against worked examples and against both engines, poses, and what its questions state."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from vlm_probe.stimuli import design
from vlm_probe.stimuli.question import Variant
from vlm_probe.stimuli.scene import mirror
from vlm_probe.stimuli.simulators import get_simulator
from vlm_probe.stimuli.statics import centre_of_mass, seesaw_margin
from vlm_probe.stimuli.tasks import AMBIGUITY_BAND, SamplingFailed, get_task
from vlm_probe.stimuli.tasks.balance.heavier import equalised
from vlm_probe.stimuli.tasks.balance.place import in_the_way, working
from vlm_probe.stimuli.tasks.balance.pose import come_down, end_down, levelled, plank_angle
from vlm_probe.stimuli.tasks.balance.rules import SIGN_RULES, scene_sides, sides
from vlm_probe.stimuli.tasks.balance.seesaw import (
    EQUAL,
    SIZES,
    Layout,
    Load,
    Look,
    load_volume,
    outcome_side,
    scene_margin,
    side_of,
    standing,
    tilted,
)
from vlm_probe.stimuli.tasks.balance.weights import draw_layout

CUBE = (0.05, 0.05, 0.05)


def scene_of(*loads, places, half_width=0.02, offset=0.0, plank_mass=2.0, shown="text"):
    layout = Layout(half_width, offset, plank_mass, tuple(loads), tuple(places))
    return Look(np.random.default_rng(0)).scene(layout, shown)


def box(mass):
    return Load("box", CUBE, mass)


def members(name, groups, seed=0):
    task = get_task(name)
    for group in design.plan(task, groups, seed):
        try:
            found = design.members(task, group, design.group_rng(task, seed, group.index))
        except SamplingFailed:
            continue
        yield task, group, found


@pytest.mark.parametrize(
    ("masses", "places", "offset", "margin", "side"),
    [
        ([1.0, 1.0], [-0.1, 0.1], 0.0, 1.0, "balanced"),
        # 2 kg at 5 cm against 1 kg at 10 cm.
        ([2.0, 1.0], [-0.05, 0.10], 0.0, 1.0, "balanced"),
        # The centre of mass is at (1 * 0.10) / 3 = 3.33 cm, 1.67 half widths of 2 cm.
        ([1.0], [0.10], 0.0, 1 - 5 / 3, "right"),
        # One object on a short arm balances the plank: 2 kg * 5 cm = 2 kg * 5 cm.
        ([2.0], [-0.05], 0.05, 1.0, "balanced"),
        # (4 * -0.06 + 1 * 0.17) / 7 = -1 cm: half a half width inside.
        ([4.0, 1.0], [-0.06, 0.17], 0.0, 0.5, "balanced"),
        ([4.0, 1.0], [-0.12, 0.13], 0.0, 1 - 2.5, "left"),
    ],
)
def test_worked_examples(masses, places, offset, margin, side):
    scene = scene_of(*(box(m) for m in masses), places=places, offset=offset)
    assert scene_margin(scene) == pytest.approx(margin)
    assert side_of(scene) == side
    if abs(margin) < 1:  # in simulation as well, where it is worth it
        assert outcome_side(scene, get_simulator().simulate(scene, stop=tilted(scene))) == side


def test_the_closed_form_is_that_of_point_masses():
    x, mass = np.array([[-0.1, 0.0, 0.2]]), np.array([[1.0, 1.0, 2.0]])
    assert centre_of_mass(x, mass) == pytest.approx(np.array([0.075]))
    assert seesaw_margin(np.array([-0.01, 0.03]), 0.02) == pytest.approx(np.array([0.5, -0.5]))


def test_a_wedge_weighs_a_third_from_its_upright_side_and_a_ball_with_its_cradle():
    wedge = Load("wedge", (0.06, 0.05, 0.05), 1.0, facing=1)
    assert standing(scene_of(wedge, places=[0.1]))[0].x == pytest.approx(0.09)
    assert standing(scene_of(replace(wedge, facing=-1), places=[0.1]))[0].x == pytest.approx(0.11)
    ball = Load("sphere", EQUAL["sphere"], 3.0)
    scene = scene_of(ball, places=[0.1])
    (thing,) = standing(scene)
    assert thing.mass == pytest.approx(3.0)
    assert thing.volume == pytest.approx(load_volume("sphere", ball.size))
    assert scene.body("load1").mass + scene.body("cradle1").mass == pytest.approx(3.0)


def test_a_ball_rests_on_its_cradle_and_stays_in_it():
    scene = scene_of(Load("sphere", EQUAL["sphere"], 2.0), places=[0.005])
    for engine in ("pybullet", "mujoco"):
        outcome = get_simulator(engine).simulate(scene)
        assert outcome.at_rest, engine
        assert np.abs(outcome.displacement()).max() < 0.003, engine


def test_wedges_with_the_same_middle_tilt_to_the_side_of_their_upright_faces():
    # Taken by the middle of its base the centre of mass would be on the fulcrum's middle, whichever way it faces.
    for facing, side in ((1, "left"), (-1, "right")):
        scene = scene_of(
            Load("wedge", (0.096, 0.05, 0.06), 4.0, facing), places=[0.0], half_width=0.008, plank_mass=1.0
        )
        assert side_of(scene) == side
        for engine in ("pybullet", "mujoco"):
            assert outcome_side(scene, get_simulator(engine).simulate(scene, stop=tilted(scene))) == side


def test_equal_volumes_are_equal():
    volumes = [load_volume(shape, size) for shape, size in EQUAL.items() if shape != "sphere"]
    assert max(volumes) / min(volumes) < 1.02
    assert math.pi / 6 * EQUAL["sphere"][0] ** 3 == pytest.approx(
        volumes[0], rel=0.02
    )  # the ball itself, as it is seen


@pytest.mark.parametrize("engine", ["pybullet", "mujoco"])
def test_random_planks_do_what_the_closed_form_says(engine):
    pytest.importorskip(engine)
    rng, simulator, compared = np.random.default_rng(1), get_simulator(engine), 0
    while compared < 20:
        layout = draw_layout(rng, int(rng.integers(1, 5)), ("size", "colour", "text")[compared % 3])
        if layout is None:
            continue
        scene = Look(rng).scene(layout.about(round(float(rng.uniform(-0.05, 0.05)), 3)), "")
        if not AMBIGUITY_BAND < abs(scene_margin(scene)) < 0.7:
            continue
        compared += 1
        assert outcome_side(scene, simulator.simulate(scene, stop=tilted(scene))) == side_of(scene), scene_margin(scene)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["pybullet", "mujoco"])
@pytest.mark.parametrize("name", ["balance-tilt", "balance-heavier"])
def test_designed_items_do_what_the_closed_form_says(name, engine):
    pytest.importorskip(engine)
    simulator, hits = get_simulator(engine), []
    for task, group, found in members(name, 100, seed=11):
        for member in found[: len(found) // 2]:
            question = task.question(member.scene, group.variant)
            hits.append(task.solve(member.scene, question, simulator) == task.statics_answer(member.scene))
    assert np.mean(hits) >= 0.99


def test_every_rule_without_physics_is_right_on_one_member_of_each_group():
    for task, _, found in members("balance-tilt", 12, seed=2):
        plain = [m.scene for m in found[: len(found) // 2]]
        assert sorted(str(task.statics_answer(scene)) for scene in plain) == ["balanced", "left", "right"]
        for name in SIGN_RULES:
            assert len({scene_sides(scene)[name] for scene in plain}) == 1
            assert sum(task.rules()[name](scene) == task.statics_answer(scene) for scene in plain) == 1


def test_the_shift_of_the_count_puts_five_objects_on_the_plank():
    task = get_task("balance-tilt")
    for index, condition in enumerate(task.conditions()[::9]):
        scenes = task.sample_matched(np.random.default_rng(index), task.with_more_objects(condition, 1))
        assert {len(standing(scene)) for scene in scenes} == {5}
        assert sorted(str(task.statics_answer(scene)) for scene in scenes) == ["balanced", "left", "right"]


def test_rules_name_the_sides_they_say():
    x = np.array([[-0.10, -0.05, 0.12]])
    found = sides(x, np.array([[1.0, 1.0, 5.0]]), np.array([[2.0, 1.0, 1.0]]), -0.03)
    assert {name: int(value[0]) for name, value in found.items()} == {
        "side with more objects": -1,
        "heavier side": 1,
        "heaviest object": 1,
        "largest object": -1,
        "object farthest out": 1,
        "sum of distances": -1,
        "longer arm of the plank": -1,
    }
    level = sides(np.array([[-0.1, 0.1]]), np.ones((1, 2)), np.ones((1, 2)), 0.0)
    assert all(int(value[0]) == 0 for value in level.values())


def test_stated_weights_are_those_of_the_scene_and_the_picture_stays_the_same():
    seen = 0
    for task, group, found in members("balance-tilt", 30):
        if group.condition.shown != "text":
            continue
        seen += 1
        for member in found:
            prompt = task.question(member.scene, group.variant).prompt
            for thing in standing(member.scene):
                assert f"{thing.mass:.3g} kg" in prompt
        without = [[replace(b, mass=1.0) for b in member.scene.bodies] for member in found[: len(found) // 2]]
        assert all(bodies == without[0] for bodies in without)
    assert seen


def test_a_colour_stands_for_one_weight_and_size_for_density():
    seen = Counter()
    for _, group, found in members("balance-tilt", 24, seed=1):
        for scene in (m.scene for m in found):
            if group.condition.shown == "colour":
                by_colour = {}
                for thing in standing(scene):
                    assert by_colour.setdefault(thing.body.colour, round(thing.mass, 6)) == round(thing.mass, 6)
            if group.condition.shown == "size":
                plank = scene.body("plank")
                density = {round(t.mass / t.volume) for t in standing(scene)}
                assert density == {round(plank.mass / math.prod(plank.size))}
            seen[group.condition.shown] += 1
    assert seen["colour"]
    assert seen["size"]


def test_impossible_conditions_are_refused():
    tilt, heavier = get_task("balance-tilt"), get_task("balance-heavier")
    rng = np.random.default_rng(0)
    with pytest.raises(SamplingFailed, match="give a margin bin within 0 to 1"):
        tilt.sample(rng, replace(tilt.conditions()[0], margin_bin=(-0.2, -0.1)))
    with pytest.raises(SamplingFailed, match="colours of their own"):
        tilt.sample(rng, replace(tilt.conditions()[0], count=7, shown="text", build="weight"))
    with pytest.raises(ValueError, match="cannot be shown by 'smell'"):
        tilt.sample(rng, replace(tilt.conditions()[0], shown="smell"))
    with pytest.raises(SamplingFailed, match="a build out of level, left-down, right-down"):
        heavier.sample(rng, replace(heavier.conditions()[0], build="upside-down"))


def test_the_counterweight_balances_where_statics_says_and_nowhere_near():
    for task, group, found in members("balance-place", 4):
        scene = found[0].scene
        question = task.question(scene, group.variant)
        margins = working(scene)
        best = task.solve(scene, question)
        assert margins[best] == max(margins.values())
        # By hand: torques about the fulcrum's middle, in newton metres per g.
        torque = sum(t.mass * t.x for t in standing(scene))
        torque += scene.body("plank").mass * (scene.body("plank").position[0] - scene.body("fulcrum").position[0])
        torque += scene.body("counterweight").mass * best / 100
        total = sum(t.mass for t in standing(scene)) + scene.body("plank").mass + scene.body("counterweight").mass
        assert abs(torque / total) < scene.body("fulcrum").size[0] / 2
        certified = task.certify(scene, question)["working"]
        assert best in certified
        assert all(not in_the_way(scene, answer) for answer in certified)
        assert {a for a, m in margins.items() if m > AMBIGUITY_BAND} <= set(certified)


def test_the_counterweight_cannot_stand_in_another_object_or_off_the_plank():
    task = get_task("balance-place")
    group = next(iter(members("balance-place", 1)))
    scene = group[2][0].scene
    question = task.question(scene, Variant())
    thing = standing(scene)[0]
    inside = round(100 * thing.x)
    score = task.score(scene, question, inside)
    assert score.detail["in_the_way"] == thing.body.name
    assert not score.success
    assert score.outcome is None
    low, high = question.grammar.ranges[0]
    ends = [task.score(scene, question, a).detail.get("in_the_way") for a in (low, high)]
    assert "end of the plank" in ends


def test_partial_rewards_fall_with_the_distance_from_what_works():
    task = get_task("balance-place")
    _, group, found = next(iter(members("balance-place", 1)))
    scene = found[0].scene
    question = task.question(scene, group.variant)
    answers = sorted(working(scene))
    outer = range(answers[-1] + 2, question.grammar.ranges[0][1] + 1)
    rewards = [task.score(scene, question, a).reward for a in outer]
    assert rewards == sorted(rewards, reverse=True)
    assert all(0 <= r < 0.5 for r in rewards)


@pytest.mark.parametrize("side", [-1, 1])
def test_a_plank_that_has_come_down_rests_and_turns_back(side):
    level = scene_of(box(2.0), Load("wedge", SIZES["wedge"][6], 1.0, -1), places=[-0.08, 0.06])
    down = come_down(level, side)
    assert end_down(down) == side
    assert end_down(level) == 0
    assert levelled(level) is level
    back = levelled(down)
    for a, b in zip(level.bodies, back.bodies, strict=True):
        np.testing.assert_allclose(a.position, b.position, atol=1e-7)
        np.testing.assert_allclose(np.abs(a.orientation), np.abs(b.orientation), atol=1e-9)
    assert plank_angle(mirror(down)) == pytest.approx(-plank_angle(down))
    assert end_down(mirror(down)) == -side


def test_shown_poses_are_those_of_the_weights_and_rest():
    for engine in ("pybullet", "mujoco"):
        simulator = get_simulator(engine)
        for _, _, found in members("balance-heavier", 4, seed=4):
            for scene in (m.scene for m in found[:2]):
                released = levelled(scene)
                fell = outcome_side(released, simulator.simulate(released, stop=tilted(released)))
                assert fell == {-1: "left", 0: "balanced", 1: "right"}[end_down(scene)]
                moved = np.abs(simulator.simulate(scene, max_duration=2.0).displacement())
                assert moved.max() < 0.005


def test_what_must_be_heavier_is_so_and_unclear_scenes_allow_both():
    """Over all weights that the prompt allows: which of them let the plank lie as it is shown?"""
    allowed = np.linspace(1.0, 3.0, 401)
    left, right = (grid.ravel() for grid in np.meshgrid(allowed, allowed))
    for task, _, found in members("balance-heavier", 12, seed=3):
        for scene in (m.scene for m in found):
            level = levelled(scene)
            x = np.array([t.x for t in standing(level)])
            centre = (left * x[0] + right * x[1]) / (left + right + 1) / (level.body("fulcrum").size[0] / 2)
            down = end_down(scene)
            fits = np.abs(centre) < 1 if down == 0 else down * centre > 1
            answer = task.statics_answer(scene)
            possible = {"left": bool((fits & (left > right)).any()), "right": bool((fits & (right > left)).any())}
            assert possible == {side: answer in (side, "unclear") for side in possible}
            masses = [t.mass for t in standing(level)]
            if answer != "unclear":
                assert (masses[0] > masses[1]) == (answer == "left")


def test_equal_weights_are_the_extremes_that_the_prompt_allows():
    for _, _, found in members("balance-heavier", 4):
        scene = found[0].scene
        factor = 1.0 if end_down(scene) == 0 else 3.0
        assert {t.mass for t in standing(equalised(scene))} == {factor * scene.body("plank").mass}


def test_labels_of_heavier_balance_in_every_bin():
    task = get_task("balance-heavier")
    labels: dict[tuple[float, float], Counter] = {}
    for _, group, found in members("balance-heavier", 12, seed=0):
        low, high = group.condition.margin_bin
        for member in found[: len(found) // 2]:
            labels.setdefault((-high, -low), Counter())[task.statics_answer(member.scene)] += 1
    assert labels
    assert all(set(counter.values()) == {4} for counter in labels.values())


def test_grounding_reads_arms_sides_distances_and_poses():
    task = get_task("balance-grounding")
    scene = scene_of(box(1.0), box(1.0), places=[-0.10, 0.043], offset=0.05)

    def ask(kind, detail=0, of=scene):
        question = task.question(of, Variant(ask=kind, detail=detail))
        return question.about, task.solve(of, question)

    assert ask("arm")[1] == "right"
    assert ask("arm", of=mirror(scene))[1] == "left"
    assert ask("pose")[1] == "level"
    down = come_down(scene, -1)
    assert ask("pose", of=down)[1] == "left"
    assert ask("count", of=down)[1] == 2
    answers = {ask("distance", d)[0]["a"]: ask("distance", d)[1] for d in range(2)}
    assert sorted(answers.values()) == [4, 10]
    assert answers == {ask("distance", d, down)[0]["a"]: ask("distance", d, down)[1] for d in range(2)}
    nearest = next(t.body.colour for t in standing(scene) if t.x > 0)
    assert ask("nth-colour", 0) == ({"ask": "nth-colour", "n": 1}, nearest)
    sides_of = {ask("side", d)[0]["a"]: ask("side", d)[1] for d in range(2)}
    assert sides_of[nearest] == "right"
