"""Intervals and tests, against figures worked out elsewhere or by hand."""

from __future__ import annotations

import math
import random
from itertools import product
from statistics import stdev

import pytest

from glmquant.significance import compare_means, compare_paired, compare_shares, wilson_interval


@pytest.mark.parametrize(
    ("correct", "items", "low", "high"),
    [
        # Newcombe, Stat. Med. 17 (1998) 857, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_the_interval_of_a_share_is_wilsons(
    correct: int, items: int, low: float, high: float
) -> None:
    assert wilson_interval(correct, items) == pytest.approx((low, high), abs=5e-5)


def test_one_question_of_1319_is_no_difference() -> None:
    found = compare_shares(1267, 1319, 1268, 1319)
    assert found.value == pytest.approx(1 / 1319)
    assert found.p_value == pytest.approx(1.0)
    assert found.interval[0] < -0.013 and found.interval[1] > 0.013


def test_shares_of_other_items_are_compared_by_fishers_test() -> None:
    # Fisher's tea: 3 of 4 against 1 of 4, the textbook's 0.4857.
    assert compare_shares(3, 4, 1, 4).p_value == pytest.approx(0.4857, abs=1e-4)
    # Newcombe, Stat. Med. 17 (1998) 873, table II, method 10: 56/70 - 48/80.
    found = compare_shares(48, 80, 56, 70)
    assert found.value == pytest.approx(0.2)
    assert found.interval == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_fishers_test_is_the_sum_over_all_tables_that_are_no_likelier() -> None:
    def by_hand(a: int, m: int, b: int, n: int) -> float:
        def weight(k: int) -> int:
            return math.comb(m, k) * math.comb(n, a + b - k)

        tables = [weight(k) for k in range(max(0, a + b - n), min(m, a + b) + 1)]
        return sum(each for each in tables if each <= weight(a)) / sum(tables)

    for a, b in product(range(8), range(12)):
        assert compare_shares(a, 7, b, 11).p_value == pytest.approx(by_hand(a, 7, b, 11))


def test_many_items_are_no_overflow() -> None:
    assert compare_shares(66_000, 132_000, 66_300, 132_000).p_value == pytest.approx(0.24, abs=0.01)
    assert compare_shares(33_000, 50_000, 32_600, 50_000).test == "Fisher's exact test"
    assert compare_shares(0, 90_000, 0, 90_000).p_value == 1
    assert 0 < compare_paired([(True, False)] * 3000 + [(False, True)] * 2900).p_value < 1


def test_the_same_items_are_compared_by_those_on_which_they_part() -> None:
    # McNemar exact: 1 against 9 of 10 discordant, 2 * (1 + 10) / 1024.
    pairs = [(True, True)] * 80 + [(True, False)] * 9 + [(False, True)] + [(False, False)] * 10
    found = compare_paired(pairs)
    assert found.value == pytest.approx(-0.08)
    assert found.p_value == pytest.approx(22 / 1024)
    assert found.interval[0] < -0.08 < found.interval[1] < 0
    # As many items, but of other questions, show nothing.
    assert compare_shares(89, 100, 81, 100).p_value > 0.1


def test_equal_answers_leave_an_interval_that_is_not_empty() -> None:
    found = compare_paired([(True, True)] * 100)
    assert (found.value, found.p_value) == (0, 1)
    assert -0.05 < found.interval[0] < -0.01 and 0.01 < found.interval[1] < 0.05


def test_means_are_compared_by_permuting_and_the_same_each_time() -> None:
    draw = random.Random(5)
    slow = [draw.gauss(100, 10) for _ in range(40)]
    fast = [draw.gauss(90, 10) for _ in range(50)]
    found = compare_means(slow, fast)
    assert found == compare_means(slow, fast)
    assert found.value == pytest.approx(sum(fast) / 50 - sum(slow) / 40)
    assert found.p_value < 0.005
    assert found.interval[0] < found.value < found.interval[1] < 0
    assert compare_means(slow, list(slow)).p_value == 1


def test_a_permutation_test_of_few_values_has_the_p_value_of_counting_them() -> None:
    # 3 against 3: of 20 ways to part them, 2 are as far apart.
    assert compare_means([1, 2, 3], [4, 5, 6]).p_value == pytest.approx(0.1, abs=0.01)


def test_many_values_are_compared_by_welchs_test() -> None:
    draw = random.Random(7)
    a = [draw.expovariate(1) for _ in range(60_000)]
    b = [draw.expovariate(1) * 1.02 for _ in range(60_000)]
    found = compare_means(a, b)
    assert found.test == "Welch's test"
    error = math.hypot(stdev(a), stdev(b)) / math.sqrt(60_000)
    half = 1.959964 * error
    assert found.interval == pytest.approx((found.value - half, found.value + half))
    assert found.p_value == pytest.approx(math.erfc(found.value / error / math.sqrt(2)), rel=1e-6)
    assert compare_means([1.0] * 200, [1.0] * 200).p_value == 1
    assert compare_means([1.0] * 200, [2.0] * 200).p_value == 0


def test_a_few_of_one_are_compared_with_very_many_of_the_other_exactly() -> None:
    found = compare_shares(0, 99_999, 1, 2)
    assert found.test == "Fisher's exact test"
    assert found.p_value == pytest.approx(2 / 100_001, rel=1e-6)
