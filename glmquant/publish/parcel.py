"""What of a checkpoint's folder goes onto a hub."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from glmquant.errors import CheckpointError, TargetError, UsageError
from glmquant.glm4_moe import CONFIG_FILE
from glmquant.reconcile import listing
from glmquant.report.card import CARD_FILE, is_card
from glmquant.report.sums import outdated_files
from glmquant.sidefiles import UNFINISHED
from glmquant.source import FolderSource
from glmquant.storage import STATE_DIR, reading

_MAX_CARD_NBYTES: Final = 16_000_000


@dataclass(frozen=True, slots=True)
class Parcel:
    """The files of a checkpoint.

    Attributes:
        folder: Where they are.
        files: Name → length of each that goes along.
        hidden: Names at the top that stay here: our state, and what other tools keep.
        licence: What the card's front matter calls the licence; None without one.
        has_card: There is a README.md.
    """

    folder: Path
    files: dict[str, int]
    hidden: tuple[str, ...]
    licence: str | None
    has_card: bool

    @property
    def nbytes(self) -> int:
        """Bytes of all that goes along."""
        return sum(self.files.values())


def pack(folder: Path) -> Parcel:
    """List what would go onto a hub; nothing is read but the card.

    Args:
        folder: The checkpoint.

    Returns:
        Its files, hidden ones apart.

    Raises:
        CheckpointError: A file cannot be listed, or there is no config.json.
        TargetError: A run or a download has not ended there.
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
    with reading(folder):
        hidden = sorted(each.name for each in folder.iterdir() if each.name.startswith("."))
    has_card = CARD_FILE in files
    return Parcel(folder, files, tuple(hidden), _licence(folder) if has_card else None, has_card)


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
