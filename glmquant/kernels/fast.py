"""The arithmetic of ``definition`` in numba: one pass over a row in cache, GIL released.

No fast-math: true division, and every sum is one of integers, so that vectorizing it does not
change it. Compiled once per machine and cached beside the module, or in the user's cache folder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba.core.caching import NullCache
from numpy.typing import NDArray

from glmquant.kernels.definition import (
    ERROR_BITS,
    SIGNAL_BITS,
    FloatBits,
    QuantizedRows,
    bits_dtype,
    magnitude_limits,
    to_f32,
)

_Function = TypeVar("_Function", bound=Callable[..., Any])

_ERROR_UNIT = np.float32(1 << ERROR_BITS)
_SIGNAL_SHIFT = np.int32(SIGNAL_BITS)
_ERROR_SHIFT = np.int32(ERROR_BITS - SIGNAL_BITS)
_LOW = np.float32(-127)
_HIGH = np.float32(127)


_KERNELS: list[Any] = []


def _compiled(function: _Function) -> _Function:
    try:
        compiled = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # no folder that numba may write its cache to
        compiled = numba.njit(nogil=True, error_model="numpy")(function)
    _KERNELS.append(compiled)
    return cast(_Function, compiled)


@_compiled
def _largest_magnitude(words: Any, mask: Any) -> Any:
    largest = words.dtype.type(0)
    for position in range(words.shape[0]):
        largest = max(largest, words.dtype.type(words[position] & mask))
    return largest


@_compiled
def _widen_row(bits: Any, words: Any) -> Any:
    """BF16 bits to F32 bits; gives the largest magnitude's F32 bits."""
    largest = np.uint16(0)
    for column in range(bits.shape[0]):
        value = bits[column]
        largest = max(largest, np.uint16(value & np.uint16(0x7FFF)))
        words[column] = np.uint32(value) << np.uint32(16)
    return np.uint32(largest) << np.uint32(16)


@_compiled
def _copy_row(bits: Any, words: Any) -> Any:
    largest = np.uint32(0)
    for column in range(bits.shape[0]):
        value = bits[column]
        largest = max(largest, np.uint32(value & np.uint32(0x7FFFFFFF)))
        words[column] = value
    return largest


@_compiled
def _divide_row(values: Any, scale: Any, weight: Any, errors: Any) -> None:
    for column in range(weight.shape[0]):
        steps = values[column] / scale
        rounded = min(max(np.rint(steps), _LOW), _HIGH)
        weight[column] = np.int8(np.int32(rounded))
        errors[column] = np.int32(np.rint((steps - rounded) * _ERROR_UNIT))


@_compiled
def _sum_row(weight: Any, errors: Any) -> Any:
    signal = np.int64(0)
    noise = np.int64(0)
    for column in range(weight.shape[0]):
        error = errors[column]
        value = (np.int32(weight[column]) << _SIGNAL_SHIFT) + (error >> _ERROR_SHIFT)
        signal += np.int64(value) * np.int64(value)
        noise += np.int64(error) * np.int64(error)
    worst = np.int32(0)
    for column in range(weight.shape[0]):
        worst = max(worst, abs(errors[column]))
    return signal, noise, worst


@_compiled
def _quantize(
    bits: Any,
    is_bf16: Any,
    words: Any,
    values: Any,
    errors: Any,
    weight: Any,
    scale: Any,
    signal: Any,
    noise: Any,
    worst: Any,
) -> None:
    """``words`` uint32 and ``values`` F32 are one buffer of ``in + 1``, seen twice."""
    rows, columns = bits.shape
    for row in range(rows):
        if is_bf16:
            words[columns] = _widen_row(bits[row], words)
        else:
            words[columns] = _copy_row(bits[row], words)
        values[columns] = values[columns] / _HIGH
        step = words[columns]
        step = step + np.uint32(0x7FFF) + ((step >> np.uint32(16)) & np.uint32(1))
        words[columns] = step & np.uint32(0xFFFF0000)
        row_scale = values[columns]
        if row_scale == np.float32(0):
            row_scale = np.float32(1)
        scale[row] = row_scale
        _divide_row(values, row_scale, weight[row], errors)
        signal[row], noise[row], worst[row] = _sum_row(weight[row], errors)


def quantize_rows(bits: FloatBits, dtype: str) -> QuantizedRows:
    """As ``definition.quantize_rows``, bit for bit.

    Args:
        bits: ``[rows, in]``, contiguous, as ``definition.bits_dtype`` says; finite.
        dtype: ``BF16``, ``F16`` or ``F32``.

    Returns:
        int8 rows, their scales and their errors.
    """
    rows, columns = bits.shape
    words = np.empty(columns + 1, np.uint32)
    out = QuantizedRows(
        np.empty((rows, columns), np.int8),
        np.empty(rows, np.float32),
        np.empty(rows, np.int64),
        np.empty(rows, np.int64),
        np.empty(rows, np.int32),
    )
    is_bf16 = dtype == "BF16"
    words_in = bits if is_bf16 else to_f32(bits, dtype).view(np.uint32)
    errors = np.empty(columns, np.int32)
    _quantize(words_in, is_bf16, words, words.view(np.float32), errors, *out)
    return out


def is_finite(bits: FloatBits, dtype: str) -> bool:
    """Whether there is no NaN and no Inf.

    Args:
        bits: Any shape, contiguous, as ``definition.bits_dtype`` says.
        dtype: ``BF16``, ``F16`` or ``F32``.
    """
    mask, limit = magnitude_limits(dtype)
    flat: NDArray[Any] = bits.reshape(-1)
    return int(_largest_magnitude(flat, flat.dtype.type(mask))) < limit


def prepare() -> None:
    """Compile, or load from numba's cache, before threads need it.

    A cache that is torn, or that cannot be written, must not stop a run: it is then left aside.
    """
    try:
        _exercise()
    except Exception:  # noqa: BLE001 - a torn cache raises whatever unpickling it leads to
        for kernel in _KERNELS:
            kernel._cache = NullCache()
        _exercise()


def _exercise() -> None:
    for dtype in ("BF16", "F32"):
        row = np.zeros((1, 2), bits_dtype(dtype))
        quantize_rows(row, dtype)
        is_finite(row, dtype)
