"""Every number that the documents claim and that can be recomputed here: claim, stated value, value now, verdict.

    make verify                                        # some minutes on two cores
    python benchmarks/verify.py --only shortcut lme4   # some measures

The claims are in `benchmarks/claims.toml`; the stated value is read from the document itself, so that a document and what is
checked cannot drift apart. A measure is a function of this file: it gives one number, from small inputs, in seconds to a minute.
Exits with 1 if a claim fails.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


@dataclass(frozen=True)
class Claim:
    """A number in a document, and how it is recomputed; see the head of `claims.toml`."""

    doc: str
    text: str
    says: str
    measure: str
    given: Mapping[str, Any] = field(default_factory=dict)
    within: float = 0.0
    factor: float = 0.0

    def stated(self) -> str:
        """The number as it stands in the document, without the commas of thousands.

        Raises:
            ValueError: If it does not stand there, or not once.
        """
        found = re.findall(self.text, (ROOT / self.doc).read_text(encoding="utf-8"))
        if len(found) != 1:
            raise ValueError(f"{self.doc}: {self.text!r} is found {len(found)} times, not once: mend claims.toml")
        return str(found[0]).replace(",", "")

    def holds(self, now: float) -> bool:
        """Whether a value is what the document states, as far as the claim goes."""
        text = self.stated()
        stated = float(text)
        if self.factor:
            return stated / self.factor <= now <= stated * self.factor
        rounding = 0.5 * 10.0 ** -len(text.partition(".")[2])
        return abs(now - stated) <= self.within + rounding * (1 + 1e-9)


def read_claims() -> list[Claim]:
    """All claims."""
    data = tomllib.loads((Path(__file__).parent / "claims.toml").read_text(encoding="utf-8"))
    return [Claim(**entry) for entry in data["claim"]]


def main() -> int:
    """Recompute and print; the exit code."""
    parser = argparse.ArgumentParser(description="Recompute what the documents claim in numbers.")
    parser.add_argument("--only", nargs="*", default=[], help="names of measures")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    rows: list[dict[str, Any]] = []
    if not options.json:
        print(f"{'claim':<100} {'stated':>11} {'now':>11}  verdict")
    for claim in read_claims():
        if options.only and claim.measure not in options.only:
            continue
        begun = time.process_time()
        row: dict[str, Any] = {"doc": claim.doc, "claim": claim.says, "stated": ""}
        try:
            row["stated"] = claim.stated()
            now = float(globals()[claim.measure](**claim.given))
            row |= {"now": now, "verdict": "holds" if claim.holds(now) else "FAILS"}
        except Exception as error:  # one that cannot be checked must not hide the others
            row |= {"now": None, "verdict": f"FAILS ({type(error).__name__}: {' '.join(str(error).split())[:120]})"}
        rows.append(row | {"cpu_seconds": round(time.process_time() - begun, 1)})
        if not options.json:
            shown = "" if row["now"] is None else f"{row['now']:.6g}"
            print(
                f"{claim.doc}: {claim.says}"[:100].ljust(100),
                f"{row['stated']:>11} {shown:>11}  {row['verdict']}",
                flush=True,
            )
    failed = sum(row["verdict"] != "holds" for row in rows)
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        print(f"{len(rows) - failed} of {len(rows)} claims hold")
    return int(failed > 0)


SEED = 90_210
"""Of everything that is sampled here: no document's numbers come from it."""
STUDY = ROOT / "paper" / "results"
PRETRAINED = 2_000
"""Scenes of pretraining that are drawn again: the first ones."""
KILLS = 12


def demo(what: str) -> float:
    """A number of the summary of the demonstration: tiny on the standard towers."""
    return float(_demo()[what])


@functools.cache
def _demo() -> dict[str, float]:
    from vlm_probe.analysis.summary import summarise
    from vlm_probe.probes.run import RunConfig, run

    with tempfile.TemporaryDirectory() as folder:
        run(RunConfig("tiny", "towers"), _standard("towers-stability"), Path(folder) / "run")
        found = summarise(Path(folder) / "run")
    assert found.detection is not None
    return {
        "accuracy": found.accuracy.value,
        "pairs": found.pairs.value,
        "dprime": found.detection.d_prime,
        "parse_rate": found.parse_rate,
    }


@functools.cache
def _standard(task: str) -> Any:
    from vlm_probe.stimuli.standard import resolve

    return resolve(task, jobs=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)


def shortcut(task: str, name: str) -> float:
    """What a shortcut scores on the standard set."""
    return float(_standard(task).card["baselines"]["shortcuts"][name])


def pixels(task: str) -> float:
    """What a linear classifier on small images scores on the standard set, cross-validated by group."""
    from vlm_probe.stimuli.audit import audit

    (found,) = (s.score for s in audit(_standard(task)).shortcuts if s.kind == "pixels")
    return found


def statics_and_bullet(task: str, n: int, least: float = 0.1) -> float:
    """Share of random scenes beyond a margin on which the closed form and Bullet give the same answer.

    Args:
        task: A task with a closed form.
        n: Scenes.
        least: Smallest |margin|.
    """
    from vlm_probe.stimuli.simulators import get_simulator
    from vlm_probe.stimuli.tasks import SamplingFailed, get_task

    the_task, simulator, rng = get_task(task), get_simulator(), np.random.default_rng(SEED)
    conditions = [c for c in the_task.conditions() if max(map(abs, c.margin_bin)) > least]
    agree: list[bool] = []
    while len(agree) < n:
        try:
            scene = the_task.sample(rng, conditions[rng.integers(len(conditions))])
        except SamplingFailed:
            continue
        expected = the_task.statics_answer(scene)
        if expected is None or abs(the_task.margin(scene)) < least:
            continue
        question = the_task.question(scene, the_task.variants()[0])
        agree.append(the_task.solve(scene, question, simulator) == expected)
    return float(np.mean(agree))


def engines(task: str, of: float, n: int = 36) -> float:
    """On how many of `of` items MuJoCo agrees with Bullet, from a small new set.

    Args:
        task: The task.
        of: What the share is multiplied by.
        n: Items of the new set.
    """
    from vlm_probe.stimuli.agreement import check
    from vlm_probe.stimuli.generate import make_set

    with tempfile.TemporaryDirectory() as folder:
        found = check(make_set(task, n, SEED, Path(folder) / "set", size=32), "mujoco")
    return of * sum(cell.agree for cell in found.cells) / sum(cell.n for cell in found.cells)


@functools.cache
def _fitted(model: str) -> Any:
    import pandas as pd

    from benchmarks import lme4_agreement
    from vlm_probe.analysis import fit

    trials = lme4_agreement.simulate_trials()
    trials["method"] = pd.Categorical(trials["method"], ["none", "sft", "ppo"])
    trials["shift"] = pd.Categorical(trials["shift"], ["none", "camera", "light"])
    settings = lme4_agreement.MODELS[model]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fit(settings["formula"], trials, family=settings.get("family", "gaussian"))


def lme4(model: str, what: str) -> float:
    """A fit of the simulated trials: its log-likelihood, or how far its fixed effects are from lme4's stored ones."""
    import pandas as pd

    from benchmarks import lme4_agreement

    found = _fitted(model)
    if what == "log_likelihood":
        return float(found.log_likelihood)
    stored = json.loads((ROOT / "tests" / "data" / "lme4_trials.json").read_text(encoding="utf-8"))[model]
    theirs = pd.DataFrame(stored["fixed"]).set_index("term")
    ours = found.coefficients.rename(index=lme4_agreement.as_in_r).loc[theirs.index]
    return float((np.abs(ours["estimate"] - theirs["estimate"]) / theirs["se"]).max())


def coverage(test: str, runs: int) -> float:
    """How often intervals cover the true effect, in a hundred simulated studies that no document's numbers come from."""
    return float(np.nanmean([row[f"{test}_covers"] for row in _replications(runs)]))


@functools.cache
def _replications(runs: int, n: int = 100) -> list[dict[str, float]]:
    from benchmarks import error_rates

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [error_rates.replicate(runs, 1_000_000 + number) for number in range(n)]


def fit_seconds() -> float:
    """CPU seconds of a logistic fit of 4,000 rows, once what is loaded late is loaded."""
    from benchmarks import mixed_effects
    from vlm_probe.analysis import fit

    case = mixed_effects.SIZES["glmm-4k"]
    data = mixed_effects.simulate(case["rows"], case["runs"], case["items"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(case["formula"], data.iloc[:400], family="binomial")
        begun = time.process_time()
        fit(case["formula"], data, family="binomial")
    return time.process_time() - begun


@functools.cache
def _tiny() -> Any:
    from vlm_probe.probes.tiny.evaluate import load

    return load()


def parameters() -> float:
    """Parameters of the embedded model, in millions."""
    return sum(p.numel() for p in _tiny().model.parameters()) / 1e6


def perception(family: str, ask: str, n: int = 64) -> float:
    """Share of right answers of the embedded model to a perceptual question, on images that nobody has seen."""
    from vlm_probe.probes.tiny.evaluate import accuracies

    return float(accuracies(_tiny(), family, n, seed=SEED, asks=[ask])[ask]["accuracy"])


@functools.cache
def _asked() -> set[str]:
    from benchmarks import leakage

    return set().union(*leakage.asked(STUDY).values())


def asked_scenes() -> float:
    """Scenes that the committed study has asked about."""
    return len(_asked())


@functools.cache
def _shared() -> Any:
    """What its tests share with a sample of its training runs: every family, every kind of question, the varied images."""
    from benchmarks import leakage
    from vlm_probe.finetune.data import FIRST_SEED

    registration = json.loads((STUDY / "registration.json").read_text(encoding="utf-8"))
    recipes = [r for r in leakage.training_recipes(registration) if r.seed == FIRST_SEED]
    tests = [s for r in leakage.test_recipes(STUDY) for s in leakage.drawn(r) if s.content_hash in _asked()]
    return leakage.shared((s for r in recipes for s in leakage.drawn(r)), _asked(), tests)


def shared_scenes() -> float:
    """Scenes asked about that a training run was shown, or whose mirror image or foil it was shown."""
    return float(_shared().scenes)


def shared_geometry() -> float:
    """Scenes asked about that are built as one that was trained on, or as its mirror image, in another look."""
    return float(_shared().alike)


def pretraining_scenes() -> float:
    """Scenes of the embedded model's pretraining, or mirror images of them, that are in a test or standard set."""
    from benchmarks import leakage
    from vlm_probe.stimuli.standard import STANDARD_SEED
    from vlm_probe.stimuli.tasks import task_names

    standard = [s for task in task_names() for s in leakage.drawn(leakage.Recipe(task, 100, STANDARD_SEED))]
    tests = _asked() | {scene.content_hash for scene in standard}
    return leakage.shared(leakage.pretrained(PRETRAINED), tests, ()).scenes


def irreproducible() -> float:
    """Files that come out differently when commands are given again: see `again.py`."""
    from benchmarks.kills import differing

    return len(differing())


def faults_after_kills() -> float:
    """Faults that a small campaign of kills finds: see `benchmarks/kills.py`."""
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "kills.py"),
        "kill",
        "--kills",
        str(KILLS),
        "--only",
        "probing",
        "generation",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode and "FAULTS" not in done.stdout:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return float(done.stdout.count("\n  "))


def learning_record() -> float:
    """Training runs of learning.json that the document states otherwise, or whose interval is not that of their counts."""
    from scipy.stats import binomtest

    text = (ROOT / "docs" / "learning.md").read_text(encoding="utf-8")
    wrong = 0
    for run in json.loads((ROOT / "docs" / "learning.json").read_text(encoding="utf-8")):
        if run.get("success") is None or not run.get("n"):
            continue
        right = round(run["success"] * run["n"])
        interval = binomtest(right, run["n"]).proportion_ci(method="wilson")
        same = np.allclose([interval.low, interval.high], run["interval"], atol=0.002)
        shown = f"{run['success']:.3f}".lstrip("0") or "0"
        stated = re.search(rf"(?<!\d){re.escape(shown)}", text)
        wrong += not (same and stated)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
