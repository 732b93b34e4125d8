"""What the simulator says of a trial, in four moments: what happens to the scene, or what an answer does to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from PIL import Image

from vlm_probe.analysis.material import kind_of
from vlm_probe.analysis.page.pictures import encoded
from vlm_probe.analysis.page.trials import Shown, is_mirrored
from vlm_probe.stimuli.dataset import Item
from vlm_probe.stimuli.picture import draw
from vlm_probe.stimuli.ranges import MOTIONS
from vlm_probe.stimuli.simulators import Outcome, Simulator, get_simulator
from vlm_probe.stimuli.tasks import get_task

MOMENTS = 4
EDGE, GAP = 112, 4
"""Pixels of one moment, and between two."""


@dataclass(frozen=True)
class Motion:
    """Four moments side by side, and the facts of the simulation.

    Attributes:
        picture: The moments in a row, as base64 of WebP.
        words: Engine, simulated time, and whether it agrees with the score in the log.
    """

    picture: str
    words: str


def motion_key(trial: Shown) -> str:
    """What a motion belongs to: the item, and for actions the answer that is carried out; empty if nothing can be shown."""
    if is_mirrored(trial):
        return ""
    answer = trial.answer if kind_of(trial.task) == "action" else ""
    return f"{trial.stimuli} {trial.item} {answer}"


class Motions:
    """Simulations of at most so many scenes and answers; asked again, each is simulated once.

    Args:
        most: How many; 0 for none, and no engine is loaded.

    Raises:
        OutOfRange: If the number is.
    """

    def __init__(self, most: int) -> None:
        MOTIONS.check("motions", most)
        self.most = most
        self._found: dict[str, Motion | None] = {}

    def collect(self, trials: Iterable[Shown], items: Mapping[tuple[str, str], Item]) -> dict[str, Motion]:
        """Motions of trials by `motion_key`: tests in turn, whole groups of each, so that pairs can be compared.

        Args:
            trials: Those of the page.
            items: (hash of the set, item) -> item, of the sets that are there.
        """
        wanted: dict[str, dict[str, Shown]] = {}
        for trial in trials:
            item = items.get((trial.stimuli, trial.item))
            kind = kind_of(trial.task)
            # In other manners the model saw something else than what the item's scene shows.
            if item is None or trial.manner or trial.outcome == "failed":
                continue
            if (kind == "action" and trial.answer is not None) or (kind == "judgement" and _plays_on(item)):
                wanted.setdefault(f"{trial.task} {trial.shift}", {}).setdefault(motion_key(trial), trial)
        queues = [sorted(test.items(), key=lambda pair: (pair[1].group or "", pair[0])) for test in wanted.values()]
        share = self.most // max(len(queues), 1)
        found = {}
        for queue in queues:
            for key, trial in queue[:share]:
                if key not in self._found:
                    self._found[key] = _motion(trial, items[(trial.stimuli, trial.item)], _engine())
                if (motion := self._found[key]) is not None:
                    found[key] = motion
        return found


def _plays_on(item: Item) -> bool:
    """Whether the scene's own course answers the question, rather than what came before, or what would follow a change."""
    return item.scene is not None and not get_task(item.task).held_out


@cache
def _engine() -> Simulator:
    return get_simulator()


def _motion(trial: Shown, item: Item, simulator: Simulator) -> Motion | None:
    """One simulation; None where the answer leaves nothing to simulate."""
    task = get_task(item.task)
    assert item.scene is not None  # `collect` asks for no other
    scene = item.scene
    words = [simulator.version()]
    outcome: Outcome | None
    if kind_of(item.task) == "action":
        answer, _ = item.question.grammar.read(trial.answer or "")
        if answer is None:
            return None
        score = task.score(scene, item.question, answer, simulator)
        outcome, scene = score.outcome, task.apply(scene, answer)
        if outcome is None:
            return None
        words.append("the answer carried out")
        if score.success != (trial.outcome == "right"):
            words.append(f"here it {'works' if score.success else 'does not work'}, unlike in the log: another engine?")
    else:
        outcome = simulator.simulate(scene)
    words.insert(1, f"{outcome.duration:g} s, when it was decided" if outcome.decided else f"{outcome.duration:g} s")
    last = len(outcome.times) - 1
    frames = [round(last * moment / (MOMENTS - 1)) for moment in range(MOMENTS)]
    strip = Image.new("RGB", (MOMENTS * (EDGE + GAP) - GAP, EDGE), "white")
    for moment, frame in enumerate(frames):
        picture = draw(simulator, scene, EDGE, outcome.poses(frame)).rgb
        strip.paste(Image.fromarray(picture), (moment * (EDGE + GAP), 0))
    return Motion(encoded(strip, strip.width), ", ".join(words))
