"""One install or removal at a time."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glmquant.errors import GlmquantError
from glmquant.storage import writing


@contextmanager
def exclusive(home: Path, error: type[GlmquantError]) -> Iterator[int]:
    """Hold the folder of the environments; gives the descriptor of the lock.

    The descriptor may be handed to a child: the lock then lasts until the child has ended, too.

    Args:
        home: The folder.
        error: Raised where another process holds it.

    Raises:
        GlmquantError: Another process holds it.
    """
    path = home / "lock"
    with writing(path):
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _take(descriptor):
            pid = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
            raise error(
                "another install or removal is at work",
                where=str(home),
                expected="one at a time",
                found=f"process {pid} holds {path.name}" if pid else f"{path.name} is held",
                hint="wait until it ends, then run the same command again",
            )
        with writing(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def holder(home: Path) -> str | None:
    """The process that is at work there, or None."""
    try:
        descriptor = os.open(home / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if _take(descriptor):
            return None
        return os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
    finally:
        os.close(descriptor)


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Any other error is a file system without locks: go on, as cp would.
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True
