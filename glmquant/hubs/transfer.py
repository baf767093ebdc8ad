"""Fetches outputs by several threads, part by part; each file is proved before it is named."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Final

from xxhash import xxh3_128

from glmquant.errors import HubError
from glmquant.fetched import FetchedFile
from glmquant.hubs.answers import Setback
from glmquant.hubs.arrival import Arrival, proof_of
from glmquant.hubs.lanes import Lanes
from glmquant.hubs.objects import Objects
from glmquant.hubs.outputs import Output, Part
from glmquant.hubs.patience import Patience, Stopped
from glmquant.observer import Observer

_MAX_OBJECT_FAULTS: Final = 4
"""So often an object is asked for that is not what the hub lists."""

_MAX_RANGE_FAULTS: Final = 2
"""From then on a file is fetched in one stream."""

_END_SECONDS: Final = 5.0
"""So long workers may take to see that a run ends: one may wait for a server."""


class Transfer:
    """Workers that fetch outputs one after the other, the parts of one at the same time.

    Args:
        objects: Where the bytes are.
        patience: How often to try again.
        open_arrival: Begins or takes up the file of an output.
        observer: Is told of bytes and files.
        stop: Set where the run is to end.
        read_twice: Fetch tensors that no sum covers a second time, and compare.
        may_begin: Whether there is room for an output that is next; asked until there is.
    """

    def __init__(
        self,
        objects: Objects,
        patience: Patience,
        open_arrival: Callable[[Output], Arrival],
        *,
        observer: Observer,
        stop: threading.Event,
        read_twice: bool = False,
        may_begin: Callable[[Output], bool] = lambda _: True,
    ) -> None:
        self._objects = objects
        self._patience = patience
        self._open_arrival = open_arrival
        self._observer = observer
        self._stop = stop
        self._read_twice = read_twice
        self._may_begin = may_begin
        self._turn = threading.Condition()
        self._lanes = Lanes(1)
        self._waiting: list[Output] = []
        self._active: list[Arrival] = []
        self._failure: BaseException | None = None
        self.finished: dict[str, FetchedFile] = {}

    def run(self, outputs: Iterable[Output], workers: int) -> dict[str, FetchedFile]:
        """Fetch all of them.

        Args:
            outputs: In the order in which they are to come.
            workers: Threads, each with a connection.

        Returns:
            The files by name.

        Raises:
            GlmquantError: What kept one from coming; the others stop, and what came stays.
        """
        self._waiting = list(outputs)[::-1]
        self._lanes = Lanes(workers)
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.5)  # so that Ctrl-C is heard
        finally:
            self._stop.set()
            with self._turn:
                self._turn.notify_all()
            deadline = time.monotonic() + _END_SECONDS
            for thread in threads:
                if thread.ident is not None:
                    thread.join(max(0.0, deadline - time.monotonic()))
            if not any(thread.is_alive() for thread in threads):
                for arrival in self._active:
                    arrival.close()
        if self._failure is not None:
            raise self._failure
        return self.finished

    def wake(self) -> None:
        """Ask anew whether there is room."""
        with self._turn:
            self._turn.notify_all()

    def _work(self) -> None:
        try:
            while (job := self._next()) is not None:
                arrival, number = job
                begun = time.monotonic(), time.thread_time()
                if number is not None:
                    self._fetch(arrival, number)
                self._settle(arrival)
                with self._turn:
                    self._lanes.leave(time.monotonic() - begun[0], time.thread_time() - begun[1])
                    self._turn.notify()
        except Stopped:
            return
        except BaseException as error:  # noqa: BLE001 - raised again by run()
            with self._turn:
                if self._failure is None and not self._stop.is_set():
                    self._failure = error
                self._stop.set()
                self._turn.notify_all()

    def _next(self) -> tuple[Arrival, int | None] | None:
        """The next part to fetch; a file taken up comes with None, since it may be whole."""
        with self._turn:
            while not self._stop.is_set():
                if self._lanes.is_free:
                    if (job := self._choose()) is not None:
                        self._lanes.take()
                        return job
                    if not self._active and not self._waiting:
                        return None
                self._turn.wait(1.0)
        return None

    def _choose(self) -> tuple[Arrival, int | None] | None:
        """A part of a file that nobody is at, so that it is summed as it comes; else of any."""
        for is_alone in (True, False):
            for arrival in self._active:
                number = arrival.take(is_alone=is_alone)
                if number is not None:
                    return arrival, number
            if self._waiting and self._may_begin(self._waiting[-1]):
                arrival = self._open_arrival(self._waiting.pop())
                self._active.append(arrival)
                is_fresh = arrival.parts and not arrival.earlier_nbytes
                return arrival, arrival.take(is_alone=True) if is_fresh else None
        return None

    def _fetch(self, arrival: Arrival, number: int) -> None:
        part = arrival.parts[number]
        digest = xxh3_128()
        sums = arrival.claim(number)
        done = failures = range_faults = object_faults = 0
        try:
            while done < part.nbytes:
                if arrival.is_stream:  # all that is not there comes in it
                    arrival.give_back(number)
                    if sums is not None:
                        arrival.drop_claim()
                    return
                try:
                    begin = part.begin + done
                    for chunk in self._objects.read(part.file, begin, part.begin + part.nbytes):
                        if self._stop.is_set():
                            raise Stopped
                        arrival.write(part.offset + done, chunk)
                        digest.update(chunk)
                        if sums is not None:
                            sums.update(chunk)
                        done += len(chunk)
                        failures = range_faults = object_faults = 0
                        self._observer.advance(len(chunk))
                except Setback as setback:
                    failures += 1
                    range_faults += setback.is_range_trouble
                    object_faults += setback.is_about_object
                    _refuse_object(part, setback, object_faults)
                    if range_faults >= _MAX_RANGE_FAULTS:
                        if arrival.output.remote is None:
                            raise _no_ranges(part, setback) from setback
                        arrival.give_back(number)
                        if sums is not None:
                            arrival.drop_claim()
                            sums = None
                        if arrival.begin_stream():
                            self._stream(arrival)
                        return
                    self._patience.wait(setback, failures)
            self._compare(arrival, part, digest.hexdigest())
        except BaseException:
            arrival.give_back(number)
            if sums is not None:
                arrival.drop_claim()
            raise
        arrival.finish_part(number, digest.hexdigest(), sums)

    def _stream(self, arrival: Arrival) -> None:
        """Fetch what a file lacks in one answer, from its first byte on: there are no ranges.

        What is there is never written again, since it may be in the sums; so nobody else writes
        meanwhile.
        """
        file = arrival.output.remote
        assert file is not None  # noqa: S101 - compact outputs are refused before
        self._observer.warn(f"{file.path}: the server gives no ranges; fetched in one stream")
        while (left := arrival.take_rest()) is None:
            if self._stop.wait(0.05):
                raise Stopped
        furthest = failures = object_faults = 0
        try:
            while left:
                offset, digest = 0, xxh3_128()
                try:
                    for chunk in self._objects.read(file, 0, file.nbytes):
                        if self._stop.is_set():
                            raise Stopped
                        for number, piece in _cut(chunk, offset, arrival.parts):
                            if number in left:
                                arrival.write(offset, piece)
                                digest.update(piece)
                                new = offset + len(piece) - max(offset, furthest)
                                self._observer.advance(max(0, new))
                            offset += len(piece)
                            part = arrival.parts[number]
                            if number in left and offset == part.offset + part.nbytes:
                                left.remove(number)
                                if not left:
                                    arrival.end_stream()
                                arrival.finish_part(number, digest.hexdigest(), None)
                                digest = xxh3_128()
                        if offset > furthest:
                            furthest, failures, object_faults = offset, 0, 0
                        if not left:
                            return
                except Setback as setback:
                    failures += 1
                    object_faults += setback.is_about_object
                    _refuse_object(arrival.parts[0], setback, object_faults)
                    self._patience.wait(setback, failures)
        finally:
            for number in left:
                arrival.give_back(number)
            if left:
                arrival.end_stream()

    def _compare(self, arrival: Arrival, part: Part, digest: str) -> None:
        """Fetch a part that no sum covers once more, where that is asked for."""
        if not self._read_twice or arrival.output.remote is not None:
            return

        def again() -> str:
            second = xxh3_128()
            for chunk in self._objects.read(part.file, part.begin, part.begin + part.nbytes):
                if self._stop.is_set():
                    raise Stopped
                second.update(chunk)
            return second.hexdigest()

        if self._patience.repeat(again) != digest:
            raise HubError(
                "a range came with other bytes the second time",
                where=f"{part.file.path}, bytes {part.begin}-{part.begin + part.nbytes - 1}",
                expected="the same bytes twice",
                found="others",
                hint="run the same command again; if it goes on, the line or a proxy changes bytes",
            )

    def _settle(self, arrival: Arrival) -> None:
        """Sum what lies ready; name the file where it is whole and proved."""
        lost = arrival.sum_up()
        if lost:
            self._observer.warn(
                f"{arrival.output.name}: {len(lost)} parts are not on the disk as they came; "
                "they are fetched again"
            )
        with self._turn:
            is_last = arrival.is_summed and arrival in self._active
            if is_last:
                self._active.remove(arrival)
            self._turn.notify_all()
        if not is_last:
            return
        fault = arrival.fault()
        if fault is not None:
            self._observer.warn(arrival.start_over(*fault))
            with self._turn:
                self._active.insert(0, arrival)
                self._turn.notify_all()
            return
        arrival.check_structure()
        is_read_twice = self._read_twice and arrival.output.remote is None
        name = arrival.output.name
        self.finished[name] = arrival.commit(proof_of(arrival.output, is_read_twice=is_read_twice))
        self._observer.finish_shard(name, arrival.output.nbytes)


def _cut(chunk: bytes, offset: int, parts: tuple[Part, ...]) -> Iterable[tuple[int, memoryview]]:
    """A chunk cut where parts end, each piece with its part's number."""
    view = memoryview(chunk)
    size = parts[0].nbytes
    done = 0
    while done < len(view):
        number, within = divmod(offset + done, size)
        room = size - within
        yield number, view[done : done + room]
        done += min(room, len(view) - done)


def _refuse_object(part: Part, setback: Setback, faults: int) -> None:
    if faults >= _MAX_OBJECT_FAULTS:
        raise HubError(
            "a stored object is not what the hub lists",
            where=part.file.path,
            expected=f"{part.file.nbytes} bytes",
            found=setback.text,
            hint="fetch from another hub, and tell whoever keeps the repository",
        ) from setback


def _no_ranges(part: Part, setback: Setback) -> HubError:
    return HubError(
        "the server gives no ranges, so that single tensors cannot be taken",
        where=part.file.path,
        expected="HTTP 206 with just the range that was asked for",
        found=setback.text,
        hint="fetch the whole model, or try another hub or endpoint",
    )
