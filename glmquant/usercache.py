"""The user's cache folder: small files that only save time and may vanish at any moment."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

MAX_NBYTES: Final = 16_000_000
"""Longer files are none of ours."""


def cache_dir() -> Path:
    """``$XDG_CACHE_HOME/glmquant``, else ``~/.cache/glmquant``; it need not exist.

    Raises:
        RuntimeError: The user has no home folder.
    """
    named = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(named) if Path(named).is_absolute() else Path.home() / ".cache"
    return base / "glmquant"


def read_cached(name: str) -> bytes | None:
    """A file of the cache, or None where there is none, or where somebody else could have put it.

    Args:
        name: Its name, without a folder.
    """
    with suppress(OSError, RuntimeError):
        # Not to wait for ever where somebody put a pipe.
        descriptor = os.open(cache_dir() / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            is_ours = found.st_uid == os.geteuid() and not found.st_mode & 0o022
            if is_ours and stat.S_ISREG(found.st_mode) and found.st_size <= MAX_NBYTES:
                return file.read()
    return None


def write_cached(name: str, data: bytes) -> None:
    """Put a file into the cache, whole or not at all; that it cannot be written is no error.

    Args:
        name: Its name, without a folder.
        data: What it is to hold.
    """
    with suppress(OSError, RuntimeError):
        folder = cache_dir()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, part = tempfile.mkstemp(dir=folder, prefix=f"{name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            Path(part).replace(folder / name)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise


def remove_cached(name: str) -> None:
    """Take a file out of the cache, and what a killed writer left of it; neither has to be there.

    Args:
        name: Its name, without a folder.
    """
    with suppress(OSError, RuntimeError):
        for path in cache_dir().glob(f"{name}*"):
            path.unlink(missing_ok=True)
