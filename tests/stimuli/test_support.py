"""Support: closed forms against hand-computed cases, against the linear programme of limit analysis, and against engines."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import linprog

from vlm_probe.stimuli.question import Variant
from vlm_probe.stimuli.scene import Scene, mirror
from vlm_probe.stimuli.shifts import FRICTIONS
from vlm_probe.stimuli.simulators import get_simulator
from vlm_probe.stimuli.tasks import AMBIGUITY_BAND, SamplingFailed, get_task
from vlm_probe.stimuli.tasks.grounding import GroundingTask
from vlm_probe.stimuli.tasks.support.brace import MOVABLE, working_places
from vlm_probe.stimuli.tasks.support.remove import candidates, removal_margins, without
from vlm_probe.stimuli.tasks.support.structure import (
    THICKNESS,
    Load,
    Look,
    Post,
    Structure,
    force,
    posts,
    push_margin,
    rest_margin,
    simulate,
    withstood,
)


def largest_push(scene: Scene) -> float | None:
    """By which factor the push can be multiplied until no contact forces balance the bodies any more; None if none do now.

    The static theorem of limit analysis as a linear programme: at both ends of every contact a normal force and a
    friction force within its cone, and three equations of balance for every body. Independent of the closed forms.
    """
    bodies, contacts = scene.bodies, []
    for i, b in enumerate(bodies):
        (x, _, z), (width, _, tall) = b.position, b.size
        base = z - tall / 2
        if base < 1e-6:
            contacts += [(-1, i, x + side * width / 2, base, b.friction * scene.floor_friction) for side in (-1, 1)]
        for j, under in enumerate(bodies):
            if abs(under.position[2] + under.size[2] / 2 - base) < 1e-6:
                low = max(x - width / 2, under.position[0] - under.size[0] / 2)
                high = min(x + width / 2, under.position[0] + under.size[0] / 2)
                if high > low:
                    contacts += [(j, i, edge, base, b.friction * under.friction) for edge in (low, high)]
    n, m = len(contacts), len(bodies)
    balance, weights = np.zeros((3 * m, 2 * n + 1)), np.zeros(3 * m)
    cone = np.zeros((2 * n, 2 * n + 1))
    for k, (lower, upper, x, z, friction) in enumerate(contacts):
        for body, sign in ((upper, 1), (lower, -1)):
            if body >= 0:
                place = bodies[body].position
                balance[3 * body, 2 * k + 1] += sign
                balance[3 * body + 1, 2 * k] += sign
                balance[3 * body + 2, [2 * k, 2 * k + 1]] += sign * (x - place[0]), -sign * (z - place[2])
        cone[2 * k, [2 * k, 2 * k + 1]] = -friction, 1
        cone[2 * k + 1, [2 * k, 2 * k + 1]] = -friction, -1
    for push in scene.pushes:
        i = [b.name for b in bodies].index(push.body)
        balance[3 * i, -1] += push.force[0]
        balance[3 * i + 2, -1] -= push.force[0] * (push.point[2] - bodies[i].position[2])
    weights[1::3] = [b.mass * scene.gravity for b in bodies]
    bounds = [(0, None) if k % 2 == 0 else (None, None) for k in range(2 * n)] + [(0, None)]
    goal = np.concatenate([np.zeros(2 * n), [-1.0]])
    found = linprog(goal, cone, np.zeros(2 * n), balance, weights, bounds, method="highs")
    return -found.fun if found.status == 0 else None


def smoother(scene: Scene) -> Scene:
    """The scene with the least friction among the shifts."""
    factor = min(FRICTIONS[max(FRICTIONS)])
    bodies = tuple(replace(b, friction=factor * b.friction) for b in scene.bodies)
    return replace(scene, bodies=bodies, floor_friction=factor * scene.floor_friction)


def build(structure: Structure) -> Scene:
    return Look(np.random.default_rng(0), 4).scene(structure)


def pairs(name: str, rounds: int, seed: int = 0):
    """Scenes of the first conditions of a task, each with its condition."""
    task, rng = get_task(name), np.random.default_rng(seed)
    return [(c, s) for _ in range(rounds) for c in task.conditions() for s in task.sample_matched(rng, c)]


def test_one_post_tips_about_its_edge():
    # 12 N on a post of 3 N, all 3 cm from the edge, pushed 21 cm above it: 15 N x 0.03 m / 0.21 m.
    weakest, strongest = withstood(
        np.array([-0.03]), np.array([0.03]), np.array([3.0]), 0.2, 0.3, np.array(12.0), np.array(0.0), 0.21
    )
    assert weakest == 0
    assert strongest == pytest.approx(15 * 0.03 / 0.21)


def test_two_equal_posts_rack_whatever_the_place_of_the_load():
    # A parallelogram: the plank rises by w for every h that it goes sideways, the posts by half of that.
    edges = np.array([-0.1, 0.06]), np.array([-0.06, 0.1]), np.array([2.0, 3.0])
    for centre in (-0.04, 0.0, 0.03):
        _, strongest = withstood(*edges, 0.15, 0.3, np.array(14.0), np.array(centre), 0.15)
        assert strongest == pytest.approx((14 * 0.04 + 5 * 0.02) / 0.15)


def test_a_load_over_the_wider_post_withstands_more():
    edges = np.array([-0.1, 0.02]), np.array([-0.07, 0.1]), np.array([1.0, 2.0])
    left, right = (float(withstood(*edges, 0.15, 0.3, np.array(14.0), np.array(x), 0.15)[1]) for x in (-0.05, 0.0))
    # By hand: reactions at the left edges of the posts, each times the width of its post.
    assert left == pytest.approx((14 * (0.07 * 0.03 + 0.05 * 0.08) / 0.12 + 0.015 + 0.08) / 0.15)
    assert right == pytest.approx((14 * (0.02 * 0.03 + 0.10 * 0.08) / 0.12 + 0.015 + 0.08) / 0.15)


def test_a_push_can_hold_up_what_would_tip_backwards():
    # The centre of 10 N is 1 cm behind the post: the push, 5 cm above its top, has to make up for 0.1 N m.
    common = np.array([0.0]), np.array([0.06]), np.array([3.0]), 0.15, 0.3, np.array(10.0), np.array(-0.01)
    weakest, _ = withstood(*common, 0.2)
    assert weakest == pytest.approx(0.1 / 0.05)
    assert withstood(*common, 0.15)[0] == np.inf


def test_margins_of_a_push_agree_with_limit_analysis():
    compared = 0
    for _, scene in pairs("support-hold", 1):
        factor = largest_push(scene)
        assert factor is not None
        assert push_margin(scene) == pytest.approx(1 - 1 / factor, abs=1e-6)
        # Sliding plays no part, even with the least friction among the shifts.
        assert largest_push(smoother(scene)) == pytest.approx(factor, rel=1e-5)
        compared += 1
    assert compared > 60


def test_margins_do_not_depend_on_units():
    for _, scene in pairs("support-hold", 1)[::7]:
        heavier = replace(
            scene,
            bodies=tuple(replace(b, mass=3 * b.mass) for b in scene.bodies),
            pushes=tuple(replace(p, force=(3 * p.force[0], 0.0, 0.0)) for p in scene.pushes),
        )
        assert push_margin(heavier) == pytest.approx(push_margin(scene))
        assert push_margin(replace(heavier, gravity=scene.gravity / 3)) < push_margin(scene)


def test_the_prompt_states_the_force_and_weights_of_the_scene():
    task = get_task("support-hold")
    scene = task.sample_matched(np.random.default_rng(0), task.conditions()[0])[0]
    light = replace(scene, gravity=scene.gravity / 2)
    for shown in (scene, light):
        prompt = task.question(shown, Variant()).prompt
        assert f"push of {force(shown):.1f} N" in prompt
        assert f"load {shown.body('load').mass * shown.gravity:.1f} N" in prompt
    assert task.question(scene, Variant()).prompt == task.question(mirror(scene), Variant()).prompt


def test_there_are_no_structures_on_three_posts_under_a_push():
    for name in ("support-hold", "support-brace"):
        task = get_task(name)
        with pytest.raises(SamplingFailed, match="post"):
            task.sample_matched(np.random.default_rng(0), replace(task.conditions()[-1], count=3))


def test_rest_margin_by_hand():
    # Plank 10 N at 0, load 10 N at 8 cm: centre at 4 cm. Posts of 4 cm at -10 and 5 cm: it ends 3 cm inside 7 cm.
    two = Structure((Post(-0.1, 0.04, 2.0), Post(0.05, 0.04, 2.0)), 0.12, 0.3, 10.0, (Load(0.08, 0.05, 0.05, 10.0),))
    assert rest_margin(build(two)) == 1.0  # 1.5 half widths, capped
    assert rest_margin(without(build(two), "post2")) == -1.0
    alone = replace(two, posts=(Post(0.05, 0.04, 2.0),))
    assert rest_margin(build(alone)) == pytest.approx(0.5)  # 1 cm from the left edge of 3 cm
    assert rest_margin(without(without(build(two), "post1"), "post2")) == -1.0


def test_working_places_are_those_with_a_positive_margin():
    task = get_task("support-brace")
    for _, scene in pairs("support-brace", 1):
        works = working_places(scene)
        for answer in range(-14, 15):
            moved = task.apply(scene, answer)
            first, second = posts(moved)
            apart = abs(first.position[0] - second.position[0]) > (first.size[0] + second.size[0]) / 2 + 1e-6
            if apart:
                assert (push_margin(moved) > 0) == (answer in works)
            else:
                assert answer not in works
        middle = task.solve(scene, task.question(scene, Variant()))
        factor = largest_push(smoother(task.apply(scene, middle)))
        assert factor is not None
        assert factor > 1 / (1 - AMBIGUITY_BAND)


def test_a_post_cannot_be_put_into_the_other_one():
    task = get_task("support-brace")
    _, scene = pairs("support-brace", 1)[0]
    fixed = next(b for b in posts(scene) if b.name != MOVABLE)
    inside = round(100 * (fixed.position[0] - scene.body("plank").position[0]))
    score = task.score(scene, task.question(scene, Variant()), inside)
    assert not score.success
    assert score.outcome is None
    assert not score.detail["fits"]


def test_what_needs_no_physics_fails_to_brace():
    task = get_task("support-brace")
    for _, scene in pairs("support-brace", 1, seed=3)[::2]:
        question = task.question(scene, Variant())
        for name in ("leave it where it stands", "under the load", "under the end of the plank"):
            assert not task.score(scene, question, task.rules()[name](scene)).success, name


def test_exactly_one_block_can_go_and_the_structure_stands_with_all():
    for _, scene in pairs("support-remove", 1)[::5]:
        assert not simulate(scene).decided
        margins = removal_margins(scene)
        stays = {b.name: not simulate(without(scene, b.name)).decided for b in candidates(scene)}
        assert stays == {name: margin > 0 for name, margin in margins.items()}
        assert sum(stays.values()) == 1


def test_neither_posts_nor_blocks_are_always_right():
    task = get_task("support-remove")
    kinds = [scene.bodies for _, scene in pairs("support-remove", 1)]
    answers = [task.statics_answer(scene) for _, scene in pairs("support-remove", 1)]
    names = [next(b.name for b in bodies if b.colour == a) for bodies, a in zip(kinds, answers, strict=True)]
    assert 0.4 < np.mean([name.startswith("post") for name in names]) < 0.6


def test_cylinders_are_round_and_lie_on_the_plank():
    scene = build(Structure((Post(0.0, 0.06, 2.0),), 0.15, 0.3, 3.0, (Load(0.0, 0.05, 0.06, 8.0, "cylinder"),)))
    load = scene.body("load")
    assert load.size[0] == load.size[1]
    assert load.position[2] - load.size[2] / 2 == pytest.approx(0.15 + THICKNESS)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["pybullet", "mujoco"])
def test_engines_agree_with_statics_outside_the_band(engine):
    simulator = get_simulator(engine)
    held = [(push_margin(s) < 0) == simulate(s, simulator).decided for _, s in pairs("support-hold", 5, seed=1)]
    assert np.mean(held) >= 0.99
    removed = [
        (margin < 0) == simulate(without(s, name), simulator).decided
        for _, s in pairs("support-remove", 2, seed=1)
        for name, margin in removal_margins(s).items()
    ]
    assert np.mean(removed) >= 0.99


def test_the_arrow_is_not_asked_about_where_there_is_none() -> None:
    task, remove = get_task("support-grounding"), get_task("support-remove")
    scene = remove.sample_matched(np.random.default_rng(0), remove.conditions()[0])[0]
    assert not scene.pushes
    assert isinstance(task, GroundingTask)
    assert not {"arrow-side", "arrow-target"} & set(task.possible_asks(scene))
