"""A folder beside another one: the same files by hard link, reflink or copy, and some new ones."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from glmquant.errors import DiskSpaceError, TargetError
from glmquant.graft.donor import Donor
from glmquant.graft.journal import GRAFT_DIR, UNDO_DIR, GraftJournal, State, close_graft
from glmquant.graft.ledger import grafted_manifest
from glmquant.graft.plan import GraftPlan, Way
from glmquant.graft.recipient import Recipient
from glmquant.graft.shards import require_base_unchanged, write_shards
from glmquant.manifest import MANIFEST_FILE
from glmquant.observer import Observer
from glmquant.sidefiles import WEIGHT_SUFFIXES
from glmquant.source import FolderSource
from glmquant.storage import STATE_DIR, free_nbytes, reading, writing
from glmquant.writer import PartFile, sync_folder, write_file

_FICLONE: Final = 0x40049409
"""``linux/fs.h``: share the blocks of another file."""

_LARGE_NBYTES: Final = 64 << 20
"""From here on the disk is looked at before a file is copied."""


def build_sibling(
    plan: GraftPlan, donor: Donor, recipient: Recipient, into: Path, observer: Observer
) -> None:
    """Make the result of a graft in a folder of its own, ready to take its place.

    Args:
        plan: What is to be done; its way is ``SWAP`` or ``OUTPUT``.
        donor: The BF16 source.
        recipient: The checkpoint; it is only read.
        into: An existing empty folder.
        observer: Told of the progress.

    Raises:
        DiskSpaceError: No room.
        NonFiniteError: The source holds NaN or Inf.
        SourceChangedError: Source or checkpoint were written to meanwhile.
        TargetError: The checkpoint holds something that is neither file, folder nor link.
        StorageError: The disk refuses.
    """
    journal = GraftJournal(plan.way, State.PREPARING)
    journal.save(into)
    journal.base = top_stamps(recipient.path)
    copier = _Copier(plan, recipient, into)
    copier.copy_folder(Path())
    journal.modes = copier.modes
    records = write_shards(plan, donor, recipient, into, observer)
    manifest = grafted_manifest(donor, recipient, plan, records)
    small = {MANIFEST_FILE: manifest} if manifest is not None else {}
    for name, data in {**small, **plan.small_files}.items():
        write_file(into / name, data, plan.mode)
    require_base_unchanged(recipient)
    found = recipient.path.stat()
    with writing(into):
        into.chmod(stat.S_IMODE(found.st_mode))
        _own_alike(into, found)
    journal.contents = dict(contents(into))
    journal.home = os.fsencode(recipient.path).decode(errors="backslashreplace")
    journal.save(into)
    sync_folder(into)
    if plan.way is Way.SWAP:
        close_graft(into, journal)


def top_stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Length and mtime of each file at the top of a folder.

    Raises:
        StorageError: It cannot be read.
    """
    with reading(folder):
        return {
            entry.name: (entry.stat().st_size, entry.stat().st_mtime_ns)
            for entry in os.scandir(folder)
            if entry.is_file()
        }


def contents(folder: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Every file of a folder by its path in there, hidden state of ours left out.

    Raises:
        StorageError: It cannot be read.
    """
    with reading(folder):
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if name.startswith(f"{STATE_DIR}/") or (path.is_dir() and not path.is_symlink()):
                continue
            found = path.lstat()
            yield name, (found.st_size, found.st_mtime_ns)


class _Copier:
    """Brings over what the plan neither writes nor leaves out.

    Weights are linked; all else is copied, since people edit it in place.
    """

    def __init__(self, plan: GraftPlan, recipient: Recipient, into: Path) -> None:
        self.modes: dict[str, tuple[int, int]] = {}
        self._plan = plan
        self._from = recipient.path
        self._into = into
        self._skipped = {
            *plan.removed,
            *plan.small_files,
            *(shard.file for shard in plan.shards),
            GRAFT_DIR,
            UNDO_DIR,
        }
        self._is_output = plan.way is Way.OUTPUT

    def copy_folder(self, inner: Path) -> None:
        """A folder with all that is in it."""
        with reading(self._from / inner):
            entries = sorted(os.scandir(self._from / inner), key=lambda each: each.name)
        for entry in entries:
            name = inner / entry.name
            if str(name) in self._skipped:
                continue
            into = self._into / name
            if entry.is_symlink() and not self._is_output:
                with writing(into):
                    into.symlink_to(Path(entry.path).readlink())
            elif entry.is_symlink() and entry.is_dir():
                with writing(into):
                    into.symlink_to(Path(entry.path).resolve())
            elif entry.is_dir():
                with writing(into):
                    into.mkdir(exist_ok=True)
                self.copy_folder(name)
                with writing(into):
                    shutil.copystat(entry.path, into)
                sync_folder(into)
            elif entry.is_file():
                self._bring(Path(os.path.realpath(entry.path)), into, str(name))
            else:
                raise TargetError(
                    "the checkpoint holds something that cannot go along",
                    where=entry.path,
                    expected="files, folders and links to them",
                    found=stat.filemode(entry.stat(follow_symlinks=False).st_mode),
                    hint="move it out of the folder",
                )

    def _bring(self, path: Path, into: Path, name: str) -> None:
        with reading(path):
            found = path.stat()
        mode = stat.S_IMODE(found.st_mode)
        wider = self._plan.modes.get(name, (mode, mode))[1]
        with writing(into):
            if not name.endswith(WEIGHT_SUFFIXES):
                self._copy(path, into, found, wider)
            elif wider == mode:
                if not (_link(path, into) or _reflink(path, into, found, mode)):
                    self._copy(path, into, found, mode)
            elif _reflink(path, into, found, wider):
                return
            elif not self._is_output and _link(path, into):
                # One inode has one mode: it is changed when the folder is in its place.
                self.modes[name] = (mode, wider)
            else:
                self._copy(path, into, found, wider)

    def _copy(self, path: Path, into: Path, found: os.stat_result, mode: int) -> None:
        if found.st_size > _LARGE_NBYTES:
            self._require_room(found.st_size)
        source = FolderSource(path.parent)
        with PartFile(into, found.st_size, mode) as part:
            offset = 0
            for block in source.blocks(path.name, 0, found.st_size):
                part.write(offset, block)
                offset += len(block)
            part.commit()
        source.release(path.name)
        _stat_alike(into, found)

    def _require_room(self, nbytes: int) -> None:
        free = free_nbytes(self._into)
        if free is not None and free < nbytes:
            raise DiskSpaceError(
                "the disk has too little room",
                where=str(self._into),
                expected=f"{nbytes / 1e6:,.1f} MB free for a file that cannot be linked there",
                found=f"{free / 1e6:,.1f} MB free",
                hint="make room, or name an --output on the disk of the checkpoint",
            )


def _link(path: Path, into: Path) -> bool:
    try:
        os.link(path, into)
    except OSError as error:
        # Not allowed, another disk, too many names, or a file system without links.
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EEXIST):
            raise
        return False
    return True


def _reflink(path: Path, into: Path, found: os.stat_result, mode: int) -> bool:
    """A second file on the same blocks, as XFS and Btrfs have it."""
    with path.open("rb") as source:
        made = os.open(into, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.ioctl(made, _FICLONE, source.fileno())
            os.fchmod(made, mode)
            os.fsync(made)
        except OSError as error:
            os.unlink(into)  # noqa: PTH108 - counted by the tests that kill at each call
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise
            return False
        finally:
            os.close(made)
    _stat_alike(into, found)
    return True


def _stat_alike(path: Path, found: os.stat_result) -> None:
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    _own_alike(path, found)


def _own_alike(path: Path, found: os.stat_result) -> None:
    with suppress(PermissionError):
        if (found.st_uid, found.st_gid) != (os.geteuid(), os.getegid()):
            os.chown(path, found.st_uid, found.st_gid)
