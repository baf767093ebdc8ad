"""``kernels.fast`` on NumPy arrays, to be compared with ``kernels.definition``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from glmquant.kernels import fast
from glmquant.kernels.definition import FloatBits, QuantizedRows


def quantize_rows(
    bits: FloatBits,
    dtype: str,
    *,
    is_searched: bool = False,
    sums: fast.Sums | None = None,
    quantizer: fast.RowQuantizer | None = None,
) -> QuantizedRows | None:
    """As ``definition.quantize_rows``; None where a row is not finite."""
    rows, columns = bits.shape
    quantizer = quantizer or fast.RowQuantizer()
    contiguous = np.ascontiguousarray(bits)
    weight = np.empty((rows, columns), np.int8)
    scale = np.empty(rows, np.float32)
    is_finite = quantizer.quantize(
        contiguous.ctypes.data,
        dtype,
        (rows, columns),
        weight=weight.ctypes.data,
        scale=scale.ctypes.data,
        sums=sums or fast.Sums(),
        is_searched=is_searched,
    )
    figures = bytes(quantizer.figures(rows))
    signal, noise = np.frombuffer(figures, np.int64, 2 * rows).reshape(2, rows)
    worst = np.frombuffer(figures, np.int32, rows, 16 * rows)
    return QuantizedRows(weight, scale, signal, noise, worst) if is_finite else None


def is_finite(bits: FloatBits, dtype: str) -> bool:
    """Whether there is no NaN and no Inf."""
    flat: NDArray[np.generic] = np.ascontiguousarray(bits).reshape(-1)
    return fast.is_finite(flat.ctypes.data, dtype, flat.size)
