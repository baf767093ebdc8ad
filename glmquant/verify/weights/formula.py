"""N1 for our own output: scales and values are exactly those of the formula."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from glmquant.verify.weights.arithmetic import SEARCH_SLACK, may_be_searched
from glmquant.verify.weights.blocks import Block, RowFlaw, lost_or
from glmquant.verify.weights.crew import Worker

CLIPPED: Final = np.float32(127.499)


def check_formula(block: Block, worker: Worker, is_searched: bool) -> Iterator[RowFlaw]:
    """Rows that the formula would have made otherwise.

    Args:
        block: The rows; its errors are the quotients, ``values / scale``, and its ``whole`` is yet
            to be written.
        worker: Has the buffers.
        is_searched: Any of eleven scales will do.
    """
    stored, plain = block.stored, block.plain
    same = may_be_searched(stored, plain) if is_searched else stored == plain
    if not same.all():
        off = np.flatnonzero(~same)
        away = np.abs(np.log2(stored[off].astype(np.float64) / plain[off]))
        at = int(np.argmax(away))
        row = off[at]
        yield RowFlaw(
            "scales are not those that the formula gives for the source's rows",
            len(off),
            f"{plain[row]:.9g} in row {block.first + row}"
            + " or one of ten BF16 numbers around it" * is_searched,
            f"{stored[row]:.9g}",
            float(away[at]),
            is_scale=True,
        )
    rounded = block.whole
    np.rint(block.errors, out=rounded)
    divisor = stored if is_searched else plain
    # A scale that was rounded down to BF16 moves 127 by less than half a step.
    if not (block.largest < divisor * CLIPPED).all():
        np.clip(rounded, -127, 127, out=rounded)
    as_int8 = np.frombuffer(worker.buffer("rounded", rounded.size), np.int8).reshape(rounded.shape)
    np.copyto(as_int8, rounded, casting="unsafe")
    if np.array_equal(as_int8, block.weight):
        return
    rounded = rounded.copy()
    np.copyto(block.whole, block.weight)
    distance = np.nan_to_num(np.abs(rounded - block.whole), nan=1e9)
    row, column = np.unravel_index(int(np.argmax(distance)), distance.shape)
    yield RowFlaw(
        lost_or(
            "int8 values are not those that the formula gives for the source's", block.weight[row]
        ),
        int(np.count_nonzero(distance.any(axis=1))),
        f"{rounded[row, column]:.0f} at row {block.first + row}, column {column}, "
        f"from {block.values[row, column]:.6g}",
        f"{block.weight[row, column]}",
        float(distance[row, column]),
    )


def check_search(block: Block, noise: NDArray[np.float64]) -> Iterator[RowFlaw]:
    """Rows with more noise than the plain scale would have given them.

    Args:
        block: The rows.
        noise: Theirs, with the scales of the file.
    """
    stored, plain = block.stored, block.plain
    tried = np.flatnonzero((stored != plain) & may_be_searched(stored, plain))
    if not len(tried):
        return
    errors = block.values[tried] / plain[tried, None]
    errors -= np.clip(np.rint(errors), -127, 127)
    before = np.einsum("ij,ij->i", errors, errors) * plain[tried].astype(np.float64) ** 2
    worse = np.flatnonzero(noise[tried] > before * SEARCH_SLACK)
    if len(worse):
        with np.errstate(divide="ignore"):
            ratio = noise[tried[worse]] / before[worse]
        at = int(np.argmax(ratio))
        row = tried[worse[at]]
        yield RowFlaw(
            "searched scales are worse than the plain ones",
            len(worse),
            f"{plain[row]:.9g} in row {block.first + row}",
            f"{stored[row]:.9g}",
            float(ratio[at]),
            is_scale=True,
        )
