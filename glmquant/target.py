"""What is in the target folder, and whether a plan may be written there."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path, PurePosixPath

from glmquant.errors import DiskSpaceError, JsonError, TargetError
from glmquant.index import INDEX_FILE
from glmquant.journal import STATE_DIR, is_unfinished, load_journal, remove_journal
from glmquant.manifest import MANIFEST_FILE, parse_manifest
from glmquant.plan import Plan
from glmquant.writer import PART_SUFFIX, storage_errors


class TargetState(Enum):
    """What a run finds in its target."""

    FRESH = "fresh"
    UNFINISHED = "unfinished"
    FINISHED = "finished"


def refuse_overlap(source_dir: Path, target_dir: Path) -> None:
    """The source is never written to.

    Raises:
        TargetError: The target is the source, lies in it, or holds it.
    """
    source, target = source_dir.resolve(), target_dir.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise TargetError(
            "the target and the source overlap",
            where=str(target_dir),
            expected="a folder apart from the source",
            found="the source itself" if source == target else f"{target} and {source}",
            hint="name another target",
        )


@contextmanager
def locked_folder(target_dir: Path) -> Iterator[None]:
    """Make the folder if need be and keep other runs out of it; one left empty is removed again.

    Raises:
        TargetError: Another run is writing there, or it is no folder.
        StorageError: It cannot be made.
    """
    if target_dir.exists() and not target_dir.is_dir():
        raise TargetError(
            "the target is not a folder",
            where=str(target_dir),
            expected="a folder, or nothing",
            found="a file",
            hint="name another target",
        )
    with storage_errors(target_dir):
        is_new = not target_dir.exists()
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
        if is_new:
            with suppress(OSError):
                target_dir.rmdir()


def examine_target(target_dir: Path, plan: Plan) -> TargetState:
    """Whether the plan is to be begun, gone on with, or done already.

    Args:
        target_dir: An existing folder.
        plan: What is to be written.

    Returns:
        The state.

    Raises:
        TargetError: The folder holds something else, or another plan's work.
    """
    if is_unfinished(target_dir):
        if load_journal(target_dir).plan_digest != plan.digest:
            raise TargetError(
                "the target holds an unfinished run of another plan",
                where=str(target_dir),
                expected=f"plan {plan.digest}",
                found=f"plan {load_journal(target_dir).plan_digest}",
                hint="use the same source, options and version, or start over with --overwrite",
            )
        _refuse_strangers(target_dir, set(plan.files))
        return TargetState.UNFINISHED
    if (target_dir / MANIFEST_FILE).is_file():
        found = _manifest_fields(target_dir).get("plan")
        if found != plan.digest:
            raise TargetError(
                "the target holds the output of another plan",
                where=str(target_dir),
                expected=f"plan {plan.digest}",
                found=f"plan {found}",
                hint="name another target, or replace that output with --overwrite",
            )
        _require_whole(target_dir, plan)
        return TargetState.FINISHED
    if others := _entries(target_dir):
        raise _not_ours(target_dir, others)
    return TargetState.FRESH


def _not_ours(target_dir: Path, others: list[str]) -> TargetError:
    return TargetError(
        "the target is not empty and glmquant did not write what is there",
        where=str(target_dir),
        expected="an empty folder, or nothing",
        found=", ".join(others[:3]) + (f" and {len(others) - 3} more" if others[3:] else ""),
        hint="name another target, or empty this folder yourself",
    )


def _entries(target_dir: Path) -> list[str]:
    with storage_errors(target_dir):
        names = sorted(entry.name for entry in target_dir.iterdir())
    return [name for name in names if name != STATE_DIR]


def _manifest_fields(target_dir: Path) -> dict[str, object]:
    path = target_dir / MANIFEST_FILE
    try:
        with storage_errors(path):
            return parse_manifest(path.read_bytes())
    except JsonError as error:
        raise TargetError(
            "the manifest of the target cannot be understood",
            where=str(path),
            expected="what glmquant wrote there",
            found=error.found,
            hint="name another target, or remove this folder yourself",
        ) from error


def _require_whole(target_dir: Path, plan: Plan) -> None:
    lengths = {shard.file: shard.nbytes for shard in plan.shards} | plan.side_files
    for name in plan.files:
        path = target_dir / name
        nbytes = path.stat().st_size if path.is_file() else None
        wanted = lengths.get(name)
        is_right = nbytes is not None and wanted in (None, nbytes)
        if is_right and name in plan.small_files:
            is_right = path.read_bytes() == plan.small_files[name]
        if not is_right:
            raise TargetError(
                "the finished target is damaged",
                where=str(path),
                expected=f"{wanted} bytes" if wanted is not None else "the file that was written",
                found="no such file" if nbytes is None else f"{nbytes} bytes, or other contents",
                hint="make it anew with --overwrite",
            )
    _refuse_strangers(target_dir, set(plan.files))


def _refuse_strangers(target_dir: Path, ours: set[str]) -> None:
    """Weights or indexes that are not ours could be loaded in place of ours."""
    strangers = [
        name
        for name in _entries(target_dir)
        if name not in ours and name.endswith((".safetensors", ".index.json"))
    ]
    if strangers:
        raise TargetError(
            "the target holds weights that glmquant did not write",
            where=str(target_dir / strangers[0]),
            expected="only the planned files",
            found=f"{len(strangers)} other files",
            hint="move them out of the folder",
        )


def listed_files(target_dir: Path) -> tuple[str, ...]:
    """What our journal or manifest says that we wrote, in an order safe to remove.

    config.json goes first, so that a half-removed folder cannot be loaded, and the manifest last,
    so that the same command can go on removing.

    Raises:
        TargetError: There is neither, or a name leads out of the folder.
    """
    names: list[str] = []
    if is_unfinished(target_dir):
        names += load_journal(target_dir).files
    if (target_dir / MANIFEST_FILE).is_file():
        listed = _manifest_fields(target_dir).get("files")
        names += [str(name) for name in listed] if isinstance(listed, list) else []
        names.append(MANIFEST_FILE)
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or name in ("", "."):
            raise TargetError(
                "the target lists a file outside itself",
                where=str(target_dir),
                expected="names inside the folder",
                found=repr(name),
                hint="remove this folder yourself",
            )
    return tuple(sorted(dict.fromkeys(names), key=lambda name: (_removal_rank(name), name)))


def _removal_rank(name: str) -> int:
    return {"config.json": 0, INDEX_FILE: 1, MANIFEST_FILE: 3}.get(name, 2)


def clear_target(target_dir: Path, plan: Plan) -> None:
    """Remove what earlier runs of ours wrote, and nothing else.

    Args:
        target_dir: An existing folder.
        plan: What is to be written next; a stranger's file in its way is an error.

    Raises:
        TargetError: Something that we did not write is in the way; nothing is removed then.
        StorageError: The disk refuses.
    """
    ours = set(listed_files(target_dir))
    strangers = [name for name in _entries(target_dir) if not _is_ours(name, ours)]
    if strangers and not ours:
        raise _not_ours(target_dir, strangers)
    blocked = [
        name
        for name in strangers
        if name in plan.files or name.endswith((".safetensors", ".index.json"))
    ]
    if blocked:
        raise TargetError(
            "a file that glmquant did not write is in the way",
            where=str(target_dir / blocked[0]),
            expected="only files that the manifest or the journal lists",
            found=f"{len(blocked)} others",
            hint="move them out of the folder",
        )
    with storage_errors(target_dir):
        for name in listed_files(target_dir):
            path = target_dir / name
            path.unlink(missing_ok=True)
            path.with_name(path.name + PART_SUFFIX).unlink(missing_ok=True)
            for folder in path.relative_to(target_dir).parents:
                if folder != Path():
                    with suppress(OSError):
                        (target_dir / folder).rmdir()
    remove_journal(target_dir)


def _is_ours(name: str, ours: set[str]) -> bool:
    return (
        name.removesuffix(PART_SUFFIX) in ours
        or name in ours
        or any(listed.startswith(name + "/") for listed in ours)
    )


def require_room(target_dir: Path, plan: Plan, done: Collection[str], replaced: set[str]) -> None:
    """The disk holds what is still to be written.

    Args:
        target_dir: The target; the nearest folder that exists is asked.
        plan: What is to be written.
        done: Output shards that are finished.
        replaced: Files of an earlier run that will be removed first.

    Raises:
        DiskSpaceError: It does not.
    """
    # The journal holds the same records as the manifest; a file takes whole blocks.
    needed = plan.output_nbytes + plan.manifest_nbytes + 8192 * len(plan.files)
    needed -= sum(shard.nbytes for shard in plan.shards if shard.file in done)
    needed -= _reusable_nbytes(target_dir, (replaced | set(plan.files)) - set(done))
    folder = target_dir
    while not folder.exists():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    if usage.total and usage.free < needed:
        raise DiskSpaceError(
            "the disk has too little room",
            where=str(target_dir),
            expected=f"{needed / 1e9:.3f} GB free",
            found=f"{usage.free / 1e9:.3f} GB free",
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
