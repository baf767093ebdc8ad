"""What the loaders of vllm-ascend's versions did, for people: a table and the reasons below it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from glmquant.verify.loads.matrix import LoadMatrix


def echo_loads(loads: LoadMatrix) -> None:
    """Print it on stdout.

    Args:
        loads: What they did.
    """
    from glmquant.cli.summary import echo_table
    from glmquant.survey import printable

    rows, reasons = loads.table()
    echo_table(rows, left=len(rows[0]))
    for number, why in enumerate(reasons, 1):
        click.echo(f"    [{number}] {printable(why, 600)}")
    for note in loads.notes:
        click.echo(f"    {printable(note, 600)}")
