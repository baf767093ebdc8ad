"""What an interrupted run has calculated, in the user's cache, so that the next one goes on.

None of it has to be there, and none of it has to be writable: a run without it takes longer.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Final

import torch
import xxhash
from torch import Tensor

from glmquant.usercache import cache_dir

_DIGEST_NBYTES: Final = 16


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data


def _digest(views: Sequence[memoryview], key: bytes) -> bytes:
    hashed = xxhash.xxh3_128(key)
    for view in views:
        hashed.update(view)
    return hashed.digest()


def _fill(file: FileIO, view: memoryview) -> bool:
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            return False
        done += count
    return True


def _pour(file: FileIO, view: memoryview | bytes) -> None:
    view = memoryview(view)
    while view:
        view = view[file.write(view) :]


class Log:
    """Records of tensors, one after the other; a record counts only where it is whole.

    The first records are recalled as long as there are any, then others are kept. Only one process
    at a time has a log; others run without.

    Args:
        name: The file's name in the cache.
        key: Says what the records are of; a log with another one is emptied.
    """

    def __init__(self, name: str, key: bytes) -> None:
        self._name = name
        self._key = xxhash.xxh3_128(key).digest()
        self._file: FileIO | None = None
        with suppress(OSError, RuntimeError):
            self._open(cache_dir())

    def _open(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        file = FileIO(os.open(folder / self._name, flags, 0o600), "r+")
        try:
            found = os.fstat(file.fileno())
            is_ours = found.st_uid == os.geteuid() and not found.st_mode & 0o022
            if not is_ours or not stat.S_ISREG(found.st_mode):
                file.close()
                return
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if file.read(_DIGEST_NBYTES) != self._key:
                file.seek(0)
                file.truncate()
                _pour(file, self._key)
        except BaseException:
            file.close()
            raise
        self._file = file

    def recall(self, tensors: Sequence[Tensor]) -> bool:
        """Fill tensors with the next record.

        Args:
            tensors: Contiguous ones with the shapes and dtypes of the record.

        Returns:
            Whether there was a whole one; if not, nothing more will be recalled.
        """
        if self._file is None:
            return False
        with suppress(OSError):
            begin = self._file.tell()
            views = [_bytes_of(tensor) for tensor in tensors]
            told = self._file.read(_DIGEST_NBYTES) or b""
            if all(_fill(self._file, view) for view in views) and told == _digest(views, self._key):
                return True
            self._file.seek(begin)
            self._file.truncate()
            return False
        self.close()
        return False

    def keep(self, tensors: Sequence[Tensor]) -> None:
        """Add a record after the last."""
        if self._file is None:
            return
        try:
            views = [_bytes_of(tensor) for tensor in tensors]
            _pour(self._file, _digest(views, self._key))
            for view in views:
                _pour(self._file, view)
        except OSError:
            self.remove()  # a full disk: the room is worth more than the time

    def rewind(self) -> None:
        """The next record is kept in place of all."""
        if self._file is not None:
            with suppress(OSError):
                self._file.seek(_DIGEST_NBYTES)

    def remove(self) -> None:
        """Forget all."""
        if self._file is not None:
            with suppress(OSError, RuntimeError):
                (cache_dir() / self._name).unlink()
        self.close()

    def close(self) -> None:
        """Let other processes have it."""
        if self._file is not None:
            self._file.close()
            self._file = None
