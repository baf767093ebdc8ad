"""How fast the line to a hub is: measured by each long fetch, kept in the user's cache."""

from __future__ import annotations

import platform
import threading
import time
from typing import Final

from glmquant.errors import JsonError
from glmquant.jsontext import dump_object, parse_object
from glmquant.observer import Observer
from glmquant.usercache import read_cached, write_cached

LEAST_NBYTES: Final = 200_000_000
"""From which on a fetch says how fast the line is."""

_FILE: Final = "fetch-rate-{}.json"


class PaceMeter(Observer):
    """Passes everything on and measures how fast bytes come.

    Args:
        observer: Who wants to know, too.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._lock = threading.Lock()
        self._nbytes = 0
        self._begun: float | None = None

    def start(self, doing: str, done_nbytes: int, total_nbytes: int) -> None:
        """Begin the clock where fetching begins."""
        self._observer.start(doing, done_nbytes, total_nbytes)
        self._nbytes = 0
        self._begun = time.monotonic() if doing == "fetch" else None

    def advance(self, nbytes: int) -> None:
        """Count."""
        with self._lock:
            self._nbytes += nbytes
        self._observer.advance(nbytes)

    def tell(self, doing: str) -> None:
        """Pass it on."""
        self._observer.tell(doing)

    def warn(self, text: str) -> None:
        """Pass it on."""
        self._observer.warn(text)

    def finish_shard(self, file: str, nbytes: int) -> None:
        """Pass it on."""
        self._observer.finish_shard(file, nbytes)

    def store(self, hub: str) -> None:
        """Keep the rate for the next plan; after too few bytes it says nothing."""
        if self._begun is None or self._nbytes < LEAST_NBYTES:
            return
        seconds = max(time.monotonic() - self._begun, 1e-3)
        fields = {
            "nbytes_per_second": round(self._nbytes / seconds),
            "machine": platform.node(),
        }
        write_cached(_FILE.format(hub), dump_object(fields))


def load_pace(hub: str) -> int | None:
    """Bytes a second of the last long fetch from a hub on this machine; None without one."""
    file = _FILE.format(hub)
    data = read_cached(file)
    try:
        fields = parse_object(data, file) if data is not None else {}
    except JsonError:
        return None
    rate = fields.get("nbytes_per_second")
    is_ours = fields.get("machine") == platform.node()
    return rate if type(rate) is int and rate > 0 and is_ours else None
