"""Serving the page on loopback while a run goes on: built anew when the logs have changed and a reader asks."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from vlm_probe.analysis.page.build import Page, build
from vlm_probe.analysis.page.motion import Motions
from vlm_probe.analysis.page.pictures import Pictures

HOST = "127.0.0.1"
NAMES = ("127.0.0.1", "localhost")


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

    Args:
        view: What is served.
        port: Where; 0 for a free one.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # A site elsewhere that lets its own name point here must not read the trials through a reader's browser.
            if (self.headers.get("Host") or "").partition(":")[0] not in NAMES:
                self._send(403, "text/plain", "only for this machine")
            elif self.path == "/stamp":
                self._send(200, "text/plain", view.stamp())
            elif self.path != "/":
                self._send(404, "text/plain", "the page is at /")
            else:
                try:
                    self._send(200, "text/html", view.page().html)
                except (ValueError, RuntimeError, OSError) as error:
                    # A log that is damaged while it is watched: said to the reader, and asked again when he reloads.
                    self._send(500, "text/plain", " ".join(str(error).split()))

        def _send(self, status: int, kind: str, text: str) -> None:
            body = text.encode("utf-8")
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: requests are no news."""

    return ThreadingHTTPServer((HOST, port), Handler)
