"""A donor on a hub: what a graft needs of it is fetched beside the checkpoint, and goes again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from glmquant.errors import GlmquantError
from glmquant.fetched import RECORD_FILE
from glmquant.storage import STATE_DIR

if TYPE_CHECKING:
    from glmquant.hubs.fetch import Session
    from glmquant.hubs.known import Reference
    from glmquant.hubs.prospect import FetchPlan
    from glmquant.observer import Observer


def has_all(folder: Path) -> bool:
    """Whether a checkpoint has a float MTP layer and lacks nothing, by its headers alone.

    One whose graft was interrupted has not: it is to be finished.
    """
    from glmquant.graft.backup import Siblings
    from glmquant.graft.journal import State, load_graft
    from glmquant.inventory import take_inventory
    from glmquant.source import FolderSource
    from glmquant.survey import survey

    beside = Siblings(folder.resolve())
    rests = (beside.new, beside.aside, beside.trash)
    journal = load_graft(folder)
    if any(map(os.path.lexists, rests)) or (journal and journal.state is not State.DONE):
        return False
    stock = take_inventory(survey(FolderSource(folder)))
    return bool(stock.mtp.layers) and stock.mtp.kind == "float" and not stock.missing


def echo_reading(folder: Path, reference: Reference, *, as_json: bool) -> None:
    """Say what would be read on the hub, file by file and byte by byte; write nothing.

    Raises:
        HubError: The hub cannot be asked.
    """
    from glmquant.cli.progress import emit, nbytes_text, progress
    from glmquant.cli.summary import echo_table

    with progress(as_json) as observer, _opened(reference, observer) as session:
        plan = _plan(session, folder)
    parts = [part for output in plan.wanted.outputs for part in output.parts()]
    if as_json:
        emit(
            "plan",
            folder=str(folder),
            source=reference.text,
            nbytes=plan.wanted.nbytes,
            to_fetch_nbytes=plan.missing_nbytes,
            read=[{"file": p.file.path, "begin": p.begin, "nbytes": p.nbytes} for p in parts],
        )
        return
    by_file: dict[str, list[int]] = {}
    for part in parts:
        by_file.setdefault(part.file.path, []).append(part.nbytes)
    click.echo(f"{folder}: would read {nbytes_text(plan.wanted.nbytes)} of {reference.text}")
    rows = [["file on the hub", "ranges", "bytes"]]
    rows += [[name, str(len(each)), nbytes_text(sum(each))] for name, each in by_file.items()]
    echo_table(rows, left=1)
    click.echo("nothing was written; what goes where is planned once these bytes are here")


def remove_rest(folder: Path) -> None:
    """Remove what was fetched for a graft that is done."""
    from glmquant.graft.backup import Siblings
    from glmquant.hubs.record import remove_fetched

    store = Siblings(folder.resolve()).source
    if not store.is_dir() or store.is_symlink():
        return
    is_emptied = all(path.name == STATE_DIR for path in store.iterdir())
    if is_emptied or (store / RECORD_FILE).is_file():
        remove_fetched(store)


@contextmanager
def fetched_donor(folder: Path, reference: Reference, *, as_json: bool) -> Iterator[Path]:
    """What a graft into a checkpoint needs of a hub's model, as ``fetch --only mtp`` takes it.

    It lies beside the checkpoint, since it has to be on the disk in any case, and a run that is
    interrupted goes on with it; it is removed when all went well.

    Raises:
        HubError: The hub failed.
        DiskSpaceError: There is too little room.
        GlmquantError: What is raised meanwhile, told in the words of the hub.
    """
    from glmquant.cli.progress import progress
    from glmquant.cli.remote import told_of
    from glmquant.hubs.fetch import fetch
    from glmquant.hubs.record import remove_fetched

    with progress(as_json) as observer, _opened(reference, observer) as session:
        plan = _plan(session, folder)
        fetch(session, plan)
    try:
        with told_of(reference.text, plan.folder):
            yield plan.folder
    except GlmquantError:
        click.echo(f"note: what was fetched stays in {plan.folder}", err=True)
        raise
    remove_fetched(plan.folder)


def _opened(reference: Reference, observer: Observer) -> AbstractContextManager[Session]:
    from glmquant.cli import remote
    from glmquant.hubs.fetch import Manner, opened

    manner = Manner(remote.WORKERS, remote.RUN_RETRIES, remote.STALL_SECONDS)
    return opened(reference, manner, observer)


def _plan(session: Session, folder: Path) -> FetchPlan:
    from glmquant.graft.backup import Siblings
    from glmquant.hubs.fetch import plan_fetch
    from glmquant.hubs.selection import MTP, Selection

    return plan_fetch(
        session, Selection(only=MTP, is_for_graft=True), Siblings(folder.resolve()).source
    )
