"""A verdict's facts from the reference model. Needs torch and transformers."""

from __future__ import annotations

from dataclasses import replace

from glmquant.errors import CheckpointError
from glmquant.observer import Observer
from glmquant.runtime.prompts import Questions, ask
from glmquant.runtime.reference import Precision, Reference, divergence
from glmquant.runtime.reference.tokenizer import Tokenizer
from glmquant.verify.behaviour.behaviour import Behaviour, figures_of, perplexity_of
from glmquant.verify.behaviour.served import ANSWER_TOKENS, Job, material_notes


def behave_referenced(job: Job, observer: Observer) -> Behaviour:
    """What a checkpoint does by our own arithmetic, beside what its source does.

    Raises:
        CheckpointError: A tensor is missing or has another shape or dtype, or the tokenizer is.
        NonFiniteError: It does not calculate with numbers.
        GlmquantError: As ``Reference``.
    """
    questions = ask(job.material, _tokenizer(job), context=job.context, max_tokens=ANSWER_TOKENS)
    _require_known(job, questions)
    model = Reference(job.folder)
    drafted = job.speculative_tokens if job.has_mtp else 0
    _, drafting = model.continue_greedily(questions.prompts, ANSWER_TOKENS, drafted, observer)
    seen = Behaviour(
        engine="reference",
        name="the reference model in torch",
        material=job.material.origin,
        prompts=len(questions.prompts),
        max_tokens=ANSWER_TOKENS,
        speculative_tokens=drafted,
        drafting=drafting,
        has_own_text=job.material.has_own_text,
        vocabulary=job.vocabulary,
        notes=tuple(material_notes(questions)),
    )
    if job.source is None:
        rated = model.prompt_logprobs(questions.windows, observer)
        return replace(seen, perplexity=perplexity_of(rated))
    source, exact = Reference(job.source), Reference(job.source, Precision.FLOAT32)
    source_drafting = None
    if drafted and job.source_has_mtp:
        _, source_drafting = source.continue_greedily(
            questions.prompts, ANSWER_TOKENS, drafted, observer
        )
    asked = ask(job.material, Tokenizer(job.source), context=job.context, max_tokens=ANSWER_TOKENS)
    figures = figures_of(divergence(source, model, questions.windows, observer))
    return replace(
        seen,
        perplexity=figures.perplexity,
        same_tokens=(asked.prompts, asked.windows) == (questions.prompts, questions.windows),
        source_drafting=source_drafting,
        divergence=figures,
        floor=figures_of(divergence(exact, source, questions.windows, observer)),
    )


def _require_known(job: Job, questions: Questions) -> None:
    texts = (*(prompt.tokens for prompt in questions.prompts), *questions.windows)
    greatest = max((max(text, default=0) for text in texts), default=0)
    if job.vocabulary and greatest >= job.vocabulary:
        raise CheckpointError(
            "the tokenizer gives ids that the model has no embedding of",
            where=f"{job.folder}: tokenizer files",
            expected=f"ids below vocab_size, {job.vocabulary:,}",
            found=f"{greatest:,}",
            hint="copy the tokenizer's files from the BF16 weights, and remove those it has not",
        )


def _tokenizer(job: Job) -> Tokenizer:
    """The checkpoint's own, or its source's where it has none: they have to be the same."""
    try:
        return Tokenizer(job.folder)
    except CheckpointError:
        if job.source is None:
            raise
        return Tokenizer(job.source)
