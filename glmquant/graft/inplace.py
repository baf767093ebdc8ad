"""A graft in place: shard, manifest, description, config, index, each by one rename.

The index is last, and it alone lets an engine load the shard: each state between loads as the old
checkpoint. What is replaced stays in ``old/`` as the very file it was, until ``--forget``.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

import xxhash

from glmquant.errors import GlmquantError, TargetError
from glmquant.graft.donor import Donor
from glmquant.graft.journal import (
    GRAFT_DIR,
    UNDO_DIR,
    GraftJournal,
    State,
    close_graft,
    remove_graft,
    reopen_graft,
)
from glmquant.graft.ledger import grafted_manifest
from glmquant.graft.modes import set_mode
from glmquant.graft.plan import GraftPlan, Way
from glmquant.graft.recipient import Recipient
from glmquant.graft.request import command
from glmquant.graft.shards import require_base_unchanged, write_shards
from glmquant.manifest import MANIFEST_FILE
from glmquant.observer import Observer
from glmquant.storage import reading, writing
from glmquant.writer import PartFile, remove_parts, sync_folder, write_file

_OLD = "old"
_NEW = "new"


def graft_in_place(plan: GraftPlan, donor: Donor, recipient: Recipient, observer: Observer) -> None:
    """Write what is missing, then put the small files into their places.

    Args:
        plan: What is to be done; its way is ``IN_PLACE``.
        donor: The BF16 source.
        recipient: The checkpoint.
        observer: Told of the progress.

    Raises:
        NonFiniteError: The source holds NaN or Inf.
        SourceChangedError: Source or checkpoint were written to meanwhile.
        StorageError: The disk refuses.
    """
    folder = recipient.path
    remove_graft(folder)  # what a kill left without a journal
    journal = GraftJournal(
        Way.IN_PLACE, State.PREPARING, tuple(shard.file for shard in plan.shards)
    )
    try:
        journal.save(folder)
        records = write_shards(plan, donor, recipient, folder, observer)
        require_base_unchanged(recipient)
        small = dict(plan.small_files)
        manifest = grafted_manifest(donor, recipient, plan, records)
        if manifest is not None:
            small = {MANIFEST_FILE: manifest, **small}
        _stage(folder, small, plan.mode)
        journal.files = {
            name: (_digest(folder / name), _xxh3(data)) for name, data in small.items()
        }
        journal.modes = plan.modes
        journal.state = State.SWITCHING
        journal.save(folder)
    except BaseException:
        if journal.state is State.PREPARING:
            with suppress(GlmquantError):  # what failed first is what the user has to hear of
                undo_in_place(folder, journal)
        raise
    finish_in_place(folder, journal)


def _stage(folder: Path, small: dict[str, bytes], mode: int | None) -> None:
    """Write the new small files aside, and keep those that they will replace."""
    place = folder / GRAFT_DIR
    for name in (_OLD, _NEW):
        with writing(place / name):
            (place / name).mkdir(exist_ok=True)
    for name, data in small.items():
        write_file(place / _NEW / name, data, mode)
        _keep(folder / name, place / _OLD / name)
    sync_folder(place / _OLD)
    sync_folder(place)


def _keep(path: Path, backup: Path) -> None:
    """The file itself under a second name; a copy where the file system has no hard links."""
    if not os.path.lexists(path):
        return
    with writing(backup):
        with suppress(OSError):
            os.link(path, backup, follow_symlinks=False)
            return
        if path.is_symlink():
            backup.symlink_to(path.readlink())
            return
        found = path.stat()
        with PartFile(backup, found.st_size, stat.S_IMODE(found.st_mode)) as part:
            part.write(0, path.read_bytes())
            part.commit()
        os.utime(backup, ns=(found.st_atime_ns, found.st_mtime_ns))


def finish_in_place(folder: Path, journal: GraftJournal) -> None:
    """Go on from ``SWITCHING`` to ``DONE``; the source is not needed for that.

    Raises:
        StorageError: The disk refuses.
    """
    place = folder / GRAFT_DIR
    for name, (_, mode) in journal.modes.items():
        set_mode(folder / name, mode)
    for name in journal.files:
        staged = place / _NEW / name
        if staged.exists():  # else it is in its place already
            with writing(folder / name):
                staged.replace(folder / name)
            sync_folder(folder)
    with suppress(OSError):
        (place / _NEW).rmdir()
    close_graft(folder, journal)


def undo_in_place(folder: Path, journal: GraftJournal) -> None:
    """Put back what was there, the index first, and take the shard away.

    Args:
        folder: The checkpoint.
        journal: Its graft, in whatever state.

    Raises:
        TargetError: Somebody else has changed what would be put back.
        StorageError: The disk refuses.
    """
    place = folder / GRAFT_DIR
    if journal.state in (State.SWITCHING, State.DONE):
        _require_ours(folder, journal)
        if journal.state is State.DONE:
            reopen_graft(folder)
        journal.state = State.UNDOING
        journal.save(folder)
    if journal.state is State.UNDOING:
        for name in reversed(journal.files):
            before, _ = journal.files[name]
            backup = place / _OLD / name
            with writing(folder / name):
                if os.path.lexists(backup):
                    backup.replace(folder / name)  # no effect where they are one file still
                elif before is None:
                    (folder / name).unlink(missing_ok=True)
            sync_folder(folder)
        for name, (mode, _) in journal.modes.items():
            set_mode(folder / name, mode)
    remove_parts(folder, journal.shards)
    for name in journal.shards:
        with writing(folder / name):
            (folder / name).unlink(missing_ok=True)
    sync_folder(folder)
    remove_graft(folder)


def _require_ours(folder: Path, journal: GraftJournal) -> None:
    changed = [
        name for name, digests in journal.files.items() if _digest(folder / name) not in digests
    ]
    if changed:
        raise TargetError(
            "a file was changed after the graft",
            where=str(folder / changed[0]),
            expected="the file that the graft wrote there",
            found="other contents",
            hint=f"the one before the graft is {folder / UNDO_DIR / _OLD / changed[0]}; "
            f"to keep what is there now: {command('add-mtp', folder, '--forget')}",
        )


def _digest(path: Path) -> str | None:
    if not os.path.lexists(path):
        return None
    with reading(path):
        return _xxh3(path.read_bytes())


def _xxh3(data: bytes) -> str:
    return xxhash.xxh3_128(data).hexdigest()
