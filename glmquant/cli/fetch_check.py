"""``glmquant fetch --check``: a fetched folder against its recorded sums."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from glmquant.cli.fetch_report import record_fields
from glmquant.errors import UsageError

if TYPE_CHECKING:
    from glmquant.hubs.check import Checked, Fault

USUAL_REVISIONS = ("master", "main")
"""The hubs' own branches, which need no --revision."""


def check(ctx: click.Context, named: str, second: Path | None, workers: int, as_json: bool) -> None:
    """Read it again, say what is not as it was fetched, and end with 1 where something is not.

    Args:
        ctx: The verb's.
        named: The folder.
        second: What was named behind it, which is wrong here.
        workers: Threads.
        as_json: As an event.

    Raises:
        UsageError: More than a folder was named.
    """
    from glmquant.cli.folders import short_path
    from glmquant.cli.progress import emit, nbytes_text, progress
    from glmquant.cli.summary import echo_table
    from glmquant.hubs.check import check_folder
    from glmquant.survey import printable

    typed = [
        f"--{name.replace('_', '-')}"
        for name in ("hub", "revision", "only", "include", "exclude", "dry_run", "endpoint")
        if ctx.params[name]
    ]
    if second is not None or typed:
        raise UsageError(
            "--check takes a folder and nothing else",
            where=" ".join(typed) or str(second),
            expected="glmquant fetch --check FOLDER",
            found="more",
            hint=shlex.join(["glmquant", "fetch", "--check", named]),
        )
    with progress(as_json) as observer:
        found = check_folder(Path(named), min(workers, 4), observer)
    record = found.record
    step = _mending(Path(named), found) if found.faults else None
    if as_json:
        emit(
            "check",
            folder=named,
            **record_fields(record),
            faults=[_fields(fault) for fault in found.faults],
            strangers=list(found.strangers),
            verdict="findings" if found.faults else "clean",
            next=step,
        )
    else:
        for fault in found.faults:
            click.echo(f"error: {printable(fault.file)}: {fault.what}")
            click.echo(f"  expected: {fault.expected}\n  found:    {fault.found}")
        for name in found.strangers:
            click.echo(f"note: {printable(name)} was not fetched")
        proofs: dict[str, list[int]] = {}
        for file in record.files.values():
            proofs.setdefault(file.proof.value, []).append(file.nbytes)
        rows = [["held against", "files", "bytes"]]
        rows += [[proof, str(len(each)), nbytes_text(sum(each))] for proof, each in proofs.items()]
        echo_table(rows, left=1)
        click.echo(
            f"verdict: {len(found.faults)} fault{'s' * (len(found.faults) != 1)}; "
            f"{short_path(Path(named))} is {'not ' if found.faults else ''}what was fetched from "
            f"{record.hub}:"
            f"{record.repository}, revision {record.revision} ({record.selection})"
        )
        if step:
            click.echo(f"next: {step}")
    if found.faults:
        ctx.exit(1)


def _mending(folder: Path, found: Checked) -> str:
    """The command that fetches again what is damaged.

    A damaged file is removed first: where it has length and time of the right one, as after a flip
    on the disk, fetch believes it.
    """
    from glmquant.hubs.protocols import is_usual_endpoint

    record = found.record
    damaged = [path for fault in found.faults if (path := folder / fault.file).is_file()
               and fault.file in record.files]  # fmt: skip
    words = ["glmquant", "fetch", f"{record.hub}:{record.repository}", str(folder)]
    words += ["--revision", record.revision] * (record.revision not in USUAL_REVISIONS)
    if not is_usual_endpoint(record.hub, record.endpoint):
        words += ["--endpoint", record.endpoint]
    words += shlex.split(record.selection) if record.selection != "all" else []
    removal = shlex.join(["rm", "--", *map(str, damaged)]) + " && " if damaged else ""
    return removal + shlex.join(words)


def _fields(fault: Fault) -> dict[str, str]:
    return {key: getattr(fault, key) for key in ("file", "what", "expected", "found")}
