"""The wire to a served model: requests that are tried again when that can help, and told plainly when it cannot."""

from __future__ import annotations

import logging
import os
import random
import re
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from vlm_probe.probes.models import ModelError

log = logging.getLogger(__name__)

KEYS = ("PROBE_API_KEY", "OPENAI_API_KEY")
"""Variables that may hold the key of a server, the first of them first. It is taken from nowhere else."""
TIMEOUT, CONNECT_TIMEOUT = 300.0, 10.0
"""Seconds to wait for a reply, and for a connection."""
RETRIES = 5
"""How often a request that failed is sent again. Rate limits do not count; `PATIENCE` bounds them."""
BACKOFF, LONGEST_BACKOFF = 0.5, 30.0
"""Seconds before the first retry, doubled for each further one; a random half of it is left out."""
PATIENCE = 900.0
"""Seconds after which a request is given up, however often the server asks for more patience."""
TEMPORARY = (408, 409, 425, 429)
"""Status codes below 500 after which the same request may succeed."""


class RequestFailed(RuntimeError):
    """A request that failed for good. It costs its own trial, which is asked again when the run is resumed.

    Attributes:
        refused: Whether the server understood the request and refused it, so that trying again cannot help.

    Args:
        message: What the server, or the connection, said.
        refused: See the attribute.
    """

    def __init__(self, message: str, *, refused: bool) -> None:
        super().__init__(message)
        self.refused = refused


class _Trouble(Exception):
    """One attempt that failed in a way that may pass."""

    def __init__(self, message: str, *, limited: bool = False, after: float | None = None) -> None:
        super().__init__(message)
        self.limited, self.after = limited, after


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
            is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
            is_address &= not re.search(r"[\s\x00-\x1f\\]|\.\.", url)
        except ValueError:  # a port that is none, or half an address of version 6
            is_address = False
        if not is_address:
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
        if self._key and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            log.warning("the key is sent to %s without encryption", parts.hostname)
        self._openai = openai
        # Tried again here and not by the client, which honours a rate limit for one request and not for all of them.
        self._client = openai.OpenAI(
            base_url=self.url,
            api_key=self._key or "none",
            max_retries=0,
            timeout=openai.Timeout(TIMEOUT, connect=CONNECT_TIMEOUT),
        )
        self._lock = threading.Lock()
        self._open_at = 0.0

    def complete(self, body: Mapping[str, Any], cancelled: threading.Event | None = None) -> dict[str, Any]:
        """The server's answer to a chat completion request, as the JSON object that it is.

        Args:
            body: The request.
            cancelled: Ends the waiting when it is set.

        Raises:
            RequestFailed: If it failed for good.
            ModelError: If every further request would fail alike: a refused key, no such model, no credit left.
        """
        cancelled = cancelled or threading.Event()
        begun, attempts, failures = time.monotonic(), 0, 0
        while True:
            self._wait(cancelled)
            if cancelled.is_set():
                raise RequestFailed("cancelled", refused=False)
            attempts += 1
            try:
                return self._send(body)
            except _Trouble as trouble:
                failures += not trouble.limited
                delay = backoff(attempts) if trouble.after is None else trouble.after
                if failures > RETRIES or time.monotonic() - begun + delay > PATIENCE:
                    raise RequestFailed(f"{trouble} ({attempts} attempts)", refused=False) from trouble
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
            return self._client.get(address, cast_to=object)  # an absolute address is taken as it is
        except self._openai.APIStatusError as error:
            if error.status_code in (401, 403):
                raise self._no_entry(error) from error
            return None
        except ValueError:
            return None

    def _send(self, body: Mapping[str, Any]) -> dict[str, Any]:
        try:
            # The bare object: what servers add to the protocol has no place in the client's types.
            reply = self._client.post("/chat/completions", body=dict(body), cast_to=object)
        except self._openai.APIConnectionError as error:  # time-outs too
            raise _Trouble(self._reason(error)) from error
        except self._openai.APIStatusError as error:
            raise self._refusal(error, str(body["model"])) from error
        except ValueError as error:
            raise _Trouble(f"the server's reply is not JSON ({error})") from error
        choices = reply.get("choices") if isinstance(reply, dict) else None
        if not (isinstance(choices, list) and choices and isinstance(choices[0], dict) and "message" in choices[0]):
            raise _Trouble(f"the server's reply holds no message: {str(reply)[:200]!r}")
        return reply

    def _refusal(self, error: Any, model: str) -> Exception:
        """What an HTTP error means: for this attempt, for this trial, or for the whole run."""
        status, reason = error.status_code, self._reason(error)
        if status in (401, 403):
            return self._no_entry(error)
        if status == 404:
            return ModelError(f"the server at {self.url} has no model {model!r} ({reason})")
        if status == 402 or getattr(error, "code", None) == "insufficient_quota":
            return ModelError(f"the server at {self.url} wants to be paid ({reason})")
        if status in TEMPORARY or status >= 500:
            after = retry_after(error.response.headers)
            return _Trouble(f"HTTP {status}: {reason}", limited=status == 429, after=after)
        return RequestFailed(f"HTTP {status}: {reason}", refused=True)

    def _no_entry(self, error: Any) -> ModelError:
        # What the server says about a key may repeat a part of it.
        how = f"mend the key in {KEYS[0]} or {KEYS[1]}" if self._key else f"put a key into {KEYS[0]} or {KEYS[1]}"
        return ModelError(f"the server at {self.url} refuses entry (HTTP {error.status_code}): {how}")

    def _reason(self, error: Any) -> str:
        """The server's own words, without the key."""
        if isinstance(error, self._openai.APITimeoutError):
            return f"no reply within {TIMEOUT:.0f} s"
        body = getattr(error, "body", None)
        words = (body.get("message") or body.get("detail")) if isinstance(body, dict) else body
        cause = error.__cause__ if isinstance(error, self._openai.APIConnectionError) else None
        text = " ".join(str(words or cause or error).split())[:300]
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


def backoff(attempt: int) -> float:
    """Seconds to wait after a number of failed attempts: doubled each time, bounded, and a random half left out."""
    return min(BACKOFF * 2 ** (attempt - 1), LONGEST_BACKOFF) * random.uniform(0.5, 1.0)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, in any of the three ways of saying so; None if it does not."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        text = headers.get(name, "")
        try:
            return max(0.0, float(text) * unit)
        except ValueError:
            pass
        try:
            return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
        except (TypeError, ValueError):
            continue
    return None
