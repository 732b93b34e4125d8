"""The cells of a study: all of them, in an order in which they can be done, and touched by what concerns them alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm_probe.paper.study.cells import make_cells, trials
from vlm_probe.paper.study.design import read_design
from vlm_probe.paper.study.fields import StudyError
from vlm_probe.probes.cli import app

ROOT = Path(__file__).parents[3]


def hashes(cells):
    return {step.id: step.sha256 for cell in cells for step in cell.steps}


def touched(cells, before, after):
    """Steps that a change would run anew."""
    old, new = hashes(cells(before)), hashes(cells(after))
    return {id_ for id_, digest in new.items() if old.get(id_) != digest}


def test_every_combination_has_its_cell_and_needs_come_first(cells, trained):
    made = cells(trained)
    ids = [cell.id for cell in made]
    assert len(set(ids)) == len(ids)
    sets, adapters = 4, 2 * 2 * 2
    assert len([id_ for id_ in ids if id_.startswith("sets/")]) == sets
    assert len([id_ for id_ in ids if id_.startswith("adapters/")]) == adapters
    assert len([id_ for id_ in ids if id_.startswith("runs/")]) == adapters + 1
    assert len([id_ for id_ in ids if id_.startswith("decoding/")]) == adapters // 2
    seen = set()
    for cell in made:
        assert cell.needs <= seen
        seen |= {step.id for step in cell.steps}
    controls = 8 * 7 + 120  # seven manners, and grounding questions before them
    assert trials(made) == (adapters + 1) * (4 * 16 + controls) + 4 * 16


def test_steps_are_command_lines_that_anybody_can_give(cells, trained):
    steps = {step.id: step for cell in cells(trained) for step in cell.steps}
    train = steps["adapters/tiny_ppo_topblock_s1"].arguments
    assert train[:7] == ("train", "--model", "tiny", "--tasks", "towers-topblock", "--method", "ppo")
    options = dict(zip(train[1::2], train[2::2], strict=True))
    assert options["--seed"] == "1"
    assert options["--budget"] == "samples=128"
    assert options["--avoid"] == "sets/towers-topblock,sets/towers-stability,sets/towers-topblock_camera2"
    run = steps["runs/tiny_ppo_topblock_s1/towers-stability"]
    assert run.arguments[run.arguments.index("--adapter") + 1] == "adapters/tiny_ppo_topblock_s1"
    assert run.needs == ("sets/towers-stability", "adapters/tiny_ppo_topblock_s1")


def test_a_change_touches_what_it_concerns(cells, trained):
    assert touched(cells, trained, trained) == set()
    assert touched(cells, trained, trained.replace("at: [within, cross-task]", "at: [within]")) == set()
    ppo = touched(cells, trained, trained.replace("ppo: samples=128", "ppo: samples=192"))
    assert ppo
    assert all("_ppo_" in id_ for id_ in ppo)
    more = touched(
        cells,
        trained,
        trained.replace("[towers-topblock, towers-stability]", "[towers-topblock, towers-stability, towers-count]"),
    )
    assert all(id_.endswith("/towers-count") for id_ in more)
    assert len(more) == 1 + 1 + 8 + 1, "the set, and a test of the base, of every trained model and of the observer"
    seeds = touched(cells, trained, trained.replace("seeds: [0, 1]", "seeds: [0, 1, 2]"))
    assert seeds
    assert all("_s2" in id_ for id_ in seeds)
    items = touched(cells, trained, trained.replace("n: 16", "n: 32").replace("limit: 16", "limit: 32"))
    assert items == {id_ for id_ in hashes(cells(trained)) if not id_.startswith("adapters/")}


def test_decoding_has_a_set_of_its_own_where_it_wants_more_items(cells, trained):
    text = trained.replace("limit: 16, seeds: [0]", "limit: 40, seeds: [0], training: [tilt]")
    steps = {step.id: step for cell in cells(text) for step in cell.steps}
    states = steps["sets/towers-stability_states"].arguments
    assert states[states.index("--n") + 1] == "40"
    decoded = [step for id_, step in steps.items() if id_.startswith("decoding/")]
    assert [step.id for step in decoded] == [f"decoding/tiny_{m}_tilt_s0/towers-stability" for m in ("sft", "ppo")]
    assert all(step.needs[0] == "sets/towers-stability_states" for step in decoded)
    avoided = steps["adapters/tiny_sft_topblock_s0"].arguments
    assert "sets/towers-stability_states" in avoided[avoided.index("--avoid") + 1].split(",")


def test_a_study_that_is_stopped_early_is_balanced(cells, trained):
    extra = "training: {few: {tasks: towers-stability, seeds: [1], methods: [ppo]}, topblock:"
    text = trained.replace("training: {topblock:", extra)
    made = [cell.id for cell in cells(text) if cell.kind in ("adapters", "runs")]
    names = [f"tiny_{m}_{c}_s{s}" for s in (0, 1) for c in ("topblock", "tilt") for m in ("sft", "ppo")]
    names.append("tiny_ppo_few_s1")
    assert made == ["runs/tiny_none", *(f"{kind}/{name}" for name in names for kind in ("adapters", "runs"))]


def test_other_weights_of_a_model_are_another_model(cells, trained, llava):
    text = trained.replace("[tiny]", f"[{llava}]")
    before = hashes(cells(text))
    weights = next(llava.glob("*.safetensors"))
    kept = weights.read_bytes()
    try:
        weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        after = hashes(cells(text))
    finally:
        weights.write_bytes(kept)
    changed = {id_ for id_ in before if before[id_] != after[id_]}
    assert changed == {id_ for id_ in before if not id_.startswith(("sets/", "observers/"))}


def test_a_model_is_tested_in_the_bits_in_which_it_is_trained(cells, trained):
    with pytest.raises(
        StudyError, match="tiny is trained in 4 bits, as the preset 24gb says, and would be tested without"
    ):
        cells(trained.replace("models: [tiny]", "models: {tiny: {preset: 24gb}}"))
    whole = cells(trained.replace("models: [tiny]", "models: {tiny: {preset: 24gb, load_in_4bit: true}}"))
    asked = [step.arguments for cell in whole for step in cell.steps if step.id.startswith("runs/")]
    assert asked
    assert all("--load-in-4bit" in arguments for arguments in asked)


@pytest.mark.parametrize("path", sorted([*(ROOT / "examples" / "study").glob("*.yaml"), ROOT / "paper" / "study.yaml"]))
def test_studies_of_the_repository_can_be_run(path):
    design = read_design(path)
    made = make_cells(design)
    commands = {}
    for cell in made:
        for step in cell.steps:  # one of every kind, model and task
            commands[step.pace] = step.arguments
    assert len(commands) > 10
    for arguments in commands.values():
        app.parse_args(list(arguments), exit_on_error=False, print_error=False)


def test_impossible_trainings_are_told_when_the_study_is_planned(cells, trained):
    with pytest.raises(StudyError, match=r"training topblock by ppo: --rollout 64 cannot be divided .* --batch 48"):
        cells(trained.replace("batch: 64", "batch: 48"))
