"""Some rows of an int8 weight beside those that they were made of."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from glmquant.verify.weights.arithmetic import Floats


class Block(NamedTuple):
    """What is compared at once.

    Attributes:
        first: The number of the first row.
        weight: ``[rows, in]`` int8.
        whole: ``[rows, in]`` F32, the same once the comparison has begun.
        values: ``[rows, in]`` F32, what they were made of.
        errors: ``[rows, in]`` F32, overwritten by each step of the comparison.
        largest: ``[rows]`` F32, the largest magnitude of each row of values.
        plain: ``[rows]`` F32, the formula's scales for these values.
        stored: ``[rows]`` F32, the scales that the values are judged by: the file's.
    """

    first: int
    weight: NDArray[np.int8]
    whole: Floats
    values: Floats
    errors: Floats
    largest: Floats
    plain: Floats
    stored: Floats


class RowFlaw(NamedTuple):
    """What is wrong with some rows.

    Attributes:
        what: The cause.
        rows: How many rows of the block have it.
        expected: What the worst of them should have.
        found: What it has.
        badness: How bad that is.
        is_scale: The scale is to blame, not the values.
    """

    what: str
    rows: int
    expected: str
    found: str
    badness: float
    is_scale: bool = False


def errors_of(block: Block, scale: Floats) -> None:
    """Write ``values / scale - q`` to ``errors``."""
    np.divide(block.values, scale[:, None], out=block.errors)
    np.subtract(block.errors, block.whole, out=block.errors)


def noise_of(errors: Floats, scale: Floats) -> NDArray[np.float64]:
    """``[rows]``: Σ (values - q * scale)² from errors in steps."""
    squares = np.einsum("ij,ij->i", errors, errors).astype(np.float64)
    noise: NDArray[np.float64] = squares * scale.astype(np.float64) ** 2
    return noise


def lost_or(what: str, row: NDArray[np.int8]) -> str:
    """The cause, or that a row is zero where the source's is not."""
    return what if row.any() else "int8 rows are zero where the source's are not"
