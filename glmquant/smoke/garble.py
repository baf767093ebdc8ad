"""Is a text one that a sound model and its parsers could have written?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from glmquant.runtime.chat import Message
from glmquant.smoke.findings import Finding, Sign, failed, warned

LEAST_LOOP: Final = 96
"""Characters of a loop at the end of a text: more than a rule in a table, or dots, have."""

ROUNDS: Final = 6
"""How often it has gone round by then. Ours: prose does not say anything six times in a row."""

LONGEST_ROUND: Final = 300
"""Characters of a round that are looked for."""

MOST_IS_LOOP: Final = 0.8
"""A text that is a loop to this share never was an answer."""

THINK_TAGS: Final = ("<think>", "</think>")
CALL_TAGS: Final = ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>")
TURN_MARKS: Final = (
    *("[gMASK]", "<sop>", "<eop>", "<|user|>", "<|assistant|>", "<|system|>", "<|observation|>"),
    *("<|endoftext|>", "<|begin_of_box|>", "<|end_of_box|>"),
)
"""All of GLM-4.5 to 4.7's tokenizer, where they are tokens of their own."""

_REPLACEMENT: Final = "\ufffd"
_AROUND: Final = 60


def excerpt(text: str, place: int = 0) -> str:
    """A part of a text around a place in it.

    Args:
        text: The text.
        place: In it.
    """
    start = max(0, place - _AROUND)
    return ("…" if start else "") + text[start : place + 2 * _AROUND]


def loop_of(text: str) -> tuple[str, int]:
    """What a text says over and over at its end, and how many characters that fills; 0 for none.

    A loop has gone round ``ROUNDS`` times at least and fills ``LEAST_LOOP`` characters.

    Args:
        text: Of an answer.
    """
    text = text.rstrip() or text
    for period in range(1, min(LONGEST_ROUND, len(text) // ROUNDS) + 1):
        filled = period
        while filled < len(text) and text[-1 - filled] == text[-1 - filled + period]:
            filled += 1
        if filled >= max(LEAST_LOOP, ROUNDS * period):
            return text[-period:], filled
    return "", 0


def judge_loop(message: Message) -> tuple[str, bool]:
    """What an answer says over and over, empty for nothing; and whether it says little else.

    Args:
        message: The answer.
    """
    text = message.content or message.reasoning
    round_, filled = loop_of(text)
    return round_, filled >= MOST_IS_LOOP * len(text)


def judge_text(message: Message, *, is_alone: bool = True) -> Iterator[Finding]:
    """What in an answer's text does not belong there.

    Args:
        message: The answer.
        is_alone: No function was offered, so that a call in it is the model's own idea.
    """
    for text in (message.content, message.reasoning):
        # A limit may cut the last character in two.
        whole = text.rstrip(_REPLACEMENT) if message.finish == "length" else text
        if _REPLACEMENT in whole:
            place, count = whole.index(_REPLACEMENT), whole.count(_REPLACEMENT)
            what = f"{count} replacement characters (U+FFFD): bytes that are no UTF-8"
            yield failed(Sign.REPLACED, what, excerpt(whole, place))
        if found := _first(text, TURN_MARKS):
            what = f"{found[0]} stands in the text"
            yield failed(Sign.TURN_MARK, what, excerpt(text, found[1]))
    if found := _first(message.content, CALL_TAGS):
        what = f"the markup of a call, {found[0]}, stands in the answer's text"
        make = warned if is_alone else failed
        yield make(Sign.CALL_TAG, what, excerpt(message.content, found[1]))


def think_tag(text: str) -> str:
    """The part of a text around the first mark of thinking in it; empty where there is none."""
    found = _first(text, THINK_TAGS)
    return excerpt(text, found[1]) if found else ""


def _first(text: str, marks: tuple[str, ...]) -> tuple[str, int] | None:
    found = re.search("|".join(map(re.escape, marks)), text)
    return (found[0], found.start()) if found else None
