"""What smoothing multiplied and divided a linear by."""

from __future__ import annotations

from typing import NamedTuple

from glmquant.verify.weights.arithmetic import Floats, round_in_place, to_bf16


class Factors(NamedTuple):
    """What smoothing did to a linear.

    Attributes:
        columns: ``[in]`` F32, what its columns were multiplied by, or None.
        rows: ``[out]`` F32, what its rows and its bias were divided by, or None.
        in_bf16: The products were rounded to BF16.
        doubt: How far a factor may be off, as a part of it: small where many rows told of it.
    """

    columns: Floats | None = None
    rows: Floats | None = None
    in_bf16: bool = True
    doubt: float = 0.0


def smooth(values: Floats, factors: Factors, first: int) -> None:
    """What msModelSlim has before it rounds to int8: rows first, by BF16 reciprocals."""
    if factors.rows is not None:
        reciprocals = 1 / factors.rows[first : first + len(values), None]
        values *= to_bf16(reciprocals) if factors.in_bf16 else reciprocals
        if factors.in_bf16:
            round_in_place(values)
    if factors.columns is not None:
        values *= factors.columns
        if factors.in_bf16:
            round_in_place(values)
