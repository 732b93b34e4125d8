"""Shifts: visual ones leave the physics alone, physical ones are judged anew, and everything stays in the picture."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_probe.stimuli import design
from vlm_probe.stimuli.dataset import StimulusError
from vlm_probe.stimuli.generate import make_set, signs_seen
from vlm_probe.stimuli.palettes import PALETTES, lab
from vlm_probe.stimuli.picture import draw, painter
from vlm_probe.stimuli.question import Variant
from vlm_probe.stimuli.scene import COLOURS, Camera, Scene, mirror
from vlm_probe.stimuli.shapes import corners
from vlm_probe.stimuli.shifts import (
    DISTRACTORS,
    LEVELS,
    ORDER,
    PHYSICAL,
    SIZES,
    VISUAL,
    apply,
    apply_alike,
    check,
    parse_shifts,
    shifted_condition,
    spell,
)
from vlm_probe.stimuli.simulators import BACKGROUND, FLOOR, get_simulator
from vlm_probe.stimuli.standard import resolve
from vlm_probe.stimuli.tasks import FAMILIES, SamplingFailed, get_task
from vlm_probe.stimuli.viewing import MIN_SEPARATION, project, unproject

ALL = [((name, level),) for name in ORDER if name != "count" for level in LEVELS]
TOWERS = ("towers-stability", "towers-topblock", "towers-sideblock")


def scenes(name: str, seed: int = 0) -> tuple[Scene, ...]:
    task = get_task(name)
    conditions = task.conditions()
    return task.sample_matched(np.random.default_rng(seed), conditions[seed % len(conditions)])


def visible(scene: Scene, size: int = 96) -> bool:
    mask = draw(get_simulator(), replace(scene, panels=()), size).segmentation
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    everything = set(range(len(scene.bodies) + len(scene.markers)))
    return set(border.tolist()) <= {FLOOR, BACKGROUND} and everything <= set(mask.ravel().tolist())


def test_shifts_are_named_with_levels_and_put_in_order():
    assert parse_shifts("camera:2") == (("camera", 2),)
    assert parse_shifts("camera:2, size:1") == (("size", 1), ("camera", 2))
    assert parse_shifts("visual:2") == tuple((name, 2) for name in VISUAL)
    assert {name for name, _ in parse_shifts("visual:2,physical:1")} == set(ORDER)
    assert parse_shifts("") == parse_shifts(" , ") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("camra:2", "did you mean camera"),
        ("fog:1", "distractors"),
        ("camera", "write camera:2"),
        ("camera:4", "levels 1, 2 and 3"),
        ("camera:1,visual:2", "named twice"),
    ],
)
def test_slips_in_shifts_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse_shifts(text)


@given(st.dictionaries(st.sampled_from(ORDER), st.sampled_from(LEVELS)))
def test_shifts_survive_being_spelled(levels):
    shifts = tuple((name, levels[name]) for name in ORDER if name in levels)
    assert parse_shifts(spell(shifts)) == shifts


@pytest.mark.parametrize("task_name", sorted(FAMILIES.values()))
@pytest.mark.parametrize("name", VISUAL)
def test_visual_shifts_change_no_physics_and_keep_everything_in_view(task_name, name):
    task = get_task(task_name)
    for level in LEVELS:
        plain = scenes(task_name, level)
        shifted = apply_alike(plain, ((name, level),), np.random.default_rng(level))
        for before, after in zip(plain, shifted, strict=True):
            assert after != before
            assert [replace(b, texture="") for b in after.bodies] == list(before.bodies)
            assert (after.pushes, after.gravity, after.floor_friction) == (
                before.pushes,
                before.gravity,
                before.floor_friction,
            )
            assert task.margin(after) == task.margin(before)
            # Arrows turn white on dark floors.
            signs = [
                replace(a, colour=b.colour) if b.shape == "arrow" else a
                for a, b in zip(after.markers, before.markers, strict=False)
            ]
            assert tuple(signs) == before.markers
            assert Scene.from_dict(json.loads(after.to_json())) == after
        assert len({scene.camera for scene in shifted}) == 1
        # What another camera hides is drawn anew by the generator; for the other shifts nothing may be hidden.
        if name != "camera" and all(map(visible, plain)):
            assert all(map(visible, shifted))


@pytest.mark.parametrize("level", LEVELS)
def test_outcomes_are_the_same_under_all_visual_shifts_together(level):
    task, shifts = get_task("towers-stability"), parse_shifts(f"visual:{level}")
    for seed in range(3):
        for before in scenes("towers-stability", seed):
            after = apply(before, shifts, np.random.default_rng(seed))
            question = task.question(before, Variant())
            assert task.solve(after, question) == task.solve(before, question)
            assert visible(after)


def test_a_shift_is_deterministic_and_the_same_alone_as_among_others():
    (scene, _) = scenes("towers-stability", 4)
    shifts = parse_shifts("visual:3,physical:2")
    once, again = (apply(scene, shifts, np.random.default_rng(7)) for _ in range(2))
    assert once == again != apply(scene, shifts, np.random.default_rng(8))
    alone = apply(scene, (("light", 3),), np.random.default_rng(7))
    assert alone.light == once.light != scene.light


@pytest.mark.parametrize("task_name", sorted(FAMILIES.values()))
def test_mirror_images_of_shifted_scenes_are_mirrored_pictures(task_name):
    shifted = apply(scenes(task_name, 1)[0], parse_shifts("visual:3"), np.random.default_rng(1))
    assert mirror(mirror(shifted)) == shifted
    simulator = get_simulator()
    picture, image = (draw(simulator, s, 96).rgb.astype(int) for s in (shifted, mirror(shifted)))
    flipped = picture[:, ::-1]
    if shifted.panels:
        return  # the panels keep their order, so that the whole is no mirror image
    # Up to a pixel at edges: TinyRenderer samples pixels at their corner.
    differs = np.abs(flipped - image).max(axis=2) > 60
    assert differs.mean() < 0.06


@settings(max_examples=30, deadline=None)
@given(
    st.floats(-40, 40), st.floats(-80, 0), st.floats(0.5, 3), st.integers(0, 95), st.integers(0, 95), st.floats(0.2, 4)
)
def test_pixels_and_points_are_each_others_inverse(yaw, pitch, distance, row, column, depth):
    camera = Camera(yaw=yaw, pitch=pitch, distance=distance)
    point = unproject(camera, np.array([row]), np.array([column]), np.array([depth]), 96)
    across, above, away = project(camera, point)[0]
    assert away == pytest.approx(depth)
    assert (across + 1) * 48 == pytest.approx(column + 0.5)
    assert (1 - above) * 48 == pytest.approx(row + 0.5)


def test_the_cameras_geometry_is_the_renderers():
    scene = apply(scenes("towers-stability", 2)[0], (("camera", 3),), np.random.default_rng(3))
    frame = get_simulator().render(scene, 224)
    for index, body in enumerate(scene.bodies):
        rows, columns = np.nonzero(frame.segmentation == index)
        points = unproject(scene.camera, rows, columns, frame.depth[rows, columns].astype(float), 224)
        # Every point lies on the surface of the block, up to half a pixel.
        beyond = np.abs(points - np.array(body.position)).max(axis=1) - body.size[0] / 2
        assert np.abs(beyond).max() < 0.003


@pytest.mark.parametrize("level", LEVELS)
def test_cameras_are_graded_and_left_and_right_stay(level):
    for seed in range(6):
        before = scenes("towers-direction", seed)[0]
        after = apply(before, (("camera", level),), np.random.default_rng(seed))
        turn = abs(after.camera.yaw - before.camera.yaw)
        assert (7, 15, 24)[level - 1] < turn < (13, 21, 31)[level - 1]
        places = np.array([b.position for b in after.bodies])
        shown = project(after.camera, places)[:, 0]
        for i, j in np.argwhere(places[:, None, 0] - places[None, :, 0] >= MIN_SEPARATION):
            assert shown[i] > shown[j]


@pytest.mark.parametrize("level", LEVELS)
def test_distractors_hide_nothing_and_stand_behind_everything(level):
    simulator = get_simulator()
    for seed in range(4):
        before = scenes("towers-stability", seed)[0]
        after = apply(before, (("distractors", level),), np.random.default_rng(seed))
        new = after.markers[len(before.markers) :]
        assert len(new) == DISTRACTORS[level]
        assert {m.shape for m in new}.isdisjoint({b.shape for b in before.bodies})
        assert {m.colour for m in new} <= {"white", "grey", "black", "brown"}
        assert min(corners(m)[:, 1].min() for m in new) > max(corners(b)[:, 1].max() for b in before.bodies)
        assert all(abs(corners(m)[:, 2].min()) < 1e-3 for m in new)
        if after.camera == before.camera:
            plain, crowded = (simulator.render(s, 96).segmentation for s in (before, after))
            bodies = range(len(before.bodies))
            assert np.array_equal(np.isin(plain, bodies), np.isin(crowded, bodies))


@pytest.mark.parametrize("renderer", ["engine", "raycast"])
@pytest.mark.parametrize(("task_name", "shown"), [("support-hold", ""), ("collision-outcome", "ghost")])
def test_arrows_and_ghosts_stand_out_under_dark_backgrounds(task_name, shown, renderer):
    task, drawn = get_task(task_name), painter(renderer)
    condition = next(c for c in task.conditions() if c.shown == shown)
    plain = task.sample_matched(np.random.default_rng(1), condition)
    for shifts in ("background:3", "visual:3"):
        scene = apply_alike(plain, parse_shifts(shifts), np.random.default_rng(2))[0]
        assert signs_seen(scene, draw(drawn, scene, 224))
        black = [replace(m, colour="black") if m.shape == "arrow" else m for m in scene.markers]
        if task_name == "support-hold":  # as it would be without the shift's white arrows
            hidden = replace(scene, markers=tuple(black), background=replace(scene.background, floor=(0.1, 0.1, 0.1)))
            hidden = replace(hidden, background=replace(hidden.background, sky=(0.1, 0.1, 0.1), sky_texture=""))
            assert not signs_seen(hidden, draw(drawn, hidden, 224))


@pytest.mark.parametrize("palette", [name for name in PALETTES if name != "standard"])
def test_every_palette_keeps_the_names_of_its_colours(palette):
    def hue(colour):
        _, a, b = lab(colour)
        return np.degrees(np.arctan2(b, a))

    assert set(PALETTES[palette]) == set(PALETTES["standard"])
    found = PALETTES[palette]
    for name in COLOURS:
        distance = {o: abs((hue(found[name]) - hue(COLOURS[o]) + 180) % 360 - 180) for o in COLOURS}
        assert min(distance, key=lambda o: distance[o]) == name
    spread = [np.linalg.norm(lab(found[a]) - lab(found[b])) for a in found for b in found if a < b]
    assert min(spread) > 20


@pytest.mark.parametrize("name", [n for n in PHYSICAL if n != "count"])
@pytest.mark.parametrize("task_name", TOWERS)
def test_physically_shifted_towers_are_judged_right(name, task_name):
    task, asked = get_task(task_name), 0
    for level in LEVELS:
        for seed in range(2):
            plain = scenes(task_name, 5 * seed + level)
            shifted = apply_alike(plain, ((name, level),), np.random.default_rng(seed))
            for before, after in zip(plain, shifted, strict=True):
                assert after.bodies != before.bodies or name == "gravity"
                assert task.margin(after) == pytest.approx(task.margin(before), abs=2e-4)
                question = task.question(after, Variant())
                if task.kind == "judgement":
                    assert task.solve(after, question) == task.statics_answer(after)
                    continue
                working = task.certify(after, question)["working"]
                answer = task.solve(after, question)
                # What does not work any more is drawn anew when a set is made, and must be rare.
                asked += answer in [tuple(w) if isinstance(w, list) else w for w in working]
                assert task.score(after, question, task.mirrored(answer)).reward <= 0.5
    assert task.kind == "judgement" or asked >= 4


def test_prompts_of_scaled_towers_state_the_true_size():
    for factor in SIZES[3]:
        for name in ("towers-topblock", "towers-sideblock"):
            task, plain = get_task(name), scenes(name)[0]
            seeds = (s for s in range(20))
            scaled = next(
                s
                for s in (apply(plain, (("size", 3),), np.random.default_rng(seed)) for seed in seeds)
                if s.bodies[0].size[0] == pytest.approx(0.1 * factor)
            )
            prompt = task.question(scaled, Variant()).prompt
            assert f"Each block is {10 * factor:g} cm wide" in prompt
            assert "Each block is 10 cm wide" in task.question(plain, Variant()).prompt
            reach = task.question(scaled, Variant()).grammar.ranges[0][1]
            assert reach == round(factor * task.question(plain, Variant()).grammar.ranges[0][1])


@pytest.mark.parametrize("name", ["towers-stability", "towers-direction", "towers-topblock", "towers-sideblock"])
def test_larger_towers_are_sampled_seen_and_judged_right(name):
    task = get_task(name)
    for level in LEVELS:
        condition = shifted_condition(task, task.conditions()[level], (("count", level),))
        most = max(c.count for c in task.conditions())
        assert condition.count == most + level
        found = task.sample_matched(np.random.default_rng(level), condition)
        for scene in apply_alike(found, condition.shifts, np.random.default_rng(0)):
            assert len([b for b in scene.bodies if b.name != "side"]) == most + level
            assert visible(scene)
            question = task.question(scene, Variant())
            answer = task.solve(scene, question)
            assert task.statics_answer(scene) in (None, answer)
            if task.kind == "action":
                assert answer in [value for _, value in question.grammar.candidates()]


def test_what_a_task_cannot_do_is_refused_before_work_starts(tmp_path):
    with pytest.raises(SamplingFailed, match=r"towers-grounding cannot be made with count:3.*leave count out"):
        check(get_task("towers-grounding"), parse_shifts("count:3,camera:1"))
    with pytest.raises(SamplingFailed, match="colours"):
        make_set("towers-grounding", 8, 0, tmp_path / "set", shifts=parse_shifts("count:3"))
    assert list(tmp_path.iterdir()) == []


def test_a_visually_shifted_set_has_the_scenes_of_the_plain_one(tmp_path):
    plain = make_set("towers-stability", 24, 0, tmp_path / "plain", size=64)
    shifted = make_set("towers-stability", 24, 0, tmp_path / "s", size=64, shifts=parse_shifts("visual:2"))
    again = make_set("towers-stability", 24, 0, tmp_path / "t", size=64, shifts=parse_shifts("visual:2"), jobs=2)
    assert again.content_sha256 == shifted.content_sha256 != plain.content_sha256
    assert shifted.card["shifts"] == dict.fromkeys(VISUAL, 2)
    assert shifted.card["labels"] == plain.card["labels"]
    same = 0
    for a, b in zip(plain.items, shifted.items, strict=True):
        assert a.item_id != b.item_id and a.group_id == b.group_id
        assert b.condition.shifts == parse_shifts("visual:2")
        assert (a.question.prompt, a.condition) == (b.question.prompt, replace(b.condition, shifts=()))
        same += a.margin == b.margin and a.answer == b.answer
    assert same >= 20  # groups whose picture hides something are drawn anew
    scenes = {(i.group_id, i.role, i.condition.mirrored): i.scene for i in shifted.items}
    for (group, role, mirrored), scene in scenes.items():
        assert mirror(scene) == scenes[group, role, not mirrored]


def test_a_physically_shifted_set_keeps_its_margin_bins(tmp_path):
    made = make_set("towers-stability", 12, 0, tmp_path / "s", size=64, shifts=parse_shifts("physical:1"))
    for item in made.items:
        low, high = item.condition.margin_bin
        assert low <= item.margin <= high
        assert item.condition.count == len(item.scene.bodies) == 5


def test_larger_towers_make_sets_whose_answers_work(tmp_path):
    made = make_set("towers-sideblock", 4, 0, tmp_path / "s", size=64, shifts=parse_shifts("count:2"))
    for item in made.items:
        assert item.scene is not None
        assert len(item.scene.bodies) == 7
        assert list(item.answer) in item.certificate["working"]
        assert "up from 0 to 70" in item.question.prompt


def test_members_of_a_group_share_their_shift():
    task, shifts = get_task("towers-stability"), parse_shifts("visual:3,size:2")
    group = next(design.plan(task, 1, 0, shifts=shifts))
    found = design.members(task, group, design.group_rng(task, 0, 0), design.shift_rng(task, 0, 0))
    base, foil, base_mirrored, _ = (m.scene for m in found)
    assert base.camera == foil.camera
    assert base.markers == foil.markers
    assert mirror(base) == base_mirrored
    assert sum(a != b for a, b in zip(base.bodies, foil.bodies, strict=True)) == 1


def test_names_of_sets_carry_shifts(tmp_path, monkeypatch):
    monkeypatch.setenv("PROBE_CACHE", str(tmp_path))
    monkeypatch.setattr("vlm_probe.stimuli.standard.STANDARD_N", 8)
    monkeypatch.setattr("vlm_probe.stimuli.standard.STANDARD_SIZE", 64)
    shifted = resolve("towers@camera:2")
    assert shifted.card["shifts"] == {"camera": 2}
    assert resolve("towers-stability@camera:2").path == shifted.path != resolve("towers").path
    with pytest.raises(StimulusError, match="drawn already"):
        resolve(f"{shifted.path}@camera:2")
    with pytest.raises(ValueError, match="did you mean camera"):
        resolve("towers@camra:2")


def test_a_missing_renderer_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mitsuba", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'vlm-probe\[photoreal\]'"):
        make_set("towers-stability", 4, 0, tmp_path / "set", size=64, renderer="photoreal")
    with pytest.raises(ValueError, match="use one of engine, raycast, photoreal"):
        make_set("towers-stability", 4, 0, tmp_path / "set", size=64, renderer="unreal")
    assert list(tmp_path.iterdir()) == []
