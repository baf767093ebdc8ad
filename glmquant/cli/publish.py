"""``glmquant publish``: a verified checkpoint goes onto a hub, by the hub's own program."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from glmquant.cli.options import default_workers, json_option

if TYPE_CHECKING:
    from glmquant.hubs.known import Reference
    from glmquant.publish.parcel import Parcel
    from glmquant.verify.run import Report

MOST_LINES = 12
"""Files shown to people; --json lists all."""


@click.command(
    short_help="Verify a checkpoint and put it onto a hub.",
    epilog="Example: glmquant publish GLM-4.6-W8A8-floatmtp --to modelscope:me/GLM",
)
@click.argument("folder", metavar="[DIR]", required=False)
@click.option(
    "--to",
    metavar="HUB:OWNER/NAME",
    required=True,
    help="The repository; it is made if it is not there.",
)
@click.option(
    "--visibility",
    type=click.Choice(["private", "public"]),
    default="private",
    show_default=True,
    help="Of a repository that has to be made.",
)
@click.option(
    "--license",
    "licence",
    metavar="ID",
    help="Of a repository that has to be made.  [default: what README.md says]",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "vllm-ascend", "cpu", "reference", "none"]),
    default="none",
    show_default=True,
    help="What runs the checkpoint before it goes, as in `glmquant verify`.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=default_workers,
    help="Threads that verify.  [default: twice the cores, 16 at most]",
)
@click.option(
    "--include",
    metavar="NAME",
    multiple=True,
    help="A file that goes along though no checkpoint has it. Repeatable.",
)
@click.option(
    "--print", "is_printed", is_flag=True, help="Print the hub's commands, and run nothing."
)
@click.option("--dry-run", is_flag=True, help="List what would go, and run nothing.")
@json_option
@click.pass_context
def publish(
    ctx: click.Context,
    folder: str | None,
    to: str,
    visibility: str,
    licence: str | None,
    engine: str,
    workers: int,
    include: tuple[str, ...],
    is_printed: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Verify DIR, every byte of it, and put it onto a hub.

    ModelScope's own program does the sending (pip install 'glmquant[modelscope]'), with its own
    login: glmquant takes no token for it. The same command goes on where an interrupted one
    stopped. Then the hub's list is held against the folder. For Modelers and Hugging Face the
    commands are printed. Nothing goes where verify finds an error. Hidden files stay here.

    DIR may be left out where the working directory holds one W8A8 checkpoint.
    """
    ctx.meta["glmquant.json"] = as_json
    from glmquant.cli.folders import choose_quantized
    from glmquant.hubs.known import HubName
    from glmquant.publish.commands import shown_commands
    from glmquant.publish.parcel import (
        pack,
        require_current_card,
        require_licence,
        require_unchanged,
    )

    path = choose_quantized(folder, "publish")
    target = _target(to)
    parcel = pack(path, include)
    licence = licence or parcel.licence
    commands = shown_commands(target, path, licence=licence or "ID", visibility=visibility)
    if is_printed:
        if licence is None:
            click.echo("note: ID stands for the licence: --license mit, or what it is", err=True)
        _echo_commands(target, commands, as_json)
        return
    if dry_run:
        _echo_parcel(parcel, target, commands, as_json)
        return
    require_current_card(parcel)
    licence = require_licence(licence)
    program = ""
    if target.hub is HubName.MODELSCOPE:
        program = _require_program(target, commands)
    report = _verified(path, engine, workers, as_json)
    if report.errors:
        _refuse(ctx, report, path, as_json)
        return
    require_unchanged(parcel)
    if target.hub is not HubName.MODELSCOPE:
        _echo_commands(target, commands, as_json)
        return
    _send(program, parcel, target, licence=licence, visibility=visibility, as_json=as_json)


def _target(to: str) -> Reference:
    """The repository that is meant.

    Raises:
        UsageError: None is.
    """
    from glmquant.errors import UsageError
    from glmquant.hubs.known import HubName, find_model, is_repository
    from glmquant.survey import printable

    hub, _, name = to.partition(":")
    is_hub = hub in {each.value for each in HubName}
    if is_hub and is_repository(name):
        return find_model(to)
    first = hub if is_hub else HubName.MODELSCOPE.value
    raise UsageError(
        "that names no repository on a hub",
        where="--to",
        expected="modelscope:OWNER/NAME, modelers:OWNER/NAME or hf:OWNER/NAME, without a revision",
        found=printable(to),
        hint=f"--to {first}:{to if is_repository(to) else 'OWNER/NAME'}",
    )


def _require_program(target: Reference, commands: tuple[str, ...]) -> str:
    """ModelScope's program; without it the commands are printed for where there is one.

    Raises:
        HubError: It is not installed.
    """
    from glmquant.errors import HubError
    from glmquant.publish.commands import INSTALL
    from glmquant.publish.upload import find_modelscope

    program = find_modelscope()
    if program is None:
        for command in commands:
            click.echo(command, err=True)
        raise HubError(
            "ModelScope's program is not installed, and nothing was sent",
            where="modelscope, in this environment and on the PATH",
            expected="modelscope 1.40 or newer",
            found="none",
            hint=f"{INSTALL[target.hub]}, or run the commands above elsewhere",
        )
    return program


def _verified(path: Path, engine: str, workers: int, as_json: bool) -> Report:
    from glmquant.cli.progress import progress
    from glmquant.runtime.prompts import embedded_material
    from glmquant.verify.behaviour.check import Wish
    from glmquant.verify.behaviour.choice import EngineKind
    from glmquant.verify.run import verify

    wish = None
    if engine != "none":
        wish = Wish(
            engine=EngineKind(engine),
            material=embedded_material(),
            url=None,
            speculative_tokens=1,
            min_acceptance=None,
            limit_seconds=None,
        )
    with progress(as_json) as observer:
        return verify(path, deep=True, workers=workers, wish=wish, observer=observer)


def _refuse(ctx: click.Context, report: Report, path: Path, as_json: bool) -> None:
    """Say what verify found, and end with 1."""
    from glmquant.cli.folders import short_path
    from glmquant.cli.progress import emit
    from glmquant.cli.verdict import echo_report, report_fields
    from glmquant.verify.run import next_command

    step = next_command(report, short_path(path))
    if as_json:
        emit("verify", **report_fields(report, step))
    else:
        echo_report(report, step)
        click.echo("nothing was sent: verify found errors", err=True)
    ctx.exit(1)


def _send(
    program: str,
    parcel: Parcel,
    target: Reference,
    *,
    licence: str,
    visibility: str,
    as_json: bool,
) -> None:
    from glmquant.cli.progress import emit, nbytes_text, progress
    from glmquant.publish.arrived import check_arrival
    from glmquant.publish.commands import LOGIN, create_words, upload_words
    from glmquant.publish.parcel import require_unchanged
    from glmquant.publish.upload import run_modelscope

    def say(data: bytes) -> None:
        if not as_json:
            sys.stderr.buffer.write(data)
            sys.stderr.flush()

    size = f"{len(parcel.files)} files, {nbytes_text(parcel.nbytes)}"
    if as_json:
        emit("status", doing=f"sending {size}")
    else:
        click.echo(f"verified; sending {size} to {target.text}", err=True)
    run_modelscope(
        program,
        create_words(target, licence=licence, visibility=visibility),
        "the repository is not there and could not be made, and nothing was sent",
        LOGIN[target.hub],
        say,
    )
    require_unchanged(parcel)
    run_modelscope(
        program,
        upload_words(target, parcel.folder),
        "the checkpoint was not sent, or not all of it",
        "run the same command again: what has arrived is not sent twice",
        say,
    )
    require_unchanged(parcel)
    with progress(as_json) as observer:
        told = check_arrival(target, parcel, observer)
    step = shlex.join(["glmquant", "inspect", target.text])
    if as_json:
        emit(
            "published",
            to=target.text,
            files=parcel.files,
            nbytes=parcel.nbytes,
            arrival=told,
            next=step,
        )
        return
    click.echo(f"{target.text}: {size}; {told}")
    click.echo(f"next: {step}")


def _echo_commands(target: Reference, commands: tuple[str, ...], as_json: bool) -> None:
    """The commands on stdout, what they need on stderr."""
    from glmquant.cli.progress import emit
    from glmquant.publish.commands import INSTALL, LOGIN

    if as_json:
        emit(
            "commands",
            to=target.text,
            install=INSTALL[target.hub],
            login=LOGIN[target.hub],
            commands=list(commands),
        )
        return
    click.echo(f"needs: {INSTALL[target.hub]}; {LOGIN[target.hub]}", err=True)
    for command in commands:
        click.echo(command)


def _echo_parcel(
    parcel: Parcel, target: Reference, commands: tuple[str, ...], as_json: bool
) -> None:
    from glmquant.cli.progress import emit, nbytes_text
    from glmquant.cli.summary import echo_table

    if as_json:
        emit(
            "plan",
            to=target.text,
            files=parcel.files,
            nbytes=parcel.nbytes,
            left_out=list(parcel.hidden),
            has_card=parcel.has_card,
            commands=list(commands),
        )
        return
    largest = sorted(parcel.files.items(), key=lambda each: (-each[1], each[0]))
    echo_table([(name, nbytes_text(size)) for name, size in largest[:MOST_LINES]], left=1)
    if len(largest) > MOST_LINES:
        rest = [name for name, _ in largest[MOST_LINES:]]
        weights = sum(name.endswith(".safetensors") for name in rest)
        others = [name for name in rest if not name.endswith(".safetensors")]
        told = [*([f"{weights} more of weights"] if weights else []), *others]
        click.echo(f"  and {', '.join(told)}")
    click.echo(f"{target.text}: {len(largest)} files, {nbytes_text(parcel.nbytes)}")
    if parcel.hidden:
        click.echo(f"left out: {', '.join(parcel.hidden)}")
    if not parcel.has_card:
        shown = shlex.join(["glmquant", "card", str(parcel.folder)])
        click.echo(f"there is no README.md: {shown}")
    for command in commands:
        click.echo(f"  $ {command}")
    click.echo("nothing was sent")
