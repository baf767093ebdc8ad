"""``glmquant plan``: what a run will write and take, and where its output fits."""

from __future__ import annotations

from functools import partial

import click

from glmquant.cli.options import (
    add_mtp_option,
    also_option,
    embed_option,
    json_option,
    recipe_option,
    source_argument,
    w8a8_command,
    workers_option,
)
from glmquant.machines import MACHINES

LARGEST_CONTEXT = 10_000_000


@click.command(
    short_help="Say what w8a8 would write and take, and whether it fits.",
    epilog="Example: glmquant plan GLM-4.6 --add-mtp",
)
@source_argument
@add_mtp_option
@recipe_option
@workers_option
@embed_option
@also_option
@click.option(
    "--machine",
    type=click.Choice(list(MACHINES), case_sensitive=False),
    help="Atlas 800 A2 (8 x 64 GiB) or A3 (16 x 64 GiB).  [default: both]",
)
@click.option(
    "--context",
    type=click.IntRange(1, LARGEST_CONTEXT),
    metavar="TOKENS",
    help="Length of a sequence to make room for.  [default: what config.json allows, 131072 at "
    "most]",
)
@click.option("--files", "all_files", is_flag=True, help="List each shard, not runs of them.")
@json_option
@click.pass_context
def plan(
    ctx: click.Context,
    source: str | None,
    add_mtp: bool,
    recipe_name: str | None,
    workers: int,
    embed_quant_config: bool,
    also: tuple[str, ...],
    machine: str | None,
    context: int | None,
    all_files: bool,
    as_json: bool,
) -> None:
    """Say what `w8a8` would make of SOURCE, from its headers and config.json alone.

    SOURCE is a folder, or a model on a hub: a name that `glmquant models` lists, or
    hub:owner/name, of which nothing else is read.

    Every file with its length, what becomes of which layer, the time, disk and memory of the run,
    and the room for KV cache on an Atlas 800 A2 or A3. `w8a8 --dry-run` says the same.

    SOURCE may be left out where the working directory holds one BF16 GLM-4.x folder.
    """
    ctx.meta["glmquant.json"] = as_json
    from glmquant.checkpoint import open_checkpoint
    from glmquant.cli.folders import choose_source, default_target
    from glmquant.cli.forecast import show, warn
    from glmquant.cli.remote import headers_of
    from glmquant.forecast import forecast
    from glmquant.plan import make_plan
    from glmquant.recipe import default_recipe, load_recipe
    from glmquant.source import FolderSource

    recipe = load_recipe(recipe_name) if recipe_name else default_recipe()
    with headers_of(source, partial(choose_source, verb="plan"), as_json=as_json) as named:
        checkpoint = open_checkpoint(FolderSource(named.folder))
        made = make_plan(
            checkpoint, recipe, add_mtp=add_mtp, embed_quant_config=embed_quant_config, also=also
        )
        told = forecast(made, checkpoint, workers=workers, machine=machine, context=context)
    target_dir = default_target(named.shown, recipe.name, add_mtp)
    command = w8a8_command(ctx, named.shown)
    if named.reference:
        command = f"{named.fetch_command} && {command}"
    show(told, named.shown, target_dir, command, as_json=as_json, all_files=all_files)
    warn(made, named.shown, target_dir, overwrite=False, as_json=as_json)
