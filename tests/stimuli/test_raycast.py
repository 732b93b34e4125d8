"""The ray-casting renderer: edges where geometry puts them, the same bytes everywhere, light that reads as light."""

import colorsys
import hashlib
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import ConvexHull

from vlm_probe.stimuli.palettes import PALETTES
from vlm_probe.stimuli.picture import draw, painter
from vlm_probe.stimuli.raycast import FAR, compiled, get_raycast, prepare
from vlm_probe.stimuli.scene import COLOURS, Body, Camera, Light, Marker, Scene, mirror
from vlm_probe.stimuli.shapes import about_y, about_z, corners, mesh, rotation
from vlm_probe.stimuli.shifts import apply, parse_shifts
from vlm_probe.stimuli.simulators import BACKGROUND, FLOOR, Poses
from vlm_probe.stimuli.tasks import FAMILIES, get_task
from vlm_probe.stimuli.viewing import axes, project, raised, sides_kept, things, unproject

GOLDEN = Path(__file__).parent.parent / "data" / "golden_raycast.json"
SIZE = 192


def family(task_name: str, seed: int = 7, shifts: str = "") -> Scene:
    """A scene of a task as this renderer shows it."""
    task, rng = get_task(task_name), np.random.default_rng(seed)
    scene = raised(task.sample_matched(rng, task.conditions()[seed % len(task.conditions())]))[0]
    return apply(scene, parse_shifts(shifts), rng) if shifts else scene


def every_shape() -> Scene:
    bodies = (
        Body("box", "box", (0.1, 0.08, 0.06), (-0.2, 0.05, 0.03), "red", orientation=about_z(20)),
        Body("can", "cylinder", (0.08, 0.08, 0.12), (-0.05, 0.1, 0.06), "brown"),
        Body("log", "cylinder", (0.05, 0.05, 0.16), (0.0, -0.1, 0.025), "white", orientation=(0.5, 0.5, 0.5, 0.5)),
        Body("ball", "sphere", (0.09, 0.09, 0.09), (0.1, 0.1, 0.045), "blue"),
        Body("ramp", "wedge", (0.12, 0.08, 0.1), (0.2, 0.0, 0.1 / 3), "yellow", orientation=about_z(-30)),
        Body("cradle", "cradle", (0.1, 0.08, 0.05), (0.15, -0.15, 0.02), "black"),
        Body(
            "stone",
            "box",
            (0.07, 0.07, 0.07),
            (-0.15, -0.15, 0.07),
            "grey",
            orientation=about_y(35),
            texture="dots:2:3",
        ),
    )
    arrow = Marker("arrow", "arrow", (0.15, 0.02, 0.06), (-0.05, 0.0, 0.2), "black")
    ghost = Marker("ghost", "sphere", (0.09, 0.09, 0.09), (0.1, 0.1, 0.15), "blue", fade=0.6)
    return Scene(bodies, markers=(arrow, ghost), camera=Camera((0, 0, 0.1), yaw=15, pitch=-14))


def golden_scenes() -> dict[str, Scene]:
    plain = {task: family(task) for task in sorted(FAMILIES.values())}
    shifted = {f"{task} visual:3": family(task, 5, "visual:3") for task in plain}
    return {"shapes": every_shape(), **plain, **shifted}


def fingerprint(scene: Scene, size: int) -> str:
    frame = draw(get_raycast(), scene, size)
    parts = (frame.rgb, frame.segmentation, frame.depth)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]


def fingerprints() -> dict[str, str]:
    found = {f"{name} {size}": fingerprint(s, size) for name, s in golden_scenes().items() for size in (64, 160)}
    return found | {"shapes 448": fingerprint(every_shape(), 448)}


def test_golden_images():
    """On every x86-64 machine. A change of these is another look: raise `VERSION` in stimuli/raycast.py."""
    assert fingerprints() == json.loads(GOLDEN.read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"NUMBA_ENABLE_AVX": "0", "NUMBA_LOOP_VECTORIZE": "0", "NUMBA_SLP_VECTORIZE": "0"},
        {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
        {"NUMBA_OPT": "1"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_bytes_do_not_depend_on_how_it_is_compiled(settings, tmp_path):
    code = "import json, sys; sys.path.insert(0, 'tests/stimuli'); import test_raycast as t; print(json.dumps(t.fingerprints()))"
    env = os.environ | settings | {"NUMBA_CACHE_DIR": str(tmp_path)}
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert json.loads(made.stdout) == json.loads(GOLDEN.read_text())


def pixels(camera: Camera, points: np.ndarray, size: int) -> np.ndarray:
    """(n, 2) columns and rows, continuous, of world points."""
    places = project(camera, points)[:, :2]
    return np.stack([(1 + places[:, 0]) * size / 2, (1 - places[:, 1]) * size / 2], axis=1)


def random_polytope(seed: int) -> tuple[Scene, np.ndarray]:
    """A box or wedge somewhere in the air, and its corners."""
    rng = np.random.default_rng(seed)
    quaternion = rng.normal(size=4)
    turn = tuple((quaternion / np.linalg.norm(quaternion)).tolist())
    size = tuple(rng.uniform(0.05, 0.25, 3).tolist())
    place = tuple((rng.uniform(-0.08, 0.08, 3) + np.array([0, 0, 3])).tolist())
    thing = Marker("thing", ("box", "wedge")[seed % 2], size, place, "red", turn, fade=1e-6)
    yaw, pitch = float(rng.uniform(-40, 40)), float(rng.uniform(-30, 5))
    points = mesh("wedge", size)[0] @ rotation(turn).T + place if seed % 2 else corners(thing)
    return Scene((), markers=(thing,), camera=Camera((0, 0, 3), yaw=yaw, pitch=pitch), palette="vivid"), points


@pytest.mark.parametrize("seed", range(12))
def test_segmentation_is_the_exact_projection(seed):
    scene, points = random_polytope(seed)
    hull = ConvexHull(pixels(scene.camera, points, SIZE))
    mask = get_raycast().render(scene, SIZE).segmentation == 0
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    away = (hull.equations[:, :2] @ np.stack([columns.ravel(), rows.ravel()]) + hull.equations[:, 2:]).max(axis=0)
    clear = np.abs(away) > 1e-6
    assert ((away < 0) == mask.ravel())[clear].all()
    assert mask.sum() > 200


@pytest.mark.parametrize("seed", range(12))
def test_antialiased_edges_lie_where_geometry_puts_them(seed):
    """Within half a pixel everywhere, and a few hundredths on average: read from how much of each pixel is covered."""
    scene, points = random_polytope(seed)
    frame = get_raycast().render(scene, SIZE)
    # The thing is red, so that blue light is that of the sky alone, whatever the shade of the face.
    blue = (frame.rgb[..., 2].astype(float) / 255) ** 2
    covered = 1 - blue / blue[:, :1]
    outline = pixels(scene.camera, points, SIZE)
    outline = outline[ConvexHull(outline).vertices]
    errors = []
    for row in range(SIZE):
        crossings = []
        for (x0, y0), (x1, y1) in zip(outline, np.roll(outline, -1, axis=0), strict=True):
            steep = abs(y1 - y0) > abs(x1 - x0)
            if steep and min(y0, y1) + 2 < row + 0.5 < max(y0, y1) - 2:
                crossings.append(x0 + (x1 - x0) * (row + 0.5 - y0) / (y1 - y0))
        if len(crossings) == 2:
            left, right = sorted(crossings)
            if right - left > 8:
                errors.append(int(left) + 4 - covered[row, int(left) - 3 : int(left) + 4].sum() - left)
                errors.append(int(right) - 3 + covered[row, int(right) - 3 : int(right) + 4].sum() - right)
    assert len(errors) >= 10
    assert np.abs(errors).max() < 0.2
    assert abs(np.mean(errors)) < 0.03


def test_points_of_the_depth_map_lie_on_the_bodies():
    scene = every_shape()
    frame = get_raycast().render(scene, SIZE)
    assert set(np.unique(frame.segmentation)) == {BACKGROUND, FLOOR, *range(len(things(scene)))}
    for index, thing in enumerate(things(scene)):
        rows, columns = np.nonzero(frame.segmentation == index)
        points = unproject(scene.camera, rows, columns, frame.depth[rows, columns].astype(float), SIZE)
        own = (points - np.array(thing.position)) @ rotation(thing.orientation)
        half = np.array(thing.size) / 2
        if thing.shape == "sphere":
            off = np.linalg.norm(own, axis=1) - half[0]
        elif thing.shape == "cylinder":
            off = np.maximum(np.hypot(own[:, 0], own[:, 1]) - half[0], np.abs(own[:, 2]) - half[2])
        elif thing.shape == "box":
            off = (np.abs(own) - half).max(axis=1)
        else:
            continue
        assert np.abs(off).max() < 1e-5, thing.name
    rows, columns = np.nonzero((frame.segmentation == FLOOR) & (frame.depth < FAR))
    assert (
        np.abs(unproject(scene.camera, rows, columns, frame.depth[rows, columns].astype(float), SIZE)[:, 2]).max()
        < 1e-5
    )


def test_the_horizon_is_level_and_where_it_should_be():
    camera = Camera((0, 0, 0.2), pitch=-10, yaw=13)
    frame = get_raycast().render(Scene((), camera=camera), SIZE)
    _, _, up, into = axes(camera)
    gy = -into[2] / up[2] / np.tan(np.radians(camera.fov) / 2)
    assert (frame.segmentation == frame.segmentation[:, :1]).all()
    assert (frame.rgb == frame.rgb[:, :1]).all()
    assert abs((frame.segmentation[:, 0] == BACKGROUND).sum() - (1 - gy) * SIZE / 2) <= 0.5


def test_shadows_are_soft_and_fall_away_from_the_light():
    block = Body("block", "box", (0.1, 0.1, 0.1), (0.0, 0.0, 0.05), "red")
    side = Light((-1.0, 0.0, 1.0))
    scene = Scene((block,), camera=Camera((0, 0, 0.05), pitch=-30), light=side)
    lone = replace(scene, bodies=())
    ratio = get_raycast().render(scene, SIZE).rgb.mean(axis=2) / get_raycast().render(lone, SIZE).rgb.mean(axis=2)
    floor = get_raycast().render(scene, SIZE).segmentation == FLOOR
    half = np.arange(SIZE) < SIZE / 2
    left, right = ((1 - ratio[:, side][floor[:, side]]).sum() for side in (half, ~half))
    assert right > 3 * left > 0
    # A penumbra: many steps between full light and full shade.
    row = ratio[SIZE // 2 + 12, SIZE // 2 + 30 :]
    assert len(np.unique(row.round(3))) > 8
    assert np.abs(np.diff(row)).max() < 0.12


@pytest.mark.parametrize("sign", ["arrow", "ghost"])
def test_signs_cast_no_shadow(sign):
    shape, fade = ("arrow", 0.0) if sign == "arrow" else ("sphere", 0.6)
    marker = Marker("sign", shape, (0.1, 0.1, 0.1), (0.0, 0.0, 0.12), "black", fade=fade)
    scene = Scene((), markers=(marker,), camera=Camera((0, 0, 0.05), pitch=-30))
    shown, lone = get_raycast().render(scene, SIZE), get_raycast().render(replace(scene, markers=()), SIZE)
    # Antialiased edges reach one pixel beyond the centres that are covered.
    covered = shown.segmentation == 0
    wide = covered.copy()
    for shift in ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)):
        wide |= np.roll(covered, shift, axis=(0, 1))
    np.testing.assert_array_equal(shown.rgb[~wide], lone.rgb[~wide])


@pytest.mark.parametrize("palette", sorted(PALETTES))
def test_colours_keep_their_names(palette):
    """Every thing is drawn in a colour whose hue is nearest to that of its own name, on every face that can be seen."""

    def hue(colour: np.ndarray) -> float:
        return 360 * colorsys.rgb_to_hsv(*colour.tolist())[0]

    names = list(COLOURS)
    for shape in ("box", "cylinder", "sphere", "wedge"):
        bodies = tuple(
            Body(name, shape, (0.08, 0.08, 0.08), (0.11 * i - 0.28, 0.0, 0.04), name) for i, name in enumerate(names)
        )
        scene = Scene(bodies, camera=Camera((0, 0, 0.04), yaw=15, pitch=-20), palette=palette)
        frame = get_raycast().render(scene, SIZE)
        known = np.array([hue(np.array(PALETTES[palette][name])) for name in names])
        for index, name in enumerate(names):
            seen = np.array([hue(colour / 255) for colour in frame.rgb[frame.segmentation == index][::7].astype(float)])
            away = np.abs((seen[:, None] - known[None] + 180) % 360 - 180)
            share = (away.argmin(axis=1) == index).mean()
            assert share > 0.9, f"{shape} {name}: {share:.2f}"


@pytest.mark.parametrize("task", sorted(FAMILIES.values()))
@pytest.mark.parametrize("shifts", ["", "visual:1", "visual:2", "visual:3"])
def test_every_family_is_drawn_under_every_visual_shift(task, shifts):
    for seed in range(3):
        scene = family(task, seed, shifts)
        frame = draw(get_raycast(), replace(scene, panels=()), SIZE)
        assert set(range(len(things(scene)))) <= set(np.unique(frame.segmentation))
        image, flipped = (
            frame.rgb[:, ::-1].astype(int),
            draw(get_raycast(), mirror(replace(scene, panels=())), SIZE).rgb,
        )
        # Up to the pattern of the shadows' samples.
        assert (np.abs(image - flipped).max(axis=2) > 40).mean() < 0.02


@pytest.mark.parametrize("task", sorted(FAMILIES.values()))
def test_the_raised_view_keeps_left_right_and_level(task):
    for seed in range(12):
        group = get_task(task).sample_matched(
            np.random.default_rng(seed), get_task(task).conditions()[seed % len(get_task(task).conditions())]
        )
        seen = raised(group)
        assert len({scene.camera for scene in seen}) == 1
        for before, after in zip(group, seen, strict=True):
            assert replace(after, camera=before.camera) == before
            assert sides_kept(after.camera, before)
            assert raised([mirror(before)])[0] == mirror(raised([before])[0]) or before.camera.yaw == 0
            shown = np.concatenate([corners(thing) for thing in things(after)])
            assert np.abs(project(after.camera, shown)[:, :2]).max() <= 0.951
            if task.startswith("collision"):
                assert after.camera == before.camera
                continue
            assert after.camera.pitch < before.camera.pitch - 3
            middle = project(after.camera, np.array(after.camera.target) + np.array([[-0.01, 0, 0], [0.01, 0, 0]]))
            slope = np.degrees(np.arctan2(*(middle[1, :2] - middle[0, :2])[::-1]))
            planks = any(body.name == "plank" for body in after.bodies)
            assert abs(slope) < (2.0 if planks else 7.0)
            if not planks:
                assert abs(after.camera.yaw) > 12


def test_poses_move_bodies_and_nothing_else():
    scene = every_shape()
    start = Poses(np.array([b.position for b in scene.bodies]), np.array([b.orientation for b in scene.bodies]))
    np.testing.assert_array_equal(get_raycast().render(scene, 96, start).rgb, get_raycast().render(scene, 96).rgb)
    moved = Poses(start.positions + np.array([0.0, 0.0, 0.1]), start.orientations)
    lifted = replace(
        scene,
        bodies=tuple(replace(b, position=(b.position[0], b.position[1], b.position[2] + 0.1)) for b in scene.bodies),
    )
    frame, other = get_raycast().render(scene, 96, moved), get_raycast().render(lifted, 96)
    assert (frame.segmentation == other.segmentation).mean() > 0.999


def test_odd_scenes_are_drawn():
    far, near = (Body("b", "box", (0.1, 0.1, 0.1), (0.0, y, 0.05), "red") for y in (50.0, -5.0))
    assert set(np.unique(get_raycast().render(Scene((near,)), 32).segmentation)) == {BACKGROUND, FLOOR}
    for scene in (
        Scene(()),
        Scene((far,)),
        Scene((far,), light=Light((0.0, 0.0, 0.0))),
        Scene((far,), light=Light((1.0, 0.0, -0.5))),
        Scene((far,), camera=Camera((0.0, 50.0, 0.05), distance=0.01)),
        Scene((far,), camera=Camera(pitch=-90.0)),
    ):
        assert get_raycast().render(scene, 16).rgb.shape == (16, 16, 3)
    lost = Poses(np.full((1, 3), np.nan), np.array([[0.0, 0.0, 0.0, 1.0]]))
    assert get_raycast().render(Scene((far,)), 16, lost).rgb.shape == (16, 16, 3)


def test_shadow_boxes_hold_all_shadows():
    """What is skipped because no shadow can fall there is as if it were not skipped."""
    scene = family("support-hold", 3)
    rays = compiled()
    a = prepare(rays, scene, SIZE)
    depth, surface = rays.look(SIZE, a.camera, a.shape, a.lens, a.boxes)
    everywhere = a.boxes.copy()
    everywhere[:, 1:] = (0, 0, SIZE, SIZE)
    geometry = (a.camera, a.settings, a.shape, a.planes, a.solid)
    for one, other in zip(
        rays.light(depth, surface, *geometry, a.boxes, a.way, a.inverse),
        rays.light(depth, surface, *geometry, everywhere, a.way, a.inverse),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_compiled_code_is_kept_in_the_cache_folder(tmp_path):
    code = (
        "from vlm_probe.stimuli.raycast import compiled; rays = compiled(); import numba;"
        " print(sum(rays.look.stats.cache_hits.values()), repr(numba.config.CACHE_DIR))"
    )
    env = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"} | {"PROBE_CACHE": str(tmp_path / "cache")}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)

    first, second = run(), run()
    assert "about 20 seconds" in first.stderr
    assert (first.stdout.split()[0], second.stdout.split()[0]) == ("0", "1")
    assert first.stdout.split()[1] == "''", "numba's own setting is as it was"
    assert list((tmp_path / "cache" / "compiled").rglob("*.nbi"))
    (tmp_path / "file").write_text("")
    env["PROBE_CACHE"] = str(tmp_path / "file" / "cache")
    assert "set PROBE_CACHE" in run().stderr


@pytest.mark.slow
@pytest.mark.parametrize("scene", ["shapes", *sorted(FAMILIES.values())])
def test_photoreal_images_show_the_same(scene):
    """Mitsuba's edges are where ours are, so that our segmentation and depth are those of its images."""
    pytest.importorskip("mitsuba")
    scene = golden_scenes()[scene]
    ours, theirs = (painter(name).render(scene, 96) for name in ("raycast", "photoreal"))
    np.testing.assert_array_equal(ours.segmentation, theirs.segmentation)
    for index in range(len(things(scene))):
        inside = ours.segmentation == index
        for shift in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            inside &= np.roll(ours.segmentation, shift, axis=(0, 1)) == index
        if inside.sum() > 20:
            # Of one material, and so of one hue.
            colour = theirs.rgb[inside] / theirs.rgb[inside].sum(axis=1, keepdims=True)
            assert np.abs(colour - np.median(colour, axis=0)).max(axis=1).mean() < 0.06, things(scene)[index].name


def test_the_renderer_is_one_of_several():
    assert painter("raycast") is painter("raycast")
    scene = every_shape()
    again = pickle.loads(pickle.dumps(painter("raycast"))).render(scene, 32)
    np.testing.assert_array_equal(again.rgb, painter("raycast").render(scene, 32).rgb)
    assert painter("raycast").renderer != painter("engine").renderer
    with pytest.raises(ValueError, match="there is no renderer 'gl': leave it out, or use one of engine, raycast"):
        painter("gl")
