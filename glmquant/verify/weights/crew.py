"""Threads that judge one unit after the other, each with buffers of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import Final, TypeVar

import numpy as np

from glmquant.observer import Observer
from glmquant.source import FolderSource
from glmquant.tensors import TensorRef
from glmquant.verify.weights.arithmetic import Floats

BLOCK_ELEMENTS: Final = 1 << 17
"""Elements judged at once: a few arrays of them stay in a core's cache of the second level."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class StoppedError(Exception):
    """Another thread failed, or the user interrupted: nobody waits for this result."""


class Worker:
    """What one thread works with.

    Args:
        observer: Is told of every block.
        stop: Set when nobody waits for the result any more.
    """

    def __init__(self, observer: Observer, stop: threading.Event) -> None:
        self._observer = observer
        self._stop = stop
        self._buffers: dict[str, bytearray] = {}
        self._floats: dict[tuple[str, tuple[int, int]], Floats] = {}

    def buffer(self, key: str, nbytes: int) -> memoryview:
        """Writable bytes that are kept: fresh memory costs a page fault every 4 KiB."""
        held = self._buffers.get(key)
        if held is None or len(held) < nbytes:
            held = self._buffers[key] = bytearray(nbytes)
        return memoryview(held)[:nbytes]

    def floats(self, key: str, shape: tuple[int, int]) -> Floats:
        """An F32 array that is kept."""
        held = self._floats.get((key, shape))
        if held is None:
            for old in [each for each in self._floats if each[0] == key]:
                del self._floats[old]  # other shapes: last rows, or another tensor's
            buffer = self.buffer(key, 4 * shape[0] * shape[1])
            held = self._floats[key, shape] = np.frombuffer(buffer, np.float32).reshape(shape)
        return held

    def read(
        self, source: FolderSource, ref: TensorRef, key: str, offset: int, nbytes: int
    ) -> memoryview:
        """Some bytes of a tensor, overwritten by the next read with this key.

        Raises:
            StorageError: The file ends before that, or cannot be read.
            StoppedError: Nobody waits for the result.
        """
        if self._stop.is_set():
            raise StoppedError
        view = self.buffer(key, nbytes)
        source.read_into(ref.file, ref.offset + offset, view)
        self._observer.advance(nbytes)
        return view


def work_through(
    items: Iterable[Item],
    work: Callable[[Item, Worker], Result],
    workers: int,
    observer: Observer,
) -> Iterator[tuple[Item, Result]]:
    """Results as they become ready, in whatever order.

    Args:
        items: What is to be done, taken in order.
        work: Does one of them in a thread.
        workers: How many threads.
        observer: Is told of every block.

    Yields:
        An item and its result. What a thread raises is raised here, once all have stopped.
    """
    waiting = iter(list(items))
    lock = threading.Lock()
    stop = threading.Event()
    ready: SimpleQueue[tuple[Item, Result] | BaseException | None] = SimpleQueue()

    def run() -> None:
        worker = Worker(observer, stop)
        try:
            while not stop.is_set():
                with lock:
                    item = next(waiting, stop)
                if isinstance(item, threading.Event):
                    break
                ready.put((item, work(item, worker)))
        except StoppedError:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again where the results are taken
            ready.put(error)
        finally:
            ready.put(None)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    running = len(threads)
    try:
        while running:
            got = ready.get()
            if got is None:
                running -= 1
            elif isinstance(got, BaseException):
                raise got
            else:
                yield got
    finally:
        stop.set()
        for thread in threads:
            thread.join()
