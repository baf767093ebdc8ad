"""Are draft tokens accepted: as often as the source's, or at all?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from glmquant.runtime.observed import Drafting
from glmquant.verify.findings import Finding, Level, Severity
from glmquant.verify.remedies import add_mtp, quantize_anew, verify_against
from glmquant.verify.subject import Subject

MAX_SHIFT: Final = 0.05
"""By how much an acceptance rate may differ from the source's, up or down."""

FEW_DRAFTS: Final = 400
"""With fewer, chance alone moves a rate by more: three standard errors are allowed then."""

MIN_ACCEPTANCE: Final = 0.3
LOW_ACCEPTANCE: Final = 0.6
"""Of the first token of a draft, without a source: an error below the one, a warning below the
other. Later tokens are accepted less often by nature."""


def judge_acceptance(
    drafting: Drafting,
    source: Drafting | None,
    subject: Subject,
    level: Level,
    min_acceptance: float | None,
) -> Iterator[Finding]:
    """What is wrong with the acceptance of drafts.

    Args:
        drafting: The checkpoint's.
        source: The source's on the same prompts, where it was run.
        subject: The checkpoint.
        level: Of the findings.
        min_acceptance: The least rate over all draft tokens, where the user names one: it counts
            in any case.
    """
    if drafting.draft_tokens == 0:
        hint = add_mtp(subject, "--replace-mtp")
        yield _finding("nothing was drafted", "drafts at each step", drafting, hint, level)
        return
    if min_acceptance is not None and drafting.rate < min_acceptance:
        yield _finding(
            "fewer draft tokens are accepted than was asked for",
            f"an acceptance rate of {min_acceptance:g} or more",
            drafting,
            verify_against(subject),
            level,
        )
    if source is not None and source.draft_tokens:
        yield from _beside(source, drafting, subject, level)
    elif min_acceptance is None:
        yield from _alone(drafting, subject, level)


def _alone(drafting: Drafting, subject: Subject, level: Level) -> Iterator[Finding]:
    """By the bounds for a checkpoint without a source."""
    rate = first_rate_at_best(drafting)
    first = ", of the first token drafted" if drafting.rates[1:] else ""
    if rate < MIN_ACCEPTANCE:
        what, least, severity = "hardly ever", f"{MIN_ACCEPTANCE:g} or more", Severity.ERROR
    elif rate < LOW_ACCEPTANCE:
        what, severity = "seldom", Severity.WARNING
        least = f"{LOW_ACCEPTANCE:g} or more, or the source's"
    else:
        return
    yield _finding(
        f"draft tokens are {what} accepted",
        f"an acceptance rate of {least}{first}",
        drafting,
        verify_against(subject),
        level,
        severity,
    )


def first_rate_at_best(drafting: Drafting) -> float:
    """The acceptance rate of the first token drafted, and what chance may have taken from it.

    Args:
        drafting: What was counted.
    """
    rate = drafting.rates[0] if drafting.rates else drafting.rate
    if drafting.drafts < FEW_DRAFTS:
        rate += 1.5 / math.sqrt(max(drafting.drafts, 1))  # three standard errors
    return rate


def _beside(
    source: Drafting, drafting: Drafting, subject: Subject, level: Level
) -> Iterator[Finding]:
    """By what the source's MTP layer reaches; a rise is as suspect as a fall."""
    shift, bound = drafting.rate - source.rate, allowed_shift(drafting, source)
    if abs(shift) > bound + 1e-9:
        less = shift < 0
        yield _finding(
            f"draft tokens are accepted {'less' if less else 'more'} often than the source's",
            f"{source.rate:.3f} as the source's on the same prompts, ± {bound:.3f}",
            drafting,
            # A rise: the body says what is easier to guess.
            add_mtp(subject, "--replace-mtp") if less else quantize_anew(subject),
            level,
        )


def allowed_shift(drafting: Drafting, source: Drafting) -> float:
    """By how much two acceptance rates may differ: ± 0.05, more where few tokens were drafted."""
    fewest = min(drafting.draft_tokens, source.draft_tokens)
    if fewest >= FEW_DRAFTS:
        return MAX_SHIFT
    spread = math.sqrt(2 * max(source.rate * (1 - source.rate), 0.05) / fewest)
    return max(MAX_SHIFT, 3 * spread)


def rate_text(drafting: Drafting) -> str:
    """An acceptance rate for people: ``0.803 (453 of 564), 1.80 tokens a step``."""
    text = (
        f"{drafting.rate:.3f} ({drafting.accepted:,} of {drafting.draft_tokens:,}), "
        f"{drafting.mean_length:.2f} tokens a step"
    )
    if len(drafting.by_position) > 1:
        text += f"; by position {', '.join(f'{rate:.3f}' for rate in drafting.rates)}"
    return text


def _finding(
    what: str,
    expected: str,
    drafting: Drafting,
    hint: str,
    level: Level,
    severity: Severity = Severity.ERROR,
) -> Finding:
    where, found = "the MTP layer's drafts", rate_text(drafting)
    return Finding("E3", severity, level, what, where, expected, found, hint)
