"""What a run tells of its progress."""

from __future__ import annotations

import threading
import time


class Observer:
    """Does nothing; a user interface overrides what it shows."""

    def start(self, doing: str, done_nbytes: int, total_nbytes: int) -> None:
        """Work begins.

        Args:
            doing: ``quantize``; ``graft``; ``fetch``; ``compare`` where files are held against each
                other; ``check`` where what was written is read again; ``reference`` where weights
                pass through the reference model.
            done_nbytes: Source bytes that an earlier run has done.
            total_nbytes: Source bytes in all.
        """

    def tell(self, doing: str) -> None:
        """Something goes on that is not counted in bytes.

        Args:
            doing: What, in a line. Told again and again while it lasts.
        """

    def warn(self, text: str) -> None:
        """Something went wrong that a run gets over by itself.

        Args:
            text: What, and what is done about it, in a line. Called from several threads.
        """

    def advance(self, nbytes: int) -> None:
        """More source bytes were read. Called from several threads."""

    def expect(self, done_nbytes: int, total_nbytes: int) -> None:
        """The source comes over a line while other work is counted.

        Args:
            done_nbytes: What is here already.
            total_nbytes: All that is to come, and what is here.
        """

    def arrive(self, nbytes: int) -> None:
        """More of the source came over the line. Called from several threads."""

    def finish_shard(self, file: str, nbytes: int) -> None:
        """An output shard is whole and durable."""


class Relay(Observer):
    """Passes everything on; what measures overrides what it needs.

    Args:
        observer: Who wants to know.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def start(self, doing: str, done_nbytes: int, total_nbytes: int) -> None:
        """Pass it on."""
        self._observer.start(doing, done_nbytes, total_nbytes)

    def tell(self, doing: str) -> None:
        """Pass it on."""
        self._observer.tell(doing)

    def warn(self, text: str) -> None:
        """Pass it on."""
        self._observer.warn(text)

    def advance(self, nbytes: int) -> None:
        """Pass it on."""
        self._observer.advance(nbytes)

    def expect(self, done_nbytes: int, total_nbytes: int) -> None:
        """Pass it on."""
        self._observer.expect(done_nbytes, total_nbytes)

    def arrive(self, nbytes: int) -> None:
        """Pass it on."""
        self._observer.arrive(nbytes)

    def finish_shard(self, file: str, nbytes: int) -> None:
        """Pass it on."""
        self._observer.finish_shard(file, nbytes)


class Meter(Relay):
    """Counts the bytes of one kind of work and the time since it began.

    Args:
        observer: Who wants to know, too.
        doing: The work, as ``start`` names it.
    """

    def __init__(self, observer: Observer, doing: str) -> None:
        super().__init__(observer)
        self._doing = doing
        self._lock = threading.Lock()
        self._begun: float | None = None
        self.nbytes = 0

    def start(self, doing: str, done_nbytes: int, total_nbytes: int) -> None:
        """Begin the clock where the work begins; other work does not count."""
        super().start(doing, done_nbytes, total_nbytes)
        self.nbytes = 0
        self._begun = time.monotonic() if doing == self._doing else None

    def advance(self, nbytes: int) -> None:
        """Count."""
        with self._lock:
            self.nbytes += nbytes
        super().advance(nbytes)

    def rate(self, least_nbytes: int) -> int | None:
        """Bytes a second up to now; None after too little work to tell."""
        if self._begun is None or self.nbytes < least_nbytes:
            return None
        return round(self.nbytes / max(time.monotonic() - self._begun, 1e-3))
