"""``glmquant fetch``: weights, or only the bytes that are needed, from a hub."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from glmquant.cli.fetch_check import check as check_folder
from glmquant.cli.fetch_report import echo_fetched, echo_plan, headline
from glmquant.cli.options import json_option
from glmquant.errors import UsageError

if TYPE_CHECKING:
    from glmquant.hubs.known import Reference


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
        check_folder(ctx, model, folder, workers, as_json)
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
                    click.echo(headline(plan), err=True)
                done = run(session, plan)
                store_pace(reference.hub.value, meter)
    if dry_run:
        echo_plan(plan, _again(ctx), as_json)
    else:
        echo_fetched(plan, done, as_json)


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
