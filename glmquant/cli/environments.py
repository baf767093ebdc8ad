"""What the verbs of environments share: the plan, a line a step, how it stands, what is removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from glmquant.runtime.environment import InstallObserver, InstallPlan, Removed, Standing

torch_index_option = click.option(
    "--torch-index",
    metavar="URL",
    envvar="GLMQUANT_TORCH_INDEX",
    show_envvar=True,
    help="The package index that torch alone is taken from: the index of PyTorch's CPU builds or a "
    "mirror of it, where pip's own has CUDA builds.",
)


def echo_plan(plan: InstallPlan, as_json: bool) -> None:
    """Print what an install would do.

    Args:
        plan: It.
        as_json: As an event.
    """
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
    if any(step.name == "torch" for step in steps):
        own = "pip's own; it has to have the build for the CPU (--torch-index)"
        click.echo(f"index of torch: {plan.torch_index or own}")
    if plan.is_complete:
        click.echo("all of it is there; nothing was written")
        return
    click.echo(
        f"disk: {nbytes_text(plan.needed_nbytes)} needed with downloads, "
        f"{nbytes_text(plan.free_nbytes)} free; {nbytes_text(plan.pins.nbytes)} stay"
    )
    click.echo("nothing was written")


def install_observer(as_json: bool) -> InstallObserver:
    """One line a step on stderr, or JSON lines on stdout.

    Args:
        as_json: Which of them.
    """
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


def state_text(found: Standing) -> str:
    """How far an environment is.

    Args:
        found: How it stands with it.
    """
    return {
        "complete": "complete",
        "unfinished": f"unfinished, at the step {found.next_step}",
        "absent": "not installed",
        "foreign": "not installed: the folder holds files of somebody else",
    }[found.state]


def echo_beside(found: Standing, indent: str = "") -> None:
    """Print what is there beside an environment: those of other versions, and who is at work.

    Args:
        found: How it stands with it.
        indent: What each line begins with.
    """
    from glmquant.cli.folders import short_path

    for path in found.others:
        click.echo(f"{indent}of another version of glmquant: {short_path(path)}")
    if found.installer:
        click.echo(f"{indent}at work: process {found.installer} installs or removes")


def echo_removed(removed: Sequence[Removed], as_json: bool) -> None:
    """Print which environments are gone.

    Args:
        removed: Them.
        as_json: As an event.
    """
    from glmquant.cli.folders import short_path
    from glmquant.cli.progress import emit, nbytes_text

    if as_json:
        emit(
            "removed", folders=[{"home": str(each.home), "nbytes": each.nbytes} for each in removed]
        )
        return
    for each in removed:
        click.echo(f"removed: {short_path(each.home)}, {nbytes_text(each.nbytes)}")
    if not removed:
        click.echo("nothing to remove: there is no environment")
