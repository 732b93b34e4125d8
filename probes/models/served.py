"""Served models: whatever answers behind an OpenAI-compatible endpoint, asked many trials at a time."""

from __future__ import annotations

import logging
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vlm_probe.probes.models import Generation, Identity, ModelError, Trial, Turn
from vlm_probe.probes.models.endpoint import Endpoint, RequestFailed
from vlm_probe.probes.models.made_up import made_up
from vlm_probe.probes.models.protocol import messages, positions, words_of
from vlm_probe.probes.models.reply_limits import SPARE_TOKENS, THINKING_TOKENS
from vlm_probe.probes.models.served_adapter import Saying, check_served, served_hash
from vlm_probe.probes.models.threads import in_threads
from vlm_probe.stimuli.dataset import Item
from vlm_probe.stimuli.question import Options

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]
Kind = Literal["", "prompt", "first-token"]

TOP = 20
"""Likeliest tokens that are asked for: as many as OpenAI gives."""
STRIKES = 2
"""So many failed trials in a row, for each that is under way at a time, and the server is taken to be gone."""


class ServedModel:
    """A model behind an endpoint. Implements `vlm_probe.probes.models.Model`; make one with `connect`.

    Args:
        endpoint: The server.
        name: Id of the model there.
        adapter: Id of a LoRA adapter there, which then answers.
        concurrency: Trials under way at a time.
    """

    needs_images = True

    def __init__(self, endpoint: Endpoint, name: str, adapter: str | None = None, concurrency: int = 8) -> None:
        self._endpoint, self._model, self.batch_size = endpoint, adapter or name, concurrency
        self._name, self._adapter = name, adapter
        self._limit_name = "max_tokens"
        self._kind: Kind = ""
        self._closing: int | None = None
        self._identity = Identity(name)
        self._lock = threading.Lock()
        self.observed: dict[str, Any] = {"answered_by": [], "cut_at_limit": False}
        """What was seen: the names under which the server answered, and whether a reply met its limit."""

    @classmethod
    def connect(
        cls, url: str, name: str, *, adapter: str | None = None, readout: str = "generate", concurrency: int = 8
    ) -> ServedModel:
        """Reach a server and make sure, before any trial, that it can do what is asked of it.

        Args:
            url: Base URL of the server, which usually ends in /v1.
            name: Id of the model there.
            adapter: Id of a LoRA adapter there; it must answer differently from the model.
            readout: "generate", or "options", for which the server must give log-probabilities.
            concurrency: Trials under way at a time.

        Raises:
            ModelError: If it cannot be reached, or cannot do that; one line with the fix.
        """
        endpoint = Endpoint(url)
        cards = {str(card["id"]): card for card in endpoint.models()}
        model = cls(endpoint, name, adapter, concurrency)
        first = model._greet(list(cards))
        if adapter is not None:
            check_served(model._says, name, adapter, cards.get(adapter, {}), endpoint.url)
        if readout == "options":
            model._kind = model._find_logprobs()
        root = str(cards.get(name, {}).get("root") or "")
        details: dict[str, Any] = {
            "backend": "served",
            "answered_by": str(first.get("model", "")),
            # Where the server names the weights, another address with the same weights can go on with a run.
            "endpoint": root or endpoint.url,
            "logprobs": model._kind,
            "server": {
                "url": endpoint.url,
                "version": endpoint.version(),
                "software": str(cards.get(name, {}).get("owned_by", "")),
                "system_fingerprint": str(first.get("system_fingerprint") or ""),
                "model": cards.get(name),
                "adapter": cards.get(adapter) if adapter else None,
                "concurrency": concurrency,
            },
        }
        model._identity = Identity(
            name,
            adapter_sha256=served_hash(adapter, cards.get(adapter, {})) if adapter else "",
            details=details | ({"adapter_id": adapter} if adapter else {}),
        )
        return model

    @property
    def identity(self) -> Identity:
        """What exactly answers, as far as the server tells: it does not show its weights."""
        return self._identity

    def check(self, items: Sequence[Item]) -> None:
        """Refuse items whose options the server's log-probabilities cannot tell apart.

        Raises:
            ModelError: If there is one.
        """
        if self._kind != "first-token":
            return
        for item in items:
            texts = _replies(item)
            if not isinstance(item.question.grammar, Options) or any(
                one != other and other.startswith(one) for one in texts for other in texts
            ):
                raise ModelError(
                    f"{self._endpoint.url} gives log-probabilities of the first token of a reply only, which cannot tell"
                    f" the answers of {item.task} apart: use --readout generate, or serve the model with vLLM"
                )

    def check_context(self, trials: Sequence[Trial], settings: Generation) -> None:
        """Refuse conversations that the server does not take, by asking the longest ones.

        Args:
            trials: The longest one last.
            settings: How replies are generated.

        Raises:
            ModelError: If it refuses one, or says that it has no room for the replies.
        """
        trial = trials[-1]
        tried = f"{trial.attempt} attempts on {trial.item.item_id} with what is remembered of them"
        body = {"messages": messages(trial.turns), "temperature": 0.0, self._limit_name: 1}
        try:
            reply = self._complete(body, counted=False)
        except RequestFailed as error:
            raise ModelError(
                f"{self._endpoint.url} does not take {tried}: {error}; give fewer --attempts, a shorter --memory, or start the"
                " server with a longer context and more pictures per prompt"
            ) from error
        room = (self.identity.details["server"].get("model") or {}).get("max_model_len")
        seen = (reply.get("usage") or {}).get("prompt_tokens")
        limit = settings.max_new_tokens or _limit(trial.item)
        tokens = (seen or 0) + limit * (1 + sum(turn.role == "assistant" for turn in trial.context))
        if room and seen and tokens > room:
            raise ModelError(
                f"{self._model} reads {room} tokens at {self._endpoint.url}, and {tried} take up to {tokens}: give fewer"
                " --attempts, or a shorter --memory such as last-1"
            )

    def stream(self, trials: Iterable[Trial], readout: str, settings: Generation) -> Iterator[tuple[Trial, Any, float]]:
        """Ask trials as they come, several at a time.

        Args:
            trials: The trials; taken one by one, as the server has room for them.
            readout: "generate" or "options".
            settings: How replies are generated.

        Yields:
            In the order in which they are answered: trial, what came of it (reply, log-probabilities, or the exception
            that it cost), and the seconds that it took, waits included.

        Raises:
            ModelError: If the server fails for all of them: it is gone, or does not let us in any more.
        """
        cancelled = threading.Event()

        def answer(trial: Trial) -> Any:
            return self._reply(trial, settings, cancelled) if readout == "generate" else self._score(trial, cancelled)

        failed = 0
        for trial, value, seconds in in_threads(answer, trials, self.batch_size, cancelled):
            if isinstance(value, ModelError):
                raise value
            gone = isinstance(value, RequestFailed) and not value.refused
            failed = failed + 1 if gone else 0
            yield trial, value, seconds
            if failed >= STRIKES * self.batch_size:
                raise ModelError(
                    f"the server at {self._endpoint.url} failed {failed} trials in a row, the last with: {value}; what it"
                    " answered is kept: see to the server, then give the same command again"
                )

    def generate(self, trials: Sequence[Trial], settings: Generation) -> list[str]:
        """One reply text per trial.

        Args:
            trials: What is asked.
            settings: How replies are generated.

        Raises:
            RequestFailed: If a trial fails: that of the first one.
            ModelError: If the server fails for all of them.
        """
        return self._all(trials, "generate", settings)

    def score_options(self, trials: Sequence[Trial]) -> list[Floats]:
        """Log-probabilities of every legal reply, as exact as the server allows (see `docs/served.md`).

        Raises:
            RequestFailed: If a trial fails: that of the first one.
            ModelError: If the server gives no log-probabilities, or fails for all trials.
        """
        if not self._kind:
            self._kind = self._find_logprobs()
        return self._all(trials, "options", Generation())

    def _all(self, trials: Sequence[Trial], readout: str, settings: Generation) -> list[Any]:
        found = {}
        for trial, value, _ in self.stream(trials, readout, settings):
            if isinstance(value, Exception):
                raise value
            found[trial.id] = value
        return [found[trial.id] for trial in trials]

    def _reply(self, trial: Trial, settings: Generation, cancelled: threading.Event) -> str:
        body = {
            "messages": messages(trial.turns),
            "temperature": settings.temperature,
            self._limit_name: settings.max_new_tokens or _limit(trial.item),
        }
        if settings.temperature > 0:
            # Of the trial, so that two trials do not share their luck, and one has the same when it is asked again.
            name = " ".join(part for part in trial.id if part)
            body["seed"] = zlib.crc32(f"{name} {settings.seed}".encode()) & 0x7FFFFFFF
        reply = self._complete(body, cancelled)
        return words_of(reply, trial.item.question.style)

    def _score(self, trial: Trial, cancelled: threading.Event) -> Floats:
        if self._kind == "prompt":
            return self._score_prompts(trial, cancelled)
        return self._score_first_token(trial, cancelled)

    def _score_prompts(self, trial: Trial, cancelled: threading.Event) -> Floats:
        """The log-probability of every whole reply and its end, as that of a prompt that ends with it (vLLM)."""
        asked = messages(trial.turns)
        before = self._prompt(asked, cancelled)
        scores = []
        for text in _replies(trial.item):
            told = [*asked, {"role": "assistant", "content": text}]
            whole = self._prompt(told, cancelled, add_generation_prompt=False)
            # The first token has no log-probability, and older servers do not say which one it is.
            if [token for token, _ in whole[1 : len(before)]] != [token for token, _ in before[1:]]:
                raise RequestFailed(
                    "the server's chat template does not write a reply where it asks for one, so that replies cannot be"
                    " scored: use --readout generate",
                    refused=True,
                )
            if self._closing is None:
                left_open = self._prompt(told, cancelled, add_generation_prompt=False, continue_final_message=True)
                self._closing = len(whole) - len(left_open)
            # Only the first token after a reply is its end; the template may write a new line after it.
            last = len(whole) - max(self._closing - 1, 0)
            scores.append(sum(value for _, value in whole[len(before) : last]))
        return np.array(scores)

    def _prompt(
        self, asked: list[dict[str, Any]], cancelled: threading.Event, **rendering: bool
    ) -> list[tuple[int, float]]:
        """The tokens of a prompt, each with its log-probability given those before it."""
        extra = {"prompt_logprobs": 1, "return_token_ids": True, self._limit_name: 1, "temperature": 0.0}
        reply = self._complete({"messages": asked, **extra, **rendering}, cancelled, counted=False)
        entries, ids = reply.get("prompt_logprobs"), reply.get("prompt_token_ids")
        if not isinstance(entries, list):
            raise RequestFailed("the server gave no log-probabilities of the prompt", refused=True)
        tokens = []
        for place, entry in enumerate(entries):
            # The token of the prompt comes first in its entry, and the likeliest one, if that is another, after it.
            token = str(ids[place]) if ids else next(iter(entry or {}), "")
            tokens.append((token, float(entry[token]["logprob"]) if entry else 0.0))
        return [(int(token or -1), value) for token, value in tokens]

    def _score_first_token(self, trial: Trial, cancelled: threading.Event) -> Floats:
        """The log-probability of every one-token reply among the likeliest first tokens, without that of its end."""
        body = {"messages": messages(trial.turns), "temperature": 0.0, self._limit_name: 1}
        reply = self._complete({**body, "logprobs": True, "top_logprobs": TOP}, cancelled, counted=False)
        given = positions(reply)
        if not given:
            raise RequestFailed("the server gave no log-probabilities", refused=True)
        scores = []
        for text in _replies(trial.item):
            found = [value for token, value in given[0][1].items() if token.strip() == text]
            if not found:
                raise RequestFailed(
                    f"{text!r} is not among the {len(given[0][1])} likeliest first tokens, and the server tells no more:"
                    " use --readout generate",
                    refused=True,
                )
            scores.append(float(np.logaddexp.reduce(found)))
        return np.array(scores)

    def _complete(
        self,
        body: Mapping[str, Any],
        cancelled: threading.Event | None = None,
        *,
        counted: bool = True,
        model: str = "",
    ) -> dict[str, Any]:
        reply = self._endpoint.complete({"model": model or self._model, **body}, cancelled)
        if counted:
            with self._lock:
                name = str(reply.get("model", ""))
                self.observed["answered_by"] = sorted({*self.observed["answered_by"], name})
                self.observed["cut_at_limit"] |= reply["choices"][0].get("finish_reason") == "length"
        return reply

    def _greet(self, known: Sequence[str]) -> dict[str, Any]:
        """The reply to a made-up question, with which the server shows that it has the model and takes pictures."""
        body: dict[str, Any] = {"messages": messages([made_up()]), "temperature": 0.0}
        try:
            try:
                reply = self._complete({**body, self._limit_name: 16}, counted=False)
            except RequestFailed as error:
                if "max_completion_tokens" not in str(error):
                    raise
                self._limit_name = "max_completion_tokens"  # as newer models of OpenAI have it
                reply = self._complete({**body, self._limit_name: 16}, counted=False)
        except (RequestFailed, ModelError) as error:
            absent = known and self._model not in known
            hint = f"; it lists {', '.join(known[:8])}" if absent else ""
            raise ModelError(
                f"{self._endpoint.url} does not answer for {self._model!r}: {error}{hint}; see --model, --adapter and"
                " --base-url"
            ) from error
        blind = [Turn("user", made_up().text)]
        words = self._complete({"messages": messages(blind), "temperature": 0.0, self._limit_name: 1}, counted=False)
        seen, unseen = ((r.get("usage") or {}).get("prompt_tokens") for r in (reply, words))
        if seen is not None and seen == unseen:
            log.warning(
                "%s counts no tokens for a picture: it may leave pictures out; compare a run with one under --design"
                " controls",
                self._endpoint.url,
            )
        return reply

    def _find_logprobs(self) -> Kind:
        """Which log-probabilities the server gives: of a whole prompt (vLLM), or of the likeliest first tokens."""
        try:
            self._prompt(messages([made_up()]), threading.Event())
            return "prompt"
        except RequestFailed as error:
            log.debug("no log-probabilities of prompts: %s", error)
        try:
            body = {"messages": messages([made_up()]), "temperature": 0.0, self._limit_name: 1}
            if positions(self._complete({**body, "logprobs": True, "top_logprobs": TOP}, counted=False)):
                return "first-token"
        except RequestFailed as error:
            log.debug("no log-probabilities of replies: %s", error)
        raise ModelError(
            f"the server at {self._endpoint.url} gives no log-probabilities, so --readout options is not to be had there:"
            " use --readout generate, or a server that gives them, such as vLLM"
        )

    def _says(self, number: int, model: str) -> Saying:
        """What a model says to a made-up question: the text, and log-probabilities where the server gives them."""
        body = {"messages": messages([made_up(number)]), "temperature": 0.0, self._limit_name: 16}
        try:
            reply = self._complete({**body, "logprobs": True, "top_logprobs": 5}, counted=False, model=model)
        except RequestFailed as error:
            if not error.refused:
                raise ModelError(f"{self._endpoint.url} failed at a made-up question: {error}") from error
            reply = self._complete(body, counted=False, model=model)
        return words_of(reply, "direct"), positions(reply)


def _replies(item: Item) -> list[str]:
    """Every legal answer as the text of a reply, in the order of the grammar's candidates."""
    return [item.question.reply(value) for _, value in item.question.grammar.candidates()]


def _limit(item: Item) -> int:
    """Tokens that a reply may have. A token is at least a byte, so that the longest legal answer always fits."""
    if item.question.style == "think":
        return THINKING_TOKENS
    return max(len(text.encode()) for text in _replies(item)) + 1 + SPARE_TOKENS
