"""The arithmetic in plain NumPy: the definition that ``fast`` has to match bit for bit.

Per row of a weight ``[out, in]``::

    scale = bf16_round_nearest_even(f32(max |w|) / 127), 1 where that is 0
    q     = clip(rint(f32(w) / scale), -127, 127)

in F32 with true division and rounding half to even. The scale is made BF16-representable before
it is used, since the engine holds it in BF16 (vllm-ascend 0.11-0.30 ``w8a8_dynamic.py``).

With the search, the scale is the one of eight BF16 numbers below that one and two above it, or
itself, whose row has the least squared error. It is taken only where it is better for sure.

Errors are counted in whole units of 1/512 step, so that any order of addition gives the same sum.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glmquant.kernels.units import ERROR_BITS, INFINITY, MAGNITUDE

LEAST_SCALE: Final = np.float32(2.0**-100)
BOOST: Final = np.float32(2.0**64)
"""Rows with a smaller scale are multiplied by this before their errors are counted: 512 / scale
would overflow. They are not searched."""

SEARCH_DOWN: Final = 8
SEARCH_UP: Final = 2
"""How many BF16 numbers below and above the plain scale are tried. Of Gaussian rows of 12,288 the
best is among them for 90 %; rows of 1,024 to 5,120 gain nothing from more."""

SEARCH_MARGIN: Final = 1 - 1e-9
"""More than F64 can lose in a row of a million elements."""

FloatBits = NDArray[np.uint16] | NDArray[np.uint32]


class QuantizedRows(NamedTuple):
    """Rows of a weight after quantization.

    Attributes:
        weight: ``[rows, in]`` int8 in [-127, 127].
        scale: ``[rows]`` F32, each representable in BF16 and > 0.
        signal: ``[rows]`` int64, Σ (w / scale)² in units of 2^-18.
        noise: ``[rows]`` int64, Σ (w / scale - q)² in units of 2^-18.
        worst: ``[rows]`` int32, max |w / scale - q| in units of 2^-9.
    """

    weight: NDArray[np.int8]
    scale: NDArray[np.float32]
    signal: NDArray[np.int64]
    noise: NDArray[np.int64]
    worst: NDArray[np.int32]


def bits_dtype(dtype: str) -> np.dtype[Any]:
    """The unsigned NumPy dtype, little-endian, in which a float dtype is read from disk."""
    return np.dtype("<u4" if dtype == "F32" else "<u2")


def first_non_finite(bits: FloatBits, dtype: str) -> int | None:
    """Flat position of the first NaN or Inf, or None.

    Args:
        bits: Any shape, as ``bits_dtype`` says.
        dtype: ``BF16``, ``F16`` or ``F32``.
    """
    bad = np.flatnonzero((bits.reshape(-1) & MAGNITUDE[dtype]) >= INFINITY[dtype])
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


def quantize_rows(bits: FloatBits, dtype: str, *, is_searched: bool = False) -> QuantizedRows:
    """Quantize finite rows.

    Args:
        bits: ``[rows, in]``, as ``bits_dtype`` says; finite.
        dtype: ``BF16``, ``F16`` or ``F32``.
        is_searched: Take the best of the neighbouring scales.

    Returns:
        int8 rows, their scales and their errors.
    """
    values = to_f32(bits, dtype)
    scale = round_to_bf16(np.abs(values).max(axis=1) / np.float32(127))
    if is_searched:
        scale = np.where(scale >= LEAST_SCALE, _search(values, scale), scale)
    scale = np.where(scale == 0, np.float32(1), scale)
    weight = _round(values, scale)
    value, error = _in_units(values, scale, weight)
    return QuantizedRows(
        weight,
        scale,
        (value * value).sum(axis=1),
        (error * error).sum(axis=1),
        np.abs(error).max(axis=1).astype(np.int32),
    )


def no_sums() -> NDArray[np.float64]:
    """Of a weight of which no row is done."""
    return np.zeros(3)


def add_rows(sums: NDArray[np.float64], rows: QuantizedRows) -> None:
    """Add the next rows of a weight to its error figures, one after the other.

    Args:
        sums: ``[3]``, changed: Σ signal · scale², Σ noise · scale², max worst · scale, each in F64
            and in the units of ``rows``.
        rows: The rows that follow those already in there.
    """
    figures = (array.tolist() for array in rows[1:])
    for scale, signal, noise, worst in zip(*figures, strict=True):
        sums[0] += signal * (scale * scale)
        sums[1] += noise * (scale * scale)
        sums[2] = max(sums[2], worst * scale)


def _round(values: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.int8]:
    rounded = np.clip(np.rint(values / scale[:, None]), np.float32(-127), np.float32(127))
    weight: NDArray[np.int8] = rounded.astype(np.int8)
    return weight


def _in_units(
    values: NDArray[np.float32], scale: NDArray[np.float32], weight: NDArray[np.int8]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Values and errors in 2^-9 of a step, rounded half to even."""
    boost = np.where(scale < LEAST_SCALE, BOOST, np.float32(1))
    units = np.float32(1 << ERROR_BITS) / (scale * boost)
    value = np.rint(values * boost[:, None] * units[:, None]).astype(np.int64)
    return value, value - weight.astype(np.int64) * (1 << ERROR_BITS)


def _search(values: NDArray[np.float32], plain: NDArray[np.float32]) -> NDArray[np.float32]:
    best = plain.copy()
    least = np.full(len(plain), np.inf)
    with np.errstate(all="ignore"):  # rows that are not searched
        for neighbour in range(-SEARCH_DOWN, SEARCH_UP + 1):
            word = plain.view(np.uint32).astype(np.int64) + (neighbour << 16)
            tried = word.astype(np.uint32).view(np.float32)
            _, error = _in_units(values, tried, _round(values, tried))
            energy = (error * error).sum(axis=1) * tried.astype(np.float64) ** 2
            best = np.where(energy < least, tried, best)
            least = np.fmin(energy, least)
        is_better = _energy(values, best) < _energy(values, plain) * SEARCH_MARGIN
    return np.where(is_better, best, plain)


def _energy(values: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.float64]:
    """Σ (w - q scale)² in F64; each half is added to the other until one number is left."""
    quantized = _round(values, scale).astype(np.float64) * scale.astype(np.float64)[:, None]
    squares: NDArray[np.float64] = (values.astype(np.float64) - quantized) ** 2
    while squares.shape[1] > 1:
        half = (squares.shape[1] + 1) // 2
        folded = squares[:, :half].copy()
        folded[:, : squares.shape[1] - half] += squares[:, half:]
        squares = folded
    return squares[:, 0]
