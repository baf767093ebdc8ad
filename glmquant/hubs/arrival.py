"""One file as it arrives: its parts, where they are written, and the sum over all of them."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Final

from xxhash import xxh3_128

from glmquant.errors import HubError, StorageError
from glmquant.fetched import FetchedFile, Proof
from glmquant.header import read_header
from glmquant.hubs.journal import Journal
from glmquant.hubs.outputs import Output, Part
from glmquant.storage import make_folder, reading, writing
from glmquant.writer import PART_SUFFIX, sync_folder

_READ_NBYTES: Final = 1 << 20
_MAX_MISMATCHES: Final = 3
"""So often a file is fetched that does not have the hub's sum."""


class Place(Enum):
    """Where a part is."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"


class Sums:
    """The sums over a file's bytes, in their order.

    Args:
        output: The file.
    """

    def __init__(self, output: Output) -> None:
        self._sha256 = hashlib.sha256(output.preamble)
        remote = output.remote
        self._git_sha1 = None
        if remote and not remote.sha256 and remote.git_sha1:
            self._git_sha1 = hashlib.sha1(b"blob %d\0" % output.nbytes, usedforsecurity=False)

    def update(self, data: bytes | memoryview) -> None:
        """The next bytes."""
        self._sha256.update(data)
        if self._git_sha1 is not None:
            self._git_sha1.update(data)

    def copy(self) -> Sums:
        """As it is now."""
        other = object.__new__(Sums)
        other._sha256 = self._sha256.copy()
        other._git_sha1 = self._git_sha1 and self._git_sha1.copy()
        return other

    @property
    def sha256(self) -> str:
        """In hex."""
        return self._sha256.hexdigest()

    def judge(self, output: Output) -> tuple[str, str] | None:
        """The hub's sum and ours where they differ; None where they agree or there is none."""
        remote = output.remote
        if remote is None:
            return None
        if remote.sha256:
            expected, found = remote.sha256, self.sha256
        elif self._git_sha1 is not None and remote.git_sha1:
            expected, found = remote.git_sha1, self._git_sha1.hexdigest()
        else:
            return None
        return None if expected == found else (expected, found)


def proof_of(output: Output, *, is_read_twice: bool = False) -> Proof:
    """What an output can be held against."""
    remote = output.remote
    if remote and remote.sha256:
        return Proof.SHA256
    if remote and remote.git_sha1:
        return Proof.GIT_SHA1
    if is_read_twice:
        return Proof.READ_TWICE
    return Proof.STRUCTURE if output.header else Proof.SIZE


class Arrival:
    """A file while it is fetched: ``NAME.part``, written at any place by several threads.

    Args:
        output: The file to be.
        folder: Where.
        journal: What an earlier run has written, and where it is noted.

    Raises:
        StorageError: The file cannot be made.
    """

    def __init__(self, output: Output, folder: Path, journal: Journal) -> None:
        self.output = output
        self.path = folder / output.name
        self.parts: tuple[Part, ...] = tuple(output.parts())
        self.lock = threading.Lock()
        self.is_stream = False
        self._journal = journal
        self._part_path = self.path.with_name(self.path.name + PART_SUFFIX)
        self._sums = Sums(output)
        self._next = 0
        """The first part that is not in the sums."""
        self._is_summing = False
        self._mismatches = 0
        self._xxh3: list[str] = [""] * len(self.parts)
        self.places = [Place.PENDING] * len(self.parts)
        make_folder(folder, output.name)
        earlier = journal.parts_of(output)
        journal.note_begun(output)
        with writing(self._part_path):
            is_there = self._part_path.is_file() and not self._part_path.is_symlink()
            if not is_there or self._part_path.stat().st_size != output.nbytes:
                self._part_path.unlink(missing_ok=True)
                earlier = {}
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(self._part_path, flags, 0o666)
            os.ftruncate(self._descriptor, output.nbytes)
        self.write(0, output.preamble)
        for number, digest in earlier.items():
            if 0 <= number < len(self.parts):
                self._xxh3[number] = digest
                self.places[number] = Place.DONE
        self.earlier_nbytes = sum(
            part.nbytes
            for part, place in zip(self.parts, self.places, strict=True)
            if place is Place.DONE
        )

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Put bytes into the file.

        Raises:
            DiskSpaceError: No room.
            StorageError: The disk refuses.
        """
        view = memoryview(data)
        with writing(self._part_path):
            done = 0
            while done < len(view):
                done += os.pwrite(self._descriptor, view[done:], offset + done)

    def take(self, *, is_alone: bool) -> int | None:
        """The number of a part to be fetched, or None.

        Args:
            is_alone: Only where no other part of the file is being fetched.
        """
        with self.lock:
            if self.is_stream or (is_alone and Place.RUNNING in self.places):
                return None
            for number in range(self._next, len(self.places)):
                if self.places[number] is Place.PENDING:
                    self.places[number] = Place.RUNNING
                    return number
        return None

    def give_back(self, number: int) -> None:
        """A part that was taken has not come."""
        with self.lock:
            if self.places[number] is Place.RUNNING:
                self.places[number] = Place.PENDING

    def begin_stream(self) -> bool:
        """Fetch the file in one stream from now on; whether the caller is to do it."""
        with self.lock:
            was_stream, self.is_stream = self.is_stream, True
            return not was_stream

    def take_rest(self) -> set[int] | None:
        """Take all parts that are not there; None while others still fetch some of them."""
        with self.lock:
            if Place.RUNNING in self.places:
                return None
            rest = {n for n, place in enumerate(self.places) if place is Place.PENDING}
            for number in rest:
                self.places[number] = Place.RUNNING
            if not rest:
                self.is_stream = False
            return rest

    def end_stream(self) -> None:
        """Parts are taken one by one again."""
        with self.lock:
            self.is_stream = False

    def claim(self, number: int) -> Sums | None:
        """Sums to update while part ``number`` comes, where it is the next and nobody sums."""
        with self.lock:
            if self._is_summing or number != self._next:
                return None
            self._is_summing = True
            return self._sums.copy()

    def finish_part(self, number: int, xxh3: str, sums: Sums | None) -> None:
        """A part is in the file; the disk begins to write it, so that the end need not wait.

        Args:
            number: Which.
            xxh3: Of its bytes as they came.
            sums: What ``claim`` gave, updated with all of it.
        """
        with self.lock:
            self._xxh3[number] = xxh3
            self.places[number] = Place.DONE
            if sums is not None:
                self._sums, self._next, self._is_summing = sums, number + 1, False
        part = self.parts[number]
        os.posix_fadvise(self._descriptor, part.offset, part.nbytes, os.POSIX_FADV_DONTNEED)
        self._journal.note_part(self.output, number, xxh3)

    def drop_claim(self) -> None:
        """The part that was claimed has not come whole."""
        with self.lock:
            self._is_summing = False

    def sum_up(self) -> list[int]:
        """Sum the parts that lie ready behind those that are summed.

        Returns:
            Parts that are no longer what they were when they came: they are pending again.

        Raises:
            StorageError: The file cannot be read.
        """
        lost: list[int] = []
        while True:
            with self.lock:
                number = self._next
                is_ready = number < len(self.parts) and self.places[number] is Place.DONE
                if self._is_summing or not is_ready:
                    return lost
                self._is_summing = True
                sums = self._sums.copy()
            found = xxh3_128()
            try:
                for block in self._blocks(self.parts[number]):
                    found.update(block)
                    sums.update(block)
            finally:
                is_kept = found.hexdigest() == self._xxh3[number]
                with self.lock:
                    self._is_summing = False
                    if is_kept:
                        self._sums, self._next = sums, number + 1
                    else:
                        self.places[number] = Place.PENDING
            if not is_kept:
                lost.append(number)

    @property
    def is_summed(self) -> bool:
        """Whether all of it is in the sums."""
        with self.lock:
            return self._next == len(self.parts) and not self._is_summing

    def _blocks(self, part: Part) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(min(_READ_NBYTES, part.nbytes)))
        for done in range(0, part.nbytes, _READ_NBYTES):
            view = buffer[: min(_READ_NBYTES, part.nbytes - done)]
            with reading(self._part_path):
                if os.preadv(self._descriptor, [view], part.offset + done) != len(view):
                    raise StorageError(
                        "a file became shorter while it was fetched",
                        where=str(self._part_path),
                        expected=f"{self.output.nbytes} bytes",
                        found="fewer",
                        hint="leave the folder alone while it is fetched; run the command again",
                    )
            yield view

    def fault(self) -> tuple[str, str] | None:
        """The hub's sum and ours where they differ."""
        return self._sums.judge(self.output)

    def start_over(self, expected: str, found: str) -> str:
        """The sums differ: find the parts that the disk has changed, else fetch all again.

        Returns:
            What is done, in words.

        Raises:
            HubError: It has come wrong too often.
        """
        self._mismatches += 1
        if self._mismatches == _MAX_MISMATCHES or not self.parts:  # nothing can come anew
            self.discard()
            raise HubError(
                "a file does not have the sum that the hub lists, however often it is fetched",
                where=self.output.name,
                expected=expected,
                found=found,
                hint="the stored object is broken, or a proxy changes it: try another hub or "
                "endpoint, and tell whoever keeps the repository",
            )
        changed = []
        for number, part in enumerate(self.parts):
            digest = xxh3_128()
            for block in self._blocks(part):
                digest.update(block)
            if digest.hexdigest() != self._xxh3[number]:
                changed.append(number)
        again = changed or range(len(self.parts))
        with self.lock:
            self._sums, self._next, self.is_stream = Sums(self.output), 0, False
            for number in again:
                self.places[number] = Place.PENDING
        whose = "the disk" if changed else "the line"
        return f"{self.output.name}: {whose} changed bytes; {len(again)} parts are fetched again"

    def check_structure(self) -> None:
        """Hold the file's own header against the one that was read on the hub.

        Raises:
            HubError: It is another.
        """
        planned = self.output.header
        if planned is None:
            return

        def read(offset: int, nbytes: int) -> bytes:
            with reading(self._part_path):
                return os.pread(self._descriptor, nbytes, offset)

        try:
            found = read_header(self.output.name, self.output.nbytes, partial(read))
        except Exception:
            self.discard()
            raise
        if found != planned:
            if proof_of(self.output) not in (Proof.SHA256, Proof.GIT_SHA1):
                self.discard()  # else it is the header of the plan that came damaged
            raise HubError(
                "a file came with another header than the hub gave before",
                where=self.output.name,
                expected="the header that the plan was made by",
                found=f"{len(found.tensors)} tensors, laid out otherwise",
                hint="run the same command again: it makes the plan anew, and keeps what is right",
            )

    def commit(self, proof: Proof) -> FetchedFile:
        """Make the file durable and give it its name.

        Raises:
            StorageError: The disk refuses.
        """
        with writing(self._part_path):
            os.fsync(self._descriptor)
            self._part_path.replace(self.path)
            mtime_ns = os.fstat(self._descriptor).st_mtime_ns
        sync_folder(self.path.parent)
        self.close()
        file = FetchedFile(self.output.nbytes, self._sums.sha256, proof, mtime_ns, self.output.key)
        self._journal.note_file(self.output.name, file)
        return file

    def discard(self) -> None:
        """Remove what has come: it is of no use."""
        self.close()
        with writing(self._part_path):
            self._part_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file; what is in it stays."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
