"""The package `vlm_probe` as a script or a notebook sees it."""

from __future__ import annotations

import doctest
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

import vlm_probe as vp
from vlm_probe import notebook
from vlm_probe.probes.run import RunConfig


def test_importing_it_imports_nothing_else() -> None:
    code = (
        "import sys; before = set(sys.modules); import vlm_probe\n"
        "print(sorted(m for m in set(sys.modules) - before if m.partition('.')[0] not in sys.stdlib_module_names))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "['vlm_probe']"


@pytest.mark.parametrize("name", vp.__all__)
def test_every_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROBE_CACHE", str(tmp_path / "cache"))
    function = getattr(vp, name)
    assert function is getattr(notebook, name)
    (found,) = doctest.DocTestFinder().find(function, name)
    ran = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(found)
    assert ran.attempted > 1 and ran.failed == 0


def test_settings_survive_a_pickle_and_a_spawned_worker() -> None:
    config = RunConfig("tiny", "towers", temperature=0.5)
    assert pickle.loads(pickle.dumps(config)) == config
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert pool.submit(RunConfig, "tiny", "towers", temperature=0.5).result() == config


def test_no_module_is_imported_by_a_bare_name() -> None:
    """Run as part of the suite: whatever was imported until now came under its full name."""
    layers = {"stimuli", "probes", "finetune", "analysis", "paper"}
    assert not {name for name in sys.modules if name.partition(".")[0] in layers}


def test_names_that_are_not_there_are_said() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = vp.nothing
    assert set(vp.__all__) <= set(dir(vp))
