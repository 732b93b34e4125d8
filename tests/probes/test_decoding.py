"""Decoding: hidden states are those of the model, folds do not leak, scores are what they say, and moving states works."""

from __future__ import annotations

import errno
import fcntl
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import balanced_accuracy_score, r2_score
from sklearn.preprocessing import StandardScaler

from vlm_probe.probes.decoding import DecodingError
from vlm_probe.probes.decoding.config import DecodeConfig
from vlm_probe.probes.decoding.crossval import (
    ALPHAS,
    _scaled,
    arbitrary_columns,
    logistic,
    logistic_model,
    make_folds,
    permuted,
    permuted_columns,
    r2_sums,
    ridge,
)
from vlm_probe.probes.decoding.intervention import direction, outcomes
from vlm_probe.probes.decoding.readings import make_problem, read
from vlm_probe.probes.decoding.store import DONE, collect
from vlm_probe.probes.decoding.study import decode
from vlm_probe.probes.decoding.targets import TARGETS, available, find_target, scene_types
from vlm_probe.probes.models import ModelError, Trial
from vlm_probe.probes.models.activations import HiddenStates, Mover, Site, choose_sites, depths, untrained
from vlm_probe.probes.models.loading import load_model
from vlm_probe.probes.trials import RunError
from vlm_probe.stimuli.audit import pixel_features
from vlm_probe.stimuli.dataset import StimulusSet
from vlm_probe.stimuli.generate import make_set
from vlm_probe.stimuli.output import OutputFolder, claim
from vlm_probe.stimuli.ranges import OutOfRange
from vlm_probe.stimuli.scene import Body, Push, Scene


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> StimulusSet:
    """80 items of towers-stability in 20 groups."""
    return make_set("towers-stability", 80, 3, tmp_path_factory.mktemp("sets") / "many", size=64)


@pytest.fixture(scope="module")
def model(llava: Path) -> Any:
    return load_model(str(llava))


def trials(stimuli: StimulusSet, n: int) -> list[Trial]:
    return [Trial(item, stimuli.image(item)) for item in stimuli.items[:n]]


# Hidden states


def test_hidden_states_are_those_that_transformers_gives(model: Any, grounding: StimulusSet) -> None:
    sites = choose_sites(model, "all", ("last", "image", "question"))
    asked = trials(grounding, 4)
    assert len({len(trial.prompt) for trial in asked}) > 1  # so that there is padding
    found = HiddenStates(model, sites).read(asked)
    for row, trial in enumerate(asked):
        inputs = model._inputs([trial])
        with torch.inference_mode():
            out = model._model(**inputs, output_hidden_states=True)
        pictures = inputs["input_ids"][0] == model._model.config.image_token_index
        device = pictures.device
        after = torch.arange(len(pictures), device=device) > torch.nonzero(pictures).max()
        for layer in (0, 1):  # the last of transformers' is after the final norm
            states = out.hidden_states[layer][0]
            expected = {"last": states[-1], "image": states[pictures].mean(0), "question": states[after].mean(0)}
            for position, value in expected.items():
                assert np.abs(found[Site("language", layer, position)][row] - value.cpu().numpy()).max() < 1e-4
        last = torch.tensor(found[Site("language", 2, "last")][row], device=device)
        normed = model._model.model.language_model.norm(last)
        assert np.abs((normed - out.hidden_states[2][0, -1]).detach().cpu().numpy()).max() < 1e-4
        seen = model._model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
        for layer in (0, 1, 2):
            expected_vision = seen[layer][0].mean(0).detach().cpu().numpy()
            assert np.abs(found[Site("vision", layer, "image")][row] - expected_vision).max() < 1e-4


@pytest.mark.parametrize("name", ["qwen2.5-vl", "qwen3-vl", "smolvlm", "llava-next", "internvl", "gemma3", "paligemma"])
def test_every_architecture_is_read_alike_in_any_batch_and_can_be_moved(
    name: str, save_family: Callable[[str], Path], grounding: StimulusSet
) -> None:
    model: Any = load_model(str(save_family(name)))
    assert depths(model) == {"vision": 2, "language": 2}
    sites = choose_sites(model, "all", ("last", "image", "question"))
    asked = trials(grounding, 5)
    together = HiddenStates(model, sites).read(asked)
    for row, trial in enumerate(asked):
        alone = HiddenStates(model, sites).read([trial])
        for site in sites:
            assert np.abs(together[site][row] - alone[site][0]).max() < 1e-4, site.name
    # Different pictures give different states, at every layer that has seen them.
    for site in sites:
        if site != Site("language", 0, "last") and site != Site("language", 0, "question"):
            assert np.abs(together[site] - together[site][:1])[1:].max(axis=1).min() > 0, site.name
    plain = model.score_options(asked)
    site = Site("language", 1, "last")
    width = together[site].shape[1]
    moved = Mover(model, asked, site).score(np.zeros((5, width)))
    assert max(np.abs(a - b).max() for a, b in zip(plain, moved, strict=True)) < 1e-4
    moved = Mover(model, asked, site).score(10 * np.random.default_rng(0).normal(size=(5, width)))
    assert min(np.abs(a - b).max() for a, b in zip(plain, moved, strict=True)) > 1e-3


def test_states_of_an_adapted_model_differ_and_can_be_moved(
    llava: Path, model: Any, stability: StimulusSet, save_adapter: Any, tmp_path: Path
) -> None:
    adapter = save_adapter(llava, tmp_path / "adapter")
    adapted: Any = load_model(str(llava), adapter=adapter)
    asked = trials(stability, 3)
    for layer, same in ((0, True), (1, False), (2, False)):
        site = Site("language", layer, "last")
        a, b = HiddenStates(model, [site]).read(asked)[site], HiddenStates(adapted, [site]).read(asked)[site]
        assert np.allclose(a, b) == same
    site = Site("language", 1, "last")
    mover = Mover(adapted, asked, site)
    assert np.allclose(np.stack(mover.score(np.zeros((3, 48)))), np.stack(adapted.score_options(asked)), atol=1e-4)
    assert not np.allclose(np.stack(mover.score(np.ones((3, 48)))), np.stack(adapted.score_options(asked)), atol=1e-2)


@pytest.mark.parametrize("position", ["last", "image", "question"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_move_adds_exactly_that_at_the_position(
    model: Any, grounding: StimulusSet, position: str, layer: int
) -> None:
    """To move a trial's states onto those of another trial of the same prompt gives the other trial's answers."""
    site = Site("language", layer, position)
    asked = trials(grounding, 3)
    shift = np.random.default_rng(1).normal(size=(3, 48))
    reader = HiddenStates(model, [site])
    before = reader.read(asked)[site]
    mover = Mover(model, asked, site)
    seen: list[np.ndarray] = []
    original = model._scorer.score

    def spy(inputs: Any, candidates: Any) -> Any:
        model._ready.clear()
        model._ready[tuple(trial.id for trial in asked)] = mover._inputs
        seen.append(reader.read(asked)[site])
        return original(inputs, candidates)

    model._scorer.score = spy
    try:
        mover.score(shift)
    finally:
        del model._scorer.score
    # A reader's hook at layer k comes after the mover's, so that it sees the moved states (at layer 0, before the block).
    assert np.abs(seen[0] - before - shift).max() < 1e-4


def test_moving_the_last_state_onto_another_trials_gives_its_answers(model: Any, stability: StimulusSet) -> None:
    """After the last block, the last token's state is all that the first token of a reply depends on."""
    item = stability.items[0]
    one, other = Trial(item, stability.image(item)), Trial(item, stability.image(stability.items[5]))
    site = Site("language", 2, "last")
    a, b = (HiddenStates(model, [site]).read([trial])[site] for trial in (one, other))
    inputs = [model._inputs([trial]) for trial in (one, other)]
    with torch.inference_mode():
        logits = [model._model(**given).logits[0, -1] for given in inputs]
    assert (logits[0] - logits[1]).abs().max() > 1e-3
    caught: list[torch.Tensor] = []
    handle = model._model.lm_head.register_forward_hook(lambda _, __, out: caught.extend(out[0].clone()))
    try:
        Mover(model, [one], site).score(b - a)
    finally:
        handle.remove()
    assert min(float((row - logits[1]).abs().max()) for row in caught) < 1e-3


def test_layers_and_positions_by_name(model: Any) -> None:
    def names(layers: str, *positions: str) -> list[str]:
        return [site.name for site in choose_sites(model, layers, positions or ("last",))]

    assert names("vision,-1") == ["vision-0-image", "vision-1-image", "vision-2-image", "language-2-last"]
    assert names("0-1", "last", "image") == [
        "language-0-last",
        "language-1-last",
        "language-0-image",
        "language-1-image",
    ]
    assert len(names("all", "last", "image")) == 3 + 2 * 3
    for wrong in ("3", "1-0", "two", "-4", ""):
        with pytest.raises(ModelError, match="layers"):
            names(wrong)
    with pytest.raises(ModelError, match="choose from last, image, question"):
        names("all", "first")
    with pytest.raises(ModelError, match="no hidden states"):
        depths(load_model("chance"))


def test_an_untrained_model_has_other_weights_and_the_same_form(model: Any, stability: StimulusSet) -> None:
    one, same, other = (untrained(model, seed) for seed in (0, 0, 1))
    site, asked = Site("language", 2, "last"), trials(stability, 2)
    states = [HiddenStates(m, [site]).read(asked)[site] for m in (one, same, other, model)]
    assert np.array_equal(states[0], states[1])
    assert not np.allclose(states[0], states[2]) and not np.allclose(states[0], states[3])
    assert len({m.identity.weights_sha256 for m in (one, other, model)}) == 3


# The store


@pytest.fixture
def out(tmp_path: Path) -> Iterator[OutputFolder]:
    """A folder for results."""
    with claim(tmp_path / "out", "decoding") as folder:
        yield folder


def test_a_file_system_without_locks_is_no_reason_not_to_read(
    model: Any, stability: StimulusSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    site = Site("language", 1, "last")
    with claim(tmp_path, "decoding") as out:
        assert collect(model, stability, stability.items[:2], [site], out).load(site).shape[0] == 2


def test_activations_are_kept_found_again_and_gone_on_with(
    model: Any, stability: StimulusSet, out: OutputFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = choose_sites(model, "all", ("last",))
    items = stability.items
    asked: list[int] = []
    original = HiddenStates.read

    def counting(self: HiddenStates, batch: Any) -> Any:
        if len(asked) == 2:
            asked.append(0)
            raise KeyboardInterrupt
        asked.append(len(batch))
        return original(self, batch)

    monkeypatch.setattr(HiddenStates, "read", counting)
    monkeypatch.setattr("vlm_probe.probes.decoding.store.SYNC_INTERVAL", 0.0)
    with pytest.raises(KeyboardInterrupt):
        collect(model, stability, items, sites, out, batch_size=4)
    assert asked == [4, 4, 0]
    stored = collect(model, stability, items, sites, out, batch_size=5)
    assert asked[3:] == [5, 5, 5, 1]  # the eight that were written are not asked again
    whole = HiddenStates(model, sites).read(trials(stability, len(items)))
    for site in sites:
        assert stored.load(site).shape == whole[site].shape and stored.load(site).dtype == np.float64
        assert np.abs(stored.load(site) - whole[site]).max() < 1e-4
    del asked[:]
    asked += [0, 0, 0]
    again = collect(model, stability, items, sites[:2], out)  # fewer sites of the same
    assert again.folder == stored.folder and asked == [0, 0, 0]
    others = collect(model, stability, items[:8], sites, out)
    assert others.folder != stored.folder and sum(asked) == 8
    # A torn file is not taken for activations.
    (stored.folder / DONE).write_bytes(b"")
    repaired = collect(model, stability, items, sites, out)
    assert np.abs(repaired.load(sites[0]) - whole[sites[0]]).max() < 1e-4


def test_memory_does_not_grow_with_items_times_layers(
    model: Any, stability: StimulusSet, out: OutputFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one batch gives is on its way to the disk before the next is read: never all layers of all items at once."""
    import weakref

    sites = choose_sites(model, "all", ("last", "image"))
    given: list[weakref.ref[np.ndarray]] = []
    alive: list[int] = []
    original = HiddenStates.read

    def watching(self: HiddenStates, batch: Any) -> Any:
        alive.append(sum(array() is not None for array in given))
        found = original(self, batch)
        given.extend(weakref.ref(array) for array in found.values())
        return found

    monkeypatch.setattr(HiddenStates, "read", watching)
    monkeypatch.setattr("vlm_probe.probes.decoding.store.SYNC_INTERVAL", 1e9)
    stored = collect(model, stability, stability.items, sites, out, batch_size=2)
    assert len(alive) == 12 and len(given) == 12 * len(sites) and max(alive) <= len(sites)
    # And of what is on the disk, one site at a time is read: nothing else of it stays open.
    assert isinstance(stored.load(sites[0]), np.ndarray) and not isinstance(stored.load(sites[0]), np.memmap)


# Targets


def test_targets_of_a_tower() -> None:
    blocks = tuple(
        Body(f"block{i}", "box", (0.1, 0.1, 0.1), (x, 0.0, 0.05 + 0.1 * i), "red", mass)
        for i, (x, mass) in enumerate([(0.2, 1.0), (0.24, 1.0), (0.17, 2.0)])
    )
    side = Body("side", "box", (0.1, 0.1, 0.1), (-0.5, 0.0, 0.05), "blue")
    scene = Scene((*blocks, side), pushes=(Push("block1", (3.0, 0.0, -4.0), (0.0, 0.0, 0.1)),))

    class Shown:
        pass

    item: Any = Shown()
    item.scene = scene
    values = {name: TARGETS[name].of(item) for name in ("com-offset", "top-offset", "height", "force")}
    assert values == pytest.approx({"com-offset": 0.195 - 0.2, "top-offset": -0.03, "height": 0.3, "force": 5.0})


def test_targets_of_sets(stability: StimulusSet, topblock: StimulusSet) -> None:
    found = available(stability.items)
    assert {"margin", "label", "reply", "count", "com-offset", "largest-step", "height"} <= set(found)
    assert "force" not in found and "answer" not in found and "block-count" in found
    assert find_target("label", stability.items).of(stability.items[0]) in ("stands", "falls")
    with pytest.raises(
        DecodingError, match=r"'force' is not defined for all of these items; these items have margin, "
    ):
        find_target("force", stability.items)
    with pytest.raises(DecodingError, match="did you mean com-offset"):
        find_target("com-ofset", stability.items)
    with pytest.raises(DecodingError, match="'count' is the same for all"):
        find_target("count", [i for i in stability.items if i.group_id == stability.items[0].group_id])
    assert available(topblock.items)["answer"].of(topblock.items[0]) == topblock.items[0].answer


# Folds, estimators, scores


def test_no_group_is_on_both_sides_of_a_split(many: StimulusSet) -> None:
    groups = np.array([item.group_id for item in many.items])
    folds = make_folds(groups.tolist(), np.random.default_rng(0))
    assert np.array_equal(np.sort(np.concatenate([test for _, test in folds.outer])), np.arange(80))
    for (train, test), inner in zip(folds.outer, folds.inner, strict=True):
        assert not set(groups[train]) & set(groups[test])
        assert np.array_equal(np.sort(np.concatenate([held for _, held in inner])), np.sort(train))
        for fit, held in inner:
            assert set(fit) | set(held) == set(train) and not set(groups[fit]) & set(groups[held])
    with pytest.raises(DecodingError, match="9 groups"):
        make_folds([str(i) for i in range(9)], np.random.default_rng(0))


def test_ridge_is_nested_ridge_and_every_target_has_its_own_penalty() -> None:
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(120, 30)) * rng.uniform(0.1, 9, 30), rng.normal(size=(120, 1))
    y = np.concatenate([x @ rng.normal(size=(30, 1)), noise], axis=1)
    folds = make_folds([str(i // 3) for i in range(120)], rng)
    predictions, chosen = ridge(x, y, folds)
    for number, ((train, test), inner) in enumerate(zip(folds.outer, folds.inner, strict=True)):
        for column in range(2):
            errors = []
            for alpha in ALPHAS:
                total = 0.0
                for fit, held in inner:
                    scaler = StandardScaler().fit(x[fit])
                    fitted = Ridge(alpha).fit(scaler.transform(x[fit]), y[fit, column])
                    total += ((fitted.predict(scaler.transform(x[held])) - y[held, column]) ** 2).sum()
                errors.append(total)
            assert chosen[number, column] == ALPHAS[int(np.argmin(errors))]
            scaler = StandardScaler().fit(x[train])
            expected = Ridge(chosen[number, column]).fit(scaler.transform(x[train]), y[train, column])
            assert np.allclose(expected.predict(scaler.transform(x[test])), predictions[test, column], atol=1e-6)
    assert (chosen[:, 0] < chosen[:, 1]).all()  # noise is shrunk, signal is not


def test_more_features_than_items_change_no_logistic_prediction() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 200)), rng.integers(0, 2, 60)
    scaler = StandardScaler().fit(x[:40])
    a, b = _scaled(x[:40], x[40:])
    assert a.shape == (40, 40)
    plain = logistic_model(scaler.transform(x[:40]), y[:40], 0.01).predict_proba(scaler.transform(x[40:]))
    assert np.allclose(logistic_model(a, y[:40], 0.01).predict_proba(b), plain, atol=2e-3)


def test_scores_are_those_of_scikit_learn_and_the_bootstrap_is_over_groups(many: StimulusSet) -> None:
    for name, score in (("margin", r2_score), ("reply", balanced_accuracy_score)):
        problem = make_problem(find_target(name, many.items), many.items, 3, 0)
        reading = read(pixel_features(many, many.items)[:, ::8], problem)
        guessed = reading.predictions.argmax(axis=1) if problem.classes else reading.predictions
        assert reading.score == pytest.approx(score(problem.y, guessed))
        assert len(reading.nulls) == 3 and len(reading.arbitrary) == 10
        for draw in range(3):
            rows = np.concatenate(
                [
                    np.repeat(np.flatnonzero(problem.folds.groups == g), int(k))
                    for g, k in enumerate(problem.counts[draw])
                ]
            )
            assert reading.bootstrap[draw] == pytest.approx(score(problem.y[rows], guessed[rows]))
        _, test = problem.folds.outer[2]
        assert reading.by_fold[2] == pytest.approx(score(problem.y[test], guessed[test]))


def test_permuted_values_stay_together_and_lose_their_role(many: StimulusSet) -> None:
    items = sorted(many.items, key=lambda item: item.group_id)[:-1]  # the last group is not whole
    cells = [(item.role, item.condition.mirrored) for item in items]
    groups = np.unique([item.group_id for item in items], return_inverse=True)[1]
    stands = np.array([item.answer == "stands" for item in items])
    # Every base scene of this set stands and every foil falls: the trap.
    assert all(stand == (item.role == "base") for stand, item in zip(stands, items, strict=True))
    turned = []
    for seed in range(40):
        order = permuted(groups, cells, np.random.default_rng(seed))
        assert np.array_equal(np.sort(order), np.arange(79))
        for group in range(20):
            sources = order[groups == group]
            assert len(set(groups[sources])) == 1
            if group < 19:
                # Base and foil of one mirroring get the values of one mirroring, and so for the roles.
                for part in (0, 1):
                    mine = [cells[i][part] for i in np.flatnonzero(groups == group)]
                    theirs = [cells[i][part] for i in sources]
                    assert len(set(zip(mine, theirs, strict=True))) == 2
        turned.append(np.mean(stands[order] == stands))
    assert 0.4 < np.mean(turned) < 0.6 and np.std(turned) > 0.05  # as variable as 20 groups are, not as 79 items
    problem = make_problem(find_target("margin", many.items), many.items, 5, 0)
    assert np.allclose(np.sort(problem.nulls, axis=0), np.sort(problem.y)[:, None])
    assert permuted_columns(problem.y, []).shape == (80, 0)


def test_control_tasks_go_by_type(many: StimulusSet) -> None:
    problem = make_problem(find_target("margin", many.items), many.items, 0, 0)
    types = scene_types(many.items)
    assert types[0].split()[1] == many.items[0].scene.bodies[0].colour  # type: ignore[union-attr]
    columns = arbitrary_columns(problem.y, types, 4, np.random.default_rng(0))
    for column in columns.T:
        assert all(len(set(column[types == kind])) == 1 for kind in set(types)) and len(set(column)) > 1
        assert set(column) <= set(problem.y)


@pytest.mark.parametrize(("name", "draws"), [("com-offset", 39), ("label", 9)])
def test_what_is_there_is_found_and_what_is_not_is_not(
    many: StimulusSet, name: str, draws: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlm_probe.probes.decoding.readings.ARBITRARY", 3)
    rng = np.random.default_rng(5)
    problem = make_problem(find_target(name, many.items), many.items, draws, 0)
    y = problem.y - problem.y.mean()
    signal = np.outer(y / y.std(), rng.normal(size=10)) + rng.normal(size=(80, 10))
    found, nothing = read(signal, problem), read(rng.normal(size=(80, 10)), problem)
    assert found.score > 0.8 and found.p == 1 / (draws + 1) and found.interval[0] > 0.5
    assert found.score - found.arbitrary.mean() > 0.3
    assert nothing.p is not None and nothing.p > 0.05 and nothing.score < problem.chance + 0.2


def test_features_that_give_away_the_group_give_nothing(many: StimulusSet) -> None:
    """Were foils and mirror images on both sides of a split, the group's own features would tell `count` perfectly."""
    problem = make_problem(find_target("count", many.items), many.items, 0, 0)
    assert read(np.eye(20)[problem.folds.groups], problem).score < 0.1


def test_logistic_takes_several_classes() -> None:
    rng = np.random.default_rng(0)
    y = np.tile(np.arange(3), 30)
    x = np.eye(3)[y] * 3 + rng.normal(size=(90, 3))
    noise = rng.permutation(y)
    folds = make_folds([str(i // 3) for i in range(90)], rng)
    probabilities, chosen = logistic(x, np.stack([y, noise], axis=1), 3, folds)
    assert probabilities.shape == (90, 2, 3) and chosen.shape == (5, 2) and np.allclose(probabilities.sum(axis=2), 1)
    right = (probabilities.argmax(axis=2) == np.stack([y, noise], axis=1)).mean(axis=0)
    assert right[0] > 0.8 and right[1] < 0.6
    # Targets do not touch one another.
    assert np.array_equal(logistic(x, y[:, None], 3, folds)[0][:, 0], probabilities[:, 0])


# The intervention


def test_the_direction_is_haufes_pattern() -> None:
    """With a distractor that two features share, the weights cancel it and the pattern does not point to it."""
    rng = np.random.default_rng(0)
    signal, distractor = rng.normal(size=(2, 4000))
    x = np.stack([signal + distractor, distractor, 0.01 * rng.normal(size=4000)], axis=1)
    weights, step = direction(x, signal, 1e-3, False)
    assert weights == pytest.approx([0.7071, -0.7071, 0], abs=0.01)
    assert step == pytest.approx([1, 0, 0], abs=0.05)
    # One step moves the decoded value by one standard deviation.
    assert step @ weights == pytest.approx((x @ weights).std(), rel=1e-6)
    labels = (signal > 0).astype(int)
    assert direction(x, labels, 0.1, True)[1][0] > 0


def test_outcomes_are_read_by_meaning(stability: StimulusSet, topblock: StimulusSet, grounding: StimulusSet) -> None:
    meaning, word = outcomes(stability.items)
    assert "'stands' against 'falls'" in meaning.name
    for item in stability.items:
        texts, values = zip(*item.question.grammar.candidates(), strict=True)
        assert meaning.of(item, np.array([2.0 * (v == "stands") for v in values])) == 2
        assert word.of(item, np.array([2.0 * (t == "yes") for t in texts])) == 2
    (expected,) = outcomes(topblock.items)
    n = len(topblock.items[0].question.grammar.candidates())
    assert expected.of(topblock.items[0], np.log(np.eye(n)[3] + 1e-30)) == pytest.approx(
        topblock.items[0].question.grammar.candidates()[3][1]
    )
    with pytest.raises(DecodingError, match="--intervene none"):
        outcomes(grounding.items)


def test_a_move_without_effect_on_its_own_direction_is_called_inconclusive() -> None:
    """The table says so itself, and does not where the outcome follows."""
    from rich.console import Console

    from vlm_probe.probes.decoding.result import _intervention

    def summary(low: float) -> dict[str, Any]:
        return {"slope": {"mean": low + 0.1, "ci": [low, low + 0.2]}, "slope_by_draw": [low + 0.1]}

    def told(readout: float) -> str:
        outcome = {"name": "log-odds", "before": {"mean": 0.0, "sd": 1.0}, "p_random": 0.5, "p_permuted": 0.5}
        outcome |= {"directions": {"probe": summary(-0.1), "readout": summary(readout)}}
        found = {"site": "s", "towards": "t", "items": 4, "step_norm": 1.0, "state_sd": 2.0, "outcomes": [outcome]}
        console = Console(width=200)
        with console.capture() as capture:
            for part in _intervention(found):
                console.print(part)
        return capture.get()

    assert "inconclusive" in told(-0.05) and "inconclusive" not in told(0.05)


# The study


def test_a_study_of_two_models(
    llava: Path, model: Any, many: StimulusSet, save_adapter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlm_probe.probes.decoding.intervention.TRIALS", 16)
    monkeypatch.setattr("vlm_probe.probes.decoding.intervention.PERMUTED", 2)
    adapter = save_adapter(llava, tmp_path / "lora")
    config = DecodeConfig(
        str(llava), str(many.path), "com-offset", compare=str(adapter), permutations=9, directions=2, untrained=True
    )
    result = decode(config, many, tmp_path / "out", model=model)
    folder = tmp_path / "out" / "com-offset_vs_lora"
    assert json.loads((folder / "decode.json").read_text()) == result
    names = [row["site"] for row in result["sites"]]
    assert len(names) == 3 + 3 * 2 and set(result["references"]) == {"pixels", "cues"}
    with np.load(folder / "predictions.npz") as kept:
        assert {*names, *(f"{name}-adapted" for name in names), "pixels", "y", "fold"} <= set(kept)
        for row in result["sites"]:
            assert row["score"] == pytest.approx(r2_score(kept["y"], kept[row["site"]]), abs=1e-4)
            assert row["p"] >= 0.1 and row["p_familywise"] >= row["p"]
    # Where the adapter has not come in yet, nothing differs.
    differences = {row["site"]: row for row in result["compare"]["sites"]}
    assert differences["vision-2-image"]["difference"] == pytest.approx(0, abs=1e-9)
    assert differences["language-2-last"]["difference"] != 0
    low, high = differences["language-2-last"]["ci"]
    assert low <= differences["language-2-last"]["difference"] <= high
    assert result["compare"]["model"]["adapter_sha256"] and len(result["untrained"]) == len(names)
    moved = result["intervention"]
    assert moved["site"] == "language-1-last" and moved["items"] == 16 and moved["groups"] == 4
    for outcome in moved["outcomes"]:
        assert set(outcome["directions"]) == {"probe", "weights", "readout", "random", "permuted"}
        assert len(outcome["directions"]["random"]["slope_by_draw"]) == 2
    # The outcome follows its own direction, or nothing could be concluded.
    word = moved["outcomes"][1]["directions"]
    assert abs(word["readout"]["slope"]["mean"]) > abs(np.mean(word["random"]["slope_by_draw"]))
    assert any("20 groups of items for up to 48 features" in text for text in result["warnings"])
    # The same again is the same; other settings do not overwrite it.
    again = decode(config, many, tmp_path / "out", model=model)
    assert {k: again[k] for k in ("sites", "compare", "intervention")} == {
        k: result[k] for k in ("sites", "compare", "intervention")
    }
    other = DecodeConfig(str(llava), str(many.path), "com-offset", compare=str(adapter), permutations=5)
    with pytest.raises(RunError, match=r"other settings: .*permutations \(9, now 5\)"):
        decode(other, many, tmp_path / "out", model=model)


def test_settings_that_cannot_be() -> None:
    for settings in ({"adapter": "a", "compare": "b"}, {"intervene": "some"}, {"directions": 0}):
        with pytest.raises((DecodingError, OutOfRange)):
            DecodeConfig("tiny", "set", "margin", **settings)  # type: ignore[arg-type]


def test_draws_in_which_the_target_does_not_vary_have_no_score() -> None:
    target, groups = np.array([1.0, 1.0, 2.0, 3.0]), np.array([0, 0, 1, 1])
    sums = r2_sums(target, target + 0.1, groups)
    whole, constant, varied = sums.score(np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 1.0]]))
    assert np.isnan(constant)
    assert whole == pytest.approx(1 - 0.04 / np.sum((target - target.mean()) ** 2))
    assert varied == pytest.approx(1 - 0.02 / 0.5)
