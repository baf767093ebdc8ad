"""The journal of a fetch: which parts and files have come. Lines are only ever added.

A line is believed as far as the bytes on disk bear it out: each part has an xxh3 and is read again
when its file is hashed, so nothing need be synced before a file is whole.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any, Final

from glmquant.errors import TargetError
from glmquant.fetched import JOURNAL_FILE, FetchedFile, fetched_file
from glmquant.hubs.outputs import PART_NBYTES, Output
from glmquant.storage import make_folder, reading, writing
from glmquant.writer import sync_folder

MAX_NBYTES: Final = 200_000_000


Parts = dict[tuple[str, str], dict[int, str]]
"""Name and key of an output that was begun → number of a part → xxh3 of its bytes."""


def parse_journal(data: bytes) -> tuple[Parts, dict[str, FetchedFile]]:
    """The parts and the finished files of a journal; lines that make no sense are passed over."""
    parts: Parts = {}
    finished = {}
    part_nbytes = 0
    for line in data.split(b"\n"):
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            fields = json.loads(line)
            if "part_nbytes" in fields:
                part_nbytes = fields["part_nbytes"]
            elif "part" in fields and part_nbytes == PART_NBYTES:
                place = str(fields["of"]), str(fields["key"])
                parts.setdefault(place, {})[int(fields["part"])] = str(fields["xxh3"])
            elif "begun" in fields:
                parts.setdefault((str(fields["begun"]), str(fields["key"])), {})
            elif "done" in fields:
                finished[str(fields["done"])] = fetched_file(fields)
    return parts, finished


class Journal:
    """Opened for one run; no other can open it meanwhile.

    Args:
        folder: The folder that is fetched into.
        about: Hub, repository, revision, selection: a first line for people.

    Raises:
        TargetError: Another fetch is at work there.
        StorageError: The disk refuses.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.path = folder / JOURNAL_FILE
        self._lock = threading.Lock()
        self._parts: Parts = {}
        self.finished: dict[str, FetchedFile] = {}
        make_folder(folder, JOURNAL_FILE)
        if os.path.lexists(self.path) and not stat.S_ISREG(self.path.lstat().st_mode):
            raise TargetError(
                "something is in the way of the fetch's journal",
                where=str(self.path),
                expected="nothing, or a file",
                found="something that is no file",
                hint="move it away, or fetch into another folder",
            )
        with writing(self.path):
            self._descriptor = self._locked()
        try:
            self._load()
            self._write(about | {"part_nbytes": PART_NBYTES})
            sync_folder(self.path.parent)
        except BaseException:
            self.close()
            raise

    def _locked(self) -> int:
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self.path, flags, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(descriptor), self.path.stat()):
                        return descriptor  # else another run ended and removed it
            except BlockingIOError:
                os.close(descriptor)
                raise TargetError(
                    "another fetch writes into this folder",
                    where=str(self.path.parent.parent),
                    expected="one at a time",
                    found="a running glmquant fetch",
                    hint="wait for it to end, or end it: the same command then goes on",
                ) from None
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _load(self) -> None:
        with reading(self.path):
            nbytes = os.fstat(self._descriptor).st_size
            data = os.pread(self._descriptor, min(nbytes, MAX_NBYTES), 0)
        self._parts, self.finished = parse_journal(data)
        if data and not data.endswith(b"\n"):  # torn by a crash: begin a line of our own
            with writing(self.path):
                os.write(self._descriptor, b"\n")

    def parts_of(self, output: Output) -> dict[int, str]:
        """Number → xxh3 of the parts that an earlier run has written."""
        return dict(self._parts.get((output.name, output.key), {}))

    def begun(self) -> set[str]:
        """Names of files that an earlier run has begun."""
        names = {PurePosixPath(name) for name, _ in self._parts}
        return {str(name) for name in names if not name.is_absolute() and ".." not in name.parts}

    def note_begun(self, output: Output) -> None:
        """There is going to be a file for the parts of an output."""
        self._write({"begun": output.name, "key": output.key})

    def note_part(self, output: Output, number: int, xxh3: str) -> None:
        """A part is in the file."""
        self._write({"part": number, "of": output.name, "key": output.key, "xxh3": xxh3})

    def note_file(self, name: str, file: FetchedFile) -> None:
        """A file is whole, proved, durable and has its name."""
        self.finished[name] = file
        self._write({"done": name} | asdict(file))

    def _write(self, fields: dict[str, Any]) -> None:
        data = json.dumps(fields).encode() + b"\n"
        with self._lock, writing(self.path):
            while data:
                data = data[os.write(self._descriptor, data) :]

    def remove(self) -> None:
        """All is done; the lock is kept until ``close``."""
        with writing(self.path):
            self.path.unlink(missing_ok=True)
        sync_folder(self.path.parent)

    def close(self) -> None:
        """Let others in."""
        with suppress(OSError):
            os.close(self._descriptor)
