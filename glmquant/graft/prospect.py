"""What a graft will be, and whether it can be: both folders read, the disk asked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from glmquant.errors import DiskSpaceError, TargetError
from glmquant.graft.backup import way_free
from glmquant.graft.donor import Donor, open_donor
from glmquant.graft.journal import UNDO_DIR, State, load_graft
from glmquant.graft.judge import judge
from glmquant.graft.match import require_same_model
from glmquant.graft.plan import GraftPlan, Way, make_graft_plan
from glmquant.graft.recipient import Recipient, open_recipient
from glmquant.graft.request import Request
from glmquant.graft.swap import refuse_unswappable
from glmquant.manifest import MANIFEST_FILE
from glmquant.observer import Observer
from glmquant.sidefiles import WEIGHT_SUFFIXES
from glmquant.storage import free_nbytes, nearest, reading


@dataclass(frozen=True, slots=True)
class Graft:
    """A graft that is planned, done perhaps.

    Attributes:
        request: What was asked.
        donor: The BF16 source.
        recipient: The checkpoint as it was found.
        plan: What is to be done.
        target_dir: The folder that holds the result.
        needed_nbytes: What it takes on the disk at most.
        was_finished: An interrupted one was finished first.
        is_done: There is nothing to do: the checkpoint lacks nothing, or the output is there.
    """

    request: Request
    donor: Donor
    recipient: Recipient
    plan: GraftPlan
    target_dir: Path
    needed_nbytes: int
    was_finished: bool
    is_done: bool


def plan_graft(request: Request, folder: Path, was_finished: bool, observer: Observer) -> Graft:
    """Read both folders and decide what is to be done.

    Args:
        request: What was asked.
        folder: The checkpoint, links resolved.
        was_finished: An interrupted graft was finished first.
        observer: Told of what is read.

    Returns:
        The graft, nothing of it done.

    Raises:
        CheckpointError: One of the two is not what it should be.
        MismatchError: They are not of one model, or the checkpoint has another MTP layer.
        NoMtpError: The source has no MTP layer.
        StorageError: One of them cannot be read.
    """
    journal = load_graft(folder)
    ours = journal.shards if journal and journal.state is State.PREPARING else ()
    recipient = open_recipient(folder, request, ours)
    donor = open_donor(request.source)
    notes = require_same_model(donor, recipient)
    verdict = judge(donor, recipient, request, observer)
    output = request.output.absolute() if request.output is not None else None
    plan = make_graft_plan(donor, recipient, verdict, to_output=output is not None, notes=notes)
    target = folder if output is None else output
    needed_nbytes = _needed_nbytes(recipient, plan, target)
    is_done = plan.is_nothing or (output is not None and _is_written(recipient, plan, output))
    return Graft(request, donor, recipient, plan, target, needed_nbytes, was_finished, is_done)


def _is_written(recipient: Recipient, plan: GraftPlan, output: Path) -> bool:
    """Whether the output holds the result already: every file by its length, JSON by its bytes."""
    gone = {*plan.removed, *plan.small_files, MANIFEST_FILE}
    lengths = {name: nbytes for name, nbytes in recipient.files.items() if name not in gone}
    lengths |= {shard.file: shard.nbytes for shard in plan.shards}
    with reading(output):
        return (
            all(_nbytes(output / name) == nbytes for name, nbytes in lengths.items())
            and all(_nbytes(output / name) is None for name in plan.removed)
            and all(
                (output / name).is_file() and (output / name).read_bytes() == data
                for name, data in plan.small_files.items()
            )
        )


def _nbytes(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _needed_nbytes(recipient: Recipient, plan: GraftPlan, target: Path) -> int:
    """An upper bound of what the graft takes while it is made; weights on one disk are linked."""
    needed = plan.written_nbytes + 8192 * (len(plan.small_files) + len(plan.shards) + 4)
    if recipient.manifest is not None:
        needed += recipient.files[MANIFEST_FILE] + 512 * len(plan.verdict.missing)
    if plan.way is Way.IN_PLACE:
        return needed
    is_here = _device(target) == _device(recipient.path)
    gone = {*plan.removed, *(shard.file for shard in plan.shards), *plan.small_files}
    with reading(recipient.path):
        for path in recipient.path.rglob("*"):
            is_weight = path.name.endswith(WEIGHT_SUFFIXES)
            if path.is_file() and path.name not in gone and not (is_weight and is_here):
                needed += path.stat().st_size + 4096
    return needed


def _device(path: Path) -> int:
    return nearest(path).stat().st_dev


def require_possible(graft: Graft) -> None:
    """What can be known beforehand: leave, room, and an earlier graft that can still be undone.

    Args:
        graft: The graft, its folder locked and settled.

    Raises:
        DiskSpaceError: The disk has too little room.
        TargetError: The result cannot be written.
    """
    plan, folder, request = graft.plan, graft.recipient.path, graft.request
    if plan.way is Way.OUTPUT:
        _require_fresh(graft.target_dir)
    elif (first := way_free(request, folder)) is not None:
        raise TargetError(
            "an earlier graft can still be undone, and one more would bury it",
            where=str(folder),
            expected="at most one graft that is not forgotten",
            found=f"one in {UNDO_DIR}",
            hint=f"{first} && {request.again}",
        )
    if plan.way is Way.SWAP:
        refuse_unswappable(folder, request)
    place = folder.parent if plan.way is Way.SWAP else nearest(graft.target_dir)
    if not os.access(place, os.W_OK | os.X_OK):
        raise TargetError(
            "the result cannot be written",
            where=str(place),
            expected="a folder that you may write to",
            found="a folder of others, or on a read-only disk",
            hint="name a folder of yours with --output",
        )
    free = free_nbytes(place)
    if free is not None and free < graft.needed_nbytes:
        raise DiskSpaceError(
            "the disk has too little room",
            where=str(place),
            expected=f"{graft.needed_nbytes / 1e6:,.1f} MB free",
            found=f"{free / 1e6:,.1f} MB free",
            hint="make room, or name an --output on the disk of the checkpoint"
            if plan.way is Way.OUTPUT
            else "make room, or name an --output on another disk",
        )


def _require_fresh(output: Path) -> None:
    with reading(output):
        is_free = not os.path.lexists(output) or (
            output.is_dir() and not output.is_symlink() and not any(output.iterdir())
        )
    if not is_free:
        raise TargetError(
            "the output is there already",
            where=str(output),
            expected="an empty folder, or nothing",
            found="files" if output.is_dir() else "a file",
            hint="name another folder as --output",
        )
