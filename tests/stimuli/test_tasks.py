"""The contract of every registered task: a new task is tested the moment it is registered."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_probe.stimuli.contract import CHECKS, run_check
from vlm_probe.stimuli.question import Variant
from vlm_probe.stimuli.tasks import UnknownTask, get_task, task_names

TASKS = task_names()


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", TASKS)
def test_the_task_keeps_the_contract(name, check):
    assert [str(finding) for finding in run_check(check, get_task(name))] == []


@pytest.mark.parametrize("name", TASKS)
@settings(max_examples=60, deadline=None)
@given(reply=st.text(max_size=60))
def test_any_reply_is_parsed_without_an_exception(name, reply):
    task = get_task(name)
    scene = task.sample_matched(np.random.default_rng(0), task.conditions()[0])[0]
    ask = task.conditions()[0].build.partition(":")[0] if task.kind == "grounding" else ""
    parsed = task.question(scene, Variant(ask=ask)).parse(reply)
    assert parsed.status == "ok" or parsed.value is None


def test_unknown_tasks_name_their_neighbours():
    with pytest.raises(UnknownTask, match="did you mean towers-stability"):
        get_task("tower-stability")
