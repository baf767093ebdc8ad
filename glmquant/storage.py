"""What the operating system refuses, as errors that name the file and the next step."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from types import TracebackType
from typing import Final

from glmquant.errors import DiskSpaceError, StorageError

STATE_DIR: Final = ".glmquant"
"""The folder in a checkpoint's that holds what a run has to remember."""


def nearest(path: Path) -> Path:
    """A path, or the first one above it that is there."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.exists())


def free_nbytes(path: Path) -> int | None:
    """Room on the disk where a path is or will be; None where the file system does not tell.

    Raises:
        StorageError: It cannot be asked.
    """
    place = nearest(path)
    with reading(place):
        usage = shutil.disk_usage(place)
    return usage.free if usage.total else None


class _Guard:
    """A with statement around calls of the operating system; cheap, since each block needs one."""

    __slots__ = ("_path",)

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, OSError):
            raise self._error(error, error.strerror or str(error)) from error

    def _error(self, error: OSError, found: str) -> StorageError | DiskSpaceError:
        raise NotImplementedError


class reading(_Guard):  # noqa: N801 - used as a word: with reading(path)
    """Turn an OSError of reading ``path`` into a StorageError."""

    def _error(self, error: OSError, found: str) -> StorageError:
        return StorageError(
            "a file cannot be read",
            where=str(self._path),
            expected="a readable file on a sound disk",
            found=found,
            hint="check the file, its mode and the disk, then run the same command again",
        )


class writing(_Guard):  # noqa: N801
    """Turn an OSError of writing ``path`` into a DiskSpaceError or a StorageError."""

    def _error(self, error: OSError, found: str) -> StorageError | DiskSpaceError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DiskSpaceError(
                "the disk is full",
                where=str(self._path),
                expected="room for the whole checkpoint",
                found=found,
                hint="make room and run the same command again: it goes on where it stopped",
            )
        return StorageError(
            "a file cannot be written",
            where=str(self._path),
            expected="leave to write there, files of any length, and a sound disk",
            found=found,
            hint="check the folder's mode, ulimit -f and the disk, then run the same command again",
        )


def make_folder(folder: Path, name: str) -> None:
    """The folders above a name, none of them a link that leads out.

    Raises:
        StorageError: One cannot be made, or is something else.
    """
    place = folder
    for part in Path(name).parent.parts:
        place /= part
        if place.is_symlink():
            raise StorageError(
                "a folder is a link, and may lead elsewhere",
                where=str(place),
                expected="a folder",
                found=f"a link to {place.readlink()}",
                hint="remove the link, or fetch into another folder",
            )
        with writing(place):
            place.mkdir(exist_ok=True)
