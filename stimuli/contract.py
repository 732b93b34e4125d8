"""The contract of a task: what every task must keep, as functions that say which requirements a task does not keep.

The tests run it over every registered task; `probe check my_package.my_module:MyTask` runs it over anybody's own.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from vlm_probe.stimuli import design
from vlm_probe.stimuli.picture import draw
from vlm_probe.stimuli.plain_json import parse
from vlm_probe.stimuli.question import PARAPHRASES, Answer, IntegerFormat, Question
from vlm_probe.stimuli.scene import Scene
from vlm_probe.stimuli.shifts import LEVELS, VISUAL, apply_alike
from vlm_probe.stimuli.simulators import BACKGROUND, FLOOR, get_simulator
from vlm_probe.stimuli.tasks import AMBIGUITY_BAND, SamplingFailed, Task

SIZE = 96
"""Edge of the images in which every object must be seen, pixels."""
TOLERATED_DISAGREEMENT = 0.05
"""Share of scenes outside the ambiguity band whose closed form and simulation may differ (sets leave them out)."""
TOLERATED_LEAK = 0.25
"""By how much more often prompts may name the right answer than a wrong one: numbers coincide by chance."""
TRIES = 20
"""Draws per group before a condition counts as impossible."""

# Replies of the kind that models give when they do not answer.
ODD_REPLIES = (
    "",
    " \n\t",
    "?",
    "I cannot tell.",
    "<answer></answer>",
    "<answer>",
    "<think>hm</think>",
    "nan",
    "1e999",
    "-",
    "9" * 5000,
    "0.5 cm, 1/2",
    "\x00\ufffd",
    "yes no yes no",
    "left and right",
)


@dataclass(frozen=True)
class Finding:
    """Something that a task does not keep: by which check it was found, what is wrong, and what to do."""

    check: str
    problem: str
    fix: str

    def __str__(self) -> str:
        return f"{self.problem} {self.fix}"


@dataclass(frozen=True)
class _Group:
    """A planned group with its scenes and the question about each of them."""

    plan: design.Group
    members: list[design.Member]
    questions: list[Question]

    @property
    def plain(self) -> list[design.Member]:
        """The base scene and its foils, without the mirror images."""
        return self.members[: len(self.members) // 2]


Check = Callable[[Task], Iterator[Finding]]


class _Impossible(Exception):
    """A condition of the design on which nothing could be sampled."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"no scene could be sampled on the condition {code}: {reason}.")


def check_task(task: Task, progress: Callable[[int, int], None] | None = None) -> list[Finding]:
    """Everything in the contract that a task does not keep; empty if it keeps it all.

    Args:
        task: The task; it need not be registered.
        progress: Called with (checks done, checks in all).
    """
    found: list[Finding] = []
    for number, name in enumerate(CHECKS):
        if progress is not None:
            progress(number, len(CHECKS))
        found += run_check(name, task)
        if name == "description" and found:
            break  # nothing else can be relied on
    if progress is not None:
        progress(len(CHECKS), len(CHECKS))
    return found


def run_check(name: str, task: Task) -> list[Finding]:
    """What one of the `CHECKS` finds; an exception from the task's own code is a finding, too.

    Args:
        name: Of the check.
        task: The task; it need not be registered.

    Raises:
        KeyError: If there is no such check.
    """
    try:
        return list(CHECKS[name](task))
    except _Impossible as error:
        fix = "Leave the condition out of conditions(), or make sample_matched find one; it may raise Unsatisfiable now and then only."
        return [Finding(name, str(error), fix)]
    except Exception as error:  # the task's code is not ours and may raise anything
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}, line {where.lineno}, in {where.name}"
        problem = f"{type(error).__name__} was raised ({place}): {error or 'no message'}."
        return [Finding(name, problem, "No method of a task may fail on scenes and questions of its own.")]


def check_description(task: Task) -> Iterator[Finding]:
    """Name, family, kind and version are stated; there are conditions and wordings."""
    name = "description"
    for attribute in ("name", "family", "kind"):
        if not getattr(task, attribute, None):
            yield Finding(name, f"the class attribute `{attribute}` is missing.", f"State it: {attribute} = ...")
            return
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", task.name) or not task.name.startswith(f"{task.family}-"):
        problem = f"the name {task.name!r} is not of the form family-question."
        yield Finding(name, problem, f"Call it, say, {task.family}-question in lower case.")
    if task.kind not in ("judgement", "action", "grounding"):
        yield Finding(name, f"the kind {task.kind!r} does not exist.", "Use judgement, action or grounding.")
    if task.version < 1:
        yield Finding(name, f"the version is {task.version}.", "Count from 1.")
    if not task.conditions() or not task.variants():
        yield Finding(name, "conditions() or variants() is empty.", "A set needs at least one of both.")


def check_sampling(task: Task) -> Iterator[Finding]:
    """The same seed gives the same scenes, and a scene survives its JSON."""
    first = [m.scene for group in groups(task, 6) for m in group.members]
    second = [m.scene for group in groups(task, 6) for m in group.members]
    if first != second:
        problem = "the same seed gave other scenes the second time."
        yield Finding(
            "sampling", problem, "Draw everything from the `rng` that sample_matched is given, and from nothing else."
        )
    for scene in first:
        if Scene.from_dict(parse(scene.to_json())) != scene:
            problem = "a scene is not the same after it was written as JSON and read back."
            fix = "Give plain Python floats in tuples, not numpy numbers or lists: float(x), tolist(), round(float(x), 3)."
            yield Finding("sampling", problem, fix)
            return


def check_margins(task: Task) -> Iterator[Finding]:
    """The margin of a scene lies in the bin that was asked for (grounding has no margin)."""
    if task.kind == "grounding":
        return
    for group in groups(task, 8):
        for member in group.plain:
            low, high = member.condition.margin_bin
            margin = task.margin(member.scene)
            if not low <= margin <= high:
                problem = f"a scene on the condition {member.condition.code} ({member.role}) has margin {margin:+.3f}."
                fix = f"It must lie in {low} to {high}: sample_matched keeps only such scenes; foil_condition states the foils' bin."
                yield Finding("margins", problem, fix)
                return


def check_answers(task: Task) -> Iterator[Finding]:
    """The solution can be said in words, is worth 1, and is what the closed form gives; so is the expert's."""
    compared = differing = 0
    example = ""
    for group in groups(task, 8):
        for member, question in zip(group.members, group.questions, strict=True):
            scene, code = member.scene, member.condition.code
            answer = task.solve(scene, question)
            try:
                said = question.reply(answer)
            except ValueError as error:
                fix = "Widen the range of the grammar, or sample only scenes whose solution is in it."
                yield Finding("answers", f"solve gave {answer!r} on {code}, which is not a legal answer: {error}.", fix)
                return
            if question.parse(said).value != answer:
                problem = f"solve gave {answer!r}, but the reply {said!r} is read as {question.parse(said).value!r}."
                fix = "solve must give the option's value (not its text), an int, or a tuple of two ints."
                yield Finding("answers", problem, fix)
                return
            score = task.score(scene, question, answer)
            if score.reward != 1.0:
                problem = f"the solution {answer!r} of a scene on {code} gets a reward of {score.reward:.3f}."
                yield Finding("answers", problem, "solve and score must agree: what solve gives has to be worth 1.")
                return
            expert = task.demonstrate(scene, question, np.random.default_rng(0))
            if not task.score(scene, question, expert).success:
                problem = (
                    f"the expert (demonstrate) answered {expert!r} on {code}, and score does not count it as a success."
                )
                yield Finding("answers", problem, "demonstrate must always give an answer with reward 1.")
                return
            closed = task.statics_answer(scene)
            if closed is not None and abs(task.margin(scene)) > AMBIGUITY_BAND:
                compared += 1
                if closed != answer:
                    differing += 1
                    example = example or f"{code}, margin {task.margin(scene):+.3f}: {closed!r} against {answer!r}"
    if differing > TOLERATED_DISAGREEMENT * compared:
        problem = f"the closed form (statics_answer) and solve differ on {differing} of {compared} scenes outside the band ({example})."
        fix = "One of them is wrong, or the margin is scaled such that more than |margin| < 0.1 is undecided."
        yield Finding("answers", problem, fix)


def check_scores(task: Task) -> Iterator[Finding]:
    """The scorer is bounded, pure and total, and reward 1 means success."""
    rng = np.random.default_rng(0)
    for group in groups(task, 3):
        scene, question = group.members[0].scene, group.questions[0]
        candidates = question.grammar.candidates()
        picked = rng.choice(len(candidates), min(8, len(candidates)), replace=False)
        answers = [task.solve(scene, question), *(candidates[i][1] for i in picked)]
        truth = answers[0]
        for answer in answers:
            score = task.score(scene, question, answer)
            if not 0.0 <= score.reward <= 1.0:
                problem = f"the answer {answer!r} gets a reward of {score.reward}."
                yield Finding("scores", problem, "Rewards lie in 0 to 1: clip or rescale them in score.")
                return
            if (score.reward == 1.0) != score.success:
                problem = f"the answer {answer!r} has success = {score.success} and reward {score.reward}."
                yield Finding("scores", problem, "A reward of 1 means success, and success a reward of exactly 1.")
                return
            if task.score(scene, question, answer) != score:
                problem = f"the answer {answer!r} was scored twice and got two different scores."
                fix = "score must depend on scene, question and answer alone: no random numbers, no state."
                yield Finding("scores", problem, fix)
                return
            if task.kind == "judgement" and score.reward != float(answer == truth):
                problem = f"the answer {answer!r} gets {score.reward}, where solve says {truth!r}."
                yield Finding("scores", problem, "A judgement is worth 1 if it is what solve gives, and 0 otherwise.")
                return
        foreign: tuple[Answer, ...] = (0, (0, 0)) if not isinstance(truth, int | tuple) else ("nonsense",)
        for answer in foreign:
            if task.score(scene, question, answer).success:
                problem = f"an answer of another form, {answer!r}, counts as a success."
                yield Finding("scores", problem, "Check the form of the answer first, and give Score(False, 0.0).")
                return


def check_mirror(task: Task) -> Iterator[Finding]:
    """In the mirror image the margin is the same (or of the other sign) and the answer mirrored."""
    for group in groups(task, 6):
        half = len(group.plain)
        pairs = zip(group.plain, group.members[half:], group.questions, group.questions[half:], strict=False)
        for plain, mirrored, question, other in pairs:
            margin = task.margin(plain.scene)
            expected = -margin if task.signed_side else margin
            found = task.margin(mirrored.scene)
            if abs(found - expected) > 1e-9:
                problem = (
                    f"a scene on {plain.condition.code} has margin {margin:+.4f} and its mirror image {found:+.4f}."
                )
                fix = (
                    "margin must treat both sides alike."
                    if not task.signed_side
                    else "signed_side says that the margin's sign is a side, so that it must change in the mirror."
                )
                yield Finding("mirror", problem, fix)
                return
            answer = task.solve(plain.scene, question)
            if task.kind == "action":
                # The middle of an even number of working answers is not symmetric: compare by what works.
                right = task.score(mirrored.scene, other, task.mirrored(answer)).success
            else:
                right = not isinstance(answer, str) or task.solve(mirrored.scene, other) == task.mirrored(answer)
            if not right:
                problem = f"{answer!r} is right on {plain.condition.code}, but {task.mirrored(answer)!r} is wrong on its mirror image."
                fix = (
                    "Measure distances to the right from the centre or the object that is moved, or define mirrored()."
                )
                yield Finding("mirror", problem, fix)
                return


def check_foils(task: Task) -> Iterator[Finding]:
    """A foil differs from its base scene in one body, and in the answer."""
    for group in groups(task, 6):
        base = group.members[0]
        for foil in group.plain[1:]:
            if [b.name for b in base.scene.bodies] != [b.name for b in foil.scene.bodies]:
                problem = f"a foil on {base.condition.code} has other bodies than its base scene."
                yield Finding("foils", problem, "Base and foil have the same bodies in the same order.")
                return
            changed = [a.name for a, b in zip(base.scene.bodies, foil.scene.bodies, strict=True) if a != b]
            if len(changed) != 1:
                what = f"in {len(changed)} bodies ({', '.join(changed)})" if changed else "in no body"
                problem = f"a foil on {base.condition.code} differs from its base scene {what}."
                yield Finding("foils", problem, "A minimal pair differs in exactly one body: keep everything else.")
                return
            # Markers may show what changed; all else is the same.
            same = [replace(m.scene, bodies=(), markers=(), pushes=()) for m in (base, foil)]
            if same[0] != same[1]:
                fix = "Share them: draw camera, light and background once per group."
                yield Finding("foils", f"a foil on {base.condition.code} has another camera, light or background.", fix)
                return
            answer = task.solve(base.scene, group.questions[0])
            if answer == task.solve(foil.scene, group.questions[0]):
                problem = f"a foil on {base.condition.code} has the same answer as its base scene, {answer!r}."
                fix = "The one body that differs has to decide the outcome: take the foil from the other side of the boundary."
                yield Finding("foils", problem, fix)
                return


def check_picture(task: Task) -> Iterator[Finding]:
    """Every body and marker is inside the image and to be seen in it."""
    for group in groups(task, 12, seed=3):
        for member in group.members:
            finding = _out_of_sight(member.scene, member.condition.code)
            if finding is not None:
                yield finding
                return


def check_shifted_picture(task: Task) -> Iterator[Finding]:
    """Every object stays inside the image at every level of every visual shift."""
    for group in groups(task, 4, seed=3):
        scenes = [member.scene for member in group.plain]
        for name, level in product(VISUAL, LEVELS):
            for scene in apply_alike(scenes, ((name, level),), np.random.default_rng([group.plan.index, level])):
                finding = _out_of_sight(scene, f"{group.plan.condition.code} with the shift {name}:{level}")
                if finding is not None:
                    yield replace(finding, check="shifted picture")
                    return


def check_prompts(task: Task) -> Iterator[Finding]:
    """There are four wordings, foils share their prompt, no prompt tells the answer, and reasoning can be asked for."""
    for group in groups(task, 2):
        scene = group.members[0].scene
        variants = [replace(v, ask=group.plan.variant.ask, detail=group.plan.variant.detail) for v in task.variants()]
        wordings = {task.question(scene, replace(v, order=0, polarity=0)).prompt for v in variants}
        if len(wordings) < PARAPHRASES:
            problem = f"the question comes in {len(wordings)} wording(s)."
            yield Finding("prompts", problem, f"question must give {PARAPHRASES} of them, by variant.paraphrase.")
            return
        prompts = {task.question(m.scene, group.plan.variant).prompt for m in group.plain}
        # Where the prompt itself states the weights, foils may have the same image and other weights.
        if len(prompts) != 1 and scene.shown != "text":
            problem = "foils are asked in other words than their base scene, so that the prompt tells them apart."
            fix = 'Ask all members of a group alike; if the prompt has to state a quantity, set shown="text" in the scene.'
            yield Finding("prompts", problem, fix)
            return
        think = task.question(scene, replace(variants[0], style="think")).prompt
        if "<think>" not in think or "<answer>" not in think:
            fix = 'Add vlm_probe.stimuli.question.THINK to the prompt where variant.style is "think".'
            yield Finding("prompts", "the style think does not ask for <think> and <answer>.", fix)
            return
    for group in groups(task, 2, seed=1):
        asked = _asked_alike(task, group.plan)
        right = [_named(answer, question) for question, answer in asked]
        wrong = [_named(other, question) for question, answer in asked for other in _others(question, answer, asked)]
        # A prompt may name every option; it may not name the right one more often than the wrong ones.
        if wrong and np.mean(right) - np.mean(wrong) > TOLERATED_LEAK:
            example = next(question.prompt for (question, _), told in zip(asked, right, strict=True) if told)
            problem = (
                f"prompts name the right answer {np.mean(right):.2f} times on average, and a wrong one"
                f" {np.mean(wrong):.2f} times (for example {example!r})."
            )
            yield Finding("prompts", problem, "The question must not depend on the answer.")
            return


def check_replies(task: Task) -> Iterator[Finding]:
    """Whatever is replied is parsed without an exception, and odd replies are not read as answers."""
    group = next(groups(task, 1))
    for question in group.questions[:1]:
        legal = {text.lower() for text, _ in question.grammar.candidates()}
        for reply in ODD_REPLIES:
            parsed = question.parse(reply)
            if (parsed.status == "ok") != (parsed.value is not None) or (
                parsed.value is not None and reply not in legal
            ):
                problem = f"the reply {reply[:40]!r} is read as {parsed.value!r} ({parsed.status})."
                yield Finding(
                    "replies", problem, "Use the grammars of vlm_probe.stimuli.question, which read strictly."
                )
                return


def check_actions(task: Task) -> Iterator[Finding]:
    """Of an action, the wrong sign fails, and so does the first naive rule."""
    if task.kind != "action":
        return
    if not task.rules():
        problem = "rules() names no naive answer."
        yield Finding(
            "actions", problem, "State what somebody without physics would do; sampled items have to defeat it."
        )
        return
    for group in groups(task, 6, seed=5):
        scene, question, code = group.members[0].scene, group.questions[0], group.members[0].condition.code
        if not isinstance(question.grammar, IntegerFormat):
            yield Finding(
                "actions", "the answers of an action are words.", "Actions are one or two whole numbers: Integers."
            )
            return
        answer = task.solve(scene, question)
        wrong = task.mirrored(answer)
        if task.score(scene, question, wrong).success:
            problem = f"on {code} both {answer!r} and the answer with the other sign, {wrong!r}, work."
            yield Finding("actions", problem, "Sample scenes that need a definite direction.")
            return
        name, rule = next(iter(task.rules().items()))
        if task.score(scene, question, rule(scene)).success:
            problem = f"on {code} the naive answer {rule(scene)!r} ({name}) works."
            yield Finding("actions", problem, "Sample scenes on which the first of rules() fails.")
            return


CHECKS: dict[str, Check] = {
    "description": check_description,
    "sampling": check_sampling,
    "margins": check_margins,
    "answers": check_answers,
    "scores": check_scores,
    "mirror": check_mirror,
    "foils": check_foils,
    "picture": check_picture,
    "shifted picture": check_shifted_picture,
    "prompts": check_prompts,
    "replies": check_replies,
    "actions": check_actions,
}
"""Every check by its name."""


def groups(task: Task, count: int, seed: int = 0) -> Iterator[_Group]:
    """The first groups of a task's design, with the question about every member.

    Raises:
        _Impossible: If no group can be found on a condition.
    """
    for plan in design.plan(task, count, seed):
        reason = "Unsatisfiable"
        for attempt in range(TRIES):
            try:
                members = design.members(task, plan, design.group_rng(task, seed, plan.index, attempt))
                questions = [task.question(m.scene, plan.variant) for m in members]
            except (SamplingFailed, ValueError) as error:
                reason = str(error)
                continue
            yield _Group(plan, members, questions)
            break
        else:
            raise _Impossible(plan.condition.code, reason)


def _out_of_sight(scene: Scene, where: str) -> Finding | None:
    """What is wrong with where the objects of a scene are in its image, if anything is."""
    mask = draw(get_simulator(), replace(scene, panels=()), SIZE).segmentation
    border = set(np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).tolist()) - {FLOOR, BACKGROUND}
    things = [body.name for body in scene.bodies] + [marker.name for marker in scene.markers]
    fix = "Sample smaller scenes, move the camera away (Camera.distance), or aim it better (Camera.target)."
    if border:
        named = ", ".join(things[i] for i in sorted(border))
        return Finding("picture", f"on {where}, {named} reaches the edge of the picture.", fix)
    hidden = [name for i, name in enumerate(things) if not (mask == i).any()]
    if hidden:
        return Finding("picture", f"on {where}, {', '.join(hidden)} cannot be seen at {SIZE} pixels.", fix)
    return None


def _asked_alike(task: Task, plan: design.Group) -> list[tuple[Question, Answer]]:
    """The same wording about several groups of scenes on one condition, with the right answers."""
    found = []
    for attempt in range(6):
        try:
            members = design.members(task, plan, design.group_rng(task, 99, plan.index, attempt))
            questions = [task.question(m.scene, plan.variant) for m in members]
        except (SamplingFailed, ValueError):
            continue
        found += [(q, task.solve(m.scene, q)) for m, q in zip(members, questions, strict=True)]
    return found


def _others(question: Question, answer: Answer, asked: list[tuple[Question, Answer]]) -> list[Answer]:
    """Wrong answers to a question: its other options, or the numbers that are right about other scenes."""
    if isinstance(question.grammar, IntegerFormat):
        return [other for _, other in asked if other != answer]
    return [value for _, value in question.grammar.candidates() if value != answer]


def _named(answer: Answer, question: Question) -> int:
    """How often a prompt states an answer, as it is written."""
    try:
        text = question.grammar.text(answer)
    except ValueError:  # right elsewhere, and not even legal here
        return 0
    return len(re.findall(rf"(?<![\w.-]){re.escape(text)}(?![\w]|\.\d)", question.prompt, re.IGNORECASE))
