"""What lm-eval wrote: figures, items, and how each request ended."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glmquant.errors import MeasureError
from glmquant.results import Result
from glmquant.runs import Item
from glmquant.significance import wilson_interval
from glmquant.storage import reading, writing
from glmquant.suites.answers import is_number, last_letter, last_number
from glmquant.suites.datafiles import FORMS
from glmquant.suites.items import item_name
from glmquant.suites.task import Measured, Task
from glmquant.survey import printable

_ASKED: Final = "asked.json"
_TASK: Final = "glmquant"
_INVALID: Final = frozenset({"", "[invalid]"})
"""What the filters give where they find nothing."""

_TOO_LONG: Final = re.compile(r"maximum (?:context|model) length (?:is|of) (\d+)")
"""How vLLM 0.13 to 0.30 refuses a prompt, or one with its answer (``renderers/params.py``,
``v1/engine/input_processor.py``)."""


class Asked(BaseModel):
    """What was asked of lm-eval, as far as its files are read by it.

    Attributes:
        form: Of the items.
        base: The task that was built on.
        shots: Examples before each question.
        filters: Metric and filter of each figure, the main one first.
        items: How many there are; None where lm-eval got the data itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    form: str
    base: str
    shots: int
    filters: tuple[tuple[str, str], ...]
    items: int | None

    def write(self, work: Path) -> None:
        """Keep it in the folder of the run."""
        with writing(work / _ASKED):
            (work / _ASKED).write_text(self.model_dump_json() + "\n", encoding="utf-8")


class _Counts(BaseModel):
    """How many items a data set has, and of how many the figures are."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    original: int
    effective: int


class _Results(BaseModel):
    """``results_*.json``."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    results: dict[str, dict[str, Any]]
    counts: dict[str, _Counts] = Field(alias="n-samples")


class _Sample(BaseModel):
    """A line of ``samples_*.jsonl``; metrics are keys of their own."""

    model_config = ConfigDict(extra="allow", frozen=True)

    doc_id: int
    doc: dict[str, Any]
    target: Any
    resps: list[list[str]]
    filtered_resps: list[Any]
    filter: str
    prompt_hash: str


class _Request(BaseModel):
    """A line of ``requests.jsonl``, which our client writes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str
    event: str
    finish_reason: str | None = None
    tokens: int | None = None
    reason: str | None = None
    said: str | None = None


def read_output(task: Task, work: Path) -> Measured:
    """Figures, items and notes of a run.

    Args:
        task: What was asked for.
        work: The folder that lm-eval wrote into.

    Raises:
        MeasureError: A file is missing or no such file, an item is missing or there twice, or the
            figures are not those of the items.
        StorageError: It cannot be read.
    """
    asked = _asked(work)
    told = _results(work)
    samples = _samples(work)
    metric, main = asked.filters[0]
    chosen = [sample for sample in samples if sample.filter == main]
    count = _count(task, asked, told, work)
    if sorted(sample.doc_id for sample in chosen) != list(range(count)):
        _refuse(work, f"each of {count} items once", f"{len(chosen)} in its samples")
    requests = list(_lines(work / "requests.jsonl", _Request))
    answered = [each for each in requests if each.event == "answered"]
    reasons = _reasons([each for each in requests if each.event != "sent"])
    items = tuple(_item(work, sample, asked, metric, reasons) for sample in chosen)
    results = []
    for number, (each_metric, each_filter) in enumerate(asked.filters):
        of_filter = [sample for sample in samples if sample.filter == each_filter]
        right = sum(_score(work, sample, each_metric) for sample in of_filter)
        if len(of_filter) != count:
            _refuse(work, f"{count} items by {each_filter}", f"{len(of_filter)}")
        _compare(work, told, f"{each_metric},{each_filter}", right / count)
        name = each_filter if each_filter != "none" else each_metric
        low, high = wilson_interval(right, count)
        results.append(
            Result(
                dataset=task.dataset,
                metric="accuracy" if number == 0 else f"accuracy ({name})",
                value=round(100 * right / count, 4),
                unit="%",
                items=count,
                interval=(round(100 * low, 2), round(100 * high, 2)),
            )
        )
    tokens = [each.tokens for each in answered if each.tokens is not None]
    lengths = {"answer tokens": tuple(map(float, tokens))} if len(tokens) == len(answered) else {}
    notes = _notes(task, asked, items, chosen, requests, results)
    return Measured(tuple(results), items, lengths, notes)


def explain_failure(task: Task, work: Path) -> MeasureError | None:
    """Why lm-eval gave up, where it was for requests that failed; None where its log tells.

    Args:
        task: What was asked for.
        work: The folder that lm-eval wrote into.

    Raises:
        MeasureError: A line of its requests is none.
        StorageError: It cannot be read.
    """
    path = work / "requests.jsonl"
    requests = list(_lines(path, _Request)) if path.is_file() else []
    gave_up = next((each.reason for each in requests if each.event == "gave up"), None)
    if gave_up is None:
        return None
    asked = _asked(work)
    said = [each.said for each in requests if each.event == "failed" and each.said]
    for words in said:
        if limit := _TOO_LONG.search(words):
            return _too_long(task, asked, int(limit[1]), f"{gave_up}; the server says: {words}")
    return MeasureError(
        "so many requests failed that there is no figure",
        where=task.url,
        expected="an answer to nine of ten questions at least",
        found=printable(f"{gave_up}; the server says: {said[0]}" if said else gave_up, 500),
        hint="see the server's own log; --set retries=N sends more often, --set timeout=SECONDS "
        "waits longer",
    )


def _too_long(task: Task, asked: Asked, limit: int, found: str) -> MeasureError:
    """A server with too small a context."""
    examples = f", with {asked.shots} examples before each" if asked.shots else ""
    if asked.shots:
        hint = "the same command with --set fewshot=0, which asks without examples"
    else:
        hint = f"the same command with --max-out-len {max(1, min(task.max_out_len, limit) // 2)}"
    return MeasureError(
        "the server refuses requests so long",
        where=f"the questions of lm-eval's task {asked.base}{examples}",
        expected=f"prompt and answer ({task.max_out_len:,}) of {limit:,} tokens together, the "
        "server's --max-model-len",
        found=printable(found, 500),
        hint=f"{hint}; or serve it with a larger --max-model-len",
    )


def _item(
    work: Path,
    sample: _Sample,
    asked: Asked,
    metric: str,
    reasons: dict[str, list[str | None]],
) -> Item:
    form = FORMS[asked.form]
    question = sample.doc.get(form.question)
    if not isinstance(question, str):
        found = f"item {sample.doc_id} with {', '.join(map(str, sample.doc))}"
        _refuse(work, f"a question in {form.question!r}", found)
    # Minerva's tasks filter nothing: what was taken from the reply is not told.
    found = sample.filtered_resps[0] if sample.filtered_resps else ""
    is_filtered = sample.filter != "none"
    ended = reasons.get(sample.prompt_hash, [])
    expected = str(sample.target)
    if asked.form == "gsm8k":
        expected = expected.rpartition("####")[2].strip()
    elif asked.form == "math500":
        expected = str(sample.doc.get("answer", expected))
    return Item(
        name=item_name(question),
        correct=_score(work, sample, metric) == 1,
        answer=printable(str(found).strip()) if is_filtered else "",
        expected=printable(expected),
        is_cut=bool(ended) and ended.pop(0) == "length",
    )


def _score(work: Path, sample: _Sample, metric: str) -> int:
    """Whether lm-eval took an answer for right."""
    value = (sample.model_extra or {}).get(metric)
    if isinstance(value, bool) or value not in (0, 1):
        _refuse(work, f"0 or 1 in {metric!r} of item {sample.doc_id}", repr(value))
    return int(value)


def _reasons(ended: list[_Request]) -> dict[str, list[str | None]]:
    """Prompt → why its answers ended; a list, since a question may stand there twice."""
    reasons: dict[str, list[str | None]] = {}
    for each in ended:
        reasons.setdefault(each.prompt, []).append(each.finish_reason)
    return reasons


def _count(task: Task, asked: Asked, told: _Results, work: Path) -> int:
    """How many items there have to be; what lm-eval counted has to agree."""
    counts = told.counts.get(_TASK)
    if counts is None or counts.effective < 1:
        _refuse(work, "how many items there are", repr(counts))
    whole = counts.original if asked.items is None else asked.items
    count = whole if task.limit is None else min(task.limit, whole)
    if (counts.effective, counts.original) != (count, whole):
        _refuse(work, f"{count} of {whole} items", f"{counts.effective} of {counts.original}")
    return count


def _compare(work: Path, told: _Results, key: str, share: float) -> None:
    """The figure that lm-eval tells is that of its own samples."""
    figure: Any = told.results.get(_TASK, {}).get(key)
    is_given = isinstance(figure, (int, float)) and not isinstance(figure, bool)
    if not is_given or not math.isclose(figure, share, abs_tol=1e-6):
        _refuse(work, f"{key} {share:.6f}, as its samples have it", repr(figure))


def _notes(
    task: Task,
    asked: Asked,
    items: tuple[Item, ...],
    chosen: list[_Sample],
    requests: list[_Request],
    results: list[Result],
) -> tuple[str, ...]:
    """What a reader has to know."""
    notes = [f"built on lm-eval's task {asked.base}, {asked.shots} examples before each question"]
    cut = sum(item.is_cut for item in items)
    if cut:
        notes.append(
            f"{cut} of {len(items)} answers were cut at {task.max_out_len:,} tokens and say little "
            "of the model: raise --max-out-len"
        )
    events = Counter(each.event for each in requests)
    if failed := events["failed"]:
        why = Counter(each.reason or "no reason" for each in requests if each.event == "failed")
        told = "; ".join(f"{n} x {printable(reason, 200)}" for reason, n in why.most_common(3))
        notes.append(f"{failed} of {len(items)} requests failed and count as wrong: {told}")
    empty = sum(not sample.resps[0][0].strip() for sample in chosen)
    if empty > failed:
        notes.append(f"{empty - failed} of {len(items)} answers were empty and count as wrong")
    main = chosen[0].filter
    lost = sum(item.answer in _INVALID for item in items) if main != "none" else 0
    if lost > empty:
        found_none = f"in {lost - empty} of {len(items)} answers {main} found no answer"
        notes.append(f"{found_none}; they count as wrong")
    if again := events["sent"] - events["answered"] - failed:
        notes.append(f"{again} requests failed and were sent again")
    if otherwise := sum(map(_is_written_otherwise, items, chosen)):
        notes.append(
            f"{otherwise} of {len(items)} answers that count as wrong say the right one in a form "
            f"that {main} does not take"
        )
    first, *others = results
    notes.extend(
        f"{other.metric} differs: it wants the words of the examples that the task has"
        for other in others
        if abs(other.value - first.value) > 1
    )
    return tuple(notes)


def _is_written_otherwise(item: Item, sample: _Sample) -> bool:
    """Whether an answer that counts as wrong is right: ``$18.00`` for 18, ``**C**`` for (C)."""
    reply = sample.resps[0][0]
    if item.correct or not reply:
        return False
    letter = last_letter(reply)
    return is_number(last_number(reply), item.expected) or item.expected == f"({letter})"


def _asked(work: Path) -> Asked:
    try:
        with reading(work / _ASKED):
            return Asked.model_validate_json((work / _ASKED).read_bytes())
    except ValidationError as error:
        _refuse(work / _ASKED, "what was asked", str(error))


def _results(work: Path) -> _Results:
    path = _only(work, "results_*.json")
    try:
        with reading(path):
            return _Results.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "it"
        _refuse(path, "the results of lm-eval", f"{place}: {first['msg']}")


def _samples(work: Path) -> list[_Sample]:
    return list(_lines(_only(work, f"samples_{_TASK}_*.jsonl"), _Sample))


def _lines(path: Path, kind: type[Any]) -> Iterator[Any]:
    """The lines of a file, each an object of a kind."""
    with reading(path):
        lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield kind.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "it"
            _refuse(f"{path}, line {number}", "a line of lm-eval's", f"{place}: {first['msg']}")


def _only(work: Path, pattern: str) -> Path:
    with reading(work):
        paths = sorted((work / "out").rglob(pattern))
    if len(paths) != 1:
        _refuse(work / "out", f"one file {pattern}", f"{len(paths)}")
    return paths[0]


def _refuse(where: Path | str, expected: str, found: str) -> NoReturn:
    raise MeasureError(
        "what lm-eval wrote does not add up",
        where=printable(str(where), 300),
        expected=expected,
        found=printable(found, 300),
        hint="look into its log",
    )
