"""``glmquant card``: the README.md that a hub shows of a checkpoint."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from glmquant.cli.options import json_option


@click.command(
    short_help="Write the README.md of a checkpoint, for a hub.",
    epilog="Example: glmquant card GLM-4.6-W8A8-floatmtp",
)
@click.argument("folder", metavar="[DIR]", required=False)
@click.option("--print", "is_printed", is_flag=True, help="Print it, and write nothing.")
@click.option(
    "--hub",
    "hub_name",
    type=click.Choice(["modelscope", "modelers", "hf"]),
    default="modelscope",
    show_default=True,
    help="Whose names the page uses for the model it was made of.",
)
@click.option(
    "--base-model",
    metavar="OWNER/NAME",
    help="The BF16 weights it was made of.  [default: the release that config.json fits]",
)
@click.option(
    "--license",
    "licence",
    metavar="ID",
    help="The licence of the weights.  [default: mit, if a release fits]",
)
@click.option("--name", metavar="NAME", help="What it is called.  [default: the folder's name]")
@click.option("--overwrite", is_flag=True, help="Replace a README.md that is no card of ours.")
@json_option
@click.pass_context
def card(
    ctx: click.Context,
    folder: str | None,
    is_printed: bool,
    hub_name: str,
    base_model: str | None,
    licence: str | None,
    name: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write README.md into DIR: front matter, serve command, recipe, layers, results, sums.

    Checkpoints of glmquant and of msModelSlim are taken; of the latter no recipe and no errors are
    recorded. Every file is read for its SHA-256. Results come from DIR/.glmquant/results/*.json,
    and are said to be not measured where there are none. DIR may be left out where the working
    directory holds one such checkpoint.

    A README.md that this command has written is replaced; another one is not, but with --overwrite.
    """
    ctx.meta["glmquant.json"] = as_json
    from glmquant.cli.folders import choose_quantized, short_path
    from glmquant.cli.progress import emit, progress
    from glmquant.hubs.known import HubName
    from glmquant.report.card import CARD_FILE, make_card
    from glmquant.survey import printable
    from glmquant.writer import write_file

    path = choose_quantized(folder, "card")
    page = path / CARD_FILE
    if not is_printed and not overwrite:
        _require_replaceable(page)
    with progress(as_json) as observer:
        made = make_card(
            path,
            hub=HubName(hub_name),
            base_model=base_model,
            licence=licence,
            name=name,
            observer=observer,
        )
    if not is_printed:
        write_file(page, made.text.encode(errors="backslashreplace"))
    shown = short_path(path)
    step = shlex.join(
        ["glmquant", "publish", shown, "--to", f"{hub_name}:OWNER/{path.resolve().name}"]
    )
    if as_json:
        written = None if is_printed else str(page)
        emit(
            "card",
            file=written,
            base_model=made.base_model,
            notes=list(made.notes),
            text=made.text,
            next=step,
        )
        return
    for note in made.notes:
        click.echo(f"note: {printable(note, 500)}", err=True)
    if is_printed:
        click.echo(made.text, nl=False)
        return
    click.echo(f"{short_path(page)}: {len(made.text.encode())} bytes")
    click.echo(f"next: {step}")


def _require_replaceable(page: Path) -> None:
    """A card may only take the place of another.

    Raises:
        UsageError: README.md is something else.
    """
    from glmquant.cli.folders import short_path
    from glmquant.errors import UsageError
    from glmquant.report.card import is_card
    from glmquant.storage import reading

    with reading(page):
        is_there = page.exists() or page.is_symlink()
    shown = shlex.join(["glmquant", "card", short_path(page.parent)])
    if is_there and not (page.is_file() and is_card(page)):
        raise UsageError(
            "there is a README.md already, and it is no card of glmquant",
            where=str(page),
            expected="none, or a card of an earlier run",
            found="another file" if page.is_file() else "something that is no file",
            hint=f"{shown} --print shows the card; --overwrite replaces the file",
        )
