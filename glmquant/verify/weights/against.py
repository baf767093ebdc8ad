"""An int8 linear against the weight that it was made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from glmquant.source import FolderSource
from glmquant.tensors import DTYPE_NBITS, TensorRef
from glmquant.verify.weights.arithmetic import WORDS, largest_magnitudes, plain_scales, widen
from glmquant.verify.weights.crew import BLOCK_ELEMENTS, Worker
from glmquant.verify.weights.factors import Factors, smooth
from glmquant.verify.weights.figures import TensorFigures
from glmquant.verify.weights.flaws import Flaw
from glmquant.verify.weights.rows import RowJudge, Rule
from glmquant.verify.weights.scales import Scales, check_rows
from glmquant.verify.weights.scan import Scan
from glmquant.verify.weights.units import Unit

READ_BLOCKS: Final = 4
"""Blocks of rows that are read at once."""

BIAS_STEPS: Final = 1.0
"""What the two roundings of ``quant_bias`` may come to: half a step each."""

BIAS_PART: Final = 2.0**-7
"""The same where the quotient is BF16, as a part of it."""


def compare_int8(
    unit: Unit,
    scan: Scan,
    scales: Scales,
    mine: FolderSource,
    theirs: tuple[FolderSource, TensorRef],
    rule: Rule,
    worker: Worker,
    factors: Factors | None = None,
    compared: range | None = None,
) -> tuple[list[Flaw], TensorFigures, NDArray[np.int64]]:
    """Hold an int8 weight against the source's, and look at its bytes on the way.

    Args:
        unit: The linear.
        scan: Reads its weight, of the same shape as the source's.
        scales: One a row.
        mine: Where its bytes are.
        theirs: Where the source's are, and which tensor it is.
        rule: How strictly.
        worker: Has the buffers.
        factors: What smoothing multiplied the source by, where it did.
        compared: The rows that are held against the source's; all where it is left out.

    Returns:
        What is wrong, the figures, and the sum of each int8 row.

    Raises:
        StorageError: A file cannot be read.
    """
    source, other = theirs
    rows, columns = unit.main.shape
    nbytes = DTYPE_NBITS[other.dtype] // 8
    judge = RowJudge(unit, scales, rule, worker)
    sums = np.zeros(rows, np.int64)
    odd: dict[str, Flaw] = {}
    step = max(1, BLOCK_ELEMENTS // columns)
    with np.errstate(all="ignore"):
        for number, block in enumerate(scan.read(mine, worker, READ_BLOCKS * step * columns)):
            offset = number * READ_BLOCKS * step
            whole = np.frombuffer(block, np.int8).reshape(-1, columns)
            if "quant_bias" in unit.parts:
                sums[offset : offset + len(whole)] = whole.sum(axis=1, dtype=np.int64)
            if compared is not None:
                for flaw in check_rows(unit, offset, whole, scales):
                    odd.setdefault(flaw.what, flaw)
            end = offset + len(whole)
            both = range(offset, end) if compared is None else _common(compared, offset, end)
            if not both:
                continue
            read = whole[both.start - offset : both.stop - offset]
            offset = both.start
            held = worker.read(
                source, other, "source", offset * columns * nbytes, read.size * nbytes
            )
            words = np.frombuffer(held, WORDS[other.dtype]).reshape(-1, columns)
            largest = largest_magnitudes(words, other.dtype)
            plain = plain_scales(largest)
            for first in range(0, len(read), step):
                weight = read[first : first + step]
                values = worker.floats("values", (len(weight), columns))
                widen(words[first : first + step], other.dtype, values)
                peaks, scale = largest[first : first + step], plain[first : first + step]
                if factors is not None:
                    smooth(values, factors, offset + first)
                    peaks = np.abs(values).max(axis=1)
                    scale = plain_scales(peaks)
                elif judge.is_formula(offset + first, weight, values, scale):
                    continue
                else:
                    widen(words[first : first + step], other.dtype, values)
                if not judge.take(offset + first, weight, values, peaks, scale):
                    for flaw in check_rows(unit, offset + first, weight, scales):
                        odd.setdefault(flaw.what, flaw)
    flaws = [*scan.flaws(is_judged=True), *odd.values(), *judge.flaws()]
    return flaws, judge.figures(), sums


def _common(rows: range, first: int, end: int) -> range:
    return range(max(rows.start, first), min(rows.stop, end))


def check_quant_bias(
    unit: Unit,
    values: dict[str, NDArray[Any]],
    bias: NDArray[np.float64] | None,
    sums: NDArray[np.int64],
) -> Iterator[Flaw]:
    """N1 for ``quant_bias = round(bias / deq_scale - input_offset * Σ q)`` of a static linear.

    Args:
        unit: The linear.
        values: Suffix → the numbers of that tensor.
        bias: The float bias, ``[out]``; None where the linear has none.
        sums: The sum of each int8 row.
    """
    stored, deq, offset = (
        values.get(suffix) for suffix in ("quant_bias", "deq_scale", "input_offset")
    )
    rows = len(sums)
    if stored is None or deq is None or offset is None or offset.size != 1:
        return
    if stored.size != rows or deq.size != rows or deq.dtype.kind != "f":
        return
    with np.errstate(all="ignore"):
        shift = float(offset.reshape(-1)[0]) * sums
        part = np.zeros(rows) if bias is None else bias.reshape(-1) / deq.reshape(-1)
        wanted = part - shift
        away = np.abs(stored.reshape(-1) - wanted)
        limit = BIAS_STEPS + BIAS_PART * np.abs(part) + 2.0**-20 * np.abs(shift)
        off = np.flatnonzero(~(away <= limit))
    if len(off):
        worst = int(off[np.argmax(away[off])])
        yield Flaw(
            "N1",
            "quant_bias is not round(bias / deq_scale - input_offset * Σ q)",
            unit.role,
            unit.parts["quant_bias"].name,
            f"{wanted[worst]:.1f} in row {worst}",
            f"{stored.reshape(-1)[worst]}, {len(off)} of {rows} rows",
            float(away[worst]),
            True,
        )
