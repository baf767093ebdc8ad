"""What a plan will write and what a run wrote, as rows for people and for JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click

from glmquant.cli.folders import short_path
from glmquant.cli.progress import nbytes_text
from glmquant.execute import Outcome
from glmquant.plan import Plan


def plan_fields(plan: Plan, source: Path, target: Path) -> dict[str, Any]:
    """A plan as JSON fields; lengths in bytes, the manifest's an upper bound."""
    return {
        "source": str(source),
        "target": str(target),
        "recipe": plan.recipe.name,
        "plan": plan.digest,
        "mtp_layers": plan.mtp_count,
        "source_nbytes": plan.source_nbytes,
        "weights_nbytes": plan.weights_nbytes,
        "manifest_nbytes_bound": plan.manifest_nbytes,
        "files": file_rows(plan),
        "roles": role_rows(plan),
        "notes": list(plan.notes),
    }


def file_rows(plan: Plan) -> list[dict[str, Any]]:
    """One row for each file but the manifest, whose length the plan only bounds."""
    sizes = {shard.file: shard.nbytes for shard in plan.shards} | plan.side_files
    sizes |= {name: len(data) for name, data in plan.small_files.items()}
    return [{"file": name, "nbytes": nbytes} for name, nbytes in sizes.items()]


def role_rows(plan: Plan, outcome: Outcome | None = None) -> list[dict[str, Any]]:
    """One row a role: scheme, tensors, bytes before and after, SQNR where there was a run."""
    figures = {record.name: record.sqnr_db for record in outcome.records} if outcome else {}
    rows: dict[str, dict[str, Any]] = {}
    sqnr: dict[str, list[float]] = {}
    for shard in plan.shards:
        for step in shard.steps:
            row = rows.setdefault(
                step.role.value,
                {
                    "role": step.role.value,
                    "scheme": step.scheme.value,
                    "tensors": 0,
                    "source_nbytes": 0,
                    "output_nbytes": 0,
                },
            )
            row["tensors"] += 1
            row["source_nbytes"] += step.source.nbytes
            row["output_nbytes"] += sum(output.nbytes for output in step.outputs)
            value = figures.get(step.outputs[0].name)
            if value is not None:
                sqnr.setdefault(step.role.value, []).append(value)
    for role, values in sqnr.items():
        rows[role] |= {
            "sqnr_db_median": round(median(values), 2),
            "sqnr_db_least": round(min(values), 2),
        }
    return sorted(rows.values(), key=lambda row: -row["source_nbytes"])


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


def echo_plan(plan: Plan, source: Path, target: Path) -> None:
    """A plan on stdout: what each role becomes, then the files."""
    click.echo(f"{short_path(source)} -> {short_path(target)}, recipe {plan.recipe.name}")
    echo_roles(role_rows(plan))
    echo_table([(file["file"], nbytes_text(file["nbytes"])) for file in file_rows(plan)], left=1)
    click.echo(
        f"{nbytes_text(plan.output_nbytes)} at most in {len(plan.files)} files, the manifest "
        "included; nothing was written"
    )
