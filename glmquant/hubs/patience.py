"""How often, and after what pause, what failed is tried again."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from glmquant.errors import HubError
from glmquant.hubs.answers import Setback
from glmquant.observer import Observer

FIRST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 60.0

Result = TypeVar("Result")


class Stopped(Exception):  # noqa: N818 - a signal between threads
    """Another thread has failed, or the user ended the run."""


class Patience:
    """A budget of attempts; whoever makes progress asks for a new one.

    Args:
        attempts: Failures in a row, without a new byte between them, that end a run.
        stop: Set where the run ends.
        observer: Is told of each setback.
    """

    def __init__(self, attempts: int, stop: threading.Event, observer: Observer) -> None:
        self.attempts = attempts
        self._stop = stop
        self._observer = observer

    def repeat(self, work: Callable[[], Result]) -> Result:
        """What a request gives, tried again after each setback.

        Raises:
            HubError: The budget is spent.
            Stopped: The run ends.
        """
        failures = 0
        while True:
            try:
                return work()
            except Setback as setback:  # noqa: PERF203
                failures += 1
                self.wait(setback, failures)

    def wait(self, setback: Setback, failures: int) -> None:
        """Pause before the next attempt.

        Args:
            setback: What happened.
            failures: How many in a row, this one among them.

        Raises:
            HubError: The budget is spent.
            Stopped: The run ends.
        """
        if failures >= self.attempts:
            raise HubError(
                f"the hub failed {failures} times in a row",
                expected="an answer with the bytes that were asked for",
                found=setback.text,
                hint="run the same command again: it goes on where it stopped; "
                "`glmquant fetch --retries N` allows more failures",
            )
        longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** (failures - 1))
        # Up to half of it by chance, so that many who failed together do not come back together.
        pause = longest * random.uniform(0.5, 1.0)
        if setback.wait_seconds is not None:
            pause = max(setback.wait_seconds, 0.1 * pause)
        self._observer.warn(
            f"{setback.text}; attempt {failures + 1} of {self.attempts} in {pause:.1f} s"
        )
        if self._stop.wait(pause):
            raise Stopped
