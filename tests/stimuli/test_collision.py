"""Collision: closed forms against worked examples and both engines, and what the design of its sets promises."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_probe.stimuli import kinematics
from vlm_probe.stimuli.condition import Condition
from vlm_probe.stimuli.picture import draw, panel_poses
from vlm_probe.stimuli.question import Variant
from vlm_probe.stimuli.scene import mirror
from vlm_probe.stimuli.shapes import rotation
from vlm_probe.stimuli.simulators import BACKGROUND, FLOOR, get_simulator
from vlm_probe.stimuli.tasks import get_task
from vlm_probe.stimuli.tasks.collision.aim import working_angles
from vlm_probe.stimuli.tasks.collision.launch import event_of
from vlm_probe.stimuli.tasks.collision.outcome import gate_at, gate_margin
from vlm_probe.stimuli.tasks.collision.table import (
    Look,
    arrow,
    ball,
    crossed,
    flat_arrow,
    gate_edges,
    gates,
    in_picture,
    moving,
    plane,
    settled,
    struck_crossing,
)
from vlm_probe.stimuli.viewing import project

R = 0.04


def table(start, velocity, place=(0.0, 0.0), radii=(R, R), masses=(0.4, 0.4), restitution=0.9, shown="arrow"):
    """One ball that moves at another one, with three gates of 10 cm at y = 0.3."""
    look = Look(np.random.default_rng(0), 2)
    cue = ball("cue", start, radii[0], "red", masses[0], restitution, 1.0)
    target = ball("target", place, radii[1], "blue", masses[1], restitution, 1.0)
    return look.scene((moving(cue, velocity), target), gates((-0.15, -0.05, 0.05, 0.15), 0.3), shown)


def test_a_meeting_worked_by_hand():
    # Straight up, 4.8 cm to the left of the other ball; they touch when the centres are 8 cm apart: a 3-4-5 triangle.
    place, velocity, other = np.array([-0.048, -0.3]), np.array([0.0, 0.5]), np.zeros(2)
    np.testing.assert_allclose(kinematics.meeting(place, velocity, other, 0.08), [-0.048, -0.064], atol=1e-12)
    direction = kinematics.struck_direction(place, velocity, other, 0.08)
    np.testing.assert_allclose(direction, [0.6, 0.8], atol=1e-12)
    assert kinematics.offset(place, velocity, other) == pytest.approx(0.048)
    assert kinematics.crossing(other, direction, 0.3) == pytest.approx(0.225)
    assert kinematics.degrees(direction) == pytest.approx(math.degrees(math.atan(0.75)))


def test_balls_that_miss_never_meet_and_paths_that_lead_away_never_cross():
    assert np.isnan(kinematics.meeting(np.array([-0.1, -0.3]), np.array([0.0, 1.0]), np.zeros(2), 0.08)).all()
    assert np.isnan(kinematics.meeting(np.array([0.0, -0.3]), np.array([0.0, -1.0]), np.zeros(2), 0.08)).all()
    assert np.isnan(kinematics.crossing(np.zeros(2), np.array([1.0, -1.0]), 0.3))


def test_balls_of_different_size_touch_nearer_than_the_sum_of_their_radii():
    # Radii 4 and 9: the centres are 13 apart, 5 of it upwards, so 12 along the table.
    assert kinematics.reach(4.0, 9.0) == pytest.approx(12.0)


def test_impacts_worked_by_hand():
    x, zero = np.array([1.0, 0.0]), np.zeros(2)
    first, second = kinematics.impact(x, zero, x, 1.0, 1.0, 1.0)
    np.testing.assert_allclose([first, second], [zero, x], atol=1e-12)  # equal balls exchange their velocities
    first, second = kinematics.impact(x, zero, x, 1.0, 4.0, 0.25)
    np.testing.assert_allclose([first, second], [zero, x / 4], atol=1e-12)  # restitution = ratio of masses: stops dead
    first, second = kinematics.impact(x, zero, np.array([0.0, 1.0]), 1.0, 1.0, 1.0)
    np.testing.assert_allclose([first, second], [x, zero], atol=1e-12)  # a graze changes nothing


angles = st.floats(-180, 180)


@given(angles, angles, st.floats(0.1, 2), st.floats(0, 1))
def test_impacts_keep_momentum_and_never_gain_energy(course, side, ratio, share):
    velocity, normal = kinematics.heading(course), kinematics.heading(side)
    first, second = kinematics.impact(velocity, np.zeros(2), normal, 1.0, ratio, share)
    np.testing.assert_allclose(first + ratio * second, velocity, atol=1e-9)
    assert first @ first + ratio * second @ second <= 1 + 1e-9


@given(angles, st.floats(-0.075, 0.075))
def test_the_closed_form_turns_with_the_table(course, aside):
    d = kinematics.heading(course)
    right = np.array([d[1], -d[0]])
    leaves = kinematics.struck_direction(-0.3 * d - aside * right, d, np.zeros(2), 0.08)
    assert leaves @ right == pytest.approx(aside / 0.08, abs=1e-9)
    assert leaves @ d == pytest.approx(math.sqrt(1 - (aside / 0.08) ** 2), abs=1e-9)


# Degrees by which the direction may differ: the contacts of MuJoCo are springs, along which the balls slide while they last.
@pytest.mark.parametrize(("engine", "tolerance"), [("pybullet", 0.3), ("mujoco", 2.0)])
@pytest.mark.parametrize(
    ("course", "share", "radii", "masses"),
    [
        (0, -0.3, (R, R), (0.4, 0.4)),
        (35, 0.5, (R, R), (0.3, 0.6)),
        (-40, -0.75, (0.036, 0.046), (0.6, 0.3)),
        (20, 0.6, (0.046, 0.036), (0.4, 0.5)),
    ],
)
def test_both_engines_send_the_struck_ball_where_the_closed_form_says(engine, tolerance, course, share, radii, masses):
    pytest.importorskip(engine)
    d = kinematics.heading(float(course))
    # The struck ball lies to the left of the path where the share of the distance of touch is positive.
    start = -0.25 * d + share * float(kinematics.reach(*radii)) * np.array([d[1], -d[0]])
    scene = table(start, 0.7 * d, radii=radii, masses=masses)
    outcome = get_simulator(engine).simulate(scene, stop=settled(scene))
    expected = course - math.degrees(math.asin(share))
    assert struck_crossing(scene) == pytest.approx(0.3 * math.tan(math.radians(expected)), abs=0.001)
    assert math.degrees(math.atan(crossed(scene, outcome) / 0.3)) == pytest.approx(expected, abs=tolerance)
    assert outcome.duration < 2


def test_a_miss_ends_early_and_crosses_nothing():
    scene = table((-0.15, -0.2), (0.0, 0.7))
    outcome = get_simulator().simulate(scene, stop=settled(scene))
    assert outcome.decided
    assert outcome.duration < 0.8
    assert math.isnan(crossed(scene, outcome))
    assert math.isnan(struck_crossing(scene))
    assert get_task("collision-outcome").margin(scene) == -1.0


def test_gates_and_margins():
    edges = np.array([-0.15, -0.05, 0.05, 0.15])
    assert [gate_at(x, edges) for x in (-0.3, -0.06, 0.0, 0.06)] == ["left", "left", "middle", "right"]
    np.testing.assert_allclose(gate_margin(np.array([-0.06, -0.05, 0.0, 0.04, 0.075]), edges), [0.2, 0, -1, -0.2, 0.5])
    found, line = gate_edges(table((0.0, -0.3), (0.0, 0.6)))
    np.testing.assert_allclose(found, edges)
    assert line == pytest.approx(0.3)


def test_arrows_lie_flat_and_point_along_the_velocity():
    for turn in (-150, -60, 0, 35, 90, 180):
        direction = kinematics.heading(float(turn))
        matrix = rotation(flat_arrow(direction))
        np.testing.assert_allclose(matrix @ [1, 0, 0], [*direction, 0], atol=1e-9)
        assert abs((matrix @ [0, 1, 0])[2]) == pytest.approx(1)
    cue = table((0.1, -0.2), (-0.3, 0.4)).body("cue")
    marker = arrow(cue)
    tail = np.array(marker.position[:2]) - marker.size[0] / 2 * np.array([-0.6, 0.8])
    np.testing.assert_allclose(tail, np.array([0.1, -0.2]) + R * np.array([-0.6, 0.8]), atol=1e-4)


def test_projection_is_that_of_the_renderer():
    scene = table((0.15, -0.2), (-0.3, 0.4), shown="")
    mask = get_simulator().render(scene, 200).segmentation
    for index, body in enumerate(scene.bodies):
        rows, columns = np.nonzero(mask == index)
        x, y, _ = project(scene.camera, np.array([body.position]))[0]
        assert columns.mean() == pytest.approx(100 + 100 * x, abs=2)
        assert rows.mean() == pytest.approx(100 - 100 * y, abs=2)


@pytest.mark.parametrize("build", ["slid", "turned", "aimed"])
def test_foils_vary_what_their_build_says(build):
    task, rng = get_task("collision-outcome"), np.random.default_rng(2)
    for shown in ("arrow", "ghost", "strip"):
        scenes = task.sample_matched(rng, Condition(2, (-0.4, -0.2), build, shown=shown))
        assert [task.statics_answer(s) for s in scenes] == ["middle", "left", "right"]
        starts = np.array([s.body("cue").position for s in scenes])
        courses = np.array([kinematics.degrees(plane(s.body("cue").velocity)) for s in scenes])
        offsets = np.array([task.cues()["impact offset"](s) for s in scenes])
        # What a build holds constant, up to the grid of a millimetre.
        assert (np.ptp(courses) < 0.2) == (build == "slid")
        assert (np.ptp(starts[:, 0]) < 1e-9) == (build == "aimed")
        assert (np.ptp(offsets) < 0.03) == (build == "turned")


@pytest.mark.parametrize("shown", ["ghost", "strip"])
def test_a_trail_is_where_the_ball_was_and_stays_in_the_picture(shown):
    task, rng = get_task("collision-outcome"), np.random.default_rng(4)
    for scene in task.sample_matched(rng, Condition(3, (-0.7, -0.4), "turned", shown=shown)):
        velocity = np.array(scene.body("cue").velocity)
        if shown == "ghost":
            trail = [np.array(m.position) for m in scene.markers if m.name.startswith("ghost")]
        else:
            trail = [poses.positions[0] for poses in panel_poses(get_simulator(), scene)][:3]
            assert in_picture(scene)
            strip = draw(get_simulator(), scene, 224).segmentation
            for rows in (slice(0, 111), slice(113, 224)):
                for columns in (slice(0, 111), slice(113, 224)):
                    seen = Counter(strip[rows, columns].ravel().tolist())
                    # Each moment shows every ball as at least 25 pixels, clear of the edges.
                    assert min(seen[i] for i in range(3)) >= 25
                    edge = strip[rows, columns][[0, -1]]
                    assert set(edge.ravel().tolist()) <= {FLOOR, BACKGROUND}
        steps = np.diff([*trail, np.array(scene.body("cue").position)], axis=0)
        np.testing.assert_allclose(steps, np.tile(velocity * 0.07, (3, 1)), atol=1e-4)


def test_no_simple_rule_and_no_single_cue_beats_chance_by_much():
    task, rng = get_task("collision-outcome"), np.random.default_rng(0)
    hits: dict[str, list[bool]] = {name: [] for name in task.rules()}
    for condition in task.conditions() * 3:
        for scene in task.sample_matched(rng, condition):
            truth = task.statics_answer(scene)
            for name, rule in task.rules().items():
                hits[name].append(rule(scene) == truth)
    # Chance is a third; ten points more are the limit, and three are the noise of 486 scenes.
    assert max(np.mean(found) for found in hits.values()) < 0.433 + 0.03
    assert np.mean(hits["straight on along the arrow"]) > 0.15  # it is right and wrong


def test_aiming_worked_by_hand():
    # The struck ball must go straight up, so it must be touched from straight below, at (0, -0.08).
    look = Look(np.random.default_rng(0), 2)
    cue = moving(ball("cue", (-0.1, -0.08 - 0.1 * math.sqrt(3)), R, "red", 0.4, 0.9, 1.0), (0.0, 0.7))
    target = ball("target", (0.0, 0.0), R, "blue", 0.4, 0.9, 1.0)
    scene = look.scene((cue, target), gates((-0.05, 0.05), 0.3), "arrow")
    task = get_task("collision-aim")
    question = task.question(scene, Variant())
    answers = working_angles(scene)
    assert answers[0] < 30 < answers[-1]
    assert abs(task.solve(scene, question) - 30) <= 1
    turned = task.apply(scene, 30)
    np.testing.assert_allclose(turned.body("cue").velocity, [0.35, 0.7 * math.sqrt(3) / 2, 0.0], atol=1e-8)
    np.testing.assert_allclose(
        rotation(turned.markers[-1].orientation) @ [1, 0, 0], [0.5, math.sqrt(3) / 2, 0], atol=1e-8
    )
    assert task.score(scene, question, 30).success
    # Mirrored, the answer has the other sign.
    assert task.score(mirror(scene), question, -30).success
    # Simulated next to the edges of what the closed form says.
    tried = {a: task.score(scene, question, a).success for a in (answers[0] - 2, answers[0] + 1, answers[-1] + 2)}
    assert list(tried.values()) == [False, True, False]


def test_rewards_of_misses_fall_with_the_distance_from_what_works():
    task = get_task("collision-aim")
    scene = task.sample(np.random.default_rng(0), task.conditions()[2])
    question = task.question(scene, Variant())
    answer = task.solve(scene, question)
    sign = -1 if answer > 0 else 1
    rewards = [task.score(scene, question, answer + sign * d).reward for d in (0, 8, 14, 20, 40)]
    assert rewards[0] == 1.0
    assert rewards[1:] == sorted(rewards[1:], reverse=True)
    assert max(rewards[1:]) <= 0.5
    assert rewards[-1] == 0.0
    with pytest.raises(TypeError, match="whole number of degrees"):
        task.apply(scene, "left")


@pytest.mark.parametrize("build", ["gap", "delay", "both"])
def test_only_the_launch_depends_on_the_first_ball(build):
    task, rng, simulator = get_task("collision-launch"), np.random.default_rng(1), get_simulator()
    launch, foil = task.sample_matched(rng, Condition(2, (0.4, 0.7), build, shown="strip"))
    assert [task.solve(s, task.question(s, Variant())) for s in (launch, foil)] == ["caused", "alone"]
    assert not event_of(launch).pushed
    event = event_of(foil)
    assert event.pushed
    assert (event.gap > 0.002) == (build != "delay")
    assert (event.delay > 0.05) == (build != "gap")
    # What is seen of the second ball is the same in both, and the first one ends at rest.
    ways = [panel_poses(simulator, scene) for scene in (launch, foil)]
    for a, b in zip(*ways, strict=True):
        np.testing.assert_allclose(a.positions[1], b.positions[1], atol=0.001)
    for way in ways:
        np.testing.assert_allclose(way[2].positions[0], way[3].positions[0], atol=0.001)
        assert np.linalg.norm(way[0].positions[0] - way[2].positions[0]) > 0.02  # and was seen to move
    # The gap and the delay can be seen: in the third picture, and in the second.
    touching = 2 * launch.body("cue").size[0] / 2
    apart = float(np.linalg.norm(ways[1][2].positions[0] - ways[1][0].positions[1])) - touching
    assert apart == pytest.approx(event.gap, abs=0.001)
    if build == "delay":
        second = ways[1][1].positions
        assert float(np.linalg.norm(second[0] - second[1])) - touching < 0.001


def test_launches_are_the_same_in_the_second_engine():
    mujoco = pytest.importorskip("mujoco") and get_simulator("mujoco")
    task, rng = get_task("collision-launch"), np.random.default_rng(5)
    for condition in task.conditions()[::2]:
        for scene in task.sample_matched(rng, condition):
            assert task.solve(scene, task.question(scene, Variant()), mujoco) == task.statics_answer(scene)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["pybullet", "mujoco"])
def test_engines_agree_with_the_closed_form_outside_the_band(engine):
    pytest.importorskip(engine)
    task, rng, simulator = get_task("collision-outcome"), np.random.default_rng(9), get_simulator(engine)
    wrong, n = [], 0
    for condition in task.conditions() * 4:
        for scene in task.sample_matched(rng, condition):
            n += 1
            if task.solve(scene, task.question(scene, Variant()), simulator) != task.statics_answer(scene):
                wrong.append(task.margin(scene))
    assert len(wrong) <= 0.03 * n, wrong
