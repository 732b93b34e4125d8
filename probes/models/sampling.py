"""The sampling fields of a request to a server: all of them sent, with values that change nothing, as far as it takes them.

What a request leaves out, servers fill from the checkpoint's generation_config.json or from their own settings, so that a reply that
is called greedy may have a repetition penalty in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vlm_probe.probes.models.endpoint import RequestFailed

NEUTRAL: Mapping[str, tuple[float, ...]] = {
    "top_p": (1.0, 0.9999),
    "top_k": (-1, 0),
    "min_p": (0.0,),
    "repetition_penalty": (1.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "repeat_penalty": (1.0,),
    "typical_p": (1.0, 0.9999),
    "dry_multiplier": (0.0,),
    "xtc_probability": (0.0,),
}
"""The fields, and per field the values that switch it off, the first of them first: SGLang and vLLM want -1 for top_k, others 0; Text
Generation Inference wants a top_p below 1."""
LLAMA_CPP = ("repeat_penalty", "typical_p", "dry_multiplier", "xtc_probability")
"""Fields of llama.cpp and what is built on it, which are no loss where they are refused."""
GREEDY = (0.0, 0.001, 0.01, 0.1)
"""Temperatures that stand for greedy decoding, the first that the server takes."""
LIMITS = ("max_tokens", "max_completion_tokens")
"""Names of the token limit; newer models of OpenAI have the second."""
_UNKNOWN = re.compile(
    r"max_completion_tokens|un(supported|known|recogni[sz]ed|expected)|not (supported|permitted|allowed|compatible)|extra|deprecated",
    re.IGNORECASE,
)
"""How servers say that they have no such field."""
PLAIN = 1.0
"""The temperature that changes nothing; it is the protocol's own, so that it need not be sent where it is wanted."""

_Values = dict[str, tuple[Any, ...]]
"""By field, the values that are left to try, the present one first; where none is left, the field is not sent."""


@dataclass(frozen=True)
class Sampling:
    """The sampling fields that a server takes.

    Attributes:
        fields: By name, without the token limit and the seed.
        limit: What it calls the token limit.
        seeded: Whether requests have a seed, which sampled replies need to be repeated.
        asked: The temperature that was asked for.
        refused: Fields that it does not take.
    """

    fields: Mapping[str, float]
    limit: str
    seeded: bool
    asked: float
    refused: tuple[str, ...]

    def replying(self, tokens: int, seed: int = 0) -> dict[str, Any]:
        """The fields of a request for a reply.

        Args:
            tokens: That the reply may have.
            seed: Of the reply, if it is sampled.
        """
        return {**self.fields, self.limit: tokens, **({"seed": seed} if self.seeded else {})}

    def at(self, temperature: float) -> Sampling:
        """The same fields at a temperature that may be another one.

        Args:
            temperature: That is wanted.
        """
        if temperature == self.asked:
            return self
        fields = {**self.fields, "temperature": temperature}
        return replace(self, fields=fields, seeded=temperature > 0 and "seed" not in self.refused, asked=temperature)

    def scoring(self) -> dict[str, Any]:
        """The fields of a request for log-probabilities, which some servers divide by the temperature: 0, or else 1."""
        fields = dict(self.fields)
        if fields.get("temperature"):
            fields["temperature"] = PLAIN
        return {**fields, self.limit: 1}

    def __str__(self) -> str:
        told = [f"{name}={self.fields[name]:g}" for name in sorted(self.fields)]
        return " ".join([*told, *(["seed"] if self.seeded else [])])

    @property
    def notes(self) -> list[str]:
        """What a reader of the numbers has to know of it, one sentence each."""
        found = []
        temperature = self.fields.get("temperature")
        if temperature is None:
            found.append("the server takes no temperature: its own holds")
        elif temperature != self.asked:
            found.append(f"the server refuses temperature 0: asked with {temperature:g}, the smallest that it takes")
        if "seed" in self.refused:
            found.append("the server takes no seed: sampled replies cannot be repeated")
        lost = [name for name in NEUTRAL if name in self.refused and name not in LLAMA_CPP]
        if lost:
            found.append(f"the server does not take {', '.join(lost)}: its own settings, or the checkpoint's, hold")
        return found


Send = Callable[[Sampling], dict[str, Any]]
"""Sends the run's own request with such fields, and returns the server's answer; raises RequestFailed."""


def full(temperature: float) -> Sampling:
    """All fields, as a server is asked first.

    Args:
        temperature: That is wanted; 0 = greedy.
    """
    return _sampling(_values(temperature), temperature)


def settle(send: Send, temperature: float) -> tuple[Sampling, dict[str, Any]]:
    """Find the sampling fields that a server takes: all of them or, step by step, fewer.

    Args:
        send: Sends the run's own request.
        temperature: That is wanted; 0 = greedy.

    Returns:
        The fields, and the server's answer to the request with them.

    Raises:
        RequestFailed: If it refuses the request for another reason, or cannot be asked at that temperature.
    """
    values, answer = _stepping(lambda tried: send(_sampling(tried, temperature)), _values(temperature), temperature)
    return _sampling(values, temperature), answer


def _values(temperature: float) -> _Values:
    steps = GREEDY if temperature == 0 else (temperature,)
    return {"temperature": steps, "limit": LIMITS, "seed": (True,), **NEUTRAL}


def _sampling(values: _Values, temperature: float) -> Sampling:
    """The fields with the present values. Only what is sampled has a seed."""
    fields = {name: values[name][0] for name in ("temperature", *NEUTRAL) if values[name]}
    seeded = bool(values["seed"]) and fields.get("temperature", PLAIN) > 0
    refused = tuple(name for name in ("temperature", "seed", *NEUTRAL) if not values[name])
    return Sampling(fields, values["limit"][0], seeded, temperature, refused)


def _stepping(
    send: Callable[[_Values], dict[str, Any]], values: _Values, temperature: float
) -> tuple[_Values, dict[str, Any]]:
    """Send a request; a field that the server names as it refuses takes its next value, or goes."""
    while True:
        try:
            return values, send(values)
        except RequestFailed as error:
            if error.status is None:
                raise
            named = _named(error, values)
            if not named:
                return _one_by_one(send, values, temperature, error)
            values = values | {name: values[name][1:] for name in named}
            if not values["limit"]:
                raise
            if not values["temperature"] and temperature != PLAIN:
                raise RequestFailed(
                    f"it refuses temperature {temperature:g} ({error}): give --temperature 1, or one that it takes",
                    refused=True,
                ) from error


def _one_by_one(
    send: Callable[[_Values], dict[str, Any]], values: _Values, temperature: float, first: RequestFailed
) -> tuple[_Values, dict[str, Any]]:
    """Find what a server refuses that does not name it: leave all out that can be, and add one field after the other."""
    optional = [name for name in ("seed", *NEUTRAL) if values[name]]
    if not optional:
        if len(values["temperature"]) < 2:
            raise first
        return _stepping(send, values | {"temperature": values["temperature"][1:]}, temperature)
    try:
        kept, answer = _stepping(send, values | dict.fromkeys(optional, ()), temperature)
    except RequestFailed as error:
        raise first from error
    for name in optional:
        for value in values[name]:
            wider = kept | {name: (value,)}
            try:
                kept, answer = wider, send(wider)
                break
            except RequestFailed as error:
                if error.status is None:
                    raise
    return kept, answer


def _named(error: RequestFailed, values: _Values) -> list[str]:
    """The fields of the request that an error names; the temperature only where it names no other."""
    for words in (error.param, error.words):
        found = [name for name in ("temperature", "seed", *NEUTRAL) if values[name] and _names(words, name)]
        # One that is too large would be so by any name.
        if any(_names(words, name) for name in LIMITS) and _UNKNOWN.search(error.words):
            found.append("limit")
        if found:
            return [name for name in found if name != "temperature"] or found
    return []


def _names(words: str, field: str) -> bool:
    """Whether a text names a field, however it is spelled: top_p, top-p, topP."""
    pattern = field.replace("_", "[_ -]?")
    return re.search(rf"(?<![a-z0-9_]){pattern}(?![a-z0-9_])", words, re.IGNORECASE) is not None
