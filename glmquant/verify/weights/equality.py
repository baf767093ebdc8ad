"""Float tensors against the source's: equal by value, or by a factor that smoothing explains."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Final

import numpy as np
from numpy.typing import NDArray

from glmquant.glm4_moe import Role
from glmquant.source import FolderSource
from glmquant.tensors import DTYPE_NBITS, TensorRef
from glmquant.verify.weights.arithmetic import WORDS, values_of, widen, widens
from glmquant.verify.weights.crew import BLOCK_ELEMENTS, Worker
from glmquant.verify.weights.factors import Factors
from glmquant.verify.weights.flaws import Flaw
from glmquant.verify.weights.scan import Scan, place
from glmquant.verify.weights.units import Unit

FAR_ELEMENTS: Final = 8 * BLOCK_ELEMENTS
"""Compared at once where the source is on a hub: each block is a request."""

ROUNDED: Final = 2.0**-6
"""How far a smoothed float value may be from the source's times its factor, relatively: the factor
may be off by 2^-7, and two roundings to BF16 cost 2^-8 each."""


def code_of(role: str, name: str) -> str:
    """The code of a finding about a tensor that has to be equal to the source's."""
    if name.endswith("e_score_correction_bias"):
        return "M1"
    return "M2" if role == Role.MTP.value else "N1"


def shape_flaw(unit: Unit, ref: TensorRef, source: TensorRef) -> Flaw:
    """Two shapes that should be one."""
    return Flaw(
        code_of(unit.role, ref.name),
        "a tensor has another shape than the source's",
        unit.role,
        ref.name,
        str(list(source.shape)),
        str(list(ref.shape)),
        1e6,
        True,
    )


class FloatComparison:
    """Compares a tensor that has to be equal by value, block by block.

    Args:
        unit: What it belongs to.
        ref: The tensor.
        source: Where the other one's bytes are.
        other: The other one, of the same shape.
        factors: What smoothing multiplied it by, where it did.
    """

    def __init__(
        self,
        unit: Unit,
        ref: TensorRef,
        source: FolderSource,
        other: TensorRef,
        factors: Factors | None = None,
    ) -> None:
        self._unit = unit
        self._ref = ref
        self._source = source
        self._other = other
        self._factors = factors
        self._position = 0
        self._count = 0
        self._worst = (-1.0, 0, 0.0, 0.0)
        self._unknown = False

    def take(self, block: memoryview, worker: Worker) -> None:
        """Compare the next block.

        Raises:
            StorageError: The source cannot be read.
        """
        ref, other = self._ref, self._other
        count = len(block) * 8 // DTYPE_NBITS[ref.dtype]
        nbits = DTYPE_NBITS[other.dtype]
        offset = self._position * nbits // 8
        theirs = worker.read(self._source, other, "source", offset, count * nbits // 8)
        if self._factors is not None or not self._are_equal(block, theirs, worker, count):
            self._compare(block, theirs, count)
        self._position += count

    def _are_equal(self, block: memoryview, theirs: memoryview, worker: Worker, count: int) -> bool:
        """Whether two blocks are the same bits, widened from BF16 to F32 perhaps."""
        kinds = self._ref.dtype, self._other.dtype
        if kinds == ("F32", "BF16"):
            values = worker.floats("values", (1, count))
            widen(np.frombuffer(theirs, "<u2").reshape(1, -1), "BF16", values)
            return np.array_equal(values.view(np.uint32)[0], np.frombuffer(block, "<u4"))
        if kinds[0] != kinds[1]:
            return False
        word = np.uint64 if len(block) % 8 == 0 else np.uint8  # a memoryview compares byte by byte
        return np.array_equal(np.frombuffer(block, word), np.frombuffer(theirs, word))

    def _compare(self, block: memoryview, theirs: memoryview, count: int) -> None:
        mine = values_of(np.frombuffer(block, np.uint8), self._ref.dtype)
        wanted = values_of(np.frombuffer(theirs, np.uint8), self._other.dtype)
        if mine is None or wanted is None:
            self._unknown = True
            return
        with np.errstate(all="ignore"):
            mine, wanted = mine.astype(np.float64), wanted.astype(np.float64)
            if self._factors is None:
                off = mine != wanted
            else:
                wanted = wanted * self._factor(count)
                limit = ROUNDED + self._factors.doubt
                off = ~(np.abs(mine - wanted) <= limit * np.abs(wanted))
            if not off.any():
                return
            away = np.nan_to_num(np.where(off, np.abs(mine - wanted), -1.0), nan=1e30, posinf=1e30)
        at = int(np.argmax(away))
        self._count += int(np.count_nonzero(off))
        if away[at] > self._worst[0]:
            self._worst = float(away[at]), self._position + at, float(mine[at]), float(wanted[at])

    def _factor(self, count: int) -> NDArray[np.float64]:
        assert self._factors is not None  # noqa: S101
        columns = self._ref.shape[-1]
        at = np.arange(self._position, self._position + count)
        factor = np.ones(count)
        if self._factors.columns is not None:
            factor *= self._factors.columns[at % columns]
        if self._factors.rows is not None:
            is_vector = len(self._ref.shape) == 1
            factor /= self._factors.rows[at if is_vector else at // columns]
        return factor

    def flaws(self) -> Iterator[Flaw]:
        """What differs, once all blocks were seen."""
        ref, other = self._ref, self._other
        code = code_of(self._unit.role, ref.name)
        if self._unknown:
            yield Flaw(
                code,
                "a tensor has a dtype that cannot be compared with the source's",
                self._unit.role,
                ref.name,
                other.dtype,
                ref.dtype,
                1e6,
                True,
            )
        elif self._count:
            away, position, mine, wanted = self._worst
            smoothed = " after smoothing" * (self._factors is not None)
            yield Flaw(
                code,
                "values are not those of the source",
                self._unit.role,
                ref.name,
                f"{wanted:.9g} at {place(ref.shape, position)}{smoothed}",
                f"{mine:.9g}; {self._count} of {prod(ref.shape)} values differ",
                away,
                True,
            )
        elif ref.dtype != other.dtype and not (
            ref.dtype in WORDS and other.dtype in WORDS and widens(other.dtype, ref.dtype)
        ):
            yield Flaw(
                code,
                "a tensor is of a narrower dtype than the source's",
                self._unit.role,
                ref.name,
                other.dtype,
                f"{ref.dtype}, though no value of it differs",
                0.0,
                True,
                True,
            )


def compare_float(
    unit: Unit,
    scan: Scan,
    mine: FolderSource,
    theirs: tuple[FolderSource, TensorRef],
    worker: Worker,
    factors: Factors | None = None,
) -> Iterator[Flaw]:
    """Hold a float tensor against the source's, and look at its bytes on the way.

    Args:
        unit: What it belongs to.
        scan: Reads it.
        mine: Where its bytes are.
        theirs: Where the source's are, and which tensor it is.
        worker: Has the buffers.
        factors: What smoothing multiplied it by, where it did.

    Yields:
        What is wrong.

    Raises:
        StorageError: A file cannot be read.
    """
    source, other = theirs
    if scan.ref.shape != other.shape:
        scan.read_all(mine, worker)
        yield from scan.flaws()
        yield shape_flaw(unit, scan.ref, other)
        return
    comparison = FloatComparison(unit, scan.ref, source, other, factors)
    elements = FAR_ELEMENTS if source.is_far else BLOCK_ELEMENTS
    for block in scan.read(mine, worker, elements):
        comparison.take(block, worker)
    yield from scan.flaws(is_judged=True)
    yield from comparison.flaws()
