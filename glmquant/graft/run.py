"""``add-mtp``: plan a graft, do it, go on with an interrupted one, undo it, forget it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from glmquant.errors import GlmquantError, TargetError, UsageError
from glmquant.graft.backup import Siblings
from glmquant.graft.inplace import finish_in_place, graft_in_place, undo_in_place
from glmquant.graft.journal import (
    UNDO_DIR,
    GraftJournal,
    State,
    load_graft,
    remove_graft,
    remove_tree,
)
from glmquant.graft.plan import Way
from glmquant.graft.prospect import Graft, plan_graft, require_possible
from glmquant.graft.request import Request, command
from glmquant.graft.siblings import build_sibling
from glmquant.graft.swap import (
    Settled,
    discard_new,
    forget_swap,
    settle,
    swap_in,
    undo_swap,
)
from glmquant.observer import Observer
from glmquant.storage import reading, writing
from glmquant.target import locked_folder
from glmquant.writer import sync_folder


def add_mtp(
    folder: Path,
    source: Path,
    *,
    output: Path | None = None,
    replace_mtp: bool = False,
    dry_run: bool = False,
    observer: Observer | None = None,
    show: Callable[[Graft], None] | None = None,
) -> Graft:
    """Give a quantized checkpoint what it lacks of its source: MTP layers and router biases.

    Args:
        folder: The checkpoint.
        source: The BF16 source it was made of.
        output: Where the result goes; into the checkpoint itself if left out.
        replace_mtp: Take out MTP tensors and router biases that are not the source's, bit for bit.
        dry_run: Plan, and write nothing.
        observer: Told of the progress.
        show: Told of the plan before anything is written.

    Returns:
        What was done.

    Raises:
        CheckpointError: One of the two is not what it should be.
        MismatchError: They are not of one model, or the checkpoint has another MTP layer.
        NoMtpError: The source has no MTP layer.
        NonFiniteError: The source holds NaN or Inf.
        TargetError: The folder cannot be written as asked.
        StorageError: The disk refuses.
    """
    observer = observer or Observer()
    request = Request(folder, source, output, replace_mtp).from_anywhere()
    folder = _resolved(folder)
    request.require_apart()
    if dry_run:
        graft = plan_graft(request, folder, False, observer)
        if show:
            show(graft)
        return graft
    # Not there: killed between two renames.
    was_finished = not os.path.lexists(folder) and settle(folder) is not Settled.NOTHING
    with _locked(folder):
        was_finished = go_on(folder) or was_finished
        if output is not None and _is_done(output):
            was_finished = True
        graft = plan_graft(request, folder, was_finished, observer)
        if not graft.is_done:
            require_possible(graft)
        if show:
            show(graft)
        if graft.is_done:
            return graft
        if graft.plan.way is Way.IN_PLACE:
            graft_in_place(graft.plan, graft.donor, graft.recipient, observer)
        else:
            _beside(graft, observer)
        return graft


def _resolved(folder: Path) -> Path:
    """The folder itself where a link was named: siblings lie beside it, not beside the link."""
    with reading(folder):
        return folder.resolve()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep ``w8a8`` and other grafts out."""
    if not folder.is_dir():
        raise UsageError(
            "the checkpoint is not a folder",
            where=str(folder),
            expected="a folder with quantized weights",
            found="a file" if folder.exists() else "nothing there",
            hint="name the folder that the MTP layer is to go into",
        )
    before = folder.stat().st_ino
    with locked_folder(folder):
        if folder.stat().st_ino != before:
            raise TargetError(
                "another run has just swapped the folder",
                where=str(folder),
                expected="one run at a time",
                found="another folder under the same name",
                hint="run the same command again",
            )
        yield


def go_on(folder: Path) -> bool:
    """Finish what an interrupted graft, undo or forget has begun.

    Args:
        folder: The checkpoint, locked.

    Returns:
        Whether a graft or an undo was brought to its end.

    Raises:
        StorageError: The disk refuses.
    """
    was_begun = settle(folder) is not Settled.NOTHING
    journal = load_graft(folder)
    if journal is None:
        return remove_graft(folder) or was_begun
    if journal.way is Way.OUTPUT:
        return remove_graft(folder)
    if journal.way is Way.IN_PLACE and journal.state is State.SWITCHING:
        finish_in_place(folder, journal)
        return True
    if journal.state in (State.PREPARING, State.UNDOING):
        undo_in_place(folder, journal)
        return True
    return was_begun


def _is_done(output: Path) -> bool:
    """Whether the result was put into its place and the journal alone is left over."""
    journal = load_graft(output) if output.is_dir() else None
    if journal is not None and journal.way is Way.OUTPUT:
        return remove_graft(output)
    return False


def _beside(graft: Graft, observer: Observer) -> None:
    """Build the result in a sibling and let it take its place."""
    beside = Siblings(graft.target_dir)
    with locked_folder(beside.new):
        try:
            _empty(beside.new)
            build_sibling(graft.plan, graft.donor, graft.recipient, beside.new, observer)
            if graft.plan.way is Way.SWAP:
                swap_in(graft.target_dir)
            else:
                with writing(graft.target_dir):
                    os.rename(beside.new, graft.target_dir)  # noqa: PTH104 - see swap.py
                sync_folder(graft.target_dir.parent)
                remove_graft(graft.target_dir)
        except BaseException:
            journal = None
            with suppress(GlmquantError):
                journal = load_graft(beside.new)
            is_between = os.path.lexists(beside.aside)  # two renames: ``settle`` goes on from there
            if journal is not None and not is_between:
                with suppress(GlmquantError):
                    discard_new(graft.target_dir)
            raise


def _empty(folder: Path) -> None:
    """Take out what a killed run has left there."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            remove_tree(path)
        else:
            with writing(path):
                path.unlink()


def undo(folder: Path) -> None:
    """Put back what was there before the graft, byte for byte.

    Args:
        folder: The checkpoint.

    Raises:
        TargetError: There is no graft, it was forgotten, files were changed since, or the old
            folder is gone.
        StorageError: The disk refuses.
    """
    _ended(folder, "undo", _undo)


def forget(folder: Path) -> str | None:
    """Remove what ``undo`` would need.

    Args:
        folder: The checkpoint.

    Returns:
        What was not found and so not removed, for people.

    Raises:
        TargetError: There is no graft.
        StorageError: The disk refuses.
    """
    return _ended(folder, "forget", _forget)


def _ended(folder: Path, verb: str, end: Callable[[Path, GraftJournal], str | None]) -> str | None:
    named, folder = folder, _resolved(folder)
    begun = {Settled.NOTHING if os.path.lexists(folder) else settle(folder)}
    with _locked(folder):
        begun.add(settle(folder))
        journal = load_graft(folder)
        if journal is not None and journal.way is not Way.OUTPUT:
            return end(folder, journal)
        was_forgotten = Settled.FORGET in begun or os.path.lexists(folder / UNDO_DIR)
        was_begun = remove_graft(folder) or begun != {Settled.NOTHING}
        if was_begun and not (verb == "undo" and was_forgotten):
            return None
    raise TargetError(
        f"there is nothing to {verb}",
        where=str(named),
        expected=f"{UNDO_DIR}/journal.json, which a graft leaves there",
        found="none: nothing was grafted, or that was undone or forgotten already",
        hint=command("verify", named),
    )


def _undo(folder: Path, journal: GraftJournal) -> None:
    if journal.way is Way.IN_PLACE:
        undo_in_place(folder, journal)
    else:
        undo_swap(folder, journal)


def _forget(folder: Path, journal: GraftJournal) -> str | None:
    if journal.way is Way.SWAP:
        return forget_swap(folder, journal)
    if journal.state is State.SWITCHING:
        finish_in_place(folder, journal)
    elif journal.state is not State.DONE:
        undo_in_place(folder, journal)  # it had not begun, or was being undone
        return None
    remove_graft(folder)
    return None
