"""The interactive environment: look at a scene, act, see what happened, perhaps try again. Gymnasium's interface.

Importing this module registers `VLMProbe/TowersTopblock-v1` and its like, one for every action task, plug-ins included:

    import gymnasium, vlm_probe.stimuli.environment
    env = gymnasium.make("VLMProbe/TowersTopblock-v1", max_attempts=3, memory="all")

or in one step, `gymnasium.make("vlm_probe.stimuli.environment:VLMProbe/TowersTopblock-v1")`.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
from gymnasium import spaces

from vlm_probe.stimuli.attempts import Pixels, carry_out, remembered
from vlm_probe.stimuli.condition import Condition
from vlm_probe.stimuli.dataset import Item
from vlm_probe.stimuli.errors import InvalidInput
from vlm_probe.stimuli.outcomes import DEFAULT_SIZE, OutcomeCache, shared_cache
from vlm_probe.stimuli.picture import draw, find_renderer, painter, staged
from vlm_probe.stimuli.question import Answer, IntegerFormat, Parsed, Question, Variant
from vlm_probe.stimuli.ranges import ATTEMPTS, IMAGE_SIZE, Range
from vlm_probe.stimuli.scene import Scene, mirror
from vlm_probe.stimuli.shifts import apply as apply_shifts
from vlm_probe.stimuli.shifts import check as check_shifts
from vlm_probe.stimuli.shifts import parse_shifts, shifted_condition
from vlm_probe.stimuli.simulators import BACKGROUND, STATE, Frame, body_states
from vlm_probe.stimuli.spaces import PROBED_CONDITIONS, answer_space, prompt_space, reply_space, to_action, to_answer
from vlm_probe.stimuli.tasks import SamplingFailed, Task, get_task, task_names

NAMESPACE = "VLMProbe"
MAX_DRAWS = 30
"""Draws per reset before a condition counts as impossible."""
EMPTY, ANSWERED, UNREAD = 0, 1, 2
"""Status of a place in the memory: nothing there yet, an answer, a reply that could not be read."""
SPARE_BODIES = 2
"""Rows that a state has beyond the most bodies seen while trying out the conditions."""
LIMIT = 1e4
"""Bound of depths and of the numbers of a state, in SI units: spaces are to be finite."""
VIEWS = ("image", "segmentation", "depth", "state")
"""Ways in which an observation can show the scene."""

Observation = dict[str, Any]


@dataclass(frozen=True)
class _Attempt:
    """One earlier attempt: the image that was seen, and the answer to it (None if it could not be read)."""

    picture: Pixels
    answer: Answer | None


@dataclass(frozen=True)
class _Posed:
    """A scene with its question and the code of its condition."""

    scene: Scene
    question: Question
    code: str


class PhysicsEnv(gymnasium.Env[Observation, Any]):
    """One action task as an environment. Every attempt starts from the scene of the episode as it was at its start.

    An observation is a dictionary:
        image: (size, size, 3) uint8. At first the scene; after an attempt, what happened.
        segmentation: (size, size) int32, with that view: the number of the body (and after those of the markers) that a pixel shows, -1 for
            the floor, -2 for the background.
        depth: (size, size) float32, with that view: metres along the viewing axis.
        state: (bodies, 19) float32, with that view: a row for every body with the columns `vlm_probe.stimuli.simulators.STATE`, and rows of
            zeros up to the largest number of bodies.
        prompt: The question.
        attempts_left: From `max_attempts` down to 0.
        previous_images: (k, size, size, 3) uint8, what was seen before each earlier attempt, the earliest first.
        previous_answers: (k, numbers) int32, what was answered then.
        previous_status: (k,) `EMPTY`, `ANSWERED`, or `UNREAD`, for the places of the two above.
    The last three are there only with a memory; k is 1, 2, ... for "last-1", "last-2", ..., and `max_attempts` for "all".

    The reward of an attempt is that of the task's scorer, in [0, 1] and 1 on success, times `discount` to the power of
    the attempts made before. An episode ends on success or when no attempt is left; it is never truncated.

    `info` holds after a reset: task, condition, margin, scene_sha256; after a step also: answer (as text), status (of the parser),
    success, score (the reward before the discount), simulated (whether the image shows a simulation, or the answer as
    it was carried out but could not have been), detail (of the scorer).

    Args:
        task: An action task.
        max_attempts: Attempts per episode.
        memory: "none", "last-1", "last-2", ..., or "all" of the earlier attempts.
        size: Edge of the images, pixels; 0 for that of the renderer.
        actions: "answer": whole numbers from 0, as `action_of` gives them. "text": replies, read by the task's own
            strict parser. One that cannot be read, or is out of the range of the question (which may be narrower than the
            action space, where it follows the scene), costs an attempt.
        discount: Factor on the reward for every earlier attempt.
        conditions: Which conditions of the task's design are drawn, as conditions or by their codes; all by default.
        shifts: Visual and physical shifts of every scene with their levels, such as "camera:2,size:1".
        style: "direct", or "think" for prompts that ask for reasoning first.
        cache: A cache of outcomes, or the size of the one that this process shares.
        engine: Name of the simulator; by default the default one.
        renderer: What draws, see `vlm_probe.stimuli.generate.make_set`; empty for the default.
        views: Which of `VIEWS` an observation has, separated by commas, such as "state" or "image,segmentation".
        render_mode: "rgb_array" or None. `render` gives the image of the last observation.

    Raises:
        UnknownTask: If there is no such task.
        ValueError: If the task is no action task, or an argument is out of its range.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 1}  # type: ignore[misc]

    def __init__(
        self,
        task: str = "towers-topblock",
        max_attempts: int = 1,
        memory: str = "none",
        size: int = 0,
        *,
        actions: Literal["answer", "text"] = "answer",
        discount: float = 1.0,
        conditions: Iterable[Condition | str] | None = None,
        shifts: str = "",
        style: Literal["direct", "think"] = "direct",
        cache: OutcomeCache | int = DEFAULT_SIZE,
        engine: str | None = None,
        renderer: str = "",
        views: str = "image",
        render_mode: str | None = None,
    ) -> None:
        self.task: Task = get_task(task)
        if self.task.kind != "action":
            tasks = ", ".join(action_tasks())
            raise InvalidInput(f"{task} is a {self.task.kind} task, and only actions can be tried out: use {tasks}")
        size = size or find_renderer(renderer).size
        ATTEMPTS.check("max_attempts", max_attempts)
        IMAGE_SIZE.check("size", size)
        Range(0, 1).check("discount", discount)
        if actions not in ("answer", "text") or style not in ("direct", "think"):
            raise InvalidInput(
                f'actions are "answer" or "text" and style "direct" or "think", got {actions!r}, {style!r}'
            )
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise InvalidInput(f'render_mode must be None or "rgb_array", got {render_mode!r}')
        self.max_attempts, self.size, self.discount, self.actions = max_attempts, size, discount, actions
        self.render_mode, self._style = render_mode, style
        self._remembered = remembered(memory, max_attempts)
        self._conditions = _chosen(self.task, conditions)
        self._shifts = parse_shifts(shifts)
        check_shifts(self.task, self._shifts)
        self._simulator, self._renderer = painter(renderer, engine), renderer
        self._views = _named_views(views)
        self.cache = cache if isinstance(cache, OutcomeCache) else shared_cache(cache)
        self._grammar, self._bodies = self._widest_grammar(), 0
        self._bodies = self._most_bodies() if "state" in self._views else 0
        self.action_space = answer_space(self._grammar) if actions == "answer" else reply_space(task)
        self.observation_space = self._observation_space()
        self._scene: Scene | None = None
        self._question: Question | None = None
        self._facts: dict[str, Any] = {}
        self._earlier: list[_Attempt] = []
        self._attempts = 0
        self._over = True
        blank = np.zeros((size, size))
        self._frame = Frame(np.zeros((size, size, 3), dtype=np.uint8), blank.astype(np.int32), blank.astype(np.float32))
        self._state = np.zeros((0, len(STATE)), dtype=np.float32)

    @property
    def scene(self) -> Scene:
        """The scene of this episode, before any attempt.

        Raises:
            RuntimeError: Before the first reset.
        """
        if self._scene is None:
            raise RuntimeError("there is no scene yet: call reset() first")
        return self._scene

    @property
    def question(self) -> Question:
        """The question of this episode.

        Raises:
            RuntimeError: Before the first reset.
        """
        if self._question is None:
            raise RuntimeError("there is no question yet: call reset() first")
        return self._question

    def answer_of(self, action: Any) -> Answer:
        """The answer that an action of whole numbers stands for.

        Raises:
            ValueError: If it is outside the space.
        """
        return to_answer(self._grammar, action)

    def action_of(self, answer: Answer) -> Any:
        """The action that stands for an answer.

        Raises:
            ValueError: If it is not a legal answer.
        """
        return to_action(self._grammar, answer)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode with a new scene and question, which the seed alone determines.

        Args:
            seed: Of the scene and of all that follow it without a seed.
            options: {"item": an item of a stimulus set}, or {"scene": a scene, "question": a question (by default the
                task's first wording)}, to play that one.

        Raises:
            ValueError: If the options are unknown, or name an item of another task or without a scene.
            Unsatisfiable: If no scene meets a condition.
        """
        super().reset(seed=seed)
        chosen = dict(options or {})
        code = ""
        if "item" in chosen:
            item = chosen.pop("item")
            self._scene, self._question = self._given(item)
            code = item.condition.code
        elif "scene" in chosen:
            self._scene = chosen.pop("scene")
            question = chosen.pop("question", None)
            self._question = question or self.task.question(self.scene, Variant(style=self._style))
        else:
            posed = self._draw()
            self._scene, self._question, code = posed.scene, posed.question, posed.code
        if chosen:
            raise InvalidInput(f"unknown option {sorted(chosen)[0]!r}: there are item, scene, question")
        if not self._fits(self.question.grammar):
            raise InvalidInput(
                f"the actions {self._grammar} do not hold all answers of the question, {self.question.grammar}"
            )
        if self.question.prompt not in self.observation_space["prompt"]:  # type: ignore[index]
            raise InvalidInput(f"the prompt does not fit the observation space: {self.question.prompt!r}")
        self._facts = {
            "task": self.task.name,
            "condition": code,
            "margin": float(self.task.margin(self.scene)),
            "scene_sha256": self.scene.content_hash,
        }
        self._earlier, self._attempts, self._over = [], 0, False
        if len(self.scene.bodies) > self._bodies and "state" in self._views:
            raise InvalidInput(
                f"the state has room for {self._bodies} bodies, and the scene has {len(self.scene.bodies)}"
            )
        self._frame, self._state = draw(self._simulator, self.scene, self.size), body_states(self.scene)
        return self._observation(), dict(self._facts)

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Make one attempt.

        Args:
            action: In the action space; with text actions, any text at all.

        Raises:
            RuntimeError: If the episode is over or was never begun.
            ValueError: If the action is not in the space.
        """
        if self._over:
            raise RuntimeError("the episode is over: call reset() first")
        parsed = self._read(action)
        seen = self._frame.rgb
        attempt = carry_out(
            self.task,
            self.scene,
            self.question,
            parsed,
            size=self.size,
            simulator=self._simulator,
            cache=self.cache,
            scene_hash=self._facts["scene_sha256"],
        )
        score = attempt.score
        if attempt.frame is not None and attempt.state is not None:
            self._frame, self._state = attempt.frame, attempt.state
        text = "" if parsed.value is None else self._grammar.text(parsed.value)
        info = self._facts | {"status": parsed.status, "answer": text, "simulated": attempt.simulated}
        reward = score.reward * self.discount**self._attempts
        self._attempts += 1
        self._earlier.append(_Attempt(seen, parsed.value))
        self._over = score.success or self._attempts == self.max_attempts
        info |= {"success": score.success, "score": score.reward, "detail": copy.deepcopy(score.detail)}
        return self._observation(), float(reward), self._over, False, info

    def render(self) -> Any:
        """The image of the last observation, (size, size, 3) uint8, or None without a render mode."""
        return self._frame.rgb.copy() if self.render_mode == "rgb_array" else None

    def _read(self, action: Any) -> Parsed:
        """What an action says: a reply is read by the question's parser, a number must be in the question's range."""
        if self.actions == "text":
            if not isinstance(action, str):
                raise InvalidInput(f"with text actions an action is a text, got {action!r}")
            return self.question.parse(action)
        answer = self.answer_of(action)
        try:
            self.question.grammar.text(answer)
        except ValueError:
            return Parsed(str(action), None, "out_of_range")
        return Parsed(str(action), answer, "ok")

    def _draw(self) -> _Posed:
        """A scene on a condition of the design, or its mirror image, with one of the wordings."""
        rng = self.np_random
        variants = self.task.variants()
        condition = self._conditions[int(rng.integers(len(self._conditions)))]
        condition = replace(condition, mirrored=bool(rng.random() < 0.5))
        variant = replace(variants[int(rng.integers(len(variants)))], style=self._style)
        return self._pose(rng, condition, variant)

    def _pose(self, rng: np.random.Generator, condition: Condition, variant: Variant) -> _Posed:
        """A scene on the condition, shifted and mirrored as it says, with the question. Raises Unsatisfiable."""
        if self._shifts:
            condition = shifted_condition(self.task, condition, self._shifts)
        failure: Exception | None = None
        for _ in range(MAX_DRAWS):
            try:
                scene = staged(self.task.sample_matched(rng, condition), self._renderer)[0]
                scene = apply_shifts(scene, self._shifts, rng) if self._shifts else scene
                scene = mirror(scene) if condition.mirrored else scene
                return _Posed(scene, self.task.question(scene, variant), condition.code)
            except SamplingFailed as error:
                failure = error
        raise SamplingFailed(f"{self.task.name}: no scene on {condition.code} in {MAX_DRAWS} draws ({failure})")

    def _given(self, item: Item) -> tuple[Scene, Question]:
        """Scene and question of an item of a set."""
        if item.task != self.task.name:
            raise InvalidInput(f"{item.item_id} is an item of {item.task}, and this environment plays {self.task.name}")
        if item.scene is None:
            raise InvalidInput(f"{item.item_id} has no scene (it was imported), so that nothing can be tried out in it")
        return item.scene, item.question

    def _widest_grammar(self) -> IntegerFormat:
        """The answers of all scenes together; where ranges follow the scene, with room to the next ten."""
        rng, found = np.random.default_rng(0), []
        for condition in self._conditions[:: -(-len(self._conditions) // PROBED_CONDITIONS)] * 2:
            try:
                grammar = self._pose(rng, condition, Variant()).question.grammar
            except SamplingFailed:
                continue
            if not isinstance(grammar, IntegerFormat):
                raise InvalidInput(f"{self.task.name}: the answers of an environment are whole numbers, not words")
            found.append(grammar)
        if not found:
            raise SamplingFailed(f"{self.task.name}: no scene on any of the conditions")
        if all(grammar == found[0] for grammar in found):
            return found[0]
        ranges = []
        for spans in zip(*(grammar.ranges for grammar in found), strict=True):
            low, high = min(low for low, _ in spans), max(high for _, high in spans)
            ranges.append((10 * math.floor(low / 10), 10 * math.ceil(high / 10)))
        return IntegerFormat(tuple(ranges), found[0].unit)

    def _most_bodies(self) -> int:
        """The largest number of bodies in scenes on the conditions, with room for some more than were seen."""
        rng, found = np.random.default_rng(1), [1]
        for condition in self._conditions:
            with suppress(SamplingFailed):
                found.append(len(self._pose(rng, condition, Variant()).scene.bodies))
        return max(found) + SPARE_BODIES

    def _fits(self, grammar: Any) -> bool:
        """Whether the actions hold every answer of a grammar."""
        ours = self._grammar
        return (
            isinstance(grammar, IntegerFormat)
            and (grammar.unit, len(grammar.ranges)) == (ours.unit, len(ours.ranges))
            and all(a <= c and d <= b for (a, b), (c, d) in zip(ours.ranges, grammar.ranges, strict=True))
        )

    def _observation_space(self) -> spaces.Dict:
        edge, k, numbers = self.size, self._remembered, len(self._grammar.ranges)
        shown: dict[str, spaces.Space[Any]] = {
            "image": spaces.Box(0, 255, (edge, edge, 3), np.uint8),
            "segmentation": spaces.Box(BACKGROUND, 2**16, (edge, edge), np.int32),
            "depth": spaces.Box(0, LIMIT, (edge, edge), np.float32),
            "state": spaces.Box(-LIMIT, LIMIT, (self._bodies, len(STATE)), np.float32),
        }
        found: dict[str, spaces.Space[Any]] = {name: shown[name] for name in self._views} | {
            "prompt": prompt_space(self.task.name),
            "attempts_left": spaces.Discrete(self.max_attempts + 1),
        }
        if k:
            low = np.array([min(low, 0) for low, _ in self._grammar.ranges] * k, dtype=np.int32).reshape(k, numbers)
            high = np.array([max(high, 0) for _, high in self._grammar.ranges] * k, dtype=np.int32).reshape(k, numbers)
            found |= {
                "previous_images": spaces.Box(0, 255, (k, edge, edge, 3), np.uint8),
                "previous_answers": spaces.Box(low, high, dtype=np.int32),
                "previous_status": spaces.MultiDiscrete([3] * k),
            }
        return spaces.Dict(found)

    def _observation(self) -> Observation:
        k = self._remembered
        state = np.zeros((self._bodies, len(STATE)), dtype=np.float32)
        if self._bodies:
            state[: len(self._state)] = np.clip(self._state, -LIMIT, LIMIT)
        frame = self._frame
        shown: dict[str, Any] = {
            "image": frame.rgb,
            "segmentation": frame.segmentation,
            "depth": frame.depth,
            "state": state,
        }
        found: Observation = {name: shown[name].copy() for name in self._views} | {
            "prompt": self.question.prompt,
            "attempts_left": np.int64(self.max_attempts - self._attempts),
        }
        if k:
            images = np.zeros((k, self.size, self.size, 3), dtype=np.uint8)
            answers = np.zeros((k, len(self._grammar.ranges)), dtype=np.int32)
            status = np.full(k, EMPTY, dtype=np.int64)
            for place, attempt in enumerate(self._earlier[-k:]):
                images[place] = attempt.picture
                status[place] = UNREAD if attempt.answer is None else ANSWERED
                if attempt.answer is not None:
                    answers[place] = attempt.answer
            found |= {"previous_images": images, "previous_answers": answers, "previous_status": status}
        return found


def _named_views(text: str) -> tuple[str, ...]:
    """The views that a text names, in the order of `VIEWS`. Raises InvalidInput."""
    names = [name.strip() for name in text.split(",")]
    if not set(names) <= set(VIEWS):
        raise InvalidInput(f"views are {', '.join(VIEWS)}, separated by commas, got {text!r}")
    return tuple(name for name in VIEWS if name in names)


def _chosen(task: Task, wanted: Iterable[Condition | str] | None) -> tuple[Condition, ...]:
    """The conditions of a task's design that were asked for."""
    known = {condition.code: condition for condition in task.conditions()}
    if wanted is None:
        return tuple(known.values())
    found = []
    for condition in wanted:
        if isinstance(condition, str) and condition not in known:
            raise InvalidInput(f"{task.name} has no condition {condition!r}; there are {', '.join(known)}")
        found.append(known[condition] if isinstance(condition, str) else condition)
    if not found:
        raise InvalidInput("conditions must name at least one condition")
    return tuple(found)


def action_tasks() -> list[str]:
    """Names of all registered action tasks."""
    return [name for name in task_names() if get_task(name).kind == "action"]


def environment_id(task: str) -> str:
    """The id of a task's environment: "towers-topblock", version 1 -> "VLMProbe/TowersTopblock-v1".

    Raises:
        UnknownTask: If there is no such task.
    """
    words = re.split(r"[^0-9a-zA-Z]+", task)
    return f"{NAMESPACE}/{''.join(word.capitalize() for word in words)}-v{get_task(task).version}"


def register_all() -> list[str]:
    """Register an environment for every action task that has none yet; gives the ids of all of them."""
    ids = []
    for task in action_tasks():
        ids.append(environment_id(task))
        if ids[-1] not in gymnasium.registry:
            gymnasium.register(ids[-1], "vlm_probe.stimuli.environment:PhysicsEnv", kwargs={"task": task})
    return ids


register_all()
