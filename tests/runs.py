"""Runs of suites that nobody has made."""

from __future__ import annotations

from typing import Any

from glmquant.results import Result
from glmquant.runs import Item, Run


def a_run(right: int, of: int, **more: Any) -> Run:
    """A run of gsm8k, the first so many of its items answered rightly.

    Args:
        right: How many.
        of: How many items there are.
        more: Fields of the run that are otherwise.
    """
    items = tuple(Item(name=f"question-{place}", correct=place < right) for place in range(of))
    figure = Result(
        dataset="gsm8k", metric="accuracy", value=round(100 * right / of, 2), unit="%", items=of
    )
    fields: dict[str, Any] = {
        "suite": "aisbench",
        "suite_version": "3.1",
        "mode": "accuracy",
        "dataset": "gsm8k",
        "date": "2026-08-22T10:15:00Z",
        "model": "glm",
        "engine": "vLLM 0.23.0",
        "results": (figure,),
        "items": items,
    }
    return Run(**(fields | more))
