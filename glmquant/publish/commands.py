"""The commands that put a folder onto each hub, as people type them and as they are run.

Options as modelscope-hub 0.5.1 (``cli/repo.py``, ``cli/upload.py``), openmind-hub 1.3.0
(``om_api.py``) and huggingface_hub 2.4.0 have them. Both ``*`` of an exclusion match a slash, too.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Final

from glmquant.hubs.known import HubName, Reference

INSTALL: Final = {
    HubName.MODELSCOPE: "pip install 'glmquant[modelscope]'",
    HubName.MODELERS: "pip install openmind-hub, in an environment of its own: it pins requests",
    HubName.HF: "pip install huggingface_hub",
}
LOGIN: Final = {
    HubName.MODELSCOPE: "modelscope login, or MODELSCOPE_API_TOKEN",
    HubName.MODELERS: "a token of modelers.cn in MODELERS_TOKEN, for the command below",
    HubName.HF: "hf auth login, or HF_TOKEN",
}
_HIDDEN: Final = (".*", "*/.*")


def create_words(to: Reference, *, licence: str, visibility: str) -> list[str]:
    """ModelScope's command that makes the repository, or leaves the one that is there.

    Without it the upload would make a public one under Apache-2.0.

    Args:
        to: The repository.
        licence: The identifier of the licence.
        visibility: ``private`` or ``public``.
    """
    return [
        *("modelscope", "create", to.repository, "--repo-type", "model"),
        *("--visibility", visibility, "--license", licence, "--exist-ok"),
    ]


def upload_words(to: Reference, folder: Path) -> list[str]:
    """ModelScope's command that sends the folder's files, hidden ones left out.

    Args:
        to: The repository.
        folder: The checkpoint.
    """
    return ["modelscope", "upload", to.repository, str(folder), "--exclude", *_HIDDEN]


def shown_commands(
    to: Reference, folder: Path, *, licence: str, visibility: str
) -> tuple[str, ...]:
    """What to type for a hub.

    Args:
        to: The repository.
        folder: The checkpoint.
        licence: The identifier of the licence.
        visibility: ``private`` or ``public``.

    Returns:
        A command each.
    """
    is_private = visibility == "private"
    if to.hub is HubName.MODELSCOPE:
        create = create_words(to, licence=licence, visibility=visibility)
        return shlex.join(create), shlex.join(upload_words(to, folder))
    if to.hub is HubName.HF:
        hidden = [word for pattern in _HIDDEN for word in ("--exclude", pattern)]
        private = ["--private"] if is_private else ["--no-private"]
        return (shlex.join(["hf", "upload", to.repository, str(folder), ".", *hidden, *private]),)
    repository, path, patterns = map(json.dumps, (to.repository, str(folder), _HIDDEN))
    lines = (
        "import os, openmind_hub as hub",
        'token = os.environ["MODELERS_TOKEN"]',
        f"hub.create_repo({repository}, token=token, private={is_private}, exist_ok=True, "
        f"license={json.dumps(licence)})",
        f"hub.upload_folder(repo_id={repository}, folder_path={path}, token=token, "
        f"ignore_patterns={patterns})",
    )
    return (shlex.join(["python", "-c", "; ".join(lines)]),)
