"""``glmquant fetch``: weights, or only the bytes that are needed, from a hub."""

from __future__ import annotations

import math
import shlex
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from glmquant.cli.options import json_option
from glmquant.errors import UsageError

if TYPE_CHECKING:
    from glmquant.hubs.check import Checked, Fault
    from glmquant.hubs.fetch import Fetched
    from glmquant.hubs.known import Reference
    from glmquant.hubs.prospect import FetchPlan

USUAL_REVISIONS = ("master", "main")
"""The hubs' own branches, which need no --revision."""

SLOW_LINES = (("100 Mbit/s", 12_500_000), ("1 Gbit/s", 125_000_000))
"""What a time is told for where no fetch has measured the line yet."""


@click.command(
    short_help="Fetch weights, or only a part of them, from a hub.",
    epilog="Example: glmquant fetch glm-4.6 --only mtp",
)
@click.argument("model", metavar="MODEL|FOLDER")
@click.argument("named_folder", metavar="[DIR]", required=False)
@click.option(
    "--hub",
    type=click.Choice(["modelscope", "modelers", "hf"]),
    help="Where to fetch from.  [default: the first that `glmquant models` lists]",
)
@click.option(
    "--revision", metavar="R", help="A branch, tag or commit.  [default: the hub's own branch]"
)
@click.option(
    "--only",
    metavar="mtp|metadata|layers=…",
    help="Only the MTP layer and what grafting it needs; only the small files; or only some "
    "layers, as layers=0-3,92. Tensors are chosen by name, whatever files they lie in.",
)
@click.option("--include", metavar="GLOB", multiple=True, help="Only files that match. Repeatable.")
@click.option("--exclude", metavar="GLOB", multiple=True, help="No files that match. Repeatable.")
@click.option("--dry-run", is_flag=True, help="Plan, print, and write nothing.")
@click.option(
    "--check", is_flag=True, help="Read the FOLDER again, against its recorded sums, offline."
)
@click.option(
    "--verify-ranges",
    is_flag=True,
    help="Fetch twice what is taken out of files, since no sum of the hub's covers it.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=8,
    show_default=True,
    help="Connections.",
)
@click.option(
    "--retries",
    type=click.IntRange(1, 1000),
    default=20,
    show_default=True,
    help="Failures in a row, with no new byte between them, that end the run.",
)
@click.option(
    "--stall",
    "stall_seconds",
    metavar="SECONDS",
    type=click.FloatRange(0.1, 3600),
    default=60,
    show_default=True,
    help="How long a connection may give next to nothing.",
)
@click.option("--endpoint", metavar="URL", help="Another address of the hub, https.")
@json_option
@click.pass_context
def fetch(
    ctx: click.Context,
    model: str,
    named_folder: str | None,
    hub: str | None,
    revision: str | None,
    only: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    dry_run: bool,
    check: bool,
    verify_ranges: bool,
    workers: int,
    retries: int,
    stall_seconds: float,
    endpoint: str | None,
    as_json: bool,
) -> None:
    """Fetch MODEL into DIR: a name that `glmquant models` lists, or hub:owner/name.

    DIR is the model's own name in the working directory where it is left out. The repository is
    listed, every safetensors header read and all of it held together before the first weight comes.
    Files are fetched in parts by several connections, held against the hub's sums, and named once
    they are right. The same command goes on after a kill, a crash or a cut line, and fetches again
    only what is not there. Copies that the hubs' own tools have cached are linked.

    A token comes from MODELSCOPE_API_TOKEN, MODELERS_TOKEN, HF_TOKEN or the token file of
    huggingface_hub; it is sent to the hub alone. Proxies: https_proxy, no_proxy. Certificates of
    your company's: SSL_CERT_FILE. Endpoints: MODELSCOPE_ENDPOINT, OPENMIND_HUB_ENDPOINT,
    HF_ENDPOINT.
    """
    ctx.meta["glmquant.json"] = as_json
    _require_sense(named_folder, stall_seconds)
    folder = Path(named_folder) if named_folder else None
    from glmquant.cli.progress import progress
    from glmquant.hubs.fetch import Manner, opened, plan_fetch
    from glmquant.hubs.fetch import fetch as run
    from glmquant.hubs.known import HubName, find_model
    from glmquant.hubs.pace import store_pace
    from glmquant.hubs.selection import parse_selection
    from glmquant.observer import Meter

    if check:
        _check(ctx, model, folder, workers, as_json)
        return
    selection = parse_selection(only, include, exclude)
    reference = find_model(model, HubName(hub) if hub else None, folder)
    manner = Manner(workers, retries, stall_seconds, verify_ranges, endpoint, revision)
    target = folder or Path(reference.folder)
    _require_repeatable(model, reference, target)
    with progress(as_json) as observer:
        meter = Meter(observer, "fetch")
        with opened(reference, manner, meter) as session:
            plan = plan_fetch(session, selection, target)
            if not dry_run:
                if not as_json:
                    click.echo(_headline(plan), err=True)
                done = run(session, plan)
                store_pace(reference.hub.value, meter)
    if dry_run:
        _echo_plan(plan, _again(ctx), as_json)
    else:
        _echo_fetched(plan, done, as_json)


def _require_sense(folder: str | None, stall_seconds: float) -> None:
    """What click lets pass.

    Raises:
        UsageError: It means nothing.
    """
    if folder == "":
        raise UsageError(
            "no folder is named",
            where="DIR",
            expected="the path of a folder, new or fetched before",
            found="an empty text",
            hint="leave DIR out: it is then called as the model is",
        )
    if math.isnan(stall_seconds):
        raise UsageError(
            "that is no time", where="--stall", expected="seconds", found=str(stall_seconds)
        )


def _require_repeatable(model: str, reference: Reference, target: Path) -> None:
    """The same command has to go on after a kill: DIR must not take the model's name.

    Raises:
        UsageError: It would.
    """
    if ":" not in model and Path(model).absolute() == target.absolute():
        raise UsageError(
            "the folder would have the model's name, and a path is never taken for that",
            where=str(target),
            expected="another folder, or the model as hub:owner/name",
            found="the same name for both",
            hint=shlex.join(["glmquant", "fetch", reference.text, str(target)]),
        )


def _check(
    ctx: click.Context, named: str, second: Path | None, workers: int, as_json: bool
) -> None:
    from glmquant.cli.folders import short_path
    from glmquant.cli.progress import emit, progress
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
            source=f"{record.hub}:{record.repository}",
            revision=record.revision,
            commit=record.commit,
            selection=record.selection,
            files={
                name: {"nbytes": file.nbytes, "sha256": file.sha256, "proof": file.proof.value}
                for name, file in record.files.items()
            },
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
        from glmquant.cli.progress import nbytes_text

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


def _headline(plan: FetchPlan) -> str:
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


def _again(ctx: click.Context) -> str:
    """The command line without --dry-run."""
    typed = ctx.params
    words = ["glmquant", "fetch", typed["model"]]
    words += [typed["named_folder"]] if typed["named_folder"] else []
    for name in ("hub", "revision", "only", "endpoint"):
        words += [f"--{name}", typed[name]] if typed[name] else []
    for name in ("include", "exclude"):
        for pattern in typed[name]:
            words += [f"--{name}", pattern]
    words += ["--verify-ranges"] * typed["verify_ranges"]
    for name, option in (
        ("workers", "--workers"),
        ("retries", "--retries"),
        ("stall_seconds", "--stall"),
    ):
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            words += [option, f"{typed[name]:g}"]
    return shlex.join(words)


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


def _echo_plan(plan: FetchPlan, again: str, as_json: bool) -> None:
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
    """How long bytes take to come, at the rate of the last long fetch where there was one."""
    from glmquant.cli.progress import nbytes_text

    if pace:
        return (
            f"{timedelta(seconds=round(nbytes / pace))} at {nbytes_text(pace)}/s, "
            "the rate of the last long fetch from this hub"
        )
    told = [f"{timedelta(seconds=round(nbytes / rate))} at {name}" for name, rate in SLOW_LINES]
    return f"{' or '.join(told)}; no fetch has measured this line yet"


def _echo_fetched(plan: FetchPlan, done: Fetched, as_json: bool) -> None:
    from glmquant.cli.folders import short_path
    from glmquant.cli.progress import emit, nbytes_text

    record = done.record
    if as_json:
        emit(
            "fetched",
            source=f"{record.hub}:{record.repository}",
            revision=record.revision,
            commit=record.commit,
            folder=str(plan.folder),
            selection=record.selection,
            is_partial=done.is_partial,
            fetched_nbytes=done.fetched_nbytes,
            linked=list(done.linked),
            files={
                name: {"nbytes": file.nbytes, "sha256": file.sha256, "proof": file.proof.value}
                for name, file in record.files.items()
            },
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
