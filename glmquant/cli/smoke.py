"""``glmquant smoke``: does a service answer as it should, and if not, why?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from glmquant.cli.addresses import DEFAULT_URL, checked_url
from glmquant.cli.options import json_option

if TYPE_CHECKING:
    from glmquant.smoke.causes import Service
    from glmquant.smoke.findings import Finding, Report

MAX_SECONDS = 1_000_000
"""Of a request: eleven days; a clock of the system overflows at some thousand times that."""


@click.command(
    short_help="Ask a running service some requests and judge its answers.",
    epilog="Example: glmquant smoke http://127.0.0.1:8000 --only plain,tools",
)
@click.argument("url", metavar="[URL]", default=DEFAULT_URL)
@click.option(
    "--model",
    "model",
    metavar="NAME",
    help="What requests call the model.  [default: the first that the server lists]",
)
@click.option(
    "--only",
    metavar="NAMES",
    help="Some requests, with commas between: plain, again, streaming, long, template, tools, "
    "thinking-on, thinking-off, drafts.  [default: all]",
)
@click.option("--skip", metavar="NAMES", help="All but these.")
@click.option(
    "--long-tokens",
    metavar="TOKENS",
    type=click.IntRange(100, 10_000_000),
    default=8000,
    show_default=True,
    help="Of the long prompt; fewer where the server takes no more.",
)
@click.option(
    "--timeout",
    "limit_seconds",
    metavar="SECONDS",
    type=click.FloatRange(0.1),
    default=300.0,
    show_default=True,
    help="How long each request may take, from connecting to the last byte.",
)
@json_option
@click.pass_context
def smoke(
    ctx: click.Context,
    url: str,
    model: str | None,
    only: str | None,
    skip: str | None,
    long_tokens: int,
    limit_seconds: float,
    as_json: bool,
) -> None:
    """Ask the OpenAI-compatible server at URL some requests, and judge its answers.

    A plain question, once more, and as a stream; a long prompt; what the chat template makes of
    messages; a tool call; thinking on and off; and the counters of speculative decoding. Each is
    ok, a warning, failed or not judged, with a likely cause and what to do. What a server has to
    do can fail; what a model may do otherwise, as a small one does, is a warning. URL is
    http://127.0.0.1:8000 where it is left out.

    A key is taken from VLLM_API_KEY; it goes to URL alone and is never shown. No redirect is
    followed. The requests come one after the other; one that fails stops no other.

    Exits with 0 where nothing failed, also with warnings; 1 where a check failed or the server
    does not answer; 2 with wrong options.
    """
    ctx.meta["glmquant.json"] = as_json
    from glmquant.cli.progress import emit, progress
    from glmquant.errors import UsageError
    from glmquant.runtime.launch import key_here
    from glmquant.smoke.causes import Service
    from glmquant.smoke.findings import Verdict
    from glmquant.smoke.run import Wish
    from glmquant.smoke.run import smoke as run

    if not limit_seconds <= MAX_SECONDS:  # nan, too
        raise UsageError(
            "that is no time",
            where="--timeout",
            expected=f"seconds, {MAX_SECONDS:,} at most",
            found=f"{limit_seconds:g}",
            hint="--timeout 300",
        )
    wish = Wish(
        checked_url(url, "smoke"),
        _names(only, skip),
        model,
        long_tokens,
        limit_seconds,
        key_here(),
    )
    with progress(as_json) as observer:
        report = run(wish, observer)
    service = Service(report.url, report.root, model or "")
    if as_json:
        emit("smoke", **_fields(report, service))
    else:
        _echo(report, service)
    ctx.exit(1 if report.verdict is Verdict.FAILED else 0)


def _names(only: str | None, skip: str | None) -> tuple[str, ...]:
    """The requests that are to be asked.

    Raises:
        UsageError: A name is none, or none is left.
    """
    from glmquant.errors import UsageError
    from glmquant.smoke.requests import NAMES

    chosen = set(NAMES)
    for option, text in (("--only", only), ("--skip", skip)):
        if text is None:
            continue
        named = {name.strip() for name in text.split(",") if name.strip()}
        if unknown := sorted(named - set(NAMES)):
            raise UsageError(
                "there is no such request",
                where=option,
                expected=", ".join(NAMES),
                found=", ".join(unknown),
                hint=f"{option} plain,tools",
            )
        chosen = chosen & named if option == "--only" else chosen - named
    if not chosen:
        raise UsageError(
            "nothing is left to ask",
            where="--only and --skip",
            expected=", ".join(NAMES),
            found="none of them",
            hint="leave one of both out",
        )
    return tuple(name for name in NAMES if name in chosen)


def _fields(report: Report, service: Service) -> dict[str, object]:
    """All of it for JSON."""
    from glmquant.smoke.causes import cause_of

    def fields(finding: Finding) -> dict[str, object]:
        cause = cause_of(finding, service)
        return {
            "sign": finding.sign.name.lower(),
            "verdict": finding.verdict.value,
            "what": finding.what,
            "evidence": finding.evidence or None,
            "cause": cause.text,
            "next": cause.hint,
        }

    return {
        "url": report.url,
        "model": report.model or None,
        "root": report.root or None,
        "max_model_len": report.max_model_len or None,
        "verdict": report.verdict.value,
        "requests": [
            {
                "name": each.name,
                "verdict": each.verdict.value,
                "text": each.text,
                "answer": each.answer or None,
                "findings": [fields(finding) for finding in each.findings],
            }
            for each in report.results
        ],
        "notes": list(report.notes),
        "next": _next(report, service),
    }


def _next(report: Report, service: Service) -> str:
    """What to do about the worst finding that comes first; else the next command."""
    from glmquant.smoke.causes import cause_of
    from glmquant.smoke.findings import Verdict

    for verdict in (Verdict.FAILED, Verdict.WARNING):
        for result in report.results:
            for finding in result.findings:
                if finding.verdict is verdict:
                    return cause_of(finding, service).hint
    return f"{service.verify} --url {report.url}"


def _echo(report: Report, service: Service) -> None:
    from glmquant.cli.summary import echo_table
    from glmquant.smoke.causes import cause_of
    from glmquant.survey import printable

    click.echo(printable(report.url, 300))
    rows = [
        (each.verdict.value, each.name, printable(each.text, 200), _said(each.answer))
        for each in report.results
    ]
    echo_table(rows, left=4)
    for result in report.results:
        for finding in result.findings:
            cause = cause_of(finding, service)
            click.echo(f"{finding.verdict.value} {result.name}: {printable(finding.what, 300)}")
            for key, text in (
                ("found", finding.evidence),
                ("cause", cause.text),
                ("next", cause.hint),
            ):
                if text:
                    click.echo(f"  {key + ':':<8}{printable(text, 400)}")
    for note in report.notes:
        click.echo(f"note: {printable(note, 300)}")
    click.echo(f"verdict: {report.headline}")
    click.echo(f"next: {printable(_next(report, service), 400)}")


def _said(answer: str) -> str:
    from glmquant.survey import printable

    return printable(answer.strip(), 48)
