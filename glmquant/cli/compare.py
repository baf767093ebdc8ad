"""``glmquant compare``: two runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from glmquant.cli.options import json_option

if TYPE_CHECKING:
    from glmquant.runs import Run
    from glmquant.suites.compare import Comparison, Row


@click.command(
    short_help="Hold two measured runs against each other.",
    epilog="Example: glmquant compare GLM-4.6 GLM-4.6-W8A8-floatmtp",
)
@click.argument("a", metavar="A", type=click.Path(path_type=Path))
@click.argument("b", metavar="B", type=click.Path(path_type=Path))
@json_option
@click.pass_context
def compare(ctx: click.Context, a: Path, b: Path, as_json: bool) -> None:
    """Put the figures of two runs side by side, and say whether they differ by more than chance.

    A and B are files that bench or eval wrote, or folders with .glmquant/results in them: then the
    newest runs of each suite and data set that both have are compared. Answers to the same
    questions are compared question by question (McNemar's exact test), others by their counts
    (Fisher's exact test), means of requests by permuting them. "No difference shown" says that so
    many items cannot tell; the interval says how large a difference may still be.

    Exits with 0 whatever it finds.
    """
    ctx.meta["glmquant.json"] = as_json
    from glmquant.cli.progress import emit
    from glmquant.errors import UsageError
    from glmquant.suites.compare import compare_runs, pair_runs
    from glmquant.survey import printable

    for path in (a, b):
        if not path.exists():
            raise UsageError(
                "there is no such file or folder",
                where=str(path),
                expected="a run's file, or a folder with .glmquant/results",
                hint="glmquant eval URL --checkpoint DIR writes one",
            )
    ctx.meta["glmquant.starts_anew"] = True
    pairs, left_out = pair_runs(a, b)
    for note in left_out:
        click.echo(f"note: {printable(note, 300)}", err=True)
    for one, other in pairs:
        found = compare_runs(one, other)
        if as_json:
            emit(
                "comparison",
                a=_told(one),
                b=_told(other),
                rows=[row.fields() for row in found.rows],
                notes=list(found.notes),
            )
        else:
            _echo(found)


def _echo(found: Comparison) -> None:
    from glmquant.cli.summary import echo_table
    from glmquant.survey import printable

    click.echo(f"A: {_line(found.a)}")
    click.echo(f"B: {_line(found.b)}")
    header = ["figure", "A", "B", "B - A", "95 %", "p", "", "items"]
    echo_table([header, *(_cells(row) for row in found.rows)], left=1)
    for note in found.notes:
        click.echo(f"note: {printable(note, 300)}")


def _cells(row: Row) -> list[str]:
    from glmquant.results import figure_text
    from glmquant.survey import printable

    unit = f" {row.unit}" if row.unit else ""
    figure = printable(f"{row.dataset} {row.metric}", 60)
    values = [figure, f"{figure_text(row.a)}{unit}", f"{figure_text(row.b)}{unit}"]
    items = " and ".join(f"{count:,}" for count in row.items)
    if row.difference is None:
        return [*values, f"{row.b - row.a:+.4g}", "", "", row.verdict, items]
    low, high = row.difference.interval
    p_value = row.difference.p_value
    p_text = f"{p_value:.3f}" if p_value >= 0.001 else "< 0.001"
    spread = f"{low:+.3g} to {high:+.3g}"
    return [*values, f"{row.difference.value:+.4g}", spread, p_text, row.verdict, items]


def _line(run: Run) -> str:
    from glmquant.survey import printable

    suite = f"{run.suite} {run.suite_version}".strip()
    parts = (run.model, suite, run.dataset, run.engine, run.machine, run.date)
    return printable(", ".join(part for part in parts if part), 300)


def _told(run: Run) -> dict[str, object]:
    kept = {"suite", "suite_version", "mode", "dataset", "date", "model", "engine", "machine"}
    return run.model_dump(mode="json", include=kept)
