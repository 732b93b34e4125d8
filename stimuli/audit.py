"""The audit: what shortcuts score on a stimulus set, overall and by factor of its design, next to chance and constants."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlm_probe.stimuli.baselines import ItemCues, cue_accuracy, item_cues, limit_of, reason_of
from vlm_probe.stimuli.dataset import Item, StimulusError, StimulusSet
from vlm_probe.stimuli.output import whole_file
from vlm_probe.stimuli.tasks import Task, get_task, task_names
from vlm_probe.stimuli.viewing import across

log = logging.getLogger(__name__)

PIXELS = 16
"""Edge of the images that classifiers on pixels see."""
FOLDS = 5
PROCESSORS = {
    "LLaVA-1.5": (336, 14),
    "Qwen2.5-VL": (0, 28),
    "Qwen3-VL": (0, 32),
    "InternVL3": (448, 28),
    "Gemma 3": (896, 56),
}
"""Image processors: the edge to which they scale a square image (pixels; 0 leaves it as it is), and the edge of what becomes one
visual token, in pixels of the scaled image."""
MOST_LEVELS = 6
"""A factor with more levels than this gets no columns of its own."""


@dataclass(frozen=True)
class Shortcut:
    """What one shortcut scores.

    Attributes:
        name: What is looked at, or done.
        kind: "constant", "rule" (a fixed answer per scene), "cue" (cross-validated lookup on one number), "order" (the same on
            the place in the set, or a classifier on the id), "pixels" or "prompt" (cross-validated linear classifiers).
        score: Share of all items that it gets right.
        by_bin: The same by |margin| bin.
        by_level: The same by level of the factors build, count and shown, where they vary: {"build": {"leaning": 0.5}}.
        reason: Why it scores above the limit, where it does.
    """

    name: str
    kind: str
    score: float
    by_bin: dict[str, float]
    by_level: dict[str, dict[str, float]]
    reason: str = ""


@dataclass(frozen=True)
class Visibility:
    """How large the margins of a |margin| bin are in the image: what must be seen to answer. Medians over the items.

    Attributes:
        bin: Of |margin|; empty where the margin is not binned.
        n: Items.
        pixels: From left to right.
        tokens: The same in visual tokens of each of `PROCESSORS`.
    """

    bin: str
    n: int
    pixels: float
    tokens: dict[str, float]

    def row(self) -> dict[str, Any]:
        """As plain data, for a table."""
        return {"|margin|": self.bin, "items": self.n, "pixels": self.pixels} | self.tokens


@dataclass(frozen=True)
class Audit:
    """The shortcut scores of a set.

    Attributes:
        task, n, chance: Of the set.
        limit: What a shortcut may score on a judgement without standing out: 10 points above chance; None for other kinds.
        bins: |margin| bins and their number of items.
        levels: Levels of the factors build, count and shown where they vary, and their number of items.
        shortcuts: All of them.
        visibility: How large the margins are in the images, by bin; empty where margins are no distances that can be seen.
    """

    task: str
    n: int
    chance: float
    limit: float | None
    bins: dict[str, int]
    levels: dict[str, dict[str, int]]
    shortcuts: tuple[Shortcut, ...]
    visibility: tuple[Visibility, ...] = ()

    @property
    def above(self) -> tuple[Shortcut, ...]:
        """The shortcuts above the limit, best first."""
        found = [s for s in self.shortcuts if self.limit is not None and s.score > self.limit]
        return tuple(sorted(found, key=lambda s: -s.score))

    def rows(self) -> list[dict[str, Any]]:
        """One row per shortcut: name, kind, score, a column per |margin| bin and per level of each factor, and the reason."""
        return [
            {"shortcut": s.name, "kind": s.kind, "score": s.score}
            | {f"|m| {name}": s.by_bin.get(name) for name in self.bins}
            | {
                f"{factor} {level}" if factor == "count" else level: s.by_level.get(factor, {}).get(level)
                for factor, found in self.levels.items()
                for level in found
            }
            | {"above limit": s.reason}
            for s in self.shortcuts
        ]

    def plot(self, path: str | Path) -> None:
        """Write a dot plot of the scores: overall, per build where there are several, else per |margin| bin."""
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        order = sorted(self.shortcuts, key=lambda s: s.score)
        figure, axis = plt.subplots(figsize=(5.2, 0.34 * len(order) + 1.5), layout="constrained")
        # Okabe and Ito: safe for colour-blind readers.
        palette = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
        for y, shortcut in enumerate(order):
            axis.plot([self.chance, shortcut.score], [y, y], color="0.8", lw=1, zorder=1)
        builds = list(self.levels.get("build", {}))
        split = {name: [s.by_level.get("build", {}).get(name) for s in order] for name in builds} or {
            f"|margin| {name}": [s.by_bin.get(name) for s in order] for name in self.bins
        }
        for colour, (label, scores) in zip(palette, split.items(), strict=False):
            kept = [(score, y) for y, score in enumerate(scores) if score is not None]
            if kept:
                axis.scatter(
                    [score for score, _ in kept], [y for _, y in kept], s=14, color=colour, label=label, zorder=2
                )
        axis.scatter([s.score for s in order], range(len(order)), s=34, color="black", label="all items", zorder=3)
        axis.axvline(self.chance, color="0.4", lw=0.8, ls="--")
        axis.text(self.chance, len(order) - 0.35, "chance", fontsize=7, ha="right", color="0.3")
        if self.limit is not None:
            axis.axvline(self.limit, color="0.4", lw=0.8, ls=":")
            axis.text(self.limit, len(order) - 0.35, " limit", fontsize=7, ha="left", color="0.3")
        axis.set_yticks(range(len(order)), [s.name for s in order], fontsize=8)
        axis.set_xlim(0, 1.02)
        axis.set_ylim(-0.6, len(order) + 0.1)
        axis.set_xlabel("share of items answered correctly", fontsize=8)
        axis.set_title(f"What needs no physics on {self.task} (n = {self.n})", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
        with whole_file(Path(path)) as partial:
            figure.savefig(partial, dpi=200)
        plt.close(figure)


@dataclass(frozen=True)
class _OwnQuestion:
    """What the audit needs of a task, for imported sets whose question is no registered task's."""

    name: str
    kind: str
    known_shortcuts: Mapping[str, str] = field(default_factory=dict)


def audit(stimuli: StimulusSet) -> Audit:
    """Score every shortcut on a set.

    The classifiers are cross-validated by group, so that foils and mirror images of a training item are never tested.

    Raises:
        StimulusError: If the set has fewer than ten groups, or unreadable images.
    """
    items = stimuli.items
    name = stimuli.card["task"]
    task = get_task(name) if name in task_names() else cast(Task, _OwnQuestion(name, stimuli.card["kind"]))
    imported = any(item.scene is None for item in items)
    if imported:
        log.warning("%s has no scenes (it was imported): cues and rules that read them are left out", stimuli.path)
    cues = [item_cues(task, item) for item in items]
    groups = [cue.group for cue in cues]
    if len(set(groups)) < 10:
        raise StimulusError(
            f"{stimuli.path}: an audit needs at least 10 groups of items, this set has {len(set(groups))}"
        )
    hits: dict[tuple[str, str], npt.NDArray[np.float64]] = {}
    for answer in _constants(cues):
        hits[f"always {answer}", "constant"] = np.array([float(answer in cue.working) for cue in cues])
    for text in dict.fromkeys(cue.text for cue in cues) if task.kind == "judgement" else ():
        hits[f'always the word "{text}"', "constant"] = np.array([float(cue.text == text) for cue in cues])
    for name in cues[0].rules:
        hits[name, "rule"] = np.array([float(cue.rules[name]) for cue in cues])
    labels = [cue.answer for cue in cues]
    if task.kind != "action":
        hits["item id", "order"] = _classify(_characters(items), labels, cues)
    if task.kind == "judgement":
        hits["prompt alone", "prompt"] = _classify(_words(items), labels, cues)
        hits[f"linear classifier on {PIXELS}x{PIXELS} pixels", "pixels"] = _classify(
            pixel_features(stimuli, items), labels, cues
        )
    elif task.kind == "action":
        hits[f"linear regression on {PIXELS}x{PIXELS} pixels", "pixels"] = _regress(
            pixel_features(stimuli, items), labels, cues
        )
    bin_of = np.array([_bin_name(item.condition.margin_bin) for item in items])
    bins = {name: int((bin_of == name).sum()) for name in sorted(set(bin_of.tolist()) - {""})}
    levels = _levels(items)
    masks = {
        (factor, level): np.array([_level(item, factor) == level for item in items])
        for factor, found in levels.items()
        for level in found
    }
    everything = np.ones(len(items), dtype=bool)
    chance = round(float(np.mean([len(cue.working) / cue.candidates for cue in cues])), 4)
    limit = limit_of(task, chance)

    def reason(name: str) -> str:
        # What the task's own sets are known for says nothing about the images of somebody else.
        return "the pictures of this set let it" if imported else reason_of(task, name)

    def row(name: str, kind: str, accuracy: Callable[[npt.NDArray[np.bool_]], float]) -> Shortcut:
        score = accuracy(everything)
        return Shortcut(
            name,
            kind,
            score,
            {b: accuracy(bin_of == b) for b in bins},
            {factor: {level: accuracy(masks[factor, level]) for level in found} for factor, found in levels.items()},
            reason(name) if limit is not None and score > limit else "",
        )

    rows = [row(name, kind, partial(_share, hit)) for (name, kind), hit in hits.items()]
    numbers = {(name, "cue"): np.array([cue.cues[name] for cue in cues]) for name in cues[0].cues}
    numbers |= {(name, "order"): values for name, values in _places(cues).items()}
    for (name, kind), values in numbers.items() if task.kind != "action" else ():
        rows.append(row(name, kind, partial(_looked_up, values, labels, groups)))
    seen = () if imported else _visibility(task, items, bin_of, int(stimuli.card["image_size"]))
    return Audit(task.name, len(items), chance, limit, bins, levels, tuple(rows), seen)


def pixel_features(stimuli: StimulusSet, items: Sequence[Item]) -> npt.NDArray[np.float64]:
    """The images, averaged down to `PIXELS` x `PIXELS` pixels.

    Args:
        stimuli: The set.
        items: Of it.

    Returns:
        (n, 768) in [0, 1].

    Raises:
        StimulusError: If an image cannot be read.
    """
    small = [stimuli.image(item).resize((PIXELS, PIXELS), Image.Resampling.BOX) for item in items]
    return np.stack([np.asarray(picture, dtype=np.float64).ravel() / 255 for picture in small])


def _places(cues: list[ItemCues]) -> dict[str, npt.NDArray[np.float64]]:
    """What the order of the items might tell: the place in the set, the place within the group, the label before."""
    codes = {label: i for i, label in enumerate(dict.fromkeys(cue.answer for cue in cues))}
    counts: Counter[str] = Counter()
    within = []
    for cue in cues:
        within.append(counts[cue.group])
        counts[cue.group] += 1
    before = [-1, *(codes[cue.answer] for cue in cues[:-1])]
    found = {"place in the set": range(len(cues)), "place within the group": within, "answer before": before}
    return {name: np.array(values, dtype=np.float64) for name, values in found.items()}


def _visibility(task: Task, items: list[Item], bin_of: npt.NDArray[np.str_], size: int) -> tuple[Visibility, ...]:
    """The medians by bin of |margin|; none where the task's margin is no distance."""
    scenes = [item.scene for item in items if item.scene is not None]
    lengths = [task.margin_length(scene) for scene in scenes]
    if any(length is None for length in lengths):
        return ()
    pixels = np.array(
        [
            abs(item.margin) * across(scene, length or 0.0, size)
            for item, scene, length in zip(items, scenes, lengths, strict=True)
        ]
    )
    found = []
    for name in sorted(set(bin_of.tolist())):
        middle = float(np.median(pixels[bin_of == name]))
        tokens = {p: round(middle * (edge or size) / size / token, 2) for p, (edge, token) in PROCESSORS.items()}
        found.append(Visibility(name, int((bin_of == name).sum()), round(middle, 1), tokens))
    return tuple(found)


def _share(hit: npt.NDArray[np.float64], mask: npt.NDArray[np.bool_]) -> float:
    return round(float(hit[mask].mean()), 4)


def _looked_up(
    values: npt.NDArray[np.float64], labels: list[Hashable], groups: list[str], mask: npt.NDArray[np.bool_]
) -> float:
    chosen = np.flatnonzero(mask)
    return cue_accuracy(values[chosen], [labels[i] for i in chosen], [groups[i] for i in chosen])


def _levels(items: list[Item]) -> dict[str, dict[str, int]]:
    """The levels of build, count and shown with their number of items, of those factors that have from 2 to `MOST_LEVELS`."""
    found = {}
    for factor in ("build", "count", "shown"):
        counts = Counter(_level(item, factor) for item in items)
        if 2 <= len(counts) <= MOST_LEVELS:
            found[factor] = dict(sorted(counts.items()))
    return found


def _level(item: Item, factor: str) -> str:
    return str(getattr(item.condition, factor)) or "none"


def _constants(cues: list[ItemCues]) -> list[Hashable]:
    """For judgements every label; for actions the single best answer."""
    counts: dict[Hashable, int] = {}
    for cue in cues:
        for answer in set(cue.working):
            counts[answer] = counts.get(answer, 0) + 1
    best = sorted(counts, key=lambda a: (-counts[a], str(a)))
    return best if len(best) <= 4 else best[:1]


def _bin_name(edges: tuple[float, float]) -> str:
    """The bin of |margin|, e.g. "0.1-0.2"; empty where the margin is not binned by its distance from 0."""
    low, high = sorted(abs(edge) for edge in edges)
    return f"{low:.1f}-{high:.1f}" if edges[0] * edges[1] > 0 else ""


def _characters(items: list[Item]) -> npt.NDArray[np.float64]:
    """(n, strings) which strings of one or two characters the ids have."""
    from sklearn.feature_extraction.text import CountVectorizer

    counts = CountVectorizer(binary=True, analyzer="char", ngram_range=(1, 2)).fit_transform(i.item_id for i in items)
    return counts.toarray().astype(float)


def _words(items: list[Item]) -> npt.NDArray[np.float64]:
    """(n, words) bag of words of the prompts."""
    from sklearn.feature_extraction.text import CountVectorizer

    return CountVectorizer(binary=True).fit_transform(i.question.prompt for i in items).toarray().astype(float)


def _classify(x: npt.NDArray[np.float64], labels: list[Hashable], cues: list[ItemCues]) -> npt.NDArray[np.float64]:
    """(n,) whether cross-validated logistic regression gets each item right; the best of three penalties."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    y = np.array([str(label) for label in labels])
    if len(set(y)) < 2:
        return np.ones(len(y))
    groups = [cue.group for cue in cues]
    scores = []
    for penalty in (0.001, 0.01, 0.1):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=500))
        scores.append((cross_val_predict(model, x, y, groups=groups, cv=GroupKFold(FOLDS)) == y).astype(float))
    return max(scores, key=lambda score: float(score.mean()))


def _regress(x: npt.NDArray[np.float64], labels: list[Hashable], cues: list[ItemCues]) -> npt.NDArray[np.float64]:
    """(n,) whether the rounded prediction of cross-validated ridge regression is an answer that works."""
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    y = np.array([np.atleast_1d(np.array(label)) for label in labels], dtype=float)
    model = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(0, 5, 11)))
    guess = np.rint(cross_val_predict(model, x, y, groups=[c.group for c in cues], cv=GroupKFold(FOLDS)))
    guess = guess.reshape(len(y), -1).astype(int)
    return np.array(
        [
            float((tuple(g.tolist()) if len(g) > 1 else int(g[0])) in cue.working)
            for g, cue in zip(guess, cues, strict=True)
        ]
    )
