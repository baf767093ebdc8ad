"""How far a run is: a bar on a terminal, a line now and then elsewhere, JSON lines on request."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import click

from glmquant.observer import Observer


def nbytes_text(nbytes: float) -> str:
    """A length for people, in powers of 1000: ``387.1 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.2f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.2f} TB"


@contextmanager
def progress(as_json: bool) -> Iterator[Observer]:
    """The observer that fits where the output goes."""
    if as_json:
        yield _JsonLines()
    elif sys.stderr is not None and sys.stderr.isatty():
        with _bar() as observer:
            yield observer
    else:
        yield _PlainLines()


class _Count:
    """Bytes of one kind of work, and how fast they are done."""

    def __init__(self, done_nbytes: int, total_nbytes: int, now: float) -> None:
        self.done = self._begun = done_nbytes
        self.total = total_nbytes
        self.since = now

    def add(self, nbytes: int) -> None:
        """More are done."""
        self.done = min(self.done + nbytes, self.total)

    def rate(self, now: float) -> float:
        """Bytes a second, of this run."""
        return (self.done - self._begun) / max(now - self.since, 1e-3)

    def eta_seconds(self, now: float) -> float:
        """How long the rest takes at this rate; 0 where there is none yet."""
        rate = self.rate(now)
        return (self.total - self.done) / rate if rate else 0.0


class _Rate(Observer):
    """Counts bytes and says now and then how it goes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._doing = self._topic = ""
        self._told = 0.0
        self._last = time.monotonic()
        self._count = _Count(0, 0, self._last)
        self._coming: _Count | None = None

    def start(self, doing: str, done_nbytes: int, total_nbytes: int) -> None:
        """Begin the clock."""
        self._doing = doing
        self._last = time.monotonic()
        self._count = _Count(done_nbytes, total_nbytes, self._last)

    def expect(self, done_nbytes: int, total_nbytes: int) -> None:
        """Count beside it what comes over the line."""
        self._coming = _Count(done_nbytes, total_nbytes, time.monotonic())

    def advance(self, nbytes: int) -> None:
        """Count, and report when it is time."""
        self._add(self._count, nbytes)

    def arrive(self, nbytes: int) -> None:
        """Count, and report when it is time."""
        if self._coming is not None:
            self._add(self._coming, nbytes)

    def _add(self, count: _Count, nbytes: int) -> None:
        with self._lock:
            count.add(nbytes)
            now = time.monotonic()
            if now - self._last < self.interval_seconds(now - self._count.since):
                return
            self._last = now
            coming = self._coming.eta_seconds(now) if self._coming else 0.0
            self.report(now, max(self._count.eta_seconds(now), coming))

    def interval_seconds(self, elapsed_seconds: float) -> float:
        """Seconds between two reports."""
        return 1.0

    def is_news(self, doing: str, interval_seconds: float) -> bool:
        """Whether to say what goes on: it is another thing, or was said long ago."""
        topic, now = doing.partition(",")[0], time.monotonic()
        if topic == self._topic and now - self._told < interval_seconds:
            return False
        self._topic, self._told = topic, now
        return True

    def report(self, now: float, eta_seconds: float) -> None:
        """Say how it goes, and how many seconds are left."""


class _PlainLines(_Rate):
    def warn(self, text: str) -> None:
        """A line on stderr."""
        click.echo(text, err=True)

    def tell(self, doing: str) -> None:
        """A line on stderr where the last one is old, or of something else."""
        if self.is_news(doing, 15.0):
            click.echo(doing, err=True)

    def interval_seconds(self, elapsed_seconds: float) -> float:
        """Ten seconds at first, a minute in a long run."""
        return 10.0 if elapsed_seconds < 120 else 60.0

    def report(self, now: float, eta_seconds: float) -> None:
        """One line on stderr."""
        done, total, rate = self._count.done, self._count.total, self._count.rate(now)
        click.echo(
            f"{self._doing}: {100 * done / max(total, 1):.0f} %, {nbytes_text(done)} of "
            f"{nbytes_text(total)}, {nbytes_text(rate)}/s{_coming_text(self._coming, now)}, "
            f"{timedelta(seconds=round(eta_seconds))} left",
            err=True,
        )


class _JsonLines(_Rate):
    def warn(self, text: str) -> None:
        """One object on stdout."""
        emit("warning", text=text)

    def tell(self, doing: str) -> None:
        """One object on stdout, now and then."""
        if self.is_news(doing, 5.0):
            emit("status", doing=doing)

    def start(self, doing: str, done_nbytes: int, total_nbytes: int) -> None:
        """Begin the clock and say what lies ahead."""
        super().start(doing, done_nbytes, total_nbytes)
        emit("start", doing=doing, done_nbytes=done_nbytes, total_nbytes=total_nbytes)

    def report(self, now: float, eta_seconds: float) -> None:
        """One object on stdout."""
        coming = self._coming
        beside = {} if coming is None else {
            "fetched_nbytes": coming.done,
            "to_fetch_nbytes": coming.total,
            "fetched_nbytes_per_second": round(coming.rate(now)),
        }  # fmt: skip
        emit(
            "progress",
            doing=self._doing,
            done_nbytes=self._count.done,
            total_nbytes=self._count.total,
            nbytes_per_second=round(self._count.rate(now)),
            eta_seconds=round(eta_seconds, 1),
            **beside,
        )

    def finish_shard(self, file: str, nbytes: int) -> None:
        """One object for each shard."""
        with self._lock:
            emit("shard", file=file, nbytes=nbytes)


def _coming_text(coming: _Count | None, now: float) -> str:
    """What came over the line, and how fast."""
    if coming is None:
        return ""
    return (
        f"; fetched {nbytes_text(coming.done)} of {nbytes_text(coming.total)}, "
        f"{nbytes_text(coming.rate(now))}/s"
    )


def emit(event: str, **fields: Any) -> None:
    """One JSON line on stdout."""
    click.echo(json.dumps({"event": event, **fields}))


@contextmanager
def _bar() -> Iterator[Observer]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[coming]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    task = bar.add_task("starting", total=None, coming="")
    lock = threading.Lock()

    class Bar(Observer):
        def __init__(self) -> None:
            self._coming = _Count(0, 0, 0.0)

        def start(self, doing: str, done_nbytes: int, total_nbytes: int) -> None:
            bar.reset(task, description=doing, completed=done_nbytes, total=total_nbytes)

        def advance(self, nbytes: int) -> None:
            bar.advance(task, nbytes)

        def expect(self, done_nbytes: int, total_nbytes: int) -> None:
            self._coming = _Count(done_nbytes, total_nbytes, time.monotonic())

        def arrive(self, nbytes: int) -> None:
            with lock:
                self._coming.add(nbytes)
                text = _coming_text(self._coming, time.monotonic())
                bar.update(task, coming=text.lstrip("; "))

        def warn(self, text: str) -> None:
            bar.console.print(text, markup=False, highlight=False)

        def tell(self, doing: str) -> None:
            bar.update(task, description=doing[:70], total=None)

    with bar:
        yield Bar()
