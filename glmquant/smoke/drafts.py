"""Are drafts accepted? By the server's counters, before and after all that was asked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from glmquant.errors import EngineError
from glmquant.runtime.client import Client
from glmquant.runtime.observed import Counters, Drafting
from glmquant.smoke import requests
from glmquant.smoke.findings import Finding, Result, Sign, failed, warned
from glmquant.verify.behaviour.acceptance import (
    LOW_ACCEPTANCE,
    MIN_ACCEPTANCE,
    first_rate_at_best,
    rate_text,
)

NO_COUNTERS: Final = "the server counts no drafts: speculative decoding is off"

FEWEST_DRAFTS: Final = 20
"""With fewer, acceptance is not judged."""

_SIGMAS: Final = 1.96
"""Within so many standard errors lie 95 % of what chance does."""


def read_counters(client: Client) -> Counters | str:
    """The server's counters so far, those of drafts among them, or why there are none.

    Args:
        client: Asks the server.
    """
    try:
        counters = client.counters()
        return NO_COUNTERS if counters.drafting is None else counters
    except EngineError as error:
        return f"/metrics tells nothing: {error.what}"


def judge_drafts(before: Counters | str, after: Counters | str, tokens: int) -> Result:
    """What became of the drafts in between.

    Args:
        before: The counters, or why there are none.
        after: The same later.
        tokens: That were made for us meanwhile.
    """
    if isinstance(before, str) or isinstance(after, str):
        text = before if isinstance(before, str) else str(after)
        return Result(requests.DRAFTS, text, is_judged=False)
    if after.is_of_another(before):
        text = "the counters are of another process than before: the server was started anew"
        return Result(requests.DRAFTS, text, is_judged=False)
    counted = _between(before, after)
    if counted is None:
        text = "the counters contradict each other: was the server started anew meanwhile?"
        return Result(requests.DRAFTS, text, is_judged=False)
    findings = tuple(check_drafts(counted, tokens))
    if counted.drafts < FEWEST_DRAFTS and not findings:
        text = f"{counted.drafts} drafts: too few to judge"
        return Result(requests.DRAFTS, text, is_judged=False)
    if not counted.draft_tokens:
        return Result(requests.DRAFTS, "nothing was drafted", findings)
    low, high = interval(counted.accepted, counted.draft_tokens)
    text = f"{rate_text(counted)}; 95 % between {low:.3f} and {high:.3f}"
    return Result(requests.DRAFTS, text, findings)


def interval(count: int, among: int) -> tuple[float, float]:
    """Where a rate lies with 95 % (Wilson's score interval), as if each token were on its own.

    Args:
        count: How often it happened.
        among: Of so many, one at least.
    """
    rate, z = count / among, _SIGMAS**2 / among
    spread = math.sqrt(z * rate * (1 - rate) + z * z / 4)
    low, high = ((rate + z / 2 + side * spread) / (1 + z) for side in (-1, 1))
    return max(0.0, low), min(1.0, high)


def check_drafts(drafting: Drafting, tokens: int) -> Iterator[Finding]:
    """What is wrong with the acceptance of drafts.

    Args:
        drafting: What the server counted meanwhile.
        tokens: That were made for us meanwhile.
    """
    if drafting.draft_tokens <= 0:
        if tokens >= FEWEST_DRAFTS:
            what = f"{tokens:,} tokens were made, and the server counts no draft among them"
            yield warned(Sign.NO_DRAFTS, what)
        return
    if drafting.drafts < FEWEST_DRAFTS:
        return
    best = first_rate_at_best(drafting)
    if best < MIN_ACCEPTANCE:
        what = f"draft tokens are hardly ever accepted: {MIN_ACCEPTANCE:g} or more is expected"
        yield failed(Sign.REJECTED, what, rate_text(drafting))
    elif best < LOW_ACCEPTANCE:
        what = f"draft tokens are seldom accepted: {LOW_ACCEPTANCE:g} or more is usual"
        yield warned(Sign.SELDOM, what, rate_text(drafting))


def _between(was: Counters, now: Counters) -> Drafting | None:
    """What was counted meanwhile; None where a counter fell, or more was accepted than drafted."""
    before, after = was.drafting, now.drafting
    if before is None or after is None:
        return None
    places = zip(after.by_position, (*before.by_position, *[0] * 99), strict=False)
    found = Drafting(
        after.drafts - before.drafts,
        after.draft_tokens - before.draft_tokens,
        after.accepted - before.accepted,
        tuple(late - early for late, early in places),
    )
    is_less = min(*found[:3], *found.by_position, 0) < 0 or found.accepted > found.draft_tokens
    return None if is_less else found
