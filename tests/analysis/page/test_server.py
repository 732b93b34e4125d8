"""The page on loopback: built anew when a log grows, and for this machine alone."""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.analysis.conftest import run_rows, write_run
from vlm_probe.analysis.page import server as server_module
from vlm_probe.analysis.page.motion import Motions
from vlm_probe.analysis.page.pictures import Pictures
from vlm_probe.analysis.page.server import View, make_server


@contextmanager
def served(view: View) -> Iterator[str]:
    with make_server(view, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host, port = server.server_address[:2]
        assert host == "127.0.0.1"
        yield f"http://127.0.0.1:{port}"
        server.shutdown()


def get(address: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_news_and_strangers(tmp_path: Path) -> None:
    view = View([tmp_path], Pictures(0), Motions(0))
    write_run(tmp_path / "a", run_rows(n=8))
    with served(view) as address:
        status, page = get(f"{address}/")
        _, stamp = get(f"{address}/stamp")
        assert status == 200 and "8 trials of 1 run<" in page and f'"stamp":"{stamp}"' in page
        assert "connect-src 'self'" in page
        assert get(f"{address}/stamp")[1] == stamp and get(f"{address}/")[1] == page
        write_run(tmp_path / "b", run_rows("balance-tilt", n=8))
        assert get(f"{address}/stamp")[1] != stamp
        assert "16 trials of 1 run<" in get(f"{address}/")[1]
        assert get(f"{address}/../etc/passwd")[0] == 404
        assert get(f"{address}/", Host="elsewhere.example")[0] == 403
        (tmp_path / "b" / "run.json").write_text("{")
        (tmp_path / "b" / "trials.jsonl").write_text("")
        status, told = get(f"{address}/")
        assert status == 500 and "damaged" in told and "Traceback" not in told


def test_clients_that_are_slow_half_open_or_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server_module, "RECEIVE_S", 2.0)
    write_run(tmp_path / "a", run_rows(n=8))
    with served(View([tmp_path], Pictures(0), Motions(0))) as address:
        place = ("127.0.0.1", int(address.rpartition(":")[2]))
        silent = [socket.create_connection(place) for _ in range(3 * server_module.MOST_CLIENTS)]
        assert get(f"{address}/")[0] == 200, "a reader is served however many wait"
        slow = socket.create_connection(place)
        started = time.monotonic()
        with suppress(OSError):  # a byte at a time, and never the end
            while time.monotonic() - started < 15:
                slow.sendall(b"G")
                if not select.select([slow], [], [], 0.1)[0]:
                    continue
                break
        assert time.monotonic() - started < 10, "it is dropped, however much it says"
        long = socket.create_connection(place)
        with suppress(OSError):
            long.sendall(b"GET / HTTP/1.0\r\nX: " + b"x" * 2 * server_module.LONGEST_HEAD)
            assert long.recv(10) == b""
        gone = socket.create_connection(place)
        gone.sendall(f"GET / HTTP/1.0\r\nHost: 127.0.0.1:{place[1]}\r\n\r\n".encode())
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gone.close()  # a reset, in the middle of the answer
        assert get(f"{address}/stamp")[0] == 200
        for client in (*silent, slow, long):
            client.close()
    assert capfd.readouterr() == ("", "")


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    view = View([tmp_path], Pictures(0), Motions(0))
    with make_server(view, 0) as first, pytest.raises(OSError):
        make_server(view, int(first.server_address[1]))
