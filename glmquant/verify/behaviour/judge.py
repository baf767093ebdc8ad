"""What is wrong with a checkpoint's behaviour, and by which bounds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from glmquant.errors import GlmquantError
from glmquant.verify.behaviour.acceptance import judge_acceptance
from glmquant.verify.behaviour.behaviour import Behaviour, Figures
from glmquant.verify.findings import Finding, Level, Severity
from glmquant.verify.remedies import copy_file, quantize_anew, verify_against, verify_with
from glmquant.verify.subject import Subject

NEAR_TIE: Final = 0.25
"""Nats. On an NPU, answers may part where the likeliest token leads by less: logits of 16 to 32
have steps of 0.125 in BF16, and a step of either token's is no defect."""

MAX_KL_MEAN: Final = 2.0e-3
MAX_KL_MEDIAN: Final = 8.0e-4
MIN_SAME_TOP: Final = 0.965
"""Measured on GLM-4-nano with BF16 arithmetic: see ARCHITECTURE.md."""

CHANCE: Final = 2.0
"""Standard errors that a mean or share may be beyond its bound."""

MAX_PERPLEXITY: Final = 1000.0
"""Of text, or a quarter of the vocabulary where that is less: unigrams of GLM-4-nano have 690."""

FEW_TOKENS: Final = 200
"""Of fewer, the median says too little."""

FLOOR_FACTOR: Final = 5.0
"""Where BF16 arithmetic alone is noisier than that of GLM-4-nano, so many times its noise."""


def judge(
    behaviour: Behaviour, subject: Subject, level: Level, min_acceptance: float | None
) -> Iterator[Finding]:
    """What is wrong.

    Args:
        behaviour: What was seen.
        subject: The checkpoint.
        level: Of the findings.
        min_acceptance: The least acceptance rate, where the user names one.
    """
    if behaviour.source_trouble is not None:
        yield Finding(
            "E1",
            Severity.WARNING,
            level,
            "the source was not run beside it: acceptance and distributions were not compared",
            where=behaviour.name,
            expected="an engine that loads the source, too",
            found=behaviour.source_trouble,
            hint=verify_with("reference", subject),
        )
    if behaviour.same_tokens is False:
        yield Finding(
            "S1",
            Severity.ERROR,
            level,
            "the tokenizer gives other token ids than the source's",
            where="tokenizer files: also those that the source does not have",
            expected="the ids of the source for the prompts and the text",
            found="others",
            hint=copy_file(subject, "tokenizer.json"),
        )
    yield from _language(behaviour, subject, level)
    yield from _tokens(behaviour, subject, level)
    if behaviour.speculative_tokens and behaviour.drafting is not None:
        yield from judge_acceptance(
            behaviour.drafting, behaviour.source_drafting, subject, level, min_acceptance
        )
    if behaviour.divergence is not None:
        yield from _distributions(behaviour, behaviour.divergence, subject, level)


def not_loaded(error: GlmquantError, name: str, level: Level) -> Finding:
    """The finding that an engine did not load the checkpoint or stopped answering.

    Args:
        error: What happened.
        name: The engine, for people.
        level: Of the finding.
    """
    return Finding(
        "E1",
        Severity.ERROR,
        level,
        error.what,
        where=f"{name}: {error.where}",
        expected=error.expected or "",
        found=error.found or "",
        hint=error.hint or "",
    )


def _language(behaviour: Behaviour, subject: Subject, level: Level) -> Iterator[Finding]:
    bound = min(MAX_PERPLEXITY, behaviour.vocabulary / 4 or MAX_PERPLEXITY)
    if behaviour.perplexity is None or behaviour.perplexity <= bound:
        return
    yield Finding(
        "E5",
        Severity.WARNING if behaviour.has_own_text else Severity.ERROR,
        level,
        "the text is hardly likelier to the model than chance",
        where=f"the text that was rated, {behaviour.material}",
        expected=f"a perplexity of at most {bound:,.0f}; trained models have less than 50 of code",
        found=f"{behaviour.perplexity:,.0f}",
        hint=verify_against(subject),
    )


def _tokens(behaviour: Behaviour, subject: Subject, level: Level) -> Iterator[Finding]:
    is_exact = behaviour.engine in ("cpu", "reference")
    partings = [
        parting for parting in behaviour.partings or () if is_exact or parting.gap > NEAR_TIE
    ]
    if partings:
        shown = ", ".join(
            f"{each.prompt} at token {each.place + 1} (lead {each.gap:.3f})"
            for each in partings[:4]
        )
        more = f" and {len(partings) - 4} more" if len(partings) > 4 else ""
        expected = "the same tokens: drafting changes the speed alone"
        if not is_exact:
            expected += f", near ties (a lead below {NEAR_TIE} nats) excepted"
        yield Finding(
            "E2",
            Severity.ERROR,
            level,
            "greedy answers differ with and without drafting",
            where=f"{len(partings)} of {behaviour.prompts} prompts",
            expected=expected,
            found=shown + more,
            hint=verify_against(subject),
        )


def bounds(floor: Figures | None) -> tuple[float, float, float]:
    """The most mean and median divergence, and the least share of equal likeliest tokens.

    Args:
        floor: The noise of BF16 arithmetic on the same text, where it was measured.
    """
    mean, median, same = MAX_KL_MEAN, MAX_KL_MEDIAN, MIN_SAME_TOP
    if floor is not None:
        mean = max(mean, FLOOR_FACTOR * floor.kl_mean)
        median = max(median, FLOOR_FACTOR * floor.kl_median)
        same = min(same, 1 - FLOOR_FACTOR / 2 * (1 - floor.same_top))
    return mean, median, same


def _distributions(
    behaviour: Behaviour, found: Figures, subject: Subject, level: Level
) -> Iterator[Finding]:
    mean, median, same = bounds(behaviour.floor)
    # What a short text may be off by chance is not held against the model.
    chance = CHANCE * math.sqrt(same * (1 - same) / found.tokens)
    is_near = found.kl_mean - CHANCE * found.kl_error <= mean
    is_usual = found.kl_median <= median or found.tokens < FEW_TOKENS
    if is_near and is_usual and found.same_top + chance >= same:
        return
    noise = ""
    if behaviour.floor is not None:
        noise = (
            f"; BF16 arithmetic alone: {behaviour.floor.kl_mean:.1e}, "
            f"{behaviour.floor.kl_median:.1e}, {behaviour.floor.same_top:.4f}"
        )
    yield Finding(
        "E4",
        Severity.ERROR,
        level,
        "next-token distributions are not the source's",
        where=f"{found.tokens:,} tokens of text, {behaviour.material}",
        expected=f"KL divergence of at most {mean:.1e} in the mean and {median:.1e} in the median, "
        f"the same likeliest token at {same:.4f} or more{noise}",
        found=f"{found.kl_mean:.1e}, {found.kl_median:.1e}, {found.same_top:.4f}; perplexity "
        f"x {found.perplexity_ratio:.4f}",
        hint=quantize_anew(subject),
    )
