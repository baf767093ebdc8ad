"""The arithmetic in plain NumPy: the definition that ``fast`` has to match bit for bit.

Per row of a weight ``[out, in]``::

    scale = bf16_round_nearest_even(f32(max |w|) / 127), 1 where that is 0
    q     = clip(rint(f32(w) / scale), -127, 127)

in F32 with true division and rounding half to even. The scale is made BF16-representable before
it is used, since the engine holds it in BF16 (vllm-ascend 0.11-0.30 ``w8a8_dynamic.py``).

Errors are counted in whole units, so that any order of addition gives the same sum: the error of an
element in 2^-15 of a step, its value in 2^-10 of a step.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

ERROR_BITS: Final = 15
SIGNAL_BITS: Final = 10

FloatBits = NDArray[np.uint16] | NDArray[np.uint32]


class QuantizedRows(NamedTuple):
    """Rows of a weight after quantization.

    Attributes:
        weight: ``[rows, in]`` int8 in [-127, 127].
        scale: ``[rows]`` F32, each representable in BF16 and > 0.
        signal: ``[rows]`` int64, Σ (w / scale)² in units of 2^-20.
        noise: ``[rows]`` int64, Σ (w / scale - q)² in units of 2^-30.
        worst: ``[rows]`` int32, max |w / scale - q| in units of 2^-15.
    """

    weight: NDArray[np.int8]
    scale: NDArray[np.float32]
    signal: NDArray[np.int64]
    noise: NDArray[np.int64]
    worst: NDArray[np.int32]


_INFINITY: Final = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000}
_MAGNITUDE: Final = {"BF16": 0x7FFF, "F16": 0x7FFF, "F32": 0x7FFFFFFF}


def bits_dtype(dtype: str) -> np.dtype[Any]:
    """The unsigned NumPy dtype, little-endian, in which a float dtype is read from disk."""
    return np.dtype("<u4" if dtype == "F32" else "<u2")


def magnitude_limits(dtype: str) -> tuple[int, int]:
    """The mask that drops the sign, and the magnitude from which on a value is not finite."""
    return _MAGNITUDE[dtype], _INFINITY[dtype]


def first_non_finite(bits: FloatBits, dtype: str) -> int | None:
    """Flat position of the first NaN or Inf, or None.

    Args:
        bits: Any shape, as ``bits_dtype`` says.
        dtype: ``BF16``, ``F16`` or ``F32``.
    """
    mask, limit = magnitude_limits(dtype)
    bad = np.flatnonzero((bits.reshape(-1) & mask) >= limit)
    return int(bad[0]) if len(bad) else None


def to_f32(bits: FloatBits, dtype: str) -> NDArray[np.float32]:
    """The values of ``bits`` in F32, exactly."""
    if dtype == "BF16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    if dtype == "F16":
        return bits.view(np.float16).astype(np.float32)
    return bits.view(np.float32)


def round_to_bf16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each value rounded to the nearest BF16, half to even, still in F32."""
    bits = values.view(np.uint32)
    rounded: NDArray[np.uint32] = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def quantize_rows(bits: FloatBits, dtype: str) -> QuantizedRows:
    """Quantize finite rows.

    Args:
        bits: ``[rows, in]``, as ``bits_dtype`` says; finite.
        dtype: ``BF16``, ``F16`` or ``F32``.

    Returns:
        int8 rows, their scales and their errors.
    """
    weight = to_f32(bits, dtype)
    scale = round_to_bf16(np.abs(weight).max(axis=1) / np.float32(127))
    scale[scale == 0] = 1
    steps = weight / scale[:, None]
    rounded = np.clip(np.rint(steps), np.float32(-127), np.float32(127))
    error = np.rint((steps - rounded) * np.float32(1 << ERROR_BITS)).astype(np.int64)
    value = rounded.astype(np.int64) * (1 << SIGNAL_BITS) + (error >> (ERROR_BITS - SIGNAL_BITS))
    return QuantizedRows(
        rounded.astype(np.int8),
        scale,
        (value * value).sum(axis=1),
        (error * error).sum(axis=1),
        np.abs(error).max(axis=1).astype(np.int32),
    )
