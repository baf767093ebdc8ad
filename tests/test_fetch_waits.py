"""Servers that give a byte now and then, and how many connections are used at a time."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from glmquant.hubs.lanes import Lanes
from glmquant.watch import OverdueError, Watch
from tests.conftest import run_glmquant

HEADERS = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"


@pytest.fixture
def dripping() -> Iterator[Callable[[bytes], str]]:
    """Starts servers that send a beginning at once and then a byte every twentieth second."""
    stop = threading.Event()
    listeners = []

    def drip(connection: socket.socket, beginning: bytes) -> None:
        with connection:
            try:
                connection.recv(65536)
                connection.sendall(beginning)
                while not stop.wait(0.05):
                    connection.sendall(b"x")
            except OSError:
                return

    def accept(listener: socket.socket, beginning: bytes) -> None:
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=drip, args=(connection, beginning), daemon=True).start()

    def start(beginning: bytes) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threading.Thread(target=accept, args=(listener, beginning), daemon=True).start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield start
    stop.set()
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize(
    ("scheme", "beginning"),
    [("http", b""), ("http", b"HTTP/1.1 200 OK\r\nServer: "), ("http", HEADERS), ("https", b"")],
    ids=["status", "headers", "body", "handshake"],
)
def test_a_server_that_drips_has_its_limit(
    scheme: str, beginning: bytes, dripping: Callable[[bytes], str], tmp_path: Path
) -> None:
    url = f"{scheme}://{dripping(beginning)}"
    words = ("--endpoint", url, "--stall", 0.3, "--retries", 2)
    ran = run_glmquant("fetch", "modelscope:owner/name", tmp_path / "out", *words)
    assert ran.exit_code == 1
    assert "error:" in ran.stderr
    assert not (tmp_path / "out").exists()


def test_a_wait_that_lasts_too_long_is_ended() -> None:
    watch, ended = Watch(0.1), threading.Event()
    with pytest.raises(OverdueError), watch.over(ended.set):
        assert ended.wait(30)
    with watch.over(ended.clear):
        pass
    assert ended.is_set()
    watch.close()


def test_connections_that_only_wait_for_the_processor_are_given_up() -> None:
    working = Lanes(8)
    for _ in range(20):
        while working.is_free:
            working.take()
        working.leave(1.0, 0.6)
    assert [working.is_free, working.allowed] == [True, 2]


def test_connections_that_wait_for_the_line_are_kept() -> None:
    working = Lanes(8)
    for _ in range(20):
        while working.is_free:
            working.take()
        working.leave(1.0, 0.03)
    assert working.allowed == 8
    working.leave(0.01, 0.01)
    assert working.allowed == 8, "too short to tell"


def test_where_nobody_is_done_one_more_is_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    working = Lanes(3)
    for _ in range(3):
        working.take()
        working.leave(1.0, 1.0)
    working.take()
    working.take()
    assert not working.is_free
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 60)
    assert working.is_free
