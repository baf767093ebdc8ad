"""``tools/bench.py fetch``: fetching from a hub on loopback, against those who do it today."""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

import click
from environments import ROOT, environment

from benchmark.checkpoints import design
from benchmark.command import command_line, run_command, work_folder
from benchmark.figures import Run, summarize
from benchmark.loopback import REPOSITORY, Served, served
from benchmark.machine import git, machine, output_of
from benchmark.measure import CommandError, measure
from benchmark.report import row_cells, table
from benchmark.rounds import DiskError, read_once, require_disk, rotated, to_stderr

LINES: Final = ("plain", "TLS")
COLUMNS: Final = (
    "contestant",
    "wall s",
    "wall / glmquant",
    "GB/s",
    "user s/GB",
    "system s/GB",
    "CPU s/GB",
    "peak RSS",
)
SDK_SCRIPT: Final = (
    "import sys; from modelscope import snapshot_download; "
    "snapshot_download(sys.argv[1], local_dir=sys.argv[2])"
)
CURL_SCRIPT: Final = (
    'mkdir "$1" && cd "$1" && curl -fsSL --parallel --create-dirs -K "$0/curl" '
    '&& sha256sum --quiet -c "$0/sums"'
)


@dataclass(frozen=True, slots=True)
class Downloader:
    """A program that makes a folder out of a repository.

    Attributes:
        says: The command for people.
        command: For a served repository, a target and a folder to work in.
        version: Of the program, in words.
        env: Variables for a served repository and the folder to work in.
    """

    says: str
    command: Callable[[Served, Path, Path], list[str | Path]]
    version: Callable[[], str]
    env: Callable[[Served, Path], dict[str, str]] = field(default=lambda _served, _work: {})


def hubs_python() -> Path:
    """The interpreter that has the hubs' own clients."""
    return environment("hubs") / "python"


def sdk_version() -> str:
    """The modelscope SDK's."""
    script = "from importlib.metadata import version; print(version('modelscope'))"
    return output_of(str(hubs_python()), "-c", script).strip()


def trust(of: Served) -> dict[str, str]:
    """Variables that let every client trust the hub's certificate."""
    names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    return dict.fromkeys(names, str(of.authority)) if of.authority else {}


DOWNLOADERS: Final = {
    "glmquant": Downloader(
        "glmquant fetch modelscope:OWNER/NAME OUT --endpoint URL",
        lambda of, target, _: [
            *(sys.executable, "-m", "glmquant", "fetch", f"modelscope:{REPOSITORY}", target),
            *("--endpoint", of.url),
        ],
        lambda: git("describe", "--always", "--dirty", "--abbrev=10"),
        lambda _, work: {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "", "HOME": str(work)},
    ),
    "modelscope SDK": Downloader(
        "snapshot_download('OWNER/NAME', local_dir='OUT')",
        lambda _, target, __: [hubs_python(), "-c", SDK_SCRIPT, REPOSITORY, target],
        sdk_version,
        lambda of, work: {
            **dict.fromkeys(("HOME", "MODELSCOPE_CACHE"), str(work / "sdk")),
            "MODELSCOPE_ENDPOINT": of.url,
        },
    ),
    "curl, sha256sum": Downloader(
        "curl -fsSL --parallel --create-dirs -K FILE && sha256sum -c SUMS",
        lambda _, target, work: ["sh", "-c", CURL_SCRIPT, work, target],
        lambda: " ".join(output_of("curl", "--version").split()[:2]),
    ),
}


def prepare_curl(of: Served, work: Path) -> None:
    """What curl is to fetch."""
    lines = [f'url = "{of.file_url(name)}"\noutput = "{name}"\n' for name in of.names]
    (work / "curl").write_text("".join(lines))


def prepare_sums(of: Served, work: Path) -> None:
    """What curl's files are to have."""
    with (work / "sums").open("wb") as file:
        subprocess.run(["sha256sum", "--", *of.names], cwd=of.folder, stdout=file, check=True)


def run_once(of: Served, name: str, line: str, number: int, work: Path) -> Run:
    """One download; what it wrote is compared with the source and removed again.

    Raises:
        CommandError: It failed, or the folder is another.
    """
    target, entry = work / "output", DOWNLOADERS[name]
    prepare_curl(of, work)
    os.sync()
    try:
        usage = measure(
            entry.command(of, target, work),
            work / "log",
            {"NO_PROXY": "*", **trust(of), **entry.env(of, work)},
        )
    except CommandError as error:
        raise CommandError(f"{name}, {line}: {error}") from error
    _, other, missing = filecmp.cmpfiles(of.folder, target, of.names, shallow=False)
    if other or missing:
        raise CommandError(f"{name}, {line}: other bytes than the hub's: {other + missing}")
    nbytes = sum((target / file).stat().st_size for file in of.names)
    shutil.rmtree(target)
    to_stderr(
        f"{f'round {number}' if number else 'warm-up'}: {line}: {name}: {usage.wall_seconds:.2f} s,"
        f" CPU {usage.cpu_seconds:.2f} s, {usage.peak_rss_nbytes / 1e6:.0f} MB"
    )
    return Run(number, line, name, usage, nbytes)


def run_rounds(source: Path, work: Path, rounds: int, lines: Sequence[str]) -> list[Run]:
    """Everybody on every line, once a round, taking turns; round 0 is not counted."""
    runs = []
    with contextlib.ExitStack() as stack:
        hubs = {
            line: stack.enter_context(served(source, work, has_tls=line == "TLS")) for line in lines
        }
        prepare_sums(hubs[lines[0]], work)
        for number in range(rounds + 1):
            for line in lines:
                for name in rotated(list(DOWNLOADERS), number):
                    run = run_once(hubs[line], name, line, number, work)
                    runs += [run] * (number > 0)
    return runs


def markdown(runs: Sequence[Run], gigabytes: float, rounds: int, folder: Path) -> str:
    """A table for each line, and what the figures depend on."""
    parts = []
    for line in dict.fromkeys(run.checkpoint for run in runs):
        rows = [
            row_cells(summarize(runs, line, name, gigabytes, of="glmquant"))[: len(COLUMNS)]
            for name in DOWNLOADERS
        ]
        parts += [f"**{line}, {gigabytes:.2f} GB**", table(COLUMNS, rows)]
    facts = machine(folder.resolve())
    said = "; ".join(
        f"{name} {each.version()}: `{each.says}`" for name, each in DOWNLOADERS.items()
    )
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    parts += [
        f"Medians of {rounds} interleaved rounds after one that does not count; wall / glmquant by "
        "round: median (least to most). The hub is a Python process on the same processors. What "
        "came is compared with the source after each run.",
        "; ".join(f"{key} {value}" for key, value in facts.items()) + f"; {date}.",
        f"{said}.",
        f"`{command_line(sys.argv[1:]).replace('bench.py', 'bench.py fetch')}`",
    ]
    return "\n\n".join(parts) + "\n"


@click.command(epilog="Example: python tools/bench.py fetch --rounds 5")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Counted.")
@click.option(
    "--kind",
    default="wide-rows",
    show_default=True,
    help="Of checkpoint, as for the other bench.",
)
@click.option("--size", type=float, default=2.4, show_default=True, metavar="GB", help="Its size.")
@click.option(
    "--lines",
    type=click.Choice(["plain", "TLS", "both"]),
    default="both",
    show_default=True,
    help="How the hub is reached.",
)
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=tempfile.gettempdir,
    help="Where to work, on the disk to be measured.  [default: the one for temporary files]",
)
def bench_fetch(rounds: int, kind: str, size: float, lines: str, folder: Path) -> None:
    """Measure downloads from a hub on loopback as whole processes; print Markdown."""
    try:
        made = design(kind, size)
        require_disk(folder, [made])
    except (KeyError, ValueError, DiskError) as error:
        raise click.ClickException(str(error)) from error
    with contextlib.redirect_stdout(sys.stderr):
        hubs_python()
    try:
        with work_folder(folder, keep=False) as work:
            source = work / "source"
            made.build(source)
            read_once(source)
            runs = run_rounds(source, work, rounds, LINES if lines == "both" else (lines,))
    except CommandError as error:
        raise click.ClickException(str(error)) from error
    click.echo(markdown(runs, runs[0].output_nbytes / 1e9, rounds, folder), nl=False)


if __name__ == "__main__":
    run_command(bench_fetch)
