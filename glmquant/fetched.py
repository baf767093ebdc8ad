"""What a fetched folder says of itself: where each file is from, its sum, and what is missing.

The record lies hidden in ``.glmquant``; the marker of a folder that holds only a part of a model
lies open beside the weights, so that people and programs see it.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any, Final

from glmquant.errors import JsonError
from glmquant.jsontext import dump_object, parse_object
from glmquant.storage import STATE_DIR

RECORD_FILE: Final = f"{STATE_DIR}/fetch.json"
JOURNAL_FILE: Final = f"{STATE_DIR}/fetch.jsonl"
"""There while a fetch runs, and after one that was interrupted."""

MARKER_FILE: Final = "glmquant-partial.json"
PARTIAL_SHARD: Final = "glmquant-partial.safetensors"
"""Tensors that were taken out of files of which less than 90 % is wanted."""

FORMAT: Final = 1
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class Proof(str, Enum):
    """How we know that a file is the hub's."""

    SHA256 = "sha256"
    GIT_SHA1 = "git sha1"
    STRUCTURE = "structure only"
    READ_TWICE = "read twice"
    SIZE = "size only"
    MADE = "made here"


@dataclass(frozen=True, slots=True)
class FetchedFile:
    """A file that is whole and was proved.

    Attributes:
        nbytes: Its length.
        sha256: Of the bytes on disk.
        proof: What they were held against.
        mtime_ns: When it was last written, on the disk that it was fetched to.
        source: The hub's sum, or what else names the bytes that it is a copy of.
    """

    nbytes: int
    sha256: str
    proof: Proof
    mtime_ns: int
    source: str


@dataclass(frozen=True, slots=True)
class Record:
    """Where a folder is from.

    Attributes:
        hub: Its name.
        endpoint: Its address.
        repository: ``owner/name``.
        revision: What was asked for.
        commit: What it stood for; None where the hub did not say.
        selection: What was taken of it, as the command line says it; ``all`` for all.
        files: By name.
    """

    hub: str
    endpoint: str
    repository: str
    revision: str
    commit: str | None
    selection: str
    files: dict[str, FetchedFile] = field(default_factory=dict)


def build_record(record: Record) -> bytes:
    """The bytes of a record."""
    return dump_object({"glmquant_fetch": FORMAT} | asdict(record))


def parse_record(data: bytes, where: str) -> Record:
    """A record as ``build_record`` wrote it.

    Raises:
        JsonError: It is none.
    """
    fields = parse_object(data, where)
    try:
        if fields.pop("glmquant_fetch") != FORMAT:
            raise ValueError("written by another version")
        files = {name: fetched_file(entry) for name, entry in dict(fields.pop("files")).items()}
        return Record(**_texts(fields), files=files)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise JsonError(
            "the record of a fetch cannot be understood",
            where=where,
            expected="what glmquant fetch wrote there",
            found=f"{type(error).__name__}: {error}"[:200],
            hint="remove that file and run the fetch again: what is there is held against the hub",
        ) from error


def fetched_file(entry: Any) -> FetchedFile:
    """An entry of a record or a journal.

    Raises:
        KeyError, TypeError, ValueError: It is none.
    """
    nbytes, sha256, mtime_ns = entry["nbytes"], entry["sha256"], entry["mtime_ns"]
    are_counts = type(nbytes) is int and nbytes >= 0 and type(mtime_ns) is int
    if not are_counts or not _SHA256.fullmatch(sha256):
        raise ValueError("no length, no time or no SHA-256")
    return FetchedFile(nbytes, sha256, Proof(entry["proof"]), mtime_ns, str(entry["source"]))


@dataclass(frozen=True, slots=True)
class Marker:
    """What a folder with a part of a model says of itself.

    Attributes:
        source: ``hub:owner/name``.
        selection: What was taken.
        tensors: How many are there.
        of_tensors: How many the model has.
        complete_with: The command that fetches the rest.
    """

    source: str
    selection: str
    tensors: int
    of_tensors: int
    complete_with: str


def build_marker(marker: Marker) -> bytes:
    """The bytes of a marker."""
    return dump_object({"glmquant_partial": FORMAT} | asdict(marker))


def parse_marker(data: bytes) -> Marker:
    """A marker as ``build_marker`` wrote it.

    Raises:
        JsonError: It is none.
    """
    fields = parse_object(data, MARKER_FILE)
    try:
        if fields.pop("glmquant_partial") != FORMAT:
            raise ValueError("written by another version")
        counts = {key: fields.pop(key) for key in ("tensors", "of_tensors")}
        if any(type(count) is not int for count in counts.values()):
            raise ValueError("no counts")
        return Marker(**_texts(fields), **counts)
    except (KeyError, TypeError, ValueError) as error:
        raise JsonError(
            "the marker of a partial folder cannot be understood",
            where=MARKER_FILE,
            expected="what glmquant fetch wrote there",
            found=f"{type(error).__name__}: {error}"[:200],
            hint="run the fetch of this folder again",
        ) from error


def _texts(fields: dict[str, Any]) -> dict[str, Any]:
    for key, value in fields.items():
        if not isinstance(value, str) and not (key == "commit" and value is None):
            raise ValueError(f"{key} is no text")
    return fields
