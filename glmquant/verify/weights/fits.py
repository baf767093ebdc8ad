"""Factors by least squares, how sure they are, and which BF16 numbers they may be."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glmquant.verify.weights.arithmetic import Floats, to_bf16

Doubles = NDArray[np.float64]

SIGMAS: Final = 6.0
"""Standard errors that a factor may be off besides: there are 5,120 channels in 92 layers."""

RATIO: Final = 2.0**-7
"""How much a factor by the norm alone is in doubt, as a part of it: two roundings to BF16, and the
norm has its say once more where the BF16 numbers are sorted out."""

ROUNDING: Final = 0.45
"""Root mean square of a rounding error in steps, at most: 0.29 where F32 is rounded, and what BF16
adds to that."""

LEVELS: Final = 2.0
"""So many steps a column's values have to be, root mean square, to tell of its factor."""

MOVED: Final = 2.0**-8
"""Factors that are nearer to 1 are rounding: no tool smooths by half a BF16 step."""

CLEAR: Final = 3
"""A BF16 number is the factor where the next one is three times as far from what was found."""


class Sums(NamedTuple):
    """What a sample of int8 rows tells of the factors of its columns, or of its rows.

    Attributes:
        product: Σ of int8 times source for each factor, in steps of the rows.
        square: Σ of source squared for each factor, in steps of the rows.
        terms: How many values there are for each.
    """

    product: Doubles
    square: Doubles
    terms: int

    def factors(self) -> Doubles | None:
        """By least squares; NaN where all weights are zero, None if they all are."""
        if not self.square.any():
            return None
        with np.errstate(all="ignore"):
            return np.where(self.square > 0, self.product / self.square, np.nan)

    def doubt(self) -> Doubles:
        """The standard error of each factor as a part of it, infinite where few levels are in use.

        A rounding error is as good as random only where a column uses several levels: where nearly
        all is rounded to 0, the factor comes out too small.
        """
        with np.errstate(all="ignore"):
            level = self.product**2 / self.square / max(self.terms, 1)
            error = ROUNDING * np.sqrt(self.square) / np.abs(self.product)
        return np.where(level >= LEVELS**2, error, np.inf)

    def __add__(self, other: object) -> Sums:
        """Of both samples together."""
        if not isinstance(other, Sums):
            return NotImplemented
        return Sums(
            self.product + other.product, self.square + other.square, self.terms + other.terms
        )


class Fit(NamedTuple):
    """Factors between a norm and the linears behind it.

    Attributes:
        found: By the linears; NaN where all weights are zero.
        doubt: Its standard error, as a part of it; infinite where they tell nothing.
        misfits: The channels where the norm says another.
    """

    found: Doubles
    doubt: Doubles
    misfits: NDArray[np.bool_]

    def is_moved(self, changed: NDArray[np.bool_]) -> bool:
        """Whether the linears are smoothed in one of the channels in which the norm differs."""
        known = changed & (self.doubt < 1)
        return not known.any() or moved_share(self.found[known], self.doubt[known]) > 0

    def factors(self, ratio: Doubles) -> Doubles:
        """The likeliest factors: both tell of them, unless the norm is wrong.

        Args:
            ratio: What the norm was divided by.
        """
        own = 0.0 if self.misfits.any() else RATIO**-2
        with np.errstate(all="ignore"):
            sure = self.doubt**-2
            held = (np.nan_to_num(self.found) * sure + ratio * own) / (sure + own)
        held = np.where(np.isfinite(held), held, ratio)
        return np.where(np.isfinite(held) & (held > 0), held, 1.0)


def merged(factors: Doubles, doubt: Doubles, axis: int) -> tuple[Doubles, Doubles]:
    """Several findings of the same factors as one, the surer ones counting more.

    Args:
        factors: Along an axis what one number is found to be; NaN where nothing was.
        doubt: The standard error of each as a part of it.
        axis: Which axis.

    Returns:
        The factors and their doubt, without that axis; NaN where nothing was found.
    """
    weight = np.where(np.isnan(factors), 0, np.maximum(doubt, 1e-6) ** -2.0)
    weight = np.where(np.isnan(factors), 0, np.maximum(weight, 1e-12))  # in doubt, but all there is
    total = weight.sum(axis=axis)
    with np.errstate(all="ignore"):
        held = (np.nan_to_num(factors) * weight).sum(axis=axis) / total
        return held, np.where(total > 0, total**-0.5, np.inf)


def settled(
    guess: Doubles,
    theirs: Doubles | None = None,
    mine: Doubles | None = None,
) -> Floats:
    """The BF16 number that a factor is, where it is plain which; else the factor as it was found.

    Args:
        guess: As found from weights.
        theirs: A vector of the source, where there is one that was divided by the factors.
        mine: What became of it.
    """
    with np.errstate(all="ignore"):
        nearest = to_bf16(guess)
        best, least = nearest, np.full(len(guess), np.inf)
        second = least
        for step in range(-2, 3):
            tried = (nearest.view(np.int32) + (step << 16)).view(np.float32)
            away = np.abs(tried - guess)
            if theirs is not None and mine is not None:
                divided = to_bf16((theirs / tried).astype(np.float32))
                times = to_bf16((theirs * to_bf16(1 / tried)).astype(np.float32))
                away = np.where((divided == mine) | (times == mine), away, np.inf)
            second = np.minimum(second, np.maximum(away, least))
            best, least = np.where(away < least, tried, best), np.minimum(away, least)
        is_plain = np.isfinite(least) & (least * CLEAR < second)
    return np.where(is_plain, best, guess.astype(np.float32))


def moved_share(factors: Doubles, doubt: Doubles) -> float:
    """The part of some factors that are not 1 for sure.

    Args:
        factors: As found; NaN where nothing was.
        doubt: The standard error of each as a part of it.
    """
    known = np.isfinite(factors) & (doubt < 1)
    if not known.any():
        return 0.0
    away = np.abs(factors[known] - 1)
    return float(np.mean(away > MOVED + SIGMAS * doubt[known]))
