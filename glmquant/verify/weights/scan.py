"""One tensor of the checkpoint, block by block: its digest, NaN and Inf, whether all is zero."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any, Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from glmquant.source import FolderSource
from glmquant.tensors import DTYPE_NBITS, TensorRef
from glmquant.verify.weights.arithmetic import WORDS, non_finite, values_of
from glmquant.verify.weights.crew import BLOCK_ELEMENTS, Worker
from glmquant.verify.weights.flaws import Flaw

MAX_VECTOR_NBYTES: Final = 16 << 20
"""Longer scales and biases are not read whole: no linear has that many rows."""

MAX_COLUMNS: Final = 1 << 24
"""A longer row is not held whole: config.json could not call for it."""


def place(shape: tuple[int, ...], position: int) -> str:
    """Where a flat position is, for people."""
    if len(shape) < 2:
        return f"element {position}"
    columns = shape[-1]
    return f"row {position // columns}, column {position % columns}"


class Scan:
    """Sees every byte of a tensor once, in order.

    Args:
        ref: The tensor.
        role: What it does.
        digest: What the manifest says of its bytes, if it does.

    Attributes:
        is_zero: No byte so far was another than 0.
    """

    def __init__(self, ref: TensorRef, role: str, digest: str | None) -> None:
        self.ref = ref
        self.role = role
        self._digest = digest
        self._hash = xxhash.xxh3_128() if digest is not None else None
        self._position = 0
        self._bad = 0
        self._first: tuple[int, float] | None = None
        self.is_zero = True

    def read(
        self, source: FolderSource, worker: Worker, elements: int = BLOCK_ELEMENTS
    ) -> Iterator[memoryview]:
        """Read the tensor block by block; a block is overwritten by the next.

        Raises:
            StorageError: The file ends before that, or cannot be read.
        """
        step = max(1, elements * DTYPE_NBITS[self.ref.dtype] // 8)
        for offset in range(0, self.ref.nbytes, step):
            nbytes = min(step, self.ref.nbytes - offset)
            block = worker.read(source, self.ref, "tensor", offset, nbytes)
            self._take(block)
            yield block

    def read_all(self, source: FolderSource, worker: Worker) -> None:
        """Read the tensor for what is to be seen of it alone."""
        for _ in self.read(source, worker, 4 * BLOCK_ELEMENTS):
            pass

    def read_values(self, source: FolderSource, worker: Worker) -> NDArray[Any] | None:
        """All numbers of a short tensor; None where it is too long or of a dtype NumPy lacks."""
        if self.ref.nbytes > MAX_VECTOR_NBYTES:
            self.read_all(source, worker)
            return None
        data = b"".join(self.read(source, worker))
        return values_of(np.frombuffer(data, np.uint8), self.ref.dtype)

    def _take(self, block: memoryview) -> None:
        if self._hash is not None:
            self._hash.update(block)
        dtype = self.ref.dtype
        if dtype not in WORDS:
            self.is_zero = self.is_zero and not np.frombuffer(block, np.uint8).any()
            return
        words = np.frombuffer(block, WORDS[dtype])
        bad = non_finite(words, dtype)
        if bad is not None and len(bad):
            if self._first is None:
                first = int(bad[0])
                value = values_of(words[first : first + 1].view(np.uint8), dtype)
                self._first = self._position + first, float(value[0]) if value is not None else 0
            self._bad += len(bad)
        self.is_zero = self.is_zero and not words.any()
        self._position += len(words)

    def flaws(self, *, is_judged: bool = False) -> Iterator[Flaw]:
        """What is wrong with the bytes, once all of them were seen.

        Args:
            is_judged: The source says what the values have to be: zeros need no word here.
        """
        ref = self.ref
        if self._first is not None:
            position, value = self._first
            yield Flaw(
                "W2",
                "a float tensor is not finite",
                self.role,
                ref.name,
                "finite numbers",
                f"{value} at {place(ref.shape, position)}, {self._bad} of {prod(ref.shape)} values",
                self._bad / max(1, prod(ref.shape)),
            )
        if self.is_zero and not is_judged and len(ref.shape) > 1 and min(ref.shape) > 1:
            yield Flaw(
                "W3" if ref.dtype == "I8" else "W2",
                "every value of a weight is zero",
                self.role,
                ref.name,
                "a trained weight",
                f"{prod(ref.shape)} zeros, as in a file that was not fetched to its end",
                ref.nbytes,
                is_warning=True,
            )
        if self._hash is not None and self._hash.hexdigest() != self._digest:
            yield Flaw(
                "B1",
                "bytes are not those that the manifest has a digest of",
                self.role,
                ref.name,
                f"xxh3-128 {self._digest}",
                self._hash.hexdigest(),
            )
