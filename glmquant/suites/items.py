"""What an item is called, so that the same question is found in the run of another suite."""

from __future__ import annotations

import hashlib


def item_name(question: str) -> str:
    """A digest of a question's text, whatever stands between its words.

    Args:
        question: As the data set has it, without what a suite puts around it.
    """
    text = " ".join(question.split())
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
