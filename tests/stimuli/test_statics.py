"""The closed form of stacks: worked examples, symmetries, and agreement with the simulator."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_probe.stimuli.simulators import get_simulator
from vlm_probe.stimuli.statics import stack_margin, stack_overshoot
from vlm_probe.stimuli.tasks import AMBIGUITY_BAND
from vlm_probe.stimuli.tasks.towers.tower import Look, draw_towers, fallen

steps = st.lists(st.floats(-0.9, 0.9), min_size=1, max_size=5)


@pytest.mark.parametrize(
    ("x", "margin"),
    [
        ([0.0], 1.0),
        ([0.0, 0.0], 1.0),
        ([0.0, 0.25], 0.5),
        ([0.0, 0.5], 0.0),
        ([0.0, 0.75], -0.5),
        # Counterweight: the middle block overhangs by 0.6, the top block pulls the centre of mass back to 0.4.
        ([0.0, 0.6, 0.2], 0.2),
        # Leaning: no step above a half, yet the centre of mass of the upper two is at 0.6.
        ([0.0, 0.4, 0.8], -0.2),
        # The contact interval is the overlap: the upper blocks' centre is over the bottom block, but not over the contact.
        ([0.0, 0.9, 0.1], -0.6),
    ],
)
def test_worked_examples(x, margin):
    assert stack_margin(np.array(x), 1.0) == pytest.approx(margin)


def test_heavier_counterweight_shifts_the_margin():
    x = np.array([0.0, 0.6, 0.2])
    assert stack_margin(x, 1.0, np.array([1.0, 1.0, 3.0])) > stack_margin(x, 1.0)


@given(steps, st.floats(0.01, 10), st.floats(-3, 3))
def test_margin_ignores_scale_place_and_mirroring(offsets, scale, place):
    x = np.concatenate([[0.0], np.cumsum(offsets)])
    expected = stack_margin(x, 1.0)
    assert stack_margin(x * scale + place, scale) == pytest.approx(expected, abs=1e-7)
    assert stack_margin(-x, 1.0) == pytest.approx(expected, abs=1e-9)
    left, right = stack_overshoot(x, 1.0)
    mirrored_left, mirrored_right = stack_overshoot(-x, 1.0)
    np.testing.assert_allclose([left, right], [mirrored_right, mirrored_left], atol=1e-9)


def test_batches_equal_single_towers():
    towers = draw_towers(np.random.default_rng(0), 4, 50)
    np.testing.assert_allclose(stack_margin(towers, 1.0), [stack_margin(x, 1.0) for x in towers])


def agreement(count: int, seed: int) -> tuple[int, list[float]]:
    """Simulate random towers outside the ambiguity band; returns how many, and the margins of those that disagree."""
    rng, simulator, disagree, n = np.random.default_rng(seed), get_simulator(), [], 0
    while n < count:
        x = draw_towers(rng, int(rng.integers(2, 6)), 1)[0]
        margin = float(stack_margin(x, 1.0))
        if abs(margin) < AMBIGUITY_BAND:
            continue
        n += 1
        look = Look(rng, len(x))
        scene = look.scene(look.centred(x))
        if simulator.simulate(scene, stop=fallen(scene)).decided == (margin > 0):
            disagree.append(margin)
    return n, disagree


def test_simulator_agrees_with_statics_outside_the_band():
    n, disagree = agreement(80, seed=1)
    assert len(disagree) <= 0.01 * n, disagree


@pytest.mark.slow
def test_simulator_agrees_with_statics_on_two_thousand_towers():
    n, disagree = agreement(2000, seed=2)
    assert len(disagree) <= 0.01 * n, disagree
