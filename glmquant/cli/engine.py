"""``glmquant engine``: the environment in which vLLM runs a checkpoint on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from glmquant.cli.environments import (
    echo_beside,
    echo_plan,
    echo_removed,
    install_observer,
    state_text,
    torch_index_option,
)
from glmquant.cli.options import json_option

if TYPE_CHECKING:
    from glmquant.runtime.environment import Engine, InstallObserver
    from glmquant.runtime.matrix import Pair


@click.group(
    short_help="Install, show or remove vLLM for the CPU, which runs checkpoints.",
    epilog="Example: glmquant engine status",
)
def engine() -> None:
    """Keep the engine that runs a checkpoint on this machine's CPU.

    It is vLLM for the CPU with the quantization code of vllm-ascend, in a Python environment of its
    own in ~/.cache/glmquant/engine (or $GLMQUANT_ENGINE_HOME); nothing else on the machine changes.
    It needs Linux on x86-64 with AVX2, Python 3.11 and 2.7 GB. The loaders of `glmquant verify
    --load-matrix` lie beside it, 0.25 GB for each version of vllm-ascend.
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
@torch_index_option
@click.option(
    "--matrix",
    is_flag=True,
    help="The loaders of `glmquant verify --load-matrix`, too: vLLM and vllm-ascend of several "
    "versions, from their sources, an environment for each.",
)
@click.option(
    "--versions",
    metavar="0.23,0.30",
    help="With --matrix: which versions.  [default: 0.13,0.18,0.23,0.26,0.30]",
)
@click.option("--dry-run", is_flag=True, help="Print the steps, and write nothing.")
@json_option
@click.pass_context
def install(
    ctx: click.Context,
    python: Path | None,
    torch_index: str | None,
    matrix: bool,
    versions: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Build the environment; an interrupted install goes on with the first step that is not done.

    All packages are pinned. pip does the work, with its own settings for index, proxy and
    certificates. torch has to be the build for the CPU: if the index gives another one, it is
    removed again, and --torch-index says where the right one is.
    """
    ctx.meta["glmquant.json"] = as_json
    from glmquant.runtime.environment import install as run
    from glmquant.runtime.environment import plan_install

    pairs = _pairs(matrix, versions)
    if dry_run:
        echo_plan(plan_install(python, torch_index), as_json)
        for pair in pairs:
            _echo_pair_plan(pair, python, as_json)
        return
    observer = install_observer(as_json)
    try:
        built = run(python, torch_index, observer=observer)
        _echo_engine(built, as_json)
        for pair in pairs:
            _install_pair(pair, python, observer, as_json)
    except BaseException:
        observer.stop()
        raise


@engine.command(
    "status",
    short_help="Say whether there is one, and where.",
    epilog="Example: glmquant engine status",
)
@json_option
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """Say whether the environment is there, what it holds, and whether it runs on this processor.

    The loaders of `glmquant verify --load-matrix` follow, a line each. Exits with 0 whatever it
    finds.
    """
    ctx.meta["glmquant.json"] = as_json
    from glmquant.cli.folders import short_path
    from glmquant.cli.progress import emit, nbytes_text
    from glmquant.runtime.environment import status as ask
    from glmquant.runtime.environment.host import missing_here
    from glmquant.runtime.environment.layout import as_engine

    found = ask()
    built = as_engine(found.built) if found.built else None
    unsupported = missing_here()
    loaders = _loaders()
    if as_json:
        emit(
            "engine",
            **found.fields(),
            python=str(built.python) if built else None,
            vllm=str(built.vllm) if built else None,
            versions=built.versions if built else {},
            unsupported=unsupported,
            loaders=loaders,
        )
        return
    click.echo(f"engine: {state_text(found)}")
    if built:
        click.echo(f"versions: {_versions_text(built)}")
    size = f", {nbytes_text(found.nbytes)}" if found.nbytes else ""
    click.echo(f"folder: {short_path(found.home)}{size}")
    echo_beside(found)
    if unsupported:
        click.echo(f"processor: not supported ({unsupported}); x86-64 with AVX2 is")
    else:
        click.echo("processor: supported (x86-64 with AVX2)")
        if found.state != "complete" and not found.installer:
            click.echo("next: glmquant engine install")
    for each in loaders:
        size = f", {nbytes_text(each['nbytes'])}" if each["nbytes"] else ""
        click.echo(f"loader of vllm-ascend {each['vllm_ascend']}: {each['state']}{size}")


@engine.command(
    "remove",
    short_help="Remove the environment, and those of other versions.",
    epilog="Example: glmquant engine remove",
)
@json_option
@click.pass_context
def remove(ctx: click.Context, as_json: bool) -> None:
    """Remove every environment that install made, finished or not, of any version of glmquant.

    The loaders of --matrix are among them.

    Only folders that install has marked as its own are touched.
    """
    ctx.meta["glmquant.json"] = as_json
    from glmquant.runtime.environment import remove as run
    from glmquant.runtime.matrix import remove_pairs

    echo_removed((*remove_pairs(), *run()), as_json)


def _pairs(matrix: bool, versions: str | None) -> tuple[Pair, ...]:
    """The loaders that are asked for.

    Raises:
        UsageError: --versions without --matrix, or no version of ours.
    """
    if not matrix and versions is None:
        return ()
    from glmquant.errors import UsageError
    from glmquant.runtime.matrix import choose_pairs

    if not matrix:
        raise UsageError(
            "--versions says which loaders, and none is asked for",
            where=f"--versions {versions}",
            expected="--matrix beside it",
            hint=f"glmquant engine install --matrix --versions {versions}",
        )
    return choose_pairs(versions)


def _echo_pair_plan(pair: Pair, python: Path | None, as_json: bool) -> None:
    from glmquant.runtime.matrix import plan_pair

    if not as_json:
        click.echo(f"\nloader of vllm-ascend {pair.ascend}:")
    echo_plan(plan_pair(pair, python), as_json)


def _install_pair(
    pair: Pair, python: Path | None, observer: InstallObserver, as_json: bool
) -> None:
    from glmquant.cli.folders import short_path
    from glmquant.cli.progress import emit
    from glmquant.runtime.matrix import find_pair, install_pair

    if not as_json and find_pair(pair) is None:
        click.echo(f"loader of vllm-ascend {pair.ascend}:", err=True)
    built = install_pair(pair, python, observer)
    if as_json:
        emit("loader", version=pair.version, home=str(built.home), versions=built.versions)
    else:
        click.echo(f"loader of vllm-ascend {pair.ascend}: complete, {short_path(built.home)}")


def _loaders() -> list[dict[str, Any]]:
    """How it stands with the loader of each version."""
    from glmquant.runtime.matrix import PAIRS, pair_standing

    return [
        {
            "version": pair.version,
            "vllm": pair.vllm,
            "vllm_ascend": pair.ascend,
            "state": found.state,
            "home": str(found.home),
            "nbytes": found.nbytes,
        }
        for pair in PAIRS
        for found in (pair_standing(pair),)
    ]


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
