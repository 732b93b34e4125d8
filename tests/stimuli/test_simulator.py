"""The Bullet simulator: outcomes depend on the scene alone, and pictures are pinned."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from vlm_probe.stimuli.scene import Body, Camera, Push, Scene
from vlm_probe.stimuli.simulators import BACKGROUND, FLOOR, MIN_DURATION, get_simulator
from vlm_probe.stimuli.tasks import get_task
from vlm_probe.stimuli.tasks.towers.tower import block, fallen

GOLDEN = Path(__file__).parent.parent / "data" / "golden_scenes.json"


def tower(*x: float) -> Scene:
    return Scene(
        tuple(
            block(f"block{i + 1}", v, i, c) for i, (v, c) in enumerate(zip(x, ("red", "green", "blue"), strict=False))
        )
    )


def golden_scenes() -> dict[str, Scene]:
    found = {}
    for name in ("towers-stability", "towers-direction", "towers-topblock", "towers-sideblock", "towers-grounding"):
        task = get_task(name)
        found[name] = task.sample_matched(np.random.default_rng(7), task.conditions()[1])[0]
    return found


def fingerprint(scene: Scene) -> dict[str, str]:
    simulator = get_simulator()
    picture = simulator.render(scene, 96).rgb.tobytes()
    end = np.round(simulator.simulate(scene, stop=fallen(scene)).positions[-1], 3) + 0.0
    return {
        "scene": scene.content_hash[:16],
        "picture": hashlib.sha256(picture).hexdigest()[:16],
        "outcome": hashlib.sha256(json.dumps(end.tolist()).encode()).hexdigest()[:16],
    }


def test_golden_scenes_pictures_and_outcomes():
    assert {name: fingerprint(scene) for name, scene in golden_scenes().items()} == json.loads(GOLDEN.read_text())


def test_a_standing_tower_is_watched_for_its_full_time():
    scene = tower(0.0, 0.1, 0.0)
    outcome = get_simulator().simulate(scene, stop=fallen(scene))
    assert not outcome.decided
    assert outcome.at_rest
    assert outcome.duration >= MIN_DURATION - 1e-6
    assert outcome.on_floor == {"block1"}
    assert np.abs(outcome.displacement()).max() < 1e-3


def test_a_falling_tower_is_decided_early_and_ends_on_the_floor():
    scene = tower(0.0, 0.7)
    early = get_simulator().simulate(scene, stop=fallen(scene))
    assert early.decided
    assert early.duration < 1.0
    whole = get_simulator().simulate(scene)
    assert whole.at_rest
    assert whole.on_floor == {"block1", "block2"}
    assert whole.displacement()[1, 0] > 0  # it went to the right
    assert whole.positions.shape == (len(whole.times), 2, 3)
    assert whole.orientations.shape == (len(whole.times), 2, 4)


def test_an_outcome_depends_on_the_scene_alone():
    simulator, scene = get_simulator(), tower(0.0, 0.45, 0.9)
    first = simulator.simulate(scene)
    simulator.simulate(tower(0.0, 0.7))
    simulator.render(tower(0.3), 64)
    second = simulator.simulate(scene)
    np.testing.assert_array_equal(first.positions, second.positions)


def test_a_push_moves_a_block_along_its_force():
    scene = tower(0.0)
    pushed = Scene(scene.bodies, (Push("block1", (8.0, 0.0, 0.0), (0.0, 0.0, 0.05), 0.0, 0.2),))
    assert get_simulator().simulate(pushed).displacement()[0, 0] > 0.01


def test_pictures_have_segmentation_and_depth_that_fit():
    scene = tower(-0.5, -0.3)
    frame = get_simulator().render(scene, 128)
    assert frame.rgb.shape == (128, 128, 3)
    assert frame.rgb.dtype == np.uint8
    assert frame.segmentation.dtype == np.int32
    assert frame.depth.dtype == np.float32
    assert set(np.unique(frame.segmentation)) == {BACKGROUND, FLOOR, 0, 1}
    columns = np.nonzero(frame.segmentation == 0)[1]
    assert columns.mean() < 60  # x < 0 is image left
    red = frame.rgb[frame.segmentation == 0].mean(axis=0)
    assert red[0] > 2 * red[1]
    # The front face is half a block nearer than the middle plane, which is `distance` away.
    assert frame.depth[frame.segmentation == 0].min() == pytest.approx(Camera().distance - 0.05, abs=0.02)


def test_a_scene_can_be_drawn_as_it_ended():
    simulator, scene = get_simulator(), tower(0.0, 0.7)
    before = simulator.render(scene, 64).rgb
    after = simulator.render(scene, 64, simulator.simulate(scene).poses()).rgb
    assert (before != after).any()
    np.testing.assert_array_equal(simulator.render(scene, 64).rgb, before)


def test_cylinders_and_spheres_are_simulated_and_drawn():
    bodies = (
        Body("ball", "sphere", (0.1, 0.1, 0.1), (-0.15, 0.0, 0.3), "red"),
        Body("can", "cylinder", (0.1, 0.1, 0.2), (0.15, 0.0, 0.1), "blue"),
    )
    simulator, scene = get_simulator(), Scene(bodies)
    assert {0, 1} <= set(np.unique(simulator.render(scene, 96).segmentation))
    assert simulator.simulate(scene).displacement()[0, 2] == pytest.approx(-0.25, abs=0.01)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc")
def test_meshes_leave_nothing_behind():
    """pybullet keeps every list of vertices that it is given: 11 kB a wedge, if each were a new one."""
    engine = get_simulator()

    def draw(times: int) -> int:
        for number in range(times):
            size = (0.05 + 1e-6 * number, 0.05, 0.05)
            bodies = tuple(Body(f"w{i}", "wedge", size, (0.1 * i, 0.0, 0.1), "red") for i in range(4))
            engine.render(Scene(bodies), 16)
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4

    before = draw(60)
    assert draw(150) - before < 1000, "kB; it would be 6600"


def test_unknown_engine():
    with pytest.raises(ValueError, match="unknown simulator 'havok'"):
        get_simulator("havok")
