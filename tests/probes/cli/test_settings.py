"""Flag before variable before --config before [tool.probe] before default; and what is unknown is an error."""

from __future__ import annotations

import tomllib
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from cyclopts import CycloptsError
from hypothesis import given
from hypothesis import strategies as st

from vlm_probe.probes.cli import app
from vlm_probe.probes.cli.errors import UsageError
from vlm_probe.probes.cli.settings import SETTINGS, save
from vlm_probe.stimuli.output import claim

RUN = ["run", "--model", "chance", "--stimuli", "towers"]


def parsed(*arguments: str) -> dict[str, Any]:
    _, bound, _ = app.parse_args(list(arguments), exit_on_error=False, print_error=False)
    found = dict(bound.arguments)
    return asdict(found.pop("settings")) | found if "settings" in found else found


def refused(*arguments: str) -> str:
    with pytest.raises((CycloptsError, UsageError)) as caught:
        parsed(*arguments)
    return str(caught.value)


def test_every_level_gives_way_to_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parsed(*RUN)["seed"] == 0
    (tmp_path / "pyproject.toml").write_text("[tool.probe]\nseed = 1\n")
    assert parsed(*RUN)["seed"] == 1
    (tmp_path / "pyproject.toml").write_text("[tool.probe]\nseed = 1\n[tool.probe.run]\nseed = 2\n")
    assert parsed(*RUN)["seed"] == 2
    (tmp_path / "my.toml").write_text("seed = 3\n")
    config = ["--config", "my.toml"]
    assert parsed(*RUN, *config)["seed"] == 3
    (tmp_path / "my.toml").write_text("seed = 3\n[run]\nseed = 4\n")
    assert parsed(*RUN, *config)["seed"] == 4
    monkeypatch.setenv("PROBE_SEED", "5")
    assert parsed(*RUN, *config)["seed"] == 5
    monkeypatch.setenv("PROBE_RUN_SEED", "6")
    assert parsed(*RUN, *config)["seed"] == 6
    assert parsed(*RUN, *config, "--seed", "7")["seed"] == 7


def test_the_config_file_can_be_named_by_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my.toml").write_text('model = "chance"\nstimuli = "towers"\nlimit = 5\njson = true\nresume = false\n')
    monkeypatch.setenv("PROBE_CONFIG", "my.toml")
    found = parsed("run")
    assert (found["model"], found["stimuli"], found["limit"]) == ("chance", "towers", 5)
    assert found["json"] is True and found["resume"] is False


def test_keys_may_be_written_with_dashes_or_underscores(tmp_path: Path) -> None:
    for key in ("batch-size", "batch_size"):
        (tmp_path / "my.toml").write_text(f"{key} = 3\n")
        assert parsed(*RUN, "--config", "my.toml")["batch_size"] == 3


def test_a_table_is_read_by_its_command_only(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.probe]\nmodel = "ideal"\n[tool.probe.stimuli.make]\nn = 12\n')
    assert parsed("stimuli", "make", "towers", "--out", "x")["n"] == 12
    assert parsed("run", "--stimuli", "towers")["model"] == "ideal"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed = 1", "unknown key 'sed'"),
        ("[run]\nmodle = 'x'", "did you mean model"),
        ("[rum]\nseed = 1", "unknown key 'rum'"),
        ("n = 5", "unknown key 'n'"),
        ("config = 'other.toml'", "unknown key 'config'"),
        ("seed = [", "my.toml is damaged"),
        ("seed = 'many'", "unable to convert"),
        ("seed = {a = 1}", "a value, not a table"),
        ("readout = 'lips'", "Choose from"),
    ],
)
def test_mistakes_in_a_config_file_are_errors(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "my.toml").write_text(text)
    assert message in refused(*RUN, "--config", "my.toml")


def test_mistakes_elsewhere_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cannot read nowhere.toml" in refused(*RUN, "--config", "nowhere.toml")
    monkeypatch.setenv("PROBE_MODLE", "tiny")
    assert "did you mean PROBE_MODEL" in refused(*RUN)
    monkeypatch.delenv("PROBE_MODLE")
    monkeypatch.setenv("PROBE_SERVICE_HOST", "10.0.0.1")  # another program's
    assert parsed(*RUN)["model"] == "chance"
    monkeypatch.setenv("PROBE_LIMIT", "few")
    assert "PROBE_LIMIT" in refused(*RUN)
    monkeypatch.delenv("PROBE_LIMIT")
    (tmp_path / "pyproject.toml").write_text("[tool.probe]\nsead = 1\n")
    assert "did you mean seed" in refused(*RUN)


@given(st.text(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False), st.booleans())
def test_saved_settings_can_be_read_again(text: str, number: int, share: float, flag: bool) -> None:
    values = {"text": text, "number": number, "share": share, "flag": flag}
    with TemporaryDirectory() as folder:
        with claim(Path(folder), "run") as output:
            save(output, "run", {**values, "nothing": None})
        assert tomllib.loads((Path(folder) / SETTINGS).read_text(encoding="utf-8")) == values
