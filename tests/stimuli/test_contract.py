"""The contract finds what is broken and says it in plain words: on the example family, and on variants of it that break one thing each."""

import dataclasses
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from vlm_probe.probes.cli import main
from vlm_probe.stimuli.contract import CHECKS, run_check
from vlm_probe.stimuli.question import ChoiceFormat, Option, Question
from vlm_probe.stimuli.scene import Camera, Marker
from vlm_probe.stimuli.simulators import get_simulator
from vlm_probe.stimuli.tasks import SamplingFailed, Score, get_task
from vlm_probe.stimuli.tasks.towers.topblock import TowersTopblock

EXAMPLE = Path(__file__).parents[2] / "examples" / "inclined_plane"
sys.path.insert(0, str(EXAMPLE))
try:
    from inclined_plane import InclineSlide
finally:
    sys.path.remove(str(EXAMPLE))


class Nameless(InclineSlide):
    name = "incline"


class Unsteady(InclineSlide):
    def sample_matched(self, rng, condition):
        return super().sample_matched(np.random.default_rng(), condition)


class Numpy(InclineSlide):
    def sample_matched(self, rng, condition):
        base, foil = super().sample_matched(rng, condition)
        return tuple(dataclasses.replace(scene, camera=Camera(list(scene.camera.target))) for scene in (base, foil))


class OffBin(InclineSlide):
    def margin(self, scene):
        return 2 * super().margin(scene)


class WrongForm(InclineSlide):
    def solve(self, scene, question, simulator=None):
        return {"slides": "yes", "stays": "no"}[super().solve(scene, question, simulator)]


class WrongStatics(InclineSlide):
    def statics_answer(self, scene):
        return "slides" if self.margin(scene) > 0 else "stays"


class BadExpert(InclineSlide):
    def demonstrate(self, scene, question, rng):
        return "stays"


class Generous(InclineSlide):
    def score(self, scene, question, answer, simulator=None):
        return Score(True, 2.0) if answer == self.solve(scene, question) else Score(False, -1.0)


class Lenient(InclineSlide):
    def score(self, scene, question, answer, simulator=None):
        score = super().score(scene, question, answer, simulator)
        return score if score.success else Score(False, 0.5)


class Moody(InclineSlide):
    calls = 0

    def score(self, scene, question, answer, simulator=None):
        score = super().score(scene, question, answer, simulator)
        Moody.calls += 1
        return dataclasses.replace(score, detail={"calls": Moody.calls})


class OneSided(InclineSlide):
    def margin(self, scene):
        return super().margin(scene) + 0.01 * scene.camera.yaw * 1e-3


class SameFoil(InclineSlide):
    def sample_matched(self, rng, condition):
        base, _ = super().sample_matched(rng, condition)
        box = dataclasses.replace(base.body("box"), colour="purple", shade=0.5)
        return base, dataclasses.replace(base, bodies=(base.body("ramp"), box))

    def foil_condition(self, condition):
        return condition


class TwoChanges(InclineSlide):
    def sample_matched(self, rng, condition):
        base, foil = super().sample_matched(rng, condition)
        return base, dataclasses.replace(
            foil, bodies=tuple(dataclasses.replace(body, shade=0.7) for body in foil.bodies)
        )


class TooClose(InclineSlide):
    def sample_matched(self, rng, condition):
        scenes = super().sample_matched(rng, condition)
        return tuple(dataclasses.replace(s, camera=dataclasses.replace(s.camera, distance=0.4)) for s in scenes)


class Hiding(InclineSlide):
    def sample_matched(self, rng, condition):
        behind = Marker("coin", "cylinder", (0.01, 0.01, 0.01), (0.0, 0.0, -0.2), "white")
        return tuple(dataclasses.replace(s, markers=(behind,)) for s in super().sample_matched(rng, condition))


class Monotonous(InclineSlide):
    def question(self, scene, variant):
        return super().question(scene, dataclasses.replace(variant, paraphrase=0))


class Telling(InclineSlide):
    def question(self, scene, variant):
        question = super().question(scene, variant)
        options = ChoiceFormat((Option("alpha", "slides"), Option("beta", "stays")))
        hint = "alpha" if self.margin(scene) < 0 else "beta"
        return Question(question.prompt.replace("Answer", f"Hint: {hint}. Answer"), options, question.style)


class Undisclosed(InclineSlide):
    def sample_matched(self, rng, condition):
        return tuple(dataclasses.replace(s, shown="") for s in super().sample_matched(rng, condition))


class Thoughtless(InclineSlide):
    def question(self, scene, variant):
        return super().question(scene, dataclasses.replace(variant, style="direct"))


class Crashing(InclineSlide):
    def margin(self, scene):
        return 1 / (len(scene.bodies) - 2)


class Impossible(InclineSlide):
    def sample_matched(self, rng, condition):
        raise SamplingFailed("there are no such ramps")


class Ruleless(TowersTopblock):
    def rules(self):
        return {}


class EasyRule(TowersTopblock):
    def rules(self):
        return {"the solution": lambda scene: self.solve(scene, None)}


class Hinting(TowersTopblock):
    def question(self, scene, variant):
        question = super().question(scene, variant)
        return dataclasses.replace(question, prompt=f"{question.prompt} (Not {self.solve(scene, question)}!)")


BROKEN = [
    (Nameless, "description", "the name 'incline' is not of the form family-question"),
    (Unsteady, "sampling", "the same seed gave other scenes"),
    (Numpy, "sampling", "not the same after it was written as JSON"),
    (OffBin, "margins", "has margin"),
    (WrongForm, "answers", "which is not a legal answer"),
    (WrongStatics, "answers", "the closed form (statics_answer) and solve differ on"),
    (BadExpert, "answers", "the expert (demonstrate) answered 'stays'"),
    (Generous, "scores", "gets a reward of 2.0. Rewards lie in 0 to 1"),
    (Lenient, "scores", "A judgement is worth 1 if it is what solve gives, and 0 otherwise"),
    (Moody, "scores", "scored twice and got two different scores"),
    (OneSided, "mirror", "margin must treat both sides alike"),
    (SameFoil, "foils", "has the same answer as its base scene"),
    (TwoChanges, "foils", "differs from its base scene in 2 bodies (ramp, box)"),
    (TooClose, "picture", "reaches the edge of the picture"),
    (Hiding, "picture", "coin cannot be seen at 96 pixels"),
    (Monotonous, "prompts", "the question comes in 1 wording(s)"),
    (Telling, "prompts", "prompts name the right answer 1.00 times on average, and a wrong one 0.00 times"),
    (Hinting, "prompts", "prompts name the right answer"),
    (Undisclosed, "prompts", "foils are asked in other words"),
    (Thoughtless, "prompts", "the style think does not ask"),
    (Crashing, "margins", "ZeroDivisionError was raised (test_contract.py, line"),
    (Impossible, "sampling", "no scene could be sampled on the condition n1_m+0.1"),
    (Ruleless, "actions", "rules() names no naive answer"),
    (EasyRule, "actions", "works. Sample scenes on which the first of rules() fails"),
]


@pytest.mark.parametrize(("task", "check", "sentence"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_broken_is_found_and_said(task, check, sentence):
    findings = run_check(check, task())
    assert len(findings) == 1
    assert findings[0].check == check
    assert sentence in str(findings[0])
    assert findings[0].fix.endswith(".")


def test_a_shift_that_carries_an_object_out_of_the_picture_is_found(monkeypatch):
    def closer(scenes, shifts, rng):
        return tuple(dataclasses.replace(s, camera=dataclasses.replace(s.camera, distance=0.3)) for s in scenes)

    monkeypatch.setattr("vlm_probe.stimuli.contract.apply_alike", closer)
    finding = run_check("shifted picture", InclineSlide())[0]
    assert "with the shift colour:1" in finding.problem
    assert finding.check == "shifted picture"


def test_statics_of_the_example_agree_with_both_engines():
    pytest.importorskip("mujoco")
    task, rng = InclineSlide(), np.random.default_rng(1)
    for number in range(18):
        for scene in task.sample_matched(rng, task.conditions()[number % 2]):
            for engine in ("pybullet", "mujoco"):
                assert task.solve(scene, None, get_simulator(engine)) == task.statics_answer(scene)


def test_the_command_says_what_is_wrong_and_exits_with_1(tmp_path, monkeypatch, capsys):
    def probe(place):
        with pytest.raises(SystemExit) as ended:
            main(["check", place])
        return ended.value.code, *capsys.readouterr()

    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine.py").write_text(
        f"import sys\nsys.path.insert(0, {str(EXAMPLE)!r})\nfrom inclined_plane import InclineSlide\n"
        "class Mine(InclineSlide):\n    def demonstrate(self, scene, question, rng):\n        return 'stays'\n"
        "class Half(InclineSlide.__base__):\n    name = 'incline-half'\n"
    )
    monkeypatch.chdir(EXAMPLE)
    code, out, told = probe("inclined_plane:InclineSlide")
    assert (code, out.strip()) == (0, f"incline-slide keeps the contract ({len(CHECKS)} checks)")
    assert "checking inclined_plane:InclineSlide" in told
    monkeypatch.chdir(tmp_path)
    code, out, _ = probe("mine:Mine")
    assert code == 1
    assert "answers: the expert (demonstrate) answered 'stays'" in out
    for place, message in [
        ("mine:Mime", "did you mean Mine"),
        ("mine:Half", "does not define conditions, foil_condition, margin"),
        ("nothing:Mine", "there is no module 'nothing'"),
        ("mine.py", "write module:Class"),
        ("tower-stability", "did you mean towers-stability"),
    ]:
        code, _, told = probe(place)
        assert code in (1, 2)
        assert message in told


def test_the_entry_point_of_the_example_registers_it(tmp_path, monkeypatch):
    stated = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    info = tmp_path / "inclined_plane-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {stated['name']}\nVersion: {stated['version']}\n")
    points = stated["entry-points"]["probe.tasks"]
    text = "\n".join(f"{name} = {place}" for name, place in points.items())
    (info / "entry_points.txt").write_text(f"[probe.tasks]\n{text}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(EXAMPLE))
    try:
        assert get_task("incline-slide").family == "incline"
        from vlm_probe.stimuli.generate import make_set

        made = make_set("incline-slide", 24, 0, tmp_path / "set", size=64)
        assert made.card["labels"] == {"slides": 12, "stays": 12}
        assert made.card["agreement"]["disagreements"] == 0
    finally:
        get_task.cache_clear()
