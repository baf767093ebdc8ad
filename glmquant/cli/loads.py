"""What the loaders of vllm-ascend's versions did, for people: a table and the reasons below it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from glmquant.verify.loads.matrix import Answer, LoadMatrix


def echo_loads(loads: LoadMatrix) -> None:
    """Print it on stdout.

    Args:
        loads: What they did.
    """
    from glmquant.cli.summary import echo_table
    from glmquant.survey import printable

    reasons: dict[str, int] = {}
    rows = [["loaded on this CPU by", *(row.pair.version for row in loads.rows)]]
    ways = list(dict.fromkeys(answer.way for row in loads.rows for answer in row.answers))
    for way in ways:
        words = [way.text]
        for row in loads.rows:
            found = [answer for answer in row.answers if answer.way == way]
            words.append(_word(found[0], reasons) if found else "-")
        rows.append(words)
    echo_table(rows, left=len(rows[0]))
    for why, number in reasons.items():
        click.echo(f"    [{number}] {printable(why, 600)}")
    for row in loads.rows:
        if row.failure:
            click.echo(f"    {row.pair.version}: {printable(row.failure, 600)}")
        if row.failure is None and any(answer.differs for answer in row.answers):
            click.echo(f"    {row.pair.version}: the table above says otherwise; this was measured")
    if loads.copy:
        click.echo(f"    {loads.copy}")
    if loads.absent:
        names = ", ".join(pair.version for pair in loads.absent)
        click.echo(f"    not installed: {names} (glmquant engine install --matrix)")


def _word(answer: Answer, reasons: dict[str, int]) -> str:
    """The verdict and the numbers of its reasons."""
    whys = [answer.load.stopped] if answer.load.stopped else []
    if answer.said:
        whys.append(f"{answer.meaning}: {answer.said}" if answer.meaning else answer.said)
    if answer.lost:
        names = [
            each.name if each.elements == each.of else f"{each.name} ({each.elements} of {each.of})"
            for each in answer.lost
        ]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        whys.append(f"no tensor fills {', '.join(names[:3])}{more}")
    marks = [f" [{reasons.setdefault(why, len(reasons) + 1)}]" for why in whys]
    return answer.verdict + "".join(marks)
