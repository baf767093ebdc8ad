"""SHA-256 of every file of a checkpoint, in bounded memory."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final, NamedTuple

from glmquant.observer import Observer
from glmquant.storage import reading

_BLOCK_NBYTES: Final = 1 << 20


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
