"""A repository as a folder of sparse files: JSON and headers are there, of the rest the lengths.

Whatever reads headers alone reads it as it would read the repository fetched.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from glmquant.header import MAX_HEADER_NBYTES
from glmquant.hubs.fetch import Session
from glmquant.hubs.listing import Listing, RemoteFile
from glmquant.hubs.objects import Objects
from glmquant.hubs.patience import Stopped
from glmquant.hubs.remote import HEAD_NBYTES, read_small
from glmquant.index import is_shard_name
from glmquant.jsontext import MAX_JSON_NBYTES
from glmquant.storage import make_folder, writing
from glmquant.survey import is_read_whole

_LENGTH_NBYTES: Final = 8


@contextmanager
def outlined(session: Session) -> Iterator[Path]:
    """The outline of a session's repository, in a temporary folder of the model's own name.

    Args:
        session: The hub; its manner's revision is taken.

    Raises:
        HubError: The hub cannot be asked, or has no such repository.
        StorageError: The folder for temporary files takes none.
    """
    listing = session.protocol.listing(session.reference, session.manner.revision)
    with (
        writing(Path(tempfile.gettempdir())),
        tempfile.TemporaryDirectory(prefix="glmquant-outline-") as made,
    ):
        folder = Path(made, session.reference.folder)
        folder.mkdir()
        _write(session, listing, folder)
        yield folder


def _write(session: Session, listing: Listing, folder: Path) -> None:
    objects = session.objects(listing)
    files = list(listing.files.values())

    def take(file: RemoteFile) -> None:
        _write_file(folder, file, _known_bytes(session, objects, file))

    pool = ThreadPoolExecutor(session.manner.workers)
    try:
        for done, _ in enumerate(pool.map(take, files), 1):
            session.observer.tell(f"reading headers on the hub, {done} of {len(files)} files")
    except Stopped:
        raise KeyboardInterrupt from None
    finally:
        session.stop.set()
        pool.shutdown(wait=False, cancel_futures=True)


def _known_bytes(session: Session, objects: Objects, file: RemoteFile) -> bytes:
    """The first bytes of a file, as many as are looked at."""
    if is_read_whole(file.path) and file.nbytes <= MAX_JSON_NBYTES:
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
