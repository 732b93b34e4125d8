"""Textures: deterministic patterns that stick to bodies, change brightness only, and mirror."""

from dataclasses import replace

import numpy as np
import pytest

from vlm_probe.stimuli.picture import draw
from vlm_probe.stimuli.scene import Body, Camera, Marker, Scene
from vlm_probe.stimuli.shapes import about_y
from vlm_probe.stimuli.simulators import Poses, get_simulator
from vlm_probe.stimuli.textures import CONTRAST, ON_BODIES, ON_FLOORS, PATTERNS, Texture, brightness, parse_texture

BLOCK = Body("block", "box", (0.2, 0.2, 0.2), (0.0, 0.0, 0.1), "yellow")
FRONT = Camera(target=(0.0, 0.0, 0.1), pitch=0.0)


def gain(kind: str, level: int, footprint: float = 0.0, seed: int = 3) -> np.ndarray:
    points = np.random.default_rng(0).uniform(-2, 2, (4000, 3))
    return brightness(Texture(kind, level, seed), points, np.full(4000, footprint))


@pytest.mark.parametrize("kind", [k for k in PATTERNS if k != "gradient"])
def test_patterns_are_graded_bounded_and_visible(kind):
    spreads = []
    for level, contrast in CONTRAST.items():
        found = gain(kind, level)
        assert np.abs(found - 1).max() <= contrast + 1e-9
        assert np.array_equal(found, gain(kind, level))
        assert not np.array_equal(found, gain(kind, level, seed=4))
        spreads.append(found.std())
    assert 0.02 < spreads[0] < spreads[1] < spreads[2]


@pytest.mark.parametrize("kind", sorted(PATTERNS))
def test_what_is_too_fine_to_draw_fades(kind):
    assert np.array_equal(gain(kind, 3, footprint=0.6), np.ones(4000))


def test_names_are_recipes():
    for kind in (*ON_BODIES, *ON_FLOORS):
        assert parse_texture(Texture(kind, 2, 17).name) == Texture(kind, 2, 17)
    assert parse_texture("wood:2:7:mirror") == Texture("wood", 2, 7, mirrored=True)
    for bad in ("wood", "wood:4:1", "wool:1:1", "wood:1:x", "wood:1:-3"):
        with pytest.raises(ValueError, match="KIND:LEVEL:SEED"):
            parse_texture(bad)
    with pytest.raises(ValueError, match="unknown texture 'wool:1:1'"):
        draw(get_simulator(), Scene((replace(BLOCK, texture="wool:1:1"),)), 64)


def test_plain_scenes_are_drawn_as_the_engine_draws_them():
    simulator, scene = get_simulator(), Scene((BLOCK,), camera=FRONT)
    assert np.array_equal(draw(simulator, scene, 64).rgb, simulator.render(scene, 64).rgb)


@pytest.mark.parametrize("kind", ON_BODIES)
def test_only_the_brightness_of_the_textured_thing_changes(kind):
    simulator = get_simulator()
    marker = Marker("post", "cylinder", (0.05, 0.05, 0.1), (0.2, 0.0, 0.05), "grey")
    scene = Scene((BLOCK,), markers=(marker,), camera=FRONT)
    textured = replace(scene, bodies=(replace(BLOCK, texture=f"{kind}:3:5"),))
    before, after = draw(simulator, scene, 128), draw(simulator, textured, 128)
    block = before.segmentation == 0
    assert np.array_equal(before.rgb[~block], after.rgb[~block])
    assert np.array_equal(before.depth, after.depth)
    assert before.rgb[block].std(axis=0).max() + 10 < after.rgb[block].std(axis=0).max()
    # Yellow stays yellow: the ratio of red to green changes only by clipping.
    inside = block & (after.rgb.max(axis=2) < 255) & (before.rgb.max(axis=2) > 60)
    ratio = [frame.rgb[inside][:, 1] / frame.rgb[inside][:, 0] for frame in (before, after)]
    assert np.abs(ratio[0] - ratio[1]).max() < 0.05


def test_a_texture_moves_and_turns_with_its_body():
    simulator = get_simulator()
    scene = Scene((replace(BLOCK, texture="checks:3:5"),), camera=FRONT)
    start = draw(simulator, scene, 128).rgb.astype(int)
    # A quarter turn in the picture plane turns the pattern of the front by as much.
    turned = Poses(np.array([BLOCK.position]), np.array([about_y(90)]))
    after = draw(simulator, scene, 128, turned).rgb.astype(int)
    front = (slice(36, 92), slice(36, 92))
    same = [np.abs(np.rot90(start[front], k) - after[front]).max(axis=2) < 40 for k in range(4)]
    # Not exactly: the picture of a pattern under perspective and its pixels are not quite symmetric.
    assert same[3].mean() > 0.8
    assert max(same[k].mean() for k in (0, 1, 2)) < same[3].mean() - 0.15


def test_mirror_images_have_mirrored_textures_also_on_wedges():
    from vlm_probe.stimuli.scene import mirror

    simulator = get_simulator()
    for shape in ("box", "wedge"):
        body = replace(BLOCK, shape=shape, texture="marble:3:9")
        scene = Scene((body,), camera=replace(FRONT, yaw=20.0, pitch=-20.0))
        scene = replace(
            scene, background=replace(scene.background, floor_texture="tiles:3:2", sky_texture="clouds:3:1")
        )
        picture = draw(simulator, scene, 128).rgb.astype(int)
        image = draw(simulator, mirror(scene), 128).rgb.astype(int)
        close = np.abs(picture[:, ::-1] - image).max(axis=2) < 50
        assert close.mean() > 0.93
        unturned = mirror(replace(scene, bodies=(replace(body, texture="marble:3:9:mirror"),)))
        other = draw(simulator, unturned, 128).rgb.astype(int)
        block = draw(simulator, mirror(scene), 128).segmentation == 0
        worse = np.abs(picture[:, ::-1] - other).max(axis=2) < 50
        assert worse[block].mean() < close[block].mean() - 0.1
