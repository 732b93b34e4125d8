"""Claims in numbers: what `make verify` checks stands in the documents, and a claim that does not hold is told."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"claims_{name}", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


verify = load("verify")
CLAIMS = verify.read_claims()


@pytest.mark.parametrize("claim", CLAIMS, ids=[f"{c.doc} {c.says}" for c in CLAIMS])
def test_every_claim_stands_in_its_document_and_can_be_recomputed(claim):
    stated = float(claim.stated())
    assert callable(getattr(verify, claim.measure))
    assert claim.holds(stated)
    if claim.factor:
        assert claim.factor > 1 and not claim.holds(stated * claim.factor * 1.01)
    else:
        assert not claim.holds(stated + claim.within + 1.1) and not claim.holds(stated - claim.within - 1.1)


def test_a_number_holds_to_its_last_digit():
    made = verify.Claim("README.md", r"need Python (3\.11) and", "", "")
    assert made.holds(3.1149) and not made.holds(3.1151)


def test_a_claim_that_has_gone_from_its_document_is_told():
    with pytest.raises(ValueError, match=r"0 times.*claims\.toml"):
        verify.Claim("README.md", "no such text (1)", "", "").stated()


def test_version_and_citation_are_one():
    import tomllib

    import yaml

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert project["version"] == citation["version"] and project["license"] == citation["license"]
    assert f"## {project['version']}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_doctor_knows_every_extra():
    import tomllib

    from vlm_probe.probes.cli.doctor import EXTRAS

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(EXTRAS) == set(project["optional-dependencies"])
