"""What an int8 linear and the weight it was made of tell of the factors between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from glmquant.source import FolderSource
from glmquant.tensors import DTYPE_NBITS, TensorRef
from glmquant.verify.weights.arithmetic import WORDS, Floats, values_of
from glmquant.verify.weights.crew import Worker
from glmquant.verify.weights.fits import Doubles, Sums
from glmquant.verify.weights.scales import scales_of
from glmquant.verify.weights.scan import MAX_VECTOR_NBYTES
from glmquant.verify.weights.units import Unit

SAMPLED_ROWS: Final = 256
"""Rows of a linear that are read for its factors. Each tells of a factor within 1 %, 256 within
0.1 %: nearer than BF16 numbers are to each other."""


class Pair(NamedTuple):
    """A tensor or linear of the checkpoint and the weight it was made of."""

    unit: Unit
    other: TensorRef


class Sampler:
    """Reads some rows of both.

    Args:
        mine: Where the checkpoint's bytes are.
        theirs: Where the source's are.
    """

    def __init__(self, mine: FolderSource, theirs: FolderSource) -> None:
        self._mine = mine
        self._theirs = theirs

    def vectors(self, pair: Pair, worker: Worker) -> tuple[Doubles, Doubles] | None:
        """The numbers of a short tensor and of the source's; None where they cannot be compared."""
        if pair.unit.main.shape != pair.other.shape:
            return None
        mine = self._vector(self._mine, pair.unit.main, worker)
        theirs = self._vector(self._theirs, pair.other, worker)
        return None if mine is None or theirs is None else (mine, theirs)

    def _vector(self, source: FolderSource, ref: TensorRef, worker: Worker) -> Doubles | None:
        if ref.nbytes > MAX_VECTOR_NBYTES:
            return None
        data = np.frombuffer(worker.read(source, ref, "vector", 0, ref.nbytes), np.uint8)
        values = values_of(data, ref.dtype)
        return None if values is None else values.astype(np.float64).reshape(-1)

    def sums(self, pair: Pair, columns: int, worker: Worker) -> Sums:
        """What the first rows of a linear tell."""
        product, square, rows = np.zeros(columns), np.zeros(columns), 0
        for mine, theirs in self._samples(pair, columns, worker):
            product += np.einsum("ij,ij->j", mine, theirs)
            square += np.einsum("ij,ij->j", theirs, theirs)
            rows += len(mine)
        return Sums(product, square, rows)

    def row_sums(self, pair: Pair, worker: Worker, before: Floats | None) -> Sums | None:
        """What a linear tells of the factors of its rows, ``[out]``.

        Args:
            pair: The linear.
            worker: Has the buffers.
            before: What its columns were multiplied by, where they were.
        """
        if len(pair.other.shape) != 2:
            return None
        rows, columns = pair.other.shape
        product, square = [], []
        for mine, theirs in self._samples(pair, columns, worker, rows):
            wanted = theirs if before is None else theirs * before
            product.append(np.einsum("ij,ij->i", mine, wanted))
            square.append(np.einsum("ij,ij->i", wanted, wanted))
        if not product:
            return None
        return Sums(np.concatenate(product), np.concatenate(square), columns)

    def _samples(
        self, pair: Pair, columns: int, worker: Worker, most: int = SAMPLED_ROWS
    ) -> Iterator[tuple[Doubles, Doubles]]:
        """Some rows of both in steps of the row, so that each weighs as much as another."""
        unit, other = pair
        ref = unit.main
        if ref.shape != other.shape or other.shape[1:] != (columns,) or other.dtype not in WORDS:
            return
        rows = min(most, other.shape[0])
        scale = self._row_scales(unit, worker)
        step = max(1, (1 << 18) // columns)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            both = []
            for source, each in ((self._mine, ref), (self._theirs, other)):
                size = DTYPE_NBITS[each.dtype] // 8 * columns
                view = worker.read(source, each, "sample", first * size, count * size)
                values = values_of(np.frombuffer(view, np.uint8), each.dtype)
                if values is None:
                    return
                both.append(values.astype(np.float64).reshape(-1, columns))
            mine, theirs = both
            with np.errstate(all="ignore"):
                if scale is not None:
                    part = scale[first : first + count, None].astype(np.float64)
                else:
                    part = np.abs(mine).max(axis=1, keepdims=True) / 127
                    mine /= np.where(part > 0, part, 1)
                theirs /= np.where(part > 0, part, np.inf)
            # Clipped values would make a factor too small.
            fine = np.isfinite(mine) & np.isfinite(theirs) & (np.abs(mine) < 127)
            yield np.where(fine, mine, 0), np.where(fine, theirs, 0)

    def _row_scales(self, unit: Unit, worker: Worker) -> Floats | None:
        if not unit.is_int8:
            return None
        values = {}
        for suffix, ref in unit.parts.items():
            if ref.nbytes <= MAX_VECTOR_NBYTES:
                data = bytes(worker.read(self._mine, ref, "vector", 0, ref.nbytes))
                held = values_of(np.frombuffer(data, np.uint8), ref.dtype)
                if held is not None:
                    values[suffix] = held
        scales = scales_of(unit, values)
        return None if scales is None else scales.stored
