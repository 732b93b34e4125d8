"""Served models: whatever answers behind an OpenAI-compatible endpoint, asked many trials at a time."""

from __future__ import annotations

import logging
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vlm_probe.probes.models import (
    SPARE_TOKENS,
    THINKING_TOKENS,
    Generation,
    Identity,
    Model,
    ModelError,
    Reply,
    Trial,
    Turn,
)
from vlm_probe.probes.models.dummy_inputs import QUESTIONS, dummy_inputs
from vlm_probe.probes.models.endpoint import Endpoint, RequestFailed
from vlm_probe.probes.models.protocol import fault_of, is_cut, messages, positions, prompt_tokens, reply_of
from vlm_probe.probes.models.sampling import Sampling, full, settle
from vlm_probe.probes.models.served_adapter import Saying, check_served, served_hash
from vlm_probe.probes.models.served_options import Floats, ServedOptions, replies
from vlm_probe.probes.models.thinking import AUTO, SWITCHES, Thinking
from vlm_probe.probes.models.threads import in_threads
from vlm_probe.stimuli.dataset import Item
from vlm_probe.stimuli.question import ChoiceFormat

log = logging.getLogger(__name__)

GREETING = 16
"""Tokens of the reply to a made-up question, where the run does not say how many its replies may have."""
SEEDS = 0x7FFFFFFF
"""The largest seed: what goes into 32 bits with a sign."""
SHORTER = (
    "give fewer --examples or --attempts, a shorter --memory or fewer --max-new-tokens, or start the server with a longer context"
    " and more images per prompt"
)
"""What helps against a request that is too long."""
STRIKES = 2
"""So many failed trials in a row, for each that is under way at a time, and the server is taken to be gone."""


class ServedModel(Model):
    """A model behind an endpoint. Implements `vlm_probe.probes.models.Model`; make one with `connect`.

    Args:
        endpoint: The server.
        name: Id of the model there.
        adapter: Id of a LoRA adapter there, which then answers.
        concurrency: Trials under way at a time.
        thinking: Whether the model is to think before it answers.
    """

    streams = True

    def __init__(
        self,
        endpoint: Endpoint,
        name: str,
        adapter: str | None = None,
        concurrency: int = 8,
        thinking: Thinking = AUTO,
    ) -> None:
        self._thinking, self.thinks, self._swallowed = thinking, thinking.mode == "on", 0
        wanted = {} if thinking.mode == "auto" else dict.fromkeys(SWITCHES[:2], thinking.mode == "on")
        arguments = wanted | thinking.given
        self._rendering = {"chat_template_kwargs": arguments} if arguments else {}
        self._endpoint, self._model, self.batch_size = endpoint, adapter or name, concurrency
        self._name, self._adapter = name, adapter
        self._use(full(0.0))
        self._identity = Identity(name)
        self._lock = threading.Lock()
        self._tried: tuple[dict[str, Any], dict[str, Any]] | None = None
        self.observed: dict[str, Any] = {"answered_by": [], "cut_at_limit": False}
        """What was seen: the names under which the server answered, and whether a reply met its limit."""

    @classmethod
    def connect(
        cls,
        url: str,
        name: str,
        *,
        adapter: str | None = None,
        readout: str = "generate",
        concurrency: int = 8,
        settings: Generation | None = None,
        images: int = 1,
        thinking: Thinking = AUTO,
    ) -> ServedModel:
        """Reach a server and make sure, before any trial, that it can do what is asked of it.

        Args:
            url: Base URL of the server, which usually ends in /v1.
            name: Id of the model there.
            adapter: Id of a LoRA adapter there; it must answer differently from the model.
            readout: "generate", or "options", for which the server must give log-probabilities.
            concurrency: Trials under way at a time.
            settings: How replies will be generated; by default greedily.
            images: Images in the longest conversation.
            thinking: Whether the model is to think before it answers.

        Raises:
            ModelError: If it cannot be reached, or cannot do that; one line with the fix.
        """
        endpoint = Endpoint(url)
        cards = {str(card["id"]): card for card in endpoint.models()}
        model = cls(endpoint, name, adapter, concurrency, thinking)
        first = model._greet(list(cards), settings or Generation(), images)
        if adapter is not None:
            check_served(model._says, name, adapter, cards.get(adapter, {}), endpoint.url)
        if readout == "options":
            if model.thinks:
                raise ModelError(
                    f"{name} thinks before it answers, and {endpoint.url} cannot score answers after a thought: use --readout"
                    " generate, or --thinking off"
                )
            model._options.find()
        root = str(cards.get(name, {}).get("root") or "")
        details: dict[str, Any] = {
            "backend": "served",
            "answered_by": str(first.get("model") or ""),
            # Where the server names the weights, another address with the same weights can go on with a run.
            "endpoint": root or endpoint.url,
            "logprobs": model._options.kind,
            "sampling": str(model._sampling),
            "not_taken": list(model._sampling.refused),
            "notes": model._sampling.notes,
            "server": {
                "url": endpoint.url,
                "version": endpoint.version(),
                "software": str(cards.get(name, {}).get("owned_by") or ""),
                "system_fingerprint": str(first.get("system_fingerprint") or ""),
                "model": cards.get(name),
                "adapter": cards.get(adapter) if adapter else None,
                "concurrency": concurrency,
            },
        }
        details |= {"thinking": model.thinking_used} if model.thinking_used else {}
        details |= {"top_logprobs": model._options.top} if model._options.kind == "first-token" else {}
        model._identity = Identity(
            name,
            adapter_sha256=served_hash(adapter, cards.get(adapter, {})) if adapter else "",
            details=details | ({"adapter_id": adapter} if adapter else {}),
        )
        return model

    @property
    def thinking_used(self) -> str:
        """Whether the model thinks, and who decided that, in words; empty where nobody did and it does not."""
        mode, given = self._thinking.mode, self._thinking.arguments
        if mode == "auto" and not self.thinks and not given:
            return ""
        who = ", ".join(part for part in ("default of the server" if mode == "auto" else "chosen", given) if part)
        most = f", at most {self._thinking.max_tokens} tokens" if self.thinks else ""
        return f"{'on' if self.thinks else 'off'} ({who}){most}"

    @property
    def identity(self) -> Identity:
        """What exactly answers, as far as the server tells: it does not show its weights."""
        return self._identity

    def check(self, items: Sequence[Item]) -> None:
        """Refuse items whose options the server's log-probabilities cannot tell apart.

        Raises:
            ModelError: If there is one.
        """
        if self._options.kind != "first-token":
            return
        for item in items:
            texts = replies(item)
            if not isinstance(item.question.grammar, ChoiceFormat) or any(
                one != other and other.startswith(one) for one in texts for other in texts
            ):
                raise ModelError(
                    f"{self._endpoint.url} gives log-probabilities of the first token of a reply only, which cannot tell"
                    f" the answers of {item.task} apart: use --readout generate, or serve the model with vLLM"
                )

    def check_request(self, trials: Sequence[Trial], readout: str, settings: Generation) -> None:
        """Refuse a run whose longest requests the server does not take, by sending one exactly as the run would.

        Args:
            trials: The longest ones, the longest first. One that is refused alone may owe that to its own image.
            readout: "generate" or "options".
            settings: How replies are generated.

        Raises:
            ModelError: If it refuses them all, or says that it has no room for the replies.
        """
        first: ModelError | None = None
        for trial in trials:
            told = f"a request of this run ({trial.item.item_id}, images: {_images(trial)})"
            try:
                answer = self._first_request(trial, readout, settings)
            except RequestFailed as error:
                if error.filtered:
                    return
                # The words about an image that is too large end with a fix of their own.
                fix = "" if error.status == 413 else f"; {SHORTER}"
                first = first or ModelError(f"{self._endpoint.url} does not take {told}: {error}{fix}")
                if error.status is None and not error.refused:
                    break
                continue
            if first is not None:
                log.warning("%s; a shorter one is taken, so that trials like it will fail", first)
            self._check_room(trial, prompt_tokens(answer), settings, told)
            return
        if first is not None:
            raise first

    def _first_request(self, trial: Trial, readout: str, settings: Generation) -> dict[str, Any]:
        """The answer to the first request of a trial. If it is usable, the trial need not be asked again."""
        if readout == "generate":
            body = self._request(trial, settings)
        elif self._options.kind == "prompt":
            body = self._options.prompt_request(messages(trial.turns))
        else:
            body = self._options.first_request(messages(trial.turns))
        answer = self._complete(body, counted=False, any_reply=True)
        self._tried = (body, answer) if fault_of(answer) is None else None
        return answer

    def _check_room(self, trial: Trial, seen: int | None, settings: Generation, told: str) -> None:
        """Refuse a context that the replies of further attempts would fill. Raises ModelError."""
        room = (self.identity.details["server"].get("model") or {}).get("max_model_len")
        earlier = sum(turn.role == "assistant" for turn in trial.context) if trial.attempt > 1 else 0
        tokens = (seen or 0) + (settings.max_new_tokens or _limit(trial.item)) * (1 + earlier) + self._thought_tokens
        if isinstance(room, int) and seen and tokens > room:
            raise ModelError(
                f"{self._model} reads {room} tokens at {self._endpoint.url}, and {told} may take {tokens}: {SHORTER}"
            )

    def stream(self, trials: Iterable[Trial], readout: str, settings: Generation) -> Iterator[tuple[Trial, Any, float]]:
        """Ask trials as they come, several at a time.

        Args:
            trials: The trials; taken one by one, as the server has room for them.
            readout: "generate" or "options".
            settings: How replies are generated.

        Yields:
            In the order in which they are answered: trial, its result (a `Reply`, log-probabilities, or the exception that it
            cost), and the seconds that it took, waits included.

        Raises:
            ModelError: If the server fails for all of them: it is gone, or does not let us in any more.
        """
        cancelled = threading.Event()

        def answer(trial: Trial) -> Any:
            if readout == "generate":
                return self._reply(trial, settings, cancelled)
            return self._options.score(trial, cancelled)

        failed, unfinished = 0, list[Reply]()
        for trial, value, seconds in in_threads(answer, trials, self.batch_size, cancelled):
            if isinstance(value, ModelError):
                raise value
            gone = isinstance(value, RequestFailed) and not value.refused
            failed = failed + 1 if gone else 0
            if isinstance(value, Reply) and value.ended == "unfinished":
                unfinished += [value] if trial.item.question.parse(value.text).value is None else []
            yield trial, value, seconds
            if failed >= STRIKES * self.batch_size:
                raise ModelError(
                    f"the server at {self._endpoint.url} failed {failed} trials in a row, the last with: {value}; what it"
                    " answered is kept: see to the server, then give the same command again"
                )
        _warn_of(unfinished, self._swallowed)

    def generate(self, trials: Sequence[Trial], settings: Generation) -> list[str]:
        """One reply text per trial.

        Args:
            trials: What is asked.
            settings: How replies are generated.

        Raises:
            RequestFailed: If a trial fails: that of the first one.
            ModelError: If the server fails for all of them.
        """
        return [reply.text for reply in self._all(trials, "generate", settings)]

    def score_options(self, trials: Sequence[Trial]) -> list[Floats]:
        """Log-probabilities of every legal reply, as exact as the server allows (see `docs/served.md`).

        Raises:
            RequestFailed: If a trial fails: that of the first one.
            ModelError: If the server gives no log-probabilities, or fails for all trials.
        """
        if not self._options.kind:
            self._options.find()
        return self._all(trials, "options", Generation())

    def _all(self, trials: Sequence[Trial], readout: str, settings: Generation) -> list[Any]:
        found = {}
        for trial, value, _ in self.stream(trials, readout, settings):
            if isinstance(value, Exception):
                raise value
            found[trial.id] = value
        return [found[trial.id] for trial in trials]

    def _use(self, sampling: Sampling) -> None:
        """Send these sampling fields from now on."""
        self._sampling = sampling
        self._options = ServedOptions(self._uncounted, sampling, self._endpoint.url)

    @property
    def _thought_tokens(self) -> int:
        return self._thinking.max_tokens if self.thinks else 0

    def _request(self, trial: Trial, settings: Generation) -> dict[str, Any]:
        """The request for a reply."""
        # Of the trial, so that two trials do not share their luck, and one has the same when it is asked again.
        name = " ".join(part for part in trial.id if part)
        seed = zlib.crc32(f"{name} {settings.seed}".encode()) & SEEDS
        fields = self._sampling.at(settings.temperature)
        tokens = (settings.max_new_tokens or _limit(trial.item)) + self._thought_tokens
        return {"messages": messages(trial.turns), **fields.replying(tokens, seed)}

    def _reply(self, trial: Trial, settings: Generation, cancelled: threading.Event) -> Reply:
        try:
            answer = self._complete(self._request(trial, settings), cancelled)
            reply = reply_of(answer, trial.item.question.style)
            if reply.ended == "unfinished" and not is_cut(answer):
                with self._lock:
                    self._swallowed += 1
            return reply
        except RequestFailed as error:
            if error.filtered:
                return Reply(str(error), "filtered")
            raise
        except (ValueError, RecursionError) as error:
            raise RequestFailed(str(error), refused=True) from error

    def _complete(
        self,
        body: Mapping[str, Any],
        cancelled: threading.Event | None = None,
        *,
        counted: bool = True,
        model: str = "",
        retries: int | None = None,
        any_reply: bool = False,
    ) -> dict[str, Any]:
        reply = None
        with self._lock:
            if self._tried is not None and self._tried[0] == body:
                reply, self._tried = self._tried[1], None
        if reply is None:
            asked = {"model": model or self._model, **body, **self._rendering}
            reply = self._endpoint.complete(asked, cancelled, retries=retries, any_reply=any_reply)
        if counted:
            with self._lock:
                name = str(reply.get("model") or "")
                self.observed["answered_by"] = sorted({*self.observed["answered_by"], name})
                self.observed["cut_at_limit"] |= is_cut(reply)
        return reply

    def _uncounted(
        self, body: Mapping[str, Any], cancelled: threading.Event | None = None, *, retries: int | None = None
    ) -> dict[str, Any]:
        return self._complete(body, cancelled, counted=False, retries=retries)

    def _greet(self, known: Sequence[str], settings: Generation, images: int) -> dict[str, Any]:
        """The reply to a made-up question, with which the server shows that it has the model and takes the run's requests."""
        tokens, sent = settings.max_new_tokens or GREETING, 0

        def ask(sampling: Sampling, turns: Sequence[Turn]) -> dict[str, Any]:
            nonlocal sent
            sent += 1  # the first time a server may still be starting; after that it need not be waited for
            body = {"messages": messages(turns), **sampling.replying(tokens, settings.seed & SEEDS)}
            return self._complete(body, counted=False, retries=None if sent == 1 else 1, any_reply=True)

        try:
            sampling, reply = settle(lambda tried: ask(tried, [dummy_inputs()]), settings.temperature)
        except (RequestFailed, ModelError) as error:
            absent = known and self._model not in known
            hint = f"; it lists {', '.join(known[:8])}" if absent else ""
            hint += "; it may not take --thinking and --chat-template-args" if self._rendering else ""
            raise ModelError(
                f"{self._endpoint.url} does not answer for {self._model!r}: {error}{hint}; see --model, --adapter and"
                " --base-url"
            ) from error
        self._use(sampling)
        for note in sampling.notes:
            log.warning("%s: %s", self._endpoint.url, note)
        fault = fault_of(reply)
        if fault is not None:
            log.warning("%s took a first question without a usable reply: %s", self._endpoint.url, fault.message[:300])
        elif self._thinking.mode == "auto":
            self.thinks = _thought(reply)
        try:
            if images > 1:
                ask(sampling, _conversation(images))
        except RequestFailed as error:
            raise ModelError(
                f"{self._endpoint.url} does not take the {images} images of one prompt of this run: {error}; {SHORTER}"
            ) from error
        self._check_sight(reply)
        return reply

    def _check_sight(self, seen: Mapping[str, Any]) -> None:
        """Warn of a server that counts no tokens for an image, given its answer to a question about one."""
        try:
            blind = {"messages": messages([Turn("user", dummy_inputs().text)]), **self._sampling.replying(GREETING)}
            unseen = self._complete(blind, counted=False, retries=1, any_reply=True)
        except RequestFailed as error:
            log.debug("a question without an image is refused: %s", error)
            return
        if prompt_tokens(seen) is not None and prompt_tokens(seen) == prompt_tokens(unseen):
            log.warning(
                "%s counts no tokens for an image: it may leave images out; compare a run with one under --design controls",
                self._endpoint.url,
            )

    def _says(self, number: int, model: str) -> Saying:
        """What a model says to a made-up question: the text, and log-probabilities where the server gives them."""
        body = {"messages": messages([dummy_inputs(number)]), **self._sampling.replying(GREETING)}
        try:
            top = self._options.most_or_none(5)
            body |= {"logprobs": True, "top_logprobs": top} if top else {}
            reply = self._complete(body, counted=False, model=model)
            return _words(reply), positions(reply)
        except (RequestFailed, ValueError) as error:
            raise ModelError(f"{self._endpoint.url} failed at a made-up question: {error}") from error


def _limit(item: Item) -> int:
    """Tokens that a reply may have. A token is at least a byte, so that the longest legal answer always fits."""
    if item.question.style == "think":
        return THINKING_TOKENS
    return max(len(text.encode()) for text in replies(item)) + 1 + SPARE_TOKENS


def _images(trial: Trial) -> int:
    return sum(len(turn.images) for turn in trial.turns)


def _conversation(images: int) -> list[Turn]:
    """A made-up conversation with so many images, one per question."""
    turns: list[Turn] = []
    for number in range(images - 1):
        turns += [dummy_inputs(number % len(QUESTIONS)), Turn("assistant", "yes")]
    return [*turns, dummy_inputs()]


def _words(reply: Mapping[str, Any]) -> str:
    try:
        return reply_of(reply, "direct").text
    except ValueError:  # cut off before any text, which is as good as any other reply to a made-up question
        return ""


def _thought(answer: Mapping[str, Any]) -> bool:
    """Whether a model has thought before it answered, or is at it."""
    try:
        return reply_of(answer, "direct").thought is not None
    except ValueError:
        return False


def _warn_of(unfinished: Sequence[Reply], swallowed: int) -> None:
    """Tell why replies hold no answer, and what to do."""
    thoughts = sum(not reply.text for reply in unfinished) - swallowed
    for count, what, fix in (
        (
            thoughts,
            "were cut within a thought",
            "give a larger --max-thinking-tokens with --thinking on, or --thinking off",
        ),
        (
            len(unfinished) - thoughts - swallowed,
            "were cut at the token limit before an answer",
            "give a larger --max-new-tokens",
        ),
        (swallowed, "are reasoning alone", "start the server without its reasoning parser"),
    ):
        if count:
            log.warning("%d replies %s (status unfinished): %s", count, what, fix)
