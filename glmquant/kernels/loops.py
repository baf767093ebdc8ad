"""The loops of ``definition`` in numba: one pass over a row that stays in cache, no Python in it.

Why the bits are the definition's although nothing is divided here: for BF16 weights and a BF16
scale a quotient that is no tie ``k + 1/2`` lies at least 1/510 from each tie, and
``w * (512 / scale)`` is off by less than 1/60000 of a step. So the product, rounded to whole 1/512
steps, is an exact tie where the quotient is one, and on the quotient's side of it elsewhere. Other
weights, and scales below 2^-100, take the path that divides.

No fast-math, no fused multiply-add; every sum is one of integers, or folds in a fixed order, so
vectorizing it does not change it. ``machine_code`` imports this module only to compile it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types  # type: ignore[attr-defined, unused-ignore]
from numba.extending import intrinsic

from glmquant.kernels.definition import (
    BOOST,
    LEAST_SCALE,
    SEARCH_DOWN,
    SEARCH_MARGIN,
    SEARCH_UP,
)
from glmquant.kernels.units import ERROR_BITS, INFINITY, MAGNITUDE

_UNITS: Final = np.float32(1 << ERROR_BITS)
_STEP: Final = np.float32(1 / (1 << ERROR_BITS))
_BITS: Final = np.int32(ERROR_BITS)
_HIGH: Final = np.float32(127)
_ROUNDER: Final = np.float32(1.5 * 2**23)
"""Added to a number below 2^22 it rounds it to a whole one, half to even: the low bits of the sum
are that integer."""
_CHUNK: Final = 1 << 14
"""So many squares fit into 32 bits: of int8, or of errors of half a step."""
_SHORT_CHUNK: Final = 1 << 9
"""So many products of an int8 and 15 bits do: an error of 64 steps, or half a value."""

_compiled: Final = njit(nogil=True, error_model="numpy")


def _cast(to: ir.Type, found: Any, given: Any, *, truncate: bool = False) -> Any:
    """An intrinsic that reinterprets or truncates a scalar, which numba has no word for."""

    def typing(typing_context: Any, value: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return (builder.trunc if truncate else builder.bitcast)(arguments[0], to)

        return found(given), build

    return intrinsic(typing)


_as_f32: Final = _cast(ir.FloatType(), types.float32, types.uint32)
_as_bits: Final = _cast(ir.IntType(32), types.int32, types.float32)
_low_16: Final = _cast(ir.IntType(16), types.int16, types.int32, truncate=True)
_low_8: Final = _cast(ir.IntType(8), types.int8, types.int32, truncate=True)


def _narrow(operation: str, number: Any) -> Any:
    """An intrinsic that stays as narrow as its operands; numba's operators widen to 64 bits."""

    def typing(typing_context: Any, left: Any, right: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, operation)(*arguments)

        return number(number, number), build

    return intrinsic(typing)


_add: Final = _narrow("add", types.int32)
_subtract: Final = _narrow("sub", types.int32)
_multiply: Final = _narrow("mul", types.int32)
_shift_left: Final = _narrow("shl", types.int32)
_add_16: Final = _narrow("add", types.int16)
_shift_left_16: Final = _narrow("shl", types.int16)


@_compiled
def _largest_16(words: Any, mask: Any) -> Any:
    largest = np.uint16(0)
    for column in range(words.shape[0]):
        largest = max(largest, np.uint16(words[column] & mask))
    return largest


@_compiled
def _largest_32(words: Any, mask: Any) -> Any:
    largest = np.uint32(0)
    for column in range(words.shape[0]):
        largest = max(largest, np.uint32(words[column] & mask))
    return largest


@_compiled
def _bf16_scale(largest: Any) -> Any:
    """``largest / 127`` rounded to BF16, half to even; may be 0."""
    word = np.uint32(_as_bits(np.float32(largest / _HIGH)))
    word = np.uint32(word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1)))
    return _as_f32(np.uint32(word & np.uint32(0xFFFF0000)))


def _by_product(is_clipped: bool) -> Any:
    """int8 and errors of a BF16 row by the reciprocal of its scale, which may clip or cannot."""
    highest, lowest = np.float32(_ROUNDER + _HIGH), np.float32(_ROUNDER - _HIGH)

    def round_by_product(bits: Any, scale: Any, weight: Any, errors: Any) -> None:
        units = np.float32(_UNITS / scale)
        for column in range(bits.shape[0]):
            value = np.float32(_as_f32(np.uint32(bits[column]) << np.uint32(16)) * units + _ROUNDER)
            whole = np.float32((value - _ROUNDER) * _STEP + _ROUNDER)
            if is_clipped:
                whole = whole if whole < highest else highest
                whole = whole if whole > lowest else lowest
            weight[column] = _low_8(_as_bits(whole))
            error = _subtract(_as_bits(value), _shift_left(_as_bits(whole), _BITS))
            errors[column] = _low_16(error)

    return _compiled(round_by_product)


_round_unclipped: Final = _by_product(is_clipped=False)
_round_clipped: Final = _by_product(is_clipped=True)


@_compiled
def _round_by_quotient(values: Any, scale: Any, weight: Any, errors: Any) -> None:
    """int8 and errors of any F32 row."""
    boost = np.float32(1) if scale >= LEAST_SCALE else BOOST
    units = np.float32(_UNITS / np.float32(scale * boost))
    for column in range(values.shape[0]):
        whole = np.rint(np.float32(values[column] / scale))
        whole = np.float32(min(max(whole, -_HIGH), _HIGH))
        value = np.rint(np.float32(np.float32(values[column] * boost) * units))
        weight[column] = np.int8(np.int32(whole))
        errors[column] = np.int16(np.int32(value) - np.int32(whole) * np.int32(1 << ERROR_BITS))


@_compiled
def _product_sum(left: Any, right: Any) -> Any:
    """Σ left · right in 32 bits."""
    total = np.int32(0)
    for column in range(left.shape[0]):
        total = _add(total, _multiply(np.int32(left[column]), np.int32(right[column])))
    return total


@_compiled
def _chunked_sum(left: Any, right: Any, chunk: Any) -> Any:
    """Σ left · right, so many in 32 bits at a time."""
    total = np.int64(0)
    for begin in range(0, left.shape[0], chunk):
        total += np.int64(_product_sum(left[begin : begin + chunk], right[begin : begin + chunk]))
    return total


@_compiled
def _wide_noise(errors: Any) -> Any:
    """Of a row that may have elements clipped by more than half a step."""
    total = np.int64(0)
    for column in range(errors.shape[0]):
        total += np.int64(errors[column]) * np.int64(errors[column])
    return total


@_compiled
def _worst(errors: Any) -> Any:
    highest = lowest = np.int16(0)
    for column in range(errors.shape[0]):
        highest = max(highest, errors[column])
    for column in range(errors.shape[0]):
        lowest = min(lowest, errors[column])
    return max(np.int32(highest), -np.int32(lowest))


@_compiled
def _half_signal(weight: Any, errors: Any) -> Any:
    """Σ q (256 q + e) in 32 bits; the bracket fits into 16, since no element is clipped."""
    total = np.int32(0)
    for column in range(weight.shape[0]):
        value = np.int16(weight[column])
        factor = _add_16(_shift_left_16(value, np.int16(ERROR_BITS - 1)), errors[column])
        total = _add(total, _multiply(np.int32(factor), np.int32(value)))
    return total


@_compiled
def _unclipped_signal(weight: Any, errors: Any, noise: Any) -> Any:
    """Σ (512 q + e)² = 1024 Σ q (256 q + e) + Σ e²."""
    total = np.int64(0)
    for begin in range(0, weight.shape[0], _SHORT_CHUNK):
        end = begin + _SHORT_CHUNK
        total += np.int64(_half_signal(weight[begin:end], errors[begin:end]))
    return (total << (ERROR_BITS + 1)) + noise


@_compiled
def _signal(weight: Any, errors: Any, noise: Any) -> Any:
    """Σ (512 q + e)² from Σ q², Σ q e and Σ e²."""
    squares = _chunked_sum(weight, weight, _CHUNK)
    mixed = _chunked_sum(weight, errors, _SHORT_CHUNK)
    return (squares << (2 * ERROR_BITS)) + (mixed << (ERROR_BITS + 1)) + noise


@_compiled
def _error_energy(values: Any, scale: Any, weight: Any, squares: Any) -> Any:
    """Σ (w - q scale)² in F64; each half is added to the other until one number is left."""
    wide = np.float64(scale)
    for column in range(values.shape[0]):
        error = np.float64(values[column]) - np.float64(np.int32(weight[column])) * wide
        squares[column] = error * error
    length = values.shape[0]
    while length > 1:
        half = (length + 1) // 2
        for column in range(length - half):
            squares[column] += squares[half + column]
        length = half
    return squares[0]


@_compiled
def _round(bits: Any, values: Any, is_bf16: Any, scale: Any, weight: Any, errors: Any) -> None:
    """By any scale that is searched."""
    if is_bf16:
        _round_clipped(bits, scale, weight, errors)
    else:
        _round_by_quotient(values, scale, weight, errors)


@_compiled
def _search(
    bits: Any, values: Any, is_bf16: Any, scale: Any, weight: Any, errors: Any, squares: Any
) -> Any:
    """The best of the BF16 scales beside ``scale``, or ``scale`` where none is better for sure."""
    best = scale
    least = np.float64(np.inf)
    for neighbour in range(-SEARCH_DOWN, SEARCH_UP + 1):
        word = np.uint32(np.int64(np.uint32(_as_bits(scale))) + (neighbour << 16))
        tried = _as_f32(word)
        _round(bits, values, is_bf16, tried, weight, errors)
        energy = np.float64(_wide_noise(errors)) * (np.float64(tried) * np.float64(tried))
        if energy < least:
            least = energy
            best = tried
    if best == scale:
        return scale
    _round(bits, values, is_bf16, scale, weight, errors)
    plain = _error_energy(values, scale, weight, squares)
    _round(bits, values, is_bf16, best, weight, errors)
    found = _error_energy(values, best, weight, squares)
    return best if found < plain * SEARCH_MARGIN else scale


@_compiled
def _row(
    bits: Any,
    words: Any,
    values: Any,
    is_bf16: Any,
    largest: Any,
    is_searched: Any,
    weight: Any,
    errors: Any,
    squares: Any,
) -> Any:
    """A row's scale, signal, noise and worst error; its int8 values in ``weight``."""
    scale = _bf16_scale(_as_f32(np.uint32(largest)))
    is_small = scale < LEAST_SCALE
    if is_bf16 and (is_small or is_searched):
        for column in range(bits.shape[0]):
            words[column] = np.uint32(bits[column]) << np.uint32(16)
    if is_bf16 and not is_small and not is_searched:  # largest / scale is less than 127.25
        _round_unclipped(bits, scale, weight, errors)
        noise = _chunked_sum(errors, errors, _CHUNK)
        signal = _unclipped_signal(weight, errors, noise)
    else:
        if is_small:
            scale = scale if scale > np.float32(0) else np.float32(1)
            _round_by_quotient(values, scale, weight, errors)
        else:
            if is_searched:
                scale = _search(bits, values, is_bf16, scale, weight, errors, squares)
            _round(bits, values, is_bf16, scale, weight, errors)
        noise = _wide_noise(errors)
        signal = _signal(weight, errors, noise)
    return scale, signal, noise, _worst(errors)


def _quantizer(size: int) -> Callable[..., int]:
    """The function for BF16 words (16) or F32 words (32)."""
    is_bf16 = size == 16
    word = np.uint16 if is_bf16 else np.uint32
    dtype = "BF16" if is_bf16 else "F32"
    magnitude, infinity = word(MAGNITUDE[dtype]), word(INFINITY[dtype])
    largest_of = _largest_16 if is_bf16 else _largest_32
    shift = np.uint32(32 - size)

    def quantize(
        source: Any,
        rows: int,
        columns: int,
        is_searched: int,
        weights: Any,
        scales: Any,
        signals: Any,
        noises: Any,
        worsts: Any,
        sums: Any,
        scratch: Any,
    ) -> int:
        bits = carray(source, (rows, columns), word)
        floats = carray(source, (rows, columns * size // 32), np.float32)
        weight = carray(weights, (rows, columns), np.int8)
        scale, worst = carray(scales, (rows,), np.float32), carray(worsts, (rows,), np.int32)
        signal, noise = carray(signals, (rows,), np.int64), carray(noises, (rows,), np.int64)
        total, squares = carray(sums, (3,), np.float64), carray(scratch, (columns,), np.float64)
        words = carray(scratch, (3 * columns,), np.uint32)[2 * columns :]
        widened = carray(scratch, (3 * columns,), np.float32)[2 * columns :]
        errors = carray(scratch, (7 * columns,), np.int16)[6 * columns :]
        for row in range(rows):
            largest = largest_of(bits[row], magnitude)
            if largest >= infinity:
                return row
            scale[row], signal[row], noise[row], worst[row] = _row(
                bits[row],
                words,
                widened if is_bf16 else floats[row],
                is_bf16,
                np.uint32(largest) << shift,
                is_searched != 0,
                weight[row],
                errors,
                squares,
            )
            wide = np.float64(scale[row])
            total[0] += np.float64(signal[row]) * (wide * wide)
            total[1] += np.float64(noise[row]) * (wide * wide)
            total[2] = max(total[2], np.float64(worst[row]) * wide)
        return -1

    return quantize


def _largest_magnitude(size: int) -> Callable[..., int]:
    """The function for words of 16 or 32 bits."""
    word = np.uint16 if size == 16 else np.uint32
    largest_of = _largest_16 if size == 16 else _largest_32

    def magnitude(source: Any, count: int, mask: int) -> int:
        return int(largest_of(carray(source, (count,), word), word(mask)))

    return magnitude


def intermediate_code() -> dict[str, str]:
    """What numba makes of it: name → the LLVM code of a module with a C function ``NAME``.

    ``quantize_16`` and ``quantize_32``: ``(words, rows, columns, is_searched, weight, scale,
    signal, noise, worst, sums, scratch) -> int64``, arrays as in ``definition.QuantizedRows``,
    ``sums`` as in ``definition.add_rows``, ``scratch`` of 14 bytes a column; gives the first row
    that is not finite, or -1. ``magnitude_16`` and
    ``magnitude_32``: ``(words, count, mask) -> int64``, the largest of ``word & mask``.
    """
    pointer, whole = types.voidptr, types.int64
    quantize = whole(pointer, whole, whole, whole, *[pointer] * 7)
    magnitude = whole(pointer, whole, whole)
    made = {}
    for size in (16, 32):
        made[f"quantize_{size}"] = cfunc(quantize, error_model="numpy")(_quantizer(size))
        made[f"magnitude_{size}"] = cfunc(magnitude, error_model="numpy")(_largest_magnitude(size))
    return {
        name: function.inspect_llvm().replace(function.native_name, name)
        for name, function in made.items()
    }
