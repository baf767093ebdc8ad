"""A run of a suite: what was measured, how, and on which items; a JSON file beside a checkpoint.

``DIR/.glmquant/results/DATE-SUITE-DATASET.json`` holds one. Its ``results`` are those of
``results.py``, which a card shows; items and samples are there for ``compare``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glmquant.errors import MeasureError
from glmquant.results import RESULTS_DIR, Count, Figure, Result, Text
from glmquant.storage import reading, writing
from glmquant.survey import printable

FORMAT: Final = "glmquant-run-1"
MAX_NBYTES: Final = 100_000_000

Mode = Literal["accuracy", "serve", "latency", "throughput"]
Number = Annotated[Figure, Field(strict=True)]


class Item(BaseModel):
    """One question and what became of it.

    Attributes:
        name: By which the same question is found in another run: its place in the data set, or a
            digest of its text.
        correct: Whether the suite took the answer for right.
        answer: What the suite took from the reply; empty where it found nothing.
        expected: What it was held against.
        is_cut: The reply ended at the limit of its length, so it says little of the model.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Text
    correct: bool
    answer: Text = ""
    expected: Text = ""
    is_cut: bool = False


class Drafts(BaseModel):
    """What the counters of speculative decoding counted during a run, all traffic included."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    drafts: Count
    draft_tokens: Count
    accepted: Count
    by_position: tuple[Count, ...] = ()


class Run(BaseModel):
    """One run of a suite.

    Attributes:
        format: Of this file.
        suite: What measured.
        suite_version: Its version.
        mode: What of.
        dataset: On what.
        date: When it began, UTC, ISO 8601.
        model: As the server calls it, or the folder's name.
        engine: Name and version of what served it, as far as it told.
        machine: Where, as the user says.
        settings: All that decides the figures: limits, concurrency, sampling.
        results: The figures.
        items: The questions; empty where the suite tells none.
        samples: Values that a figure is a mean or percentile of, a request each, by metric name.
        drafts: Speculative decoding while it ran, or None.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["glmquant-run-1"] = FORMAT
    suite: Text
    suite_version: Text = ""
    mode: Mode
    dataset: Text
    date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    model: Text = ""
    engine: Text = ""
    machine: Text = ""
    settings: dict[str, Text | int | float | bool | None] = {}
    results: tuple[Result, ...]
    items: tuple[Item, ...] = ()
    samples: dict[str, tuple[Number, ...]] = {}
    drafts: Drafts | None = None

    @property
    def stem(self) -> str:
        """``20260822T101500Z-aisbench-gsm8k``: the name of its file and of its folder."""
        kind = self.dataset if self.mode == "accuracy" else f"{self.mode}-{self.dataset}"
        when = self.date.replace("-", "").replace(":", "")
        name = f"{when}-{self.suite}-{kind}"
        return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)


def write_run(folder: Path, run: Run) -> Path:
    """Put a run beside a checkpoint, whole or not at all; gives its path.

    Args:
        folder: The checkpoint, or whatever folder is to hold ``.glmquant/results``.
        run: The run.

    Raises:
        StorageError: It cannot be written; DiskSpaceError where the disk is full.
    """
    place = folder / RESULTS_DIR
    path = place / f"{run.stem}.json"
    part = path.with_name(f"{path.name}.part")
    with writing(path):
        place.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8") as file:
            file.write(run.model_dump_json(indent=1, exclude_defaults=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    return path


def read_run(path: Path) -> Run:
    """A run's file.

    Raises:
        MeasureError: It is none.
        StorageError: It cannot be read.
    """
    with reading(path):
        is_plain = path.is_file()
        nbytes = path.stat().st_size if is_plain else 0
    if not is_plain or nbytes > MAX_NBYTES:
        found = f"{nbytes:,} bytes" if is_plain else "no plain file"
        raise _no_run(path, found)
    with reading(path):
        data = path.read_bytes()
    try:
        told: Any = json.loads(data)
        return Run.model_validate(told)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "it"
        raise _no_run(path, f"{place}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise _no_run(path, f"no JSON: {error}") from error


def find_runs(folder: Path) -> tuple[Path, ...]:
    """The files of a folder's runs, oldest first; files of other formats are passed over."""
    with reading(folder):
        paths = sorted((folder / RESULTS_DIR).glob("*.json"))
    return tuple(path for path in paths if _is_run(path))


def _is_run(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return FORMAT.encode() in file.read(200)
    except OSError:
        return False


def _no_run(path: Path, found: str) -> MeasureError:
    return MeasureError(
        "a file holds no run",
        where=printable(str(path), 300),
        expected=f"a file that bench or eval wrote ({FORMAT})",
        found=printable(found, 300),
        hint=f"ls {RESULTS_DIR} in the checkpoint's folder",
    )
