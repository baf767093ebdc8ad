"""Fetches a model: opens a hub, makes the plan, carries it out, records what it did."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from glmquant.errors import StorageError
from glmquant.fetched import Record
from glmquant.hubs.addresses import check_endpoint
from glmquant.hubs.arrival import Arrival
from glmquant.hubs.journal import Journal
from glmquant.hubs.known import Reference
from glmquant.hubs.listing import Listing
from glmquant.hubs.objects import Objects
from glmquant.hubs.patience import Patience, Stopped
from glmquant.hubs.prospect import (
    FetchPlan,
    choose_outputs,
    look_around,
    require_room,
)
from glmquant.hubs.protocols import PROTOCOLS, Protocol
from glmquant.hubs.record import record_what_came
from glmquant.hubs.remote import read_model
from glmquant.hubs.selection import METADATA, Selection
from glmquant.hubs.taking import take_what_is_there
from glmquant.hubs.tokens import VARIABLES, find_token
from glmquant.hubs.transfer import Transfer
from glmquant.hubs.web import Web
from glmquant.observer import Observer
from glmquant.storage import free_nbytes, writing


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
    """A session that is closed, whatever happens.

    Raises:
        StorageError: The system gives no threads.
    """
    session = Session(reference, manner, observer)
    try:
        yield session
    except RuntimeError as error:
        if "new thread" not in str(error):
            raise
        raise StorageError(
            "the system gives no more threads",
            expected="one for each connection, and some more",
            found=str(error),
            hint="raise ulimit -u or the container's limit of processes, and run the command again",
        ) from error
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
    journal = Journal(folder, plan.about)
    try:
        there, linked = take_what_is_there(
            plan, journal, session.manner.workers, session.stop, session.observer
        )
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
        record = record_what_came(plan, there | arrived, journal)
        journal.remove()
        return Fetched(record, max(0, total - begun), linked, plan.wanted.is_partial)
    except Stopped:
        raise KeyboardInterrupt from None
    finally:
        journal.close()
