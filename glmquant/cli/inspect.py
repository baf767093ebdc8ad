"""``glmquant inspect``: what a model folder holds, by headers and JSON alone."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from glmquant.cli.options import json_option
from glmquant.errors import CheckpointError, GlmquantError

if TYPE_CHECKING:
    from glmquant.identify import Identity
    from glmquant.inventory import Inventory, Mtp, Share
    from glmquant.source import FolderSource
    from glmquant.survey import Finding, Survey

MOST_LINES = 12
"""Files and findings shown to people; --json lists all."""


@click.command(
    short_help="Say what a model folder holds: model, format, tool, MTP, what is missing.",
    epilog="Example: glmquant inspect GLM-4.6",
)
@click.argument("folder", metavar="[DIR]", required=False)
@json_option
@click.pass_context
def inspect(ctx: click.Context, folder: str | None, as_json: bool) -> None:
    """Say what DIR holds: model, release, format, tool, roles, MTP layer, and what is missing.

    DIR is a folder, or a model on a hub: a name that `glmquant models` lists, or hub:owner/name.

    Any format is named, quantized ones by the tool that made them. Headers and JSON are read, no
    weights. A broken file is listed, and the rest still told.

    DIR may be left out where the working directory is a model folder, or holds one.
    """
    ctx.meta["glmquant.json"] = as_json
    from glmquant.cli.folders import choose_folder, short_path
    from glmquant.cli.progress import emit
    from glmquant.cli.remote import headers_of
    from glmquant.identify import identify
    from glmquant.inventory import take_inventory
    from glmquant.source import FolderSource
    from glmquant.survey import survey

    with headers_of(folder, partial(choose_folder, verb="inspect"), as_json=as_json) as named:
        source = FolderSource(named.folder)
        found = survey(source)
        try:
            identity = identify(found)
        except CheckpointError as error:
            error.where = short_path(named.shown)
            raise
        stock = take_inventory(found)
        step = named.fetch_command or _next_step(
            source, short_path(named.shown), found, identity, stock
        )
    if as_json:
        shown = named.reference.text if named.reference else str(named.shown)
        emit("inspect", folder=shown, **report(found, identity, stock), next=step)
        return
    click.echo(f"{found.name}: {_headline(found, identity, stock)}")
    _echo_tables(found, stock)
    _echo_facts(found, identity, stock.mtp)
    _echo_findings("missing", stock.missing)
    _echo_findings("found", (*found.findings, *stock.findings))
    click.echo(f"next: {step}")


def report(found: Survey, identity: Identity, stock: Inventory) -> dict[str, Any]:
    """All of it as JSON fields; lengths in bytes."""
    marking, mtp = identity.marking, stock.mtp
    indexed = set(found.weight_map.values())
    return {
        "model": {
            "text": identity.model,
            "architecture": identity.architecture,
            "is_glm4_moe": identity.is_glm4_moe,
            "releases": list(identity.releases),
        },
        "format": {
            "text": identity.text,
            "name": marking.format.value,
            "detail": marking.detail,
            "tool": marking.tool,
            "evidence": identity.evidence,
        },
        "weights": _share_fields(stock.total),
        "roles": [{"role": role, **_share_fields(share)} for role, share in stock.roles.items()],
        "files": [
            {
                "file": name,
                "nbytes": found.files[name],
                "tensors": len(found.shards[name]) if name in found.shards else None,
                "in_index": name in indexed if indexed else None,
            }
            for name in weight_files(found)
        ],
        "mtp": {
            "announced": mtp.announced,
            "layers": list(mtp.layers),
            "files": list(mtp.files),
            "not_in_index": list(mtp.unindexed),
            "unread": list(mtp.unread),
            "kind": mtp.kind,
            **_share_fields(mtp.share),
            "has_embed_tokens": mtp.has_embed_tokens,
            "has_head": mtp.has_head,
        },
        "missing": [{"where": each.where, "what": each.what} for each in stock.missing],
        "findings": [
            {"where": each.where, "what": each.what} for each in (*found.findings, *stock.findings)
        ],
    }


def weight_files(found: Survey) -> list[str]:
    """The names of all files of weights, readable or not."""
    return sorted({*found.shards, *found.broken, *found.ggufs, *found.other_weights})


def _main_files(found: Survey) -> list[str]:
    """The weights that the format was told by: safetensors if there are any."""
    names = weight_files(found)
    for suffixes in ((".safetensors",), (".gguf",)):
        if chosen := [name for name in names if name.endswith(suffixes)]:
            return chosen
    return names


def _share_fields(share: Share) -> dict[str, Any]:
    return {
        "tensors": share.tensors,
        "nbytes": share.nbytes,
        "dtypes": dict(share.dtypes.most_common()),
    }


def _headline(found: Survey, identity: Identity, stock: Inventory) -> str:
    from glmquant.cli.progress import nbytes_text

    parts = [identity.model, identity.text]
    files = _main_files(found)
    if files:
        noun = "shard" if files[0].endswith(".safetensors") else "file"
        nbytes = stock.total.nbytes or sum(found.files[name] for name in files)
        text = f"{nbytes_text(nbytes)} in {len(files)} {noun}{'s' * (len(files) > 1)}"
        parts.append(text + f" ({len(found.broken)} unreadable)" * bool(found.broken))
    elif identity.marking.format.value != "no weights":
        parts.append("no weights")
    if stock.mtp.layers:
        layers = ", ".join(map(str, stock.mtp.layers))
        noun = "layer" if len(stock.mtp.layers) == 1 else "layers"
        parts.append(f"MTP {noun} {layers} in {_few(stock.mtp.files)}")
    elif files and stock.mtp.unread:
        parts.append(f"MTP layer in {_few(stock.mtp.unread)}, which cannot be read")
    elif found.shards and identity.is_glm4_moe:
        parts.append("no MTP layer" + " in what can be read" * bool(found.broken))
    return ", ".join(parts)


def _few(files: tuple[str, ...]) -> str:
    return " and ".join(files) if len(files) < 3 else f"{len(files)} shards"


def _echo_tables(found: Survey, stock: Inventory) -> None:
    from glmquant.cli.progress import nbytes_text
    from glmquant.cli.summary import echo_table

    if stock.roles:
        rows = [
            [role, _dtypes(share), str(share.tensors), nbytes_text(share.nbytes)]
            for role, share in stock.roles.items()
        ]
        echo_table([["role", "dtypes", "tensors", "bytes"], *rows])
        return
    files = _main_files(found)
    if files:
        shown = [[name, nbytes_text(found.files[name])] for name in files[:MOST_LINES]]
        echo_table([["file", "bytes"], *shown], left=1)
        _echo_more(len(files))


def _echo_facts(found: Survey, identity: Identity, mtp: Mtp) -> None:
    from glmquant.cli.progress import nbytes_text

    if mtp.layers:
        own = ["embed_tokens"] * mtp.has_embed_tokens + ["head"] * mtp.has_head
        facts = [
            f"{mtp.share.tensors} tensors",
            nbytes_text(mtp.share.nbytes),
            f"{mtp.kind} ({_dtypes(mtp.share)})",
            f"{' and '.join(own) or 'no embed_tokens or head'} of its own",
            f"{'not ' * bool(mtp.unindexed)}in the index" if found.weight_map else "no index",
            f"{'' if mtp.announced else 'not '}announced by config.json",
        ]
        click.echo(f"  MTP     {', '.join(facts)}")
    click.echo(f"  format  told by {identity.evidence}")


def _dtypes(share: Share) -> str:
    return " ".join(dtype for dtype, _ in share.dtypes.most_common())


def _echo_findings(title: str, findings: Iterable[Finding]) -> None:
    from glmquant.cli.summary import echo_table

    rows = [[each.where, each.what] for each in findings]
    if rows:
        click.echo(f"{title}:")
        echo_table(rows[:MOST_LINES])
        _echo_more(len(rows))


def _echo_more(count: int) -> None:
    if count > MOST_LINES:
        click.echo(f"  and {count - MOST_LINES} more: --json lists all")


def _next_step(
    source: FolderSource, shown: str, found: Survey, identity: Identity, stock: Inventory
) -> str:
    """The command that comes next, or what has to be done before one can."""
    from glmquant.checkpoint import open_checkpoint
    from glmquant.markings import FLOAT_FORMATS, MODELSLIM_FORMATS, Format

    if found.is_unfinished_run:
        return "the same glmquant w8a8 command once more: it goes on where it stopped"
    if not identity.is_glm4_moe and found.config:
        return "none: glmquant prepares GLM-4.5, 4.5-Air, 4.6 and 4.7 alone"
    form = identity.marking.format
    if form in (Format.GLMQUANT, *MODELSLIM_FORMATS):
        return shlex.join(["glmquant", "verify", shown])
    if form not in (*FLOAT_FORMATS, Format.NO_WEIGHTS, Format.UNREADABLE):
        return "none: it is quantized or held otherwise; w8a8 starts from the BF16 safetensors"
    try:
        open_checkpoint(source)
    except GlmquantError as error:
        return f"{error.hint or 'see above'} (w8a8 would refuse: {error.what})"
    words = ["glmquant", "plan", shown, *["--add-mtp"] * bool(stock.mtp.layers)]
    return shlex.join(words)
