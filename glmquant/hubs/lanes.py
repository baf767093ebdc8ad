"""How many connections are used at the same time: no more than the processor keeps up with."""

from __future__ import annotations

import time
from typing import Final

_LEAST: Final = 2
_FIRST: Final = 4
"""So many begin; the others join within seconds where there is something for them to do."""

_TOO_BUSY: Final = 0.8
_IDLE: Final = 0.5
"""Processors in use by all lanes together. Python deciphers on about one, however many threads
there are, and threads that wait for each other cost as much again; where the line is what limits
them, all of them together need a fraction of one."""

_LEAST_SECONDS: Final = 0.2
"""A part that came sooner says nothing."""

_PATIENCE_SECONDS: Final = 2.0
"""Where nobody was done for so long, those at work may hang: one more is let in."""


class Lanes:
    """Counts who is at work; who uses it holds a lock.

    Args:
        most: As many as were asked for.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.allowed = min(most, _FIRST)
        """So many may work at the same time."""
        self._taken = 0
        self._changed_at = time.monotonic()

    @property
    def is_free(self) -> bool:
        """Whether one more may work."""
        if time.monotonic() - self._changed_at > _PATIENCE_SECONDS:
            self._allow(self.allowed + 1)
        return self._taken < self.allowed

    def take(self) -> None:
        """One more works."""
        self._taken += 1

    def leave(self, wall_seconds: float, cpu_seconds: float) -> None:
        """One is done; what its thread took says whether there are too many.

        Args:
            wall_seconds: How long it worked.
            cpu_seconds: Of its thread meanwhile.
        """
        if wall_seconds >= _LEAST_SECONDS:
            busy = self._taken * cpu_seconds / wall_seconds
            self._allow(self.allowed - (busy > _TOO_BUSY) + (busy < _IDLE))
        self._taken -= 1

    def _allow(self, wanted: int) -> None:
        self.allowed = min(self._most, max(_LEAST, wanted))
        self._changed_at = time.monotonic()
