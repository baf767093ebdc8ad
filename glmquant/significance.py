"""How far a measured figure can be believed, and whether two of them differ.

All of it is exact or of textbook form, on the standard library: counts are small, and scipy would
be the largest package of the install.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev
from typing import Final, NamedTuple

CONFIDENCE: Final = 0.95

FEWEST: Final = 5
"""Values from which on a mean is given an interval."""

_RESAMPLES: Final = 10_000
_DRAWS: Final = 3_000_000
_SURELY_NORMAL: Final = 100
_SEED: Final = 20240229
_MANY: Final = 100_000


class Difference(NamedTuple):
    """How B differs from A.

    Attributes:
        value: B less A, in the figure's own unit.
        interval: Between which values the difference lies, with 95 % confidence.
        p_value: How often chance alone would part two equal ones so far or farther.
        test: What was asked.
    """

    value: float
    interval: tuple[float, float]
    p_value: float
    test: str


def wilson_interval(
    correct: float, items: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Between which shares the true one lies, from ``correct`` of ``items``.

    The score interval of Wilson (J. Am. Stat. Assoc. 22, 1927): unlike the plain one it is never
    empty, not even where all or none are right.

    Args:
        correct: How many are right; a sum of partial credits may be broken.
        items: How many there are, at least one.
        confidence: Of the interval.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = correct / items
    middle = (share + z * z / (2 * items)) / (1 + z * z / items)
    half = z / (1 + z * z / items)
    half *= math.sqrt(share * (1 - share) / items + z * z / (4 * items * items))
    low = 0.0 if correct <= 0 else max(0.0, middle - half)
    high = 1.0 if correct >= items else min(1.0, middle + half)
    return low, high


def compare_shares(correct_a: int, items_a: int, correct_b: int, items_b: int) -> Difference:
    """Whether two shares of different items differ: Fisher's exact test, two-sided.

    Where more than 100,000 of each were asked, by the normal distribution, which is exact enough.
    The interval is Newcombe's (Stat. Med. 17, 1998, method 10), from both Wilson intervals.

    Args:
        correct_a: How many A has right.
        items_a: Of how many.
        correct_b: How many B has right.
        items_b: Of how many.
    """
    share_a, share_b = correct_a / items_a, correct_b / items_b
    low_a, high_a = wilson_interval(correct_a, items_a)
    low_b, high_b = wilson_interval(correct_b, items_b)
    value = share_b - share_a
    low = value - math.hypot(share_b - low_b, high_a - share_a)
    high = value + math.hypot(high_b - share_b, share_a - low_a)
    counts = (correct_a, items_a, correct_b, items_b)
    if min(items_a, items_b, correct_a + correct_b) > _MANY:
        return Difference(value, (low, high), _normal(*counts), "two-proportion z-test")
    return Difference(value, (low, high), _fisher(*counts), "Fisher's exact test")


def compare_paired(pairs: Sequence[tuple[bool, bool]]) -> Difference:
    """Whether two shares of the same items differ: McNemar's exact test, two-sided.

    Only the items that one has right and the other has not say anything. The interval is that of
    Agresti and Min (Stat. Med. 24, 2005): half an item is added to each cell of the table, so that
    it is never empty.

    Args:
        pairs: For each item whether A and whether B has it right; at least one.
    """
    items = len(pairs)
    lost = sum(a and not b for a, b in pairs)
    won = sum(b and not a for a, b in pairs)
    parted = lost + won
    value = (won - lost) / items
    tail = (_log_comb(parted, k) for k in range(min(lost, won) + 1))
    p_value = min(1.0, 2 * math.fsum(math.exp(each - parted * math.log(2)) for each in tail))
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    n, b, c = items + 2, lost + 0.5, won + 0.5
    middle = (c - b) / n
    half = z * math.sqrt(b + c - (c - b) ** 2 / n) / n
    interval = max(-1.0, middle - half), min(1.0, middle + half)
    return Difference(value, interval, p_value, "McNemar's exact test")


def compare_means(sample_a: Sequence[float], sample_b: Sequence[float]) -> Difference:
    """Whether two means differ: a permutation test, two-sided, with a bootstrap interval.

    Both are drawn 10,000 times (fewer of thousands of values) from a seeded generator, so that the
    same samples give the same answer. Nothing is taken for normal: latencies are not. Their means
    are, of 100 values or more each: then it is Welch's test.

    Args:
        sample_a: A's values, at least two.
        sample_b: B's values, at least two.
    """
    value = fmean(sample_b) - fmean(sample_a)
    if min(len(sample_a), len(sample_b)) >= _SURELY_NORMAL:
        error = math.hypot(_error(sample_a), _error(sample_b))
        p_value = math.erfc(abs(value) / error / math.sqrt(2)) if error else float(not value)
        half = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) * error
        return Difference(value, (value - half, value + half), p_value, "Welch's test")
    draw = random.Random(_SEED)
    both = [*sample_a, *sample_b]
    rounds = max(200, min(_RESAMPLES, _DRAWS // len(both)))
    size = len(sample_a)
    total = math.fsum(both)
    # Equal means come out unequal by the last bits of a sum.
    least = abs(value) * (1 - 1e-9)
    as_far = 0
    for _ in range(rounds):
        draw.shuffle(both)
        part = math.fsum(both[:size])
        as_far += abs((total - part) / (len(both) - size) - part / size) >= least
    means = sorted(
        fmean(draw.choices(sample_b, k=len(sample_b)))
        - fmean(draw.choices(sample_a, k=len(sample_a)))
        for _ in range(rounds)
    )
    edge = round(rounds * (1 - CONFIDENCE) / 2)
    p_value = (as_far + 1) / (rounds + 1)
    return Difference(value, (means[edge], means[-edge - 1]), p_value, "permutation test")


def _error(sample: Sequence[float]) -> float:
    """The standard error of a mean."""
    return stdev(sample) / math.sqrt(len(sample))


def mean_interval(sample: Sequence[float]) -> tuple[float, float]:
    """Between which values the mean lies, by Student's t.

    The quantile is the series of Fisher and Cornish, within 0.3 % from five values on.

    Args:
        sample: Values that do not depend on each other, at least five.
    """
    degrees = len(sample) - 1
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    quantile = z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    quantile += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    half = quantile * stdev(sample) / math.sqrt(len(sample))
    return fmean(sample) - half, fmean(sample) + half


def _fisher(correct_a: int, items_a: int, correct_b: int, items_b: int) -> float:
    """The share of all tables with these margins that are no likelier than this one."""
    right = correct_a + correct_b

    def weight(k: int) -> float:
        return _log_comb(items_a, k) + _log_comb(items_b, right - k)

    whole = _log_comb(items_a + items_b, right)
    ours = weight(correct_a) + 1e-7  # logarithms of equal tables differ in the last bits
    tables = map(weight, range(max(0, right - items_b), min(items_a, right) + 1))
    return min(1.0, math.fsum(math.exp(each - whole) for each in tables if each <= ours))


def _log_comb(n: int, k: int) -> float:
    """The natural logarithm of how many ways there are to take k of n."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _normal(correct_a: int, items_a: int, correct_b: int, items_b: int) -> float:
    """The same by the normal distribution, with the share of both taken together."""
    share = (correct_a + correct_b) / (items_a + items_b)
    error = math.sqrt(share * (1 - share) * (1 / items_a + 1 / items_b))
    if not error:
        return 1.0
    z = abs(correct_b / items_b - correct_a / items_a) / error
    return math.erfc(z / math.sqrt(2))
