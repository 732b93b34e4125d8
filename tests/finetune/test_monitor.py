"""What stops a run, and what is kept of it."""

import json
from types import SimpleNamespace

import pytest

from vlm_probe.finetune.config import TrainConfig, TrainingError
from vlm_probe.finetune.curves import draw_curves
from vlm_probe.finetune.monitor import COMPLETE, PATIENCE, Monitor, last_checkpoint, mark_complete

CONFIG = TrainConfig(model="tiny", tasks=("towers-topblock",), method="ppo", generations=1)
GOOD = {"loss": 0.1, "reward": 0.3, "reward_std": 0.2, "success": 0.2, "parse_rate": 1.0, "grad_norm": 0.5}


def log(monitor, step, **changes):
    state = SimpleNamespace(global_step=step, max_steps=100, is_world_process_zero=True)
    control = SimpleNamespace(should_training_stop=False)
    monitor.on_log(None, state, control, GOOD | {"optimiser_tokens": 1000.0 * step} | changes)
    return control


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parse_rate": 0.02}, r"fewer than 5% .* could be read .*--init"),
        ({"reward_std": 0.0, "success": 0.0}, r"every reply got the same reward .*--temperature"),
        ({"grad_norm": 0.0}, r"the gradient was 0 .*nothing is trained"),
    ],
)
def test_what_cannot_be_learned_from_ends_the_run_after_a_while(changes, words):
    monitor = Monitor(CONFIG, 16.0)
    for step in range(PATIENCE - 1):
        log(monitor, step, **changes)
    log(monitor, PATIENCE)  # a good row: patience begins anew
    for step in range(PATIENCE - 1):
        log(monitor, step, **changes)
    with pytest.raises(TrainingError, match=words):
        log(monitor, PATIENCE, **changes)


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_what_is_not_a_number_ends_the_run_at_once(name):
    with pytest.raises(TrainingError, match=r"is nan at step 3: lower --learning-rate"):
        log(Monitor(CONFIG, 16.0), 3, **{name: float("nan")})


def test_a_task_that_is_mastered_is_no_failure():
    monitor = Monitor(CONFIG, 16.0)
    for step in range(2 * PATIENCE):
        log(monitor, step, reward_std=0.0, success=1.0)


def test_rows_hold_samples_steps_and_tokens():
    monitor = Monitor(CONFIG, 16.0, token_budget=3000)
    assert not log(monitor, 2).should_training_stop
    assert log(monitor, 3).should_training_stop, "the budget of tokens is spent"
    row = monitor.record.rows[-1]
    assert (row["step"], row["samples"], row["tokens"]) == (3, 48, 3000)
    assert (row["gradient_norm"], row["reward_sd"]) == (0.5, 0.2)


def test_the_record_goes_on_from_a_checkpoint(tmp_path):
    monitor = Monitor(CONFIG, 16.0)
    log(monitor, 5, grad_norm=0.0)
    (tmp_path / "checkpoint-5").mkdir()
    state = SimpleNamespace(global_step=5, is_world_process_zero=True)
    monitor.on_save(SimpleNamespace(output_dir=str(tmp_path)), state, None)
    further = Monitor(CONFIG, 16.0)
    further.resume(last_checkpoint(tmp_path))
    log(further, 6, optimiser_tokens=10.0)
    assert [row["tokens"] for row in further.record.rows] == [5000, 5010]
    stored = json.loads((tmp_path / "checkpoint-5" / "monitor.json").read_text())
    assert stored["patience"] == [0, 1, 0]
    spent = stored["spent"] | {"seconds": 100.0, "cpu_seconds": 90.0}
    (tmp_path / "checkpoint-5" / "monitor.json").write_text(json.dumps(stored | {"spent": spent}))
    mark_complete(tmp_path / "checkpoint-5")
    last = Monitor(CONFIG, 16.0)
    last.resume(last_checkpoint(tmp_path))
    assert 100 <= last.spent()["seconds"] < 200
    assert 90 <= last.spent()["cpu_seconds"] < 190


def test_a_torn_checkpoint_is_passed_over(tmp_path):
    for number in (5, 10, 20):
        (tmp_path / f"checkpoint-{number}").mkdir()
    assert last_checkpoint(tmp_path) is None
    for number in (5, 10):
        mark_complete(tmp_path / f"checkpoint-{number}")
    assert last_checkpoint(tmp_path).name == "checkpoint-10"


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path):
    def damage(file, data):
        (tmp_path / file).write_bytes(data)
        told = []
        return last_checkpoint(tmp_path, lambda text, *values: told.append(text % values)), told

    for number in (2, 4):
        (tmp_path / f"checkpoint-{number}" / "critic").mkdir(parents=True)
        for name in ("optimizer.pt", "critic/ppo.json"):
            (tmp_path / f"checkpoint-{number}" / name).write_bytes(name.encode() * 10)
        mark_complete(tmp_path / f"checkpoint-{number}")
    newest = tmp_path / "checkpoint-4"
    assert last_checkpoint(tmp_path) == newest
    for name in ("optimizer.pt", "critic/ppo.json", COMPLETE):
        whole = (newest / name).read_bytes()
        for data in (whole[: len(whole) // 2], b"", b"[" * 100_000, b"\xff\x00" * 30):
            found, told = damage(newest / name, data)
            assert found == tmp_path / "checkpoint-2" and len(told) == 1
            assert str(newest / name) in told[0] and "damaged" in told[0] and "\n" not in told[0]
        (newest / name).unlink()
        assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
        (newest / name).write_bytes(whole)
    (newest / "optimizer.pt").unlink()
    (tmp_path / "checkpoint-2" / "optimizer.pt").write_bytes(b"")
    with pytest.raises(TrainingError, match=r"checkpoint-2/optimizer\.pt is damaged.*delete the folder of checkpoints"):
        last_checkpoint(tmp_path)


def test_curves_are_drawn_for_any_method(tmp_path):
    from PIL import Image

    draw_curves(
        [{"step": 1, "samples": 10, "loss": 0.5}, {"step": 2, "samples": 20, "loss": 0.4}], "sft", tmp_path / "a.png"
    )
    rows = [{"samples": 10 * i, "success": 0.1 * i, "reward": 0.2, "entropy": 1.0, "kl": 0.0} for i in range(5)]
    draw_curves(rows, "grpo", tmp_path / "b.png")
    assert Image.open(tmp_path / "b.png").size[0] > Image.open(tmp_path / "a.png").size[0]
