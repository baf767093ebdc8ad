"""A folder takes the place of another at once, and the other stays beside it until it is forgotten.

``.NAME.glmquant-new`` is built, then exchanged with ``NAME`` by one call (``renameat2``), and what
was ``NAME`` is then called ``.NAME.glmquant-old``. Where the file system knows no exchange there
are two renames, with ``NAME`` missing for that moment. ``settle`` finishes whatever was begun.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shlex
from enum import Enum
from pathlib import Path
from typing import Final

from glmquant.errors import TargetError
from glmquant.graft.backup import Siblings, has_backup, left_behind, lost_backup
from glmquant.graft.journal import (
    GraftJournal,
    State,
    load_graft,
    remove_graft,
    remove_tree,
)
from glmquant.graft.modes import set_mode
from glmquant.graft.plan import Way
from glmquant.graft.request import Request, command, free_name
from glmquant.graft.siblings import contents, top_stamps
from glmquant.reconcile import listing
from glmquant.storage import writing
from glmquant.writer import sync_folder

_EXCHANGE: Final = 2
_AT_FDCWD: Final = -100
_CANNOT: Final = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
"""A file system, or a C library, that knows no exchange."""


class Settled(Enum):
    """What was interrupted and is finished now."""

    NOTHING = "nothing"
    GRAFT = "a graft, or an undo of it"
    FORGET = "the removal of what an undo would need"


def settle(folder: Path) -> Settled:
    """Finish a swap, an undo or a removal that was interrupted.

    A graft whose old folder is gone is none of them: somebody has moved one of the two.

    Args:
        folder: The checkpoint; it may be missing between two renames.

    Returns:
        What there was to finish.

    Raises:
        StorageError: The disk refuses.
    """
    beside = Siblings(folder)
    was_begun = _finish_renames(beside)
    if os.path.lexists(beside.trash):
        remove_tree(beside.trash)
        was_begun = True
    journal = load_graft(folder)
    if journal is not None and journal.way is Way.SWAP:
        if journal.state is State.FORGETTING:
            if has_backup(beside, journal):
                _discard(beside, beside.old)
            remove_graft(folder)
            return Settled.FORGET
        if os.path.lexists(beside.new):
            _put_away(beside, journal)
            was_begun = True
        return Settled.GRAFT if was_begun else Settled.NOTHING
    undone = load_graft(beside.old)
    is_undone = undone is not None and undone.way is Way.SWAP
    if undone is not None and is_undone and undone.base == top_stamps(folder):
        for name, (mode, _) in undone.modes.items():
            set_mode(folder / name, mode)
        _discard(beside, beside.old)
        was_begun = True
    if os.path.lexists(beside.new):
        built = load_graft(beside.new)
        is_ready = built is not None and built.state is State.DONE and built.way is Way.SWAP
        if built is not None and is_ready and built.base == top_stamps(folder):
            swap_in(folder)
        else:
            _discard(beside, beside.new)
        was_begun = True
    return Settled.GRAFT if was_begun else Settled.NOTHING


def _finish_renames(beside: Siblings) -> bool:
    """Go on where two renames take the place of an exchange."""
    if not os.path.lexists(beside.aside):
        return False
    if not os.path.lexists(beside.folder):
        coming = beside.new if os.path.lexists(beside.new) else beside.old
        _rename(coming, beside.folder)
    journal = load_graft(beside.folder)
    is_forward = journal is not None and journal.way is Way.SWAP
    _rename(beside.aside, beside.new if is_forward else beside.old)
    return True


def _put_away(beside: Siblings, journal: GraftJournal) -> None:
    """After the exchange: wider modes, and the old folder under its own name."""
    for name, (_, mode) in journal.modes.items():
        set_mode(beside.folder / name, mode)
    _rename(beside.new, beside.old)


def swap_in(folder: Path) -> None:
    """Put the folder that was built into its place.

    Raises:
        TargetError: The folder cannot be renamed.
        StorageError: The disk refuses.
    """
    beside = Siblings(folder)
    _exchange(beside.new, beside)
    journal = load_graft(folder)
    if journal is not None:
        _put_away(beside, journal)


def refuse_unswappable(folder: Path, request: Request) -> None:
    """A folder can be renamed, and its old self has a name to go to.

    Args:
        folder: The checkpoint, links resolved.
        request: What was asked.

    Raises:
        TargetError: Not so.
    """
    found, hint = None, request.elsewhere
    beside = Siblings(folder)
    if os.path.ismount(folder):
        found = "a mount point"
    elif not os.access(folder.parent, os.W_OK | os.X_OK):
        found = f"no leave to write to {folder.parent}"
    elif os.path.lexists(beside.old):
        found = f"an older backup, which no graft of this folder needs: {beside.old}"
        free = free_name(folder, "before-graft")
        hint = f"{shlex.join(['mv', str(beside.old), str(free)])} && {request.again}"
    if found:
        raise TargetError(
            "the folder cannot be swapped for a new one",
            where=str(folder),
            expected="a folder that can be renamed within its parent",
            found=found,
            hint=hint,
        )


def undo_swap(folder: Path, journal: GraftJournal) -> None:
    """Put the old folder back and remove the new one.

    Args:
        folder: The checkpoint, settled.
        journal: Its graft.

    Raises:
        TargetError: Somebody has put files into the new folder, or changed some; or the old one is
            gone.
        StorageError: The disk refuses.
    """
    beside = Siblings(folder)
    if not has_backup(beside, journal):
        raise lost_backup(beside, journal)
    now = dict(contents(folder))
    added = sorted(now.keys() - journal.contents.keys())
    changed = sorted(
        name for name in now.keys() & journal.contents.keys() if now[name] != journal.contents[name]
    )
    if added or changed:
        raise TargetError(
            f"files were {'added' if added else 'changed'} after the graft",
            where=str(folder),
            expected="the folder that the graft made",
            found=listing(added or changed),
            hint=f"the old folder is {beside.old}; move these files out, or to keep what is there "
            f"now: {command('add-mtp', folder, '--forget')}",
        )
    _exchange(beside.old, beside)
    settle(folder)


def forget_swap(folder: Path, journal: GraftJournal) -> str | None:
    """Remove the old folder; another one that lies in its place stays.

    Args:
        folder: The checkpoint, settled.
        journal: Its graft.

    Returns:
        Where there is none, and where it lies if that is known.

    Raises:
        StorageError: The disk refuses.
    """
    beside, lost = Siblings(folder), None
    if not has_backup(beside, journal):
        what = "another one lies" if os.path.lexists(beside.old) else "it is not"
        left = left_behind(beside, journal)
        lost = f"the old folder was not removed: {what} at {beside.old}"
        lost += f"; it is still at {left}" if left else ""
    journal.state = State.FORGETTING
    journal.save(folder)
    settle(folder)
    return lost


def _discard(beside: Siblings, path: Path) -> None:
    """Remove a sibling; under another name first, so that a half is never taken for a whole."""
    _rename(path, beside.trash)
    remove_tree(beside.trash)


def discard_new(folder: Path) -> None:
    """Remove what was built and cannot be used.

    Raises:
        StorageError: The disk refuses.
    """
    beside = Siblings(folder)
    if os.path.lexists(beside.new):
        _discard(beside, beside.new)


def _exchange(coming: Path, beside: Siblings) -> None:
    """``coming`` and the folder change names."""
    code = exchange_names(coming, beside.folder)
    if code in _CANNOT:
        try:
            os.rename(beside.folder, beside.aside)  # noqa: PTH104 - counted by the tests
        except OSError as error:
            code = error.errno or errno.EIO
        else:
            sync_folder(beside.folder.parent)
            _rename(coming, beside.folder)
            _rename(beside.aside, coming)
            return
    if code:
        raise TargetError(
            "the folder cannot be swapped for a new one",
            where=str(beside.folder),
            expected="a folder that can be renamed within its parent",
            found=os.strerror(code),
            hint="name another folder with --output",
        )
    sync_folder(beside.folder.parent)


def exchange_names(first: Path, second: Path) -> int:
    """Two folders of one parent change names at once; gives 0 or the error's number."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return errno.ENOSYS
    call.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    if call(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _EXCHANGE) == 0:
        return 0
    return ctypes.get_errno()


def _rename(path: Path, into: Path) -> None:
    with writing(into):
        os.rename(path, into)  # noqa: PTH104 - counted by the tests that kill at each call
    sync_folder(into.parent)
