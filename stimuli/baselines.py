"""What can be scored on a set without physics: chance, the best constant answer, fixed rules, and single cues."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vlm_probe.stimuli.dataset import Item
from vlm_probe.stimuli.tasks import Task

CUE_BINS = 8
"""A cue is cut into this many quantile bins, each answered by its majority."""
FOLDS = 2
LEEWAY = 0.1
"""How far above chance a shortcut may score on a judgement before the card has to say so."""


@dataclass(frozen=True)
class ItemCues:
    """What the baselines need of one item.

    Attributes:
        answer: The correct answer (hashable).
        answer_text: The same, with which it is balanced: the meaning, not the word.
        text: The word or number that a correct reply states.
        working: All answers that work (for judgements, the correct one).
        candidates: Number of legal answers.
        group: Items of one group never fall into different folds.
        cell: The cell of the design within which labels are balanced.
        cues: Cue name -> number.
        rules: Rule name -> whether its answer is right.
    """

    answer: Hashable
    answer_text: str
    text: str
    working: tuple[Hashable, ...]
    candidates: int
    group: str
    cell: str
    cues: dict[str, float]
    rules: dict[str, bool]


def item_cues(task: Task, item: Item) -> ItemCues:
    """Cues and rules of one item; an item without a scene (imported) has neither.

    Args:
        task: That asks; an imported item's need not be registered.
        item: The item.
    """
    scene, question = item.scene, item.question
    working = tuple(item.working) or (item.answer,)
    low, high = item.condition.margin_bin
    size = (min(abs(low), abs(high)), max(abs(low), abs(high)))
    return ItemCues(
        answer=item.answer,
        answer_text=str(item.answer),
        text=question.grammar.text(item.answer),
        working=working,
        candidates=len(question.grammar.candidates()),
        group=item.group_id,
        cell=f"{item.condition.count} {size} {item.condition.shown} {item.condition.mirrored}",
        cues={name: float(cue(scene)) for name, cue in task.cues().items()} if scene is not None else {},
        rules={name: rule(scene) in working for name, rule in task.rules().items()} if scene is not None else {},
    )


class CueTable:
    """What the card of a set says about its items' cues and labels, a few numbers an item: the items may be many."""

    def __init__(self) -> None:
        self.cells: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._chances = array("d")
        self._working: Counter[Hashable] = Counter()
        self._texts: Counter[str] = Counter()
        self._rules: Counter[str] = Counter()
        self._cues: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))
        self._answers: dict[Hashable, int] = {}
        self._groups: dict[str, int] = {}
        self._answer, self._group = array("l"), array("l")

    def __len__(self) -> int:
        return len(self._chances)

    def add(self, item: ItemCues) -> None:
        """Add one item."""
        self.cells[item.cell][item.answer_text] += 1
        self._chances.append(len(item.working) / item.candidates)
        self._working.update(set(item.working))
        self._texts[item.text] += 1
        # Rules that are never right are listed too.
        self._rules.update({name: int(right) for name, right in item.rules.items()})
        for name, value in item.cues.items():
            self._cues[name].append(value)
        self._answer.append(self._answers.setdefault(item.answer, len(self._answers)))
        self._group.append(self._groups.setdefault(item.group, len(self._groups)))

    def labels(self) -> dict[str, int]:
        """How often each answer is the correct one."""
        total: Counter[str] = Counter()
        for counts in self.cells.values():
            total.update(counts)
        return dict(sorted(total.items()))

    def balance(self) -> dict[str, int]:
        """How far the labels are from balance within the cells of (count x |margin| bin x shown x mirror)."""
        labels = self.labels()
        worst = (max(c[x] for x in labels) - min(c[x] for x in labels) for c in self.cells.values())
        return {
            "cells": len(self.cells),
            "largest_difference_of_label_counts_in_a_cell": max(worst, default=0),
        }

    def baselines(self, task: Task) -> dict[str, Any]:
        """Chance, best constant and shortcut scores of the set, as the card states them.

        Returns:
            {"chance", "constant": {"answer", "score"}, "shortcuts": {name: score}}; a rule's score is the share of items
            on which its answer is right, a cue's is that of a cross-validated lookup (see `cue_accuracy`). For judgements
            also "limit" and "above_limit": {name: {"score", "reason"}}.
        """
        n = len(self)
        answer, hits = min(self._working.items(), key=lambda pair: (-pair[1], str(pair[0])))
        shortcuts = {name: round(right / n, 4) for name, right in self._rules.items()}
        if task.kind != "action":
            answers = list(self._answers)
            labels = [answers[code] for code in self._answer]
            for name, values in self._cues.items():
                shortcuts[name] = cue_accuracy(np.array(values), labels, self._group)
            shortcuts["best constant word"] = round(max(self._texts.values()) / n, 4)
        chance = round(float(np.mean(self._chances)), 4)
        facts: dict[str, Any] = {
            "chance": chance,
            "constant": {"answer": str(answer), "score": round(hits / n, 4)},
            "shortcuts": shortcuts,
        }
        limit = limit_of(task, chance)
        if limit is not None:
            facts["limit"] = limit
            facts["above_limit"] = {
                name: {"score": score, "reason": reason_of(task, name)}
                for name, score in shortcuts.items()
                if score > limit
            }
        return facts


def guesses(cues: Sequence[ItemCues], attempts: int) -> list[dict[str, Any]]:
    """What 1, 2, ... attempts at every item would score without looking at it.

    Args:
        cues: Of all items.
        attempts: At every item.

    Returns:
        For every number of attempts k, {"attempts": k, "chance", "constants": {"answers", "score"}}: k independent draws from the
        legal answers; and k different answers, the same for all items, each chosen so that it works on most of the items on which
        the ones before it do not (the greedy choice, which no k answers beat by more than a factor of e / (e - 1)).
    """
    chance = np.array([len(cue.working) / cue.candidates for cue in cues])
    unsolved, answers, found = list(cues), [], []
    for k in range(1, attempts + 1):
        counts = Counter(answer for cue in unsolved for answer in set(cue.working))
        if counts:
            answer, _ = min(counts.items(), key=lambda pair: (-pair[1], str(pair[0])))
            answers.append(str(answer))
            unsolved = [cue for cue in unsolved if answer not in cue.working]
        constants = {"answers": list(answers), "score": round(1 - len(unsolved) / len(cues), 4)}
        found.append({"attempts": k, "chance": round(float(np.mean(1 - (1 - chance) ** k)), 4), "constants": constants})
    return found


def limit_of(task: Task, chance: float) -> float | None:
    """What a shortcut may score on a judgement without being named in the card; None for other kinds of task.

    Args:
        task: That asks.
        chance: What a random legal answer scores.
    """
    return round(chance + LEEWAY, 4) if task.kind == "judgement" else None


def reason_of(task: Task, name: str) -> str:
    """Why a shortcut scores well, in the task's own words, or that the task does not say.

    Args:
        task: That asks.
        name: Of the rule, cue or classifier.
    """
    return task.known_shortcuts.get(name, "not explained by the task")


def cue_accuracy(
    cue: npt.NDArray[np.float64], labels: Sequence[Hashable], groups: Sequence[int] | Sequence[str]
) -> float:
    """Cross-validated accuracy of answering by one number: the majority label of its quantile bin.

    Bins and majorities come from one half of the groups and are scored on the other, both ways round, so that foils and
    mirror images never help to answer each other.

    Args:
        cue: (n,) the number.
        labels: The n right answers.
        groups: The n groups; items of one never fall into different halves.
    """
    codes = {label: i for i, label in enumerate(sorted(set(labels), key=str))}
    y = np.array([codes[label] for label in labels])
    # Numbered in sorted order, so that the order of the items in the set changes nothing.
    fold = np.unique(np.asarray(groups), return_inverse=True)[1] % FOLDS
    hits = 0
    for held_out in range(FOLDS):
        train, test = fold != held_out, fold == held_out
        if not train.any():
            train = test
        edges = np.unique(np.quantile(cue[train], np.linspace(0, 1, CUE_BINS + 1)[1:-1]))
        overall = int(np.bincount(y[train]).argmax())
        bins = np.searchsorted(edges, cue, side="right")
        best = [
            int(np.bincount(y[train & (bins == b)]).argmax()) if (train & (bins == b)).any() else overall
            for b in range(len(edges) + 1)
        ]
        hits += int((np.array(best)[bins[test]] == y[test]).sum())
    return round(hits / len(y), 4)
