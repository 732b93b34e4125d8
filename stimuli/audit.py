"""The audit: what shortcuts score on a stimulus set, overall and by bin of the margin, beside chance and constants."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from stimuli.baselines import ItemCues, cue_accuracy, item_cues
from stimuli.dataset import Item, StimulusError, StimulusSet
from stimuli.tasks import get_task

PIXELS = 16
"""The pixel classifier sees pictures of this edge."""
FOLDS = 5


@dataclass(frozen=True)
class Shortcut:
    """What one shortcut scores.

    Attributes:
        name: What is looked at, or done.
        kind: "constant", "rule" (a fixed answer per scene), "cue" (cross-validated lookup on one number), "pixels" or
            "prompt" (cross-validated linear classifiers).
        score: Share of all items that it gets right.
        by_bin: The same by |margin| bin.
        by_bin_tall: The same by |margin| bin on items with a count of three or more.
    """

    name: str
    kind: str
    score: float
    by_bin: dict[str, float]
    by_bin_tall: dict[str, float]


@dataclass(frozen=True)
class Audit:
    """The shortcut scores of a set."""

    task: str
    n: int
    chance: float
    bins: dict[str, int]
    shortcuts: tuple[Shortcut, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One row per shortcut: name, kind, score, and a column per |margin| bin (all counts, then three or more)."""
        return [
            {"shortcut": s.name, "kind": s.kind, "score": s.score}
            | {f"|m| {name}": s.by_bin.get(name) for name in self.bins}
            | {f"|m| {name}, n>=3": s.by_bin_tall.get(name) for name in self.bins if s.by_bin_tall}
            for s in self.shortcuts
        ]

    def plot(self, path: str | Path) -> None:
        """Write a dot plot of the scores: overall, and per |margin| bin on items with a count of three or more."""
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        order = sorted(self.shortcuts, key=lambda s: s.score)
        figure, axis = plt.subplots(figsize=(5.2, 0.34 * len(order) + 1.5), layout="constrained")
        palette = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")  # Okabe and Ito: safe for colour-blind readers
        for y, shortcut in enumerate(order):
            axis.plot([self.chance, shortcut.score], [y, y], color="0.8", lw=1, zorder=1)
        for colour, name in zip(palette, self.bins, strict=False):
            points = [(s.by_bin_tall.get(name), y) for y, s in enumerate(order)]
            kept = [(score, y) for score, y in points if score is not None]
            if kept and any(s.by_bin_tall for s in order):
                scores, heights = [score for score, _ in kept], [y for _, y in kept]
                axis.scatter(scores, heights, s=14, color=colour, label=f"|margin| {name}, 3+ blocks", zorder=2)
        axis.scatter([s.score for s in order], range(len(order)), s=34, color="black", label="all items", zorder=3)
        axis.axvline(self.chance, color="0.4", lw=0.8, ls="--")
        axis.text(self.chance, len(order) - 0.35, "chance", fontsize=7, ha="center", color="0.3")
        axis.set_yticks(range(len(order)), [s.name for s in order], fontsize=8)
        axis.set_xlim(0, 1.02)
        axis.set_ylim(-0.6, len(order) + 0.1)
        axis.set_xlabel("share of items answered correctly", fontsize=8)
        axis.set_title(f"What needs no physics on {self.task} (n = {self.n})", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
        figure.savefig(path, dpi=200)
        plt.close(figure)


def audit(stimuli: StimulusSet) -> Audit:
    """Score every shortcut on a set.

    The classifiers are cross-validated by group, so that foils and mirror images of a training item are never tested.

    Raises:
        StimulusError: If the set has fewer than ten groups, items without scenes, or unreadable pictures.
    """
    items = stimuli.items
    task = get_task(stimuli.card["task"])
    if any(item.scene is None for item in items):
        raise StimulusError(f"{stimuli.path}: the audit reads scenes, and this set has items without one")
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
    if task.kind == "judgement":
        hits["prompt alone", "prompt"] = _classify(_words(items), labels, cues)
        hits[f"linear classifier on {PIXELS}x{PIXELS} pixels", "pixels"] = _classify(_pixels(stimuli), labels, cues)
    elif task.kind == "action":
        hits[f"linear regression on {PIXELS}x{PIXELS} pixels", "pixels"] = _regress(_pixels(stimuli), labels, cues)
    bin_of = np.array([_bin_name(item.condition.margin_bin) for item in items])
    bins = {name: int((bin_of == name).sum()) for name in sorted(set(bin_of.tolist()) - {""})}
    tall = np.array([item.condition.count >= 3 for item in items])
    rows = [
        Shortcut(
            name,
            kind,
            round(float(hit.mean()), 4),
            {b: round(float(hit[bin_of == b].mean()), 4) for b in bins},
            {b: round(float(hit[tall & (bin_of == b)].mean()), 4) for b in bins if (tall & (bin_of == b)).any()},
        )
        for (name, kind), hit in hits.items()
    ]
    if task.kind != "action":
        for name in cues[0].cues:
            values = np.array([cue.cues[name] for cue in cues])

            def accuracy(mask: npt.NDArray[np.bool_], values: npt.NDArray[np.float64] = values) -> float:
                chosen = np.flatnonzero(mask)
                return cue_accuracy(values[chosen], [labels[i] for i in chosen], [groups[i] for i in chosen])

            rows.append(
                Shortcut(
                    name,
                    "cue",
                    accuracy(np.ones(len(items), dtype=bool)),
                    {b: accuracy(bin_of == b) for b in bins},
                    {b: accuracy(tall & (bin_of == b)) for b in bins if (tall & (bin_of == b)).any()},
                )
            )
    chance = float(np.mean([len(cue.working) / cue.candidates for cue in cues]))
    return Audit(task.name, len(items), round(chance, 4), bins, tuple(rows))


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


def _pixels(stimuli: StimulusSet) -> npt.NDArray[np.float64]:
    """(n, 768) pixels of the pictures shrunk to `PIXELS`, in [0, 1]."""
    small = [
        np.asarray(stimuli.image(item).resize((PIXELS, PIXELS), Image.Resampling.BOX), dtype=float).ravel() / 255
        for item in stimuli.items
    ]
    return np.stack(small)


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
