"""What a reply says, read with more care than some suites take."""

from __future__ import annotations

import re
from typing import Final

# Replies may be long and say one thing over and over: no two repeats stand beside each other that
# take the same characters, and a number has at most ten groups of thousands.
_NUMBER: Final = re.compile(r"-?\d{1,3}(?:,\d{3}){1,10}(?:\.\d+)?(?!,?\d)|-?\d+(?:\.\d+)?|-?\.\d+")
_LETTER: Final = re.compile(
    r"answer(?:\s+is)?(?:\s*[:：])?[\s*_$({\[]*(?:\\(?:boxed|text|mathrm)[\s*_$({\[]*)?"
    r"([A-D])(?![A-Za-z])",
    re.IGNORECASE,
)
_NEARLY: Final = 1e-6


def last_number(text: str) -> str:
    """The last number of a text, without what parts its thousands; empty where there is none.

    Args:
        text: ``so he pays $18,000.`` gives ``18000``.
    """
    found = _NUMBER.findall(text.replace("−", "-").replace("{,}", ",").replace("\\,", ""))
    return found[-1].replace(",", "") if found else ""


def last_letter(text: str) -> str:
    """The last letter of A to D that a text calls its answer; empty where there is none.

    Args:
        text: ``**Answer: (B)**`` gives ``B``.
    """
    found = _LETTER.findall(text)
    return found[-1].upper() if found else ""


def is_number(answer: str, expected: str) -> bool:
    """Whether two texts are the same number.

    Args:
        answer: What was said.
        expected: What is right.
    """
    try:
        return abs(float(answer) - float(expected.replace(",", ""))) < _NEARLY
    except ValueError:
        return False


def without_thinking(text: str) -> str:
    """What stands behind the last ``</think>``.

    Args:
        text: A reply.
    """
    return text.rpartition("</think>")[2]
