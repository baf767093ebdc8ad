"""Figures from the rounds: medians, ratios by pair, and how the cost grows with the size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from statistics import median

from benchmark.measure import Usage


@dataclass(frozen=True, slots=True)
class Run:
    """One contestant once on one checkpoint.

    Attributes:
        round: Counted from 1.
        checkpoint: Name of the source.
        contestant: Who ran.
        usage: What it took.
        output_nbytes: Length of the files that it wrote.
    """

    round: int
    checkpoint: str
    contestant: str
    usage: Usage
    output_nbytes: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Medians over the rounds of one contestant on one checkpoint.

    Attributes:
        checkpoint: Name of the source.
        contestant: Who ran.
        gigabytes: Length of the source's tensors in GB.
        wall_seconds: And the next ones: as in Usage.
        user_seconds: In the programs.
        system_seconds: In the kernel.
        cpu_seconds: Both; the median of the sums.
        peak_rss_nbytes: Here the highest of all rounds.
        read_nbytes: By read calls.
        ratios: Wall time over that of ``cp`` in the same round, by round, or of whom the others are
            held against; empty where it took no part.
    """

    checkpoint: str
    contestant: str
    gigabytes: float
    wall_seconds: float
    user_seconds: float
    system_seconds: float
    cpu_seconds: float
    peak_rss_nbytes: int
    read_nbytes: float
    ratios: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Fit:
    """The straight line through ``(x, y)`` with the least squares.

    Attributes:
        slope: Growth of y for each unit of x.
        intercept: y at x = 0.
        largest_residual: The most that a point lies off the line.
        r_squared: Share of the variance that the line explains; 1 where y is constant.
    """

    slope: float
    intercept: float
    largest_residual: float
    r_squared: float


def summarize(
    runs: Sequence[Run], checkpoint: str, contestant: str, gigabytes: float, of: str = "cp"
) -> Summary:
    """The medians of one contestant on one checkpoint, and how it compares with another, ``of``."""
    there = [run for run in runs if run.checkpoint == checkpoint]
    usages = {run.round: run.usage for run in there if run.contestant == contestant}
    others = {run.round: run.usage for run in there if run.contestant == of}
    own = usages.values()
    return Summary(
        checkpoint=checkpoint,
        contestant=contestant,
        gigabytes=gigabytes,
        wall_seconds=median(usage.wall_seconds for usage in own),
        user_seconds=median(usage.user_seconds for usage in own),
        system_seconds=median(usage.system_seconds for usage in own),
        cpu_seconds=median(usage.cpu_seconds for usage in own),
        peak_rss_nbytes=max(usage.peak_rss_nbytes for usage in own),
        read_nbytes=median(usage.read_nbytes for usage in own),
        ratios=tuple(
            usage.wall_seconds / others[number].wall_seconds
            for number, usage in usages.items()
            if number in others
        ),
    )


def fit_line(points: Sequence[tuple[float, float]]) -> Fit:
    """Least squares of y against x.

    Raises:
        ValueError: Fewer than two different x.
    """
    if len({x for x, _ in points}) < 2:
        raise ValueError("a line needs two different x")
    mean_x = fsum(x for x, _ in points) / len(points)
    mean_y = fsum(y for _, y in points) / len(points)
    slope = fsum((x - mean_x) * (y - mean_y) for x, y in points) / fsum(
        (x - mean_x) ** 2 for x, _ in points
    )
    intercept = mean_y - slope * mean_x
    residuals = [y - (slope * x + intercept) for x, y in points]
    spread = fsum((y - mean_y) ** 2 for _, y in points)
    unexplained = fsum(residual**2 for residual in residuals)
    return Fit(
        slope=slope,
        intercept=intercept,
        largest_residual=max(map(abs, residuals)),
        r_squared=1 - unexplained / spread if spread else 1.0,
    )
