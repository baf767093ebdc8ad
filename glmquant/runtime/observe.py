"""Asks a running server all that a verdict needs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from glmquant.observer import Observer
from glmquant.runtime.client import Client, Scores
from glmquant.runtime.observed import Answer, Divergence, Drafting
from glmquant.runtime.prompts import Questions
from glmquant.runtime.serving import TOP_LOGPROBS


class Sighting(NamedTuple):
    """What one server answered.

    Attributes:
        answers: To each prompt.
        drafting: What the counters of speculative decoding rose by meanwhile; None without any.
        scores: Of each window of text; empty where they were not asked for.
    """

    answers: tuple[Answer, ...]
    drafting: Drafting | None
    scores: tuple[Scores, ...]


def observe(
    client: Client,
    questions: Questions,
    *,
    observer: Observer,
    with_scores: bool = False,
    top: int = TOP_LOGPROBS,
) -> Sighting:
    """Ask one thing after the other, so that no two share a batch and every run is alike.

    Args:
        client: Of the server.
        questions: What to ask.
        observer: Is told how far it is.
        with_scores: Have the text rated, too.
        top: How many of the likeliest next tokens a rating tells.

    Raises:
        EngineError: The server does not answer as vLLM does.
    """
    before = client.counters()
    answers = []
    for number, prompt in enumerate(questions.prompts, 1):
        observer.tell(f"asking the engine, prompt {number} of {len(questions.prompts)}")
        answers.append(client.continue_greedily(prompt, questions.max_tokens))
    after = client.counters()
    scores = []
    for number, window in enumerate(questions.windows if with_scores else (), 1):
        observer.tell(f"rating the text, window {number} of {len(questions.windows)}")
        scores.append(client.score(window, top))
    drafting = _difference(before.drafting, after.drafting)
    if drafting is not None and after.is_of_another(before):
        client.strange("/metrics", "counters of another process: the server began anew meanwhile")
    if drafting is not None and not is_possible(drafting):
        client.strange("/metrics", f"counters that cannot be: from {before} to {after}")
    return Sighting(tuple(answers), drafting, tuple(scores))


def is_possible(drafting: Drafting) -> bool:
    """Whether counters can have risen like that: not where the server began anew meanwhile."""
    counts = (drafting.drafts, drafting.accepted, *drafting.by_position)
    return (
        min(counts) >= 0
        and drafting.accepted <= drafting.draft_tokens
        and sum(drafting.by_position) == drafting.accepted
    )


def _difference(before: Drafting | None, after: Drafting | None) -> Drafting | None:
    if after is None or before is None:
        return after
    places = before.by_position + (0,) * len(after.by_position)
    return Drafting(
        after.drafts - before.drafts,
        after.draft_tokens - before.draft_tokens,
        after.accepted - before.accepted,
        tuple(now - then for now, then in zip(after.by_position, places, strict=False)),
    )


def divergence(base: tuple[Scores, ...], other: tuple[Scores, ...]) -> Divergence:
    """How two models' ratings of the same windows differ.

    A server tells the likeliest tokens alone. Those that both tell are taken one by one, all others
    as one: the divergence of such a coarser pair is at most that of the whole.
    """
    parts = [_window(one, two) for one, two in zip(base, other, strict=True)]
    return Divergence(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _window(base: Scores, other: Scores) -> Divergence:
    # [tokens, top, top]: where a token of the base's list stands in the other's.
    match = (base.ids[:, :, None] == other.ids[:, None, :]) & (base.ids[:, :, None] >= 0)
    shared = match.any(2)
    p = np.where(shared, np.exp(base.logprobs), 0.0)
    place = match.argmax(2)
    q = np.where(shared, np.exp(np.take_along_axis(other.logprobs, place, 1)), 0.0)
    rest_p = np.clip(1.0 - p.sum(1), 0.0, 1.0)
    rest_q = np.clip(1.0 - q.sum(1), 1e-12, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * (np.log(p) - np.log(q)), 0.0)
        rest = np.where(rest_p > 0, rest_p * (np.log(rest_p) - np.log(rest_q)), 0.0)
    kl = np.maximum(terms.sum(1) + rest, 0.0)
    # Logits in BF16 tie often, and which of two equal tokens comes first says nothing.
    first = match[:, 0, :] & (other.logprobs >= other.logprobs[:, :1])
    same = first.any(1)
    return Divergence(kl, same, -base.own, -other.own)
