"""Scheme → the tensors of one linear on disk (msModelSlim 26.1.0, vllm-ascend 0.11-0.30)."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Scheme(str, Enum):
    """What becomes of a tensor. The values are the type strings of the description."""

    FLOAT = "FLOAT"
    W8A8_DYNAMIC = "W8A8_DYNAMIC"


class ScaleChoice(str, Enum):
    """How the scale of a row is chosen."""

    ABSMAX = "absmax"
    """By the largest magnitude."""
    MSE = "mse"
    """The BF16 number near that one with the least squared error of the row."""


class OutputTensor(NamedTuple):
    """A tensor to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]


def output_tensors(
    scheme: Scheme, name: str, dtype: str, shape: tuple[int, ...]
) -> tuple[OutputTensor, ...]:
    """What one source tensor becomes on disk.

    ``FLOAT`` keeps the tensor. ``W8A8_DYNAMIC`` makes of ``X.weight`` ``[out, in]``: ``X.weight``
    int8 ``[out, in]`` in [-127, 127], ``X.weight_scale`` F32 ``[out, 1]`` and ``X.weight_offset``
    F32 ``[out, 1]``, all zero (vllm-ascend 0.23.0 ``quantization/methods/w8a8_dynamic.py``).

    Args:
        scheme: The scheme.
        name: Name of the source tensor; ends in ``.weight`` for a quantized one.
        dtype: Its dtype.
        shape: Its shape; ``[out, in]`` for a quantized one.

    Returns:
        The output tensors, the weight first.
    """
    if scheme is Scheme.FLOAT:
        return (OutputTensor(name, dtype, shape),)
    rows = (shape[0], 1)
    return (
        OutputTensor(name, "I8", shape),
        OutputTensor(name + "_scale", "F32", rows),
        OutputTensor(name + "_offset", "F32", rows),
    )
