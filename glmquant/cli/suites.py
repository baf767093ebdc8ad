"""``glmquant suites``: the environments of the suites that bench and eval run."""

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
    from glmquant.runtime.environment import Standing
    from glmquant.suites.task import Installed, Suite


@click.group(
    short_help="Install, show or remove the suites that bench and eval run.",
    epilog="Example: glmquant suites status",
)
def suites() -> None:
    """Keep the suites of measurements, each in a Python environment of its own.

    They lie in ~/.cache/glmquant/suites (or $GLMQUANT_SUITES_HOME); nothing else on the machine
    changes. Each needs Python 3.11; AISBench takes 1.9 GB, lm-eval 0.7 GB. A suite that is
    installed elsewhere is found by its command on PATH, or named with --python.
    """


@suites.command(
    "install",
    short_help="Build the environment of a suite, or go on with it.",
    epilog="Example: glmquant suites install aisbench",
)
@click.argument("name", metavar="SUITE")
@click.option(
    "--python",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="The Python 3.11 to build with.  [default: the one that runs glmquant, or python3.11]",
)
@torch_index_option
@click.option("--dry-run", is_flag=True, help="Print the steps, and write nothing.")
@json_option
@click.pass_context
def install(
    ctx: click.Context,
    name: str,
    python: Path | None,
    torch_index: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Build the environment; an interrupted install goes on with the first step that is not done.

    All packages are pinned. pip does the work, with its own settings for index, proxy and
    certificates.
    """
    ctx.meta["glmquant.json"] = as_json
    from glmquant.cli.folders import short_path
    from glmquant.cli.progress import emit
    from glmquant.suites import environment

    suite = _suite(name)
    if dry_run:
        echo_plan(environment.plan(suite, python, torch_index), as_json)
        return
    observer = install_observer(as_json)
    try:
        built = environment.install(suite, python, torch_index, observer=observer)
    except BaseException:
        observer.stop()
        raise
    if as_json:
        python_text = str(built.python)
        emit("suite", suite=suite.name, state="complete", version=built.version, python=python_text)
    else:
        click.echo(f"{suite.name}: complete, {suite.package} {built.version}")
        click.echo(f"python: {short_path(built.python)}")


@suites.command(
    "status",
    short_help="Say which there are, and where.",
    epilog="Example: glmquant suites status",
)
@json_option
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """Say which suites there are: in environments of their own, or found elsewhere.

    Exits with 0 whatever it finds.
    """
    ctx.meta["glmquant.json"] = as_json
    from glmquant.suites.environment import RECIPES, how_it_stands
    from glmquant.suites.finding import find
    from glmquant.suites.known import SUITES

    echo = _emit_status if as_json else _echo_status
    for suite in SUITES.values():
        echo(suite, find(suite), how_it_stands(suite) if suite.name in RECIPES else None)


@suites.command(
    "remove",
    short_help="Remove the environments of all suites, or of one.",
    epilog="Example: glmquant suites remove aisbench",
)
@click.argument("name", metavar="[SUITE]", required=False)
@json_option
@click.pass_context
def remove(ctx: click.Context, name: str | None, as_json: bool) -> None:
    """Remove every environment that install made, finished or not, of any version of glmquant.

    Only folders that install has marked as its own are touched.
    """
    ctx.meta["glmquant.json"] = as_json
    from glmquant.suites import environment
    from glmquant.suites.known import SUITES

    chosen = [_suite(name)] if name else list(SUITES.values())
    chosen = [suite for suite in chosen if name or suite.name in environment.RECIPES]
    echo_removed([each for suite in chosen for each in environment.remove_own(suite)], as_json)


def _suite(name: str) -> Suite:
    """The suite of that name.

    Raises:
        UsageError: There is none.
    """
    from glmquant.errors import UsageError
    from glmquant.suites.known import SUITES
    from glmquant.survey import printable

    if name not in SUITES:
        raise UsageError(
            "there is no such suite", expected=f"one of {', '.join(SUITES)}", found=printable(name)
        )
    return SUITES[name]


def _emit_status(suite: Suite, found: Installed | None, standing: Standing | None) -> None:
    from glmquant.cli.progress import emit

    none: dict[str, Any] = dict.fromkeys(("home", "state", "next_step", "installer"))
    none |= {"nbytes": 0, "others": []}
    emit(
        "suite",
        suite=suite.name,
        version=found.version if found else None,
        python=str(found.python) if found else None,
        is_ours=bool(found and found.is_ours),
        **(standing.fields() if standing else none),
    )


def _echo_status(suite: Suite, found: Installed | None, standing: Standing | None) -> None:
    from glmquant.cli.folders import short_path
    from glmquant.cli.progress import nbytes_text
    from glmquant.suites.environment import how_to_install

    if standing is None:
        told = "found" if found else "not found"
    else:
        told = state_text(standing)
        if found and not found.is_ours:
            told += "; found elsewhere"
    click.echo(f"{suite.name}: {told}{f', {suite.package} {found.version}' if found else ''}")
    if found:
        click.echo(f"  python: {short_path(found.python)}")
    if standing:
        if standing.nbytes:
            click.echo(f"  folder: {short_path(standing.home)}, {nbytes_text(standing.nbytes)}")
        echo_beside(standing, "  ")
        if standing.installer:
            return
    if not found:
        for line in how_to_install(suite):
            click.echo(f"  {line}")
