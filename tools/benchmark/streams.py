"""``tools/bench.py stream``: quantizing while a model comes, against fetching and quantizing."""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Final

import click
from environments import ROOT

from benchmark.checkpoints import design
from benchmark.command import command_line, run_command, work_folder
from benchmark.downloads import trust
from benchmark.figures import Run, summarize
from benchmark.loopback import REPOSITORY, Served, served
from benchmark.machine import git, machine
from benchmark.measure import CommandError, measure
from benchmark.report import row_cells, table
from benchmark.rounds import DiskError, read_once, require_disk, rotated, to_stderr

CONTESTANTS: Final = ("stream", "fetch", "w8a8")
COLUMNS: Final = (
    "contestant",
    "wall s",
    "wall / stream",
    "GB/s",
    "user s/GB",
    "system s/GB",
    "CPU s/GB",
    "peak RSS",
)


def command_of(name: str, of: Served, work: Path) -> list[str | Path]:
    """What is run: with the MTP layer, into ``work``."""
    program: list[str | Path] = [sys.executable, "-m", "glmquant"]
    hub = f"modelscope:{REPOSITORY}"
    if name == "stream":
        return [*program, "w8a8", hub, work / "streamed", "--add-mtp", "--stream"]
    if name == "fetch":
        return [*program, "fetch", hub, work / "fetched"]
    return [*program, "w8a8", of.folder, work / "made", "--add-mtp"]


def run_round(of: Served, number: int, line: str, work: Path) -> list[Run]:
    """Each once; what was streamed is compared with what was made of the folder.

    Raises:
        CommandError: One failed, or the two differ.
    """
    runs = []
    nbytes = sum((of.folder / name).stat().st_size for name in of.names)
    for name in rotated(list(CONTESTANTS), number):
        os.sync()
        env = {
            **trust(of),
            "NO_PROXY": "*",
            "MODELSCOPE_ENDPOINT": of.url,
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "",
            "MODELSCOPE_CACHE": str(work / "sdk"),
        }
        usage = measure(command_of(name, of, work), work / "log", env)
        runs.append(Run(number, line, name, usage, nbytes))
        to_stderr(
            f"{f'round {number}' if number else 'warm-up'}: {name}: {usage.wall_seconds:.2f} s, "
            f"CPU {usage.cpu_seconds:.2f} s, {usage.peak_rss_nbytes / 1e6:.0f} MB"
        )
    names = sorted(path.name for path in (work / "made").iterdir() if path.is_file())
    _, other, missing = filecmp.cmpfiles(work / "made", work / "streamed", names, shallow=False)
    if other or missing:
        raise CommandError(f"streamed otherwise than fetched and made: {other + missing}")
    for folder in ("made", "streamed", "fetched"):
        shutil.rmtree(work / folder)
    return runs


def ratios_of(runs: Sequence[Run]) -> list[float]:
    """Of each round: the time of streaming over that of the slower of the two."""
    walls = {(run.round, run.contestant): run.usage.wall_seconds for run in runs}
    return [
        walls[number, "stream"] / max(walls[number, "fetch"], walls[number, "w8a8"])
        for number in sorted({run.round for run in runs})
    ]


def markdown(runs: Sequence[Run], gigabytes: float, line: str, folder: Path) -> str:
    """A table, the ratio, and what the figures depend on."""
    rows = [
        row_cells(summarize(runs, line, name, gigabytes, of="stream"))[: len(COLUMNS)]
        for name in CONTESTANTS
    ]
    ratios = ratios_of(runs)
    facts = machine(folder.resolve())
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    parts = [
        f"**{line}, {gigabytes:.2f} GB**",
        table(COLUMNS, rows),
        f"Streaming over the slower of the two, by round: median {median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}), {len(ratios)} interleaved rounds after "
        "one that does not count. The hub is a Python process on the same processors; w8a8 reads "
        "from the page cache. The bytes are compared after each round.",
        "; ".join(f"{key} {value}" for key, value in facts.items())
        + f"; glmquant {git('describe', '--always', '--dirty', '--abbrev=10')}; {date}.",
        f"`{command_line(sys.argv[1:]).replace('bench.py', 'bench.py stream')}`",
    ]
    return "\n\n".join(parts) + "\n"


@click.command(epilog="Example: python tools/bench.py stream --rounds 5")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Counted.")
@click.option("--kind", default="wide-rows", show_default=True, help="Of checkpoint.")
@click.option("--size", type=float, default=2.4, show_default=True, metavar="GB", help="Its size.")
@click.option(
    "--rate",
    type=click.FloatRange(0),
    default=125.0,
    show_default=True,
    metavar="MB/S",
    help="Of the line, all connections together; 0 for what the processors give.",
)
@click.option("--plain", is_flag=True, help="http in place of TLS.")
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=tempfile.gettempdir,
    help="Where to work, on the disk to be measured.  [default: the one for temporary files]",
)
def bench_stream(
    rounds: int, kind: str, size: float, rate: float, plain: bool, folder: Path
) -> None:
    """Measure w8a8 --stream, fetch and w8a8 as whole processes; print Markdown."""
    try:
        made = design(kind, size)
        require_disk(folder, [made])
    except (KeyError, ValueError, DiskError) as error:
        raise click.ClickException(str(error)) from error
    line = ("plain" if plain else "TLS") + (f", {rate:g} MB/s" if rate else ", no limit")
    runs: list[Run] = []
    try:
        with work_folder(folder, keep=False) as work, contextlib.ExitStack() as stack:
            source = work / "source"
            made.build(source)
            read_once(source)
            of = stack.enter_context(served(source, work, has_tls=not plain, bps=rate * 1e6))
            for number in range(rounds + 1):
                ran = run_round(of, number, line, work)
                runs += ran * (number > 0)
    except CommandError as error:
        raise click.ClickException(str(error)) from error
    click.echo(markdown(runs, runs[0].output_nbytes / 1e9, line, folder), nl=False)


if __name__ == "__main__":
    run_command(bench_stream)
