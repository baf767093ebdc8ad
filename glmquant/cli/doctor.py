"""``glmquant doctor``: is this machine fit to quantize, verify and serve?"""

from __future__ import annotations

import math
import os
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from glmquant.cli.options import json_option

if TYPE_CHECKING:
    from glmquant.doctor.checks import Check


@click.command(
    short_help="Say whether this machine is fit, and what to do where it is not.",
    epilog="Example: glmquant doctor --offline",
)
@click.argument("folder", metavar="[DIR]", default=".", type=click.Path(path_type=Path))
@click.option(
    "--python",
    metavar="PATH",
    help="The Python whose packages are looked at.  [default: the one that runs glmquant]",
)
@click.option("--offline", "is_offline", is_flag=True, help="Ask no hub.")
@click.option(
    "--timeout",
    "limit_seconds",
    metavar="SECONDS",
    type=click.FloatRange(0.1, 600.0),
    default=10.0,
    show_default=True,
    help="How long npu-smi, and each hub, may take.",
)
@json_option
@click.pass_context
def doctor(
    ctx: click.Context,
    folder: Path,
    python: str | None,
    is_offline: bool,
    limit_seconds: float,
    as_json: bool,
) -> None:
    """Look at all that large checkpoints and vllm-ascend need, with a remedy each.

    Python and its packages, by their metadata alone, and which of them are known to clash; NPUs and
    their memory by npu-smi, driver and CANN; memory, shared memory, file descriptors, the disk and
    file system of DIR, or of the working directory; and whether the hubs answer, by the usual
    variables for proxies, certificates and mirrors. No token is sent. Nothing is imported, written
    or changed.

    Exits with 0 whatever it finds: most machines lack something on purpose.
    """
    ctx.meta["glmquant.json"] = as_json
    from glmquant.cli.progress import emit
    from glmquant.doctor.checks import verdict
    from glmquant.doctor.run import Wish, diagnose, next_step

    if math.isnan(limit_seconds):
        raise click.BadParameter("it is no number to wait for", param_hint="--timeout")
    checks = diagnose(Wish(folder, _interpreter(python), is_offline, limit_seconds), os.environ)
    step = next_step(checks)
    if as_json:
        emit(
            "doctor",
            verdict=verdict(checks),
            checks=[check.fields() for check in checks],
            next=step,
        )
        return
    width = max(len(check.name) for check in checks)
    for group, members in groupby(checks, lambda check: check.group):
        click.echo(f"{group}:")
        for check in members:
            _echo_check(check, width)
    click.echo(f"verdict: {verdict(checks)}")
    click.echo(f"next: {step}")


def _interpreter(named: str | None) -> Path | None:
    """A path by its whole name, its links kept: they tell an environment; a bare name by PATH."""
    if named is None or "/" not in named:
        return Path(named) if named else None
    return Path(named).absolute()


def _echo_check(check: Check, width: int) -> None:
    from glmquant.survey import printable

    click.echo(f"  {check.state.value:<7}  {check.name:<{width}}  {printable(check.text, 300)}")
    for key, text in (("remedy", check.remedy), ("source", check.source)):
        if text:
            click.echo(f"  {'':<7}  {'':<{width}}  {key}: {printable(text, 300)}")
