"""Two runs side by side, and whether what parts them is more than chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from glmquant.errors import MeasureError
from glmquant.results import Result
from glmquant.runs import Item, Run, find_runs, read_run
from glmquant.significance import Difference, compare_means, compare_paired, compare_shares
from glmquant.survey import printable

LEAST_P: Final = 0.05
"""Below it a difference is taken for more than chance."""

_LOWER_IS_BETTER: Final = frozenset({"ms", "s"})
_FAILED: Final = "failed requests"
_DEPENDENT: Final = "ITL"
"""The gaps between two tokens or pieces of an answer."""
_FREE: Final = frozenset({"url", "data"})
"""Settings that may differ between runs that are alike."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of both runs.

    Attributes:
        dataset: On what.
        metric: Which.
        unit: Of the values and of the difference.
        a: A's value.
        b: B's value.
        items: How many items or requests the difference stands on: of both where they are the same
            ones, else of A and of B.
        difference: B less A in that unit, or None where nothing can be tested.
        verdict: ``no difference shown``, ``B is better``, ``B is worse``, ``they differ``, or why
            there is no test.
    """

    dataset: str
    metric: str
    unit: str
    a: float
    b: float
    items: tuple[int, ...]
    difference: Difference | None
    verdict: str

    def fields(self) -> dict[str, Any]:
        """All of it for JSON."""
        found = self.difference
        return {
            "dataset": self.dataset,
            "metric": self.metric,
            "unit": self.unit,
            "a": self.a,
            "b": self.b,
            "items": list(self.items),
            "difference": found.value if found else None,
            "interval": list(found.interval) if found else None,
            "p_value": found.p_value if found else None,
            "test": found.test if found else None,
            "verdict": self.verdict,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs side by side.

    Attributes:
        a: One run.
        b: The other.
        rows: Each figure that both have.
        notes: What makes them hard to compare, a sentence each.
    """

    a: Run
    b: Run
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def pair_runs(a: Path, b: Path) -> tuple[tuple[tuple[Run, Run], ...], tuple[str, ...]]:
    """The runs to compare, and what was left out: two files, or a pair of each kind in two folders.

    A folder's run of a kind is the one with the most items, and of those the last.

    Args:
        a: A run's file, or a folder with ``.glmquant/results``.
        b: The other.

    Raises:
        MeasureError: One is no run, or they have none in common.
    """
    notes: list[str] = []
    runs_a, runs_b = _newest(a, notes), _newest(b, notes)
    if not (a.is_dir() or b.is_dir()):
        return ((next(iter(runs_a.values())), next(iter(runs_b.values()))),), ()
    both = [kind for kind in runs_a if kind in runs_b]
    if not both:
        raise MeasureError(
            "there is nothing that both have measured",
            where=f"{a}, {b}",
            expected="runs of one suite, mode and data set in both",
            found="; ".join([_kinds(runs_a), _kinds(runs_b), *notes]),
            hint="glmquant eval URL --checkpoint DIR, once for each",
        )
    return tuple((runs_a[kind], runs_b[kind]) for kind in both), tuple(notes)


def compare_runs(a: Run, b: Run) -> Comparison:
    """Hold two runs against each other, figure by figure.

    The accuracy of the same items is compared item by item, of others by their counts; a mean of
    requests by permuting them. Figures of which there is one a run have no test.

    Args:
        a: One run.
        b: The other, which is called better or worse than A.

    Raises:
        MeasureError: They have no figure in common.
    """
    notes = ["A and B are the same run"] if a == b else list(_notes(a, b))
    others = {_key(result): result for result in b.results}
    rows: list[Row] = []
    for result in a.results:
        other = others.get(_key(result))
        if other is not None:
            rows.append(_row(a, b, result, other, notes))
    if not rows:
        raise MeasureError(
            "the runs have no figure in common",
            where=f"{a.stem}, {b.stem}",
            expected="one data set and metric in both",
            found=f"{_figures(a)}; {_figures(b)}",
            hint="compare runs of one suite on one data set",
        )
    tests = sum(row.difference is not None for row in rows)
    if tests > 1:
        notes.append(
            f"{tests} tests were made: of twenty on equal runs, one calls chance a difference"
        )
    return Comparison(a, b, tuple(rows), tuple(notes))


def _row(a: Run, b: Run, one: Result, other: Result, notes: list[str]) -> Row:
    items, difference, why = _judge(a, b, one, other, notes)
    if difference is None:
        verdict = why
    elif difference.p_value >= LEAST_P:
        verdict = "no difference shown"
    elif one.dataset == "MTP":
        verdict = "they differ"
    else:
        is_lower_better = one.unit in _LOWER_IS_BETTER or one.metric == _FAILED
        is_better = (difference.value < 0) == is_lower_better
        verdict = "B is better" if is_better else "B is worse"
    return Row(
        one.dataset, one.metric, one.unit, one.value, other.value, items, difference, verdict
    )


def _judge(
    a: Run, b: Run, one: Result, other: Result, notes: list[str]
) -> tuple[tuple[int, ...], Difference | None, str]:
    """The items, the difference, or why there is none."""
    if one.unit != other.unit:
        return (), None, f"not judged: {one.unit or 'no unit'} and {other.unit or 'no unit'}"
    if one.metric.startswith(_DEPENDENT):
        return (), None, "not judged: gaps within an answer go together"
    if _is_of_items(a, one) and _is_of_items(b, other):
        pairs = _pairs(a.items, b.items, a.suite == b.suite, notes)
        if pairs:
            if len(pairs) < max(len(a.items), len(b.items)):
                notes.append(
                    f"{one.metric}: B - A is of the {len(pairs):,} items that both have, of "
                    f"{len(a.items):,} and {len(b.items):,}"
                )
            return (len(pairs),), _in_percent(compare_paired(pairs)), ""
    if one.metric == _FAILED and one.items and other.items:
        counts = (int(one.value), one.items, int(other.value), other.items)
        if not (0 <= one.value <= one.items and 0 <= other.value <= other.items):
            return (), None, "not judged: more failed than were sent"
        found = compare_shares(*counts)
        # Of as many requests as A sent, so that it is in the figure's unit.
        scale = one.items
        low, high = found.interval
        scaled = found._replace(value=scale * found.value, interval=(scale * low, scale * high))
        return (one.items, other.items), scaled, ""
    if one.unit == "%" and one.items and other.items:
        if not (0 <= one.value <= 100 and 0 <= other.value <= 100):
            return (one.items, other.items), None, "not judged: no share of anything"
        if one.dataset == "MTP":
            if a.dataset != b.dataset:
                return (one.items, other.items), None, "not judged: of other prompts"
            notes.append(
                "acceptance: draft tokens of one text depend on each other, so that the difference "
                "looks surer than it is"
            )
        shares = _shares(one), _shares(other)
        return (one.items, other.items), _in_percent(compare_shares(*shares[0], *shares[1])), ""
    sample_a, sample_b = _sample(a, one), _sample(b, other)
    if sample_a is None or sample_b is None:
        return (), None, "not judged: one figure a run"
    if min(len(sample_a), len(sample_b)) < 2:
        return (len(sample_a), len(sample_b)), None, "not judged: one request says nothing"
    return (len(sample_a), len(sample_b)), compare_means(sample_a, sample_b), ""


def _is_of_items(run: Run, result: Result) -> bool:
    """Whether a result is the share of the run's items that are right."""
    right = sum(item.correct for item in run.items)
    return (
        bool(run.items)
        and result.unit == "%"
        and result.items == len(run.items)
        and abs(result.value - 100 * right / len(run.items)) < 0.01
    )


def _pairs(
    items_a: Iterable[Item], items_b: Iterable[Item], of_one_suite: bool, notes: list[str]
) -> list[tuple[bool, bool]]:
    """What became of the items that both have; one that is there twice is paired in its order."""
    others = _numbered(items_b)
    both = [(item, others[key]) for key, item in _numbered(items_a).items() if key in others]
    alike = [(one, other) for one, other in both if not of_one_suite or _is_same(one, other)]
    if len(alike) < len(both):
        notes.append(
            f"{len(both) - len(alike):,} questions have another answer in B's data than in A's, "
            "and are left out"
        )
    return [(one.correct, other.correct) for one, other in alike]


def _is_same(one: Item, other: Item) -> bool:
    """Whether the right answers may be one; letters of choices are dealt anew by each seed."""
    told = _bare(one.expected), _bare(other.expected)
    return told[0] == told[1] or any(len(each) == 0 or each.isalpha() for each in told)


def _bare(answer: str) -> str:
    last = answer.rpartition("####")[2]
    return "".join(letter for letter in last if letter.isalnum()).casefold()


def _numbered(items: Iterable[Item]) -> dict[tuple[str, int], Item]:
    seen: Counter[str] = Counter()
    found: dict[tuple[str, int], Item] = {}
    for item in items:
        found[item.name, seen[item.name]] = item
        seen[item.name] += 1
    return found


def _shares(result: Result) -> tuple[int, int]:
    items = result.items or 1
    return min(items, max(0, round(result.value / 100 * items))), items


def _in_percent(found: Difference) -> Difference:
    low, high = found.interval
    return found._replace(value=100 * found.value, interval=(100 * low, 100 * high))


def _sample(run: Run, result: Result) -> tuple[float, ...] | None:
    """The values that a mean is of, as the run has them."""
    name = result.metric.removesuffix(" mean")
    is_mean = name != result.metric or result.metric in run.samples
    return run.samples.get(name) if is_mean else None


def _notes(a: Run, b: Run) -> Iterable[str]:
    for label, one, other in (
        ("suite", a.suite, b.suite),
        ("version of the suite", a.suite_version, b.suite_version),
        ("mode", a.mode, b.mode),
        ("data set", a.dataset, b.dataset),
        ("engine", a.engine, b.engine),
        ("machine", a.machine, b.machine),
    ):
        if one != other:
            yield f"{label}: {one or 'not told'} and {other or 'not told'}"
    for name in sorted({*a.settings, *b.settings} - _FREE):
        one_set, other_set = a.settings.get(name), b.settings.get(name)
        if one_set != other_set:
            yield f"{name}: {_told(one_set)} and {_told(other_set)}"
    for label, run in (("A", a), ("B", b)):
        cut = sum(item.is_cut for item in run.items)
        if cut:
            yield f"{label} has {cut:,} answers that were cut: they say little of the model"


def _told(setting: object) -> str:
    return "none" if setting is None else str(setting)


def _newest(path: Path, notes: list[str]) -> Mapping[tuple[str, str, str], Run]:
    """A folder's run of each kind with the most items, the last of them; or that of a file."""
    if not path.is_dir():
        run = read_run(path)
        return {(run.suite, run.mode, run.dataset): run}
    found = (_readable(each, notes) for each in find_runs(path))
    runs = [run for run in found if run is not None]
    runs.sort(key=_weight)
    return {(run.suite, run.mode, run.dataset): run for run in runs}


def _readable(path: Path, notes: list[str]) -> Run | None:
    try:
        return read_run(path)
    except MeasureError as error:
        notes.append(f"{path.name} is left out: {error.found}")
        return None


def _weight(run: Run) -> tuple[int, str]:
    """What makes it the one to go by: most items, and of those the last."""
    return max((each.items or 0 for each in run.results), default=0), run.date


def _key(result: Result) -> tuple[str, str]:
    return result.dataset, result.metric


def _kinds(runs: Mapping[tuple[str, str, str], Run]) -> str:
    return printable(", ".join(" ".join(kind) for kind in runs), 300) or "none"


def _figures(run: Run) -> str:
    told = ", ".join(f"{each.dataset} {each.metric}" for each in run.results)
    return printable(told, 200) or "none"
