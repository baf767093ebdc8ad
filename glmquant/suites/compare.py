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

LEAST_P: Final = 0.05
"""Below it a difference is taken for more than chance."""

_LOWER_IS_BETTER: Final = frozenset({"ms", "s"})
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


def pair_runs(a: Path, b: Path) -> tuple[tuple[Run, Run], ...]:
    """The runs to compare: two files, or the newest of each kind that both folders have.

    Args:
        a: A run's file, or a folder with ``.glmquant/results``.
        b: The other.

    Raises:
        MeasureError: One is no run, or they have none in common.
    """
    runs_a, runs_b = _newest(a), _newest(b)
    if not (a.is_dir() or b.is_dir()):
        return ((next(iter(runs_a.values())), next(iter(runs_b.values()))),)
    both = [kind for kind in runs_a if kind in runs_b]
    if not both:
        raise MeasureError(
            "there is nothing that both have measured",
            where=f"{a}, {b}",
            expected="runs of one suite, mode and data set in both",
            found=f"{_kinds(runs_a)}; {_kinds(runs_b)}",
            hint="glmquant eval URL --checkpoint DIR, once for each",
        )
    return tuple((runs_a[kind], runs_b[kind]) for kind in both)


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
    notes = list(_notes(a, b))
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
        is_better = (difference.value < 0) == (one.unit in _LOWER_IS_BETTER)
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
    if _is_of_items(a, one) and _is_of_items(b, other):
        pairs = _pairs(a.items, b.items)
        if pairs:
            if len(pairs) < max(len(a.items), len(b.items)):
                notes.append(
                    f"{one.metric}: only the {len(pairs):,} items that both have are compared, "
                    f"of {len(a.items):,} and {len(b.items):,}"
                )
            return (len(pairs),), _in_percent(compare_paired(pairs)), ""
    if one.unit == "%" and one.items and other.items:
        if one.dataset == "MTP":
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


def _pairs(items_a: Iterable[Item], items_b: Iterable[Item]) -> list[tuple[bool, bool]]:
    """What became of the items that both have; one that is there twice is paired in its order."""
    others = _numbered(items_b)
    return [
        (correct, others[name]) for name, correct in _numbered(items_a).items() if name in others
    ]


def _numbered(items: Iterable[Item]) -> dict[tuple[str, int], bool]:
    seen: Counter[str] = Counter()
    found: dict[tuple[str, int], bool] = {}
    for item in items:
        found[item.name, seen[item.name]] = item.correct
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
            yield f"another {label}: {one or 'not told'} and {other or 'not told'}"
    for name in sorted({*a.settings, *b.settings} - _FREE):
        one_set, other_set = a.settings.get(name), b.settings.get(name)
        if one_set != other_set:
            yield f"another {name}: {_told(one_set)} and {_told(other_set)}"
    for label, run in (("A", a), ("B", b)):
        cut = sum(item.is_cut for item in run.items)
        if cut:
            yield f"{label} has {cut:,} answers that were cut: they say little of the model"


def _told(setting: object) -> str:
    return "none" if setting is None else str(setting)


def _newest(path: Path) -> Mapping[tuple[str, str, str], Run]:
    paths = find_runs(path) if path.is_dir() else (path,)
    runs = [read_run(each) for each in paths]
    return {(run.suite, run.mode, run.dataset): run for run in sorted(runs, key=lambda r: r.date)}


def _key(result: Result) -> tuple[str, str]:
    return result.dataset, result.metric


def _kinds(runs: Mapping[tuple[str, str, str], Run]) -> str:
    return ", ".join(" ".join(kind) for kind in runs) or "none"


def _figures(run: Run) -> str:
    return ", ".join(f"{each.dataset} {each.metric}" for each in run.results)[:200] or "none"
