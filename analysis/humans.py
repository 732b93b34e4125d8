"""Human responses as one table of counts: items by participants, or items by anonymous crowds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from vlm_probe.analysis.selection import Floats, need
from vlm_probe.stimuli.errors import InvalidInput


@dataclass(frozen=True)
class Humans:
    """Answers of participants to two-option items.

    Attributes:
        items: Item ids (items,).
        participants: Who answered (participants,); empty where only counts are known.
        signals: Signal answers (participants, items); with counts, one row.
        answers: Answers (participants, items); with counts, one row.
    """

    items: tuple[str, ...]
    participants: tuple[str, ...]
    signals: Floats
    answers: Floats

    @property
    def counted(self) -> bool:
        """Whether only counts are known."""
        return not self.participants

    @property
    def n(self) -> Floats:
        """Answers per item (items,)."""
        return np.asarray(self.answers.sum(0))

    @property
    def p(self) -> Floats:
        """Share of signal answers per item (items,)."""
        return np.asarray(self.signals.sum(0) / self.n)

    @property
    def shares(self) -> Floats:
        """Every participant's share of signal answers per item (participants, items); nan where there is no answer."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self.signals / self.answers)

    def resampled(self, rng: np.random.Generator, resamples: int) -> tuple[Floats, Floats]:
        """Signal answers and answers per item (resamples, items), of participants drawn again; with counts, of answers drawn again.

        Args:
            rng: Source of the draws.
            resamples: How many samples.
        """
        if self.counted:
            n = np.broadcast_to(self.n, (resamples, len(self.items)))
            return rng.binomial(n.astype(int), self.p).astype(float), n.astype(float)
        people = len(self.participants)
        weights = rng.multinomial(people, np.full(people, 1 / people), size=resamples).astype(float)
        return weights @ self.signals, weights @ self.answers


def of_the_same_items(trials: pd.DataFrame, responses: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The trials of items that participants answered, and the responses, under one `item_id` as text.

    Where both tables say of which stimulus set an item is, it is part of the id: items of two sets, or of a set and the same set
    under a shift, can have the same id and show another image.

    Args:
        trials: A trial table.
        responses: Human responses, with `item_id`.

    Raises:
        ValueError: If participants answered none of the items.
    """
    need(responses, "item_id", "response")
    both = [
        table.assign(
            item_id=table["item_id"].astype(str)
            if not ("stimuli" in trials.columns and "stimuli" in responses.columns)
            else table["stimuli"].astype(str) + " " + table["item_id"].astype(str)
        )
        for table in (trials, responses)
    ]
    asked = both[0][both[0]["item_id"].isin(set(both[1]["item_id"]))]
    if asked.empty:
        raise InvalidInput("none of the judged items has human responses: item_id must be the same in both tables")
    return asked, both[1]


def human_answers(responses: pd.DataFrame, signal: str, items: Any = None) -> Humans:
    """The responses to two-option items as `Humans`.

    Args:
        responses: `item_id`, `response` (its meaning, as in a set's `responses.csv`), and `participant` or `count` or both. Rows
            without a participant are counts; if any row is, all are counted.
        signal: The answer that is counted.
        items: Item ids to keep, in their order; by default all, sorted.

    Raises:
        ValueError: If columns are missing, an item has three answers, or nobody ever answers the signal.
    """
    need(responses, "item_id", "response")
    frame = pd.DataFrame({"item": responses["item_id"].astype(str), "said": responses["response"].astype(str)})
    frame["count"] = responses["count"].to_numpy(float) if "count" in responses.columns else 1.0
    who = responses["participant"].fillna("").astype(str) if "participant" in responses.columns else ""
    frame["who"] = who
    if items is not None:
        frame = frame[frame["item"].isin(set(map(str, items)))]
    options = sorted(frame["said"].unique())
    if frame.empty or signal not in options:
        known = ", ".join(options[:5]) or "none"
        raise InvalidInput(
            f"nobody answered {signal!r} to these items (answers: {known}): give responses as meanings, not as words"
        )
    if len(options) > 2:
        raise InvalidInput(
            f"human alignment needs items with two answers, and the responses have {', '.join(options[:5])}"
        )
    answered = set(frame["item"])
    order = (
        [item for item in dict.fromkeys(map(str, items)) if item in answered] if items is not None else sorted(answered)
    )
    people = [] if (frame["who"] == "").any() else sorted(frame["who"].unique())
    column = pd.Categorical(frame["item"], order).codes
    row = pd.Categorical(frame["who"], people).codes if people else np.zeros(len(frame), dtype=int)
    shape = (max(len(people), 1), len(order))
    signals, answers = np.zeros(shape), np.zeros(shape)
    count = frame["count"].to_numpy(float)
    np.add.at(answers, (row, column), count)
    np.add.at(signals, (row, column), np.where(frame["said"] == signal, count, 0.0))
    return Humans(tuple(order), tuple(people), signals, answers)
