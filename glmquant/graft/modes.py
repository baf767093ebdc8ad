"""Who may read the files of a checkpoint: none of them is to be closed to a reader of the others.

safetensors leaves 0600 and msModelSlim 0400, which no other user of a shared folder can read.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from glmquant.graft.donor import Donor
from glmquant.graft.recipient import Recipient
from glmquant.storage import writing

_DECIDING = (".json", ".jinja", ".model")
"""Beside the weights: what an engine reads."""


def wider_modes(
    donor: Donor, recipient: Recipient, *, to_output: bool
) -> tuple[int | None, dict[str, tuple[int, int]]]:
    """The mode for new files, and those of files that fewer may read than their siblings.

    Args:
        donor: The BF16 source; a file that is its own under a second name stays as it is.
        recipient: The quantized checkpoint. What a link leads to is of others: its mode counts,
            and only a copy of it is given another.
        to_output: The files go into a folder of their own.

    Returns:
        The mode, None for that of the user's umask, and name → mode before and after.
    """
    union = 0
    for name, mode in recipient.modes.items():
        if name in recipient.loaded or name.endswith(_DECIDING):
            union |= mode & 0o666
    readable = union & 0o444
    wider = {
        name: (mode, mode | readable)
        for name, mode in recipient.modes.items()
        if mode | readable != mode
        and (to_output or name not in recipient.links)
        and not _is_donors(donor, recipient, name)
    }
    return union | 0o400 if union else None, wider


def _is_donors(donor: Donor, recipient: Recipient, name: str) -> bool:
    with suppress(OSError):
        return (donor.source.path / name).samefile(recipient.path / name)
    return False


def set_mode(path: Path, mode: int) -> None:
    """Change the permissions of a file of ours; a link and a file of others stay as they are.

    Raises:
        StorageError: The disk refuses.
    """
    with writing(path), suppress(PermissionError, FileNotFoundError):
        if not path.is_symlink():
            path.chmod(mode)
