"""Let the loaders of several versions load a checkpoint, and judge what came of it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from glmquant.errors import EngineError, UsageError
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
    run_cases,
)
from glmquant.survey import printable
from glmquant.verify.engines.predict import ENGINES, Outcome, Run, Verdict
from glmquant.verify.engines.rules import Engine
from glmquant.verify.findings import Finding, Level, Severity
from glmquant.verify.loads.explain import differs, explained, lost, said
from glmquant.verify.loads.matrix import Answer, LoadMatrix, Row
from glmquant.verify.loads.reduced import can_be_reduced, reduce_checkpoint, reduction_text
from glmquant.verify.subject import Subject

INSTALL: Final = "glmquant engine install --matrix"

_PROCESS_NBYTES: Final = 1_000_000_000
"""Of a rank without weights: 0.66 GB were measured."""

_COPIES: Final = 2.2
"""Most bytes of memory for a byte of the files: weights are processed after they are loaded."""


@dataclass(frozen=True, slots=True)
class LoadWish:
    """What is asked for.

    Attributes:
        pairs: Which versions.
        is_named: The user named them: that one does not load it is an error, not a warning.
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
    if not is_small and not can_be_reduced(subject):
        raise UsageError(
            "the checkpoint does not fit into memory, and no copy can be made of it",
            where=str(subject.path),
            expected="headers and config.json that can be read",
            found=f"{nbytes / 1e9:.1f} GB of weights",
            hint=shlex.join(["glmquant", "verify", str(subject.path)]),
        )
    announced = subject.config.num_nextn_predict_layers if subject.config else 0
    limit_nbytes = 3 * _PROCESS_NBYTES + (needed if is_small else 0)
    cases = [
        Case(
            way.text,
            subject.path.absolute(),
            way,
            bool(announced),
            300 + nbytes / 5e7,
            limit_nbytes,
        )
        for way in ways
        if announced or not way.names_model
    ]
    rows, absent = [], []
    for pair in wish.pairs:
        if find_pair(pair) is None:
            absent.append(pair)
        else:
            rows.append(_row(subject, pair, cases, verdicts, observer, is_small))
    if rows and not any(row.answers for row in rows):
        _give_up(rows)
    copy = None if is_small else reduction_text(subject)
    return LoadMatrix(
        tuple(rows), tuple(absent), copy, tuple(_findings(subject, rows, wish.is_named))
    )


def _give_up(rows: Sequence[Row]) -> NoReturn:
    """Of a checkpoint that no loader could begin with nothing is known, right or wrong.

    Raises:
        EngineError: Always.
    """
    error = EngineError(
        "no loader ran",
        where=f"vllm-ascend {', '.join(row.pair.version for row in rows)}",
        expected="a Python that starts, and 1 GB of memory for each rank",
        found=printable(rows[0].failure or "nothing", 600),
        hint="free memory and room for temporary files, or `glmquant engine remove` and then "
        f"`{INSTALL}`",
    )
    error.exit_code = UsageError.exit_code  # the machine's fault, and nothing of the checkpoint's
    raise error


def _row(
    subject: Subject,
    pair: Pair,
    cases: Sequence[Case],
    verdicts: Sequence[Verdict],
    observer: Observer,
    is_small: bool,
) -> Row:
    built = find_pair(pair)
    assert built is not None  # noqa: S101 - asked just now
    (engine,) = (each for each in ENGINES if each.version == pair.version)
    (verdict,) = (each for each in verdicts if each.version == pair.version)
    copy = None if is_small else lambda folder: reduce_checkpoint(subject, folder)
    answers: list[Answer] = []
    try:
        observer.tell(f"starting the loader of vllm-ascend {pair.ascend}")
        for load in run_cases(pair, built, cases, copy):
            observer.tell(f"vllm-ascend {pair.ascend}: {len(answers) + 1} of {len(cases)} loads")
            run = verdict.with_flag if load.case.way.has_flag else verdict.without_flag
            answers.append(_judge(load, run, engine, subject.types))
    except EngineError as error:
        return Row(pair, tuple(answers), f"{error.what}: {error.found}")
    return Row(pair, tuple(answers))


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
    known: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for row in rows:
        if row.failure:
            known.setdefault(("its loader did not run", row.failure, ()), []).append(
                row.pair.version
            )
        for answer in row.answers:
            if answer.is_right or not answer.way.has_flag:
                continue
            names = tuple(dict.fromkeys(each.name for each in answer.lost))
            found = answer.load.stopped or answer.said
            if names:
                found = f"{len(names)} parameters that no tensor filled: {', '.join(names[:3])}"
                found += f" and {len(names) - 3} more" * (len(names) > 3)
            what = answer.meaning or answer.verdict
            versions = known.setdefault((what, found, names), [])
            if row.pair.version not in versions:
                versions.append(row.pair.version)
            break  # the usual way is the first
    for (what, found, names), versions in known.items():
        yield Finding(
            code="E6",
            severity=Severity.ERROR if is_named else Severity.WARNING,
            level=Level.ENGINE,
            what=printable(what, 200),
            where=f"the loader of vllm-ascend {', '.join(versions)}",
            expected="target and draft load, and a tensor for every parameter",
            found=printable(found, 600),
            hint=shlex.join(["glmquant", "verify", str(subject.path), "--engine", "none"]),
            tensors=tuple(printable(name, 200) for name in names),
        )
