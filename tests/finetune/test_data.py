"""Training items: balanced, repeatable, apart from test sets; and the order in which they come."""

import json
from collections import Counter

import pytest

from vlm_probe.finetune.config import TrainConfig, TrainingError
from vlm_probe.finetune.data import check_tasks, demonstrations, rows, training_set
from vlm_probe.stimuli.dataset import Item
from vlm_probe.stimuli.generate import make_set
from vlm_probe.stimuli.scene import mirror
from vlm_probe.stimuli.tasks import UnknownTask, get_task


def settings(**changes):
    given = {"model": "tiny", "tasks": ("towers-stability",), "method": "sft", "items": 16, "size": 48}
    return TrainConfig(**(given | changes))


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROBE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def stability_items(_own_cache):
    return training_set(settings())


def test_items_are_the_same_from_the_cache_and_from_several_processes(stability_items, monkeypatch, tmp_path):
    assert training_set(settings()).content_sha256 == stability_items.content_sha256
    monkeypatch.setenv("PROBE_CACHE", str(tmp_path))
    assert training_set(settings(items=8), jobs=2).examples == stability_items.examples[:8]
    assert training_set(settings(items=8, seed=1)).examples[0] != stability_items.examples[0]


def test_labels_are_balanced_within_every_group(stability_items):
    groups = {}
    for example in stability_items.examples:
        groups.setdefault(example.item.group_id, Counter())[example.item.answer] += 1
    assert all(labels == {"stands": 2, "falls": 2} for labels in groups.values())


def test_demonstrations_get_the_top_reward():
    data = training_set(settings(tasks=("towers-topblock", "collision-outcome"), items=8, weights=(3.0, 1.0)))
    assert Counter(e.item.task for e in data.examples) == {"towers-topblock": 6, "collision-outcome": 2}
    for example in data.examples:
        item = example.item
        answer = item.question.parse(example.demonstration).value
        assert get_task(item.task).score(item.scene, item.question, answer).reward == 1.0


def test_a_row_holds_what_is_needed_to_rebuild_the_scene(stability_items):
    table = rows(stability_items, settings())
    row = table[3]
    item = Item.from_row(json.loads(row["item"]))
    assert item == stability_items.examples[3].item
    assert row["prompt"] == [{"role": "user", "content": item.question.prompt}]
    assert row["completion"] == [{"role": "assistant", "content": item.question.reply(item.answer)}]
    assert row["images"][0].size == (48, 48)
    assert "completion" not in rows(stability_items, settings(method="ppo")).column_names


def test_random_demonstrations_are_legal_repeatable_and_of_no_item(stability_items):
    config = settings(demonstrations="random")
    replies = demonstrations(stability_items, config)
    assert replies == demonstrations(stability_items, config) != demonstrations(stability_items, settings())
    pairs = list(zip(replies, stability_items.examples, strict=True))
    assert all(e.item.question.parse(reply).status == "ok" for reply, e in pairs)
    assert 0 < sum(e.item.question.parse(reply).value == e.item.answer for reply, e in pairs) < len(pairs)
    assert rows(stability_items, config)[2]["completion"][0]["content"] == replies[2]


@pytest.mark.parametrize("wrong", [{"method": "ppo"}, {"tasks": ("towers-topblock",), "attempts": 3}])
def test_random_demonstrations_are_for_first_attempts_of_sft(wrong):
    with pytest.raises(TrainingError, match="--demonstrations random"):
        settings(demonstrations="random", **wrong)


def test_a_scene_of_a_named_test_set_is_refused_and_so_is_its_mirror_image(stability_items, tmp_path):
    # A test set that was made with the seed of training.
    shown = make_set("towers-stability", 4, 1_000_000, tmp_path / "set", size=48)
    assert stability_items.examples[0].item.scene_sha256 in {item.scene_sha256 for item in shown.items}
    with pytest.raises(TrainingError, match=r"shows a scene of the test set .*: choose another --seed"):
        training_set(settings(avoid=(str(tmp_path / "set"),)))
    mirrored = {mirror(i.scene).content_hash for i in shown.items}
    assert mirrored == {i.scene_sha256 for i in shown.items}, "a group holds the mirror images of all its scenes"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": ("towers-direction",)}, "is held out: it is asked zero-shot and never trained on"),
        ({"tasks": ("towers-grounding",)}, "has no physics to learn"),
        ({"method": "ppo", "attempts": 3}, "only actions can be tried again"),
        ({"shift": "weather:2"}, "weather"),
    ],
)
def test_tasks_that_must_not_be_trained_on(changes, words):
    with pytest.raises(TrainingError, match=words):
        check_tasks(settings(**changes))


def test_a_held_out_task_can_be_forced():
    check_tasks(settings(tasks=("towers-direction",), force=True))


def test_a_mistyped_task_lists_the_closest():
    with pytest.raises(UnknownTask, match="towers-stability"):
        check_tasks(settings(tasks=("tower-stability",)))
