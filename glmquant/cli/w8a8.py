"""``glmquant w8a8``: BF16 weights become a W8A8 checkpoint."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

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

if TYPE_CHECKING:
    from glmquant.cli.streamed import Streaming
    from glmquant.execute import Outcome
    from glmquant.observer import Observer
    from glmquant.plan import Plan
    from glmquant.recipe import Recipe
    from glmquant.source import FolderSource


@click.command(
    short_help="Quantize BF16 weights to W8A8.",
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
@also_option
@click.option(
    "--stream",
    is_flag=True,
    help="SOURCE is a model on a hub: a shard is fetched, quantized and dropped while the next "
    "ones come.",
)
@click.option(
    "--keep-source",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="With --stream: keep the BF16 weights, all of them, in DIR, as `fetch` would.",
)
@click.option(
    "--shards-in-flight",
    type=click.IntRange(1, 64),
    metavar="N",
    help="With --stream: BF16 shards on the disk at once, those that come among them.  "
    "[default: 3; 1<=x<=64]",
)
@click.option(
    "--revision",
    metavar="R",
    help="With --stream: a branch, tag or commit.  [default: the hub's own branch]",
)
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
    also: tuple[str, ...],
    stream: bool,
    keep_source: Path | None,
    shards_in_flight: int | None,
    revision: str | None,
    as_json: bool,
) -> None:
    """Quantize the BF16 weights in SOURCE to W8A8 in TARGET, as vllm-ascend loads them.

    SOURCE may be left out where the working directory holds one BF16 GLM-4.x folder. TARGET lies
    beside SOURCE if left out, and is called SOURCE-W8A8 by the recipe's name, with -floatmtp behind
    it if the MTP layer is kept.

    With --stream SOURCE is a name that `glmquant models` lists, or hub:owner/name, and TARGET lies
    in the working directory if left out. The disk holds the output and a few shards, in a folder
    beside TARGET that is removed in the end; the bytes are those of `fetch` and then `w8a8`.

    The same command goes on where an interrupted one stopped.
    """
    ctx.meta["glmquant.json"] = as_json
    from glmquant.cli.folders import choose_source, default_target
    from glmquant.cli.streamed import require_stream, streaming
    from glmquant.recipe import default_recipe, load_recipe
    from glmquant.source import FolderSource

    wanted = require_stream(
        source,
        stream=stream,
        keep_source=keep_source,
        shards_in_flight=shards_in_flight,
        revision=revision,
    )
    recipe = load_recipe(recipe_name) if recipe_name else default_recipe()
    job = _Job(ctx, recipe, add_mtp, embed_quant_config, also, workers, overwrite, dry_run, as_json)
    if wanted is None:
        source_dir = choose_source(source)
        target_dir = target or default_target(source_dir, recipe.name, add_mtp)
        _quantize(job, FolderSource(source_dir), source_dir, target_dir)
        return
    shown = Path(wanted.reference.folder)
    target_dir = target or default_target(shown, recipe.name, add_mtp)
    with streaming(wanted, target_dir, as_json=as_json) as (stream_, observer):
        _quantize(job, stream_.source, shown, target_dir, stream_, observer)


class _Job(NamedTuple):
    """What was typed."""

    ctx: click.Context
    recipe: Recipe
    add_mtp: bool
    embed_quant_config: bool
    also: tuple[str, ...]
    workers: int
    overwrite: bool
    dry_run: bool
    as_json: bool


def _quantize(
    job: _Job,
    source: FolderSource,
    source_dir: Path,
    target_dir: Path,
    stream: Streaming | None = None,
    observer: Observer | None = None,
) -> None:
    """Plan and run.

    Args:
        job: What was typed.
        source: What is read.
        source_dir: What a user calls it.
        target_dir: What is written.
        stream: How a hub's model comes; None for a folder.
        observer: Is told how it goes; made where it is left out.
    """
    from glmquant.checkpoint import open_checkpoint
    from glmquant.hubs.store import remove_store, store_of
    from glmquant.plan import make_plan
    from glmquant.target import refuse_overlap

    refuse_overlap(source.path, target_dir)
    checkpoint = open_checkpoint(source)
    plan = make_plan(
        checkpoint,
        job.recipe,
        add_mtp=job.add_mtp,
        embed_quant_config=job.embed_quant_config,
        also=job.also,
    )
    beside_nbytes = stream.room_beside(target_dir, plan) if stream else 0

    from glmquant.cli.forecast import echo_notes, show, warn
    from glmquant.forecast import forecast

    if job.dry_run or job.as_json:
        told = forecast(plan, checkpoint, workers=job.workers, beside_nbytes=beside_nbytes)
        command = w8a8_command(job.ctx, Path(stream.name) if stream else source_dir)
        show(told, source_dir, target_dir, command, as_json=job.as_json)
        if stream and not job.as_json:
            click.echo(f"note: {stream.line_text(plan)}", err=True)
    else:
        echo_notes(plan)
    if job.dry_run:
        warn(
            plan,
            source.path,
            target_dir,
            overwrite=job.overwrite,
            beside_nbytes=beside_nbytes,
            as_json=job.as_json,
        )
        return
    del checkpoint  # tens of MB, for a run of hours
    with _observed(observer, as_json=job.as_json) as told_to:
        outcome = _execute(job, plan, source, target_dir, beside_nbytes, told_to)
        if stream:
            stream.source.finish()
    if not stream or stream.kept:  # of an earlier run that did not keep its shards
        remove_store(store_of(target_dir))
    kept = stream.kept if stream else source_dir
    _echo_done(job, plan, outcome, target_dir, str(kept) if kept else stream and stream.name)


@contextmanager
def _observed(observer: Observer | None, *, as_json: bool) -> Iterator[Observer]:
    from glmquant.cli.progress import progress

    if observer is not None:
        yield observer
        return
    with progress(as_json) as made:
        yield made


def _execute(
    job: _Job,
    plan: Plan,
    source: FolderSource,
    target_dir: Path,
    beside_nbytes: int,
    observer: Observer,
) -> Outcome:
    from glmquant.execute import execute
    from glmquant.rates import RateMeter, store_rate

    meter = RateMeter(observer)
    outcome = execute(
        plan,
        source,
        target_dir,
        workers=job.workers,
        overwrite=job.overwrite,
        beside_nbytes=beside_nbytes,
        observer=meter,
    )
    rate = meter.measured(job.workers, is_searched=job.recipe.is_searched)
    if rate and not source.is_far:  # else it is the line's
        store_rate(rate)
    return outcome


def _echo_done(
    job: _Job, plan: Plan, outcome: Outcome, target_dir: Path, source: str | None
) -> None:
    from glmquant.cli.folders import short_path
    from glmquant.cli.progress import emit, nbytes_text
    from glmquant.cli.summary import echo_roles, measured_rows

    rows = measured_rows(plan, outcome.records)
    shown = short_path(target_dir)
    against = ["--source", short_path(Path(source))] if source else []
    step = shlex.join(["glmquant", "verify", shown, *against])
    written = sum((target_dir / name).stat().st_size for name in plan.files)
    if job.as_json:
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
        f"{shown}: {'already done, ' * outcome.was_done}{len(plan.files)} files, "
        f"{nbytes_text(written)}; weights {nbytes_text(plan.weights_nbytes)}, "
        f"{plan.weights_nbytes / plan.source_nbytes:.2f} of the {nbytes_text(plan.source_nbytes)} "
        "they were made of"
    )
    click.echo(f"next: {step}")
