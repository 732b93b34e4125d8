"""The wire to a served model: requests that are tried again when that can help, and told plainly when it cannot."""

from __future__ import annotations

import ipaddress
import logging
import math
import os
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from vlm_probe.probes.models import ModelError
from vlm_probe.probes.models.protocol import Fault, brief, code_of, fault_of, is_filter, words_of_error
from vlm_probe.stimuli.plain_json import parse

log = logging.getLogger(__name__)

KEYS = ("PROBE_API_KEY", "OPENAI_API_KEY")
"""Variables that may hold the key of a server, the first of them first. It is taken from nowhere else."""
TIMEOUT, CONNECT_TIMEOUT = 300.0, 10.0
"""Seconds to wait for a reply, and for a connection."""
RETRIES = 5
"""How often a request that failed is sent again. Rate limits do not count; `PATIENCE` bounds them."""
BACKOFF, LONGEST_BACKOFF = 0.5, 30.0
"""Seconds before the first retry, doubled for each further one; a random half of it is left out."""
LONGEST_WAIT = 60.0
"""Seconds after which a request is tried again even if the server asked for a longer wait: its clock may be wrong."""
EPOCH = 1e9
"""A wait of more seconds than this is a time of the clock, since 1970."""
PATIENCE = 900.0
"""Seconds after which a request is given up, however often the server asks for more patience."""
TEMPORARY = (408, 409, 425, 429)
"""Status codes below 500 after which the same request may succeed."""
EVENTS = ("data:", "event:", "id:", "retry:", ":")
"""How a stream of events may begin, and no JSON does."""
LOOPBACK = ("localhost", "localhost4", "localhost6", "ip6-localhost", "ip6-loopback")
"""Names of this machine; so are those that end with .localhost or .localdomain."""


class RequestFailed(RuntimeError):
    """A request that failed for good. It costs its own trial, which is asked again when the run is resumed.

    Args:
        message: What the server, or the connection, said.
        refused: Whether the server understood the request and refused it, so that trying again cannot help.
        status: HTTP status of the answer, or the one that the error in it names; None if there was no answer to read.
        param: Field of the request that the server blames, if it says so.
        words: All that the server said, of which the message may have the beginning only.
        filtered: Whether a content filter refused it.
        reply: What the server sent, if it took the request and then gave no usable reply.
    """

    def __init__(
        self,
        message: str,
        *,
        refused: bool,
        status: int | None = None,
        param: str = "",
        words: str = "",
        filtered: bool = False,
        reply: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.refused, self.status, self.param, self.words = refused, status, param, words
        self.filtered, self.reply = filtered, reply


class _Trouble(Exception):
    """One attempt that failed in a way that may pass, and how the request has failed if it does not."""

    def __init__(self, failed: RequestFailed, *, limited: bool = False, after: float | None = None) -> None:
        super().__init__(str(failed))
        self.failed, self.limited, self.after = failed, limited, after


class Endpoint:
    """An OpenAI-compatible server. May be used from several threads at once.

    Args:
        url: Its base URL, which usually ends in /v1.

    Raises:
        ModelError: If the URL is none, or holds a key, or the client library is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
            usable &= not re.search(r"[\s\x00-\x1f\\]|\.\.", url)
        except ValueError:  # brackets or a port that are none
            usable = False
        if not usable:
            raise ModelError(f"--base-url {url!r} is no address of a server: give one like http://localhost:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            # The address is written to the run's folder, and whatever is in it with it.
            raise ModelError(
                f"--base-url must be a plain address: a key goes into the variable {KEYS[0]} or {KEYS[1]}, not into it"
            )
        try:
            import openai
        except ImportError as error:
            raise ModelError("served models need the openai client: pip install 'vlm-probe[served]'") from error
        self.url = url.rstrip("/")
        self._root = f"{parts.scheme}://{parts.netloc}"
        self._key = next((os.environ[name] for name in KEYS if os.environ.get(name)), "")
        here = is_loopback(str(parts.hostname))
        if self._key and parts.scheme == "http" and not here:
            log.warning("the key is sent to %s without encryption", parts.hostname)
        self._openai = openai
        # No proxy reaches a server on this machine, whatever the variables say; certificates of your own still count.
        direct = {"trust_env": False, "verify": ssl.create_default_context()} if here else {}
        try:
            # Tried again here and not by the client, which honours a rate limit for one request and not for all of them.
            self._client = openai.OpenAI(
                base_url=self.url,
                api_key=self._key or "none",
                max_retries=0,
                timeout=openai.Timeout(TIMEOUT, connect=CONNECT_TIMEOUT),
                http_client=openai.DefaultHttpxClient(event_hooks={"response": [_refuse_events]}, **direct),
            )
        except Exception as error:  # what the library says of proxies that it cannot use differs between versions
            raise ModelError(
                f"{self.url} cannot be asked ({error}): mend --base-url, or the variables HTTP_PROXY, HTTPS_PROXY, ALL_PROXY"
                " and NO_PROXY"
            ) from error
        self._lock = threading.Lock()
        self._open_at = 0.0

    def complete(
        self,
        body: Mapping[str, Any],
        cancelled: threading.Event | None = None,
        *,
        retries: int | None = None,
        any_reply: bool = False,
    ) -> dict[str, Any]:
        """The server's answer to a chat completion request, as the JSON object that it is.

        Args:
            body: The request.
            cancelled: Ends the waiting when it is set.
            retries: How often it is sent again if it fails; None = `RETRIES`.
            any_reply: Whether an answer without a usable reply will do: it shows that the server takes the request.

        Raises:
            RequestFailed: If it failed for good.
            ModelError: If every further request would fail alike: a refused key, no such model, no credit left.
        """
        cancelled = cancelled or threading.Event()
        most = RETRIES if retries is None else retries
        begun, attempts, failures = time.monotonic(), 0, 0
        while True:
            self._wait(cancelled)
            if cancelled.is_set():
                raise RequestFailed("cancelled", refused=False)
            attempts += 1
            try:
                return self._send(body)
            except _Trouble as trouble:
                if any_reply and trouble.failed.reply is not None:
                    return trouble.failed.reply
                failures += not trouble.limited
                delay = pause(attempts, trouble.after)
                if failures > most or time.monotonic() - begun + delay > PATIENCE:
                    trouble.failed.args = (f"{trouble} ({attempts} attempts)" if attempts > 1 else str(trouble),)
                    raise trouble.failed from trouble
                log.info("%s: %s; again in %.1f s", self.url, trouble, delay)
                if trouble.limited or trouble.after is not None:
                    self._hold(delay)
                else:
                    cancelled.wait(delay)

    def models(self) -> list[dict[str, Any]]:
        """The cards of the models that the server lists; empty if it keeps no such list.

        Raises:
            ModelError: If it cannot be reached, or refuses the key.
        """
        try:
            found = self._get(f"{self.url}/models")
        except self._openai.APIConnectionError as error:
            raise ModelError(
                f"there is no server at {self.url} ({self._reason(error)}): start it, or mend --base-url"
            ) from error
        cards = found.get("data") if isinstance(found, dict) else None
        return [card for card in cards if isinstance(card, dict) and "id" in card] if isinstance(cards, list) else []

    def version(self) -> str:
        """The version that the server tells at /version, as vLLM does; else empty."""
        try:
            found = self._get(f"{self._root}/version")
        except self._openai.APIConnectionError:
            return ""
        return str(found.get("version", "")) if isinstance(found, dict) else ""

    def _get(self, address: str) -> Any:
        """The JSON at an address, None if there is none."""
        try:
            found = self._client.get(address, cast_to=object)  # an absolute address is taken as it is
            return parse(found) if isinstance(found, str) else found
        except self._openai.APIStatusError as error:
            if error.status_code in (401, 403):
                raise self._no_entry(error.status_code) from error
            return None
        except (ValueError, RecursionError, RequestFailed):
            return None

    def _send(self, body: Mapping[str, Any]) -> dict[str, Any]:
        try:
            # The bare object: what servers add to the protocol has no place in the client's types.
            reply = self._client.post("/chat/completions", body={**body, "stream": False}, cast_to=object)
        except RequestFailed:
            raise
        except self._openai.APIStatusError as error:
            after = retry_after(error.response.headers)
            raise self._failure(error.status_code, error.body, str(body["model"]), after=after) from error
        except (ValueError, RecursionError) as error:
            reply = getattr(error, "doc", "")
        except Exception as error:  # connections and time-outs, in whatever class the client's version has for them
            if isinstance(error.__cause__, RequestFailed):
                raise error.__cause__ from None
            raise _Trouble(RequestFailed(self._reason(error), refused=False)) from error
        # The client parses what is called JSON, and hands on as text what is called something else.
        try:
            answer = _parsed(reply) if isinstance(reply, str) else reply
            fault = fault_of(answer)
        except RecursionError as error:
            raise _Trouble(RequestFailed("the server's reply is nested too deeply", refused=False)) from error
        if fault is None:
            return dict(answer)
        raise self._failure(code_of(fault.error) or 200, fault.error, str(body["model"]), fault=fault)

    def _failure(
        self, status: int, error: Any, model: str, *, after: float | None = None, fault: Fault | None = None
    ) -> Exception:
        """What an error means: for this attempt, for this trial, or for the whole run.

        Args:
            status: HTTP status, or the one that the error in an answer with the status 200 names.
            error: The error as the server sent it.
            model: That was asked.
            after: Seconds that the server asks to wait.
            fault: What is wrong with an answer that has the status 200; None if the status is that of HTTP.
        """
        words = self._hidden(fault.message if fault else words_of_error(error) or "no reason given")
        told = words[:300] if fault else f"HTTP {status}: {words[:300]}"
        given = error if isinstance(error, Mapping) else {}
        filtered = 400 <= status < 500 and is_filter(f"{given.get('code')} {words}")
        if status in (401, 403) and not filtered:
            return self._no_entry(status)
        if status == 404:
            return ModelError(f"the server at {self.url} has no model {model!r} ({words[:300]})")
        if status == 402 or given.get("code") == "insufficient_quota":
            return ModelError(f"the server at {self.url} wants to be paid ({words[:300]})")
        if status == 413:
            told = (
                f"HTTP 413: the image is too large for this server ({words[:300]}): make a set with a smaller --size,"
            )
            told += " or raise the limit of the server, or of the proxy before it"
        passing = status in TEMPORARY or status >= 500 or status == 200
        failed = RequestFailed(
            told,
            refused=not passing,
            status=status,
            param=str(given.get("param") or ""),
            words=words,
            filtered=filtered,
            reply=fault.reply if fault else None,
        )
        return _Trouble(failed, limited=status == 429, after=after) if passing else failed

    def _no_entry(self, status: int) -> ModelError:
        # What the server says about a key may repeat a part of it.
        how = f"mend the key in {KEYS[0]} or {KEYS[1]}" if self._key else f"put a key into {KEYS[0]} or {KEYS[1]}"
        return ModelError(f"the server at {self.url} refuses entry (HTTP {status}): {how}")

    def _reason(self, error: Exception) -> str:
        """Why a connection failed, in one line."""
        if isinstance(error, self._openai.APITimeoutError):
            return f"no reply within {TIMEOUT:.0f} s"
        text = str(error.__cause__ or error) or type(error.__cause__ or error).__name__
        return self._hidden(" ".join(text.split())[:300])

    def _hidden(self, text: str) -> str:
        """A text without the key."""
        return text.replace(self._key, "***") if self._key else text

    def _hold(self, delay: float) -> None:
        """Have all requests wait, not only the one that was told to."""
        with self._lock:
            self._open_at = max(self._open_at, time.monotonic() + delay)

    def _wait(self, cancelled: threading.Event) -> None:
        while not cancelled.is_set():
            with self._lock:
                left = self._open_at - time.monotonic()
            if left <= 0:
                return
            # A little later each, so that they do not all come back at the same moment.
            cancelled.wait(left * random.uniform(1.0, 1.1) + 0.01)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine: an address of it, or a name that means one.

    Args:
        host: Name or address, as in a URL.
    """
    name = host.rstrip(".").lower()
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        if name in LOOPBACK or name.endswith((".localhost", ".localdomain")):
            return True
        if "." in name:
            return False  # a name of the network, which only a proxy may be able to look up
        try:
            found = socket.getaddrinfo(name, None)
        except (OSError, UnicodeError):
            return False
        return all(is_loopback(str(entry[4][0])) for entry in found)
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)


def pause(attempt: int, after: float | None = None) -> float:
    """Seconds to wait after a number of failed attempts: what the server asks for, within bounds, or `backoff`.

    Args:
        attempt: Number of failed attempts.
        after: What the server asks for; None if it does not.
    """
    return backoff(attempt) if after is None or after < BACKOFF else min(after, LONGEST_WAIT)


def backoff(attempt: int) -> float:
    """Seconds to wait after a number of failed attempts: doubled each time, bounded, and a random half left out."""
    return min(BACKOFF * 2.0 ** min(attempt - 1, 60), LONGEST_BACKOFF) * random.uniform(0.5, 1.0)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, in any of the ways of saying so; None if it does not.

    The value may be a number of seconds, a date, or a time of the clock, in seconds or milliseconds since 1970.

    Args:
        headers: Of its answer.
    """
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        try:
            seconds = float(text) * unit
        except ValueError:
            seconds = _seconds_to(text)
        if math.isfinite(seconds):
            while seconds > EPOCH * 100:
                seconds /= 1000
            return max(0.0, seconds - time.time() if seconds > EPOCH else seconds)
    return None


def _seconds_to(text: str) -> float:
    """Seconds from now to a date; not a number if it is none."""
    try:
        then = parsedate_to_datetime(text)
        return (then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp() - time.time()
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _refuse_events(response: Any) -> None:
    """Refuse a stream of events before it is read: it may never end."""
    if response.is_success and str(response.headers.get("content-type", "")).lower().startswith("text/event-stream"):
        raise _streaming()


def _parsed(text: str) -> Any:
    """The JSON in an answer that is called something else, or that the client could not read."""
    plain = text.lstrip("\ufeff \t\r\n")
    if plain.startswith(EVENTS):
        raise _streaming()
    try:
        return parse(plain)
    except ValueError as error:
        words = f": {brief(words_of_error(plain))}" if plain else ""
        raise _Trouble(RequestFailed(f"the server's reply is not JSON{words}", refused=False)) from error


def _streaming() -> RequestFailed:
    return RequestFailed(
        "the server sends a stream of events although none was asked for: switch streaming off there, or in the proxy before it",
        refused=True,
    )
