"""A folder that is read: its files, ranges of their bytes, and whether they changed."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Final, NamedTuple

from glmquant.errors import CheckpointError, SourceChangedError, StorageError, UsageError
from glmquant.storage import reading

BLOCK_NBYTES: Final = 1 << 20
"""Bytes read at once."""


MAX_DEPTH: Final = 32
"""Folders in folders; a checkpoint has one or two."""


class FileStamp(NamedTuple):
    """What tells that a file changed without reading it.

    Attributes:
        nbytes: Its length.
        mtime_ns: When its bytes were last written.
        ctime_ns: When its bytes or its inode were last touched; cannot be set by hand.
        hub_sum: What a hub says of the bytes of a file that lies there; its times are 0 then.
    """

    nbytes: int
    mtime_ns: int
    ctime_ns: int
    hub_sum: str = ""


class FolderSource:
    """The files of a folder, by name relative to it.

    Reading is safe from several threads. A shard stays open from its first read to ``release``.

    Args:
        path: The folder.

    Attributes:
        origin: The repository and revision, where it is one on a hub; empty for a folder.
        shown: What a user calls it.
        is_far: Each read asks a server.

    Raises:
        UsageError: There is no such folder.
    """

    origin = ""
    is_far = False

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise UsageError(
                "the source is not a folder",
                where=str(path),
                expected="a folder with config.json and *.safetensors",
                found="a file" if path.exists() else "nothing there",
                hint="name the folder that holds the BF16 weights",
            )
        self.path = path
        self.shown = str(path)
        self._open_files: dict[str, tuple[Path, int]] = {}
        self._lock = threading.Lock()

    def list_files(self) -> dict[str, int]:
        """Name → length of every file, in subfolders and behind links too, but no hidden ones.

        Raises:
            CheckpointError: A name that is neither a file nor a folder (a dead link, a pipe), or
                a link that leads back.
            StorageError: A folder cannot be read.
        """
        return dict(sorted(self._walk(self.path, "", (self.path.resolve(),))))

    def _walk(
        self, folder: Path, prefix: str, above: tuple[Path, ...]
    ) -> Iterator[tuple[str, int]]:
        with reading(folder):
            entries = list(os.scandir(folder))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = prefix + entry.name
            if not _is_text(name) or len(above) > MAX_DEPTH:
                raise CheckpointError(
                    "a file of the source has a name that cannot be written down",
                    where=repr(name[-200:]),
                    expected=f"UTF-8, at most {MAX_DEPTH} folders deep",
                    found=f"{len(above)} folders deep" if _is_text(name) else "other bytes",
                    hint="rename it or move it out of the folder",
                )
            try:
                found = entry.stat()
            except OSError as error:
                raise CheckpointError(
                    "a file of the source cannot be looked at",
                    where=str(folder / entry.name),
                    expected="a file",
                    found=f"a dead link ({error.strerror})" if entry.is_symlink() else str(error),
                    hint="fetch that file again or remove the link",
                ) from error
            if stat.S_ISDIR(found.st_mode):
                inner = Path(entry.path).resolve()
                if inner in above:
                    raise CheckpointError(
                        "a link in the source leads back to a folder that holds it",
                        where=entry.path,
                        expected="files and folders",
                        found=f"a link to {inner}",
                        hint="remove the link",
                    )
                yield from self._walk(Path(entry.path), name + "/", (*above, inner))
                continue
            if not stat.S_ISREG(found.st_mode):
                raise CheckpointError(
                    "the source holds something that is not a file",
                    where=str(folder / entry.name),
                    expected="files and folders",
                    found=stat.filemode(found.st_mode),
                    hint="move it out of the folder",
                )
            yield name, found.st_size

    def stamp(self, file: str) -> FileStamp:
        """Size and times of a file now.

        Raises:
            StorageError: It cannot be looked at.
        """
        return file_stamp(self.path / file)

    def read(self, file: str, offset: int, nbytes: int) -> bytes:
        """``nbytes`` bytes of a file from ``offset`` on.

        Raises:
            StorageError: The file ends before that, or cannot be read.
        """
        buffer = bytearray(nbytes)
        self.read_into(file, offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, file: str, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the bytes of a file from ``offset`` on.

        Args:
            file: Name relative to the folder.
            offset: First byte.
            buffer: Contiguous writable bytes.

        Raises:
            StorageError: The file ends before that, or cannot be read.
        """
        done = 0
        path, descriptor = self._opened(file)
        with reading(path):
            while done < len(buffer):
                count = os.preadv(descriptor, [buffer[done:]], offset + done)
                if count == 0:
                    raise StorageError(
                        "a file of the source became shorter while it was read",
                        where=str(path),
                        expected=f"{len(buffer)} bytes at {offset}",
                        found=f"{done} bytes",
                        hint="leave the source alone while it is read, and run the command again",
                    )
                done += count

    def blocks(self, file: str, offset: int, nbytes: int) -> Iterator[memoryview]:
        """A range of a file, block by block; each block is overwritten by the next.

        Raises:
            StorageError: The file ends before that, or cannot be read.
        """
        buffer = memoryview(bytearray(min(BLOCK_NBYTES, nbytes)))
        for position in range(0, nbytes, BLOCK_NBYTES):
            view = buffer[: min(BLOCK_NBYTES, nbytes - position)]
            self.read_into(file, offset + position, view)
            yield view

    def locate(self, file: str) -> Path:
        """Where a file can be opened."""
        return self.path / file

    def _opened(self, file: str) -> tuple[Path, int]:
        with self._lock:
            opened = self._open_files.get(file)
            if opened is None:
                path = self.locate(file)
                with reading(path):
                    opened = path, os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                self._open_files[file] = opened
            return opened

    def require_readable(self, file: str) -> None:
        """Fail now where a file could not be read later.

        Raises:
            StorageError: It cannot be opened.
        """
        self._opened(file)
        self.release(file)

    def expect(self, files: Iterable[str]) -> None:
        """Be told which shards will be read, before the first is asked for by ``arrived``."""

    def arrived(self, files: Iterable[str], *, is_awaited: bool) -> str | None:
        """One of these shards that is here to be read: the first, as all of a folder are.

        Args:
            files: Shards that were expected, at least one.
            is_awaited: Wait until there is one.

        Returns:
            Its name; None where none is here and none was to be waited for.
        """
        return next(iter(files))

    def discard(self, file: str) -> None:
        """A shard is done with: what was made of it is durable and noted."""

    def release(self, file: str) -> None:
        """Close a file that will not be read again soon."""
        with self._lock:
            opened = self._open_files.pop(file, None)
        if opened is not None:
            os.close(opened[1])

    def release_all(self) -> None:
        """Close every file that is open."""
        for file in list(self._open_files):
            self.release(file)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def file_stamp(path: Path) -> FileStamp:
    """Length and times of a file now.

    Raises:
        StorageError: It cannot be looked at.
    """
    with reading(path):
        found = path.stat()
    return FileStamp(found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def was_rewritten(before: FileStamp, now: FileStamp) -> bool:
    """Whether length or modification time differ, or the hub's sum for a file on a hub.

    A chmod or a new hard link is no rewrite. Of two stamps of which one is a hub's, only the
    lengths can be compared.
    """
    if bool(before.hub_sum) != bool(now.hub_sum):
        return before.nbytes != now.nbytes
    return (before.nbytes, before.mtime_ns, before.hub_sum) != (
        now.nbytes,
        now.mtime_ns,
        now.hub_sum,
    )


def source_changed(file: str, before: FileStamp, now: FileStamp) -> SourceChangedError:
    """The error for a source shard that is not what it was."""
    hint = "leave the source alone while it is read; start over with --overwrite"
    return SourceChangedError(
        "the source changed since the run began",
        where=file,
        expected=_stamp_text(before),
        found=_stamp_text(now) if was_rewritten(before, now) else "other contents",
        hint="start over with --overwrite: the hub has other weights now" if now.hub_sum else hint,
    )


def _stamp_text(stamp: FileStamp) -> str:
    if stamp.hub_sum:
        return f"{stamp.nbytes} bytes, sum {stamp.hub_sum}"
    try:
        written = datetime.fromtimestamp(stamp.mtime_ns / 1e9, timezone.utc)
    except (OverflowError, OSError, ValueError):  # before year 1 or after year 9999
        return f"{stamp.nbytes} bytes, written {stamp.mtime_ns} ns after 1970"
    return f"{stamp.nbytes} bytes, written {written:%Y-%m-%d %H:%M:%S.%f} UTC"
