"""Float tensors of two checkpoints held against each other by value: F32 may be a widened BF16."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from glmquant.graft.donor import Donor
from glmquant.graft.recipient import Recipient
from glmquant.kernels.definition import bits_dtype, round_to_bf16, to_f32
from glmquant.kernels.units import ITEM_NBYTES
from glmquant.tensors import FLOAT_DTYPES, TensorRef

Floats = NDArray[np.float32]

Advance = Callable[[int], Any]

BLOCK_ITEMS: Final = 1 << 19
"""Elements compared at a time."""

SAMPLED_ROWS: Final = 8


class Likeness(Enum):
    """What a float tensor is to the source's of the same name."""

    SAME = "same dtype, same values"
    WIDENED = "another dtype, same values"
    ROUNDED = "rounded to BF16"
    OTHER = "other values"


def _values(dtype: str, data: bytes) -> Floats:
    """The values of BF16, F16 or F32 bytes."""
    return to_f32(np.frombuffer(data, bits_dtype(dtype)), dtype)


def compare(
    recipient: Recipient, held: TensorRef, donor: Donor, wanted: TensorRef, advance: Advance
) -> Likeness:
    """Read two tensors of one shape, a block at a time, and say what the first is to the second.

    Args:
        recipient: Where ``held`` lies.
        held: A float tensor.
        donor: Where ``wanted`` lies.
        wanted: The source's.
        advance: Told how many bytes of ``held`` were read.

    Returns:
        The likeness; reading ends with the first difference.

    Raises:
        StorageError: One of them cannot be read.
    """
    likeness = Likeness.SAME if held.dtype == wanted.dtype else Likeness.WIDENED
    mine, theirs = ITEM_NBYTES[held.dtype], ITEM_NBYTES[wanted.dtype]
    count = prod(wanted.shape)
    for begin in range(0, count, BLOCK_ITEMS):
        items = min(BLOCK_ITEMS, count - begin)
        block = recipient.read(held, begin * mine, items * mine)
        other = donor.read(wanted, begin * theirs, items * theirs)
        advance(len(block))
        if held.dtype == wanted.dtype and block == other:
            continue
        values, source = _values(held.dtype, block), _values(wanted.dtype, other)
        if held.dtype != wanted.dtype and np.array_equal(values, source):
            continue
        if wanted.dtype == "F32" and np.array_equal(values, round_to_bf16(source)):
            likeness = Likeness.ROUNDED
            continue
        return Likeness.OTHER
    return likeness


def sampled_rows(ref: TensorRef) -> list[int]:
    """Evenly spaced rows of a matrix; a vector is one row."""
    if len(ref.shape) < 2:
        return [0]
    rows = ref.shape[0]
    return sorted({rows * (2 * step + 1) // (2 * SAMPLED_ROWS) for step in range(SAMPLED_ROWS)})


def rows_of(
    read: Callable[[TensorRef, int, int], bytes], ref: TensorRef
) -> Iterator[tuple[int, Floats]]:
    """The sampled rows of a float tensor and their values."""
    row_nbytes = ref.shape[-1] * ITEM_NBYTES[ref.dtype]
    for row in sampled_rows(ref):
        yield row, _values(ref.dtype, read(ref, row * row_nbytes, row_nbytes))


def is_float(ref: TensorRef) -> bool:
    """Whether the tensor holds floats that can be compared."""
    return ref.dtype in FLOAT_DTYPES and bool(ref.shape)
