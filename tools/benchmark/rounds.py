"""The rounds: every contestant on every checkpoint, taking turns."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from benchmark.checkpoints import Design, expected_int8, int8_tensors
from benchmark.contestants import CONTESTANTS, contestant_env
from benchmark.figures import Run
from benchmark.measure import CommandError, measure

Item = TypeVar("Item")

SPARE_NBYTES = 200_000_000
"""Free disk for the small files and for whatever else is written meanwhile."""


class DiskError(Exception):
    """The checkpoints and one output would not fit."""


def require_disk(folder: Path, designs: Sequence[Design]) -> None:
    """Refuse what would fill the disk.

    Raises:
        DiskError: Less is free than all sources and one copy of the largest take.
    """
    lengths = [design.nbytes for design in designs]
    needed = sum(lengths) + max(lengths) + SPARE_NBYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskError(
            f"{needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free: "
            "choose another --folder or smaller --sizes"
        )


def run_rounds(
    work: Path,
    designs: Sequence[Design],
    contestants: Sequence[str],
    rounds: int,
    workers: int,
    torch_threads: int,
    report: Callable[[str], None],
) -> list[Run]:
    """Build the checkpoints and let everybody run on each of them, once a round.

    Round 0 is not counted: it compiles kernels and fills the page cache, and in it the int8 weights
    of every output are compared with the recipe's. Who begins changes with the round.

    Args:
        work: Where sources and outputs are written; an empty folder.
        designs: The checkpoints.
        contestants: Names of CONTESTANTS.
        rounds: How many are counted.
        workers: Of a contestant that takes such a number.
        torch_threads: Within one operation of torch.
        report: Called with a line of progress.

    Raises:
        CommandError: A contestant failed or did another job.
    """
    for design in designs:
        report(f"building {design.name}: {design.tensors} tensors, {design.nbytes / 1e9:.2f} GB")
        design.build(work / design.name)
        read_once(work / design.name)
    runs = []
    for number in range(rounds + 1):
        for design in rotated(designs, number):
            for contestant in rotated(contestants, number):
                run = run_once(work, design.name, contestant, number, workers, torch_threads)
                usage = run.usage
                report(
                    f"{f'round {number} of {rounds}' if number else 'warm-up'}: {design.name}: "
                    f"{contestant}: {usage.wall_seconds:.2f} s, CPU {usage.cpu_seconds:.2f} s, "
                    f"{usage.peak_rss_nbytes / 1e6:.0f} MB"
                )
                if number:
                    runs.append(run)
    return runs


def run_once(
    work: Path, checkpoint: str, contestant: str, number: int, workers: int, torch_threads: int
) -> Run:
    """One contestant on one checkpoint; its output is removed again."""
    source, target, log = work / checkpoint, work / "output", work / "log"
    entry = CONTESTANTS[contestant]
    command = entry.command(source, target, workers)
    os.sync()  # or what others have written would reach the disk in this one's time
    try:
        usage = measure(command, log, contestant_env(torch_threads))
    except CommandError as error:
        raise CommandError(f"{contestant} on {checkpoint}: {error}") from error
    if number == 0 and entry.quantizes and int8_tensors(target) != expected_int8(source):
        raise CommandError(f"{contestant} on {checkpoint}: other int8 weights than the recipe's")
    nbytes = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    shutil.rmtree(target)
    return Run(number, checkpoint, contestant, usage, nbytes)


def rotated(items: Sequence[Item], by: int) -> list[Item]:
    """The items, begun with another one each time."""
    start = by % len(items)
    return [*items[start:], *items[:start]]


def read_once(folder: Path) -> None:
    """Read all files, so that they lie in the page cache."""
    block = bytearray(1 << 22)
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.readinto(block):
                    pass


def to_stderr(line: str) -> None:
    """Progress for people."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
