"""``glmquant serve``: the command, script or container that serves a checkpoint."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from glmquant.cli.options import json_option

if TYPE_CHECKING:
    from glmquant.deploy.setup import Setup

MACHINES = ("a2", "a3", "2xa2", "pd-2p1d", "cpu")
PROFILES = ("throughput", "latency", "long-context", "agents", "tutorial")


@click.command(
    short_help="Print, write or run what serves a checkpoint on NPUs.",
    epilog="Example: glmquant serve GLM-4.6-W8A8-floatmtp --machine a3",
)
@click.argument("folder", metavar="[DIR]", required=False)
@click.option(
    "--machine",
    "target_name",
    type=click.Choice(MACHINES, case_sensitive=False),
    help="Atlas 800 A2 (8 x 64 GiB), A3 (16 x 64 GiB), two A2, prefill on two A3 and decode on two "
    "more, or the CPU engine of `glmquant engine install`.  [default: that which runs this]",
)
@click.option(
    "--engine",
    "engine_name",
    type=click.Choice(["vllm-ascend", "sglang"]),
    default="vllm-ascend",
    show_default=True,
    help="What serves.",
)
@click.option(
    "--version",
    "series",
    metavar="VERSION",
    help="Of vllm-ascend: 0.13, 0.18, 0.23, 0.26 or 0.30.  [default: 0.23, the last stable one]",
)
@click.option(
    "--profile",
    "profile_name",
    type=click.Choice(PROFILES),
    default="throughput",
    show_default=True,
    help="What it is tuned for. throughput: many users. latency: few. long-context: at most 4 with "
    "all that the model takes. agents: tool calls. tutorial: vllm-ascend's own command of 0.13.",
)
@click.option("--docker", "as_docker", is_flag=True, help="docker run, with the version's image.")
@click.option("--compose", "as_compose", is_flag=True, help="A compose file, with the same image.")
@click.option("--print", "to_print", is_flag=True, help="Print it.  [default]")
@click.option("--run", "to_run", is_flag=True, help="Run it here until Ctrl-C or SIGTERM.")
@click.option(
    "-o",
    "--output",
    "output",
    metavar="FOLDER",
    type=click.Path(file_okay=False),
    help="Write it: a script for each machine, or the compose file.",
)
@click.option(
    "--context",
    metavar="TOKENS",
    type=click.IntRange(1, 10_000_000),
    help="Length of a prompt with its answer.  [default: the profile's, or all the model takes]",
)
@click.option(
    "--num-speculative-tokens",
    "speculative_tokens",
    metavar="K",
    type=click.IntRange(0, 8),
    help="Tokens that the MTP layer drafts at a step; 0 for none.  [default: the profile's]",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Where one machine, or the proxy, listens.",
)
@click.option(
    "--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="On which port."
)
@click.option("--name", metavar="NAME", help="What requests call the model.  [default: glm]")
@click.option("--tool-parser", metavar="NAME", help="Of tool calls.  [default: this release's]")
@click.option(
    "--expert-parallel/--no-expert-parallel",
    "expert_parallel",
    default=None,
    help="Whole experts on a card, or slices of all.  [default: the profile's]",
)
@click.option(
    "--node",
    "hosts",
    metavar="ADDRESS",
    multiple=True,
    help="Address of each machine, in order, where there are several.  [default: taken from the "
    "environment when a script runs]",
)
@click.option("--nic", metavar="NAME", help="The interface they talk over.  [default: found there]")
@click.option("--mirror", is_flag=True, help="Take the image from the tutorial's mirror.")
@click.option(
    "--timeout",
    "limit_seconds",
    metavar="SECONDS",
    type=click.FloatRange(1.0),
    default=7200.0,
    show_default=True,
    help="How long --run waits for the engine to be ready.",
)
@json_option
@click.pass_context
def serve(
    ctx: click.Context,
    folder: str | None,
    target_name: str | None,
    engine_name: str,
    series: str | None,
    profile_name: str,
    as_docker: bool,
    as_compose: bool,
    to_print: bool,
    to_run: bool,
    output: str | None,
    context: int | None,
    speculative_tokens: int | None,
    host: str,
    port: int,
    name: str | None,
    tool_parser: str | None,
    expert_parallel: bool | None,
    hosts: tuple[str, ...],
    nic: str | None,
    mirror: bool,
    limit_seconds: float,
    as_json: bool,
) -> None:
    """Print, write or run what serves the W8A8 checkpoint in DIR.

    The environment and the command fit the machine, the version and the checkpoint: flags that a
    version does not know are left out, the parsers are this release's, drafting needs an MTP
    layer, and weights and KV cache have to find room. What does not fit is a warning; --run
    refuses it.

    DIR may be left out where the working directory holds one W8A8 checkpoint. Nothing is written
    into it. No command for NPUs was run on one.

    Exits with 0 after printing, also with warnings; 1 where --run refuses or its engine failed; 2
    with wrong options.
    """
    ctx.meta["glmquant.json"] = as_json
    from glmquant.errors import UsageError

    _require_one_way(
        {"--print": to_print, "--run": to_run, "-o": output is not None},
        {"--docker": as_docker, "--compose": as_compose, "--run": to_run},
    )
    if mirror and not (as_docker or as_compose):
        raise UsageError(
            "--mirror is for images",
            expected="--docker or --compose beside it",
            found="neither",
            hint="--docker --mirror",
        )
    from glmquant.cli.folders import choose_quantized, short_path
    from glmquant.cli.progress import emit
    from glmquant.deploy.candidate import open_candidate
    from glmquant.deploy.choose import choose_addresses
    from glmquant.deploy.container import image_problems
    from glmquant.deploy.files import render_files, require_outside, write_files
    from glmquant.deploy.nodes import Choices
    from glmquant.deploy.request import image_of, no_container, request_setup

    if target_name == "cpu" and (as_docker or as_compose):
        raise no_container()
    if output == "":
        raise UsageError("no folder is named", where="-o", expected="the path of a folder",
                         found="an empty text", hint="-o FOLDER")  # fmt: skip
    if math.isnan(limit_seconds):
        raise UsageError("that is no time", where="--timeout", expected="seconds", found="nan")
    choices = Choices(
        host=host,
        port=port,
        name=name,
        context=context,
        speculative_tokens=speculative_tokens,
        tool_parser=tool_parser,
        expert_parallel=expert_parallel,
    )
    candidate = open_candidate(choose_quantized(folder, "serve"))
    if output is not None:
        require_outside(Path(output), candidate.folder)
    setup = request_setup(candidate, engine_name, series, target_name, profile_name, choices)
    addresses = choose_addresses(setup.target, hosts, nic)
    if to_run:
        _run(setup, limit_seconds, as_json)
        return
    image = image_of(setup, is_mirrored=mirror) if as_docker or as_compose else None
    if image is not None:
        setup = setup.with_problems(image_problems(setup))
    if as_compose:
        setup.require_one_machine("--compose")
    files = render_files(
        setup, image, addresses, as_compose=as_compose, as_files=output is not None
    )
    written = write_files(Path(output), files) if output is not None else ()
    if as_json:
        emit("serve", **setup.fields(), files=files, written=[str(path) for path in written])
        return
    for path in written:
        click.echo(short_path(path))
    if not written:
        for number, (file, text) in enumerate(files.items()):
            if len(files) > 1:
                click.echo(f"{chr(10) * (number > 0)}# ---- {file}")
            click.echo(text, nl=False)
    _tell(setup)
    if setup.target.nodes == 1:
        click.echo(f"when it answers: glmquant smoke {setup.url}", err=True)
    if setup.target.nodes == 1 and setup.engine.name == "vllm-ascend":
        shown = shlex.quote(short_path(candidate.folder))
        click.echo(f"then: glmquant verify {shown} --url {setup.url}", err=True)
    if len(files) > 1 and not written:
        click.echo("note: the same command with -o FOLDER writes them", err=True)


def _tell(setup: Setup) -> None:
    """Notes and warnings, on stderr."""
    from glmquant.survey import printable

    for note in setup.notes:
        click.echo(f"note: {printable(note, 500)}", err=True)
    for problem in setup.problems:
        click.echo(f"warning: {printable(problem.text, 1000)}", err=True)


def _require_one_way(*groups: dict[str, bool]) -> None:
    """At most one option of each group.

    Raises:
        UsageError: Two.
    """
    from glmquant.errors import UsageError

    for group in groups:
        named = [option for option, is_named in group.items() if is_named]
        if len(named) > 1:
            raise UsageError(
                f"{' and '.join(named)} contradict each other",
                expected=f"one of {', '.join(group)}",
                found=" ".join(named),
                hint="leave one of them out",
            )


def _run(setup: Setup, limit_seconds: float, as_json: bool) -> None:
    from glmquant.cli.progress import emit, progress
    from glmquant.deploy.run import run

    _tell(setup)

    def ready(url: str, log: str) -> None:
        if as_json:
            emit("ready", url=url, log=log)
        else:
            click.echo(f"ready: {url}/v1, model {setup.served_name}")
            click.echo(f"log: {log}", err=True)
            click.echo(f"next: glmquant smoke {url}", err=True)

    code = 0
    try:
        with progress(as_json) as observer:
            run(setup, limit_seconds=limit_seconds, observer=observer, ready=ready)
    except KeyboardInterrupt:
        code = 130
    if as_json:
        emit("ended")
    else:
        click.echo("ended: no process of it is left")
    click.get_current_context().exit(code)
