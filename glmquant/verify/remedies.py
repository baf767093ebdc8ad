"""What to type next about what was found: commands as they are, and nothing behind them."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Final

from glmquant.manifest import MANIFEST_FILE
from glmquant.runtime.hosts import count_npus
from glmquant.verify.subject import Subject

DEFAULT_RECIPE: Final = "w8a8"

SOURCE: Final = "SOURCE"
"""Stands in hints for the BF16 weights, where their path is not known."""

_PLACEHOLDER: Final = re.compile(rf"(?<= ){SOURCE}(?=[ /]|$)")


def add_mtp(subject: Subject, *words: str) -> str:
    """The command that puts an MTP layer and router biases into the folder."""
    return shlex.join(["glmquant", "add-mtp", str(subject.path), "--from", SOURCE, *words])


def quantize_anew(subject: Subject) -> str:
    """The command that makes a checkpoint that cannot be mended once more, beside it."""
    folder = Path(os.path.normpath(subject.path.absolute()))
    words = ["glmquant", "w8a8", SOURCE, str(folder.with_name(f"{folder.name}-new"))]
    words += ["--add-mtp"] * bool(subject.mtp_layers)
    settings = subject.found.objects.get(MANIFEST_FILE, {}).get("settings")
    recipe = settings.get("recipe") if isinstance(settings, dict) else None
    if isinstance(recipe, str) and recipe != DEFAULT_RECIPE:
        words += ["--recipe", recipe]
    return shlex.join(words)


def copy_file(subject: Subject, name: str) -> str:
    """The command that takes a side file from the BF16 weights."""
    return shlex.join(["cp", f"{SOURCE}/{name}", str(subject.path / name)])


def rename(subject: Subject) -> str:
    """The command that gives the folder, and those above it, names without brackets."""
    path = subject.path.absolute()
    bare = Path(str(path).translate(str.maketrans("[]", "__")))
    words = [] if bare.parent == path.parent else ["mkdir", "-p", str(bare.parent)]
    move = shlex.join(["mv", "--", str(path), str(bare)])
    return f"{shlex.join(words)} && {move}" if words else move


def naming_source(hint: str, source: str) -> str:
    """A hint with the path of the BF16 weights in place of the word for them."""
    words = shlex.quote(source)
    return _PLACEHOLDER.sub(lambda found: words, hint)


def verify_against(subject: Subject) -> str:
    """The command that holds a checkpoint against its source, tensor by tensor."""
    return shlex.join(["glmquant", "verify", str(subject.path), "--source", SOURCE])


def serve(folder: str, version: str | None = None) -> str:
    """The command that serves it: on the machine at hand, or on an A3 where that has no NPU.

    Args:
        folder: The checkpoint, as the user would type it.
        version: Of vllm-ascend; the usual one if left out.
    """
    words = ["glmquant", "serve", folder]
    words += ["--version", version] if version else []
    words += [] if count_npus() else ["--machine", "a3"]
    return shlex.join(words)


def verify_with(engine: str, subject: Subject) -> str:
    """The command that has another engine run a checkpoint and its source."""
    return f"{verify_against(subject)} --engine {engine}"
