"""What is to be measured, and what came of it: all that the suites have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from glmquant.errors import MeasureError
from glmquant.results import Result
from glmquant.runs import Item, Mode


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be measured.

    Attributes:
        mode: Accuracy of answers, a server under load, or an engine by itself.
        dataset: Its short name: ``gsm8k``, ``gpqa``, ``math500``; the stem of a file of the user's;
            what made-up requests are.
        data: The file or folder with its items; None for the copy that the suite gets by itself.
        url: The server's address, without ``/v1``; None where the engine is run by itself.
        model: As requests to the server call it.
        folder: The checkpoint on this machine, or None: tokenizer, and what latency loads.
        limit: The first so many items; None for all.
        max_out_len: Most tokens of an answer.
        concurrency: Requests at once.
        requests: How many requests a measurement of speed sends.
        input_len: Tokens of a made-up prompt.
        output_len: Tokens of its answer.
        api_key: Sent with each request, never in a file or on a command line.
        seed: Of sampling and of made-up prompts.
        settings: The suite's own options: name and value as the user gave them.
    """

    mode: Mode
    dataset: str
    data: Path | None = None
    url: str | None = None
    model: str = ""
    folder: Path | None = None
    limit: int | None = None
    max_out_len: int = 32_768
    concurrency: int = 16
    requests: int = 1
    input_len: int = 1_024
    output_len: int = 1_024
    api_key: str | None = None
    seed: int = 1024
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Installed:
    """Where a suite is.

    Attributes:
        python: The interpreter that has it.
        version: Of the suite.
        is_ours: In an environment that ``--install`` made.
    """

    python: Path
    version: str
    is_ours: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """A command to run.

    Attributes:
        words: It.
        env: Variables on top of the user's own; what has to be unset is None.
        secrets: Variables that no file and no message may show.
        settings: What it was told of sampling, prompts and the like, defaults included: what else
            decides the figures.
    """

    words: tuple[str, ...]
    env: Mapping[str, str | None] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a suite told.

    Attributes:
        results: The figures; suite, date, engine and machine are filled in by who asked.
        items: The questions, where the suite tells them.
        samples: Values a request, by the metric's name.
        notes: What a reader has to know, a sentence each: answers that were cut, retries.
    """

    results: tuple[Result, ...]
    items: tuple[Item, ...] = ()
    samples: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def unexplained(task: Task, work: Path) -> MeasureError | None:
    """None: a suite that keeps nothing of why it fails, but for its log.

    Args:
        task: What was asked for.
        work: The folder in which it ran.
    """
    return None


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite that is known.

    Attributes:
        name: As ``--suite`` calls it.
        title: As people call it.
        package: On the index.
        modes: What it can measure.
        datasets: By what names it knows data sets.
        prepare: Writes its configuration for the installed version into an empty folder, and gives
            the command; UsageError where the task is none of its own.
        read: What it wrote into that folder; MeasureError where it told nothing that adds up.
        explain: Why it failed, by what it wrote into that folder; None where only its log tells.
    """

    name: str
    title: str
    package: str
    modes: tuple[Mode, ...]
    datasets: tuple[str, ...]
    prepare: Callable[[Task, Installed, Path], Call]
    read: Callable[[Task, Installed, Path], Measured]
    explain: Callable[[Task, Path], MeasureError | None] = unexplained
