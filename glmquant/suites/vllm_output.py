"""What vLLM's benchmark wrote: figures, and the values of each request that they are of."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Final, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from glmquant.errors import MeasureError
from glmquant.results import Result
from glmquant.significance import FEWEST, mean_interval
from glmquant.storage import reading
from glmquant.suites.task import Measured, Task
from glmquant.survey import printable

RESULT_FILE: Final = "result.json"

_MILLI: Final = 1000.0
_RATE_TOLERANCE: Final = 0.01

Count = Annotated[int, Field(strict=True, ge=0)]
Amount = Annotated[FiniteFloat, Field(ge=0)]


class _Told(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class _Serve(_Told):
    """``--save-result --save-detailed`` of ``bench serve``, vLLM 0.13 to 0.30."""

    num_prompts: Count
    completed: Count
    failed: Count | None = None
    duration: Amount
    total_input_tokens: Count
    total_output_tokens: Count
    request_throughput: Amount
    output_throughput: Amount
    total_token_throughput: Amount
    input_lens: tuple[Count, ...]
    output_lens: tuple[Count, ...]
    ttfts: tuple[Amount, ...]
    itls: tuple[tuple[Amount, ...], ...]
    latencies: tuple[Amount, ...] | None = None
    errors: tuple[str, ...]
    spec_decode_acceptance_rate: Amount | None = None
    spec_decode_acceptance_length: Amount | None = None
    spec_decode_draft_tokens: Count | None = None


class _Latency(_Told):
    avg_latency: Amount
    latencies: tuple[Amount, ...]
    percentiles: dict[str, Amount]


class _Throughput(_Told):
    elapsed_time: Amount
    num_requests: Count
    total_num_tokens: Count
    requests_per_second: Amount
    tokens_per_second: Amount


_Kind = TypeVar("_Kind", bound=_Told)


def read_serve(task: Task, work: Path) -> Measured:
    """Figures of a server under load.

    Args:
        task: What was asked for.
        work: The folder with the result.

    Raises:
        MeasureError: It is not there, no request was answered, or it does not add up.
    """
    path = work / RESULT_FILE
    told = _read(path, _Serve)
    asked = 1 if task.dataset == "tutorial" else task.requests
    lists = (told.input_lens, told.output_lens, told.ttfts, told.itls, told.errors)
    if told.num_prompts != asked or any(len(each) != asked for each in lists):
        _refuse(path, f"{asked} requests", f"{told.num_prompts}, of {set(map(len, lists))} listed")
    good = [n for n in range(asked) if not told.errors[n] and told.output_lens[n]]
    failed = asked - told.completed
    if not good:
        first = next((error for error in told.errors if error), "no tokens came")
        raise MeasureError(
            "no request was answered",
            where=task.url,
            expected=f"{asked} answers",
            found=printable(first.strip().split("\n")[-1], 300),
            hint="look into the log, and into the server's",
        )
    if len(good) != told.completed or told.failed not in (None, failed):
        _refuse(path, f"{told.completed} answered requests", f"{len(good)} listed")
    _compare(
        path, "output tokens", told.total_output_tokens, sum(told.output_lens[n] for n in good)
    )
    rates = {
        "request throughput": (told.request_throughput, told.completed, "req/s"),
        "output throughput": (told.output_throughput, told.total_output_tokens, "tok/s"),
        "total throughput": (
            told.total_token_throughput,
            told.total_output_tokens + told.total_input_tokens,
            "tok/s",
        ),
    }
    results = []
    for name, (rate, amount, unit) in rates.items():
        _compare(path, name, rate * told.duration, amount, _RATE_TOLERANCE)
        results.append(_figure(task, name, rate, unit, told.completed))
    samples = _samples(told, good)
    for name, values in samples.items():
        results += _spread(path, task, told, name, values)
    results += _drafting(task, told)
    notes = _notes(task, told, good, failed, asked)
    results.append(_figure(task, "failed requests", failed, "", asked))
    return Measured(tuple(results), samples={k: tuple(v) for k, v in samples.items()}, notes=notes)


def read_latency(task: Task, work: Path, iterations: int) -> Measured:
    """How long a batch takes.

    Args:
        task: What was asked for.
        work: The folder with the result.
        iterations: How often the batch was to be run.

    Raises:
        MeasureError: It is not there, or does not add up.
    """
    path = work / RESULT_FILE
    told = _read(path, _Latency)
    if len(told.latencies) != iterations:
        _refuse(path, f"{iterations} iterations", f"{len(told.latencies)}")
    _compare(path, "avg_latency", told.avg_latency, fmean(told.latencies), 1e-6)
    values = [value * _MILLI for value in told.latencies]
    results = [
        _mean(task, "batch latency mean", values),
        _figure(task, "batch latency median", percentile(values, 50), "ms", iterations),
        _figure(task, "batch latency p99", percentile(values, 99), "ms", iterations),
    ]
    note = f"each of {iterations} iterations ran {task.concurrency} prompts at once"
    return Measured(tuple(results), samples={"batch latency": tuple(values)}, notes=(note,))


def read_throughput(task: Task, work: Path) -> Measured:
    """What an engine by itself gets done in a second.

    Args:
        task: What was asked for.
        work: The folder with the result.

    Raises:
        MeasureError: It is not there, or does not add up.
    """
    path = work / RESULT_FILE
    told = _read(path, _Throughput)
    if told.num_requests != task.requests:
        _refuse(path, f"{task.requests} requests", f"{told.num_requests}")
    # Made-up text does not always come back as the tokens that it was made of.
    asked = task.requests * (task.input_len + task.output_len)
    room = task.requests * (task.input_len // 20 + 8)
    if abs(told.total_num_tokens - asked) > room:
        _refuse(path, f"{asked:,} tokens, give or take {room:,}", f"{told.total_num_tokens:,}")
    rates = (
        ("request throughput", told.requests_per_second, told.num_requests, "req/s"),
        ("total throughput", told.tokens_per_second, told.total_num_tokens, "tok/s"),
    )
    for name, rate, amount, _ in rates:
        _compare(path, name, rate * told.elapsed_time, amount, _RATE_TOLERANCE)
    return Measured(
        tuple(_figure(task, name, rate, unit, told.num_requests) for name, rate, _, unit in rates),
        notes=("one run has no spread: run it again to see how far its figures go apart",),
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """A percentile with the values between two neighbours on a line, as NumPy has it.

    Args:
        values: At least one.
        percent: Which.
    """
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _samples(told: _Serve, good: list[int]) -> dict[str, list[float]]:
    """Milliseconds a request that was answered; ITL of all of them, one after the other."""
    ttft = [told.ttfts[n] for n in good]
    e2el = [
        told.latencies[n] if told.latencies is not None else told.ttfts[n] + math.fsum(told.itls[n])
        for n in good
    ]
    lengths = [told.output_lens[n] for n in good]
    tpot = [
        (whole - first) / (length - 1)
        for whole, first, length in zip(e2el, ttft, lengths, strict=True)
        if length > 1
    ]
    itl = [each for n in good for each in told.itls[n]]
    found = {"TTFT": ttft, "TPOT": tpot, "ITL": itl, "E2EL": e2el}
    return {name: [value * _MILLI for value in values] for name, values in found.items() if values}


def _spread(
    path: Path, task: Task, told: _Serve, name: str, values: list[float]
) -> tuple[Result, Result, Result]:
    """Mean, median and 99th percentile; what vLLM made of the same values has to be the same."""
    key = name.lower()
    mean = fmean(values)
    tolerance = 0.001 if told.latencies is not None else 0.05
    _compare(path, f"mean_{key}_ms", _extra(path, told, f"mean_{key}_ms"), mean, tolerance)
    figures = (percentile(values, 50), percentile(values, 99))
    items = len(values)
    # The gaps within an answer go together; its mean is one value a request, which TPOT is.
    first = _figure(task, f"{name} mean", mean, "ms", items) if name == "ITL" else None
    return (
        first or _mean(task, f"{name} mean", values),
        _figure(task, f"{name} median", figures[0], "ms", items),
        _figure(task, f"{name} p99", figures[1], "ms", items),
    )


def _mean(task: Task, metric: str, values: list[float]) -> Result:
    figure = _figure(task, metric, fmean(values), "ms", len(values))
    if len(values) < FEWEST:
        return figure
    low, high = mean_interval(values)
    return figure.model_copy(update={"interval": (_rounded(low), _rounded(high))})


def _drafting(task: Task, told: _Serve) -> list[Result]:
    rate, length = told.spec_decode_acceptance_rate, told.spec_decode_acceptance_length
    if rate is None or length is None or not told.spec_decode_draft_tokens:
        return []
    tokens = told.spec_decode_draft_tokens
    return [
        _figure(task, "acceptance rate", rate, "%", tokens),
        _figure(task, "acceptance length", length, "tokens a step", tokens),
    ]


def _notes(task: Task, told: _Serve, good: list[int], failed: int, asked: int) -> tuple[str, ...]:
    notes = []
    if failed:
        first = next((error for error in told.errors if error), "no tokens came")
        last_line = printable(first.strip().split("\n")[-1], 200)
        notes.append(
            f"{failed} of {asked} requests failed, and are in no other figure; the first: "
            f"{last_line}"
        )
    wanted = 1024 if task.dataset == "tutorial" else task.output_len
    if short := sum(told.output_lens[n] != wanted for n in good):
        notes.append(f"{short} of {len(good)} answers did not have the {wanted:,} tokens asked for")
    if told.spec_decode_draft_tokens:
        notes.append(
            "with drafting, ITL is the time between steps, which bring several tokens; made-up "
            "prompts say little of how often real text's drafts are accepted"
        )
    if len(good) < FEWEST:
        notes.append(f"fewer than {FEWEST} requests: their means have no interval")
    else:
        notes.append(
            "intervals are Student's, of the requests of this run; they share batches, and another "
            "run may differ by more"
        )
    return tuple(notes)


def _figure(task: Task, metric: str, value: float, unit: str, items: int) -> Result:
    return Result(
        dataset=task.dataset, metric=metric, value=_rounded(value), unit=unit, items=items
    )


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _extra(path: Path, told: _Told, key: str) -> float:
    value = (told.model_extra or {}).get(key)
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        _refuse(path, f"a number in {key!r}", repr(value))
    return float(value)


def _compare(path: Path, what: str, told: float, made: float, tolerance: float = 0.0) -> None:
    if not math.isclose(told, made, rel_tol=tolerance, abs_tol=1e-9):
        _refuse(path, f"{what} {made:g}, by its own lists", f"{told:g}")


def _read(path: Path, kind: type[_Kind]) -> _Kind:
    if not path.is_file():
        _refuse(path, "the result that vLLM writes at its end", "no such file")
    try:
        with reading(path):
            told: Any = json.loads(path.read_bytes())
        return kind.model_validate(told)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "it"
        _refuse(path, "a result of vLLM's benchmark", f"{place}: {first['msg']}")
    except (ValueError, RecursionError) as error:
        _refuse(path, "JSON", str(error))


def _refuse(path: Path, expected: str, found: str) -> NoReturn:
    raise MeasureError(
        "what vLLM's benchmark wrote does not add up",
        where=str(path),
        expected=expected,
        found=printable(found, 300),
        hint="look into its log",
    )
