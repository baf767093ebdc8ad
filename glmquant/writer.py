"""Files on disk: written beside, made durable, then renamed into place.

Whole pages of large files go past the page cache (``O_DIRECT``) where the file system lets them:
that takes half the processor's time, waits for nobody's dirty pages, and leaves the cache to
others. Where it does not, the kernel is told to begin writing back every few MiB.

A name without ``.part`` is always a whole file. Modes follow the user's umask: safetensors 0.8.0
leaves 0600, unreadable for other users of a shared folder.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from glmquant.storage import writing

PART_SUFFIX: Final = ".part"

FLUSH_NBYTES: Final = 8 << 20
"""So much of a file is handed to the disk at once, while more is computed."""

DIRECT_NBYTES: Final = 1 << 20
"""Smaller files are not worth a second descriptor."""


_FALLOCATE = ctypes.CDLL(None, use_errno=True).fallocate
_FALLOCATE.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class PartFile:
    """A file of known length that is filled at given offsets and becomes visible at once.

    What is not written stays zero.

    Writing is safe from several threads at offsets that do not overlap.

    Args:
        path: The final name; ``.part`` is added until ``commit``.
        nbytes: Length of the finished file.
        mode: Its permissions; by the user's umask if left out.

    Raises:
        DiskSpaceError: No room.
        StorageError: The file cannot be made.
    """

    def __init__(self, path: Path, nbytes: int, mode: int | None = None) -> None:
        self.path = path
        self.part = path.with_name(path.name + PART_SUFFIX)
        self._descriptor: int | None = None
        self._direct: int | None = None
        self._is_committed = False
        self._unflushed_nbytes = 0
        self._edges: list[tuple[int, bytes]] = []
        with writing(self.part):
            self.part.unlink(missing_ok=True)  # of a killed run, or a link that leads elsewhere
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(self.part, flags, 0o666)
            try:
                if mode is not None:
                    os.fchmod(self._descriptor, mode)
                os.ftruncate(self._descriptor, nbytes)
                self._direct = self._open_direct() if nbytes >= DIRECT_NBYTES else None
                if self._direct is not None:
                    _allocate(self._descriptor, nbytes)
            except OSError:
                self.abort()
                raise

    def _open_direct(self) -> int | None:
        with suppress(OSError):  # tmpfs, some network file systems
            return os.open(self.part, os.O_WRONLY | os.O_DIRECT | os.O_NOFOLLOW | os.O_CLOEXEC)
        return None

    def write(self, offset: int, data: memoryview | bytes) -> None:
        """Put ``data`` at ``offset``.

        Raises:
            DiskSpaceError: No room.
            StorageError: The disk refuses, or the file is closed.
        """
        view = memoryview(data).cast("B")
        done = 0
        with writing(self.part):
            if self._descriptor is None:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            while done < len(view):
                done += os.pwrite(self._descriptor, view[done:], offset + done)
            self._unflushed_nbytes += done
            if self._unflushed_nbytes >= FLUSH_NBYTES:
                self._unflushed_nbytes = 0
                self._start_flush(self._descriptor)

    def write_pages(self, offset: int, pages: memoryview) -> None:
        """Put whole pages at ``offset``, past the page cache if that can be done.

        Args:
            offset: A multiple of a page.
            pages: So aligned and so long, too.

        Raises:
            DiskSpaceError: No room.
            StorageError: The disk refuses, or the file is closed.
        """
        done = 0
        if self._direct is not None:
            with writing(self.part):
                try:
                    done = os.pwrite(self._direct, pages, offset)
                except OSError as error:  # larger blocks than ours, or a change of mind
                    if error.errno != errno.EINVAL:
                        raise
        if done < len(pages):
            self.write(offset + done, pages[done:])

    def write_edge(self, offset: int, data: memoryview) -> None:
        """Put what makes no whole page at ``offset``, by ``commit`` at the latest.

        A write through the cache waits for the direct ones that are under way, and holds up those
        that follow: with 2,000 tensors a GB that is all they did. So it waits until they are done.

        Raises:
            DiskSpaceError: No room.
            StorageError: The disk refuses, or the file is closed.
        """
        if self._direct is None:
            self.write(offset, data)
        else:
            self._edges.append((offset, bytes(data)))

    @staticmethod
    def _start_flush(descriptor: int) -> None:
        """Let the disk begin, and give up pages that are on it.

        Else hundreds of GB would drive everything else out of the page cache, and ``commit`` would
        wait for all of a shard at once. Fresh pages also cost more than used ones.
        """
        with suppress(OSError):  # advice that some file systems do not take
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def commit(self) -> None:
        """Write the edges, make the bytes durable and the name visible.

        Raises:
            DiskSpaceError: No room.
            StorageError: The disk refuses.
        """
        edges, self._edges = self._edges, []
        for offset, data in edges:
            self.write(offset, data)
        with writing(self.part):
            if self._descriptor is None:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            os.fsync(self._descriptor)
            self._close()
            self.part.replace(self.path)
            self._is_committed = True
        sync_folder(self.path.parent)

    def abort(self) -> None:
        """Remove what was written, unless it is committed already."""
        with suppress(OSError):
            self._close()
        if not self._is_committed:
            with suppress(OSError):
                self.part.unlink()

    def _close(self) -> None:
        for descriptor in (self._direct, self._descriptor):
            if descriptor is not None:
                os.close(descriptor)
        self._direct = self._descriptor = None

    def __enter__(self) -> PartFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()


def _allocate(descriptor: int, nbytes: int) -> None:
    """Reserve the blocks of a file, so that they lie together and a full disk is seen at once.

    ``os.posix_fallocate`` writes to every block where the file system cannot; this then does
    nothing.
    """
    if _FALLOCATE(descriptor, 0, 0, nbytes):
        code = ctypes.get_errno()
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(code, os.strerror(code))


def remove_parts(folder: Path, files: Iterable[str]) -> None:
    """Remove what was begun of these files and is not whole."""
    for name in files:
        with suppress(OSError):
            (folder / (name + PART_SUFFIX)).unlink()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable.

    Raises:
        StorageError: The disk refuses.
    """
    with writing(folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
                raise
        finally:
            os.close(descriptor)


def write_file(path: Path, data: bytes, mode: int | None = None) -> None:
    """Write a small file whole: beside, durable, renamed.

    Args:
        path: Its name.
        data: All of it.
        mode: Its permissions; by the user's umask if left out.

    Raises:
        DiskSpaceError: No room.
        StorageError: The disk refuses.
    """
    with PartFile(path, len(data), mode) as part:
        part.write(0, data)
        part.commit()
