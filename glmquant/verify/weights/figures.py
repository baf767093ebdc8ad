"""How far int8 weights are from those that they were made of."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple


class TensorFigures(NamedTuple):
    """An int8 weight against the source's.

    Attributes:
        tensor: Its name.
        role: What it does.
        sqnr_db: Signal to quantization noise in dB; None where there is no noise or no signal.
        worst_steps: Largest error in steps of its row.
    """

    tensor: str
    role: str
    sqnr_db: float | None
    worst_steps: float


@dataclass(frozen=True, slots=True)
class RoleFigures:
    """The int8 weights of one role.

    Attributes:
        role: What they do.
        tensors: How many there are.
        median_db: Median of their signals to noise, dB; None where none of them has noise.
        least_db: The least of them.
        least_tensor: The tensor that has it.
        worst_steps: Largest error in steps of its row.
        worst_tensor: The tensor that has it.
    """

    role: str
    tensors: int
    median_db: float | None
    least_db: float | None
    least_tensor: str | None
    worst_steps: float
    worst_tensor: str

    def fields(self) -> dict[str, Any]:
        """All of it for JSON."""
        return {
            "role": self.role,
            "tensors": self.tensors,
            "median_db": self.median_db,
            "least_db": self.least_db,
            "least_tensor": self.least_tensor,
            "worst_steps": self.worst_steps,
            "worst_tensor": self.worst_tensor,
        }


def decibels(signal: float, noise: float) -> float | None:
    """Signal to noise in dB; None where one of them is 0 or not finite."""
    ratio = signal / noise if noise > 0 else math.inf
    return round(10 * math.log10(ratio), 3) if 0 < ratio < math.inf else None


def by_role(figures: Iterable[TensorFigures]) -> tuple[RoleFigures, ...]:
    """The figures of each role, those of most tensors first."""
    roles: dict[str, list[TensorFigures]] = {}
    for figure in figures:
        roles.setdefault(figure.role, []).append(figure)
    return tuple(
        _role(role, found) for role, found in sorted(roles.items(), key=lambda item: -len(item[1]))
    )


def _role(role: str, figures: list[TensorFigures]) -> RoleFigures:
    noisy = {figure.tensor: figure.sqnr_db for figure in figures if figure.sqnr_db is not None}
    least = min(noisy, key=lambda tensor: noisy[tensor]) if noisy else None
    worst = max(figures, key=lambda figure: figure.worst_steps)
    return RoleFigures(
        role=role,
        tensors=len(figures),
        median_db=round(median(noisy.values()), 3) if noisy else None,
        least_db=noisy[least] if least else None,
        least_tensor=least,
        worst_steps=round(worst.worst_steps, 3),
        worst_tensor=worst.tensor,
    )
