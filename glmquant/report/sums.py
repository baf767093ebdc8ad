"""SHA-256 of every file of a checkpoint, in bounded memory."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Final, NamedTuple

from glmquant.observer import Observer
from glmquant.storage import reading

_BLOCK_NBYTES: Final = 1 << 20
_QUICK_NBYTES: Final = 64_000_000
"""Shorter files are summed in no time: all but weights; our manifest of GLM-4.6 has 33 MB, and
another digest in it wherever a weight is another."""

_LINE: Final = re.compile(r"^([0-9a-f]{64})  (.+)$", re.MULTILINE)


class Sum(NamedTuple):
    """A file, its length and its SHA-256 in hexadecimal."""

    name: str
    nbytes: int
    sha256: str


def sum_files(folder: Path, files: dict[str, int], observer: Observer) -> tuple[Sum, ...]:
    """The sum of each file.

    Args:
        folder: Where they are.
        files: Name → length.
        observer: Is told of the bytes.

    Raises:
        StorageError: A file cannot be read.
    """
    observer.start("sum", 0, sum(files.values()))
    buffer = bytearray(_BLOCK_NBYTES)
    sums = []
    for name in sorted(files):
        digest, nbytes = hashlib.sha256(), 0
        path = folder / name
        with reading(path), path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(memoryview(buffer)[:count])
                nbytes += count
                observer.advance(count)
        sums.append(Sum(name, nbytes, digest.hexdigest()))
    return tuple(sums)


def outdated_files(text: str, folder: Path, files: dict[str, int]) -> tuple[str, ...]:
    """The files that a card does not list as they now are; weights are not read.

    Args:
        text: The card.
        folder: Where the files are.
        files: Name → length of all files but the card.

    Returns:
        Names that are missing on either side, and of shorter files those of another sum.

    Raises:
        StorageError: A file cannot be read.
    """
    listed = {name: digest for digest, name in _LINE.findall(text)}
    quick = {
        name: nbytes for name, nbytes in files.items() if nbytes < _QUICK_NBYTES and name in listed
    }
    sums = sum_files(folder, quick, Observer())
    changed = {each.name for each in sums if listed[each.name] != each.sha256}
    return tuple(sorted(changed | (listed.keys() ^ files.keys())))
