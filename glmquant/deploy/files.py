"""The files of a service: what they hold, and writing them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from glmquant.deploy.container import Image, compose
from glmquant.deploy.script import Addresses, render, render_proxy
from glmquant.deploy.setup import Setup
from glmquant.errors import TargetError, UsageError
from glmquant.storage import reading, writing
from glmquant.writer import write_file

COMPOSE_FILE: Final = "compose.yaml"
_MARK: Final = b"# by glmquant "
_HEAD_NBYTES: Final = 2000


def render_files(
    setup: Setup, image: Image | None, addresses: Addresses, *, as_compose: bool, as_files: bool
) -> dict[str, str]:
    """Name → text of each file.

    Args:
        setup: The service.
        image: The container's; None runs the engine itself.
        addresses: Where the machines are.
        as_compose: One compose file in place of scripts; needs an image.
        as_files: They are to be run as files, not pasted into a shell.
    """
    if as_compose and image is not None:
        return {COMPOSE_FILE: compose(setup, image)}
    files = {
        f"{node.name}.sh": render(setup, node, image, addresses, is_file=as_files)
        for node in setup.nodes
    }
    if any(role.kv_role for role in setup.target.roles.values()):
        files["proxy.sh"] = render_proxy(setup, image, addresses)
    return files


def require_outside(folder: Path, checkpoint: Path) -> None:
    """Nothing is written into a checkpoint, whatever links lead there.

    Args:
        folder: Where files are to go.
        checkpoint: The checkpoint's folder.

    Raises:
        UsageError: They would go there.
    """
    target = Path(os.path.realpath(folder))  # which links in a circle do not stop
    is_inside = target.is_relative_to(os.path.realpath(checkpoint))
    if is_inside:
        raise UsageError(
            "nothing is written into the checkpoint",
            where=f"-o {folder}",
            expected="a folder outside of it",
            found=str(checkpoint),
            hint="name another folder after -o",
        )


def write_files(folder: Path, files: dict[str, str]) -> tuple[Path, ...]:
    """Write them into a folder, which is made; earlier ones of glmquant are replaced.

    Args:
        folder: The folder.
        files: Name → text.

    Returns:
        What was written.

    Raises:
        TargetError: A file of somebody else has one of the names.
        StorageError: It cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        _require_ours(folder / name)
    for name, text in files.items():
        write_file(folder / name, text.encode(), mode=0o755 if name.endswith(".sh") else None)
    return tuple(folder / name for name in files)


def _require_ours(path: Path) -> None:
    with reading(path):
        if not path.exists() and not path.is_symlink():
            return
        is_ours = False
        if path.is_file():
            with path.open("rb") as file:
                is_ours = _MARK in file.read(_HEAD_NBYTES)
    if not is_ours:
        raise TargetError(
            "a file of somebody else is in the way",
            where=str(path),
            expected="nothing there, or an earlier file of glmquant",
            found="another file" if path.is_file() else "something that is no file",
            hint="name another folder after -o, or move the file away",
        )
