"""The levels at which a checkpoint runs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from glmquant.checkpoint import Checkpoint
from glmquant.errors import CheckpointError, EngineError, GlmquantError, NonFiniteError
from glmquant.machines import A2
from glmquant.observer import Observer
from glmquant.runtime import hosts
from glmquant.runtime.prompts import Material
from glmquant.verify.behaviour.behaviour import Behaviour
from glmquant.verify.behaviour.choice import Choice, EngineKind, choose_engine
from glmquant.verify.behaviour.judge import judge, not_loaded
from glmquant.verify.behaviour.served import MIN_CONTEXT, Job, behave_remote, behave_served
from glmquant.verify.findings import Finding, Level
from glmquant.verify.subject import Subject

MAX_CONTEXT: Final = 2048
"""Of what is asked, tokens: enough for a long prompt, and quick on a processor. A quarter of the
model's own where that is less: GLM-4-nano says 1,024 and was trained on 256."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user wants to be run.

    Attributes:
        engine: Which engine.
        material: What is asked of it.
        url: Of a server that runs already.
        speculative_tokens: To draft at a step.
        min_acceptance: The least acceptance rate; None for the usual bounds.
        limit_seconds: How long an engine may take to be ready, and to answer.
    """

    engine: EngineKind
    material: Material
    url: str | None = None
    speculative_tokens: int = 1
    min_acceptance: float | None = None
    limit_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """What came of it.

    Attributes:
        level: That ran; None where nothing did.
        behaviour: What was seen; None where it was not loaded.
        findings: What is wrong with it.
        note: Why it is not more than that.
        log: The last lines of an engine that failed.
        failure: Why a server that somebody else started could not be asked.
    """

    level: Level | None = None
    behaviour: Behaviour | None = None
    findings: tuple[Finding, ...] = ()
    note: str | None = None
    log: tuple[str, ...] = ()
    failure: GlmquantError | None = None


def choose(wish: Wish, subject: Subject, source: Checkpoint | None) -> Choice:
    """Which engine it will be; asked before anything is read at length.

    Raises:
        UsageError: The one that was named cannot run here.
    """
    if wish.url is not None:
        return Choice(EngineKind.ASCEND)
    return choose_engine(wish.engine, max(_nbytes(subject), _nbytes(source)))


def check_behaviour(
    wish: Wish,
    choice: Choice,
    subject: Subject,
    source: Checkpoint | None,
    observer: Observer,
) -> Run:
    """Run the checkpoint and judge what it does."""
    if choice.kind is EngineKind.NONE:
        return Run(note=f"no engine was asked: {choice.reason}" if choice.reason else None)
    job = _job(wish, choice, subject, source)
    level = Level.REFERENCE if choice.kind is EngineKind.REFERENCE else Level.ENGINE
    try:
        if wish.url is not None:
            behaviour = behave_remote(job, wish.url, observer)
        elif choice.backend is not None:
            behaviour = behave_served(job, choice.backend, observer)
        else:
            # torch takes seconds to import, and need not be there. Its idle threads would wait in
            # a loop, which on a busy machine takes thirty times as long.
            os.environ.setdefault("OMP_WAIT_POLICY", "passive")
            from glmquant.verify.behaviour.referenced import behave_referenced

            behaviour = behave_referenced(job, observer)
    except (EngineError, CheckpointError, NonFiniteError) as error:
        if wish.url is not None:
            return Run(failure=error)
        name = choice.backend.name if choice.backend else "the reference model"
        log = error.log if isinstance(error, EngineError) else ()
        return Run(level, findings=(not_loaded(error, name, level),), log=log)
    return Run(level, behaviour, tuple(judge(behaviour, subject, level, wish.min_acceptance)))


def _job(wish: Wish, choice: Choice, subject: Subject, source: Checkpoint | None) -> Job:
    longest = subject.found.config.get("max_position_embeddings")
    limit = longest // 4 if type(longest) is int else MAX_CONTEXT
    has_source = source is not None and not source.source.is_far  # else it is not all here
    runs_source = has_source and wish.url is None and _holds(choice, _nbytes(source))
    return Job(
        folder=subject.path,
        is_quantized=bool(subject.description),
        has_mtp=bool(subject.mtp_layers),
        source=source.source.path if source is not None and runs_source else None,
        source_has_mtp=bool(source and source.mtp_count),
        with_floor=choice.kind is not EngineKind.ASCEND and _holds(choice, 2 * _nbytes(source)),
        material=wish.material,
        context=max(MIN_CONTEXT, min(MAX_CONTEXT, limit)),
        speculative_tokens=wish.speculative_tokens,
        vocabulary=subject.config.vocab_size if subject.config else 0,
        source_named=source is not None,
        limit_seconds=wish.limit_seconds,
    )


def _holds(choice: Choice, nbytes: int) -> bool:
    """Whether the engine has the memory for so many bytes of weights."""
    if choice.kind is EngineKind.CPU:
        return hosts.engine_nbytes(nbytes) <= hosts.available_nbytes()
    if choice.kind is EngineKind.ASCEND:
        return nbytes <= hosts.count_npus() * A2.usable_nbytes
    return True


def _nbytes(weights: Subject | Checkpoint | None) -> int:
    if weights is None or weights.source.is_far:
        return 0
    if isinstance(weights, Subject):
        return sum(ref.nbytes for ref in weights.tensors.values())
    return sum(ref.nbytes for shard in weights.shards.values() for ref in shard)
