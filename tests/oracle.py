"""What the contract says the output must be, worked out a second time and in another way.

Scales are found by comparing the two BF16 neighbours in float64, quotients are rounded through
Python's own ``round`` on exact fractions where a tie is near. Slow, and not the package's code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Tensor = tuple[str, list[int], bytes]

INT8_BY_RECIPE = {
    "w8a8": r"\.self_attn\.[qkvo]_proj\.weight$|\.mlp\.experts\.\d+\.\w+_proj\.weight$",
    "w8a8-full": r"\.self_attn\.[qkvo]_proj\.weight$|\.mlp\..*_proj\.weight$",
}


def to_f64(dtype: str, shape: tuple[int, ...], data: bytes) -> NDArray[np.float64]:
    """Exact values of stored bytes."""
    if dtype == "BF16":
        bits: NDArray[np.uint32] = np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)
        return bits.view(np.float32).astype(np.float64).reshape(shape)
    stored = np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[dtype])
    values: NDArray[np.float64] = stored.astype(np.float64)
    return values.reshape(shape)


def nearest_bf16(value: np.float32) -> float:
    """The BF16 nearest to a positive F32, the even one of two that are as near."""
    low_bits = int(value.view(np.uint32)) & 0xFFFF0000
    low, high = (float(np.uint32(bits).view(np.float32)) for bits in (low_bits, low_bits + 0x10000))
    below, above = float(value) - low, high - float(value)
    if below == above:
        return low if (low_bits >> 16) % 2 == 0 else high
    return low if below < above else high


def quantize(weight: NDArray[np.float64]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 ``[out, in]`` and scales ``[out]`` by the contract's formula, row by row."""
    rows = np.empty(weight.shape, np.int8)
    scales = np.empty(weight.shape[0], np.float32)
    for number, row in enumerate(weight):
        scale = nearest_bf16(np.float32(np.abs(row).max()) / np.float32(127)) or 1.0
        scales[number] = scale
        quotients = row.astype(np.float32) / np.float32(scale)
        rows[number] = [max(-127, min(127, round(float(each)))) for each in quotients]
    return rows, scales


def expected_tensors(
    tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]],
    *,
    recipe: str,
    mtp_prefix: str,
    add_mtp: bool,
) -> dict[str, Tensor]:
    """Name → dtype, shape and bytes of every tensor of the output."""
    expected: dict[str, Tensor] = {}
    for name, (dtype, shape, data) in tensors.items():
        is_mtp = name.startswith(mtp_prefix)
        if is_mtp and not add_mtp:
            continue
        if is_mtp or not re.search(INT8_BY_RECIPE[recipe], name):
            expected[name] = (dtype, list(shape), data)
            continue
        rows, scales = quantize(to_f64(dtype, shape, data))
        expected[name] = ("I8", list(shape), rows.tobytes())
        expected[name + "_scale"] = ("F32", [shape[0], 1], scales.tobytes())
        expected[name + "_offset"] = ("F32", [shape[0], 1], bytes(4 * shape[0]))
    return expected
