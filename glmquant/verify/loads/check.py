"""Let the loaders of several versions load a checkpoint, and judge what came of it."""

from __future__ import annotations

import shlex
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from glmquant.errors import DiskSpaceError, EngineError, UsageError
from glmquant.observer import Observer
from glmquant.runtime.hosts import available_nbytes
from glmquant.runtime.matrix import (
    WAYS,
    Case,
    Load,
    Pair,
    Unfilled,
    Way,
    choose_pairs,
    find_pair,
    remedy_of,
    run_cases,
)
from glmquant.survey import printable
from glmquant.verify.engines.foretold import remedy_of_failure
from glmquant.verify.engines.predict import ENGINES, Outcome, Run, Verdict
from glmquant.verify.engines.reading import read_as_engine
from glmquant.verify.engines.rules import Engine, Fate
from glmquant.verify.findings import Finding, Level, Severity
from glmquant.verify.loads.explain import INDIVISIBLE, differs, explained, lost, said
from glmquant.verify.loads.matrix import Answer, LoadMatrix, Row
from glmquant.verify.loads.reduced import can_be_reduced, reduce_checkpoint, reduction_text
from glmquant.verify.remedies import serve
from glmquant.verify.subject import Subject

INSTALL: Final = "glmquant engine install --matrix"

_PROCESS_NBYTES: Final = 1_000_000_000
"""Of a rank without weights: 0.66 GB were measured."""

_COPIES: Final = 2.2
"""Most bytes of memory for a byte of the files: weights are processed after they are loaded."""


_TITLES: Final = {
    "target": "the model does not load",
    "draft": "the draft model does not load",
    None: "parameters stay as the memory was",
}
"""What fails → its title where nobody knows the reason."""


@dataclass(frozen=True, slots=True)
class LoadWish:
    """What is asked for.

    Attributes:
        pairs: Which versions.
        is_named: The user named them: that one of them does not load it is an error. Of all that
            are installed it is one where no version loads it, else a warning.
    """

    pairs: tuple[Pair, ...]
    is_named: bool


def wish_for(versions: str | None) -> LoadWish:
    """What is asked for by ``--load-matrix`` and ``--versions``.

    Args:
        versions: With commas between; all that are installed if left out.

    Raises:
        UsageError: One of them is no version of ours, or not installed; or none is installed.
    """
    pairs = choose_pairs(versions)
    absent = [pair for pair in pairs if find_pair(pair) is None]
    if (versions and absent) or len(absent) == len(pairs):
        more = f" --versions {','.join(pair.version for pair in absent)}" if versions else ""
        raise UsageError(
            "the loaders are not installed",
            where="--load-matrix",
            expected="an environment for each version",
            found=f"none for {', '.join(pair.version for pair in absent)}",
            hint=INSTALL + more,
        )
    return LoadWish(pairs, versions is not None)


def check_loads(
    subject: Subject,
    wish: LoadWish,
    verdicts: Sequence[Verdict],
    observer: Observer,
    ways: Sequence[Way] = WAYS,
) -> LoadMatrix:
    """Let each version load target and draft in each way.

    Args:
        subject: The checkpoint.
        wish: Which versions.
        verdicts: What the rules say.
        observer: Is told how far it is.
        ways: How.

    Raises:
        UsageError: It does not fit into memory, and no copy can be made of it.
    """
    nbytes = sum(subject.found.files.get(name, 0) for name in subject.found.shards)
    needed = int(nbytes * _COPIES)
    is_small = _PROCESS_NBYTES * 2 + needed <= available_nbytes() * 8 // 10
    copied = None if is_small else read_as_engine(subject).subject
    if copied is not None and not can_be_reduced(copied):
        raise UsageError(
            "the checkpoint does not fit into memory, and no copy can be made of it",
            where=str(subject.path),
            expected="headers and config.json that can be read",
            found=f"{nbytes / 1e9:.1f} GB of weights",
            hint=_without_loads(subject),
        )
    has_draft, undrafted = _draft(subject)
    limit_nbytes = 3 * _PROCESS_NBYTES + (needed if is_small else 0)
    cases = [
        Case(
            way.text,
            subject.path.absolute(),
            way,
            has_draft,
            300 + nbytes / 5e7,
            limit_nbytes,
        )
        for way in ways
        if has_draft or not way.names_model
    ]
    rows, absent = [], []
    for pair in wish.pairs:
        if find_pair(pair) is None:
            absent.append(pair)
        else:
            rows.append(_row(subject, pair, cases, verdicts, observer, copied))
    return LoadMatrix(
        ways=tuple(case.way for case in cases),
        rows=tuple(rows),
        absent=tuple(absent),
        copy=reduction_text(copied) if copied else None,
        undrafted=undrafted,
        findings=tuple(_findings(subject, rows, wish.is_named)),
        failure=_unanswered(subject, rows, verdicts),
    )


def _without_loads(subject: Subject) -> str:
    return shlex.join(["glmquant", "verify", str(subject.path)])


def _draft(subject: Subject) -> tuple[bool, str | None]:
    """Whether a draft is loaded, and why not where there are tensors for one.

    A config.json that only an engine can read, NaN and all, may announce it all the same.
    """
    if subject.config is None:
        return bool(subject.mtp_layers), None
    has_draft = bool(subject.config.num_nextn_predict_layers)
    if has_draft or not subject.mtp_layers:
        return has_draft, None
    return False, "no draft was loaded: config.json announces no MTP layer, though tensors are here"


def _unanswered(
    subject: Subject, rows: Sequence[Row], verdicts: Sequence[Verdict]
) -> EngineError | None:
    """That some load has no answer: nothing is known of it then, right or wrong."""
    mute = [row for row in rows if row.reason]
    if not mute:
        return None
    cause = next((row.failure for row in mute if row.failure), None)
    reason = mute[0].reason or ""
    foretold = {each.version for each in verdicts if each.with_flag.target.fate is Fate.FAILS}
    if cause is not None:
        hint = cause.hint
    elif reason.startswith("it took more") and foretold >= {row.pair.version for row in mute}:
        hint = f"mend first what the table says: {_without_loads(subject)}"
    else:
        hint = remedy_of(reason)
    error = EngineError(
        "loads without an answer" if any(row.answers for row in rows) else "no loader ran",
        where=f"vllm-ascend {', '.join(row.pair.version for row in mute)}",
        expected="a Python that starts, time, and 1 GB of memory and the weights for each rank",
        found=printable(reason, 600),
        hint=hint,
    )
    error.log = cause.log if cause else ()
    return error


def _row(
    subject: Subject,
    pair: Pair,
    cases: Sequence[Case],
    verdicts: Sequence[Verdict],
    observer: Observer,
    copied: Subject | None,
) -> Row:
    built = find_pair(pair)
    assert built is not None  # noqa: S101 - asked just now
    (engine,) = (each for each in ENGINES if each.version == pair.version)
    (verdict,) = (each for each in verdicts if each.version == pair.version)
    copy = partial(reduce_checkpoint, copied) if copied else None
    answers: list[Answer] = []
    try:
        _require_files(subject.path)
        observer.tell(f"starting the loader of vllm-ascend {pair.ascend}")
        for load in run_cases(pair, built, cases, copy):
            observer.tell(f"vllm-ascend {pair.ascend}: {len(answers) + 1} of {len(cases)} loads")
            run = verdict.with_flag if load.case.way.has_flag else verdict.without_flag
            answers.append(_judge(load, run, engine, subject.types))
    except EngineError as error:
        return Row(pair, tuple(answers), error)
    except DiskSpaceError as error:
        return Row(pair, (), _without_room(error))
    return Row(pair, tuple(answers))


def _without_room(error: DiskSpaceError) -> EngineError:
    found = error.found or "No space left on device"
    return EngineError(
        "no room for what is loaded",
        where=error.where,
        expected="room for temporary files",
        found=found,
        hint=remedy_of(found),
    )


def _require_files(folder: Path) -> None:
    """Fail where an engine would wait for ever.

    Raises:
        EngineError: A pipe has the name of weights or JSON.
    """
    for path in sorted((*folder.glob("*.safetensors"), *folder.glob("*.json"))):
        if path.exists() and stat.S_ISFIFO(path.stat().st_mode):
            raise EngineError(
                "a loader would wait for somebody to write into a pipe",
                where=str(path),
                expected="a file",
                found=f"the pipe {printable(path.name, 200)}",
                hint=shlex.join(["rm", "--", str(path)]),
            )


def _judge(load: Load, run: Run, engine: Engine, types: dict[str, Any]) -> Answer:
    gone: list[Unfilled] = []
    meaning, words, is_other = "", "", False
    outcomes: tuple[Outcome | None, ...] = (run.target, run.draft)
    is_foretold = load.case.way == Way(has_flag=load.case.way.has_flag)
    for outcome, model in zip(outcomes, (load.target, load.draft), strict=True):
        if model is None:
            continue
        mine = lost(model, engine, types)
        gone += mine
        is_other |= is_foretold and differs(outcome, model, bool(mine))
        if model.error is not None:
            meaning, words = explained(model, outcome), said(model)
    return Answer(load.case.way, load, tuple(gone), meaning, words, is_other)


def _findings(subject: Subject, rows: Sequence[Row], is_named: bool) -> Iterator[Finding]:
    """A finding for each kind of failure with the flag: what users of the flag will meet.

    Without the flag 0.13 loads nothing whose description is not in config.json, however right.
    """
    known: dict[tuple[str, tuple[str, ...]], dict[str, list[Answer]]] = {}
    for row in rows:
        for answer in row.answers:
            if answer.is_wrong and answer.way.has_flag:
                names = tuple(dict.fromkeys(each.name for each in answer.lost))
                kind = (answer.meaning or _TITLES[answer.failed], names)
                known.setdefault(kind, {}).setdefault(row.pair.version, []).append(answer)
    usable = [row.pair.version for row in rows if _loads(row)]
    for (what, names), answers in known.items():
        hint = serve(str(subject.path), usable[-1]) if usable else remedy_of_failure(subject, what)
        is_warning = what == INDIVISIBLE or (usable and not is_named)
        first = next(iter(answers.values()))[0]
        yield Finding(
            code="E6",
            severity=Severity.WARNING if is_warning else Severity.ERROR,
            level=Level.ENGINE,
            what=printable(what, 200),
            where=f"the loader of vllm-ascend {_places(rows, answers)}",
            expected="target and draft load, and a tensor for every parameter",
            found=printable(first.said if first.failed else _named(names), 600),
            hint=hint,
            tensors=tuple(printable(name, 200) for name in names),
        )


def _loads(row: Row) -> bool:
    """Whether a version takes it with the flag, in every way that was tried."""
    asked = [answer for answer in row.answers if answer.way.has_flag]
    return bool(asked) and row.reason is None and not any(each.is_wrong for each in asked)


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" * (len(names) > 3)
    noun = "parameter" if len(names) == 1 else "parameters"
    return f"{len(names)} {noun} that no tensor filled: {', '.join(names[:3])}{more}"


def _places(rows: Sequence[Row], answers: Mapping[str, Sequence[Answer]]) -> str:
    """The versions, and of each the ways where it is not all of them."""
    places = []
    for row in rows:
        if row.pair.version not in answers:
            continue
        mine = [answer.way for answer in answers[row.pair.version]]
        asked = [answer.way for answer in row.answers if answer.way.has_flag]
        ways = "" if mine == asked else f" ({'; '.join(way.text for way in mine)})"
        places.append(row.pair.version + ways)
    return ", ".join(places)
