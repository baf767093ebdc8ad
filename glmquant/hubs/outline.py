"""A repository as a folder of sparse files: JSON and headers are there, of the rest the lengths.

Whatever reads headers alone reads it as it would read the repository fetched.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from glmquant.header import MAX_HEADER_NBYTES
from glmquant.hubs.fetch import Session
from glmquant.hubs.listing import Listing, RemoteFile
from glmquant.hubs.objects import Objects
from glmquant.hubs.patience import Stopped
from glmquant.hubs.remote import HEAD_NBYTES, Model, read_small
from glmquant.index import is_shard_name
from glmquant.jsontext import MAX_JSON_NBYTES
from glmquant.sidefiles import side_files
from glmquant.storage import make_folder, writing
from glmquant.survey import is_read_whole

_LENGTH_NBYTES: Final = 8
_PREFIX: Final = "glmquant-outline-"
_YOUNG_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Outline:
    """A repository of which little is here.

    Attributes:
        folder: The sparse files, in a folder of the model's own name.
        listing: The repository.
        known: File → how many of its first bytes are here.
    """

    folder: Path
    listing: Listing
    known: dict[str, int]


@contextmanager
def outlined(
    session: Session,
    listing: Listing | None = None,
    model: Model | None = None,
    *,
    with_side_files: bool = False,
) -> Iterator[Outline]:
    """The outline of a session's repository, in a temporary folder.

    Args:
        session: The hub.
        listing: The repository; asked for where it is left out, by the manner's revision.
        model: What was read of it already, and need not be read again.
        with_side_files: What a checkpoint takes along as it is comes whole, too.

    Raises:
        HubError: The hub cannot be asked, or has no such repository.
        StorageError: The folder for temporary files takes none.
    """
    _remove_stale()
    if listing is None:
        listing = session.protocol.listing(session.reference, session.manner.revision)
    with (
        writing(Path(tempfile.gettempdir())),
        tempfile.TemporaryDirectory(prefix=_PREFIX) as made,
        _held(Path(made)),
    ):
        folder = Path(made, session.reference.folder)
        folder.mkdir()
        whole = side_files(listing.files) if with_side_files else ()
        yield Outline(folder, listing, _write(session, listing, model, set(whole), folder))


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keep others from taking a folder for one whose process was killed."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_stale() -> None:
    """Remove what killed processes have left."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if path.is_symlink() or path.stat().st_uid != os.getuid():
                continue
            if time.time() - path.stat().st_mtime < _YOUNG_SECONDS:
                continue  # made a moment ago, and not held yet
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            finally:
                os.close(descriptor)


def _write(
    session: Session, listing: Listing, model: Model | None, whole: set[str], folder: Path
) -> dict[str, int]:
    objects = session.objects(listing)
    files = list(listing.files.values())
    read = model.data | model.heads if model else {}

    def take(file: RemoteFile) -> int:
        known = read.get(file.path)
        if known is None:
            is_whole = file.path in whole or is_read_whole(file.path)
            known = _known_bytes(session, objects, file, is_whole=is_whole)
        _write_file(folder, file, known)
        return len(known)

    known = {}
    pool = ThreadPoolExecutor(session.manner.workers)
    try:
        for file, nbytes in zip(files, pool.map(take, files), strict=True):
            known[file.path] = nbytes
            session.observer.tell(f"reading headers on the hub, {len(known)} of {len(files)} files")
    except Stopped:
        raise KeyboardInterrupt from None
    except BaseException:
        session.stop.set()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return known


def _known_bytes(session: Session, objects: Objects, file: RemoteFile, *, is_whole: bool) -> bytes:
    """The first bytes of a file, as many as are looked at."""
    if is_whole and file.nbytes <= MAX_JSON_NBYTES:
        return read_small(file, objects, session.patience)
    if not (is_shard_name(file.path) or file.path.endswith(".gguf")):
        return b""
    repeat = session.patience.repeat
    head = repeat(lambda: objects.head(file, HEAD_NBYTES))
    if is_shard_name(file.path):
        end = _LENGTH_NBYTES + int.from_bytes(head[:_LENGTH_NBYTES], "little")
        if len(head) < end <= min(file.nbytes, MAX_HEADER_NBYTES):
            head += repeat(lambda: b"".join(objects.read(file, len(head), end)))
    return head


def _write_file(folder: Path, file: RemoteFile, known: bytes) -> None:
    make_folder(folder, file.path)
    path = folder / file.path
    with writing(path), path.open("xb") as opened:
        opened.write(known)
        os.truncate(opened.fileno(), file.nbytes)
