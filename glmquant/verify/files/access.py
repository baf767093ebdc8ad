"""F2, S1: may every reader of the folder read its files, and is what a chat needs there."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from glmquant.description import DESCRIPTION_PREFIX
from glmquant.errors import GlmquantError
from glmquant.glm4_moe import CONFIG_FILE
from glmquant.header import LFS_POINTER
from glmquant.index import INDEX_SUFFIX, is_shard_name
from glmquant.jsontext import MAX_JSON_NBYTES, parse_object
from glmquant.reconcile import listing
from glmquant.verify.companions import ENGINE_FILES
from glmquant.verify.findings import Finding, file_finding
from glmquant.verify.remedies import copy_file
from glmquant.verify.subject import Subject, begins_with_mark

_TOKENIZER_CONFIG: Final = "tokenizer_config.json"
_GENERATION_CONFIG: Final = "generation_config.json"
_TOKENIZERS: Final = ("tokenizer.", "vocab.", "merges.")
_MOST_NAMED: Final = 20
_MANY_FILES: Final = 4
"""More of them than a command should name."""


def is_read_by_engines(name: str) -> bool:
    """Whether an engine opens a file of that name."""
    return (
        is_shard_name(name)
        or name == CONFIG_FILE
        or name.endswith(INDEX_SUFFIX)
        or name.startswith((DESCRIPTION_PREFIX, *ENGINE_FILES))
    )


def check_modes(subject: Subject) -> Iterator[Finding]:
    """F2: no file that an engine reads is closed to somebody who may read its siblings.

    safetensors 0.8.0 leaves 0600 and msModelSlim 0400, whatever the umask.

    Args:
        subject: The folder.

    Yields:
        One finding for all such files.
    """
    full: dict[str, int] = {}
    modes: dict[str, int] = {}
    for name in filter(is_read_by_engines, subject.found.files):
        with suppress(OSError):  # it went away just now
            full[name] = (subject.path / name).stat().st_mode & 0o777
            modes[name] = full[name] & 0o444
    union = 0
    for mode in modes.values():
        union |= mode
    narrow = [name for name, mode in modes.items() if mode != union]
    if not narrow:
        return
    bits = {"u": 0o400, "g": 0o040, "o": 0o004}
    who = "".join(letter for letter, bit in bits.items() if union & bit)
    command = ["chmod", "a+r" if who == "ugo" else f"{who}+r"]
    folder = str(subject.path)
    if len(narrow) > _MANY_FILES:
        hint = f"{shlex.join(command)} {shlex.quote(folder)}/*"
    else:
        hint = shlex.join([*command, *(os.path.join(folder, name) for name in narrow)])  # noqa: PTH118
    kinds = sorted({f"{full[name]:04o}" for name in narrow})
    yield file_finding(
        "F2",
        "files are closed to some who may read the others",
        place=listing(narrow, _MOST_NAMED),
        expected=f"readable as {union:04o} like {next(n for n in modes if n not in narrow)}"
        if len(narrow) < len(modes)
        else f"readable as {union:04o}, all of them",
        found=f"{len(narrow)} file{'s' * (len(narrow) > 1)} with mode {', '.join(kinds)}",
        hint=hint,
    )


def check_side_files(subject: Subject) -> Iterator[Finding]:
    """S1, without a source: tokenizer, chat template and generation config are there and whole.

    Args:
        subject: The folder.

    Yields:
        A finding a file.
    """
    files = subject.found.files
    template = subject.found.objects.get(_TOKENIZER_CONFIG, {}).get("chat_template")
    present = {
        "tokenizer.json": any(name.startswith(_TOKENIZERS) for name in files),
        _TOKENIZER_CONFIG: _TOKENIZER_CONFIG in files,
        "chat_template.jinja": bool(template)
        or any(name.startswith("chat_template.") for name in files),
        _GENERATION_CONFIG: _GENERATION_CONFIG in files,
    }
    for name, is_there in present.items():
        if not is_there:
            yield file_finding(
                "S1",
                "a file that a chat needs is missing",
                place=name,
                expected="tokenizer, chat template and generation config",
                found="no such file",
                hint=copy_file(subject, name),
            )
    for name in files:
        if name.startswith(ENGINE_FILES) and (found := _damage(subject, name)):
            yield file_finding(
                "S1",
                "a file that a chat needs cannot be read",
                place=name,
                expected="the file of the release",
                found=found,
                hint=copy_file(subject, name),
            )


def check_byte_order_marks(subject: Subject) -> Iterator[Finding]:
    """C3, D1, F1, S1: no JSON that engines read begins with a byte order mark.

    transformers and vllm-ascend read plain UTF-8: ``json.load`` then fails.

    Args:
        subject: The folder.

    Yields:
        A finding a file.
    """
    for name in subject.found.files:
        is_json = name.endswith(".json") and is_read_by_engines(name)
        if not is_json or not begins_with_mark(subject, name):
            continue
        yield file_finding(
            _code_of(name),
            "a JSON file begins with a byte order mark",
            place=name,
            expected="plain UTF-8, as engines read it",
            found="EF BB BF before the first brace",
            hint=shlex.join(["sed", "-i", r"1s/^\xEF\xBB\xBF//", str(subject.path / name)]),
        )


def _code_of(name: str) -> str:
    if name == CONFIG_FILE:
        return "C3"
    if name.startswith(DESCRIPTION_PREFIX):
        return "D1"
    return "F1" if name.endswith(INDEX_SUFFIX) else "S1"


def _damage(subject: Subject, name: str) -> str | None:
    """Why a side file is not what it should be, by its first bytes; small JSON is parsed."""
    nbytes = subject.found.files[name]
    if nbytes == 0:
        return "an empty file"
    is_small = name.endswith(("_config.json", "tokenizer.json")) and nbytes <= MAX_JSON_NBYTES
    try:
        head = subject.source.read(name, 0, nbytes if is_small else min(nbytes, len(LFS_POINTER)))
        if head.startswith(LFS_POINTER):
            return "a Git LFS pointer: git lfs pull"
        if is_small:
            parse_object(head, name)
    except GlmquantError as error:
        return error.found or error.what
    finally:
        subject.source.release(name)
    return None
