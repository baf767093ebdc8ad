"""Files on disk: written beside, made durable, then renamed into place.

A name without ``.part`` is always a whole file. Modes follow the user's umask: safetensors 0.8.0
leaves 0600, unreadable for other users of a shared folder.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from glmquant.errors import DiskSpaceError, StorageError

PART_SUFFIX: Final = ".part"


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of writing into a DiskSpaceError or a StorageError that names ``path``."""
    try:
        yield
    except OSError as error:
        found = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskSpaceError(
                "the disk is full",
                where=str(path),
                expected="room for the whole checkpoint",
                found=found,
                hint="make room and run the same command again: it goes on where it stopped",
            ) from error
        raise StorageError(
            "a file of the target cannot be written",
            where=str(path),
            expected="a folder that can be written to",
            found=found,
            hint="check the folder's mode and the disk, then run the same command again",
        ) from error


class PartFile:
    """A file of known length that is filled at given offsets and becomes visible at once.

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
        with storage_errors(self.part):
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
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
        with storage_errors(self.part):
            if self._descriptor is None:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            while done < len(view):
                done += os.pwrite(self._descriptor, view[done:], offset + done)

    def commit(self) -> None:
        """Make the bytes durable and the name visible.

        Raises:
            DiskSpaceError: No room.
            StorageError: The disk refuses.
        """
        with storage_errors(self.part):
            if self._descriptor is None:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            os.fsync(self._descriptor)
            self._close()
            self.part.replace(self.path)
        sync_folder(self.path.parent)

    def abort(self) -> None:
        """Remove what was written, unless it is committed already."""
        if self._descriptor is not None:
            with suppress(OSError):
                self._close()
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


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable.

    Raises:
        StorageError: The disk refuses.
    """
    with storage_errors(folder):
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
