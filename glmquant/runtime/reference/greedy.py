"""Greedy continuation of prompts, all of them a token further with each pass over the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from glmquant.errors import NonFiniteError
from glmquant.runtime.reference.attention import KeyValues
from glmquant.runtime.reference.model import Batch, Model
from glmquant.runtime.reference.saved import Log


@dataclass(slots=True)
class Course:
    """Sequences that are being continued.

    Attributes:
        prompts: Token ids.
        chosen: What was chosen after each prompt.
        gaps: For each chosen token, by how much its log-probability exceeds the second best.
        past: Layer by layer, keys and values of each sequence.
        hidden: ``[tokens, hidden]`` of each sequence, after ``model.norm``, in parts.
    """

    prompts: tuple[tuple[int, ...], ...]
    past: list[list[KeyValues]]
    chosen: list[list[int]] = field(init=False)
    gaps: list[list[float]] = field(init=False)
    hidden: list[list[Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        """Begin with nothing chosen."""
        self.chosen = [[] for _ in self.prompts]
        self.gaps = [[] for _ in self.prompts]
        self.hidden = [[] for _ in self.prompts]

    @property
    def steps(self) -> int:
        """How many tokens were chosen after each prompt."""
        return len(self.chosen[0])

    def next_batch(self) -> Batch:
        """The prompts, or else the tokens that were chosen last."""
        if not self.steps:
            return Batch.of(self.prompts)
        begins = [len(p) + self.steps - 1 for p in self.prompts]
        return Batch.of([tokens[-1:] for tokens in self.chosen], begins)

    def take(self, batch: Batch, tokens: Tensor, gaps: Tensor, hidden: Tensor) -> None:
        """Go a token further; the past has been extended already."""
        parts = torch.split(hidden, list(batch.lengths))
        for at, (token, gap) in enumerate(zip(tokens.tolist(), gaps.tolist(), strict=True)):
            self.chosen[at].append(token)
            self.gaps[at].append(gap)
            self.hidden[at].append(parts[at])


def choose(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest tokens, the first of equal ones.

    Args:
        logits: ``[n, vocabulary]``.

    Returns:
        ``[n]`` int64, and ``[n]`` F32: how far the log-probability of the second best lies below.

    Raises:
        NonFiniteError: The model calculates no numbers.
    """
    wide = logits.float()
    require_finite(wide)
    best = wide.log_softmax(-1).topk(2, dim=-1).values
    return wide.argmax(-1), best[:, 0] - best[:, 1]


def require_finite(values: Tensor) -> None:
    """No NaN and no Inf.

    Raises:
        NonFiniteError: There is one.
    """
    if not bool(values.isfinite().all()):
        raise NonFiniteError(
            "the model does not calculate numbers",
            where="its logits",
            expected="finite ones",
            found="NaN or Inf",
            hint="glmquant verify names the tensor",
        )


def recall(course: Course, model: Model, steps: int, log: Log) -> None:
    """Take from the log what an interrupted run has done of ``steps`` passes."""
    while course.steps < steps:
        batch = course.next_batch()
        record = _empty_record(model, batch)
        if not log.recall(record):
            return
        tokens, gaps, hidden, *rest = record
        pairs = iter(rest)
        for layer in course.past:
            for held, keys in zip(layer, pairs, strict=False):
                held.append(keys, next(pairs))
        course.take(batch, tokens, gaps, hidden)


def step(course: Course, model: Model, log: Log) -> None:
    """Choose a token more of each sequence: one pass over the weights."""
    batch = course.next_batch()
    hidden = model.run(batch, course.past)
    tokens, gaps = choose(model.head()(hidden[batch.ends]))
    fresh = [
        part[-count:]
        for layer in course.past
        for held, count in zip(layer, batch.lengths, strict=True)
        for part in (held.keys, held.values)
    ]
    log.keep([tokens, gaps, hidden, *fresh])
    course.take(batch, tokens, gaps, hidden)


def _empty_record(model: Model, batch: Batch) -> list[Tensor]:
    config, count = model.config, len(batch.lengths)
    heads = (config.num_key_value_heads, config.head_dim)
    dtype = model.weights.dtype
    past = [
        torch.empty(length, *heads, dtype=dtype)
        for _ in range(config.num_hidden_layers)
        for length in batch.lengths
        for _ in ("keys", "values")
    ]
    return [
        torch.empty(count, dtype=torch.int64),
        torch.empty(count, dtype=torch.float32),
        torch.empty(len(batch.tokens), config.hidden_size, dtype=dtype),
        *past,
    ]


def sequences_of(course: Course) -> Sequence[tuple[int, ...]]:
    """Each prompt and what was chosen after it."""
    return [(*p, *c) for p, c in zip(course.prompts, course.chosen, strict=True)]
