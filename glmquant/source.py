"""A folder that is read: its files, ranges of their bytes, and whether they changed."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from glmquant.errors import CheckpointError, StorageError, UsageError


class FileStamp(NamedTuple):
    """What tells that a file changed without reading it.

    Attributes:
        nbytes: Its length.
        mtime_ns: When its bytes were last written.
        ctime_ns: When its bytes or its inode were last touched; cannot be set by hand.
    """

    nbytes: int
    mtime_ns: int
    ctime_ns: int


class FolderSource:
    """The files of a folder, by name relative to it.

    Reading is safe from several threads. A shard stays open from its first read to ``release``.

    Args:
        path: The folder.

    Raises:
        UsageError: There is no such folder.
    """

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
        self._descriptors: dict[str, int] = {}
        self._lock = threading.Lock()

    def list_files(self) -> dict[str, int]:
        """Name → length of every file, subfolders included, hidden ones left out, sorted.

        Raises:
            CheckpointError: A name that is neither a file nor a folder (a dead link, a pipe).
            StorageError: A folder cannot be read.
        """
        return dict(sorted(self._walk(self.path, "")))

    def _walk(self, folder: Path, prefix: str) -> Iterator[tuple[str, int]]:
        with _storage_errors(folder):
            entries = list(os.scandir(folder))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(Path(entry.path), name + "/")
                continue
            if entry.is_symlink() and entry.is_dir():
                continue  # a linked folder may lead anywhere, back to its parent too
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
        with _storage_errors(self.path / file):
            found = (self.path / file).stat()
        return FileStamp(found.st_size, found.st_mtime_ns, found.st_ctime_ns)

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
        with _storage_errors(self.path / file):
            descriptor = self._descriptor(file)
            while done < len(buffer):
                count = os.preadv(descriptor, [buffer[done:]], offset + done)
                if count == 0:
                    raise StorageError(
                        "a file of the source became shorter while it was read",
                        where=str(self.path / file),
                        expected=f"{len(buffer)} bytes at {offset}",
                        found=f"{done} bytes",
                        hint="leave the source alone while it is read, and run the command again",
                    )
                done += count

    def _descriptor(self, file: str) -> int:
        with self._lock:
            descriptor = self._descriptors.get(file)
            if descriptor is None:
                descriptor = os.open(self.path / file, os.O_RDONLY | os.O_CLOEXEC)
                self._descriptors[file] = descriptor
            return descriptor

    def release(self, file: str) -> None:
        """Close a file that will not be read again soon."""
        with self._lock:
            descriptor = self._descriptors.pop(file, None)
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            "a file of the source cannot be read",
            where=str(path),
            expected="a readable file",
            found=error.strerror or str(error),
            hint="check the file, its mode and the disk, then run the command again",
        ) from error
