"""The small tensors of an int8 linear, and the router bias: are their numbers possible ones?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glmquant.tensors import TensorRef
from glmquant.verify.weights.arithmetic import WORDS, Floats, deq_scales, to_bf16
from glmquant.verify.weights.flaws import Flaw
from glmquant.verify.weights.scan import place
from glmquant.verify.weights.units import Unit

POSITIVE: Final = ("weight_scale", "input_scale", "deq_scale")

LEAST_SCALE: Final = np.float32(2.0**-134)
"""The engine holds a ``weight_scale`` in BF16, where this and less is 0."""

FLOOR: Final = 1e-5
"""Tools keep scales from falling below some number (msModelSlim 26.1.0: 2^-23, the F32 epsilon);
rows that it holds for use fewer of the 255 values, rightly."""

LEAST_PEAK: Final = 64
"""Largest magnitude in an int8 row that is not zero: 127 at most half a step away by absmax, 124 or
more with a searched scale, 126 where BF16 is divided by BF16; 64 only where a subnormal scale is
rounded to whole quanta of 2^-133."""

LEAST_COLUMNS: Final = 8
"""Shorter rows may be one value over and over by chance."""

PRODUCT: Final = 2.0**-6
"""How far ``deq_scale`` may be from ``input_scale * weight_scale``: three roundings to BF16."""


class Scales(NamedTuple):
    """What an int8 weight is multiplied by.

    Attributes:
        name: The tensor that says so.
        stored: ``[out]`` F32, as the file says.
        engine: ``[out]`` F32, as the engine holds it: a ``weight_scale`` in BF16.
        is_product: They are ``deq_scale / input_scale``.
    """

    name: str
    stored: Floats
    engine: Floats
    is_product: bool = False


def scales_of(unit: Unit, values: dict[str, NDArray[Any]]) -> Scales | None:
    """The scales of the rows of an int8 linear, by the tensor that the engine goes by.

    Args:
        unit: The linear.
        values: Suffix → the numbers of that tensor.

    Returns:
        None where they are missing, or not one a row.
    """
    rows = unit.main.shape[0]
    deq = values.get("deq_scale")
    if deq is not None and deq.size == rows:
        step = values.get("input_scale")
        product = deq_scales(deq.reshape(-1), unit.parts["deq_scale"].dtype)
        if product is not None and step is not None and step.size == 1:
            with np.errstate(all="ignore"):
                factor: Floats = (product / np.float64(step.reshape(-1)[0])).astype(np.float32)
            return Scales(unit.parts["deq_scale"].name, factor, factor, True)
    weight = values.get("weight_scale")
    if weight is None or weight.size != rows or unit.parts["weight_scale"].dtype not in WORDS:
        return None
    with np.errstate(all="ignore"):
        stored = weight.reshape(-1).astype(np.float32)
        engine = np.where(np.isfinite(stored), stored, np.float32(0))
    return Scales(unit.parts["weight_scale"].name, stored, to_bf16(engine))


def check_numbers(unit: Unit, values: dict[str, NDArray[Any]]) -> Iterator[Flaw]:
    """W3 for the small tensors of an int8 linear.

    Args:
        unit: The linear.
        values: Suffix → the numbers of that tensor.
    """
    for suffix, ref in unit.parts.items():
        numbers = values.get(suffix)
        if numbers is None:
            continue
        if suffix in POSITIVE:
            yield from _check_positive(unit, ref, numbers)
        elif suffix == "weight_offset" and np.any(numbers != 0):
            first = int(np.flatnonzero(numbers)[0])
            yield Flaw(
                "W3",
                "a weight offset is not zero",
                unit.role,
                ref.name,
                "zeros: the engine takes int8 weights as symmetric",
                f"{numbers.reshape(-1)[first]} at {place(ref.shape, first)}, "
                f"{np.count_nonzero(numbers)} of {numbers.size}",
                float(np.count_nonzero(numbers)),
            )
    yield from _check_product(unit, values)


def _check_positive(unit: Unit, ref: TensorRef, numbers: NDArray[Any]) -> Iterator[Flaw]:
    held = deq_scales(numbers, ref.dtype) if ref.dtype == "I64" else numbers
    if held is None or (ref.dtype not in WORDS and ref.dtype != "I64"):
        return  # a dtype that no engine takes: said at the level of files
    with np.errstate(all="ignore"):
        single = held.astype(np.float32)
        fine = (single > LEAST_SCALE) & (single < np.inf)
    if not fine.all():
        bad = np.flatnonzero(~fine)
        yield Flaw(
            "W3",
            "a scale is not a number above zero",
            unit.role,
            ref.name,
            "finite numbers above zero",
            f"{held.reshape(-1)[bad[0]]} at {place(ref.shape, int(bad[0]))}, "
            f"{len(bad)} of {held.size}",
            float(len(bad)),
        )


def _check_product(unit: Unit, values: dict[str, NDArray[Any]]) -> Iterator[Flaw]:
    """A static linear of v0 says its scale twice."""
    deq, step, weight = (
        values.get(suffix) for suffix in ("deq_scale", "input_scale", "weight_scale")
    )
    if deq is None or step is None or weight is None:
        return
    ref = unit.parts["deq_scale"]
    product = deq_scales(deq.reshape(-1), ref.dtype)
    if product is None or product.size != weight.size or step.size != 1:
        return
    with np.errstate(all="ignore"):
        wanted = weight.reshape(-1).astype(np.float64) * float(step.reshape(-1)[0])
        distance = np.abs(product / wanted - 1)
    off = np.flatnonzero(distance > PRODUCT)
    if len(off):
        worst = int(off[np.argmax(distance[off])])
        yield Flaw(
            "W3",
            "deq_scale is not input_scale times weight_scale",
            unit.role,
            ref.name,
            f"{wanted[worst]:.6g} in row {worst}",
            f"{product[worst]:.6g}, {len(off)} of {product.size} rows",
            float(distance[worst]),
        )


def check_rows(
    unit: Unit, first: int, weight: NDArray[np.int8], scales: Scales | None
) -> Iterator[Flaw]:
    """W3 for some rows of an int8 weight, without the source.

    Args:
        unit: The linear.
        first: The number of the first of these rows.
        weight: ``[rows, in]``.
        scales: Those of the linear, where it has them.
    """
    if weight.shape[1] < LEAST_COLUMNS:
        return
    peak = weight.max(axis=1)
    left = weight[:, 0]
    # Nearly every row reaches 64 above zero and begins with two different values.
    doubtful = np.flatnonzero((peak < LEAST_PEAK) | ((left == peak) & (weight[:, 1] == peak)))
    for row in doubtful.tolist():
        low, high = int(weight[row].min()), int(peak[row])
        most = max(-low, high)
        if low == high and high != 0:
            yield Flaw(
                "W3",
                "an int8 row is one value over and over",
                unit.role,
                unit.main.name,
                "rows with different values, or zeros",
                f"row {first + row}: {high} in all {weight.shape[1]} columns",
                float(weight.shape[1]),
            )
        elif 0 < most < LEAST_PEAK and _is_above_floor(scales, first + row):
            yield Flaw(
                "W3",
                "an int8 row uses less than half of its range",
                unit.role,
                unit.main.name,
                f"a largest magnitude of {LEAST_PEAK} to 127",
                f"row {first + row}: {most}",
                float(LEAST_PEAK - most),
            )


def _is_above_floor(scales: Scales | None, row: int) -> bool:
    return scales is not None and bool(scales.stored[row] > FLOOR)


def check_router_bias(unit: Unit, values: NDArray[Any]) -> Iterator[Flaw]:
    """M1 for a router bias by itself; NaN is W2's."""
    if values.size and not values.any():
        yield Flaw(
            "M1",
            "a router bias is all zero",
            unit.role,
            unit.name,
            "what training left there, different for each expert",
            f"{values.size} zeros",
            float(values.size),
        )


def shared_inputs(inputs: dict[str, dict[str, float]]) -> Iterator[tuple[str, str, list[float]]]:
    """Attention layers whose static q, k and v do not share what the engine has one slot for.

    Args:
        inputs: Linear → suffix → its number.

    Yields:
        The prefix of the three, the suffix, and their different numbers.
    """
    groups: dict[tuple[str, str], dict[str, float]] = {}
    for linear, numbers in inputs.items():
        prefix, _, last = linear.rpartition(".")
        if last in ("q_proj", "k_proj", "v_proj"):
            for suffix, number in numbers.items():
                groups.setdefault((prefix, suffix), {})[last] = number
    for (prefix, suffix), numbers in groups.items():
        if len(set(numbers.values())) > 1:
            yield prefix, suffix, [numbers.get(f"{letter}_proj", float("nan")) for letter in "qkv"]
