"""A forecast on stdout: for people the essence first, for programs one JSON object."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import click

from glmquant.cli.folders import short_path
from glmquant.cli.progress import emit, nbytes_text
from glmquant.cli.summary import echo_roles, echo_table, role_rows
from glmquant.errors import GlmquantError
from glmquant.forecast import Forecast, LayerRange
from glmquant.machines import GPU_MEMORY_UTILIZATION, RESERVE_NBYTES
from glmquant.manifest import MANIFEST_FILE
from glmquant.plan import Plan
from glmquant.sizing import Fit
from glmquant.target import admit, refuse_overlap

MOST_LINES: Final = 12
"""Lines for shards of different lengths; more of them are told by the least and the greatest."""

_VERDICTS: Final = ("fits", "does not fit", "cannot be cut for")
_NUMBERED: Final = re.compile(r"(.+)-(\d{5})-of-(\d{5}\.safetensors)")


def show(
    told: Forecast,
    source: Path,
    target: Path,
    command: str,
    *,
    as_json: bool = False,
    all_files: bool = False,
) -> None:
    """Print a forecast.

    Args:
        told: The forecast.
        source: The folder that is read.
        target: The folder to be written.
        command: What to type to run it.
        as_json: One event ``plan`` with every figure.
        all_files: A line for each shard.
    """
    if as_json:
        emit("plan", **plan_fields(told, source, target, command))
        return
    echo_notes(told.plan)
    click.echo(
        f"{short_path(source)} -> {short_path(target)}: {nbytes_text(told.output_nbytes)} in "
        f"{len(told.plan.files)} files, made of {nbytes_text(told.source_nbytes)}; "
        f"{_duration_text(told.seconds)}; {_fits_text(told)}"
    )
    _echo_layers(told)
    _echo_files(told, all_files)
    _echo_costs(told)
    _echo_fits(told)
    click.echo(f"nothing was written; to run it: {command}")


def warn(
    plan: Plan,
    source: Path,
    target: Path,
    *,
    overwrite: bool,
    as_json: bool,
    beside_nbytes: int = 0,
) -> None:
    """Say on stderr, and as an event, what would stop the run before its first byte."""
    try:
        refuse_overlap(source, target, plan.source_files)
        admit(plan, target, overwrite, beside_nbytes)
    except GlmquantError as error:
        click.echo(f"warning: the run would fail: {error}", err=True)
        if as_json:
            emit("warning", **error.fields())


def echo_notes(plan: Plan) -> None:
    """What the user should know about a plan, on stderr."""
    for note in plan.notes:
        click.echo(f"note: {note}", err=True)


def plan_fields(told: Forecast, source: Path, target: Path, command: str) -> dict[str, Any]:
    """A forecast as JSON fields; lengths in bytes, the manifest's an upper bound."""
    plan = told.plan
    return {
        "source": str(source),
        "target": str(target),
        "recipe": plan.recipe.name,
        "plan": plan.digest,
        "mtp_layers": plan.mtp_count,
        "source_nbytes": told.source_nbytes,
        "weights_nbytes": plan.weights_nbytes,
        "manifest_nbytes_bound": told.manifest_nbytes,
        "output_nbytes_bound": told.output_nbytes,
        "disk_nbytes_peak": told.peak_disk_nbytes,
        "memory_nbytes_peak": told.peak_memory_nbytes,
        "workers": told.workers,
        "seconds": round(told.seconds, 1),
        "rate": {
            "nbytes_per_second": told.rate.nbytes_per_second,
            "workers": told.rate.workers,
            "is_of_this_machine": told.rate_is_ours,
            "machine": told.rate.machine,
            "day": told.rate.day or None,
        },
        "files": [{"file": name, "nbytes": size} for name, size in _sizes(plan).items()],
        "roles": role_rows(told.roles),
        "layers": [
            {
                "first": layers.first,
                "last": layers.last,
                "is_mtp": layers.is_mtp,
                "schemes": {role.value: scheme.value for role, scheme in layers.schemes.items()},
            }
            for layers in told.layers
        ],
        "context": told.context,
        "gpu_memory_utilization": GPU_MEMORY_UTILIZATION,
        "reserve_nbytes_assumed": RESERVE_NBYTES,
        "fits": [_fit_fields(fit) for fit in told.fits],
        "notes": list(plan.notes),
        "next": command,
    }


def _fit_fields(fit: Fit) -> dict[str, Any]:
    layout = fit.layout
    return {
        "machine": layout.machine.key,
        "cards": layout.cards,
        "card_nbytes": layout.machine.card_nbytes,
        "data_parallel": layout.data_parallel,
        "tensor_parallel": layout.tensor_parallel,
        "is_expert_parallel": layout.is_expert_parallel,
        "fits": fit.fits,
        "weights_nbytes_per_card": fit.weights_nbytes,
        "kv_nbytes_per_card_and_token": fit.kv_token_nbytes,
        "room_nbytes_per_card": fit.room_nbytes,
        "tokens_per_rank": fit.tokens,
        "sequences_per_rank": fit.sequences,
        "obstacles": list(fit.obstacles),
        "advice": list(fit.advice),
    }


def _sizes(plan: Plan) -> dict[str, int]:
    """Every file but the manifest, whose length the plan only bounds."""
    sizes = {shard.file: shard.nbytes for shard in plan.shards} | plan.side_files
    return sizes | {name: len(data) for name, data in plan.small_files.items()}


def _echo_layers(told: Forecast) -> None:
    mtp = "the MTP layer kept" if told.plan.mtp_count else "no MTP layer"
    click.echo(f"recipe {told.plan.recipe.name}, {mtp}:")
    echo_roles(role_rows(told.roles))
    click.echo("by layer:")
    rows = []
    for layers in told.layers:
        name = _layers_text(layers)
        for scheme in sorted(set(layers.schemes.values()), reverse=True):
            roles = [role.value for role, each in layers.schemes.items() if each is scheme]
            rows.append((name, scheme.value, ", ".join(roles)))
            name = ""
    echo_table(rows, left=3)


def _layers_text(layers: LayerRange) -> str:
    if layers.first is None:
        return "outside the layers"
    one = layers.first == layers.last
    kind = ("MTP " if layers.is_mtp else "") + ("layer" if one else "layers")
    return f"{kind} {layers.first}" + ("" if one else f"-{layers.last}")


def _echo_files(told: Forecast, all_files: bool) -> None:
    click.echo("files, lengths in bytes:")
    shards = [(shard.file, shard.nbytes) for shard in told.plan.shards]
    rows = [(name, f"{size:,}", nbytes_text(size)) for name, size in shards]
    if not all_files:
        rows = list(_runs(shards, same_length=True))
        if len(rows) > MOST_LINES:
            rows = list(_runs(shards, same_length=False))
    others = {name: size for name, size in _sizes(told.plan).items() if name not in dict(shards)}
    rows += [(name, f"{size:,}", nbytes_text(size)) for name, size in others.items()]
    manifest = told.manifest_nbytes
    rows.append((MANIFEST_FILE, f"at most {manifest:,}", nbytes_text(manifest)))
    echo_table(rows, left=1)


def _runs(shards: list[tuple[str, int]], *, same_length: bool) -> Iterator[tuple[str, str, str]]:
    """Rows for runs of shards numbered on end, of one length each or of any."""

    def kind(item: tuple[int, tuple[str, int]]) -> tuple[object, ...]:
        place, (name, length) = item
        match = _NUMBERED.fullmatch(name)
        series = (match[1], match[3], int(match[2]) - place) if match else (name,)
        return (*series, length if same_length else None)

    for _, group in groupby(enumerate(shards), key=kind):
        run = [shard for _, shard in group]
        sizes = [length for _, length in run]
        name, each = run[0][0], f"{min(sizes):,}"
        if len(run) > 1:
            last = _NUMBERED.sub(r"\2", run[-1][0])
            name = _NUMBERED.sub(rf"\1-{{\2..{last}}}-of-\3", name)
            each = f"{len(run)} x {each}"
        if max(sizes) > min(sizes):
            each += f" to {max(sizes):,}"
        yield name, each, nbytes_text(sum(sizes))


def _echo_costs(told: Forecast) -> None:
    rate = told.rate
    measured = f"measured with {_workers_text(rate.workers)} on {rate.machine}, not here"
    if told.rate_is_ours:
        measured = f"measured on this machine {rate.day} with {_workers_text(rate.workers)}"
    speed = f"{nbytes_text(rate.nbytes_per_second)}/s"
    click.echo(
        f"time: {_duration_text(told.seconds)} at {speed}, {measured}\n"
        f"disk: at most {nbytes_text(told.peak_disk_nbytes)} during the run, "
        f"{nbytes_text(told.output_nbytes)} in the end\n"
        f"memory: at most {nbytes_text(told.peak_memory_nbytes)} with {_workers_text(told.workers)}"
    )


def _workers_text(workers: int) -> str:
    return f"{workers} worker{'s' * (workers > 1)}"


def _duration_text(seconds: float) -> str:
    if seconds < 1:
        return "under a second"
    if seconds < 100:
        return f"about {seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"about {minutes} min" if minutes < 100 else f"about {minutes / 60:.1f} h"


def _fits_text(told: Forecast) -> str:
    """``fits an A3, does not fit an A2``: the best that the layouts of each machine allow."""
    best: dict[str, str] = {}
    for fit in told.fits:
        verdict = (
            "fits" if fit.fits else "does not fit" if not fit.obstacles else "cannot be cut for"
        )
        machine = fit.layout.machine.key.upper()
        best[machine] = min(best.get(machine, verdict), verdict, key=_VERDICTS.index)
    said = []
    for verdict in _VERDICTS:
        if machines := [machine for machine, each in best.items() if each == verdict]:
            joint = " and an " if verdict == "fits" else " or an "
            said.append(f"{verdict} an {joint.join(machines)}")
    is_cut = any(not fit.obstacles for fit in told.fits)
    return ", ".join(said) + (f" at {told.context:,} tokens" if is_cut else "")


def _echo_fits(told: Forecast) -> None:
    click.echo(
        f"fit, for sequences of {told.context:,} tokens{_context_text(told)}; "
        f"{GPU_MEMORY_UTILIZATION} of a card is used, {RESERVE_NBYTES / 2**30:.0f} GiB of that "
        "assumed for activations and graphs:"
    )
    header = ("", "", "weights a card", "left for KV", "KV a token", "tokens", "sequences")
    rows = [_fit_row(fit) for fit in told.fits if not fit.obstacles]
    if rows:
        echo_table([header, *rows])
    for fit in told.fits:
        at = f"  {fit.layout.machine.name}, {fit.layout.name}"
        if fit.obstacles:
            click.echo(f"{at}: cannot be cut: {'; '.join(fit.obstacles)}")
        for text in fit.advice:
            click.echo(f"{at}: {text}")


def _context_text(told: Forecast) -> str:
    allowed = told.model_context
    if allowed is None:
        return " (config.json names no limit)"
    return f" (config.json allows {allowed:,})" if told.context != allowed else ""


def _fit_row(fit: Fit) -> tuple[str, ...]:
    """Figures are a card's, tokens and sequences those of a data-parallel rank."""
    ranks = f"{fit.layout.data_parallel} x " if fit.layout.data_parallel > 1 else ""
    weights, room, token = fit.weights_nbytes or 0, fit.room_nbytes or 0, fit.kv_token_nbytes
    return (
        fit.layout.machine.name,
        fit.layout.name,
        f"{weights / 2**30:.1f} GiB",
        f"{room / 2**30:.1f} GiB" if room > 0 else f"{-room / 2**30:.1f} GiB short",
        f"{token:,} B",
        f"{ranks}{fit.tokens:,}",
        f"{ranks}{fit.sequences}" if fit.fits else "none: does not fit",
    )
