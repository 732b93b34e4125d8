"""Log-probabilities of legal answers from a server: of whole replies as prompts (vLLM), or of the likeliest first tokens."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from vlm_probe.probes.models import ModelError, Trial
from vlm_probe.probes.models.dummy_inputs import dummy_inputs
from vlm_probe.probes.models.endpoint import RequestFailed
from vlm_probe.probes.models.protocol import brief, log_probability, messages, positions
from vlm_probe.probes.models.sampling import Sampling
from vlm_probe.stimuli.dataset import Item

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]
Kind = Literal["", "prompt", "first-token"]
Messages = list[dict[str, Any]]

TOP = 20
"""Likeliest tokens that are asked for: as many as OpenAI gives. Of a server that refuses so many, as many as it takes."""


class TrialSpec(Protocol):
    """Sends a request with these fields; see `vlm_probe.probes.models.endpoint.Endpoint.complete`."""

    def __call__(
        self, body: Mapping[str, Any], cancelled: threading.Event | None = None, *, retries: int | None = None
    ) -> dict[str, Any]:
        """The server's answer."""
        ...


class ServedOptions:
    """Scores the legal answers of trials with what a server tells. May be used from several threads at once.

    Args:
        ask: Sends a request.
        sampling: The sampling fields that the server takes.
        url: Of the server, for messages.

    Attributes:
        kind: Which log-probabilities the server gives; empty until `find` has asked.
        top: How many of the likeliest tokens it gives at most; None until it was asked.
    """

    def __init__(self, ask: TrialSpec, sampling: Sampling, url: str) -> None:
        self._ask, self._sampling, self._url = ask, sampling, url
        self.kind: Kind = ""
        self.top: int | None = None
        self._closing: int | None = None

    def find(self) -> None:
        """Find out which log-probabilities the server gives.

        Raises:
            ModelError: If it gives none; one line with the fix.
        """
        reasons = []
        try:
            self.prompt(messages([dummy_inputs()]), retries=1)
            self.kind = "prompt"
            return
        except RequestFailed as error:
            log.debug("no log-probabilities of prompts: %s", error)
        try:
            if self.most():
                self.kind = "first-token"
                return
        except RequestFailed as error:
            reasons.append(f" ({error})")
        raise ModelError(
            f"the server at {self._url} gives no log-probabilities{''.join(reasons)}, so that --readout options is unavailable:"
            " use --readout generate, or a server that gives them, such as vLLM"
        )

    def most(self) -> int:
        """How many of the likeliest first tokens the server tells, at most `TOP`; 0 if none.

        Raises:
            RequestFailed: If it refuses any number of them, or fails.
        """
        if self.top is None:
            told, refused = 0, TOP + 1
            while refused - told > 1:
                asked = TOP if refused > TOP else (told + refused) // 2
                try:
                    found = self.first(messages([dummy_inputs()]), asked, retries=1)
                except RequestFailed as error:
                    if error.status is None or asked == 1:
                        raise
                    refused = asked
                    continue
                if not found:
                    break
                told = asked
            self.top = told
        return self.top

    def most_or_none(self, wanted: int) -> int:
        """So many of the likeliest tokens, or as many as the server tells; 0 if it tells none.

        Args:
            wanted: How many.
        """
        try:
            return min(wanted, self.most())
        except RequestFailed as error:
            log.debug("no log-probabilities of replies: %s", error)
            self.top = 0
            return 0

    def score(self, trial: Trial, cancelled: threading.Event) -> Floats:
        """The log-probability of every legal reply, in the order of the grammar's candidates.

        Args:
            trial: What is asked.
            cancelled: Ends the waiting when it is set.

        Raises:
            RequestFailed: If the server does not tell one of them.
        """
        if self.kind == "prompt":
            return self._score_prompts(trial, cancelled)
        given = self.first(messages(trial.turns), None, cancelled)
        if not given:
            raise RequestFailed("the server gave no log-probabilities: use --readout generate", refused=True)
        scores = []
        for text in replies(trial.item):
            found = [value for token, value in given.items() if token.strip() == text]
            if not found:
                raise RequestFailed(
                    f"{text!r} is not among the {len(given)} likeliest first tokens, and the server tells no more:"
                    " use --readout generate",
                    refused=True,
                )
            scores.append(float(np.logaddexp.reduce(found)))
        return np.array(scores)

    def first(
        self, asked: Messages, top: int | None, cancelled: threading.Event | None = None, *, retries: int | None = None
    ) -> dict[str, float]:
        """The log-probabilities of the likeliest first tokens of a reply; empty if the server gives none.

        Args:
            asked: The conversation.
            top: How many are asked for; None = as many as the server tells.
            cancelled: Ends the waiting when it is set.
            retries: As for `TrialSpec`.

        Raises:
            RequestFailed: If the server refuses or fails.
        """
        answer = self._ask(self.first_request(asked, top), cancelled, retries=retries)
        try:
            found = positions(answer)
        except ValueError as error:
            raise RequestFailed(str(error), refused=True) from error
        return found[0][1] if found else {}

    def prompt(
        self,
        asked: Messages,
        cancelled: threading.Event | None = None,
        *,
        retries: int | None = None,
        **rendering: bool,
    ) -> list[tuple[int, float]]:
        """The tokens of a prompt, each with its log-probability given those before it; minus infinity where it is not told.

        Args:
            asked: The conversation.
            cancelled: Ends the waiting when it is set.
            retries: As for `TrialSpec`.
            rendering: How its end is written: vLLM's `add_generation_prompt`, `continue_final_message`.

        Raises:
            RequestFailed: If the server refuses or fails, or does not give log-probabilities of prompts.
        """
        answer = self._ask(self.prompt_request(asked) | rendering, cancelled, retries=retries)
        entries, ids = answer.get("prompt_logprobs"), answer.get("prompt_token_ids")
        if not isinstance(entries, list) or not entries:
            raise RequestFailed("the server gave no log-probabilities of the prompt", refused=True)
        try:
            return [_told(entry, ids[place] if ids else None) for place, entry in enumerate(entries)]
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise RequestFailed(
                f"the server's log-probabilities of the prompt cannot be read ({brief(str(error))})", refused=True
            ) from error

    def first_request(self, asked: Messages, top: int | None = None) -> dict[str, Any]:
        """The request for the likeliest first tokens of a reply.

        Args:
            asked: The conversation.
            top: How many; None = as many as the server tells.
        """
        count = top or self.top or TOP
        return {"messages": asked, **self._sampling.scoring(), "logprobs": True, "top_logprobs": count}

    def prompt_request(self, asked: Messages) -> dict[str, Any]:
        """The request for the log-probabilities of a prompt.

        Args:
            asked: The conversation.
        """
        return {"messages": asked, **self._sampling.scoring(), "prompt_logprobs": 1, "return_token_ids": True}

    def _score_prompts(self, trial: Trial, cancelled: threading.Event) -> Floats:
        """The log-probability of every whole reply and its end, as that of a prompt that ends with it (vLLM)."""
        asked = messages(trial.turns)
        before = self.prompt(asked, cancelled)
        scores = []
        for text in replies(trial.item):
            told = [*asked, {"role": "assistant", "content": text}]
            whole = self.prompt(told, cancelled, add_generation_prompt=False)
            # The first token has no log-probability, and older servers do not say which one it is.
            if [token for token, _ in whole[1 : len(before)]] != [token for token, _ in before[1:]]:
                raise RequestFailed(
                    "the server's chat template does not write a reply where it asks for one, so that replies cannot be"
                    " scored: use --readout generate",
                    refused=True,
                )
            if self._closing is None:
                left_open = self.prompt(told, cancelled, add_generation_prompt=False, continue_final_message=True)
                self._closing = len(whole) - len(left_open)
            # Only the first token after a reply is its end; the template may write a new line after it.
            last = len(whole) - max(self._closing - 1, 0)
            score = sum(value for _, value in whole[len(before) : last])
            if not math.isfinite(score):
                raise RequestFailed(
                    f"the server tells no log-probability of a token of {text!r}: use --readout generate", refused=True
                )
            scores.append(score)
        return np.array(scores)


def replies(item: Item) -> Sequence[str]:
    """Every legal answer as the text of a reply, in the order of the grammar's candidates."""
    return [item.question.reply(value) for _, value in item.question.grammar.candidates()]


def _told(entry: Any, token: Any) -> tuple[int, float]:
    """One token of a prompt, and its log-probability, of which the first token has none."""
    if not entry:
        return -1 if token is None else int(token), 0.0
    # The token of the prompt comes first in its entry, and the likeliest one, if that is another, after it.
    name = next(iter(entry)) if token is None else str(token)
    return int(name), log_probability(entry[name]["logprob"])
