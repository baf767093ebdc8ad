"""Files on disk: written beside, made durable, then renamed into place.

A name without ``.part`` is always a whole file. Modes follow the user's umask: safetensors 0.8.0
leaves 0600, unreadable for other users of a shared folder.
"""

from __future__ import annotations

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


class PartFile:
    """A file of known length that is filled at given offsets and becomes visible at once.

    What is not written stays zero.

    Writing is safe from several threads at offsets that do not overlap.

    Args:
        path: The final name; ``.part`` is added until ``commit``.
        nbytes: Length of the finished file.

    Raises:
        DiskSpaceError: No room.
        StorageError: The file cannot be made.
    """

    def __init__(self, path: Path, nbytes: int) -> None:
        self.path = path
        self.part = path.with_name(path.name + PART_SUFFIX)
        self._descriptor: int | None = None
        self._is_committed = False
        self._unflushed_nbytes = 0
        with writing(self.part):
            self.part.unlink(missing_ok=True)  # of a killed run, or a link that leads elsewhere
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(self.part, flags, 0o666)
            try:
                os.ftruncate(self._descriptor, nbytes)
            except OSError:
                self.abort()
                raise

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

    @staticmethod
    def _start_flush(descriptor: int) -> None:
        """Let the disk begin, and give up pages that are on it.

        Else hundreds of GB would drive everything else out of the page cache, and ``commit`` would
        wait for all of a shard at once. Fresh pages also cost more than used ones.
        """
        with suppress(OSError):  # advice that some file systems do not take
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def commit(self) -> None:
        """Make the bytes durable and the name visible.

        Raises:
            DiskSpaceError: No room.
            StorageError: The disk refuses.
        """
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
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> PartFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()


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


def write_file(path: Path, data: bytes) -> None:
    """Write a small file whole: beside, durable, renamed.

    Raises:
        DiskSpaceError: No room.
        StorageError: The disk refuses.
    """
    with PartFile(path, len(data)) as part:
        part.write(0, data)
        part.commit()
