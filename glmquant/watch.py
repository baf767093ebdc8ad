"""Waits for the answer itself, and ends waits in which a byte comes now and then."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import SWITCHING_PROTOCOLS, HTTPResponse
from typing import Any, Final

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

_TICK_SECONDS: Final = 1.0


class OverdueError(Exception):
    """What was waited for did not come in time; what came of it is not to be trusted."""


class Watch:
    """A thread that ends what is overdue; used from several threads.

    Args:
        seconds: How long a wait may last.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waits: dict[object, tuple[float, Callable[[], None]]] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()

    @contextmanager
    def over(self, end: Callable[[], None], seconds: float | None = None) -> Iterator[None]:
        """Watch over what is done meanwhile.

        Args:
            end: Called from another thread to make it return; a socket that is shut may still
                give bytes, enciphered ones too, so that all of it is thrown away.
            seconds: How long this one may last; None for as long as any.

        Raises:
            OverdueError: It was ended, in place of whatever it raises then.
        """
        key = object()
        with self._lock:
            limit = self._seconds if seconds is None else seconds
            self._waits[key] = time.monotonic() + limit, end
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                was_ended = self._waits.pop(key, None) is None
            if was_ended:
                raise OverdueError

    def _look(self) -> None:
        while not self._stop.wait(min(_TICK_SECONDS, self._seconds / 4)):
            now = time.monotonic()
            with self._lock:
                overdue = [key for key, (until, _) in self._waits.items() if until < now]
                ends = [self._waits.pop(key)[1] for key in overdue]
            for end in ends:
                with suppress(Exception):  # it may have ended by itself in this moment
                    end()


class _Final(HTTPResponse):
    """An answer behind whatever a server says before it: 103 Early Hints, 102 Processing.

    http.client passes over 100 alone, and takes any other for the answer.
    """

    def begin(self) -> None:
        """Read status and headers of the answer itself."""
        super().begin()
        while 100 < self.status < 200 and self.status != SWITCHING_PROTOCOLS:
            self.headers = self.msg = None  # type: ignore[assignment]  # not begun yet
            super().begin()


def watched_pools(watch: Watch) -> dict[str, type[HTTPConnectionPool]]:
    """Scheme → urllib3's pool whose connections are watched until they have answered.

    Hence the lot of a server that deals out its handshake, or its headers, byte by byte.
    """

    class Watched:
        sock: Any
        response_class: type[HTTPResponse] = _Final

        def connect(self) -> None:
            with watch.over(self._end):
                super().connect()  # type: ignore[misc]

        def getresponse(self) -> Any:
            with watch.over(self._end):
                return super().getresponse()  # type: ignore[misc]

        def _end(self) -> None:
            self.sock.shutdown(socket.SHUT_RDWR)

    class Plain(Watched, HTTPConnection):
        pass

    class Safe(Watched, HTTPSConnection):
        pass

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SafePool(HTTPSConnectionPool):
        ConnectionCls = Safe

    return {"http": PlainPool, "https": SafePool}
