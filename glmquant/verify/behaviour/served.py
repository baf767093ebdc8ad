"""A verdict's facts from servers: ours, one after the other, or one that runs already."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from glmquant.errors import EngineError, UsageError
from glmquant.observer import Observer
from glmquant.runtime.client import Client, Scores, remote_failure
from glmquant.runtime.launch import key_here, speculative_config
from glmquant.runtime.observe import Sighting, divergence, observe
from glmquant.runtime.prompts import Material, Questions, ask
from glmquant.runtime.server import Server
from glmquant.runtime.serving import TOP_LOGPROBS, Backend, serving
from glmquant.verify.behaviour.behaviour import Behaviour, figures_of, partings_of, perplexity_of

ANSWER_TOKENS: Final = 48
"""How long answers are."""

MIN_CONTEXT: Final = 128
"""Of what is asked, tokens."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be found out.

    Attributes:
        folder: The checkpoint.
        is_quantized: It is W8A8.
        has_mtp: It has an MTP layer.
        source: The BF16 weights, where they are to be run, too.
        source_has_mtp: They have one.
        with_floor: Run the source in F32, too.
        material: What is asked.
        context: Most tokens of a prompt with its answer.
        speculative_tokens: To draft at a step.
        vocabulary: How many tokens there are; 0 where config.json does not say.
        source_named: The user names a source, whether it is run or not.
        limit_seconds: How long a server may take to be ready, and to answer; None for the usual.
    """

    folder: Path
    is_quantized: bool
    has_mtp: bool
    source: Path | None
    source_has_mtp: bool
    with_floor: bool
    material: Material
    context: int
    speculative_tokens: int
    vocabulary: int = 0
    source_named: bool = False
    limit_seconds: float | None = None


def behave_served(job: Job, backend: Backend, observer: Observer) -> Behaviour:
    """What a checkpoint does in servers of our own: without drafting, with it, then the source.

    Raises:
        EngineError: The checkpoint was not loaded, or its server died or answered wrongly.
    """
    with _server(job, backend, observer, "the checkpoint", 0) as server:
        questions = _questions(job, server.client)
        plain = observe(server.client, questions, observer=observer, with_scores=True)
    seen = Behaviour(
        engine=backend.key,
        name=backend.name,
        material=job.material.origin,
        prompts=len(questions.prompts),
        max_tokens=questions.max_tokens,
        perplexity=perplexity_of([scores.own for scores in plain.scores]),
        has_own_text=job.material.has_own_text,
        vocabulary=job.vocabulary,
        notes=tuple(material_notes(questions)),
    )
    if job.has_mtp:
        with _server(
            job, backend, observer, "the checkpoint with its MTP layer", job.speculative_tokens
        ) as server:
            drafted = observe(server.client, questions, observer=observer)
            if drafted.drafting is None:
                server.fail("the engine counts no drafts", found="/metrics has no such counter")
        seen = replace(
            seen,
            speculative_tokens=job.speculative_tokens,
            partings=partings_of(questions.prompts, plain.answers, drafted.answers),
            drafting=drafted.drafting,
        )
    if job.source is None:
        return seen
    try:
        return _with_source(seen, job, job.source, backend, observer, questions, plain.scores)
    except EngineError as error:
        return replace(seen, source_trouble=f"{error.what}: {error.found}; log {error.where}")


def behave_remote(job: Job, url: str, observer: Observer) -> Behaviour:
    """What a server that runs already does.

    Raises:
        EngineError: It cannot be reached, or answers wrongly.
        UsageError: It serves no MTP drafts of a checkpoint that has an MTP layer.
    """
    seconds = {} if job.limit_seconds is None else {"answer_seconds": job.limit_seconds}
    client = Client(url, remote_failure(url), api_key=key_here(), **seconds)
    try:
        model = client.model
        # A token is made behind every window that is rated.
        length = min(job.context, (model.max_model_len or job.context + 1) - 1)
        if length < MIN_CONTEXT:
            client.strange("/v1/models", f"max_model_len {model.max_model_len}")
        questions = _questions(replace(job, context=length), client)
        drafted = observe(client, questions, observer=observer, with_scores=True, top=1)
    finally:
        client.close()
    if job.has_mtp and drafted.drafting is None:
        raise UsageError(
            "the server drafts no tokens",
            where=url,
            expected="a server with --speculative-config, since the checkpoint has an MTP layer",
            found="no vllm:spec_decode counters in /metrics",
            hint=f"start it with --speculative-config '{speculative_config(1)}'",
        )
    notes = [
        *material_notes(questions),
        "one server answers: with and without drafting was not compared",
    ]
    if Path(model.root).name != job.folder.resolve().name:
        notes.append(f"the server says that it serves {model.root}, not this folder")
    if job.source_named:
        notes.append("a server has one model: the source was compared as files, and not run")
    places = len(drafted.drafting.by_position) if drafted.drafting else 0
    if places not in (0, job.speculative_tokens):
        notes.append(f"the server drafts {places} tokens at a step, whatever was asked here")
    return Behaviour(
        engine="url",
        name=f"the server at {url}",
        material=job.material.origin,
        prompts=len(questions.prompts),
        max_tokens=questions.max_tokens,
        speculative_tokens=places,
        drafting=drafted.drafting,
        perplexity=perplexity_of([scores.own for scores in drafted.scores]),
        has_own_text=job.material.has_own_text,
        vocabulary=job.vocabulary,
        notes=tuple(notes),
    )


def _with_source(
    seen: Behaviour,
    job: Job,
    source: Path,
    backend: Backend,
    observer: Observer,
    questions: Questions,
    scores: tuple[Scores, ...],
) -> Behaviour:
    """The same with what the source does."""
    of_source = replace(job, folder=source, is_quantized=False)
    tokens = job.speculative_tokens if job.has_mtp and job.source_has_mtp else 0
    with _server(of_source, backend, observer, "the source", tokens) as server:
        asked = _questions(job, server.client)
        base = observe(server.client, questions, observer=observer, with_scores=True)
    floor = _floor(of_source, backend, observer, questions, base) if job.with_floor else None
    return replace(
        seen,
        same_tokens=(asked.prompts, asked.windows) == (questions.prompts, questions.windows),
        source_drafting=base.drafting if tokens else None,
        divergence=figures_of(divergence(base.scores, scores)),
        floor=None if floor is None else figures_of(divergence(floor, base.scores)),
        top=TOP_LOGPROBS,
    )


def _floor(
    job: Job, backend: Backend, observer: Observer, questions: Questions, base: Sighting
) -> tuple[Scores, ...]:
    only_text = replace(questions, prompts=())
    with _server(job, backend, observer, "the source in F32", 0, dtype="float32") as server:
        return observe(server.client, only_text, observer=observer, with_scores=True).scores


@contextmanager
def _server(
    job: Job,
    backend: Backend,
    observer: Observer,
    what: str,
    speculative_tokens: int,
    dtype: str | None = None,
) -> Iterator[Server]:
    with serving(
        backend,
        job.folder,
        what=what,
        is_quantized=job.is_quantized,
        # A token is made behind every prompt that is rated, and drafts stand behind an answer.
        max_model_len=job.context + speculative_tokens + 2,
        observer=observer,
        speculative_tokens=speculative_tokens,
        dtype=dtype,
        limit_seconds=job.limit_seconds,
    ) as server:
        yield server


def _questions(job: Job, client: Client) -> Questions:
    return ask(job.material, client, context=job.context, max_tokens=ANSWER_TOKENS)


def material_notes(questions: Questions) -> Iterator[str]:
    """What could not be asked as it was meant."""
    if questions.shortened:
        yield f"cut to fit the context: {', '.join(questions.shortened)}"
    if questions.unfit:
        yield f"not asked, the chat template refused them: {', '.join(questions.unfit)}"
