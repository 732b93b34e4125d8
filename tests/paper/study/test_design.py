"""Reading a study: what is declared is what is read, and every slip is one line that says what was meant."""

from __future__ import annotations

import pytest

from vlm_probe.paper.study.design import Contrast, Test
from vlm_probe.paper.study.fields import StudyError

GOOD = """
study: learn
models: [tiny]
methods: [none, sft, ppo]
budgets: {sft: samples=64}
seeds: [0, 1]
training:
  topblock: towers-topblock
  joint: {tasks: ["towers-topblock:2", balance], methods: [ppo], seeds: [3], beta: 0.1}
settings: {items: 32, ppo: {rollout: 64, batch: 64}}
tests:
  tasks: [trained, towers-count]
  shifts: {"visual:2": [towers-topblock]}
contrasts:
  - {compare: rl - none, at: [within, cross-task]}
"""


def test_what_is_declared_is_read(read):
    design = read(GOOD)
    (plain, joint), (model,) = design.trainings, design.models
    assert (plain.methods, plain.seeds) == (("sft", "ppo"), (0, 1))
    assert (joint.bare_tasks, joint.methods, joint.seeds) == (("towers-topblock", "balance-tilt"), ("ppo",), (3,))
    tasks = ("towers-topblock", "balance-tilt", "towers-count")
    assert design.tests == (*map(Test, tasks), Test("towers-topblock", "visual:2"))
    assert design.contrasts == (Contrast("rl", "none", "within"), Contrast("rl", "none", "cross-task"))
    assert model.preset == "tiny"
    given = design.training_settings(model, joint, "ppo", 3)
    assert given == {"items": 32, "rollout": 64, "batch": 64, "beta": 0.1, "seed": 3}


def test_two_conditions_are_compared_by_name(read):
    text = GOOD.replace("compare: rl - none", "compare: joint - topblock").replace("cross-task]}", "cross-family]}")
    assert read(text).contrasts == (
        Contrast("joint", "topblock", "within"),
        Contrast("joint", "topblock", "cross-family"),
    )


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("models: [tiny]", "model: [tiny]", "study.yaml: model: unknown key; did you mean models"),
        ("models: [tiny]", "models: [tinny]", "models: unknown model 'tinny': did you mean tiny"),
        ("models: [tiny]", "models: [ideal]", "models: ideal is an observer"),
        ("models: [tiny]", "models: [tiny]\nmodels: [tiny]", "line 4: 'models' is given twice"),
        ("methods: [none, sft, ppo]", "methods: [none, sft, poo]", "methods: unknown method 'poo'; did you mean ppo"),
        ("seeds: [0, 1]", "seeds: 3", "seeds must be a list of whole numbers, such as"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "seeds names 0 twice"),
        ("sft: samples=64", "rloo: samples=64", "budgets.rloo: unknown key; there are ppo, sft"),
        (
            "topblock: towers-topblock",
            "topblock: towers-topblok",
            "training.topblock.tasks: unknown task 'towers-topblok'",
        ),
        ("topblock: towers-topblock", "top/block: towers-topblock", "training.top/block: 'top/block' becomes the name"),
        ("topblock: towers-topblock", "count: towers-count", "towers-count is held out"),
        ("beta: 0.1", "betta: 0.1", "training.joint.betta: unknown key; did you mean beta"),
        ("items: 32", "itemz: 32", "settings.itemz: unknown key; did you mean items"),
        ("rollout: 64", "rolout: 64", "settings.ppo.rolout: unknown key; did you mean rollout"),
        ("visual:2", "visul:2", "tests.shifts.visul:2: unknown shift 'visul': did you mean visual"),
        ("visual:2", "visual:7", "tests.shifts.visual:7: the shift visual has the levels 1, 2 and 3"),
        ("compare: rl - none", "compare: rl", "contrasts.1.compare must name two methods"),
        ("compare: rl - none", "compare: grpo - none", "contrasts.1.compare: unknown method 'grpo'"),
        (
            "at: [within, cross-task]",
            "at: [wihtin]",
            "contrasts.1.at: unknown level of transfer 'wihtin'; did you mean within",
        ),
        ("study: learn", "study:", "study is missing"),
        ("study: learn", "study: [", "study.yaml, line 4: expected"),
    ],
)
def test_a_slip_is_one_line_that_names_the_key(read, old, new, words):
    assert old in GOOD
    with pytest.raises(StudyError) as caught:
        read(GOOD.replace(old, new, 1))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_said(read, tmp_path):
    from vlm_probe.paper.study.design import read_design

    with pytest.raises(StudyError, match=r"cannot read .*nothing.yaml"):
        read_design(tmp_path / "nothing.yaml")
