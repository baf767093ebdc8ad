"""What fetch prints: what would come, how long it takes, and what came."""

from __future__ import annotations

import shlex
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from glmquant.fetched import Record
    from glmquant.hubs.fetch import Fetched
    from glmquant.hubs.prospect import FetchPlan

SLOW_LINES = (("100 Mbit/s", 12_500_000), ("1 Gbit/s", 125_000_000))
"""What a time is told for where no fetch has measured the line yet."""


def headline(plan: FetchPlan) -> str:
    """What is fetched, and where to.

    Args:
        plan: It.
    """
    from glmquant.cli.folders import short_path
    from glmquant.cli.progress import nbytes_text

    listing = plan.listing
    return (
        f"{listing.reference.text}, revision {listing.revision} -> {short_path(plan.folder)}: "
        f"{len(plan.wanted.outputs)} files, {nbytes_text(plan.wanted.nbytes)}, "
        f"{_to_fetch_text(plan)}"
    )


def _to_fetch_text(plan: FetchPlan) -> str:
    """What has to come, and what may have to, by what reading finds."""
    from glmquant.cli.progress import nbytes_text

    text = f"{nbytes_text(plan.missing_nbytes)} to fetch"
    if not plan.to_check_nbytes:
        return text
    more = nbytes_text(plan.to_check_nbytes)
    return f"{text}, up to {more} more where what is there turns out not to be the hub's"


def _plan_fields(plan: FetchPlan) -> dict[str, Any]:
    from glmquant.hubs.pace import load_pace

    pace = load_pace(plan.listing.reference.hub.value)
    return {
        "source": plan.listing.reference.text,
        "endpoint": plan.endpoint,
        "revision": plan.listing.revision,
        "commit": plan.listing.commit,
        "folder": str(plan.folder),
        "selection": plan.selection.text,
        "is_partial": plan.wanted.is_partial,
        "tensors": plan.wanted.tensors,
        "of_tensors": plan.wanted.of_tensors,
        "nbytes": plan.wanted.nbytes,
        "there_nbytes": sum(file.nbytes for file in plan.local.kept.values()),
        "to_check_nbytes": plan.to_check_nbytes,
        "to_fetch_nbytes": plan.missing_nbytes,
        "free_nbytes": plan.free_nbytes,
        "nbytes_per_second": pace,
        "eta_seconds": round(plan.missing_nbytes / pace, 1) if pace else None,
        "notes": list(plan.notes),
    }


def echo_plan(plan: FetchPlan, again: str, as_json: bool) -> None:
    """Print what would be fetched.

    Args:
        plan: It.
        again: The command that does it.
        as_json: As an event.
    """
    from glmquant.cli.folders import short_path
    from glmquant.cli.progress import emit, nbytes_text
    from glmquant.cli.summary import echo_table
    from glmquant.hubs.prospect import SPARE_NBYTES
    from glmquant.survey import printable

    fields = _plan_fields(plan)
    states = {each.name: "fetch" for each in plan.wanted.outputs}
    states |= dict.fromkeys(plan.local.to_check, "check") | dict.fromkeys(plan.local.kept, "there")
    if as_json:
        files = [
            {
                "file": each.name,
                "nbytes": each.nbytes,
                "sha256": each.remote.sha256 if each.remote else None,
                "state": states[each.name],
            }
            for each in plan.wanted.outputs
        ]
        emit("plan", **fields, files=files)
        return
    click.echo(f"source:   {fields['source']} at {fields['endpoint']}")
    commit = f" ({fields['commit']})" if fields["commit"] else ""
    click.echo(f"revision: {printable(fields['revision'])}{commit}")
    if plan.wanted.of_tensors:
        click.echo(f"tensors:  {plan.wanted.tensors:,} of {plan.wanted.of_tensors:,}")
    rows = [["file", "", "bytes"]]
    rows += [
        [each.name, {"there": "there", "check": "to be checked"}.get(states[each.name], ""),
         nbytes_text(each.nbytes)]
        for each in plan.wanted.outputs
    ]  # fmt: skip
    shown = rows if len(rows) <= 24 else [*rows[:20], [f"and {len(rows) - 20} more", "", ""]]
    echo_table(shown, left=2)
    for note in plan.notes:
        click.echo(f"note: {printable(note, 300)}")
    click.echo(f"folder:   {short_path(plan.folder)}")
    need = plan.missing_nbytes + SPARE_NBYTES
    free = plan.free_nbytes
    room = f"{nbytes_text(free)} free" if free is not None else "free room not known"
    short = "; TOO LITTLE" if free is not None and free < need else ""
    click.echo(
        f"bytes:    {nbytes_text(plan.wanted.nbytes)} in all, {_to_fetch_text(plan)}, {room}{short}"
    )
    click.echo(f"time:     {time_text(plan.missing_nbytes, fields['nbytes_per_second'])}")
    click.echo(f"nothing was written; to run it: {again}")


def time_text(nbytes: int, pace: int | None) -> str:
    """How long bytes take to come, at the rate of the last long fetch where there was one.

    Args:
        nbytes: How many.
        pace: That rate, bytes a second, or None.
    """
    from glmquant.cli.progress import nbytes_text

    if pace:
        return (
            f"{timedelta(seconds=round(nbytes / pace))} at {nbytes_text(pace)}/s, "
            "the rate of the last long fetch from this hub"
        )
    told = [f"{timedelta(seconds=round(nbytes / rate))} at {name}" for name, rate in SLOW_LINES]
    return f"{' or '.join(told)}; no fetch has measured this line yet"


def record_fields(record: Record) -> dict[str, Any]:
    """What a fetched folder says of itself, for JSON.

    Args:
        record: Its record.
    """
    return {
        "source": f"{record.hub}:{record.repository}",
        "revision": record.revision,
        "commit": record.commit,
        "selection": record.selection,
        "files": {
            name: {"nbytes": file.nbytes, "sha256": file.sha256, "proof": file.proof.value}
            for name, file in record.files.items()
        },
    }


def echo_fetched(plan: FetchPlan, done: Fetched, as_json: bool) -> None:
    """Print what came.

    Args:
        plan: What was to come.
        done: What did.
        as_json: As an event.
    """
    from glmquant.cli.folders import short_path
    from glmquant.cli.progress import emit, nbytes_text

    record = done.record
    if as_json:
        emit(
            "fetched",
            **record_fields(record),
            folder=str(plan.folder),
            is_partial=done.is_partial,
            fetched_nbytes=done.fetched_nbytes,
            linked=list(done.linked),
            next=_next(plan, done),
        )
        return
    total = sum(file.nbytes for file in record.files.values())
    click.echo(
        f"fetched: {len(record.files)} files, {nbytes_text(total)} in {short_path(plan.folder)}; "
        f"{nbytes_text(done.fetched_nbytes)} came over the line"
    )
    if done.linked:
        click.echo(f"linked from caches: {len(done.linked)} files")
    proofs: dict[str, int] = {}
    for file in record.files.values():
        proofs[file.proof.value] = proofs.get(file.proof.value, 0) + 1
    held = ", ".join(f"{count} by {proof}" for proof, count in sorted(proofs.items()))
    click.echo(f"proved:  {held}")
    if kept := len(plan.local.kept):
        check = shlex.join(["glmquant", "fetch", "--check", short_path(plan.folder)])
        click.echo(f"of them as recorded, by length and time: {kept}; {check} reads them anew")
    for note in plan.notes:
        click.echo(f"note: {note}")
    click.echo(f"next: {_next(plan, done)}")


def _next(plan: FetchPlan, done: Fetched) -> str:
    from glmquant.cli.folders import short_path
    from glmquant.hubs.selection import MTP

    folder = short_path(plan.folder)
    if plan.selection.only == MTP:
        return shlex.join(["glmquant", "add-mtp", "W8A8-FOLDER", "--from", folder])
    if done.is_partial:
        return shlex.join(["glmquant", "fetch", plan.listing.reference.text, folder])
    if plan.model is not None and not plan.model.is_bf16:
        return shlex.join(["glmquant", "verify", folder])
    return shlex.join(["glmquant", "w8a8", folder, "--add-mtp"])
