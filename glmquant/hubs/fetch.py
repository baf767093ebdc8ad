"""Fetches a model: opens a hub, makes the plan, carries it out, records what it did."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from glmquant.errors import TargetError
from glmquant.fetched import (
    MARKER_FILE,
    PARTIAL_SHARD,
    RECORD_FILE,
    FetchedFile,
    Marker,
    Proof,
    Record,
    build_marker,
    build_record,
)
from glmquant.hubs.arrival import Arrival, Sums, proof_of
from glmquant.hubs.journal import Journal
from glmquant.hubs.known import Reference
from glmquant.hubs.listing import Listing
from glmquant.hubs.objects import Objects
from glmquant.hubs.outputs import Output
from glmquant.hubs.patience import Patience, Stopped
from glmquant.hubs.prospect import (
    FetchPlan,
    choose_outputs,
    look_around,
    require_room,
)
from glmquant.hubs.protocols import PROTOCOLS, Protocol
from glmquant.hubs.remote import read_model
from glmquant.hubs.selection import METADATA, Selection
from glmquant.hubs.tokens import VARIABLES, find_token
from glmquant.hubs.transfer import Transfer
from glmquant.hubs.web import Web, check_endpoint
from glmquant.index import INDEX_FILE, build_index
from glmquant.observer import Observer
from glmquant.source import file_stamp
from glmquant.storage import free_nbytes, make_folder, reading, writing
from glmquant.writer import PART_SUFFIX, sync_folder, write_file

_READ_NBYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Manner:
    """How a hub is asked.

    Attributes:
        workers: Threads and connections.
        attempts: Failures in a row, without a new byte between them, that end a run.
        stall_seconds: How long a connection may give nothing.
        read_twice: Fetch ranges that no sum covers twice, and compare.
        endpoint: Another address of the hub; None for the usual.
        revision: A branch, tag or commit; None for the hub's own.
    """

    workers: int
    attempts: int
    stall_seconds: float
    read_twice: bool = False
    endpoint: str | None = None
    revision: str | None = None


class Session:
    """A hub, opened for one model.

    Args:
        reference: Hub and repository.
        manner: How to ask.
        observer: Is told what goes on.

    Raises:
        UsageError: The address or the token cannot be used.
    """

    def __init__(self, reference: Reference, manner: Manner, observer: Observer) -> None:
        self.reference = reference
        self.manner = manner
        self.observer = observer
        self.stop = threading.Event()
        self.patience = Patience(manner.attempts, self.stop, observer)
        protocol = PROTOCOLS[reference.hub]
        endpoint = manner.endpoint or _endpoint_variable(protocol) or protocol.default_endpoint
        self.web = Web(
            check_endpoint(endpoint),
            find_token(reference.hub),
            token_variable=VARIABLES[reference.hub][0],
            connections=manner.workers,
            stall_seconds=manner.stall_seconds,
        )
        self.protocol = protocol(self.web, self.patience.repeat)

    def objects(self, listing: Listing) -> Objects:
        """The bytes of the repository as it was listed."""
        return Objects(self.web, self.protocol, listing)


@contextmanager
def opened(reference: Reference, manner: Manner, observer: Observer) -> Iterator[Session]:
    """A session that is closed, whatever happens."""
    session = Session(reference, manner, observer)
    try:
        yield session
    finally:
        session.stop.set()
        session.web.close()


def _endpoint_variable(protocol: type[Protocol]) -> str | None:
    for variable in protocol.endpoint_variables:
        if named := os.environ.get(variable, "").strip():
            return named if "://" in named else f"https://{named}"
    return None


def plan_fetch(session: Session, selection: Selection, folder: Path) -> FetchPlan:
    """All that is known before the first byte of a weight; nothing is written.

    Args:
        session: The hub.
        selection: What is wanted.
        folder: Where it is to go.

    Raises:
        CheckpointError: The repository does not hold together.
        HubError: The hub cannot be asked, or has no such repository.
        TargetError: The folder cannot be used.
        UsageError: A pattern or a layer matches nothing.
    """
    session.observer.tell(f"listing {session.reference.text}")
    listing = session.protocol.listing(session.reference, session.manner.revision)
    model = None
    if selection.only != METADATA:
        model = read_model(
            listing,
            session.objects(listing),
            session.patience,
            session.manner.workers,
            session.observer,
        )
    wanted = choose_outputs(listing, model, selection)
    return FetchPlan(
        listing=listing,
        endpoint=session.web.endpoint,
        selection=selection,
        folder=folder,
        wanted=wanted,
        local=look_around(folder, listing, wanted),
        model=model,
        free_nbytes=free_nbytes(folder),
    )


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a fetch did.

    Attributes:
        record: What the folder holds now.
        fetched_nbytes: Bytes of the files that came over the line in this run.
        linked: Files that were taken from caches.
        is_partial: The folder holds a part of a model.
    """

    record: Record
    fetched_nbytes: int
    linked: tuple[str, ...]
    is_partial: bool


def fetch(session: Session, plan: FetchPlan) -> Fetched:
    """Carry a plan out; the same plan goes on where an interrupted run stopped.

    Args:
        session: The hub that the plan was made with.
        plan: What to do.

    Raises:
        HubError: The hub failed too often, or gives other bytes than it lists.
        DiskSpaceError: There is too little room.
        TargetError: A stranger's file is in the way, or another fetch is at work.
        StorageError: The disk refuses.
    """
    require_room(plan)
    folder = plan.folder
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder, _about(plan))
    try:
        there, linked = _take_what_is_there(session, plan, journal)
        outputs = [each for each in plan.wanted.outputs if each.name not in there]
        outputs.sort(key=lambda each: each.name.endswith(".safetensors"))
        begun = plan.local.begun_nbytes
        total = sum(each.nbytes for each in outputs)
        session.observer.start("fetch", min(begun, total), total)
        transfer = Transfer(
            session.objects(plan.listing),
            session.patience,
            lambda output: Arrival(output, folder, journal),
            observer=session.observer,
            stop=session.stop,
            read_twice=session.manner.read_twice,
        )
        arrived = transfer.run(outputs, session.manner.workers)
        record = _finish(plan, there | arrived)
        for name in journal.begun() - record.files.keys():  # of another selection or commit
            part = folder / f"{name}{PART_SUFFIX}"
            with writing(part):
                part.unlink(missing_ok=True)
        journal.remove()
        return Fetched(record, max(0, total - begun), linked, plan.wanted.is_partial)
    except Stopped:
        raise KeyboardInterrupt from None
    finally:
        journal.close()


def _about(plan: FetchPlan) -> dict[str, Any]:
    return {
        "fetch": plan.listing.reference.text,
        "revision": plan.listing.revision,
        "commit": plan.listing.commit,
        "selection": plan.selection.text,
    }


def _take_what_is_there(
    session: Session, plan: FetchPlan, journal: Journal
) -> tuple[dict[str, FetchedFile], tuple[str, ...]]:
    """The files that need not be fetched: kept, found to be whole, or linked from a cache."""
    there = dict(plan.local.kept)
    linked = []
    by_name = {each.name: each for each in plan.wanted.outputs}
    to_check = plan.local.to_check
    observer = session.observer
    if to_check:
        nbytes = sum(by_name[name].nbytes * len(paths) for name, paths in to_check.items())
        observer.start("check", 0, nbytes)

    def check(name: str) -> tuple[str, Path, str] | None:
        for path in to_check[name]:
            try:
                sha256 = _matching_sum(path, by_name[name], session.stop, observer)
            except Stopped:
                return None
            if sha256:
                return name, path, sha256
            if path == plan.folder / name and name not in plan.local.ours:
                raise TargetError(
                    "a file that glmquant did not fetch is not the hub's",
                    where=str(path),
                    expected=f"the sum {by_name[name].key}",
                    found="another",
                    hint="move it away: it is damaged, or of another revision",
                )
            observer.warn(f"{path} is not what the hub has: fetched instead")
        return None

    with ThreadPoolExecutor(min(4, session.manner.workers)) as pool:
        try:
            for found in pool.map(check, to_check):
                if found is None:
                    continue
                name, path, sha256 = found
                target = plan.folder / name
                if path != target:
                    make_folder(plan.folder, name)
                    _link(path, target)
                    linked.append(name)
                stamp = file_stamp(target)
                output = by_name[name]
                file = FetchedFile(
                    stamp.nbytes, sha256, proof_of(output), stamp.mtime_ns, output.key
                )
                journal.note_file(name, file)
                there[name] = file
        except BaseException:
            session.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return there, tuple(linked)


def _matching_sum(
    path: Path, output: Output, stop: threading.Event, observer: Observer
) -> str | None:
    """The SHA-256 of a file that is a copy of an output's; None of another."""
    sums = Sums(output)
    nbytes = 0
    buffer = memoryview(bytearray(_READ_NBYTES))
    with reading(path), path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            if stop.is_set():
                raise Stopped
            sums.update(buffer[:count])
            nbytes += count
            observer.advance(count)
    return sums.sha256 if nbytes == output.nbytes and sums.judge(output) is None else None


def _link(path: Path, target: Path) -> None:
    """Make a cache's file appear here: by a hard link, or a copy where it is on another disk."""
    part = target.with_name(target.name + PART_SUFFIX)
    with writing(target):
        part.unlink(missing_ok=True)
        try:
            part.hardlink_to(path)
        except OSError:
            shutil.copyfile(path, part)
            with part.open("rb+") as file:
                os.fsync(file.fileno())
        part.replace(target)
    sync_folder(target.parent)


def _finish(plan: FetchPlan, files: dict[str, FetchedFile]) -> Record:
    """Marker and index of a part, or none of them; then the record."""
    folder, wanted = plan.folder, plan.wanted
    made: dict[str, bytes] = {}
    if wanted.is_partial:
        made[MARKER_FILE] = build_marker(
            Marker(
                source=plan.listing.reference.text,
                selection=plan.selection.text,
                tensors=wanted.tensors,
                of_tensors=wanted.of_tensors,
                complete_with=_command(plan),
            )
        )
    if wanted.index and plan.model is not None:
        tensors = plan.model.tensors()
        nbytes = sum(tensors[name].nbytes for name in wanted.index)
        made[INDEX_FILE] = build_index(wanted.index, nbytes)
    for name, data in made.items():
        write_file(folder / name, data)
        stamp = file_stamp(folder / name)
        digest = hashlib.sha256(data).hexdigest()
        files[name] = FetchedFile(len(data), digest, Proof.MADE, stamp.mtime_ns, "")
    for name in (MARKER_FILE, PARTIAL_SHARD):
        if name not in files:
            with writing(folder / name):
                (folder / name).unlink(missing_ok=True)
    record = Record(
        hub=plan.listing.reference.hub.value,
        endpoint=plan.endpoint,
        repository=plan.listing.reference.repository,
        revision=plan.listing.revision,
        commit=plan.listing.commit,
        selection=plan.selection.text,
        files=dict(sorted(files.items())),
    )
    write_file(folder / RECORD_FILE, build_record(record))
    return record


def _command(plan: FetchPlan) -> str:
    """The command that fetches the rest."""
    return shlex.join(
        ["glmquant", "fetch", plan.listing.reference.text, str(plan.folder.absolute())]
    )
