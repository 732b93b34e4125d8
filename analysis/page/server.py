"""Serving the page on loopback while a run goes on: built again when the logs have changed and a reader asks."""

from __future__ import annotations

import hashlib
import io
import socket
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from vlm_probe.analysis.page.build import Page, build
from vlm_probe.analysis.page.motion import Motions
from vlm_probe.analysis.page.pictures import Pictures
from vlm_probe.stimuli.errors import ProbeError

HOST = "127.0.0.1"
NAMES = ("127.0.0.1", "localhost")
MOST_CLIENTS = 32
LONGEST_HEAD = 32_768
"""Bytes of the head of a request; browsers send one or two thousand."""
RECEIVE_S, SEND_S = 5.0, 60.0
"""Seconds that a client has for its request, and for taking the page."""
HEAD_ENDS = (b"\r\n\r\n", b"\n\n")


class View:
    """The page of runs as it stands, kept until their logs change. May be asked from several threads.

    Args:
        paths: As for `vlm_probe.analysis.frame.load`.
        pictures, motions: As for `vlm_probe.analysis.page.build.build`.
    """

    def __init__(self, paths: Iterable[Path], pictures: Pictures, motions: Motions) -> None:
        self._paths = tuple(paths)
        self._pictures, self._motions = pictures, motions
        self._lock = threading.Lock()
        self._page: tuple[str, Page] | None = None

    def stamp(self) -> str:
        """A hash that changes whenever a log grows, or another comes or goes."""
        state = []
        for path in self._paths:
            logs = [path] if path.is_file() else sorted(path.rglob("trials*.jsonl"))
            for log in logs:
                try:
                    found = log.stat()
                except OSError:  # moved away since it was listed
                    continue
                state.append(f"{log} {found.st_size} {found.st_mtime_ns}")
        return hashlib.sha256("\n".join(state).encode()).hexdigest()[:16]

    def page(self) -> Page:
        """The page. Raises what `build` raises."""
        with self._lock:
            # Before the logs are read, so that what is written meanwhile counts as news.
            stamp = self.stamp()
            if self._page is None or self._page[0] != stamp:
                self._page = stamp, build(self._paths, self._pictures, self._motions, stamp)
            return self._page[1]


def make_server(view: View, port: int) -> ThreadingHTTPServer:
    """A server of the page on loopback. Call `serve_forever` on it.

    Clients that are slow, half open, too many or send too much are dropped silently.

    Args:
        view: What is served.
        port: Where; 0 for a free one.
    """

    class Handler(_Handler):
        shown = view

    return _Server((HOST, port), Handler)


class _Server(ThreadingHTTPServer):
    """At most `MOST_CLIENTS` at a time: a new one takes the place of whoever has been silent longest. No word of those that go."""

    request_queue_size = MOST_CLIENTS

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._silent: dict[socket.socket, bool] = {}
        """Every client, the earliest first -> whether its request is still awaited."""
        self._lock = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._silent) >= MOST_CLIENTS:
                longest = next((client for client, silent in self._silent.items() if silent), request)
                self._silent.pop(longest, None)
                with suppress(OSError):
                    longest.shutdown(socket.SHUT_RDWR)  # its thread is told, and ends
            self._silent[request] = True
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._silent.pop(request, None)

    def heard(self, request: socket.socket) -> None:
        """The request of a client is there."""
        with self._lock:
            if request in self._silent:
                self._silent[request] = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a client that has gone is no news
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    shown: ClassVar[View]
    server: _Server

    def setup(self) -> None:
        super().setup()
        # The whole head of the request at once: neither a slow client nor a long request holds a thread for ever.
        self.rfile = io.BytesIO(_head(self.connection))
        self.server.heard(self.connection)
        self.connection.settimeout(SEND_S)

    def do_GET(self) -> None:
        # A site elsewhere that lets its own name point here must not read the trials through a reader's browser.
        if (self.headers.get("Host") or "").partition(":")[0] not in NAMES:
            self._send(403, "text/plain", "only for this machine")
        elif self.path not in ("/", "/stamp"):
            self._send(404, "text/plain", "the page is at /")
        else:
            try:
                text = self.shown.page().html if self.path == "/" else self.shown.stamp()
            except (ProbeError, OSError) as error:
                # A log that is damaged while it is watched: said to the reader, and asked again when he reloads.
                self._send(500, "text/plain", " ".join(str(error).split()))
            else:
                self._send(200, "text/html" if self.path == "/" else "text/plain", text)

    def _send(self, status: int, kind: str, text: str) -> None:
        body = text.encode("utf-8", "replace")
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: requests are no news."""


def _head(connection: socket.socket) -> bytes:
    """The head of a request; nothing of one that is too long, or does not come in time."""
    received, deadline = b"", time.monotonic() + RECEIVE_S
    while not any(end in received for end in HEAD_ENDS):
        left = deadline - time.monotonic()
        if left <= 0 or len(received) > LONGEST_HEAD:
            return b""
        connection.settimeout(left)
        try:
            more = connection.recv(4096)
        except OSError:
            return b""
        if not more:
            return b""
        received += more
    return received
