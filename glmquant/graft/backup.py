"""What an undo would put back: where it lies, whether it is there still, and what it takes."""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from glmquant.errors import GlmquantError, TargetError
from glmquant.graft.journal import UNDO_DIR, GraftJournal, State, load_graft
from glmquant.graft.plan import Way
from glmquant.graft.request import Request, command
from glmquant.graft.siblings import top_stamps
from glmquant.storage import reading


@dataclass(frozen=True, slots=True)
class Siblings:
    """The names beside a folder that a swap uses.

    Attributes:
        folder: The folder, links resolved.
    """

    folder: Path

    def _beside(self, suffix: str) -> Path:
        return self.folder.with_name(f".{self.folder.name}.glmquant-{suffix}")

    @property
    def new(self) -> Path:
        """What is to take its place."""
        return self._beside("new")

    @property
    def old(self) -> Path:
        """What was in its place."""
        return self._beside("old")

    @property
    def aside(self) -> Path:
        """What was in its place, between two renames."""
        return self._beside("aside")

    @property
    def source(self) -> Path:
        """What was fetched of a hub's model to be grafted."""
        return self._beside("source")

    @property
    def trash(self) -> Path:
        """What is being removed."""
        return self._beside("trash")


def has_backup(beside: Siblings, journal: GraftJournal) -> bool:
    """Whether the folder beside is the one that was grafted, with every file as it was read.

    Args:
        beside: The names beside the checkpoint.
        journal: Its graft.

    Raises:
        StorageError: It cannot be read.
    """
    is_there = beside.old.is_dir() and not beside.old.is_symlink()
    return is_there and top_stamps(beside.old) == journal.base


def lost_backup(beside: Siblings, journal: GraftJournal) -> TargetError:
    """The error for an undo whose old folder is not where it was left.

    Args:
        beside: The names beside the checkpoint.
        journal: Its graft.
    """
    is_other = os.path.lexists(beside.old)
    left = left_behind(beside, journal)
    found = "another folder" if is_other else "nothing there"
    hint = command("add-mtp", beside.folder, "--forget")
    if left is not None:
        found += f"; the checkpoint was moved, and the folder is still at {left}"
    if left is not None and not is_other:
        move = shlex.join(["mv", str(left), str(beside.old)])
        hint = f"{move} && {command('add-mtp', beside.folder, '--undo')}"
    return TargetError(
        "the folder that an undo would put back is not there",
        where=str(beside.old),
        expected=f"the checkpoint as it was before the graft, {len(journal.base)} files, "
        "which add-mtp left beside it",
        found=found,
        hint=hint,
    )


def left_behind(beside: Siblings, journal: GraftJournal) -> Path | None:
    """The old folder where the checkpoint was when it was grafted, if no other needs it there.

    Args:
        beside: The names beside the checkpoint as it lies now.
        journal: Its graft.
    """
    home = Siblings(Path(journal.home or "."))
    if not journal.home or home.folder == beside.folder:
        return None
    with suppress(GlmquantError, OSError):
        if load_graft(home.folder) is None and has_backup(home, journal):
            return home.old
    return None


def way_free(request: Request, folder: Path) -> str | None:
    """What has to be typed before another graft: one at a time can be undone.

    Args:
        request: What was asked.
        folder: The checkpoint, links resolved.

    Returns:
        The command; None where no earlier graft is in the way.

    Raises:
        TargetError: The journal cannot be understood.
        StorageError: The folder cannot be read.
    """
    journal = load_graft(folder)
    if journal is None or journal.way is Way.OUTPUT:
        return None
    is_lost = journal.way is Way.SWAP and not has_backup(Siblings(folder), journal)
    return request.forget if is_lost else request.undo


@dataclass(frozen=True, slots=True)
class Backup:
    """What an undo would need.

    Attributes:
        path: A folder.
        nbytes: What it alone keeps on the disk: files that have another name do not count.
    """

    path: Path
    nbytes: int


def backup_of(folder: Path) -> Backup | None:
    """What was kept of a checkpoint when it was grafted; None where nothing can be undone.

    Args:
        folder: The checkpoint.

    Raises:
        TargetError: The journal cannot be understood.
        StorageError: The folder cannot be read.
    """
    with reading(folder):
        folder = folder.resolve()
    journal = load_graft(folder)
    if journal is None or journal.state is not State.DONE or journal.way is Way.OUTPUT:
        return None
    path = Siblings(folder).old if journal.way is Way.SWAP else folder / UNDO_DIR
    with reading(path):
        found = [each.lstat() for each in path.rglob("*")]
    nbytes = sum(512 * each.st_blocks for each in found if each.st_nlink == 1)
    return Backup(path, nbytes)
