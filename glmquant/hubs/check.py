"""Proves a fetched folder again, without a hub: every file against the sum that was recorded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from glmquant.errors import GlmquantError, UsageError
from glmquant.fetched import JOURNAL_FILE, RECORD_FILE, FetchedFile, Proof, Record, parse_record
from glmquant.header import read_header
from glmquant.index import is_shard_name
from glmquant.observer import Observer
from glmquant.source import FolderSource
from glmquant.storage import reading

_WEIGHTS: Final = (".safetensors", ".safetensors.index.json")


@dataclass(frozen=True, slots=True)
class Fault:
    """A file that is not what was fetched.

    Attributes:
        file: Its name.
        what: What is wrong.
        expected: What was recorded.
        found: What is there.
    """

    file: str
    what: str
    expected: str
    found: str


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found.

    Attributes:
        record: What the folder is to be.
        faults: What is not so; none where all is well.
        strangers: Weights and indexes that were not fetched.
    """

    record: Record
    faults: tuple[Fault, ...]
    strangers: tuple[str, ...]


def check_folder(folder: Path, workers: int, observer: Observer) -> Checked:
    """Read every file that a fetch recorded, and hold it against its sum.

    Args:
        folder: A folder that ``fetch`` filled.
        workers: Threads.
        observer: Is told how far it is.

    Raises:
        UsageError: There is no such folder, or nothing was recorded.
        JsonError: The record cannot be understood.
        StorageError: A file cannot be read.
    """
    source = FolderSource(folder)
    path = folder / RECORD_FILE
    if not path.is_file():
        is_unfinished = (folder / JOURNAL_FILE).is_file()
        raise UsageError(
            "nothing is recorded of a fetch of this folder",
            where=str(path),
            expected="the record that glmquant fetch writes when it is done",
            found="a fetch that has not ended" if is_unfinished else "no such file",
            hint="run that fetch again: it goes on where it stopped"
            if is_unfinished
            else f"glmquant fetch MODEL {folder} holds what is there against the hub's sums",
        )
    with reading(path):
        record = parse_record(path.read_bytes(), str(path))
    observer.start("check", 0, sum(file.nbytes for file in record.files.values()))
    faults: list[Fault] = []
    if (folder / JOURNAL_FILE).is_file():
        faults.append(Fault(JOURNAL_FILE, "a later fetch has not ended", "none", "a journal"))
    with ThreadPoolExecutor(workers) as pool:
        for found in pool.map(
            lambda item: list(_faults(source, item[0], item[1], observer)), record.files.items()
        ):
            faults += found
    strangers = tuple(
        name for name in source.list_files() if name.endswith(_WEIGHTS) and name not in record.files
    )
    return Checked(record, tuple(faults), strangers)


def _faults(
    source: FolderSource, name: str, file: FetchedFile, observer: Observer
) -> Iterator[Fault]:
    path = source.path / name
    if not path.is_file():
        yield Fault(name, "the file is missing", f"{file.nbytes} bytes", "no such file")
        observer.advance(file.nbytes)
        return
    nbytes = path.stat().st_size
    if nbytes != file.nbytes:
        yield Fault(name, "the file has another length", f"{file.nbytes} bytes", f"{nbytes} bytes")
        observer.advance(file.nbytes)
        return
    digest = hashlib.sha256()
    for block in source.blocks(name, 0, nbytes):
        digest.update(block)
        observer.advance(len(block))
    if digest.hexdigest() != file.sha256:
        yield Fault(name, "the file has another SHA-256", file.sha256, digest.hexdigest())
    elif is_shard_name(name) and file.proof is not Proof.MADE:
        try:
            read_header(name, nbytes, lambda offset, length: source.read(name, offset, length))
        except GlmquantError as error:
            yield Fault(name, error.what, error.expected or "", error.found or "")
    source.release(name)
