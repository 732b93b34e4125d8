"""Scenes are plain data: they survive JSON, hash by content, mirror exactly, and refuse nonsense."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_probe.stimuli.scene import Body, Camera, Push, Scene, mirror

numbers = st.floats(-2, 2, allow_nan=False).map(lambda v: round(v, 3) + 0.0)


@st.composite
def scenes(draw):
    bodies = tuple(
        Body(
            f"block{i}",
            "box",
            (0.1, 0.1, 0.1),
            (draw(numbers), 0.0, 0.05 + 0.1 * i),
            draw(st.sampled_from(["red", "blue"])),
        )
        for i in range(draw(st.integers(1, 4)))
    )
    pushes = (Push("block0", (draw(numbers), 0.0, 0.0), (0.0, 0.0, 0.05)),) if draw(st.booleans()) else ()
    return Scene(bodies, pushes, camera=Camera(yaw=draw(numbers)))


@given(scenes())
def test_json_round_trip_keeps_content_and_hash(scene):
    again = Scene.from_dict(json.loads(scene.to_json()))
    assert again == scene
    assert again.content_hash == scene.content_hash


@given(scenes())
def test_mirroring_twice_is_nothing_and_once_negates_x(scene):
    assert mirror(mirror(scene)) == scene
    assert [b.position[0] for b in mirror(scene).bodies] == [-b.position[0] + 0.0 for b in scene.bodies]
    assert mirror(scene).camera.yaw == -scene.camera.yaw


def test_another_place_gives_another_hash():
    scene = Scene((Body("a", "box", (0.1, 0.1, 0.1), (0.0, 0.0, 0.05), "red"),))
    assert scene.moved("a", dx=0.01).content_hash != scene.content_hash
    assert scene.moved("a", dx=0.01).moved("a", dx=-0.01).content_hash == scene.content_hash


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": "cone"}, "shape 'cone'"),
        ({"colour": "beige"}, "colour 'beige'"),
        ({"mass": 0.0}, "must be positive"),
        ({"size": (0.1, 0.0, 0.1)}, "must be positive"),
    ],
)
def test_impossible_bodies_are_refused_by_name(change, message):
    good = {"name": "a", "shape": "box", "size": (0.1, 0.1, 0.1), "position": (0.0, 0.0, 0.05), "colour": "red"}
    with pytest.raises(ValueError, match=message):
        Body(**(good | change))


def test_scene_refuses_double_names_unknown_pushes_and_unknown_fields():
    body = Body("a", "box", (0.1, 0.1, 0.1), (0.0, 0.0, 0.05), "red")
    with pytest.raises(ValueError, match="unique"):
        Scene((body, body))
    with pytest.raises(ValueError, match="push names the body 'b'"):
        Scene((body,), (Push("b", (1.0, 0.0, 0.0), (0.0, 0.0, 0.0)),))
    with pytest.raises(ValueError, match="unknown field 'weather'"):
        Scene.from_dict({"bodies": [], "weather": "fine"})
    with pytest.raises(ValueError, match="not a scene"):
        Scene.from_dict({})
    with pytest.raises(KeyError, match="there are a"):
        Scene((body,)).body("z")
