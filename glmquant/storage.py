"""What the operating system refuses, as errors that name the file and the next step."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glmquant.errors import DiskSpaceError, StorageError


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an OSError of reading ``path`` into a StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            "a file cannot be read",
            where=str(path),
            expected="a readable file on a sound disk",
            found=error.strerror or str(error),
            hint="check the file, its mode and the disk, then run the same command again",
        ) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of writing ``path`` into a DiskSpaceError or a StorageError."""
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
            "a file cannot be written",
            where=str(path),
            expected="leave to write there, files of any length, and a sound disk",
            found=found,
            hint="check the folder's mode, ulimit -f and the disk, then run the same command again",
        ) from error
