"""A server on loopback that answers as a test says, and what is in the requests that it gets."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from vlm_probe.probes.models import endpoint
from vlm_probe.probes.run import RunConfig, run
from vlm_probe.stimuli.dataset import StimulusSet

Body = dict[str, Any]


class Server:
    """A server on loopback that answers by the picture, or as `respond` says.

    Args:
        host: Its address.

    Attributes:
        respond: From the number of a request and its body to an answer: (status, headers, body), a body to send as it
            is (bytes), or changes to the usual one. It may raise ConnectionError to cut the connection in the middle of a reply.
        requests: (time, authorisation, body) of every request for a completion.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.respond: Callable[[int, Body], Any] = lambda number, body: None
        self.cards: list[Body] = [{"id": "m", "owned_by": "test", "root": "owner/m"}]
        self.requests: list[tuple[float, str, Body]] = []
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def send(self, status: int, headers: Body, data: bytes) -> None:
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                known = {"/v1/models": {"data": outer.cards}, "/version": {"version": "1.2.3"}}
                found = known.get(self.path)
                self.send(200 if found else 404, {}, json.dumps(found).encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    number = len(outer.requests)
                    outer.requests.append((time.monotonic(), self.headers["Authorization"], body))
                try:
                    given = outer.respond(number, body)
                except ConnectionError:
                    self.send_response(200)
                    self.send_header("Content-Length", "1000")
                    self.end_headers()
                    self.wfile.write(b'{"choices": [{"mess')
                    self.close_connection = True
                    return
                if isinstance(given, tuple):
                    data = given[2] if isinstance(given[2], bytes) else json.dumps(given[2]).encode()
                    self.send(given[0], given[1], data)
                elif isinstance(given, bytes):
                    self.send(200, {}, given)
                else:
                    self.send(200, {}, json.dumps(usual(body) | (given or {})).encode())

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

            def handle_error(self, *_: Any) -> None:
                pass  # clients that went away

        self._server = Quiet((host, 0), Handler)
        self.port = int(self._server.server_address[1])
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def asked(self, stimuli: StimulusSet) -> list[str]:
        """The items of a set that were asked, by their pictures; made-up questions are left out."""
        items = {item.image_sha256: item.item_id for item in stimuli.items}
        found = [picture_hash(body) for _, _, body in self.requests]
        return [items[digest] for digest in found if digest in items]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def pictures(body: Body) -> list[bytes]:
    parts = [p for m in body["messages"] if isinstance(m["content"], list) for p in m["content"]]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    assert all(url.startswith("data:image/png;base64,") for url in urls)
    return [base64.b64decode(url.partition(",")[2]) for url in urls]


def picture_hash(body: Body) -> str:
    return hashlib.sha256(pictures(body)[-1]).hexdigest() if pictures(body) else ""


def said(body: Body) -> str:
    return "yes" if picture_hash(body) < "8" else "no"


def usual(body: Body, text: str | None = None) -> Body:
    message = {"role": "assistant", "content": said(body) if text is None else text}
    usage = {"prompt_tokens": 10 + 16 * len(pictures(body))}
    return {"model": body["model"], "choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(endpoint, "BACKOFF", 0.01)
    for name in endpoint.KEYS:
        monkeypatch.delenv(name, raising=False)
    made = Server()
    yield made
    made.close()


def ask(server: Server, stimuli: StimulusSet, out: Path, **changes: Any) -> Any:
    config = RunConfig(**{"model": "m", "stimuli": "s", "base_url": server.url, "concurrency": 4, **changes})
    return run(config, stimuli, out)


def first_token(values: dict[str, float]) -> Callable[[int, Body], Any]:
    def respond(number: int, body: Body) -> Any:
        if "prompt_logprobs" in body:
            return 400, {}, {"error": {"message": "unknown parameter prompt_logprobs"}}
        if not body.get("logprobs"):
            return None
        top = [{"token": token, "logprob": value} for token, value in values.items()]
        given = usual(body)
        given["choices"][0]["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
        return given

    return respond
