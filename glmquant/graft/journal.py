"""What a graft has written down, so that it can go on or be undone.

As long as it is under way that is in ``DIR/.glmquant/graft/``; its last step renames this folder to
``DIR/.glmquant/undo/``, where it stays until it is undone or forgotten. ``journal.json`` appears by
a rename and is never torn. In place: ``new/`` holds small files that wait for their turn, ``old/``
those that they replace.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Final

from glmquant.errors import JsonError, TargetError
from glmquant.graft.plan import Way
from glmquant.jsontext import dump_object, parse_object
from glmquant.storage import STATE_DIR, reading, writing
from glmquant.writer import sync_folder, write_file

GRAFT_DIR: Final = f"{STATE_DIR}/graft"
UNDO_DIR: Final = f"{STATE_DIR}/undo"
_JOURNAL: Final = "journal.json"


class State(str, Enum):
    """How far a graft is."""

    PREPARING = "preparing"
    """Nothing that an engine reads has changed."""
    SWITCHING = "switching"
    """In place: everything is written; small files are being put into their places."""
    DONE = "done"
    """In ``UNDO_DIR``. A folder beside is whole then, and may take the place of the old one."""
    UNDOING = "undoing"
    FORGETTING = "forgetting"
    """In ``UNDO_DIR``: the old folder beside is being removed."""


@dataclass(slots=True)
class GraftJournal:
    """A graft that has begun.

    Attributes:
        way: How the checkpoint is changed.
        state: How far it is.
        shards: Weights that were not there before.
        files: Small file → xxh3-128 of its bytes before, None where it was not there, and after.
        modes: File → permissions before and after.
        base: Swap: file at the top of the old folder → length and mtime when it was read.
        contents: Swap: file of the new folder → length and mtime.
        home: Swap: the path of the folder when it was swapped in.
    """

    way: Way
    state: State
    shards: tuple[str, ...] = ()
    files: dict[str, tuple[str | None, str]] = field(default_factory=dict)
    modes: dict[str, tuple[int, int]] = field(default_factory=dict)
    base: dict[str, tuple[int, int]] = field(default_factory=dict)
    contents: dict[str, tuple[int, int]] = field(default_factory=dict)
    home: str = ""

    def save(self, folder: Path) -> None:
        """Write it; what was there before is replaced.

        Raises:
            DiskSpaceError: No room.
            StorageError: The disk refuses.
        """
        fields: dict[str, Any] = {
            "way": self.way.value,
            "state": self.state.value,
            "shards": list(self.shards),
            "files": {name: list(digests) for name, digests in self.files.items()},
            "modes": {name: list(modes) for name, modes in self.modes.items()},
            "base": {name: list(stamp) for name, stamp in self.base.items()},
            "contents": {name: list(stamp) for name, stamp in self.contents.items()},
            "home": self.home,
        }
        place = folder / (UNDO_DIR if self.state is State.FORGETTING else GRAFT_DIR)
        with writing(place):
            place.mkdir(parents=True, exist_ok=True)
        write_file(place / _JOURNAL, dump_object(fields))


def load_graft(folder: Path) -> GraftJournal | None:
    """The journal of a graft, under way or done; None where there is none.

    Raises:
        TargetError: It cannot be understood.
        StorageError: It cannot be read.
    """
    path, is_done = folder / GRAFT_DIR / _JOURNAL, False
    if not path.is_file():
        path, is_done = folder / UNDO_DIR / _JOURNAL, True
    if not path.is_file():
        return None
    try:
        with reading(path):
            fields = parse_object(path.read_bytes(), _JOURNAL)
        state = State(fields["state"])
        return GraftJournal(
            Way(fields["way"]),
            State.DONE if is_done and state is not State.FORGETTING else state,
            tuple(_plain(name) for name in fields["shards"]),
            {_plain(name): (old, str(new)) for name, (old, new) in fields["files"].items()},
            {_plain(name): (int(old), int(new)) for name, (old, new) in fields["modes"].items()},
            {name: (int(size), int(time)) for name, (size, time) in fields["base"].items()},
            {name: (int(size), int(time)) for name, (size, time) in fields["contents"].items()},
            str(fields.get("home", "")),
        )
    except (AttributeError, JsonError, KeyError, TypeError, ValueError) as error:
        raise TargetError(
            "the journal of a graft cannot be understood",
            where=str(path),
            expected="what glmquant wrote there",
            found=str(error).splitlines()[0],
            hint="its folder holds the files as they were before in old/",
        ) from error


def _plain(name: str) -> str:
    """A name at the top of the folder: a journal that was tampered with leads nowhere else."""
    if not name or "/" in name or name in (".", ".."):
        raise ValueError(f"{name!r} is no plain name")
    return name


def close_graft(folder: Path, journal: GraftJournal) -> None:
    """The graft is done: from now on it can be undone, and nothing is under way.

    Raises:
        StorageError: The disk refuses.
    """
    with writing(folder / UNDO_DIR):
        os.rename(folder / GRAFT_DIR, folder / UNDO_DIR)  # noqa: PTH104 - counted by the tests
    sync_folder(folder / STATE_DIR)
    journal.state = State.DONE


def reopen_graft(folder: Path) -> None:
    """Something is under way again.

    Raises:
        StorageError: The disk refuses.
    """
    with writing(folder / GRAFT_DIR):
        os.rename(folder / UNDO_DIR, folder / GRAFT_DIR)  # noqa: PTH104 - counted by the tests
    sync_folder(folder / STATE_DIR)


def remove_graft(folder: Path) -> bool:
    """Remove the journal, then all that belongs to it; whether anything was there.

    Raises:
        StorageError: The disk refuses.
    """
    was_there = False
    for place in (folder / GRAFT_DIR, folder / UNDO_DIR):
        if os.path.lexists(place):
            with writing(place):
                (place / _JOURNAL).unlink(missing_ok=True)
            sync_folder(place)
            remove_tree(place)
            was_there = True
    with suppress(OSError):
        (folder / STATE_DIR).rmdir()
        return True
    return was_there


def remove_tree(path: Path) -> None:
    """Remove a folder with all that is in it; nothing behind a link.

    Raises:
        StorageError: The disk refuses.
    """
    with writing(path):
        shutil.rmtree(path)
