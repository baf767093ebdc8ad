"""int8 rows against the rows that they were made of, block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glmquant.verify.weights.arithmetic import Floats
from glmquant.verify.weights.blocks import Block, RowFlaw, errors_of, noise_of
from glmquant.verify.weights.crew import Worker
from glmquant.verify.weights.figures import TensorFigures, decibels
from glmquant.verify.weights.flaws import Flaw
from glmquant.verify.weights.formula import check_formula, check_search
from glmquant.verify.weights.nearness import (
    PRODUCT_STEP,
    SMOOTHED_STEP,
    STEP,
    check_noise,
    check_steps,
)
from glmquant.verify.weights.scales import Scales
from glmquant.verify.weights.units import Unit

PRODUCT_ROUNDING: Final = 2.0**-8
"""How far ``deq_scale / input_scale`` may be from the scale: half a BF16 step."""


class Rule(NamedTuple):
    """How strictly a weight is judged.

    Attributes:
        is_exact: It says that it was made by our formula.
        is_searched: With ``scale: mse``.
        is_smoothed: The source is multiplied by factors that were found.
    """

    is_exact: bool
    is_searched: bool = False
    is_smoothed: bool = False


class RowJudge:
    """Judges an int8 weight block by block.

    Args:
        unit: The linear.
        scales: Its scales, one a row.
        rule: How strictly.
        worker: Has the buffers.
    """

    def __init__(self, unit: Unit, scales: Scales, rule: Rule, worker: Worker) -> None:
        self._unit = unit
        self._scales = scales
        self._rule = rule
        self._worker = worker
        self._signal = self._noise = self._worst = 0.0
        self._flaws: dict[str, RowFlaw] = {}
        self._counts: dict[str, int] = {}

    def is_formula(
        self, first: int, weight: NDArray[np.int8], values: Floats, plain: Floats
    ) -> bool:
        """Whether rows are exactly what our formula gives: the usual case, and the quick one.

        Args:
            first: The number of the first of them.
            weight: ``[rows, in]`` int8.
            values: ``[rows, in]`` F32, what they were made of: overwritten.
            plain: ``[rows]`` F32, the formula's scales.

        Returns:
            True where there is no more to do; else they have to be judged by ``take``.
        """
        stored = self._scales.stored[first : first + len(weight)]
        is_plain = self._rule.is_exact and not self._rule.is_searched
        if not is_plain or not np.array_equal(stored, plain):
            return False
        signal = np.einsum("ij,ij->i", values, values)
        whole = self._worker.floats("whole", (weight.shape[0], weight.shape[1]))
        np.divide(values, plain[:, None], out=values)
        np.rint(values, out=whole)
        as_int8 = np.frombuffer(self._worker.buffer("rounded", whole.size), np.int8)
        as_int8 = as_int8.reshape(whole.shape)
        np.copyto(as_int8, whole, casting="unsafe")
        # By a subnormal scale a quotient may be above 127.5 and has to be clipped: not here.
        if not np.array_equal(as_int8, weight):
            return False
        np.subtract(values, whole, out=values)
        self._sum_up(signal, noise_of(values, plain), values)
        return True

    def take(
        self,
        first: int,
        weight: NDArray[np.int8],
        values: Floats,
        largest: Floats,
        plain: Floats,
    ) -> bool:
        """Judge the next rows.

        Args:
            first: The number of the first of them.
            weight: ``[rows, in]`` int8.
            values: ``[rows, in]`` F32, what they were made of.
            largest: ``[rows]`` F32, their largest magnitudes.
            plain: ``[rows]`` F32, the formula's scales.

        Returns:
            Whether they are right.
        """
        before = sum(self._counts.values())
        block, engine = self._block(first, weight, values, largest, plain)
        divisor = block.stored
        if self._rule.is_exact:
            # Without the search the formula's own scale decides, whatever the file says: a wrong
            # scale is one flaw, wrong values are another.
            divisor = block.stored if self._rule.is_searched else block.plain
            np.divide(values, divisor[:, None], out=block.errors)
            self._note(check_formula(block, self._worker, self._rule.is_searched))
        else:
            np.divide(values, divisor[:, None], out=block.errors)
            np.copyto(block.whole, weight)
        np.subtract(block.errors, block.whole, out=block.errors)
        noise = noise_of(block.errors, divisor)
        if self._rule.is_searched:
            self._note(check_search(block, noise))
        elif not self._rule.is_exact:
            is_smoothed, is_product = self._rule.is_smoothed, self._scales.is_product
            limit = SMOOTHED_STEP if is_smoothed else PRODUCT_STEP if is_product else STEP
            far, flaws = check_steps(block, limit)
            self._note(flaws)
            self._note(check_noise(block, np.where(far, 0, noise), is_smoothed or is_product))
        if not np.array_equal(divisor, engine):
            errors_of(block, engine)
            noise = noise_of(block.errors, engine)
        signal = np.einsum("ij,ij->i", values, values)
        self._sum_up(signal, noise, block.errors)
        return sum(self._counts.values()) == before

    def _block(
        self,
        first: int,
        weight: NDArray[np.int8],
        values: Floats,
        largest: Floats,
        plain: Floats,
    ) -> tuple[Block, Floats]:
        """The block with the scales that its values are judged by, and the engine's."""
        shape = weight.shape[0], weight.shape[1]
        errors, whole = self._worker.floats("errors", shape), self._worker.floats("whole", shape)
        stored = self._scales.stored[first : first + shape[0]]
        engine = self._scales.engine[first : first + shape[0]]
        good = np.isfinite(stored) & (engine > 0)
        if not good.all():  # W3 tells of them
            stored, engine = np.where(good, stored, plain), np.where(good, engine, plain)
        block = Block(first, weight, whole, values, errors, largest, plain, stored)
        if self._scales.is_product:
            block = block._replace(stored=_before_the_product(block))
        return block, engine

    def _sum_up(
        self, signal: NDArray[np.floating[Any]], noise: NDArray[np.float64], errors: Floats
    ) -> None:
        worst = max(float(errors.max()), -float(errors.min()))
        self._worst = max(self._worst, worst) if math.isfinite(worst) else math.inf
        self._signal += float(signal.sum(dtype=np.float64))
        total = float(noise.sum())
        self._noise += total if math.isfinite(total) else math.inf

    def _note(self, flaws: Iterator[RowFlaw]) -> None:
        for flaw in flaws:
            self._counts[flaw.what] = self._counts.get(flaw.what, 0) + flaw.rows
            held = self._flaws.get(flaw.what)
            if held is None or flaw.badness > held.badness:
                self._flaws[flaw.what] = flaw

    def flaws(self) -> Iterator[Flaw]:
        """What is wrong with the weight, once all rows were seen."""
        unit = self._unit
        for what, flaw in self._flaws.items():
            tensor = self._scales.name if flaw.is_scale else unit.main.name
            found = f"{flaw.found}; {self._counts[what]} of {unit.main.shape[0]} rows"
            yield Flaw(
                "N1", what, unit.role, tensor, flaw.expected, found, flaw.badness, is_source=True
            )

    def figures(self) -> TensorFigures:
        """How far the weight is from the source's, once all rows were seen."""
        return TensorFigures(
            self._unit.main.name,
            self._unit.role,
            decibels(self._signal, self._noise),
            round(min(self._worst, 1e9), 4),
        )


def _before_the_product(block: Block) -> Floats:
    """The scale of each row by least squares, as far as ``deq_scale`` may stand for it.

    msModelSlim (26.1.0) rounds ``input_scale * weight_scale`` to BF16 and keeps no weight_scale:
    what a row was divided by may be half a BF16 step beside ``deq_scale / input_scale``.
    """
    np.copyto(block.whole, block.weight)
    product = np.einsum("ij,ij->i", block.values, block.whole)
    square = np.einsum("ij,ij->i", block.whole, block.whole)
    stored = block.stored
    best = np.where(square > 0, product / square, stored).astype(np.float32)
    low, high = np.float32(1 - PRODUCT_ROUNDING), np.float32(1 + PRODUCT_ROUNDING)
    return np.where(np.isfinite(best), np.clip(best, stored * low, stored * high), stored)
