"""``glmquant engine``: the environment in which vLLM runs a checkpoint on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from glmquant.cli.environments import echo_plan, install_observer
from glmquant.cli.options import json_option

if TYPE_CHECKING:
    from glmquant.runtime.environment import Engine


@click.group(
    short_help="Install, show or remove vLLM for the CPU, which runs checkpoints.",
    epilog="Example: glmquant engine status",
)
def engine() -> None:
    """Keep the engine that runs a checkpoint on this machine's CPU.

    It is vLLM for the CPU with the quantization code of vllm-ascend, in a Python environment of its
    own in ~/.cache/glmquant/engine (or $GLMQUANT_ENGINE_HOME); nothing else on the machine changes.
    It needs Linux on x86-64 with AVX2, Python 3.11 and 2.7 GB.
    """


@engine.command(
    "install",
    short_help="Build the environment, or go on with it.",
    epilog="Example: glmquant engine install",
)
@click.option(
    "--python",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="The Python 3.11 to build with.  [default: the one that runs glmquant]",
)
@click.option(
    "--torch-index",
    metavar="URL",
    envvar="GLMQUANT_TORCH_INDEX",
    show_envvar=True,
    help="The package index that torch alone is taken from: the index of PyTorch's CPU builds or a "
    "mirror of it, where pip's own has CUDA builds.",
)
@click.option("--dry-run", is_flag=True, help="Print the steps, and write nothing.")
@json_option
@click.pass_context
def install(
    ctx: click.Context, python: Path | None, torch_index: str | None, dry_run: bool, as_json: bool
) -> None:
    """Build the environment; an interrupted install goes on with the first step that is not done.

    All packages are pinned. pip does the work, with its own settings for index, proxy and
    certificates. torch has to be the build for the CPU: if the index gives another one, it is
    removed again, and --torch-index says where the right one is.
    """
    ctx.meta["glmquant.json"] = as_json
    from glmquant.runtime.environment import install as run
    from glmquant.runtime.environment import plan_install

    if dry_run:
        echo_plan(plan_install(python, torch_index), as_json)
        return
    observer = install_observer(as_json)
    try:
        built = run(python, torch_index, observer=observer)
    except BaseException:
        observer.stop()
        raise
    _echo_engine(built, as_json)


@engine.command(
    "status",
    short_help="Say whether there is one, and where.",
    epilog="Example: glmquant engine status",
)
@json_option
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """Say whether the environment is there, what it holds, and whether it runs on this processor.

    Exits with 0 whatever it finds.
    """
    ctx.meta["glmquant.json"] = as_json
    from glmquant.cli.folders import short_path
    from glmquant.cli.progress import emit, nbytes_text
    from glmquant.runtime.environment import status as ask

    found = ask()
    if as_json:
        emit("engine", **found.fields())
        return
    told = {
        "complete": "complete",
        "unfinished": f"unfinished, at the step {found.next_step}",
        "absent": "not installed",
        "foreign": "not installed: the folder holds files of somebody else",
    }
    click.echo(f"engine: {told[found.state]}")
    if found.engine:
        click.echo(f"versions: {_versions_text(found.engine)}")
    size = f", {nbytes_text(found.nbytes)}" if found.nbytes else ""
    click.echo(f"folder: {short_path(found.home)}{size}")
    for path in found.others:
        click.echo(f"of another version of glmquant: {short_path(path)}")
    if found.installer:
        click.echo(f"at work: process {found.installer} installs or removes")
    if found.unsupported:
        click.echo(f"processor: not supported ({found.unsupported}); x86-64 with AVX2 is")
    else:
        click.echo("processor: supported (x86-64 with AVX2)")
        if found.state != "complete" and not found.installer:
            click.echo("next: glmquant engine install")


@engine.command(
    "remove",
    short_help="Remove the environment, and those of other versions.",
    epilog="Example: glmquant engine remove",
)
@json_option
@click.pass_context
def remove(ctx: click.Context, as_json: bool) -> None:
    """Remove every environment that install made, finished or not, of any version of glmquant.

    Only folders that install has marked as its own are touched.
    """
    ctx.meta["glmquant.json"] = as_json
    from glmquant.cli.folders import short_path
    from glmquant.cli.progress import emit, nbytes_text
    from glmquant.runtime.environment import remove as run

    removed = run()
    if as_json:
        emit(
            "removed", folders=[{"home": str(each.home), "nbytes": each.nbytes} for each in removed]
        )
        return
    for each in removed:
        click.echo(f"removed: {short_path(each.home)}, {nbytes_text(each.nbytes)}")
    if not removed:
        click.echo("nothing to remove: there is no environment")


def _versions_text(engine: Engine) -> str:
    return ", ".join(f"{name} {version}" for name, version in engine.versions.items())


def _echo_engine(built: Engine, as_json: bool) -> None:
    from glmquant.cli.folders import short_path
    from glmquant.cli.progress import emit

    if as_json:
        paths = {"home": built.home, "python": built.python, "vllm": built.vllm}
        fields = {name: str(path) for name, path in paths.items()}
        emit("engine", state="complete", versions=built.versions, **fields)
    else:
        click.echo(f"engine: complete, {_versions_text(built)}")
        click.echo(f"folder: {short_path(built.home)}")
