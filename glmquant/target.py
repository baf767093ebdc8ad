"""What is in the target folder, and whether a plan may be written there."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Any

from glmquant.errors import DiskSpaceError, TargetError
from glmquant.journal import is_unfinished, load_finished, load_journal
from glmquant.manifest import MANIFEST_FILE
from glmquant.ownership import (
    damaged,
    entries,
    listed_files,
    manifest_fields,
    not_ours,
    refuse_blocking,
    stray_weights,
)
from glmquant.plan import Plan
from glmquant.storage import STATE_DIR, free_nbytes, nearest, reading, writing
from glmquant.writer import PART_SUFFIX


class TargetState(Enum):
    """What a run finds in its target."""

    FRESH = "fresh"
    UNFINISHED = "unfinished"
    FINISHED = "finished"


def refuse_overlap(source_dir: Path, target_dir: Path, files: Iterable[str] = ()) -> None:
    """The source is never written to.

    Args:
        source_dir: The folder that is read.
        target_dir: The folder to be written.
        files: Names in the source, some of which may be links.

    Raises:
        TargetError: The target is the source, lies in it, holds it, or holds a file of it.
    """
    try:
        source, target = source_dir.resolve(), target_dir.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, until Python 3.13
        raise TargetError(
            "the target cannot be made",
            where=str(target_dir),
            expected="a folder, or nothing",
            found=str(error),
            hint="name another target",
        ) from error
    found = None
    if source == target:
        found = "the source itself"
    elif source in target.parents:
        found = f"{target} is in {source}"
    elif target in source.parents:
        found = f"{source} is in {target}"
    else:
        linked = (name for name in files if target in (source / name).resolve().parents)
        if name := next(linked, None):
            found = f"{name} of the source is a link to it"
    if found:
        raise TargetError(
            "the target and the source overlap",
            where=str(target_dir),
            expected="a folder apart from the source",
            found=found,
            hint="name another target",
        )


def _require_folder(target_dir: Path) -> None:
    state_dir = target_dir / STATE_DIR
    for path in (target_dir, state_dir):
        is_link_of_ours = path is state_dir and path.is_symlink()
        if os.path.lexists(path) and (is_link_of_ours or not path.is_dir()):
            raise TargetError(
                "the target is not a folder",
                where=str(path),
                expected="a folder, or nothing",
                found="a link" if path.is_symlink() else "a file",
                hint="name another target",
            )


@contextmanager
def locked_folder(target_dir: Path) -> Iterator[None]:
    """Make the folder if need be and keep other runs out of it; one left empty is removed again.

    Raises:
        TargetError: Another run is writing there, or it is no folder.
        StorageError: It cannot be made.
    """
    _require_folder(target_dir)
    made = []
    for folder in (target_dir, *target_dir.parents):
        if folder.exists():
            break
        made.append(folder)
    with writing(target_dir):
        target_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(target_dir, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise TargetError(
                    "another run is writing to the target",
                    where=str(target_dir),
                    expected="one run at a time",
                    found="the folder is locked",
                    hint="wait for the other run, or name another target",
                ) from error
            # A file system without locks: go on, as cp would.
        yield
    finally:
        os.close(descriptor)
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


def admit(plan: Plan, target_dir: Path, overwrite: bool, beside_nbytes: int = 0) -> TargetState:
    """Whether a plan may be written to a folder, without writing anything.

    Args:
        plan: What is to be written.
        target_dir: The folder; it need not exist.
        overwrite: An earlier output of ours will be removed first.
        beside_nbytes: What the run takes on that disk beside its output.

    Returns:
        What is there; fresh where it is to be overwritten.

    Raises:
        TargetError: Something else is there, or the disk has too little room.
        StorageError: The folder cannot be looked into.
    """
    with reading(target_dir):
        if not os.path.lexists(target_dir):
            _require_room(target_dir, plan, (), set(), beside_nbytes)
            return TargetState.FRESH
        _require_folder(target_dir)
    if overwrite:
        refuse_blocking(target_dir, plan)
        _require_room(target_dir, plan, (), set(listed_files(target_dir)), beside_nbytes)
        return TargetState.FRESH
    state = _examine(target_dir, plan)
    if state is TargetState.UNFINISHED:
        refuse_blocking(target_dir, plan)
        lengths = {shard.file: shard.nbytes for shard in plan.shards}
        noted = load_finished(target_dir).keys() & lengths.keys()
        done = [name for name in noted if _nbytes(target_dir / name) == lengths[name]]
        _require_room(target_dir, plan, done, set(), beside_nbytes)
    elif state is TargetState.FRESH:
        _require_room(target_dir, plan, (), set(), beside_nbytes)
    return state


def _nbytes(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _examine(target_dir: Path, plan: Plan) -> TargetState:
    if is_unfinished(target_dir):
        journal = load_journal(target_dir)
        if journal.plan_digest != plan.digest:
            raise TargetError(
                "the target holds an unfinished run of another plan",
                where=str(target_dir),
                expected=_differences(plan.settings, journal.settings),
                found=_differences(journal.settings, plan.settings),
                hint="use the same source, options and version, or start over with --overwrite",
            )
        return TargetState.UNFINISHED
    if (target_dir / MANIFEST_FILE).is_file():
        manifest = manifest_fields(target_dir)
        if manifest.get("plan") != plan.digest:
            settings = manifest.get("settings")
            before = settings if isinstance(settings, dict) else {}
            raise TargetError(
                "the target holds the output of another plan",
                where=str(target_dir),
                expected=_differences(plan.settings, before),
                found=_differences(before, plan.settings),
                hint="name another target, or replace that output with --overwrite",
            )
        _require_whole(target_dir, plan)
        return TargetState.FINISHED
    if others := entries(target_dir):
        raise not_ours(target_dir, others)
    return TargetState.FRESH


def _differences(settings: dict[str, Any], others: dict[str, Any]) -> str:
    """What is set here and not so there, in words."""
    changed = [f"{key} {value}" for key, value in settings.items() if others.get(key) != value]
    return ", ".join(changed) or "the same settings for another config.json or other headers"


def _require_whole(target_dir: Path, plan: Plan) -> None:
    lengths = {shard.file: shard.nbytes for shard in plan.shards}
    for name in (*lengths, MANIFEST_FILE, *plan.small_files):
        path = target_dir / name
        nbytes = _nbytes(path)
        wanted = lengths.get(name)
        is_right = nbytes is not None and wanted in (None, nbytes)
        if is_right and name in plan.small_files:
            is_right = path.read_bytes() == plan.small_files[name]
        if not is_right:
            raise damaged(
                path,
                f"{wanted} bytes" if wanted is not None else "the file that was written",
                "no such file" if nbytes is None else f"{nbytes} bytes, or other contents",
            )
    if strangers := stray_weights(target_dir, plan.files):
        raise TargetError(
            "the target holds weights that glmquant did not write",
            where=str(target_dir / strangers[0]),
            expected="only the planned files",
            found=f"{len(strangers)} other files",
            hint="move them out of the folder",
        )


def peak_disk_nbytes(plan: Plan) -> int:
    """What a run takes on disk at most, an upper bound.

    The journal holds the same records as the manifest; a file takes whole blocks.

    Args:
        plan: What is to be written.

    Returns:
        Bytes, the finished files included.
    """
    return plan.output_nbytes + plan.manifest_nbytes + 8192 * len(plan.files)


def _require_room(
    target_dir: Path,
    plan: Plan,
    done: Collection[str],
    replaced: set[str],
    beside_nbytes: int,
) -> None:
    needed = peak_disk_nbytes(plan) + beside_nbytes
    needed -= sum(shard.nbytes for shard in plan.shards if shard.file in done)
    needed -= _reusable_nbytes(target_dir, (replaced | set(plan.files)) - set(done))
    folder = nearest(target_dir)
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise TargetError(
            "the target cannot be made",
            where=str(target_dir),
            expected=f"{folder} to be a folder that you may write to",
            found="a folder of others, or on a read-only disk" if folder.is_dir() else "a file",
            hint="name another target",
        )
    free = free_nbytes(folder)
    if free is not None and free < needed:
        raise DiskSpaceError(
            "the disk has too little room",
            where=str(target_dir),
            expected=f"{needed / 1e6:,.1f} MB free",
            found=f"{free / 1e6:,.1f} MB free",
            hint="make room or name a target on another disk",
        )


def _reusable_nbytes(target_dir: Path, names: set[str]) -> int:
    """Bytes of files that the run replaces: they are free again before they are written."""
    total = 0
    for name in names:
        for path in (target_dir / name, target_dir / (name + PART_SUFFIX)):
            with suppress(OSError):
                total += path.lstat().st_blocks * 512
    return total
