"""W8A8 arithmetic in NumPy, of this package's own: what wrote a checkpoint must not judge it.

Per row of a weight ``[out, in]``: ``scale = bf16_rne(f32(max|w|) / 127)``, 1 where that is 0, and
``q = clip(rint(f32(w) / scale), -127, 127)`` in F32 with true division and half to even.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Words = NDArray[np.unsignedinteger[Any]]

WORDS: Final = {"BF16": "<u2", "F16": "<u2", "F32": "<u4", "F64": "<u8"}
"""Float dtype → the unsigned integer of its bits."""

INFINITY: Final = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000, "F64": 0x7FF << 52}
"""Bits of +Inf: NaN and Inf are those and above, the sign bit aside."""

INTEGERS: Final = {
    "BOOL": "u1",
    "I8": "i1",
    "U8": "u1",
    "I16": "<i2",
    "U16": "<u2",
    "I32": "<i4",
    "U32": "<u4",
    "I64": "<i8",
    "U64": "<u8",
}
"""Integer dtype → that of NumPy."""

_PRECISION: Final = {"F16": 11, "BF16": 8, "F32": 24, "F64": 53}
_LEAST_QUANTUM: Final = -133
"""2 to this power is the least BF16 above zero."""

SEARCHED: Final = range(-8, 3)
"""BF16 numbers from the plain scale that ``scale: mse`` may take (README, ``scale: mse``)."""

LEAST_SEARCHED: Final = np.float32(2.0**-100)
"""Rows with a smaller plain scale are not searched."""

SEARCH_SLACK: Final = 1 + 1e-4
"""What sums of F32 squares may be off by; a wrong neighbour costs more."""


def widens(narrow: str, wide: str) -> bool:
    """Whether each value of one float dtype is a value of another."""
    if {narrow, wide} == {"F16", "BF16"}:
        return False
    return _PRECISION[narrow] <= _PRECISION[wide]


def non_finite(words: Words, dtype: str) -> NDArray[np.intp] | None:
    """Flat positions of NaN and Inf, or None without one.

    Args:
        words: The bits, of any shape, contiguous.
        dtype: A key of ``WORDS``.
    """
    sign = 1 << (8 * words.dtype.itemsize - 1)
    signed = words.view(words.dtype.str.replace("u", "i"))
    # Two reductions without a temporary: positive ones are the largest signed words, negative
    # ones the largest unsigned ones.
    if int(signed.max(initial=0)) < INFINITY[dtype] and (
        int(words.max(initial=0)) < sign + INFINITY[dtype]
    ):
        return None
    return np.flatnonzero((words.reshape(-1) & (sign - 1)) >= INFINITY[dtype])


def widen(words: Words, dtype: str, out: Floats) -> None:
    """Write the values of BF16, F16 or F32 bits as F32; exact."""
    if dtype == "BF16":
        np.left_shift(words, 16, out=out.view(np.uint32), dtype=np.uint32, casting="unsafe")
    elif dtype == "F16":
        np.copyto(out, words.view(np.float16))
    else:
        np.copyto(out, words.view(np.float32))


def largest_magnitudes(words: Words, dtype: str) -> Floats:
    """``[rows]`` F32: the largest magnitude of each row of BF16, F16 or F32 bits ``[rows, in]``."""
    magnitude = (1 << (8 * words.dtype.itemsize - 1)) - 1
    largest = (words & words.dtype.type(magnitude)).max(axis=1)  # magnitudes are in order of bits
    values = np.empty(len(largest), np.float32)
    widen(largest, dtype, values)
    return values


def values_of(data: NDArray[np.uint8], dtype: str) -> NDArray[Any] | None:
    """The numbers in some bytes, in F64 or as integers; None for a dtype that NumPy lacks."""
    if dtype == "BF16":
        words = data.view("<u2").astype(np.uint32)
        wide: NDArray[np.float64] = (words << 16).view(np.float32).astype(np.float64)
        return wide
    if dtype in WORDS:
        floats: NDArray[np.float64] = data.view(WORDS[dtype].replace("u", "f")).astype(np.float64)
        return floats
    if dtype in INTEGERS:
        return data.view(INTEGERS[dtype])
    return None


def to_bf16(values: NDArray[Any]) -> Floats:
    """The nearest BF16 numbers, half to even, as F32: rounded to whole quanta in F64, exactly."""
    wide = values.astype(np.float64)
    _, exponent = np.frexp(wide)
    quantum = np.maximum(exponent - 8, _LEAST_QUANTUM)
    rounded: Floats = np.ldexp(np.rint(np.ldexp(wide, -quantum)), quantum).astype(np.float32)
    return rounded


def round_in_place(values: Floats) -> None:
    """Round finite values to BF16 where they are, half to even: quicker, for whole weights."""
    bits = values.view(np.uint32)
    bits += ((bits >> 16) & 1) + np.uint32(0x7FFF)
    bits &= np.uint32(0xFFFF0000)


def plain_scales(largest: Floats) -> Floats:
    """The scale of each row from its largest magnitude."""
    scale = to_bf16(largest / np.float32(127))
    return np.where(scale == 0, np.float32(1), scale)


def may_be_searched(scale: Floats, plain: Floats) -> NDArray[np.bool_]:
    """Which scales ``scale: mse`` may have taken in place of the plain ones."""
    steps = (scale.view(np.int32) >> 16) - (plain.view(np.int32) >> 16)
    near = (steps >= SEARCHED.start) & (steps < SEARCHED.stop)
    is_bf16 = scale.view(np.uint32) & np.uint32(0xFFFF) == 0
    allowed: NDArray[np.bool_] = (scale == plain) | (near & is_bf16 & (plain >= LEAST_SEARCHED))
    return allowed


def deq_scales(values: NDArray[Any], dtype: str) -> Floats | None:
    """``deq_scale`` as F32; FP16 models have its bits in I64 (msModelSlim ``deqscale2int64``)."""
    if dtype == "I64":
        bits: NDArray[np.uint32] = (values & 0xFFFFFFFF).astype(np.uint32)
        return bits.view(np.float32)
    return values.astype(np.float32) if dtype in WORDS else None
