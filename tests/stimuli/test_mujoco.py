"""The second engine agrees with the first on designed items, and is found by name."""

import os
import subprocess
import sys

import numpy as np
import pytest

from vlm_probe.stimuli.generate import make_set
from vlm_probe.stimuli.scene import Body, Push, Scene
from vlm_probe.stimuli.simulators import get_simulator
from vlm_probe.stimuli.tasks import get_task
from vlm_probe.stimuli.tasks.towers.tower import block

pytest.importorskip("mujoco")


@pytest.mark.parametrize("name", ["towers-stability", "towers-topblock", "towers-sideblock"])
def test_both_engines_give_the_same_outcomes(name, tmp_path):
    task, mujoco = get_task(name), get_simulator("mujoco")
    for item in make_set(name, 24, 0, tmp_path / name, size=64).items:
        if task.kind == "action":
            assert task.score(item.scene, item.question, item.answer, mujoco).success, item.item_id
        else:
            assert task.solve(item.scene, item.question, mujoco) == item.answer, item.item_id


def test_outcomes_have_the_same_form_and_depend_on_the_scene_alone():
    mujoco = get_simulator("mujoco")
    scene = Scene((block("block1", 0.0, 0, "red"), block("block2", 0.7, 1, "blue")))
    first, bullet = mujoco.simulate(scene), get_simulator("pybullet").simulate(scene)
    np.testing.assert_array_equal(first.positions, mujoco.simulate(scene).positions)
    assert first.at_rest
    assert first.on_floor == bullet.on_floor == {"block1", "block2"}
    np.testing.assert_allclose(first.positions[-1], bullet.positions[-1], atol=0.02)


def test_velocity_and_push_move_a_body_to_the_right():
    ball = Body("ball", "sphere", (0.1, 0.1, 0.1), (0.0, 0.0, 0.05), "red", velocity=(0.5, 0.0, 0.0))
    assert get_simulator("mujoco").simulate(Scene((ball,)), max_duration=0.5).displacement()[0, 0] > 0.1
    still = block("block1", 0.0, 0, "red")
    pushed = Scene((still,), (Push("block1", (8.0, 0.0, 0.0), (0.0, 0.0, 0.05), 0.0, 0.2),))
    assert get_simulator("mujoco").simulate(pushed).displacement()[0, 0] > 0.01


def test_missing_bullet_is_replaced_with_a_warning(monkeypatch, caplog):
    get_simulator.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "vlm_probe.stimuli.simulators.pybullet", None)
    try:
        assert get_simulator().name == "mujoco"
        assert "pybullet is not installed" in caplog.text
    finally:
        get_simulator.cache_clear()


def draw(folder, **environment):
    """Make a set with MuJoCo in another process, without a screen."""
    code = (
        "import sys; sys.modules['vlm_probe.stimuli.simulators.pybullet'] = None\n"
        "from vlm_probe.stimuli.generate import make_set\n"
        f"print(make_set('towers-topblock', 1, 0, {str(folder)!r}, size=64).card['versions']['renderer'])"
    )
    hidden = {"MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"}
    given = {name: value for name, value in os.environ.items() if name not in hidden}
    given |= environment
    return subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True)


def test_it_draws_without_a_screen_and_without_being_told_how(tmp_path):
    if draw(tmp_path / "told", MUJOCO_GL="egl").returncode:
        pytest.skip("EGL does not draw on this machine")
    done = draw(tmp_path / "untold")
    assert done.returncode == 0, done.stderr[-1000:]
    assert "OpenGL" in done.stdout
