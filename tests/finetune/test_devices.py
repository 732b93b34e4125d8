"""One GPU for a process, however many it sees."""

from types import SimpleNamespace

import pytest
from transformers import TrainingArguments

from vlm_probe.finetune.config import on_one_gpu


@pytest.mark.parametrize(("seen", "used"), [(4, 1), (1, 1), (0, 0)])
def test_a_process_trains_on_one_gpu(seen, used, tmp_path):
    arguments = TrainingArguments(str(tmp_path), use_cpu=True)
    assert arguments.n_gpu == 0
    arguments._n_gpu = seen
    assert on_one_gpu(arguments) is arguments
    assert arguments.n_gpu == used


def test_what_has_one_already_is_left_alone():
    assert vars(on_one_gpu(SimpleNamespace(n_gpu=1))) == {"n_gpu": 1}
