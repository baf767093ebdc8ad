from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmquant.kernels import definition, fast
from glmquant.kernels.definition import QuantizedRows
from glmquant.source import BLOCK_NBYTES
from tests import rows as fast_rows
from tests.rows import is_finite, quantize_rows
from tests.strategies import (
    DTYPES,
    EXPONENT_BITS,
    MANTISSA_BITS,
    ROW_KINDS,
    Weight,
    bit_patterns,
    infinity,
    row_of_kind,
    sign_bit,
    to_bits,
    weights,
    word,
)

MODULES = pytest.mark.parametrize("module", [definition, fast_rows], ids=["definition", "fast"])
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES)
BOTH = given(weight=st.one_of(weights(), bit_patterns()))


def exact(bits: int, dtype: str) -> Fraction:
    """The value that finite bits stand for, by IEEE 754."""
    mantissa_bits = MANTISSA_BITS[dtype]
    bias = (1 << (EXPONENT_BITS[dtype] - 1)) - 1
    exponent, mantissa = divmod(bits & (sign_bit(dtype) - 1), 1 << mantissa_bits)
    if exponent:
        mantissa += 1 << mantissa_bits
    magnitude = mantissa * Fraction(2) ** (max(exponent, 1) - bias - mantissa_bits)
    return -magnitude if bits & sign_bit(dtype) else magnitude


def nearest(value: Fraction, significant_bits: int) -> Fraction:
    """``value`` rounded half to even to so many bits, with F32's range of exponents."""
    if not value:
        return value
    exponent = abs(value.numerator).bit_length() - value.denominator.bit_length()
    if abs(value) < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** (max(exponent, -126) + 1 - significant_bits)
    return round(value / unit) * unit


def as_lists(result: QuantizedRows) -> list[Any]:
    """All five outputs with their dtypes; scales by their bits."""
    scale_bits = result.scale.view(np.uint32)
    parts = (result.weight, scale_bits, result.signal, result.noise, result.worst)
    return [result.scale.dtype, *((part.dtype, part.tolist()) for part in parts)]


def assert_fast_is_definition(weight: Weight, *, is_searched: bool = False) -> None:
    plain = definition.quantize_rows(weight.bits, weight.dtype, is_searched=is_searched)
    found = quantize_rows(weight.bits, weight.dtype, is_searched=is_searched)
    assert found is not None
    assert as_lists(found) == as_lists(plain)


@settings(derandomize=True, deadline=None, max_examples=400)
@BOTH
def test_fast_equals_the_definition_bit_for_bit(weight: Weight) -> None:
    assert_fast_is_definition(weight)
    assert_fast_is_definition(weight, is_searched=True)


@pytest.mark.parametrize("exponent", [-99, -40, -7, 0, 1, 60, 120])
def test_fast_is_right_for_every_bf16_value_by_every_bf16_scale(exponent: int) -> None:
    """The proof at the top of ``loops``, case by case: nothing is divided there."""
    for mantissa in range(128):
        scale = np.float32((1 + mantissa / 128) * 2.0**exponent)
        largest = int(np.float32(scale * np.float32(127)).view(np.uint32)) >> 16
        row = np.concatenate([magnitudes := np.arange(largest + 1), magnitudes + 0x8000])
        assert_fast_is_definition(Weight("BF16", row.astype("<u2")[None]))


@EACH_DTYPE
@pytest.mark.parametrize("kind", ROW_KINDS)
@pytest.mark.parametrize("columns", [1, 2, 7, 8, 33, 4097])
def test_fast_equals_the_definition_for_each_kind_of_row(
    kind: str, columns: int, dtype: str
) -> None:
    rows = [row_of_kind(kind, dtype, columns, seed) for seed in range(3)]
    assert_fast_is_definition(Weight(dtype, np.stack(rows)))
    assert_fast_is_definition(Weight(dtype, np.stack(rows)), is_searched=True)


@pytest.mark.parametrize(
    ("dtype", "columns"), [("BF16", 600_001), ("F16", 600_001), ("F32", 300_001)]
)
def test_a_row_longer_than_a_block_is_quantized_alike(dtype: str, columns: int) -> None:
    row = row_of_kind("gaussian", dtype, columns, seed=5)
    assert row.nbytes > BLOCK_NBYTES
    assert_fast_is_definition(Weight(dtype, row[None]))


@settings(derandomize=True, deadline=None, max_examples=150)
@BOTH
def test_scale_and_int8_are_those_of_exact_arithmetic(weight: Weight) -> None:
    result = definition.quantize_rows(weight.bits, weight.dtype)
    for row, bits in enumerate(weight.bits.tolist()):
        values = [exact(each, weight.dtype) for each in bits]
        scale = nearest(nearest(max(map(abs, values)) / 127, 24), 8) or Fraction(1)
        assert Fraction(float(result.scale[row])) == scale
        steps = [nearest(value / scale, 24) for value in values]
        assert result.weight[row].tolist() == [max(-127, min(127, round(s))) for s in steps]


@settings(derandomize=True, deadline=None, max_examples=300)
@BOTH
def test_each_element_is_within_half_a_step_unless_clipped_and_never_minus_128(
    weight: Weight,
) -> None:
    result = definition.quantize_rows(weight.bits, weight.dtype)
    values = definition.to_f32(weight.bits, weight.dtype).astype(np.float64)
    steps = values / result.scale[:, None].astype(np.float64)
    clipped = np.abs(steps) >= 127
    error = np.abs(steps - result.weight)
    # A quotient is rounded to F32 before it is rounded to a whole number: 2^-18 of a step at 127.
    assert error[~clipped].max(initial=0) <= 0.5 + 2.0**-18
    assert (np.abs(result.weight[clipped].astype(int)) == 127).all()
    assert result.weight.min() >= -127
    assert (result.scale > 0).all()
    assert not (result.scale.view(np.uint32) & 0xFFFF).any()


@settings(derandomize=True, deadline=None, max_examples=300)
@BOTH
def test_the_error_figures_agree_with_float64_to_half_a_unit_an_element(
    weight: Weight,
) -> None:
    result = definition.quantize_rows(weight.bits, weight.dtype)
    values = definition.to_f32(weight.bits, weight.dtype).astype(np.float64)
    steps = values / result.scale[:, None].astype(np.float64)
    error = np.abs(steps - result.weight)
    off = 2.0**-10 + 2.0**-14  # half a unit, and what F32 loses of 127 steps
    signal_slack = (2 * np.abs(steps) * off + off**2).sum(axis=1)
    noise_slack = (2 * error * off + off**2).sum(axis=1)
    assert (np.abs(result.signal * 2.0**-18 - (steps**2).sum(axis=1)) <= signal_slack).all()
    assert (np.abs(result.noise * 2.0**-18 - (error**2).sum(axis=1)) <= noise_slack).all()
    assert (np.abs(result.worst * 2.0**-9 - error.max(axis=1)) <= off).all()


@MODULES
@EACH_DTYPE
@pytest.mark.parametrize("kind", ["zero", "negative zero"])
def test_an_all_zero_row_gets_scale_one_and_plain_zeros(module: Any, dtype: str, kind: str) -> None:
    result = module.quantize_rows(row_of_kind(kind, dtype, 9, seed=1)[None], dtype)
    assert as_lists(result)[1:] == [
        (np.int8, [[0] * 9]),
        (np.uint32, [0x3F800000]),
        (np.int64, [0]),
        (np.int64, [0]),
        (np.int32, [0]),
    ]


@MODULES
@pytest.mark.parametrize(("dtype", "largest"), [("BF16", 0x3F), ("F32", 0x3F7FFF)])
def test_a_row_whose_scale_underflows_gets_scale_one_and_zeros(
    module: Any, dtype: str, largest: int
) -> None:
    bits = np.array([[largest, 1, largest | sign_bit(dtype)]], word(dtype))
    result = module.quantize_rows(bits, dtype)
    assert (result.scale.tolist(), result.weight.tolist()) == ([1.0], [[0, 0, 0]])


@MODULES
def test_the_first_row_that_does_not_underflow_has_the_smallest_bf16_as_scale(module: Any) -> None:
    bits = np.array([[0x40, 0x20]], "<u2")  # 64 · 2^-133 / 127 rounds up to 2^-133
    result = module.quantize_rows(bits, "BF16")
    assert (result.scale.tolist(), result.weight.tolist()) == ([2.0**-133], [[64, 32]])


@MODULES
@EACH_DTYPE
def test_negative_zero_beside_numbers_becomes_zero(module: Any, dtype: str) -> None:
    bits = to_bits(np.array([[-0.0, 127.0, -1.0, 2.5, -2.5, 3.5]]), dtype)
    assert int(bits[0, 0]) == sign_bit(dtype)
    assert module.quantize_rows(bits, dtype).weight.tolist() == [[0, 127, -1, 2, -2, 4]]


@MODULES
@pytest.mark.parametrize(("ulps", "even"), [(0.5, 0), (1.5, 2), (2.5, 2)])
def test_a_scale_half_way_between_two_bf16_goes_to_the_even_one(
    module: Any, ulps: float, even: int
) -> None:
    row = np.array([[127 * (1 + ulps * 2.0**-7), 1.0]])
    result = module.quantize_rows(to_bits(row, "F32"), "F32")
    assert result.scale.tolist() == [1 + even * 2.0**-7]


@MODULES
def test_elements_beyond_127_steps_of_the_rounded_scale_are_clipped(module: Any) -> None:
    scale = 1 + 2.0**-7
    values = np.array([[127 * (scale + 0.49 * 2.0**-7), -127 * (scale + 0.48 * 2.0**-7), scale]])
    result = module.quantize_rows(to_bits(values, "F32"), "F32")
    assert (result.scale.tolist(), result.weight.tolist()) == ([scale], [[127, -127, 1]])
    beyond = float(np.float32(values[0, 0])) / scale - 127
    assert result.worst.tolist() == [round(beyond * 2**9)]


@MODULES
def test_a_subnormal_scale_that_rounds_far_down_clips_by_tens_of_steps(module: Any) -> None:
    bits = np.array([[0xBD, 0x80BD, 1]], "<u2")  # 189 / 127 = 1.488 rounds to one unit
    result = module.quantize_rows(bits, "BF16")
    assert (result.scale.tolist(), result.weight.tolist()) == ([2.0**-133], [[127, -127, 1]])
    assert (result.worst.tolist(), result.noise.tolist()) == ([62 << 9], [2 * (62 << 9) ** 2])


@MODULES
@settings(derandomize=True, deadline=None, max_examples=80)
@given(weight=weights(max_rows=9), data=st.data())
def test_splitting_a_weight_into_blocks_anywhere_changes_nothing(
    module: Any, weight: Weight, data: st.DataObject
) -> None:
    rows = len(weight.bits)
    cuts = data.draw(st.lists(st.integers(1, rows), max_size=3).map(sorted))
    edges = sorted({0, rows, *cuts})
    blocks = [
        module.quantize_rows(weight.bits[begin:end], weight.dtype) for begin, end in pairwise(edges)
    ]
    joined = QuantizedRows(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))
    assert as_lists(joined) == as_lists(module.quantize_rows(weight.bits, weight.dtype))


def energy(weight: Weight, row: int, result: QuantizedRows) -> Fraction:
    """The exact squared error of a row."""
    scale = Fraction(float(result.scale[row]))
    values = zip(weight.bits[row].tolist(), result.weight[row].tolist(), strict=True)
    return sum(((exact(bits, weight.dtype) - q * scale) ** 2 for bits, q in values), Fraction(0))


@settings(derandomize=True, deadline=None, max_examples=300)
@BOTH
def test_a_searched_row_is_never_worse_than_the_plain_one(weight: Weight) -> None:
    plain = definition.quantize_rows(weight.bits, weight.dtype)
    found = definition.quantize_rows(weight.bits, weight.dtype, is_searched=True)
    for row in range(len(weight.bits)):
        away = int(found.scale.view(np.uint32)[row] >> 16) - int(
            plain.scale.view(np.uint32)[row] >> 16
        )
        assert -8 <= away <= 2
        if away:
            assert energy(weight, row, found) < energy(weight, row, plain)
        else:
            assert (found.weight[row] == plain.weight[row]).all()


@pytest.mark.parametrize(
    ("columns", "gain_db"), [(1024, 0.06), (1536, 0.08), (5120, 0.12), (12288, 0.18)]
)
def test_the_search_gains_what_the_recipe_says_on_gaussian_rows(
    columns: int, gain_db: float
) -> None:
    weight = np.stack([row_of_kind("gaussian", "BF16", columns, seed) for seed in range(64)])
    sums: list[fast.Sums] = []
    for is_searched in (False, True):
        sums.append(fast.Sums())
        assert quantize_rows(weight, "BF16", is_searched=is_searched, sums=sums[-1]) is not None
    plain, searched = (float(10 * np.log10(each.signal / each.noise)) for each in sums)
    assert searched - plain > gain_db


@settings(derandomize=True, deadline=None, max_examples=80)
@given(weight=weights(max_rows=9), data=st.data())
def test_error_figures_do_not_depend_on_where_a_block_ends(
    weight: Weight, data: st.DataObject
) -> None:
    expected = definition.no_sums()
    definition.add_rows(expected, definition.quantize_rows(weight.bits, weight.dtype))
    cut = data.draw(st.integers(0, len(weight.bits)))
    found, quantizer = fast.Sums(), fast.RowQuantizer()
    for part in (weight.bits[:cut], weight.bits[cut:]):
        if len(part):
            quantize_rows(part, weight.dtype, sums=found, quantizer=quantizer)
    assert [found.signal, found.noise, found.worst * 2**9] == expected.tolist()


@EACH_DTYPE
@pytest.mark.parametrize("position", [0, 20, 21, 62])
@pytest.mark.parametrize("kind", ["inf", "nan", "quiet nan"])
@pytest.mark.parametrize("sign", [0, 1], ids=["positive", "negative"])
def test_one_nan_or_inf_anywhere_is_found(dtype: str, position: int, kind: str, sign: int) -> None:
    rows = np.stack([row_of_kind(each, dtype, 21, 3) for each in ("huge", "any", "zero")])
    extra = {"inf": 0, "nan": 1, "quiet nan": 1 << (MANTISSA_BITS[dtype] - 1)}[kind]
    rows.reshape(-1)[position] = infinity(dtype) + extra + sign * sign_bit(dtype)
    assert definition.first_non_finite(rows, dtype) == position
    assert not is_finite(rows, dtype)
    assert quantize_rows(rows, dtype) is None


@EACH_DTYPE
def test_the_largest_finite_number_of_either_sign_is_finite(dtype: str) -> None:
    largest = infinity(dtype) - 1
    rows = np.array([largest, largest | sign_bit(dtype)], word(dtype))
    assert definition.first_non_finite(rows, dtype) is None
    assert is_finite(rows, dtype)
    assert quantize_rows(rows[None], dtype) is not None


@settings(derandomize=True, deadline=None, max_examples=200)
@given(weight=weights(), data=st.data())
def test_is_finite_and_first_non_finite_agree_with_numpy(
    weight: Weight, data: st.DataObject
) -> None:
    bits = weight.bits.copy()
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, bits.size - 1))
        bits.reshape(-1)[at] = data.draw(st.integers(0, 2 * sign_bit(weight.dtype) - 1))
    bad = np.flatnonzero(~np.isfinite(definition.to_f32(bits, weight.dtype)))
    first = int(bad[0]) if len(bad) else None
    assert definition.first_non_finite(bits, weight.dtype) == first
    assert is_finite(bits, weight.dtype) is (first is None)


@EACH_DTYPE
def test_every_pattern_of_16_bits_has_the_value_of_its_dtype(dtype: str) -> None:
    patterns = np.arange(0x10000, dtype="<u2")
    if dtype == "F32":
        patterns = patterns.astype("<u4") * 0x10001
    finite = patterns[(patterns & (sign_bit(dtype) - 1)) < infinity(dtype)]
    found = definition.to_f32(finite, dtype).tolist()
    assert found == [float(exact(bits, dtype)) for bits in finite.tolist()]
