"""The arithmetic of ``definition`` at the speed of memory, the interpreter's lock given away."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmquant.kernels.definition import FloatBits, QuantizedRows, magnitude_limits, no_sums, to_f32
from glmquant.kernels.machine_code import kernels

_SCRATCH_NBYTES = 14
"""A column: an F64, an F32 and an int16."""


class RowBuffers:
    """Memory for the outputs and the scratch of a block, to be used block after block."""

    def __init__(self) -> None:
        self._elements = self._rows = self._columns = -1

    def fit(self, rows: int, columns: int) -> None:
        """Have room for a block; what the last one left is lost where there was too little."""
        if rows * columns <= self._elements and rows <= self._rows and columns <= self._columns:
            return
        self._elements = max(self._elements, rows * columns)
        self._rows, self._columns = max(self._rows, rows), max(self._columns, columns)
        self._outputs = QuantizedRows(
            np.empty((1, self._elements), np.int8),
            np.empty(self._rows, np.float32),
            np.empty(self._rows, np.int64),
            np.empty(self._rows, np.int64),
            np.empty(self._rows, np.int32),
        )
        self._scratch = np.empty(self._columns * _SCRATCH_NBYTES, np.uint8)
        self.addresses = [array.ctypes.data for array in self._outputs]
        self.scratch_address = self._scratch.ctypes.data

    def result(self, rows: int, columns: int) -> QuantizedRows:
        """What was computed into the first rows."""
        weight, scale, signal, noise, worst = self._outputs
        weight = weight.reshape(-1)[: rows * columns].reshape(rows, columns)
        return QuantizedRows(weight, scale[:rows], signal[:rows], noise[:rows], worst[:rows])


def quantize_rows(
    bits: FloatBits,
    dtype: str,
    *,
    is_searched: bool = False,
    sums: NDArray[np.float64] | None = None,
    buffers: RowBuffers | None = None,
) -> QuantizedRows | None:
    """As ``definition.quantize_rows``, bit for bit.

    Args:
        bits: ``[rows, in]``, contiguous, as ``definition.bits_dtype`` says.
        dtype: ``BF16``, ``F16`` or ``F32``.
        is_searched: Take the best of the neighbouring scales.
        sums: As in ``definition.add_rows``; the rows are added to it.
        buffers: Where the result lies until they are used again; new ones if left out.

    Returns:
        int8 rows, their scales and their errors, or None where a row is not finite.
    """
    rows, columns = bits.shape
    buffers = buffers or RowBuffers()
    buffers.fit(rows, columns)
    sums = no_sums() if sums is None else sums
    words = bits if dtype != "F16" else to_f32(bits, dtype)
    failed = kernels().quantize[8 * words.itemsize](
        words.ctypes.data,
        rows,
        columns,
        is_searched,
        *buffers.addresses,
        sums.ctypes.data,
        buffers.scratch_address,
    )
    return buffers.result(rows, columns) if failed < 0 else None


def is_finite(bits: FloatBits, dtype: str) -> bool:
    """Whether there is no NaN and no Inf.

    Args:
        bits: Any shape, contiguous, as ``definition.bits_dtype`` says.
        dtype: ``BF16``, ``F16`` or ``F32``.
    """
    mask, limit = magnitude_limits(dtype)
    flat: NDArray[Any] = bits.reshape(-1)
    return kernels().magnitude[8 * flat.itemsize](flat.ctypes.data, flat.size, mask) < limit


def prepare() -> None:
    """Compile, or load what was compiled before, before threads need it."""
    kernels()
