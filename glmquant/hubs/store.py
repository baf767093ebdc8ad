"""The folder beside an output that a hub's shards come to while it is made."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from glmquant.errors import TargetError
from glmquant.fetched import JOURNAL_FILE, RECORD_FILE
from glmquant.index import is_shard_name
from glmquant.storage import STATE_DIR, reading, writing
from glmquant.writer import PART_SUFFIX


def store_of(target_dir: Path) -> Path:
    """Where the shards of an output come to: beside it, whatever link leads there."""
    place = target_dir.resolve()
    return place.with_name(f".{place.name}.glmquant-stream")


def require_store(folder: Path) -> None:
    """A folder for shards is ours, or is not there yet.

    Raises:
        TargetError: It is somebody else's, and would be removed in the end.
    """
    with reading(folder):
        is_folder = folder.is_dir() and not folder.is_symlink()
        if not os.path.lexists(folder) or (is_folder and _is_store(folder)):
            return
    other = "a link" if folder.is_symlink() else "a file"
    raise TargetError(
        "something is in the place of the folder that the shards come to",
        where=str(folder),
        expected="nothing, or what an interrupted run left there",
        found="a folder of others" if is_folder else other,
        hint="move it away, or name another TARGET",
    )


def remove_store(folder: Path) -> None:
    """Remove the folder of a run that is done, where there is one and it is ours.

    What somebody else has put there stays.

    Raises:
        StorageError: The disk refuses.
    """
    if not folder.is_dir() or folder.is_symlink() or not _is_store(folder):
        return
    with writing(folder):
        for path in folder.iterdir():
            if is_shard_name(path.name.removesuffix(PART_SUFFIX)):
                path.unlink()
        shutil.rmtree(folder / STATE_DIR, ignore_errors=True)  # last: by it the folder is known
        with suppress(OSError):
            folder.rmdir()


def _is_store(folder: Path) -> bool:
    """Whether a stream has written there, or nobody: a fetch that ended leaves a record."""
    if (folder / RECORD_FILE).exists():
        return False
    is_empty = all(path.name == STATE_DIR for path in folder.iterdir())
    return is_empty or (folder / JOURNAL_FILE).is_file()
