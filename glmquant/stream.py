"""A tensor's bytes gathered into whole pages of its file, which can go past the page cache."""

from __future__ import annotations

from typing import Final

from glmquant.memory import PAGE_NBYTES, Memory
from glmquant.writer import PartFile

STREAM_NBYTES: Final = 2 << 20
"""So much is gathered before it is written: an SSD takes it faster than a quarter of it."""


class PageStream:
    """Bytes on their way into a file, mostly in order: pieces that adjoin are written together.

    They lie in memory as they will in the file, seen from the beginning of a page, so that whole
    pages can go to the disk from where they were made.

    Args:
        part: The file.
        memory: For what is not written yet; the stream's own until ``finish``.
    """

    def __init__(self, part: PartFile, memory: Memory) -> None:
        self._part = part
        self._memory = memory
        self._page = 0  # where in the file the memory begins
        self._begin = self._end = 0  # what of the memory is not written yet

    def move_to(self, offset: int, block_nbytes: int) -> None:
        """Go on at ``offset``, with blocks of at most so many bytes.

        Raises:
            DiskSpaceError: No room.
            StorageError: The disk refuses, or the file is closed.
        """
        needed = STREAM_NBYTES + block_nbytes + PAGE_NBYTES
        if offset != self._page + self._end or len(self._memory.view) < needed:
            self.finish()
            self._memory.fit(needed)
            self._begin = self._end = offset % PAGE_NBYTES
            self._page = offset - self._begin

    @property
    def address(self) -> int:
        """Where the next block is to be put."""
        return self._memory.address + self._end

    def room(self, nbytes: int) -> memoryview:
        """The memory for the next block."""
        return self._memory.view[self._end : self._end + nbytes]

    def put(self, nbytes: int) -> None:
        """The next block is there.

        Raises:
            DiskSpaceError: No room.
            StorageError: The disk refuses, or the file is closed.
        """
        self._end += nbytes
        if self._end >= STREAM_NBYTES:
            self._write_pages()

    def finish(self) -> None:
        """Write what is left.

        Raises:
            DiskSpaceError: No room.
            StorageError: The disk refuses, or the file is closed.
        """
        self._write_pages()
        if self._begin < self._end:
            left = self._memory.view[self._begin : self._end]
            self._part.write_edge(self._page + self._begin, left)
            self._begin = self._end

    def _write_pages(self) -> None:
        """Write all whole pages, and what is before the first; keep the rest."""
        view, rest = self._memory.view, self._end % PAGE_NBYTES
        whole = self._end - rest
        first = -(-self._begin // PAGE_NBYTES) * PAGE_NBYTES
        if whole < max(first, PAGE_NBYTES):
            return
        if self._begin < first:
            self._part.write_edge(self._page + self._begin, view[self._begin : first])
        if first < whole:
            self._part.write_pages(self._page + first, view[first:whole])
        view[:rest] = view[whole : self._end]
        self._page += whole
        self._begin, self._end = 0, rest
