"""What ``verify`` found: in words, and in fields for JSON and the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from glmquant.cli.behaviour import echo_behaviour
from glmquant.cli.loads import echo_loads

if TYPE_CHECKING:
    from glmquant.verify.engines.predict import Run
    from glmquant.verify.findings import Finding
    from glmquant.verify.run import Report


def report_fields(report: Report, step: str) -> dict[str, Any]:
    """All of a report for JSON and for the page."""
    subject = report.subject
    return {
        "folder": str(subject.path),
        "source": report.source,
        "model": subject.identity.model,
        "layout": subject.identity.marking.format.value,
        "format": subject.identity.text,
        "mtp_layers": list(subject.mtp_layers),
        "tensors": len(subject.tensors),
        "nbytes": sum(subject.found.files[name] for name in subject.loaded),
        "levels": [level.value for level in report.levels],
        "verdict": report.verdict,
        "findings": [finding.fields() for finding in report.findings],
        "engines": [verdict.fields() for verdict in report.engines],
        "loads": report.loads.fields() if report.loads else None,
        "roles": [figures.fields() for figures in report.figures],
        "int8": [figures._asdict() for figures in report.tensors],
        "behaviour": report.behaviour.fields() if report.behaviour else None,
        "engine_log": list(report.engine_log),
        "notes": list(report.notes),
        "next": step,
    }


def echo_report(report: Report, step: str) -> None:
    """A report for people, on stdout."""
    from glmquant.cli.progress import nbytes_text
    from glmquant.survey import printable

    subject = report.subject
    nbytes = sum(subject.found.files[name] for name in subject.loaded)
    layers = ", ".join(map(str, subject.mtp_layers))
    facts = [
        subject.identity.model,
        subject.identity.text,
        f"{nbytes_text(nbytes)} in {len(subject.tensors):,} tensors",
        f"MTP layer {layers}" if layers else "no MTP layer",
    ]
    click.echo(f"{subject.found.name}: {', '.join(facts)}")
    _echo_engines(report)
    if report.loads is not None:
        echo_loads(report.loads)
    _echo_figures(report)
    if report.behaviour is not None:
        echo_behaviour(report.behaviour)
    for note in report.notes:
        click.echo(f"note: {printable(note, 500)}")
    for finding in report.findings:
        _echo_finding(finding)
        for line in report.engine_log if finding.code == "E1" else ():
            click.echo(f"    | {printable(line, 300)}")
    click.echo(f"verdict: {headline(report)}")
    levels = ", ".join(level.value for level in report.levels)
    click.echo(f"levels: {levels}; next: {step}")


def headline(report: Report) -> str:
    """The verdict in a line: ``not right, 2 errors and 1 warning``."""
    warnings = len(report.findings) - report.errors
    counts = [
        f"{count} {noun}{'s' * (count > 1)}"
        for count, noun in ((report.errors, "error"), (warnings, "warning"))
        if count
    ]
    is_of_loads = report.loads is not None and report.failure is report.loads.failure
    silent = "not every load has an answer" if is_of_loads else "the server could not be asked"
    word = {"findings": "not right", "open": f"open, {silent}"}
    return f"{word.get(report.verdict, 'right')}, {' and '.join(counts) or 'no finding'}"


def _echo_engines(report: Report) -> None:
    """What each version would do: a word in the table, the reasons below it."""
    from glmquant.cli.summary import echo_table
    from glmquant.survey import printable

    reasons: dict[str, int] = {}

    def word(run: Run) -> str:
        numbers = [reasons.setdefault(why, len(reasons) + 1) for why in run.reasons]
        marks = "".join(f" [{number}]" for number in dict.fromkeys(numbers))
        return run.fate_text + marks

    versions: dict[tuple[str, str], list[str]] = {}
    for verdict in report.engines:
        key = (word(verdict.with_flag), word(verdict.without_flag))
        versions.setdefault(key, []).append(verdict.version)
    rows = [["vllm-ascend", "with --quantization ascend", "without it"]]
    rows += [[", ".join(named), *words] for words, named in versions.items()]
    echo_table(rows, left=3)
    for why, number in reasons.items():
        click.echo(f"    [{number}] {printable(why, 300)}")


def _echo_figures(report: Report) -> None:
    from glmquant.cli.summary import echo_table

    if report.figures:
        header = ["int8 against the source", "tensors", "SQNR median", "least", "worst error"]
        rows = [
            [
                each.role,
                str(each.tensors),
                _decibels(each.median_db),
                _decibels(each.least_db),
                f"{each.worst_steps:.3f} steps",
            ]
            for each in report.figures
        ]
        echo_table([header, *rows], left=1)


def _decibels(value: float | None) -> str:
    return "exact" if value is None else f"{value:.2f} dB"


def _echo_finding(finding: Finding) -> None:
    """A finding as a block like that of an error."""
    from glmquant.survey import printable

    click.echo(f"{finding.severity.value} {finding.code}: {printable(finding.what, 200)}")
    for key, text in (
        ("where", finding.where),
        ("expected", finding.expected),
        ("found", finding.found),
        ("next", finding.hint),
    ):
        click.echo(f"  {key + ':':<10}{printable(text, 600)}")
