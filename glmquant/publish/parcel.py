"""What of a checkpoint's folder goes onto a hub."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import yaml

from glmquant.description import DESCRIPTION_PREFIX
from glmquant.errors import (
    CheckpointError,
    JsonError,
    SourceChangedError,
    TargetError,
    UsageError,
)
from glmquant.glm4_moe import CONFIG_FILE
from glmquant.index import INDEX_SUFFIX
from glmquant.jsontext import parse_object
from glmquant.manifest import MANIFEST_FILE
from glmquant.reconcile import listing
from glmquant.report.card import CARD_FILE, is_card
from glmquant.report.sums import outdated_files
from glmquant.sidefiles import UNFINISHED
from glmquant.source import FileStamp, FolderSource, file_stamp, was_rewritten
from glmquant.storage import STATE_DIR, reading
from glmquant.verify.companions import ENGINE_FILES

_MAX_CARD_NBYTES: Final = 16_000_000

_KINDS: Final = (
    *ENGINE_FILES,
    DESCRIPTION_PREFIX,
    "configuration",
    "license",
    "licence",
    "notice",
    "preprocessor_config",
    "readme",
)
"""How the names of a checkpoint's files begin, in small letters, besides its weights."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """The files of a checkpoint.

    Attributes:
        folder: Where they are.
        files: Name → length of each that goes along.
        hidden: Names at the top that stay here: our state, and what other tools keep.
        licence: What the card's front matter calls the licence; None without one.
        has_card: There is a README.md.
        stamps: Length and times of each file as it was listed.
    """

    folder: Path
    files: dict[str, int]
    hidden: tuple[str, ...]
    licence: str | None
    has_card: bool
    stamps: dict[str, FileStamp]

    @property
    def nbytes(self) -> int:
        """Bytes of all that goes along."""
        return sum(self.files.values())


def pack(folder: Path, include: Collection[str] = ()) -> Parcel:
    """List what would go onto a hub; nothing is read but card and manifest.

    Args:
        folder: The checkpoint.
        include: Files that go along though no checkpoint has them.

    Returns:
        Its files, hidden ones apart.

    Raises:
        CheckpointError: A file cannot be listed, or there is no config.json.
        TargetError: A run or a download has not ended there, or there are files of other kinds.
        StorageError: The folder cannot be read.
    """
    files = FolderSource(folder).list_files()
    if CONFIG_FILE not in files:
        raise CheckpointError(
            "this is not a model folder",
            where=str(folder),
            expected=f"weights and {CONFIG_FILE}",
            found=f"{len(files)} other files",
            hint="name the folder that holds config.json and the weights",
        )
    rest = [name for name in files if name.endswith(UNFINISHED)]
    if rest or (folder / STATE_DIR / "journal.json").exists():
        raise TargetError(
            "a run or a download has not ended in this folder",
            where=str(folder),
            expected="a finished checkpoint",
            found=listing(rest) if rest else f"{STATE_DIR}/journal.json",
            hint=shlex.join(["glmquant", "inspect", str(folder)]),
        )
    _require_kinds(folder, files, include)
    with reading(folder):
        hidden = sorted(each.name for each in folder.iterdir() if each.name.startswith("."))
    has_card = CARD_FILE in files
    stamps = {name: file_stamp(folder / name) for name in files}
    licence = _licence(folder) if has_card else None
    return Parcel(folder, files, tuple(hidden), licence, has_card, stamps)


def _require_kinds(folder: Path, files: Collection[str], include: Collection[str]) -> None:
    """Nobody's keys and notes go onto a hub, nor what lies elsewhere.

    Raises:
        TargetError: There is a file that no checkpoint has, or a linked folder.
    """
    manifest = folder / MANIFEST_FILE
    copied: Collection[str] = ()
    if manifest.is_file():
        with reading(manifest), suppress(JsonError):
            told = parse_object(manifest.read_bytes(), MANIFEST_FILE).get("side_files")
            copied = told if isinstance(told, dict) else ()
    known = {CONFIG_FILE, MANIFEST_FILE, *copied, *include}
    strangers = [
        name
        for name in files
        if name not in known
        and not name.endswith((".safetensors", INDEX_SUFFIX, ".jinja"))
        and not PurePosixPath(name).name.lower().startswith(_KINDS)
    ]
    linked = [
        name
        for name in files
        if any((folder / each).is_symlink() for each in PurePosixPath(name).parents)
        or (name not in copied and name in include and (folder / name).is_symlink())
    ]
    if found := [*strangers, *linked]:
        words = ["glmquant", "publish", str(folder), "--include", found[0]]
        raise TargetError(
            "the folder holds what belongs to no checkpoint, and nothing was sent",
            where=str(folder),
            expected="weights, index, description, config.json, tokenizer, template, licence, card",
            found=f"{len(found)} others: {listing(found, 20)}",
            hint="move them away"
            if linked
            else f"move them away, or name each that is to go: {shlex.join(words)}",
        )


def require_unchanged(parcel: Parcel) -> None:
    """What goes is what was verified.

    Raises:
        SourceChangedError: A file was rewritten meanwhile.
    """
    for name, before in parcel.stamps.items():
        now = file_stamp(parcel.folder / name)
        if was_rewritten(before, now):
            raise SourceChangedError(
                "a file changed after it was verified",
                where=str(parcel.folder / name),
                expected="a folder that nobody writes to",
                found="another length or modification time",
                hint="what is on the hub may be wrong: run the same command again",
            )


def _licence(folder: Path) -> str | None:
    """``license`` of the card's front matter."""
    path = folder / CARD_FILE
    with reading(path), path.open("rb") as file:
        text = file.read(_MAX_CARD_NBYTES).decode("utf-8", "replace")
    parts = text.split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return None
    try:
        matter: Any = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return None
    licence = matter.get("license") if isinstance(matter, dict) else None
    return licence if isinstance(licence, str) and licence else None


def require_current_card(parcel: Parcel) -> None:
    """Refuse a card of ours that was made of other files; others' are theirs to keep.

    Args:
        parcel: What would go.

    Raises:
        TargetError: It lists other files, or other sums.
        StorageError: A file cannot be read.
    """
    path = parcel.folder / CARD_FILE
    if not parcel.has_card or not is_card(path):
        return
    with reading(path):
        text = path.read_text(encoding="utf-8", errors="replace")
    others = {name: nbytes for name, nbytes in parcel.files.items() if name != CARD_FILE}
    if changed := outdated_files(text, parcel.folder, others):
        raise TargetError(
            "the card is not that of these files",
            where=str(path),
            expected="the SHA-256 of every file as it is",
            found=f"{len(changed)} files that it lacks or lists otherwise: {listing(changed)}",
            hint=shlex.join(["glmquant", "card", str(parcel.folder)]),
        )


def require_licence(licence: str | None) -> str:
    """The licence, which a hub otherwise makes up.

    Raises:
        UsageError: None is known.
    """
    if licence is None:
        raise UsageError(
            "no licence is known, and the hub's program would say Apache-2.0",
            where=CARD_FILE,
            expected="license in its front matter",
            found="none",
            hint="glmquant publish --license mit, or glmquant card --license ID first",
        )
    return licence
