"""What in a target folder is ours: what the journal or the manifest lists, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from glmquant.errors import JsonError, TargetError
from glmquant.glm4_moe import CONFIG_FILE
from glmquant.index import INDEX_FILE
from glmquant.journal import is_unfinished, load_journal, remove_journal
from glmquant.manifest import MANIFEST_FILE, parse_manifest
from glmquant.plan import Plan
from glmquant.reconcile import listing
from glmquant.storage import STATE_DIR, reading, writing
from glmquant.writer import PART_SUFFIX, remove_parts


def not_ours(target_dir: Path, others: list[str]) -> TargetError:
    """The error for a folder that somebody else has filled."""
    return TargetError(
        "the target is not empty and glmquant did not write what is there",
        where=str(target_dir),
        expected="an empty folder, or nothing",
        found=listing(others),
        hint="name another target, or empty this folder yourself",
    )


def entries(target_dir: Path) -> list[str]:
    """Names at the top of the folder, sorted, our state left out.

    Raises:
        StorageError: The folder cannot be read.
    """
    with reading(target_dir):
        names = sorted(entry.name for entry in target_dir.iterdir())
    return [name for name in names if name != STATE_DIR]


def stray_weights(target_dir: Path, ours: Collection[str]) -> list[str]:
    """Weights and indexes at the top of the folder that could be loaded in place of ours."""
    suffixes = (".safetensors", ".index.json")
    return [name for name in entries(target_dir) if name.endswith(suffixes) and name not in ours]


def damaged(path: Path, expected: str, found: str) -> TargetError:
    """The error for a finished target that is not what was written."""
    return TargetError(
        "the finished target is damaged",
        where=str(path),
        expected=expected,
        found=found,
        hint="make it anew with --overwrite",
    )


def manifest_fields(target_dir: Path) -> dict[str, Any]:
    """The manifest of a finished target.

    Raises:
        TargetError: It cannot be understood.
        StorageError: It cannot be read.
    """
    path = target_dir / MANIFEST_FILE
    try:
        with reading(path):
            return parse_manifest(path.read_bytes())
    except JsonError as error:
        raise TargetError(
            "the manifest of the target cannot be understood",
            where=str(path),
            expected="what glmquant wrote there",
            found=error.found,
            hint="name another target, or remove this folder yourself",
        ) from error


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
        listed = manifest_fields(target_dir).get("files")
        names += [str(name) for name in listed] if isinstance(listed, list) else []
        names.append(MANIFEST_FILE)
    for name in names:
        path = PurePosixPath(name)
        is_inside = not path.is_absolute() and ".." not in path.parts and name not in ("", ".")
        if not is_inside or is_behind_link(target_dir, path):
            raise TargetError(
                "the target lists a file outside itself",
                where=str(target_dir),
                expected="names inside the folder, not behind a link",
                found=repr(name),
                hint="remove this folder yourself",
            )
    return tuple(sorted(dict.fromkeys(names), key=lambda name: (_removal_rank(name), name)))


def is_behind_link(target_dir: Path, name: PurePosixPath) -> bool:
    """Whether a folder on the way to ``name`` is a link, so that it leads out of the target."""
    return any((target_dir / folder).is_symlink() for folder in name.parents if folder.name)


def _removal_rank(name: str) -> int:
    return {CONFIG_FILE: 0, INDEX_FILE: 1, MANIFEST_FILE: 3}.get(name, 2)


def clear_target(target_dir: Path, plan: Plan) -> None:
    """Remove what earlier runs of ours wrote, and nothing else.

    Args:
        target_dir: An existing folder.
        plan: What is to be written next; a stranger's file in its way is an error.

    Raises:
        TargetError: Something that we did not write is in the way; nothing is removed then.
        StorageError: The disk refuses.
    """
    refuse_blocking(target_dir, plan)
    remove_files(target_dir, listed_files(target_dir))
    remove_journal(target_dir)


def remove_files(target_dir: Path, names: Iterable[str]) -> None:
    """Remove files of ours, what was begun of them, and folders that become empty.

    Args:
        target_dir: The target.
        names: As ``listed_files`` gives them.

    Raises:
        StorageError: The disk refuses.
    """
    names = list(names)
    if is_unfinished(target_dir):
        remove_parts(target_dir, names)
    for name in names:
        path = target_dir / name
        if os.path.lexists(path) and not path.is_dir():
            with writing(path):
                path.unlink()
        for folder in PurePosixPath(name).parents:
            if folder.name:
                with suppress(OSError):
                    (target_dir / folder).rmdir()


def refuse_blocking(target_dir: Path, plan: Plan) -> None:
    """Nothing that we did not write is in the way of a plan.

    Raises:
        TargetError: Something is.
    """
    ours = set(listed_files(target_dir))
    present = entries(target_dir)
    if present and not ours:
        raise not_ours(target_dir, present)
    blocked = stray_weights(target_dir, ours)
    for name in plan.files:
        blocked += _strangers_at(target_dir, name, ours)
    if blocked:
        raise TargetError(
            "something that glmquant did not write is in the way",
            where=str(target_dir / blocked[0]),
            expected="only files that the manifest or the journal lists",
            found=f"{len(blocked)} others",
            hint="move them out of the folder",
        )


def _strangers_at(target_dir: Path, name: str, ours: set[str]) -> Iterator[str]:
    """What keeps a planned file from its place, and is not ours to remove."""
    for folder in PurePosixPath(name).parents:
        place = target_dir / folder
        is_folder = place.is_dir() and not (folder.name and place.is_symlink())
        if os.path.lexists(place) and not is_folder and str(folder) not in ours:
            yield str(folder)
    path = target_dir / name
    if path.is_dir() and not path.is_symlink():
        for inner in path.rglob("*"):
            inner_name = inner.relative_to(target_dir).as_posix()
            if not inner.is_dir() and inner_name not in ours:
                yield inner_name
    elif os.path.lexists(path) and name not in ours:
        yield name
    part = f"{name}{PART_SUFFIX}"
    is_ours = part in ours or any(listed.startswith(f"{part}/") for listed in ours)
    if not is_ours and not is_unfinished(target_dir) and os.path.lexists(target_dir / part):
        yield part


def clear_place(target_dir: Path, name: str) -> None:
    """Remove the emptied folders that stand where a file is to be written."""
    path = target_dir / name
    if path.is_dir() and not path.is_symlink():
        with writing(path):
            for inner in sorted(path.rglob("*"), reverse=True):
                inner.rmdir()
            path.rmdir()
