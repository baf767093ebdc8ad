"""The arithmetic of ``verify`` is its own: it agrees with the definition without knowing it."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from glmquant.glm4_moe import Role
from glmquant.kernels import definition
from glmquant.observer import Observer
from glmquant.tensors import TensorRef
from glmquant.verify.weights.arithmetic import (
    INFINITY,
    WORDS,
    deq_scales,
    largest_magnitudes,
    may_be_searched,
    non_finite,
    plain_scales,
    round_in_place,
    to_bf16,
    values_of,
    widen,
    widens,
)
from glmquant.verify.weights.crew import Worker
from glmquant.verify.weights.figures import by_role, decibels
from glmquant.verify.weights.rows import RowJudge, Rule
from glmquant.verify.weights.scales import Scales
from glmquant.verify.weights.units import Unit
from tests.modelslim import bf16, round_to_nearest
from tests.oracle import nearest_bf16
from tests.strategies import DTYPES, ROW_KINDS, Weight, row_of_kind, weights, word

EXACT = Rule(is_exact=True)
SEARCHED = Rule(is_exact=True, is_searched=True)
NEAR = Rule(is_exact=False)
SMOOTHED = Rule(is_exact=False, is_smoothed=True)


def test_rounding_to_bf16_is_right_at_and_beside_every_tie() -> None:
    words = np.arange(0x7F7F, dtype=np.uint32) << 16
    for beside in (0x7FFF, 0x8000, 0x8001, 0, 1, 0xFFFF):
        values = (words + np.uint32(beside)).view(np.float32)
        rounded = to_bf16(values)
        bits = values.copy()
        round_in_place(bits)
        np.testing.assert_array_equal(bits, rounded)
        every = slice(None, None, 97)
        assert [nearest_bf16(value) for value in values[every]] == rounded[every].tolist()
        np.testing.assert_array_equal(to_bf16(-values), -rounded)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_widened_and_measured_exactly(dtype: str) -> None:
    words = np.stack([row_of_kind(kind, dtype, 33, 5) for kind in ROW_KINDS])
    values = np.empty(words.shape, np.float32)
    widen(words, dtype, values)
    np.testing.assert_array_equal(values, definition.to_f32(words, dtype))
    np.testing.assert_array_equal(largest_magnitudes(words, dtype), np.abs(values).max(axis=1))


@pytest.mark.parametrize("dtype", WORDS)
@pytest.mark.parametrize("sign", [0, 1], ids=["positive", "negative"])
@pytest.mark.parametrize("what", ["infinity", "the least NaN", "the largest NaN"])
def test_the_first_number_that_is_none_is_found(dtype: str, sign: int, what: str) -> None:
    bits = 8 * np.dtype(WORDS[dtype]).itemsize - 1
    word = {
        "infinity": INFINITY[dtype],
        "the least NaN": INFINITY[dtype] + 1,
        "the largest NaN": (1 << bits) - 1,
    }[what]
    words = np.full(33, INFINITY[dtype] - 1, WORDS[dtype])
    words[::2] |= np.array(1 << bits, words.dtype)
    assert non_finite(words, dtype) is None
    words[[7, 20]] = word | sign << bits
    bad = non_finite(words, dtype)
    assert bad is not None
    assert bad.tolist() == [7, 20]
    assert non_finite(words[:0], dtype) is None


def test_numbers_are_read_from_any_dtype() -> None:
    assert values_of(np.array([0x3F80], "<u2").view(np.uint8), "BF16").tolist() == [1.0]  # type: ignore[union-attr]
    assert values_of(np.array([-7], "<i8").view(np.uint8), "I64").tolist() == [-7]  # type: ignore[union-attr]
    assert values_of(np.zeros(4, np.uint8), "F8_E4M3") is None


def test_a_float_is_wider_than_another_where_it_holds_all_of_its_values() -> None:
    assert [(a, b) for a in WORDS for b in WORDS if widens(a, b)] == [
        ("BF16", "BF16"),
        ("BF16", "F32"),
        ("BF16", "F64"),
        ("F16", "F16"),
        ("F16", "F32"),
        ("F16", "F64"),
        ("F32", "F32"),
        ("F32", "F64"),
        ("F64", "F64"),
    ]


def test_deq_scales_of_fp16_models_are_f32_bits() -> None:
    scale = np.array([0.5, 3e-4], np.float32)
    words = scale.view(np.uint32).astype(np.int64)
    np.testing.assert_array_equal(deq_scales(words, "I64"), scale)
    np.testing.assert_array_equal(deq_scales(scale.astype(np.float64), "F32"), scale)
    assert deq_scales(words, "I32") is None


@settings(derandomize=True, deadline=None, max_examples=200)
@given(weight=weights())
def test_scales_are_those_of_the_definition(weight: Weight) -> None:
    plain = plain_scales(largest_magnitudes(weight.bits, weight.dtype))
    rows = definition.quantize_rows(weight.bits, weight.dtype)
    np.testing.assert_array_equal(plain, rows.scale)
    searched = definition.quantize_rows(weight.bits, weight.dtype, is_searched=True)
    assert may_be_searched(searched.scale, plain).all()


def test_a_searched_scale_is_one_of_eleven() -> None:
    plain = np.full(14, 0.01171875, np.float32)
    steps = np.arange(-9, 5, dtype=np.int32)
    scale = (plain.view(np.int32) + (steps << 16)).view(np.float32)
    assert steps[may_be_searched(scale, plain)].tolist() == list(range(-8, 3))
    assert not may_be_searched(plain[:1] * np.float32(1 + 2.0**-20), plain[:1]).any()
    tiny = np.full(1, 2.0**-101, np.float32)
    assert may_be_searched(tiny, tiny).all()
    assert not may_be_searched(tiny * np.float32(0.99609375), tiny).any()


def judged(
    values: NDArray[np.float32],
    weight: NDArray[np.int8],
    scale: NDArray[np.float32],
    rule: Rule,
    *,
    is_product: bool = False,
) -> RowJudge:
    """A judge that has seen these rows in blocks of four."""
    rows, columns = weight.shape
    ref = TensorRef("X.weight", "I8", (rows, columns), "shard", 0, weight.size)
    unit = Unit("X", Role.ROUTED_EXPERT.value, ref, {"weight_scale": ref})
    scales = Scales("X.weight_scale", scale, scale if is_product else to_bf16(scale), is_product)
    judge = RowJudge(unit, scales, rule, Worker(Observer(), threading.Event()))
    with np.errstate(all="ignore"):
        for first in range(0, rows, 4):
            block = np.ascontiguousarray(values[first : first + 4])
            rows, peaks = weight[first : first + 4], np.abs(block).max(axis=1)
            if not judge.is_formula(first, rows, block.copy(), plain_scales(peaks)):
                judge.take(first, rows, block, peaks, plain_scales(peaks))
    return judge


def causes(judge: RowJudge) -> dict[str, str]:
    """Cause → the tensor that is blamed."""
    return {flaw.what: flaw.tensor for flaw in judge.flaws()}


@settings(derandomize=True, deadline=None, max_examples=200)
@given(weight=weights())
def test_right_rows_of_any_kind_have_no_flaw_by_any_rule(weight: Weight) -> None:
    values = definition.to_f32(weight.bits, weight.dtype)
    for is_searched in (False, True):
        rows = definition.quantize_rows(weight.bits, weight.dtype, is_searched=is_searched)
        for rule in (SEARCHED, NEAR, SMOOTHED) if is_searched else (EXACT, SEARCHED, NEAR):
            assert causes(judged(values, rows.weight, rows.scale, rule)) == {}, rule


@pytest.mark.parametrize("arithmetic", ["bf16", "f32"])
@pytest.mark.parametrize("columns", [16, 100, 256, 3000])
def test_rows_of_other_tools_have_no_flaw(arithmetic: str, columns: int) -> None:
    generator = np.random.default_rng(columns)
    spreads = (
        generator.standard_normal((40, columns)) * 0.02,
        generator.uniform(-1, 1, (40, columns)),
        generator.standard_t(2, (40, columns)) * 0.02,
        np.sign(generator.standard_normal((40, columns))) * generator.uniform(0.1, 2, (40, 1)),
    )
    values = bf16(np.concatenate(spreads))
    for scale_dtype in ("F32", "BF16"):
        weight, scale = round_to_nearest(values, arithmetic, scale_dtype)
        assert causes(judged(values, weight, scale[:, 0], NEAR)) == {}


def test_rows_below_the_floor_of_a_tool_are_right() -> None:
    floor = np.float32(2.0**-23)
    values = bf16(np.random.default_rng(0).standard_normal((3, 64)) * 1e-6)
    weight = np.rint(values / floor).astype(np.int8)
    assert causes(judged(values, weight, np.full(3, floor), NEAR)) == {}


@pytest.mark.parametrize("scatter", range(5))
def test_a_scale_that_is_known_by_its_product_alone_is_taken_as_the_tool_had_it(
    scatter: int,
) -> None:
    values = bf16(np.random.default_rng(scatter).uniform(-1, 1, (200, 128)))
    weight, scale = round_to_nearest(values, "bf16", "F32")
    step = bf16(np.array([0.0478515625 * (1 + scatter / 9)]))
    product = bf16(step * scale[:, 0])
    assert causes(judged(values, weight, product / step, NEAR, is_product=True)) == {}
    wrong = judged(values, weight, 2 * product / step, NEAR, is_product=True)
    assert "X.weight_scale" in causes(wrong).values()


FORMULA = "int8 values are not those that the formula gives for the source's"
SCALES = "scales are not those that the formula gives for the source's rows"
WORSE = "searched scales are worse than the plain ones"
STEP = "int8 values are more than a step from the source's"
OTHER_SCALES = "scales are not those of the source's rows"
LOST = "int8 rows are zero where the source's are not"
NOISE = "int8 rows lose more than 1.5 dB to rounding to nearest"


def _gaussian() -> tuple[NDArray[np.float32], NDArray[np.int8], NDArray[np.float32]]:
    values = bf16(np.random.default_rng(3).standard_normal((9, 500)) * 0.02)
    weight, scale = round_to_nearest(values, "f32", "BF16")
    return values, weight, scale[:, 0].copy()


@pytest.mark.parametrize("rule", [EXACT, SEARCHED], ids=["absmax", "mse"])
def test_one_value_that_is_off_by_one_is_named(rule: Rule) -> None:
    values, weight, scale = _gaussian()
    weight[5, 77] += 1
    (flaw,) = judged(values, weight, scale, rule).flaws()
    assert (flaw.what, flaw.tensor, flaw.badness) == (FORMULA, "X.weight", 1)
    assert f"{weight[5, 77] - 1} at row 5, column 77" in flaw.expected
    assert flaw.found == f"{weight[5, 77]}; 1 of 9 rows"


def test_one_scale_that_is_off_by_a_bf16_step_is_named() -> None:
    values, weight, scale = _gaussian()
    right = scale[6]
    scale[6] = (scale[6:7].view(np.int32) + (1 << 16)).view(np.float32)[0]
    (flaw,) = judged(values, weight, scale, EXACT).flaws()
    assert (flaw.what, flaw.tensor) == (SCALES, "X.weight_scale")
    assert flaw.expected == f"{right:.9g} in row 6"
    # By the search it could have been, but not with these values.
    assert causes(judged(values, weight, scale, SEARCHED))[FORMULA] == "X.weight"
    scale[6] = (scale[6:7].view(np.int32) + (1 << 16)).view(np.float32)[0]
    weight[6] = np.clip(np.rint(values[6] / scale[6]), -127, 127).astype(np.int8)
    assert causes(judged(values, weight, scale, SEARCHED)) == {WORSE: "X.weight_scale"}
    scale[6] *= 2
    weight[6] = np.clip(np.rint(values[6] / scale[6]), -127, 127).astype(np.int8)
    assert causes(judged(values, weight, scale, SEARCHED)) == {SCALES: "X.weight_scale"}


@pytest.mark.parametrize("rule", [EXACT, NEAR], ids=["exact", "near"])
def test_a_row_that_was_lost_is_named(rule: Rule) -> None:
    values, weight, scale = _gaussian()
    weight[8] = 0
    assert causes(judged(values, weight, scale, rule)) == {LOST: "X.weight"}


def test_values_that_are_too_far_away_are_named_unless_clipped() -> None:
    values, weight, scale = _gaussian()
    largest = int(np.abs(values[2]).argmax())
    values[2, largest] *= 1.02  # clipped, as by a tool that searches
    assert causes(judged(values, weight, scale, NEAR)) == {}
    weight[4, 9] += 2
    (flaw,) = judged(values, weight, scale, NEAR).flaws()
    assert (flaw.what, flaw.tensor) == (STEP, "X.weight")
    assert "row 4, column 9" in flaw.expected
    assert 1.5 <= flaw.badness <= 2.5
    assert causes(judged(values, weight, scale, SMOOTHED)) in ({}, {STEP: "X.weight"})


@pytest.mark.parametrize("factor", [0.25, 0.5, 2, 4])
def test_scales_that_are_not_those_of_the_rows_are_blamed(factor: float) -> None:
    values, weight, scale = _gaussian()
    scale[3] *= factor
    assert causes(judged(values, weight, scale, NEAR)) == {OTHER_SCALES: "X.weight_scale"}


def test_a_row_with_fewer_levels_than_it_should_have_is_named() -> None:
    values, weight, scale = _gaussian()
    scale[1] *= 1.3
    weight[1] = np.rint(values[1] / scale[1]).astype(np.int8)
    (flaw,) = judged(values, weight, scale, NEAR).flaws()
    assert (flaw.what, flaw.tensor) == (NOISE, "X.weight")
    assert "in row 1" in flaw.expected
    assert 1.41 < flaw.badness < 1.7  # of the noise that BF16 by BF16 would have left
    scale[1] *= 1.1 / 1.3  # 0.8 dB: granted
    weight[1] = np.rint(values[1] / scale[1]).astype(np.int8)
    assert causes(judged(values, weight, scale, NEAR)) == {}


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf, 1e-42])
@pytest.mark.parametrize("rule", [EXACT, SEARCHED, NEAR], ids=["exact", "searched", "near"])
def test_a_scale_that_is_no_scale_is_left_to_w3(scale: float, rule: Rule) -> None:
    values, weight, scales = _gaussian()
    scales[0] = scale
    judge = judged(values, weight, scales, rule)
    assert causes(judge) == {}
    assert judge.figures().sqnr_db is not None


@pytest.mark.parametrize("rule", [EXACT, SEARCHED, NEAR, SMOOTHED])
def test_a_source_that_is_not_finite_is_no_crash(rule: Rule) -> None:
    values, weight, scale = _gaussian()
    values[7, 7] = np.nan
    judge = judged(values, weight, scale, rule)
    assert set(causes(judge).values()) <= {"X.weight", "X.weight_scale"}
    assert causes(judge) != {}
    assert judge.figures().worst_steps <= 1e9


def test_figures_are_those_of_the_definition() -> None:
    bits = np.stack([row_of_kind("gaussian", "BF16", 700, seed) for seed in range(10)])
    rows = definition.quantize_rows(bits, "BF16")
    sums = definition.no_sums()
    definition.add_rows(sums, rows)
    figures = judged(definition.to_f32(bits, "BF16"), rows.weight, rows.scale, EXACT).figures()
    assert figures.sqnr_db == pytest.approx(10 * np.log10(sums[0] / sums[1]), abs=0.002)
    assert figures.worst_steps == pytest.approx(0.5, abs=0.01)
    (role,) = by_role([figures, figures._replace(tensor="Y", sqnr_db=10.0, worst_steps=3.0)])
    assert (role.tensors, role.least_db, role.least_tensor) == (2, 10.0, "Y")
    assert (role.worst_steps, role.worst_tensor) == (3.0, "Y")


def test_figures_are_by_the_scale_that_the_engine_holds() -> None:
    values = np.random.default_rng(1).uniform(-1, 1, (50, 400)).astype(np.float32)
    weight, scale = round_to_nearest(values, "f32", "F32")
    judge = judged(values, weight, scale[:, 0], NEAR)
    assert causes(judge) == {}
    error = values.astype(np.float64) - weight * to_bf16(scale).astype(np.float64)
    expected = 10 * np.log10((values.astype(np.float64) ** 2).sum() / (error**2).sum())
    assert judge.figures().sqnr_db == pytest.approx(expected, abs=0.01)
    assert judge.figures().worst_steps > 0.6


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [
        (1.0, 0.1, 10.0),
        (0.0, 1.0, None),
        (1.0, 0.0, None),
        (np.inf, 1.0, None),
        (1.0, np.nan, None),
    ],
)
def test_decibels_are_none_where_there_are_none(
    signal: float, noise: float, expected: float | None
) -> None:
    assert decibels(signal, noise) == expected


def test_words_are_little_endian() -> None:
    kinds: dict[str, Any] = {dtype: word(dtype) for dtype in DTYPES}
    assert {dtype: np.dtype(WORDS[dtype]) for dtype in DTYPES} == kinds
