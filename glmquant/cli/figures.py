"""What a suite measured, for people and for JSON."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from glmquant.results import Result
    from glmquant.suites.run import Finished


def show_run(finished: Finished, notes: list[str], as_json: bool) -> None:
    """Print the figures, beside what others have published, and where all of it is kept.

    Args:
        finished: The run.
        notes: What a reader has to know.
        as_json: As an event.
    """
    from glmquant.cli.folders import short_path
    from glmquant.cli.progress import emit
    from glmquant.cli.summary import echo_table
    from glmquant.suites.references import difference_from, references_of
    from glmquant.survey import printable

    run = finished.run
    rows = [["figure", "", "value", "95 %", "items"]]
    published: list[dict[str, Any]] = []
    for result in run.results:
        rows.append(_cells(result))
        for reference in references_of(result.dataset, result.metric):
            difference = difference_from(reference, result)
            p_value = None if difference is None else difference.p_value
            published.append(reference.model_dump() | {"p_value": p_value})
            low, high = reference.interval
            rows.append(
                [
                    f"  published: {reference.model}, {reference.machine}",
                    "of other items" if p_value is None else _difference_text(p_value),
                    f"{reference.value:g} {reference.unit}",
                    f"{low:g} to {high:g}",
                    f"{reference.items:,}",
                ]
            )
    if as_json:
        emit(
            "run",
            file=str(finished.path),
            folder=str(finished.folder),
            published=published,
            notes=notes,
            **run.model_dump(mode="json", exclude={"items", "samples", "format"}),
        )
        return
    echo_table(rows, left=2)
    for note in notes:
        click.echo(f"note: {printable(note, 400)}")
    click.echo(f"kept: {short_path(finished.path)}; all that {run.suite} wrote is beside it")
    click.echo(
        f"next: glmquant compare {shlex.quote(short_path(finished.path))} RUN   # another one"
    )


def _cells(result: Result) -> list[str]:
    from glmquant.results import figure_text
    from glmquant.survey import printable

    spread = " to ".join(map(figure_text, result.interval or ()))
    return [
        printable(f"{result.dataset} {result.metric}", 60),
        "",
        f"{figure_text(result.value)} {result.unit}".rstrip(),
        spread,
        f"{result.items:,}" if result.items else "",
    ]


def _difference_text(p_value: float) -> str:
    from glmquant.suites.compare import LEAST_P

    return "no difference shown" if p_value >= LEAST_P else f"differs, p {p_value:.2g}"
