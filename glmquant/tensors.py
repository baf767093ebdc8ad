"""One tensor of one safetensors file, without its bytes."""

from __future__ import annotations

from math import prod
from typing import Final, NamedTuple

DTYPE_NBITS: Final[dict[str, int]] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Bits of one element, in the order of safetensors 0.8.0's ``Dtype`` (tensor.rs)."""

FLOAT_DTYPES: Final = ("BF16", "F16", "F32")
"""What a float tensor of a GLM-4.x checkpoint may be: BF16 in the releases, F32 router biases."""


class TensorRef(NamedTuple):
    """Where a tensor's bytes are. A named tuple: 130,000 are made, four times as fast as a class.

    Attributes:
        name: Full name, as in the header.
        dtype: safetensors dtype string, a key of ``DTYPE_NBITS``.
        shape: Dimensions, outermost first; ``()`` is a scalar.
        file: Name of the shard in its folder.
        offset: First byte, counted from the start of the file.
        nbytes: Length in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    nbytes: int


def tensor_nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes that a tensor of this dtype and shape takes, rounded up to whole bytes."""
    return (prod(shape) * DTYPE_NBITS[dtype] + 7) // 8
