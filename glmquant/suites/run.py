"""Run a suite: its configuration, its command, the counters around it, and the run's file."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from glmquant.errors import EngineError, MeasureError
from glmquant.results import RESULTS_DIR, Result
from glmquant.runs import Drafts, Run, write_run
from glmquant.runtime.client import Client
from glmquant.runtime.environment.child import CommandError
from glmquant.runtime.guarded import run_guarded
from glmquant.runtime.observed import Counters, Drafting
from glmquant.significance import wilson_interval
from glmquant.storage import writing
from glmquant.suites.task import Call, Installed, Suite, Task
from glmquant.survey import printable

LOG_FILE: Final = "log"
_FOLLOW_SECONDS: Final = 0.3
_MAX_TRIES: Final = 20
_ACCEPTANCE: Final = "acceptance rate"
_OTHER_SERVER: Final = (
    "the server began anew while this ran, or there are several: the figures are not of one "
    "server, and no acceptance rate is told"
)
_FOREIGN: Final = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV")
"""Of the Python that runs glmquant, not of the suite's."""


class Listener:
    """Does nothing; a user interface overrides what it shows."""

    def begin(self, folder: Path, words: tuple[str, ...]) -> None:
        """The suite is about to run.

        Args:
            folder: Its own, with its configuration, log and output.
            words: Its command.
        """

    def hear(self, data: bytes) -> None:
        """The suite said something.

        Args:
            data: As it came.
        """


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that came to its end.

    Attributes:
        run: It.
        path: Its file.
        folder: With all that the suite wrote.
        notes: What a reader has to know, a sentence each.
    """

    run: Run
    path: Path
    folder: Path
    notes: tuple[str, ...]


def measure(
    suite: Suite,
    task: Task,
    installed: Installed,
    into: Path,
    *,
    client: Client | None,
    machine: str = "",
    engine: str = "",
    listener: Listener | None = None,
) -> Finished:
    """Measure, and put the run beside a checkpoint.

    Args:
        suite: What measures.
        task: What is to be measured.
        installed: Where the suite is.
        into: The folder that is to hold ``.glmquant/results``.
        client: Of the server, for its counters; None where there is none.
        machine: Where it is served, as the user says.
        engine: What serves, where there is no server to ask.
        listener: Told of the command and of what it says.

    Raises:
        UsageError: The suite cannot do this task.
        MeasureError: It failed, or told nothing that adds up. What it wrote is kept.
        EngineError: The server does not answer.
        StorageError: A file cannot be written.
    """
    run = Run(
        suite=suite.name,
        suite_version=installed.version,
        mode=task.mode,
        dataset=task.dataset,
        date=_now(),
        model=task.model or (task.folder.name if task.folder else ""),
        engine=_engine(client) or engine,
        machine=machine,
        settings=_settings(task),
        results=(),
    )
    run, folder = _make_folder(into, run)
    call = suite.prepare(task, installed, folder)
    before = _counters(client)
    listener = listener or Listener()
    listener.begin(folder, call.words)
    log = folder / LOG_FILE
    try:
        with _following(log, listener):
            run_guarded(call.words, log, _environment(call), folder)
    except CommandError as error:
        raise _failed(suite, task, error, log, call) from error
    finally:
        _mask(folder, call)
    after = _counters(client)
    is_other = bool(before and after and after.is_of_another(before))
    was, now = before and before.drafting, after and after.drafting
    drafts = None if is_other else _drafts(was, now)
    measured = suite.read(task, installed, folder)
    acceptance = _acceptance(drafts)
    own = measured.results
    if acceptance or is_other:
        own = tuple(each for each in own if not _is_counted(each, is_other))
    run = run.model_copy(
        update={
            "results": (*own, *acceptance),
            "items": measured.items,
            "samples": dict(measured.samples),
            "drafts": drafts,
            "settings": {**run.settings, **call.settings},
        }
    )
    notes = measured.notes
    if is_other:
        notes = (*notes, _OTHER_SERVER)
    elif was is not None and drafts is None:
        fate = "cannot be read any more" if now is None else "fell: the server began anew"
        notes = (*notes, f"no acceptance rate: the counters of speculative decoding {fate}")
    return Finished(run, write_run(into, run), folder, notes)


def _make_folder(into: Path, run: Run) -> tuple[Run, Path]:
    """A new folder for all that the suite writes; who comes in the same second waits for the next.

    What an earlier run wrote stays as it is.
    """
    for _ in range(_MAX_TRIES):
        folder = into / RESULTS_DIR / run.stem
        with writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
                return run, folder
        time.sleep(_FOLLOW_SECONDS)
        run = run.model_copy(update={"date": _now()})
    raise MeasureError(
        "there is no name for this run",
        where=str(into / RESULTS_DIR),
        expected="a clock that goes on",
        found=f"{run.stem} is there already",
        hint="set the clock, then run the same command again",
    )


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _engine(client: Client | None) -> str:
    version = client.version() if client else None
    return f"vLLM {version}" if version else ""


def _settings(task: Task) -> dict[str, str | int | float | bool | None]:
    """What decides the figures, for the file."""
    kept: dict[str, str | int | float | bool | None] = {
        "url": task.url,
        "data": str(task.data) if task.data else None,
        "limit": task.limit,
        "concurrency": task.concurrency,
        "seed": task.seed,
    }
    if task.mode == "accuracy":
        kept["max_out_len"] = task.max_out_len
    else:
        kept |= {
            "requests": task.requests,
            "input_len": task.input_len,
            "output_len": task.output_len,
        }
    return kept | dict(task.settings)


def _environment(call: Call) -> dict[str, str]:
    """The user's own, with what the suite needs and without what would get into its Python."""
    kept = {name: text for name, text in os.environ.items() if name not in _FOREIGN}
    for name, text in call.env.items():
        kept.pop(name, None)
        if text is not None:
            kept[name] = text
    return kept | dict(call.secrets)


@contextmanager
def _following(log: Path, listener: Listener) -> Iterator[None]:
    """Hand on what comes to the log until the command ends, and what is left of it then."""
    ended = threading.Event()
    log.touch()

    def follow() -> None:
        with log.open("rb") as file:
            is_last = False
            while not is_last:
                is_last = ended.wait(_FOLLOW_SECONDS)
                if data := file.read():
                    listener.hear(data)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _counters(client: Client | None) -> Counters | None:
    """What was counted so far; None behind a proxy that knows no counters, too."""
    with suppress(EngineError):
        return client.counters() if client else None
    return None


def _mask(folder: Path, call: Call) -> None:
    """Take the key out of what the suite wrote: some log the headers of a request that failed."""
    secrets = [text.encode() for text in call.secrets.values() if text]
    for path in folder.rglob("*") if secrets else ():
        with writing(path):
            if not path.is_file() or path.is_symlink():
                continue
            data = masked = path.read_bytes()
            for secret in secrets:
                masked = masked.replace(secret, b"***")
            if masked != data:
                path.write_bytes(masked)


def _failed(suite: Suite, task: Task, error: CommandError, log: Path, call: Call) -> MeasureError:
    """Its cause, where the suite's files tell one; else how the log ends."""
    explained = suite.explain(task, log.parent)
    if explained is not None:
        for secret in filter(None, call.secrets.values()):
            explained.found = (explained.found or "").replace(secret, "***")
        explained.where = f"{explained.where}; log {log}"
        return explained
    ended = f"signal {error.code - 128}" if error.code > 128 else f"exit code {error.code}"
    tail = error.tail
    for secret in filter(None, call.secrets.values()):
        tail = tail.replace(secret, "***")
    tail = "\n            ".join(printable(line, 300) for line in tail.splitlines())
    return MeasureError(
        f"{suite.title} failed",
        where=f"log {log}",
        expected=error.command if len(error.command) < 400 else f"{error.command[:397]}...",
        found=f"{ended}; the log ends with\n            {tail}",
        hint="see the log; then run the same command again",
    )


def _drafts(before: Drafting | None, after: Drafting | None) -> Drafts | None:
    """What was drafted in between; None where nothing was counted, or a counter fell."""
    if before is None or after is None:
        return None
    early = (before.drafts, before.draft_tokens, before.accepted, *before.by_position)
    late = (after.drafts, after.draft_tokens, after.accepted, *after.by_position)
    places = len(after.by_position)
    early += (0,) * (len(late) - len(early))
    counts = [now - then for now, then in zip(late, early, strict=False)]
    if len(late) < len(early) or min(counts) < 0:
        return None
    drafts, draft_tokens, accepted, *by_position = counts
    return Drafts(
        drafts=drafts,
        draft_tokens=draft_tokens,
        accepted=accepted,
        by_position=tuple(by_position[:places]),
    )


def _is_counted(result: Result, is_other: bool) -> bool:
    """Whether a figure of the suite's is left out.

    The same counters are told once: by us, under one name for all suites. Those of two servers say
    nothing, nor does a length that the suite made of them.
    """
    return result.metric == _ACCEPTANCE or (is_other and result.metric.startswith("acceptance "))


def _acceptance(drafts: Drafts | None) -> tuple[Result, ...]:
    if drafts is None or drafts.draft_tokens <= 0 or drafts.accepted > drafts.draft_tokens:
        return ()
    low, high = wilson_interval(drafts.accepted, drafts.draft_tokens)
    return (
        Result(
            dataset="MTP",
            metric=_ACCEPTANCE,
            value=round(100 * drafts.accepted / drafts.draft_tokens, 2),
            unit="%",
            items=drafts.draft_tokens,
            interval=(round(100 * low, 2), round(100 * high, 2)),
        ),
    )
