"""``glmquant verify``: is a quantized checkpoint right?"""

from __future__ import annotations

import math
import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from glmquant.cli.behaviour import behaviour_rows
from glmquant.cli.options import default_workers, json_option
from glmquant.cli.verdict import echo_report, headline, report_fields

if TYPE_CHECKING:
    from glmquant.verify.behaviour.check import Wish
    from glmquant.verify.loads.check import LoadWish
    from glmquant.verify.run import Report


@click.command(
    short_help="Prove a W8A8 checkpoint right, ours or anybody's.",
    epilog="Example: glmquant verify GLM-4.6-W8A8-floatmtp --source GLM-4.6 --engine none",
)
@click.argument("folder", metavar="[DIR]", required=False)
@click.option(
    "--source",
    "--from",
    "source",
    metavar="SOURCE",
    help="The BF16 folder it was made of: every tensor of both is read and compared. Or its name "
    "on a hub, as glm-4.6: what stayed float is fetched and compared, of what became int8 some "
    "rows; all with --deep.",
)
@click.option("--deep", is_flag=True, help="Read every value, not headers and JSON alone.")
@click.option(
    "--engine",
    type=click.Choice(["auto", "vllm-ascend", "cpu", "reference", "none"]),
    default="auto",
    show_default=True,
    help="What runs the checkpoint. auto: vllm-ascend where there are NPUs; else the CPU engine "
    "of `glmquant engine install` if the checkpoint fits; else the reference model if torch is "
    "there and the checkpoint is below 1 GB; else nothing.",
)
@click.option(
    "--load-matrix",
    is_flag=True,
    help="Let the unmodified loaders of several versions of vLLM and vllm-ascend load it on this "
    "machine's CPU; `glmquant engine install --matrix` brings them. --engine is then none unless "
    "it is given.",
)
@click.option(
    "--versions",
    metavar="0.23,0.30",
    help="Which versions; what one of them does not load is then an error. Of all it is one where "
    "none loads it, else a warning.  [default: all that are installed]",
)
@click.option(
    "--url",
    metavar="URL",
    help="A vLLM server of DIR that runs already, in place of one of our own. A key for it is "
    "taken from VLLM_API_KEY.",
)
@click.option(
    "--prompts",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help='What is asked, a JSON object a line: {"prompt": "…"}, {"messages": […], "tools": […]} '
    'or {"text": "…"} to be rated.  [default: embedded ones]',
)
@click.option(
    "--num-speculative-tokens",
    "speculative_tokens",
    metavar="K",
    type=click.IntRange(1, 8),
    default=1,
    show_default=True,
    help="Tokens that the MTP layer drafts at a step.",
)
@click.option(
    "--min-acceptance",
    metavar="X",
    type=click.FloatRange(0.0, 1.0),
    help="The least acceptance rate.  [default: the source's less 0.05, or else 0.3]",
)
@click.option(
    "--timeout",
    "limit_seconds",
    metavar="SECONDS",
    type=click.FloatRange(1.0),
    help="How long an engine may take to be ready, and to answer a request.  "
    "[default: 900 and 600; 7200 to be ready on NPUs]",
)
@click.option(
    "--tp",
    "tensor_parallel",
    metavar="N",
    type=click.IntRange(1, 1024),
    help="Say, too, whether the model divides by this tensor-parallel size.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=default_workers,
    help="Threads.  [default: twice the cores, 16 at most]",
)
@click.option(
    "--html",
    "page",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the report as a page for a browser, too.",
)
@json_option
@click.pass_context
def verify(
    ctx: click.Context,
    folder: str | None,
    source: str | None,
    deep: bool,
    engine: str,
    load_matrix: bool,
    versions: str | None,
    url: str | None,
    prompts: Path | None,
    speculative_tokens: int,
    min_acceptance: float | None,
    limit_seconds: float | None,
    tensor_parallel: int | None,
    workers: int,
    page: Path | None,
    as_json: bool,
) -> None:
    """Say whether the W8A8 checkpoint in DIR is right, what is wrong, and what mends it.

    On disk: files, that is headers and JSON, in seconds; values, by --deep, every byte; source, by
    --source, int8 weights against the BF16 ones they were made of, all else equal to them. SOURCE
    may be on a hub: only what is compared is then read of it. An interrupted command goes on: what
    is done is kept in ~/.cache/glmquant until it ends.

    Then an engine: does it load, are greedy answers the same with and without drafting, how many
    draft tokens are accepted, how far are next-token distributions from the source's? --engine none
    leaves that out, and is done in seconds.

    Folders of glmquant and of msModelSlim (v0, v1, Hugging Face names) are taken. DIR may be left
    out where the working directory holds one of them. Nothing is written into either folder.

    Exits with 0 where all is right or there are only warnings, 1 with errors, 2 where it could not
    begin: wrong options, no W8A8 checkpoint in DIR, no whole BF16 one in SOURCE; or where the
    server at --url failed or a loader gave no answer, after what the files show.
    """
    ctx.meta["glmquant.json"] = as_json
    ctx.meta["glmquant.starts_anew"] = source is None and not deep  # only bytes are kept count of
    from glmquant.checkpoint import open_checkpoint
    from glmquant.cli.folders import choose_quantized, choose_source, short_path
    from glmquant.cli.progress import emit, progress
    from glmquant.cli.remote import WORKERS, far_source, hub_reference
    from glmquant.errors import (
        AlreadyQuantizedError,
        CheckpointError,
        DiskSpaceError,
        HubError,
        UsageError,
    )
    from glmquant.source import FolderSource
    from glmquant.verify.run import next_command
    from glmquant.verify.run import verify as run

    loads = _load_wish(load_matrix, versions)
    if load_matrix and url is None and _is_left_out(ctx, "engine"):
        engine = "none"
    path = choose_quantized(folder, "verify")
    wish = _wish(engine, url, prompts, speculative_tokens, min_acceptance, limit_seconds)
    if page is not None:
        _require_replaceable(page)
    reference = hub_reference(source)
    source_dir = None
    if source is not None and reference is None:
        source_dir = choose_source(source, "verify")
    try:
        with progress(as_json) as observer, ExitStack() as opened:
            checkpoint = None
            if reference is not None:
                checkpoint = open_checkpoint(opened.enter_context(far_source(reference, observer)))
                workers = max(workers, WORKERS)  # they wait for the line
            elif source_dir is not None:
                checkpoint = open_checkpoint(FolderSource(source_dir))
            report = run(
                path,
                source=checkpoint,
                deep=deep,
                tensor_parallel=tensor_parallel,
                workers=workers,
                wish=wish,
                loads=loads,
                observer=observer,
            )
    except (HubError, DiskSpaceError) as error:
        error.exit_code = UsageError.exit_code  # somebody else's server
        raise
    except CheckpointError as error:
        error.exit_code = UsageError.exit_code  # 1 is for what was found
        if isinstance(error, AlreadyQuantizedError) and source_dir is not None:
            error.hint = _put_right(path, source_dir) or error.hint
        raise
    step = next_command(report, short_path(path))
    fields = report_fields(report, step)
    if page is not None:
        _write_page(page, report, fields)
    if as_json:
        emit("verify", **fields)
    else:
        echo_report(report, step)
    if page is not None and not as_json:
        click.echo(f"page: {short_path(page)}", err=True)
    if report.failure is not None:  # somebody else's server
        report.failure.exit_code = 1 if report.errors else UsageError.exit_code
        raise report.failure
    if report.errors:
        ctx.exit(1)


def _is_left_out(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is click.core.ParameterSource.DEFAULT


def _load_wish(load_matrix: bool, versions: str | None) -> LoadWish | None:
    """Which loaders are to load it.

    Raises:
        UsageError: The options contradict each other, or the loaders are not there.
    """
    if not load_matrix and versions is None:
        return None
    from glmquant.errors import UsageError
    from glmquant.verify.loads.check import wish_for

    if not load_matrix:
        raise UsageError(
            "--versions says which loaders, and none is asked for",
            where=f"--versions {versions}",
            expected="--load-matrix beside it",
            hint=f"glmquant verify DIR --load-matrix --versions {versions}",
        )
    return wish_for(versions)


def _wish(
    engine: str,
    url: str | None,
    prompts: Path | None,
    speculative_tokens: int,
    min_acceptance: float | None,
    limit_seconds: float | None,
) -> Wish:
    """What is to be asked of which engine.

    Raises:
        UsageError: The options contradict each other, or the file with prompts cannot be used.
    """
    from glmquant.errors import UsageError
    from glmquant.runtime.prompts import embedded_material, read_material
    from glmquant.verify.behaviour.check import Wish
    from glmquant.verify.behaviour.choice import EngineKind

    if url is not None and engine not in ("auto", "vllm-ascend"):
        raise UsageError(
            "--url and --engine contradict each other",
            where=f"--engine {engine}",
            expected="--url alone, or with --engine vllm-ascend",
            found=url,
            hint="leave one of them out",
        )
    if url is not None and not url.startswith(("http://", "https://")):
        raise UsageError(
            "that is no address of a server", expected="http://HOST:PORT", found=url, where="--url"
        )
    for option, value in (("--min-acceptance", min_acceptance), ("--timeout", limit_seconds)):
        if value is not None and not math.isfinite(value):
            raise UsageError(
                "that is no number to compare with",
                where=option,
                expected="a finite number",
                found=str(value),
            )
    return Wish(
        engine=EngineKind(engine),
        material=read_material(prompts) if prompts is not None else embedded_material(),
        url=url,
        speculative_tokens=speculative_tokens,
        min_acceptance=min_acceptance,
        limit_seconds=limit_seconds,
    )


def _put_right(folder: Path, source: Path) -> str | None:
    """The command the other way round, where that is what was meant."""
    from glmquant.cli.folders import is_bf16_folder, short_path

    if not is_bf16_folder(folder):
        return None
    return shlex.join(["glmquant", "verify", short_path(source), "--source", short_path(folder)])


def _require_replaceable(page: Path) -> None:
    """A page may only take the place of another.

    Raises:
        UsageError: FILE is something else.
    """
    from glmquant.errors import UsageError
    from glmquant.report.page import is_page
    from glmquant.storage import reading

    with reading(page):
        is_other = page.is_dir() or (page.exists() and not is_page(page))
    if is_other or not page.parent.is_dir():
        raise UsageError(
            "the page cannot be written there",
            where=str(page),
            expected="a new file, or an earlier page of glmquant, in a folder that exists",
            found="another file or a folder" if is_other else f"no folder {page.parent}",
            hint="--html report.html",
        )


def _write_page(page: Path, report: Report, fields: dict[str, Any]) -> None:
    from glmquant import __version__
    from glmquant.cli.progress import nbytes_text
    from glmquant.report.page import render_page
    from glmquant.results import read_results
    from glmquant.verify.findings import CODES
    from glmquant.writer import write_file

    rows, reasons = report.loads.table() if report.loads else ([], [])
    more = {
        "load_rows": rows,
        "load_reasons": reasons,
        "load_notes": report.loads.notes if report.loads else [],
        "name": report.subject.found.name,
        "headline": headline(report),
        "size": nbytes_text(fields["nbytes"]),
        "codes": CODES,
        "version": __version__,
        "results": read_results(report.subject.path).shown,
        "behaviour_rows": behaviour_rows(report.behaviour) if report.behaviour else [],
        "int8": sorted(fields["int8"], key=lambda each: (each["sqnr_db"] is None, each["sqnr_db"])),
    }
    write_file(page, render_page("verify", fields | more))
