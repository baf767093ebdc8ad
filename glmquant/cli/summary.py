"""What each role becomes, as rows for people and for JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

import click

from glmquant.cli.progress import nbytes_text
from glmquant.forecast import RoleTotal, role_totals
from glmquant.manifest import TensorRecord
from glmquant.plan import Plan


def role_rows(totals: Iterable[RoleTotal]) -> list[dict[str, Any]]:
    """One row a role: scheme, tensors, bytes before and after."""
    return [
        {
            "role": total.role.value,
            "scheme": total.scheme.value,
            "tensors": total.tensors,
            "source_nbytes": total.source_nbytes,
            "output_nbytes": total.output_nbytes,
        }
        for total in totals
    ]


def measured_rows(plan: Plan, records: Iterable[TensorRecord]) -> list[dict[str, Any]]:
    """The same rows with the SQNR of a run's tensors."""
    figures = {record.name: record.sqnr_db for record in records}
    sqnr: dict[str, list[float]] = {}
    for shard in plan.shards:
        for step in shard.steps:
            value = figures.get(step.outputs[0].name)
            if value is not None:
                sqnr.setdefault(step.role.value, []).append(value)
    rows = role_rows(role_totals(plan))
    for row in rows:
        if values := sqnr.get(row["role"]):
            row["sqnr_db_median"] = round(median(values), 2)
            row["sqnr_db_least"] = round(min(values), 2)
    return rows


def echo_roles(rows: Iterable[dict[str, Any]]) -> None:
    """The rows as a table on stdout."""
    header = ["role", "scheme", "tensors", "BF16", "written", "SQNR median", "least"]
    lines = [
        [
            row["role"],
            row["scheme"],
            str(row["tensors"]),
            nbytes_text(row["source_nbytes"]),
            nbytes_text(row["output_nbytes"]),
            f"{row['sqnr_db_median']:.2f} dB" if "sqnr_db_median" in row else "",
            f"{row['sqnr_db_least']:.2f} dB" if "sqnr_db_least" in row else "",
        ]
        for row in rows
    ]
    if not any(line[5] for line in lines):
        lines = [line[:5] for line in lines]
        header = header[:5]
    echo_table([header, *lines])


def echo_table(rows: Sequence[Sequence[str]], left: int = 2) -> None:
    """Columns on stdout, the first ``left`` of them to the left, the rest to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            text.ljust(width) if column < left else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo(("  " + "  ".join(cells)).rstrip())
