"""``glmquant w8a8``: a BF16 folder becomes a W8A8 checkpoint."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from glmquant.cli.options import (
    add_mtp_option,
    embed_option,
    json_option,
    recipe_option,
    source_argument,
    w8a8_command,
    workers_option,
)


@click.command(
    short_help="Quantize a BF16 folder to W8A8.",
    epilog="Example: glmquant w8a8 GLM-4.6 --add-mtp",
)
@source_argument
@click.argument("target", required=False, type=click.Path(path_type=Path))
@add_mtp_option
@recipe_option
@workers_option
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace an earlier output of glmquant; other files are left alone.",
)
@click.option(
    "--dry-run", is_flag=True, help="Check the source, print what `plan` prints; write nothing."
)
@embed_option
@json_option
@click.pass_context
def w8a8(
    ctx: click.Context,
    source: str | None,
    target: Path | None,
    add_mtp: bool,
    recipe_name: str | None,
    workers: int,
    overwrite: bool,
    dry_run: bool,
    embed_quant_config: bool,
    as_json: bool,
) -> None:
    """Quantize the BF16 weights in SOURCE to W8A8 in TARGET, as vllm-ascend loads them.

    SOURCE may be left out where the working directory holds one BF16 GLM-4.x folder. TARGET lies
    beside SOURCE if left out, and is called SOURCE-W8A8 by the recipe's name, with -floatmtp behind
    it if the MTP layer is kept.

    The same command goes on where an interrupted one stopped.
    """
    ctx.meta["glmquant.json"] = as_json
    from glmquant.checkpoint import open_checkpoint
    from glmquant.cli.folders import choose_source, default_target, short_path
    from glmquant.plan import make_plan
    from glmquant.recipe import default_recipe, load_recipe
    from glmquant.source import FolderSource
    from glmquant.target import refuse_overlap

    source_dir = choose_source(source)
    recipe = load_recipe(recipe_name) if recipe_name else default_recipe()
    folder = FolderSource(source_dir)
    target_dir = target or default_target(source_dir, recipe.name, add_mtp)
    refuse_overlap(source_dir, target_dir)
    checkpoint = open_checkpoint(folder)
    plan = make_plan(checkpoint, recipe, add_mtp=add_mtp, embed_quant_config=embed_quant_config)

    from glmquant.cli.forecast import echo_notes, show, warn
    from glmquant.cli.progress import emit, nbytes_text, progress
    from glmquant.cli.summary import echo_roles, measured_rows
    from glmquant.forecast import forecast

    if dry_run or as_json:
        told = forecast(plan, checkpoint, workers=workers)
        show(told, source_dir, target_dir, w8a8_command(ctx, source_dir), as_json=as_json)
    else:
        echo_notes(plan)
    if dry_run:
        warn(plan, source_dir, target_dir, overwrite=overwrite, as_json=as_json)
        return

    from glmquant.execute import execute
    from glmquant.rates import RateMeter, store_rate

    del checkpoint  # tens of MB, for a run of hours
    with progress(as_json) as observer:
        meter = RateMeter(observer)
        outcome = execute(
            plan, folder, target_dir, workers=workers, overwrite=overwrite, observer=meter
        )
    if rate := meter.measured(workers, is_searched=recipe.is_searched):
        store_rate(rate)
    rows = measured_rows(plan, outcome.records)
    shown = (short_path(target_dir), "--source", short_path(source_dir))
    step = shlex.join(["glmquant", "verify", *shown])
    written = sum((target_dir / name).stat().st_size for name in plan.files)
    if as_json:
        emit(
            "done",
            target=str(target_dir),
            already_done=outcome.was_done,
            files=len(plan.files),
            output_nbytes=written,
            source_nbytes=plan.source_nbytes,
            weights_nbytes=plan.weights_nbytes,
            mtp_layers=plan.mtp_count,
            roles=rows,
            next=step,
        )
        return
    echo_roles(rows)
    click.echo(
        f"{short_path(target_dir)}: {'already done, ' * outcome.was_done}{len(plan.files)} files, "
        f"{nbytes_text(written)}; weights {nbytes_text(plan.weights_nbytes)}, "
        f"{plan.weights_nbytes / plan.source_nbytes:.2f} of the {nbytes_text(plan.source_nbytes)} "
        "they were made of"
    )
    click.echo(f"next: {step}")
