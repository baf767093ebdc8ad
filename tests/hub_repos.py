"""The repositories of the loopback hub: folders, listed at each request and hashed once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

BLOCK = 8 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a repository."""

    path: str
    file: Path
    nbytes: int
    mtime_ns: int
    is_lfs: bool
    sha256: str
    git_sha1: str
    """Of the blob; of the pointer file for LFS, as git has it."""

    def is_current(self) -> bool:
        """The file on disk is still the one that was hashed."""
        try:
            now = self.file.stat()
        except OSError:
            return False
        return (now.st_size, now.st_mtime_ns) == (self.nbytes, self.mtime_ns)


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at the moment of a request."""

    name: str
    commit: str
    files: Mapping[str, Entry]

    def folders(self) -> list[str]:
        """Every folder that holds a file, at any depth."""
        found = {str(parent) for path in self.files for parent in PurePosixPath(path).parents}
        return sorted(found - {"."})


def git_blob_sha1(data: bytes) -> str:
    """The name that git gives to a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Repos:
    """Lists folders; a file is hashed again only when its size or time has changed."""

    def __init__(self, folders: Mapping[str, Path], lfs_min_nbytes: int) -> None:
        self.folders = dict(folders)
        self.lfs_min_nbytes = lfs_min_nbytes
        self.known: dict[tuple[str, Path], Entry] = {}
        self.lock = threading.Lock()

    def listing(self, name: str) -> Listing | None:
        """What the repository holds now, or None where there is none of that name."""
        folder = self.folders.get(name)
        if folder is None:
            return None
        files: dict[str, Entry] = {}
        for place, subfolders, names in os.walk(folder):
            subfolders.sort()
            for file in (Path(place) / found for found in sorted(names)):
                path = file.relative_to(folder).as_posix()
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    files[path] = self.entry(path, file)
        state = "\n".join(f"{path} {entry.sha256}" for path, entry in sorted(files.items()))
        return Listing(name, hashlib.sha1(state.encode()).hexdigest(), files)

    def entry(self, path: str, file: Path) -> Entry:
        """A file with its hashes."""
        with self.lock:
            known = self.known.get((path, file))
            if known is None or not known.is_current():
                known = self.known[path, file] = self.hashed(path, file)
            return known

    def hashed(self, path: str, file: Path) -> Entry:
        stat = file.stat()
        is_lfs = stat.st_size >= self.lfs_min_nbytes or path.endswith(".safetensors")
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while block := stream.read(BLOCK):
                digest.update(block)
        sha256 = digest.hexdigest()
        blob = (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\n"
            f"size {stat.st_size}\n".encode()
            if is_lfs
            else file.read_bytes()
        )
        sha1 = git_blob_sha1(blob)
        return Entry(path, file, stat.st_size, stat.st_mtime_ns, is_lfs, sha256, sha1)
