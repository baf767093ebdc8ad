"""The figures as Markdown for the README and as JSON with every round."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from benchmark.checkpoints import Design
from benchmark.contestants import CONTESTANTS
from benchmark.figures import Fit, Run, Summary, fit_line, summarize

COLUMNS = (
    "contestant",
    "wall s",
    "wall / cp",
    "GB/s",
    "user s/GB",
    "system s/GB",
    "CPU s/GB",
    "peak RSS",
    "read",
)
FIT_COLUMNS = ("contestant", "y", "s/GB", "s at 0 GB", "largest residual", "R²")
FIT_SIZES = 3
"""A line through fewer sizes says nothing about whether the cost is linear."""


@dataclass(frozen=True, slots=True)
class Report:
    """A finished bench.

    Attributes:
        designs: The checkpoints.
        contestants: Who ran.
        rounds: How many were counted.
        workers: Of a contestant that takes such a number.
        torch_threads: Within one operation of torch.
        machine: As ``machine.machine`` gives it.
        versions: As ``machine.versions`` gives them.
        date: When it was begun.
        command: The command line, without the names of folders.
        runs: Every counted run.
    """

    designs: Sequence[Design]
    contestants: Sequence[str]
    rounds: int
    workers: int
    torch_threads: int
    machine: dict[str, str]
    versions: dict[str, str]
    date: str
    command: str
    runs: Sequence[Run]

    def summary(self, design: Design, contestant: str) -> Summary:
        """The medians of a contestant on a checkpoint."""
        return summarize(self.runs, design.name, contestant, design.nbytes / 1e9)

    def fits(self) -> dict[tuple[str, str], dict[str, Fit]]:
        """(kind of checkpoint, contestant) → CPU and wall seconds against GB, if sizes suffice."""
        found = {}
        kinds: dict[str, list[Design]] = {}
        for design in self.designs:
            kinds.setdefault(design.kind, []).append(design)
        for kind, designs in kinds.items():
            if len({design.nbytes for design in designs}) >= FIT_SIZES:
                for contestant in self.contestants:
                    rows = [self.summary(design, contestant) for design in designs]
                    found[kind, contestant] = {
                        "CPU": fit_line([(row.gigabytes, row.cpu_seconds) for row in rows]),
                        "wall": fit_line([(row.gigabytes, row.wall_seconds) for row in rows]),
                    }
        return found

    def markdown(self) -> str:
        """Tables and what they depend on."""
        parts = []
        for design in self.designs:
            rows = [row_cells(self.summary(design, name)) for name in self.contestants]
            title = f"{design.name}: {design.nbytes / 1e9:.2f} GB in {design.tensors} tensors"
            parts += [f"**{title}**", table(COLUMNS, rows)]
        fits = self.fits()
        for kind in dict.fromkeys(kind for kind, _ in fits):
            fit_rows = [
                (contestant, name, *fit_cells(fit))
                for (of, contestant), by_name in fits.items()
                if of == kind
                for name, fit in by_name.items()
            ]
            parts += [
                f"**{kind}: seconds against GB, a straight line**",
                table(FIT_COLUMNS, fit_rows),
            ]
        return "\n\n".join([*parts, self.conditions()]) + "\n"

    def conditions(self) -> str:
        """What the figures depend on, and what they say."""
        others = [run.usage.other_seconds for run in self.runs]
        facts = self.machine | self.versions
        commands = ", ".join(f"{name} `{CONTESTANTS[name].says}`" for name in self.contestants)
        cold = max(run.usage.disk_read_nbytes for run in self.runs)
        lines = [
            f"Medians of {self.rounds} interleaved rounds after one that does not count, "
            f"N = {self.workers} workers, torch threads: {self.torch_threads}. Wall / cp by round: "
            "median (least to most). Per GB of BF16 tensors. Peak RSS: the highest of all rounds, "
            "of one process, nothing seen below 9 MB. Read: by read calls, mapped files apart. "
            f"The disk is synced before each command and the source is cached (at most "
            f"{cold / 1e6:.0f} MB came from the disk in a run).",
            f"CPU time of everything else on the machine during a run: median "
            f"{median(others):.1f} s, at most {max(others):.1f} s.",
            "; ".join(f"{key} {value}" for key, value in facts.items()) + f"; {self.date}.",
            f"`{self.command}` with {commands}.",
        ]
        return "\n\n".join(lines)

    def json(self) -> str:
        """Everything, every round too."""
        content: dict[str, Any] = {
            "date": self.date,
            "command": self.command,
            "rounds": self.rounds,
            "workers": self.workers,
            "torch_threads": self.torch_threads,
            "machine": self.machine,
            "versions": self.versions,
            "checkpoints": [asdict(design) for design in self.designs],
            "commands": {name: CONTESTANTS[name].says for name in self.contestants},
            "summaries": [
                asdict(self.summary(design, name))
                for design in self.designs
                for name in self.contestants
            ],
            "fits": [
                {"kind": kind, "contestant": contestant, "of": name} | asdict(fit)
                for (kind, contestant), by_name in self.fits().items()
                for name, fit in by_name.items()
            ],
            "runs": [asdict(run) for run in self.runs],
        }
        return json.dumps(content, indent=2) + "\n"


def row_cells(row: Summary) -> tuple[str, ...]:
    """The cells of a contestant."""
    ratios = row.ratios
    return (
        row.contestant,
        f"{row.wall_seconds:.2f}",
        f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "–",
        f"{row.gigabytes / row.wall_seconds:.2f}",
        f"{row.user_seconds / row.gigabytes:.2f}",
        f"{row.system_seconds / row.gigabytes:.2f}",
        f"{row.cpu_seconds / row.gigabytes:.2f}",
        f"{row.peak_rss_nbytes / 1e6:.0f} MB",
        f"{row.read_nbytes / 1e9:.2f} GB" if row.read_nbytes >= 0 else "–",
    )


def fit_cells(fit: Fit) -> tuple[str, ...]:
    """The cells of a line."""
    return (
        f"{fit.slope:.3f}",
        f"{fit.intercept:.3f}",
        f"{fit.largest_residual:.3f} s",
        f"{fit.r_squared:.4f}",
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
