"""Which folder is meant where the command line leaves it out, and where the output goes."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from glmquant.description import DESCRIPTION_PREFIX
from glmquant.errors import UsageError
from glmquant.glm4_moe import CONFIG_FILE, MODEL_TYPE
from glmquant.reconcile import listing
from glmquant.survey import looks_like_a_model, printable


def choose_source(named: str | None, verb: str = "w8a8") -> Path:
    """The BF16 folder: the one named, else the only one at or in the working directory.

    Args:
        named: What the user typed, or None.
        verb: The command that asks, for the hint.

    Returns:
        A path; a named one is not looked into.

    Raises:
        UsageError: The named one is not there, or the working directory leaves no one choice.
    """
    return _choose(named, is_bf16_folder, verb, "source", "folder with BF16 GLM-4.x weights")


def choose_folder(named: str | None, verb: str) -> Path:
    """The model folder of any format: the one named, else the only one here.

    Args:
        named: What the user typed, or None.
        verb: The command that asks, for the hint.

    Returns:
        A path; a named one is not looked into.

    Raises:
        UsageError: As ``choose_source``.
    """
    return _choose(named, looks_like_a_model, verb, "folder", "model folder")


def choose_quantized(named: str | None, verb: str, words: Iterable[str] = ()) -> Path:
    """The folder with quantized weights: the one named, else the only one here.

    Args:
        named: What the user typed, or None.
        verb: The command that asks, for the hint.
        words: What was typed behind it.

    Returns:
        A path; a named one is not looked into.

    Raises:
        UsageError: As ``choose_source``.
    """
    return _choose(named, _is_quantized_folder, verb, "folder", "folder with W8A8 weights", words)


def _choose(
    named: str | None,
    is_choice: Callable[[Path], bool],
    verb: str,
    noun: str,
    kind: str,
    words: Iterable[str] = (),
) -> Path:
    if named is not None:
        with suppress(OSError, ValueError):  # a name that no file can have
            if Path(named).exists():
                return Path(named)
        raise UsageError(
            f"there is no such {noun}",
            where=named,
            expected=f"the path of a {kind}",
            found="nothing there",
            hint="ls, or name the folder by its whole path",
        )
    here = Path.cwd()
    if is_choice(here):
        return here
    seen = (path for path in here.iterdir() if not path.name.startswith(".") and path.is_dir())
    choices = sorted(path for path in seen if is_choice(path))
    if len(choices) == 1:
        return Path(choices[0].name)
    first = shlex.quote(printable(short_path(choices[0]))) if choices else "FOLDER"
    raise UsageError(
        f"no {noun} was named, and the working directory leaves no one choice",
        where=str(here),
        expected=f"one {kind}",
        found=listing((printable(path.name) for path in choices), 20) or "none",
        hint=" ".join(["glmquant", verb, first, *map(shlex.quote, words)]),
    )


def is_bf16_folder(path: Path) -> bool:
    """Whether a folder looks like BF16 weights of a GLM-4.x MoE."""
    try:
        config = json.loads((path / CONFIG_FILE).read_bytes())
        return (
            isinstance(config, dict)
            and config.get("model_type") == MODEL_TYPE
            and not config.get("quantization_config")
            and any(path.glob("*.safetensors"))
            and not any(path.glob(f"{DESCRIPTION_PREFIX}*"))
        )
    except (OSError, ValueError):
        return False


def _is_quantized_folder(path: Path) -> bool:
    return any(path.glob(f"{DESCRIPTION_PREFIX}*.json")) and any(path.glob("*.safetensors"))


def default_target(source: Path, recipe_name: str, has_mtp: bool) -> Path:
    """The folder beside the source: ``GLM-4.6`` → ``GLM-4.6-W8A8-floatmtp``."""
    # Not resolved: beside a link to a model store, not in the store.
    source = Path(os.path.normpath(source.absolute()))
    scheme = recipe_name.replace("w8a8", "W8A8")
    return source.parent / f"{source.name}-{scheme}{'-floatmtp' if has_mtp else ''}"


def short_path(path: Path) -> str:
    """The path as a user would type it: from the working directory where it lies in there.

    One that begins with a dash would be taken for an option.
    """
    with suppress(OSError, ValueError):  # no working directory any more, or elsewhere
        path = path.relative_to(Path.cwd())
    text = os.fsencode(path).decode(errors="backslashreplace")
    return f"./{text}" if text.startswith("-") else text
