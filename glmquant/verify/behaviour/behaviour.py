"""What a checkpoint was seen to do, beside what its source does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glmquant.runtime.observed import Answer, Divergence, Drafting, Prompt


class Parting(NamedTuple):
    """Where two answers to one prompt part.

    Attributes:
        prompt: Its name.
        place: The first token that differs, counted from 0.
        gap: By how much the first answer's choice there was the likelier, in nats.
    """

    prompt: str
    place: int
    gap: float


class Figures(NamedTuple):
    """A divergence in figures, as llama.cpp's ``--kl-divergence`` tells it.

    Attributes:
        tokens: Of the text.
        kl_mean: Mean Kullback-Leibler divergence, nats.
        kl_error: Standard error of that mean.
        kl_median: Its median.
        kl_tail: Its 99.9 % quantile.
        same_top: Share of tokens at which both think the same the likeliest.
        base_perplexity: The base's perplexity of the text.
        perplexity: The other model's.
    """

    tokens: int
    kl_mean: float
    kl_error: float
    kl_median: float
    kl_tail: float
    same_top: float
    base_perplexity: float
    perplexity: float

    @property
    def perplexity_ratio(self) -> float:
        """The other's over the base's."""
        return self.perplexity / self.base_perplexity


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What a checkpoint was seen to do.

    Attributes:
        engine: ``vllm-ascend``, ``cpu``, ``url`` or ``reference``.
        name: The same for people, with versions.
        material: Where prompts and text are from.
        prompts: How many were continued.
        max_tokens: By how many tokens each.
        speculative_tokens: How many the MTP layer drafted at a step; 0 where it did not.
        partings: Answers that differ with and without drafting; None where only one was had.
        drafting: What became of the drafts.
        source_drafting: The same of the source's MTP layer.
        divergence: From the source's distributions.
        floor: Of the source's in BF16 arithmetic from its own in F32: the least that is noise.
        top: How many tokens of a distribution were compared one by one; None for all of them.
        perplexity: Of the text; None where it was not rated.
        has_own_text: The text is the user's.
        vocabulary: How many tokens there are; 0 where config.json does not say.
        same_tokens: The source's tokenizer gives the same ids; None where only one was asked.
        source_trouble: Why the source was not run beside it, though it was named.
        notes: What else is to be known, a sentence each.
    """

    engine: str
    name: str
    material: str
    prompts: int
    max_tokens: int
    speculative_tokens: int = 0
    partings: tuple[Parting, ...] | None = None
    drafting: Drafting | None = None
    source_drafting: Drafting | None = None
    divergence: Figures | None = None
    floor: Figures | None = None
    top: int | None = None
    perplexity: float | None = None
    has_own_text: bool = False
    vocabulary: int = 0
    same_tokens: bool | None = None
    source_trouble: str | None = None
    notes: tuple[str, ...] = ()

    def fields(self) -> dict[str, Any]:
        """All of it for JSON."""
        return {
            "engine": self.engine,
            "name": self.name,
            "material": self.material,
            "prompts": self.prompts,
            "tokens": self.prompts * self.max_tokens,
            "num_speculative_tokens": self.speculative_tokens,
            "partings": None
            if self.partings is None
            else [parting._asdict() for parting in self.partings],
            "acceptance": _drafting_fields(self.drafting),
            "source_acceptance": _drafting_fields(self.source_drafting),
            "divergence": _figures_fields(self.divergence),
            "noise_floor": _figures_fields(self.floor),
            "top_logprobs": self.top,
            "perplexity": self.perplexity,
            "same_tokens": self.same_tokens,
            "source_trouble": self.source_trouble,
            "notes": list(self.notes),
        }


def figures_of(found: Divergence) -> Figures:
    """The figures of a divergence of at least one token."""
    tail = np.quantile(found.kl, 0.999)
    return Figures(
        tokens=len(found.kl),
        kl_mean=float(found.kl.mean()),
        kl_error=float(found.kl.std() / np.sqrt(len(found.kl))),
        kl_median=float(np.median(found.kl)),
        kl_tail=float(tail),
        same_top=float(found.same_top.mean()),
        base_perplexity=float(np.exp(found.base_nll.mean())),
        perplexity=float(np.exp(found.nll.mean())),
    )


def perplexity_of(logprobs: Sequence[NDArray[Any]]) -> float | None:
    """The perplexity of texts whose own tokens have these log-probabilities; None of none."""
    if not logprobs:
        return None
    return float(np.exp(-np.concatenate(logprobs).astype(np.float64).mean()))


def partings_of(
    prompts: Sequence[Prompt], first: Sequence[Answer], second: Sequence[Answer]
) -> tuple[Parting, ...]:
    """Where answers to the same prompts part."""
    found = []
    for prompt, one, two in zip(prompts, first, second, strict=True):
        pairs = zip(one.tokens, two.tokens, strict=True)
        place = next((number for number, (a, b) in enumerate(pairs) if a != b), None)
        if place is not None:
            found.append(Parting(prompt.name, place, one.gaps[place]))
    return tuple(found)


def _drafting_fields(found: Drafting | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return found._asdict() | {
        "rate": round(found.rate, 6),
        "mean_length": round(found.mean_length, 6),
        "rate_by_position": [round(rate, 6) for rate in found.rates],
    }


def _figures_fields(found: Figures | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return found._asdict() | {"perplexity_ratio": found.perplexity_ratio}
