"""``tools/bench.py``: the command line."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType

import click

from benchmark.checkpoints import KINDS, design
from benchmark.contestants import CONTESTANTS, PEERS, peers_python
from benchmark.machine import machine, versions
from benchmark.measure import CommandError
from benchmark.report import Report
from benchmark.rounds import DiskError, require_disk, run_rounds, to_stderr

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
DEFAULT_CONTESTANTS = "cp,cp+sync,glmquant,torch-loop,llm-compressor"
DEFAULT_KINDS = "many-experts,wide-rows"


@click.command(
    epilog="Downloads: python tools/bench.py fetch --help. "
    "Example: python tools/bench.py --sizes 0.8,1.6,2.4"
)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Counted.")
@click.option(
    "--contestants",
    "contestant_names",
    default=DEFAULT_CONTESTANTS,
    show_default=True,
    metavar="NAME,…",
    help="Who takes part.",
)
@click.option(
    "--checkpoints",
    "kind_names",
    default=DEFAULT_KINDS,
    show_default=True,
    metavar="KIND,…",
    help=f"What they run on: {', '.join(KINDS)}.",
)
@click.option(
    "--sizes",
    default="2.4",
    show_default=True,
    metavar="GB,…",
    help="Of each kind of checkpoint; three or more give the line of cost against size.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=lambda: 2 * len(os.sched_getaffinity(0)),
    help="For glmquant and llm-compressor.  [default: twice the cores, as glmquant's own]",
)
@click.option(
    "--torch-threads",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Within one operation of torch: two take more CPU time, many times more if others run.",
)
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=tempfile.gettempdir,
    help="Where to work, on the disk to be measured.  [default: the one for temporary files]",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write every round to this file.",
)
@click.option("--keep", is_flag=True, help="Leave the checkpoints behind.")
def bench(
    rounds: int,
    contestant_names: str,
    kind_names: str,
    sizes: str,
    workers: int,
    torch_threads: int,
    folder: Path,
    json_file: Path | None,
    keep: bool,
) -> None:
    """Measure whole processes on random GLM-4 MoE checkpoints; print Markdown."""
    contestants = chosen(contestant_names, CONTESTANTS)
    kinds = chosen(kind_names, KINDS)
    try:
        gigabytes = list(dict.fromkeys(float(size) for size in sizes.split(",")))
        if not all(0 < size < 10_000 for size in gigabytes):
            raise ValueError
    except ValueError as error:
        raise click.BadParameter(f"{sizes!r} is no list of GB", param_hint="--sizes") from error
    try:
        designs = [design(kind, size) for kind in kinds for size in gigabytes]
        require_disk(folder, designs)
    except (ValueError, DiskError) as error:
        raise click.ClickException(str(error)) from error
    if json_file and not os.access(json_file.parent, os.W_OK):
        raise click.BadParameter(f"{json_file} cannot be written", param_hint="--json")
    if PEERS & set(contestants):
        with contextlib.redirect_stdout(sys.stderr):
            peers_python()
    facts, taking_part = machine(folder.resolve()), versions(contestants)
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    try:
        with work_folder(folder, keep) as work:
            runs = run_rounds(work, designs, contestants, rounds, workers, torch_threads, to_stderr)
    except CommandError as error:
        raise click.ClickException(str(error)) from error
    report = Report(
        designs=designs,
        contestants=contestants,
        rounds=rounds,
        workers=workers,
        torch_threads=torch_threads,
        machine=facts,
        versions=taking_part,
        date=date,
        command=command_line(sys.argv[1:]),
        runs=runs,
    )
    click.echo(report.markdown(), nl=False)
    if json_file:
        json_file.write_text(report.json(), encoding="utf-8")


def chosen(names: str, known: Mapping[str, object]) -> list[str]:
    """The names of a list with commas."""
    listed = list(dict.fromkeys(names.split(",")))
    if unknown := [name for name in listed if name not in known]:
        raise click.UsageError(f"no such name: {', '.join(unknown)}; there are {', '.join(known)}")
    return listed


def command_line(words: list[str]) -> str:
    """The command as typed, but for names of folders, which say nothing and may be private."""
    shown = []
    for before, word in zip(["", *words], words, strict=False):
        name, equals, _ = word.partition("=")
        if before in {"--folder", "--json"}:
            shown.append("…")
        elif equals and name in {"--folder", "--json"}:
            shown.append(f"{name}=…")
        else:
            shown.append(shlex.quote(word))
    return " ".join(["python tools/bench.py", *shown])


@contextlib.contextmanager
def work_folder(folder: Path, keep: bool) -> Iterator[Path]:
    """A new folder that is gone again at the end, however that comes."""
    work = Path(tempfile.mkdtemp(prefix="glmquant-bench-", dir=folder.resolve()))
    try:
        yield work
    finally:
        with undisturbed():
            if keep:
                to_stderr(f"kept: {work}")
            else:
                shutil.rmtree(work)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Nothing stops what runs in it: a second Ctrl-C must not leave gigabytes behind."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop(_number: int, _frame: FrameType | None) -> None:
    """Leave by way of every clean-up."""
    raise KeyboardInterrupt


def run_command(command: click.Command) -> None:
    """Run; 130 when interrupted."""
    for number in STOPPING:
        signal.signal(number, stop)
    try:
        sys.exit(command(prog_name="tools/bench.py", standalone_mode=False))
    except click.Abort:
        to_stderr("interrupted")
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)


if __name__ == "__main__":
    run_command(bench)
