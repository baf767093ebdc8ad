"""What AISBench leaves in its folder: verdicts and replies, or the times of requests."""

from __future__ import annotations

import csv
import io
import json
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np

from glmquant.errors import MeasureError
from glmquant.results import Result
from glmquant.runs import Item
from glmquant.significance import FEWEST, mean_interval, wilson_interval
from glmquant.storage import reading
from glmquant.suites.answers import is_number, last_letter, last_number, without_thinking
from glmquant.suites.task import Measured, Task
from glmquant.survey import printable

OUTPUT: Final = "output"
QUESTIONS: Final = "questions.json"
REPLIES: Final = "replies.jsonl"
MODEL: Final = "glmquant"
DATASET: Final = "items"
CAREFUL: Final = {
    "gsm8k": "accuracy (numbers with separators)",
    "gpqa": "accuracy (last answer)",
}
"""The second figure, where answers are read with more care."""

_COLOUR: Final = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_MAX_ANSWER: Final = 200
_NONE: Final = frozenset({"NULL", "None", "[]", ""})
"""What the scorers say where they find no answer."""

_TIMES: Final = ("TTFT", "TPOT", "ITL", "E2EL")
_STATISTICS: Final = {"Average": ("mean", None), "Median": ("median", 50), "P99": ("p99", 99)}
_ROUNDING_MS: Final = 0.06
"""It rounds seconds to four places, then makes milliseconds of them."""

_RATES: Final = {
    "Request Throughput": ("request throughput", "req/s"),
    "Output Token Throughput": ("output throughput", "tok/s"),
    "Total Token Throughput": ("total throughput", "tok/s"),
}


def read_accuracy(task: Task, work: Path) -> Measured:
    """The verdicts, item by item.

    The figure is the suite's own. Requests that failed count as wrong there, which a note says.

    Args:
        task: What was asked for.
        work: The folder in which AISBench ran.

    Raises:
        MeasureError: There is no verdict, or they do not add up.
        StorageError: It cannot be read.
    """
    asked = _json(work / QUESTIONS)
    form, names = str(asked["form"]), _numbered([str(name) for name in asked["names"]])
    output = _only(work / OUTPUT)
    failed = list(_lines(output / "predictions" / MODEL / f"{DATASET}_failed.jsonl"))
    answered = {
        each.get("id"): each for each in _lines(output / "predictions" / MODEL / f"{DATASET}.jsonl")
    }
    if not answered:
        _refuse(
            output,
            "AISBench got no answer",
            f"{len(names):,} answers",
            _reasons(failed) or "none, and no request that failed",
        )
    place = output / "results" / MODEL / f"{DATASET}.json"
    told = _json(place)
    verdicts = _verdicts(told.get("details"), len(names))
    value = told.get("accuracy")
    if not isinstance(value, (int, float)):
        _refuse(place, "AISBench gave no accuracy", "a number", repr(value))
    notes = _notes_on_failures(len(names), answered, failed)
    if verdicts is None:
        # MATH's scorer says nothing of an item whose right answer it cannot read.
        notes.append("AISBench tells no verdict a question here, so runs are compared as a whole")
        return Measured(
            (_share(task, value * len(names) / 100, len(names), value),), notes=tuple(notes)
        )
    right = sum(_one(each.get("correct")) is True for each in verdicts)
    if abs(100 * right / len(names) - value) > 0.01:
        _refuse(
            place,
            "AISBench's accuracy is not that of its verdicts",
            f"{right:,} right of {len(names):,}",
            f"{value:g} %",
        )
    reasons = {each.get("uuid"): each.get("finish_reason") for each in _lines(work / REPLIES)}
    items = tuple(
        Item(
            name=name,
            correct=_one(verdict.get("correct")) is True,
            answer=_text(verdict.get("predictions")),
            expected=_text(verdict.get("references")),
            is_cut=reasons.get(answered.get(place, {}).get("uuid")) == "length",
        )
        for place, (name, verdict) in enumerate(zip(names, verdicts, strict=True))
    )
    figures = [_share(task, right, len(names), value)]
    figures += _carefully(task, form, items, answered, notes)
    notes += _notes_on_answers(task, items, answered)
    return Measured(tuple(figures), items, notes=tuple(notes))


def read_speed(task: Task, work: Path) -> Measured:
    """The times and rates, and each request's own.

    Args:
        task: What was asked for.
        work: The folder in which AISBench ran.

    Raises:
        MeasureError: There are none, or they do not add up.
        StorageError: It cannot be read.
    """
    output = _only(work / OUTPUT)
    folder = output / "performances" / MODEL
    requests = list(_lines(folder / f"{DATASET}_details.jsonl"))
    good = [each for each in requests if each.get("success")]
    failed = [*_lines(folder / f"{DATASET}_failed.jsonl")]
    failed = failed or [each for each in requests if not each.get("success")]
    if not good:
        _refuse(
            output, "no request came to its end", f"{task.requests:,}", _reasons(failed) or "none"
        )
    common = _json(folder / f"{DATASET}.json")
    count = _total(common, "Success Requests")
    if count != len(good):
        _refuse(
            folder,
            "AISBench's table is not that of its requests",
            f"{len(good):,} requests that came to their end",
            f"{count:g}",
        )
    results = [
        Result(
            dataset=task.dataset,
            metric=metric,
            value=_total(common, key),
            unit=unit,
            items=len(good),
        )
        for key, (metric, unit) in _RATES.items()
        if key in common
    ]
    samples = _samples(good, folder / "db_data")
    results += _table(task, folder / f"{DATASET}.csv", samples, len(good))
    notes: list[str] = []
    if lost := task.requests - len(good):
        results.append(
            Result(dataset=task.dataset, metric="failed requests", value=lost, items=task.requests)
        )
        notes.append(
            f"{lost:,} of {task.requests:,} requests failed, and no time of them is counted"
            f"{': ' if failed else ''}{_reasons(failed)}"
        )
    tokens = [int(each.get("output_tokens") or 0) for each in good]
    results.append(
        _mean(task, "input tokens", [int(each.get("input_tokens") or 0) for each in good])
    )
    results.append(_mean(task, "output tokens", tokens))
    short = sum(count < task.output_len for count in tokens)
    if short and task.dataset == "random":
        notes.append(
            f"{short:,} of {len(good):,} answers are shorter than the {task.output_len:,} tokens "
            "that were asked for"
        )
    if any(each.interval for each in results):
        notes.append(
            "intervals are Student's, of the requests of this run; they share batches, and another "
            "run may differ by more"
        )
    notes.append(
        "TPOT is a token's, ITL that between two pieces of a stream: with speculative decoding a "
        "piece holds several tokens"
    )
    return Measured(tuple(results), samples=samples, notes=tuple(notes))


def _only(folder: Path) -> Path:
    """The one run that is in AISBench's output folder, which it names after the time."""
    with reading(folder):
        runs = sorted(path for path in folder.glob("*") if path.is_dir()) if folder.is_dir() else []
    if not runs:
        _refuse(folder, "AISBench wrote nothing", "a folder of its run", "none")
    return runs[-1]


def _verdicts(told: Any, count: int) -> list[Mapping[str, Any]] | None:
    """A verdict for each item in its order, or None where there are others."""
    if not isinstance(told, dict):
        return None
    found = [told.get(str(place)) for place in range(count)]
    verdicts: list[Mapping[str, Any]] = [
        each for each in found if isinstance(each, dict) and "correct" in each
    ]
    return verdicts if len(verdicts) == count and str(count) not in told else None


def _share(task: Task, right: float, count: int, value: float, metric: str = "accuracy") -> Result:
    low, high = wilson_interval(right, count)
    return Result(
        dataset=task.dataset,
        metric=metric,
        value=round(value, 4),
        unit="%",
        items=count,
        interval=(round(100 * low, 2), round(100 * high, 2)),
    )


def _carefully(
    task: Task,
    form: str,
    items: Sequence[Item],
    answered: Mapping[Any, Mapping[str, Any]],
    notes: list[str],
) -> list[Result]:
    """A second figure where the suite's own reading of the answers makes a difference.

    gsm8k's scorer takes the last number and knows no separators: ``18,000`` is 000 to it. GPQA's
    takes the first ``Answer: X`` and knows no box around the letter.
    """
    if form not in CAREFUL:
        return []
    careful = []
    for place, item in enumerate(items):
        text = without_thinking(str(answered.get(place, {}).get("prediction") or ""))
        if form == "gsm8k":
            careful.append(is_number(last_number(text), item.expected))
        else:
            careful.append(last_letter(text) == item.expected.upper() != "")
    pairs = [(each, item.correct) for each, item in zip(careful, items, strict=True)]
    won = sum(ours and not theirs for ours, theirs in pairs)
    lost = sum(theirs and not ours for ours, theirs in pairs)
    if not won and not lost:
        return []
    what = (
        "numbers are read with their separators (18,000)"
        if form == "gsm8k"
        else ("the last letter that is called the answer is taken, in a box or not")
    )
    notes.append(
        f"AISBench's reading of answers decides {won + lost:,}: where {what}, {won:,} more are "
        f"right{f' and {lost:,} of its own are wrong' if lost else ''}"
    )
    right = sum(careful)
    return [_share(task, right, len(items), 100 * right / len(items), CAREFUL[form])]


def _notes_on_failures(
    count: int, answered: Mapping[Any, Any], failed: Sequence[Mapping[str, Any]]
) -> list[str]:
    lost = count - len(answered)
    if lost <= 0:
        return []
    reasons = _reasons(failed) or "no reason is given"
    return [f"{lost:,} of {count:,} requests failed and count as wrong: {reasons}"]


def _notes_on_answers(task: Task, items: Sequence[Item], answered: Mapping[Any, Any]) -> list[str]:
    notes = []
    if cut := sum(item.is_cut for item in items):
        right = sum(item.is_cut and item.correct for item in items)
        notes.append(
            f"{cut:,} replies were cut at {task.max_out_len:,} tokens, {right:,} of them with a "
            "number or letter that is taken for a right answer: allow more, or count them apart"
        )
    if empty := sum(not item.answer for place, item in enumerate(items) if place in answered):
        notes.append(f"{empty:,} replies held no answer that the suite finds")
    return notes


def _reasons(failed: Sequence[Mapping[str, Any]]) -> str:
    """Why requests failed, the commonest first."""
    told = (str(each.get("error_info") or "") for each in failed)
    counted = Counter(_COLOUR.sub("", text).strip() or "no reason given" for text in told)
    return "; ".join(
        f"{count:,} x {printable(reason, 200)}" for reason, count in counted.most_common(3)
    )


def _table(
    task: Task, path: Path, samples: Mapping[str, Sequence[float]], count: int
) -> list[Result]:
    """Times of requests, in milliseconds: ``TTFT mean`` and so on.

    AISBench rounds to a tenth of a millisecond, a percent of a short TPOT; so its own times of the
    requests are reckoned up again where each has one, and held against its table. A mean of such
    has an interval, which lies around it; none where only the table tells it.
    """
    with reading(path):
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = []
    for row in csv.DictReader(io.StringIO(text)):
        name = row.get("Performance Parameters") or ""
        values = samples.get(name, ())
        for column, (statistic, percent) in _STATISTICS.items():
            if name not in _TIMES or not row.get(column):
                continue
            value, interval = _figure(row[column], path), None
            if len(values) == count:
                own = float(np.mean(values) if percent is None else np.percentile(values, percent))
                if abs(own - value) > _ROUNDING_MS:
                    told = f"{own:.3f} ms for the {statistic} {name}, by its requests"
                    _refuse(path, "AISBench's times do not add up", told, f"{value:g} ms")
                value = own
                if percent is None and count >= FEWEST:
                    low, high = mean_interval(values)
                    interval = _rounded(low), _rounded(high)
            metric = f"{name} {statistic}"
            number = int(_figure(row.get("N") or "0", path)) or None
            found.append(
                Result(
                    dataset=task.dataset,
                    metric=metric,
                    value=_rounded(value),
                    unit="ms",
                    items=number,
                    interval=interval,
                )
            )
    if not found:
        _refuse(path, "AISBench wrote no times", "a table of them", "none")
    return found


def _samples(requests: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, tuple[float, ...]]:
    """Each request's own times in milliseconds, reckoned as AISBench does from its time points."""
    points: dict[tuple[str, int], np.ndarray[Any, Any]] = {}
    for path in sorted(folder.glob("*.db")):
        with reading(path), closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as store:
            try:
                rows = store.execute("SELECT id, arr_blob FROM numpy_store").fetchall()
            except sqlite3.Error as error:
                _refuse(path, "AISBench's times cannot be read", "a database", str(error))
        for number, blob in rows:
            points[path.name, number] = np.load(io.BytesIO(blob), allow_pickle=False)
    found: dict[str, list[float]] = {"TTFT": [], "TPOT": [], "E2EL": []}
    for request in requests:
        reference = request.get("time_points")
        number = reference.get("__db_ref__") if isinstance(reference, dict) else None
        times = points.get((str(request.get("db_name")), int(number or 0)))
        if times is None or times.size < 2:
            continue
        whole, first = 1e3 * float(times[-1] - times[0]), 1e3 * float(times[1] - times[0])
        found["E2EL"].append(whole)
        found["TTFT"].append(first)
        if (tokens := int(request.get("output_tokens") or 0)) > 1:
            found["TPOT"].append((whole - first) / (tokens - 1))
    return {name: tuple(values) for name, values in found.items() if values}


def _mean(task: Task, metric: str, values: Sequence[int]) -> Result:
    value = sum(values) / len(values)
    return Result(
        dataset=task.dataset, metric=f"{metric} mean", value=_rounded(value), items=len(values)
    )


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _total(common: Mapping[str, Any], key: str) -> float:
    stages = common.get(key)
    value = stages.get("total") if isinstance(stages, dict) else None
    return _figure(str(value), Path(f"{DATASET}.json"))


def _figure(text: str, path: Path) -> float:
    """``12.5 ms`` is 12.5."""
    try:
        return float(text.split()[0])
    except (ValueError, IndexError):
        _refuse(path, "AISBench wrote no number", "a number with its unit", repr(text))


def _numbered(names: Sequence[str]) -> list[str]:
    """Each name once: the second of a kind ends with ``-2``."""
    seen: Counter[str] = Counter()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return numbered


def _one(value: Any) -> Any:
    """AISBench 3.1 has a list of each question's tries, of which there is one."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _text(value: Any) -> str:
    """What a scorer says of an answer; empty where it found none."""
    text = printable(str(_one(value)), _MAX_ANSWER)
    return "" if text in _NONE else text


def _json(path: Path) -> dict[str, Any]:
    with reading(path):
        data = path.read_bytes() if path.is_file() else b""
    if not data:
        _refuse(path, "AISBench wrote no such file", "its results", "none")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        _refuse(path, "AISBench's results are no JSON", "an object", str(error))
    if not isinstance(found, dict):
        _refuse(path, "AISBench's results are no object", "an object", repr(found))
    return found


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file, a line each; none where there is no file."""
    with reading(path):
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in filter(str.strip, text.split("\n")):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            _refuse(path, "AISBench's output is no JSON", "an object a line", str(error))
        if isinstance(found, dict):
            yield found


def _refuse(where: Path, what: str, expected: str, found: str) -> NoReturn:
    raise MeasureError(
        what,
        where=str(where),
        expected=expected,
        found=printable(found, 300),
        hint="see the log in the run's folder",
    )
