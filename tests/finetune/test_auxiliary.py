"""The auxiliary objective: the head learns what the layer knows, the adapter below it learns too, and no trace of it is saved."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from vlm_probe.finetune.auxiliary import AuxiliaryMixin, AuxiliaryObjective, Targets, make_targets
from vlm_probe.finetune.policy import Capacity, make_trainable
from vlm_probe.probes.models import ModelError
from vlm_probe.probes.models.network import load_network
from vlm_probe.stimuli.dataset import StimulusSet

IDS = torch.tensor([[1, *[3] * 16, 7, 8, 9, 2], [1, *[3] * 16, 9, 8, 7, 2]])
LABELS = torch.where(torch.arange(21) < 19, -100, IDS)


def test_targets_are_standardised_within_each_task(stability: StimulusSet, topblock: StimulusSet) -> None:
    targets = make_targets([*stability.items, *topblock.items], "margin")
    for task, number in ((0, 24), (1, 8)):
        own = targets.values[targets.tasks == task]
        assert len(own) == number
        assert abs(float(own.mean())) < 1e-5 and float(own.std(correction=0)) == pytest.approx(1.0, abs=1e-5)
    margins = torch.tensor([item.margin for item in stability.items])
    assert torch.corrcoef(torch.stack([margins, targets.values[:24]]))[0, 1] > 0.9999
    missing = [dataclasses.replace(item, margin=math.nan) if i == 3 else item for i, item in enumerate(stability.items)]
    assert torch.isnan(make_targets(missing, "margin").values).tolist() == [i == 3 for i in range(24)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("margn", "did you mean margin"),
        ("label", "is a label"),
        ("force", "not defined, or always the same, for towers"),
    ],
)
def test_what_is_no_target_is_refused(stability: StimulusSet, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_targets(stability.items, name)


@pytest.fixture
def model(llava: Path) -> Any:
    torch.manual_seed(0)
    network, _, _ = load_network(llava, "small", device="cpu")
    return make_trainable(network, Capacity("all", rank=2)).train()


def objective(model: Any, layer: int = 1) -> AuxiliaryObjective:
    return AuxiliaryObjective(model, Targets("margin", torch.tensor([1.0, -1.0]), torch.tensor([0, 0])), 0.5, layer)


def heard(model: Any, aim: AuxiliaryObjective, items: list[int], pixels: torch.Tensor) -> torch.Tensor:
    with aim.listening():
        model(input_ids=IDS, pixel_values=pixels)
        return aim.loss(torch.tensor(items), torch.tensor([18, 18]))


def test_the_head_and_what_is_below_it_learn(model: Any) -> None:
    aim, pixels = objective(model), torch.rand(2, 3, 32, 32)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-3)
    losses = []
    for step in range(60):
        loss = heard(model, aim, [0, 1], pixels)
        loss.backward()
        if step == 5:
            moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        aim.step()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss))
    # From zero, it says the mean, which is off by one standard deviation.
    assert losses[0] == pytest.approx(1.0)
    assert losses[-1] < 0.1
    assert any("language_model.layers.0" in name for name in moved) and any("vision_tower" in name for name in moved)
    assert not any("language_model.layers.1" in name for name in moved)


def test_rows_without_a_value_do_not_count(model: Any) -> None:
    pixels = torch.rand(2, 3, 32, 32)
    aim = AuxiliaryObjective(
        model, Targets("margin", torch.tensor([1.0, math.nan]), torch.tensor([0, 0])), 0.5, layer=2
    )
    assert float(heard(model, aim, [0, 1], pixels)) == pytest.approx(1.0)
    assert float(heard(model, aim, [1, 1], pixels)) == 0.0
    with pytest.raises(RuntimeError, match="no hidden states"):
        aim.loss(torch.tensor([0]), torch.tensor([0]))


def test_a_checkpoint_holds_the_head_and_the_adapter_does_not(model: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model.save_pretrained(tmp_path / "before")
    aim, pixels = objective(model), torch.rand(2, 3, 32, 32)
    for _ in range(3):
        heard(model, aim, [0, 1], pixels).backward()
        aim.step()
    aim.save(tmp_path)
    model.save_pretrained(tmp_path / "after")
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("before", "after"))
    assert before.keys() == after.keys()
    resumed = objective(model)
    resumed.resume(tmp_path)
    for each in (aim, resumed):
        heard(model, each, [0, 1], pixels).backward()
        each.step()
    for one, other in zip(aim.head.parameters(), resumed.head.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ModelError, match="layers 1 to 2, not 3"):
        objective(model, 3)
    assert AuxiliaryObjective(model, aim.targets, 0.5).layer == 1


class _Plain:
    """What the objective sees of a trainer of TRL."""

    loss_is_scaled_for_ga: bool | None = None
    model_accepts_loss_kwargs = True
    compute_loss_func = None

    def __init__(self, parts: int) -> None:
        from accelerate import Accelerator

        self.current_gradient_accumulation_steps, self._metrics = parts, {"train": {"auxiliary_loss": []}}
        self.accelerator = Accelerator(cpu=True)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        assert "index" not in inputs
        return model(**{name: value for name, value in inputs.items() if name != "prompt_ids"}).logits.sum() * 0


class _Trainer(AuxiliaryMixin, _Plain):
    pass


def test_the_loss_is_added_in_its_share(model: Any) -> None:
    aim = objective(model)
    inputs = {
        "input_ids": IDS,
        "pixel_values": torch.rand(2, 3, 32, 32),
        "labels": LABELS,
        "index": torch.tensor([0, 1]),
    }
    trainer = _Trainer(parts=4)
    assert float(trainer.compute_loss(model, inputs)) == 0.0
    trainer.auxiliary = aim
    # Divided among four micro-batches here only where the trainer will not do it.
    assert float(trainer.compute_loss(model, inputs)) == pytest.approx(0.5)
    assert float(trainer.compute_loss(model, inputs, num_items_in_batch=8)) == pytest.approx(0.125)
    trainer.loss_is_scaled_for_ga = True
    assert float(trainer.compute_loss(model, inputs)) == pytest.approx(0.125)
    rollout = {name: value for name, value in inputs.items() if name != "labels"} | {"prompt_ids": IDS[:, :19]}
    assert float(trainer.compute_loss(model, rollout)) == pytest.approx(0.125)
    assert trainer._metrics["train"]["auxiliary_loss"] == pytest.approx([1.0] * 4)
    assert set(rollout) >= {"index"}  # a rollout is learned from several times
    assert float(trainer.compute_loss(model.eval(), inputs)) == 0.0
