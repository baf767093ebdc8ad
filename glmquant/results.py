"""Measured results of a checkpoint: JSON files that whoever measured has put beside it.

``DIR/.glmquant/results/*.json``: what ``bench`` and ``eval`` wrote (``runs.py``), or an object of
whoever measured otherwise, or a list of them::

    {"suite": "AISBench", "dataset": "gsm8k", "metric": "accuracy", "value": 95.8, "unit": "%",
     "items": 1319, "interval": [94.6, 96.8], "engine": "vllm-ascend 0.23.0",
     "machine": "Atlas 800 A3", "date": "2026-08-22"}

``dataset``, ``metric`` and ``value`` are needed; all else may be left out, other keys are passed
over.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    Strict,
    ValidationError,
    field_validator,
)

from glmquant.storage import STATE_DIR

RESULTS_DIR: Final = f"{STATE_DIR}/results"
EXPECTED: Final = (("gsm8k", "accuracy"), ("GPQA diamond", "accuracy"), ("MTP", "acceptance rate"))
"""What a reader looks for: dataset and metric, said to be not measured where they are not."""

_SHARED: Final = ("suite", "dataset", "engine", "machine", "date")
"""What a run says for all its results."""

_DETAILS: Final = (" p99", " median")
_ASIDE: Final = ("ITL", "input tokens", "output tokens", "acceptance length")
"""What a run tells of a load beside what a reader of a page asks for."""

_MAX_NBYTES: Final = 100_000_000


def _as_utf8(told: Any) -> Any:
    """Half a surrogate pair, which JSON can spell and no file can hold, as its number."""
    return told.encode(errors="backslashreplace").decode() if isinstance(told, str) else told


Text = Annotated[str, BeforeValidator(_as_utf8)]
Figure = Annotated[FiniteFloat, Field(ge=-1e15, le=1e15)]
Count = Annotated[int, Field(ge=0, le=10**12)]


class Result(BaseModel):
    """One figure.

    Attributes:
        dataset: On what.
        metric: Which figure.
        value: It.
        suite: What measured it.
        unit: Of value and interval; empty for a plain number.
        items: Questions or tokens.
        interval: Between which values it lies, by the suite's own confidence.
        engine: What served the checkpoint.
        machine: Where.
        date: When.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    dataset: Text
    metric: Text
    value: Annotated[Figure, Strict()]
    suite: Text = ""
    unit: Text = ""
    items: Count | None = None
    interval: tuple[Figure, Figure] | None = None
    engine: Text = ""
    machine: Text = ""
    date: Text = ""

    @field_validator("interval")
    @classmethod
    def _is_ordered(cls, found: tuple[float, float] | None) -> tuple[float, float] | None:
        if found is not None and found[0] > found[1]:
            raise ValueError("its first end is the larger one")
        return found

    @property
    def value_text(self) -> str:
        """``95.8 %, 94.6 to 96.8``: with its interval, where it has one."""
        text = f"{figure_text(self.value)} {self.unit}".rstrip()
        if self.interval is not None:
            low, high = map(figure_text, self.interval)
            text += f", {low} to {high}"
        return text

    @property
    def how(self) -> str:
        """With what it was measured."""
        items = f"{self.items:,} items" if self.items else ""
        return ", ".join(filter(None, (self.suite, items, self.engine, self.machine, self.date)))


def figure_text(value: float) -> str:
    """A figure to four digits, or to the last whole one: ``96.13``, ``0.4418``, ``12,345``."""
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


@dataclass(frozen=True, slots=True)
class Results:
    """All that was found.

    Attributes:
        found: The figures, file by file.
        notes: What could not be read and why, a sentence each.
    """

    found: tuple[Result, ...]
    notes: tuple[str, ...]

    @property
    def shown(self) -> tuple[Result, ...]:
        """What a page shows: no tails and gaps, and each figure once.

        Of one that was measured more than once in the same way it is that of the most items, and of
        those the last: five questions asked for a trial are no news of 1,319.
        """
        best: dict[tuple[str, ...], Result] = {}
        for each in sorted(self.found, key=lambda each: (each.items or 0, each.date)):
            if not each.metric.endswith(_DETAILS) and not each.metric.startswith(_ASIDE):
                key = (each.suite, each.dataset, each.metric, each.engine, each.machine)
                best[key] = each
        kept = {id(each) for each in best.values()}
        return tuple(each for each in self.found if id(each) in kept)

    @property
    def missing(self) -> tuple[tuple[str, str], ...]:
        """What a reader looks for and nobody measured."""
        told = [(_key(each.dataset), _plain(each.metric)) for each in self.found]
        return tuple(
            (dataset, metric)
            for dataset, metric in EXPECTED
            if not any(_key(dataset) == key and said.startswith(metric) for key, said in told)
        )


def read_results(folder: Path) -> Results:
    """The results beside a checkpoint; a file that cannot be read is a note.

    Args:
        folder: The checkpoint.
    """
    found: list[Result] = []
    notes: list[str] = []
    for path in sorted((folder / RESULTS_DIR).glob("*.json")):
        name = f"{RESULTS_DIR}/{path.name}"
        try:
            if not path.is_file():
                raise ValueError("no file")
            if path.stat().st_size > _MAX_NBYTES:
                raise ValueError(f"longer than {_MAX_NBYTES:,} bytes")
            told = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            notes.append(f"{name} is left out: {type(error).__name__}: {error}")
            continue
        for number, each in enumerate(_told(told), start=1):
            problem = _add(each, found)
            if problem is not None:
                notes.append(f"{name}, result {number} is left out: {problem}")
    return Results(tuple(found), tuple(notes))


def _told(told: Any) -> list[Any]:
    """The results of a file; a run's take from the run what they do not say themselves."""
    if not isinstance(told, dict) or not isinstance(told.get("results"), list):
        return told if isinstance(told, list) else [told]
    shared = {name: told[name] for name in _SHARED if isinstance(told.get(name), str)}
    if version := told.get("suite_version"):
        shared["suite"] = f"{shared.get('suite', '')} {version}".strip()
    load = _load_of(told)
    return [
        _with_run(each, shared, load) if isinstance(each, dict) else each
        for each in told["results"]
    ]


def _with_run(result: dict[str, Any], shared: dict[str, str], load: str) -> dict[str, Any]:
    """A result that says what its run was of."""
    whole = {**result, **{name: text for name, text in shared.items() if not result.get(name)}}
    if whole.get("dataset") != shared.get("dataset"):  # drafts, whatever was asked
        whole["suite"] = f"{whole.get('suite', '')} on {shared.get('dataset', '')}{load}"
    elif load:
        whole["dataset"] = f"{whole['dataset']}{load}"
    return whole


def _load_of(run: dict[str, Any]) -> str:
    """``, serve, 1024 + 1024 tokens, 16 at once``; nothing where answers were measured."""
    settings = run.get("settings")
    mode = run.get("mode")
    if mode in (None, "accuracy") or not isinstance(settings, dict):
        return ""
    lengths = f"{settings.get('input_len')} + {settings.get('output_len')} tokens"
    return f", {mode}, {lengths}, {settings.get('concurrency')} at once"


def _add(told: Any, found: list[Result]) -> str | None:
    """Add a result, or say what is wrong with it."""
    try:
        found.append(Result.model_validate(told))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "it"
        return f"{place}: {first['msg']}"
    return None


def _key(dataset: str) -> str:
    """A dataset's name without case and what is behind its first word: ``GSM8K (cot)``."""
    return _plain(dataset).split(" ")[0]


def _plain(name: str) -> str:
    return name.lower().replace("-", " ").replace("_", " ")
