"""``glmquant engine``: the environment in which vLLM runs a checkpoint on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from glmquant.cli.options import json_option

if TYPE_CHECKING:
    from glmquant.runtime.environment import Engine, InstallObserver, InstallPlan


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
        _echo_plan(plan_install(python, torch_index), as_json)
        return
    observer = _observer(as_json)
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


def _echo_plan(plan: InstallPlan, as_json: bool) -> None:
    from glmquant.cli.folders import short_path
    from glmquant.cli.progress import emit, nbytes_text
    from glmquant.cli.summary import echo_table

    steps = plan.pins.steps()
    if as_json:
        emit(
            "plan",
            home=str(plan.layout.home),
            python=str(plan.python),
            torch_index=plan.torch_index,
            steps=[
                {"name": step.name, "nbytes": step.nbytes, "done": step.name in plan.done}
                for step in steps
            ],
            needed_nbytes=plan.needed_nbytes,
            free_nbytes=plan.free_nbytes,
            is_complete=plan.is_complete,
        )
        return
    rows = [["step", "", "about"]]
    for step in steps:
        size = nbytes_text(step.nbytes) if step.nbytes else "-"
        rows.append([step.name, step.what, "done" if step.name in plan.done else size])
    echo_table(rows, left=2)
    click.echo(f"folder: {short_path(plan.layout.home)}")
    click.echo(f"python: {short_path(plan.python)}")
    index = plan.torch_index or "pip's own; it has to have the build for the CPU (--torch-index)"
    click.echo(f"index of torch: {index}")
    if plan.is_complete:
        click.echo("all of it is there; nothing was written")
        return
    click.echo(
        f"disk: {nbytes_text(plan.needed_nbytes)} needed with downloads, "
        f"{nbytes_text(plan.free_nbytes)} free; {nbytes_text(plan.pins.nbytes)} stay"
    )
    click.echo("nothing was written")


def _observer(as_json: bool) -> InstallObserver:
    """One line a step on stderr, or JSON lines on stdout."""
    from glmquant.cli.progress import emit, nbytes_text
    from glmquant.runtime.environment import InstallObserver
    from glmquant.runtime.environment.pins import Step

    class Lines(InstallObserver):
        is_open = False

        def start(self, step: Step, number: int, count: int) -> None:
            self.is_open = True
            click.echo(f"{number}/{count} {step.name}: {step.what} ... ", err=True, nl=False)

        def finish(self, step: Step, seconds: float, nbytes: int) -> None:
            self.is_open = False
            size = f", {nbytes_text(nbytes)}" if nbytes > 1_000_000 else ""
            click.echo(f"{seconds:.1f} s{size}", err=True)

        def stop(self) -> None:
            if self.is_open:
                click.echo("not done", err=True)

    class JsonLines(InstallObserver):
        def start(self, step: Step, number: int, count: int) -> None:
            emit("step", name=step.name, number=number, count=count)

        def finish(self, step: Step, seconds: float, nbytes: int) -> None:
            emit("step_done", name=step.name, seconds=round(seconds, 1), nbytes=nbytes)

    return JsonLines() if as_json else Lines()
