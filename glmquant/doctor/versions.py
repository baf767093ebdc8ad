"""Versions of Python packages, compared by their numbers alone.

``2.10.0.post4+cpu`` counts as 2.10.0: pre-, post- and local parts tell builds apart, and which of
them go together is not written down anywhere. Only what differs in the numbers is called a clash.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Final

Numbers = tuple[int, ...]

_NUMBERS: Final = re.compile(r"\s*v?(\d+(?:\.\d+)*)")
_PART: Final = re.compile(r"(==|>=|<=|<|>|!=)(\S+)")
_COMPARED: Final[dict[str, Callable[[Numbers, Numbers], bool]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    "<": operator.lt,
    ">": operator.gt,
}


def numbers_of(version: str) -> Numbers | None:
    """``2.10.0.post4+cpu`` → ``(2, 10)``; None where a text begins with no number.

    Args:
        version: As a distribution calls itself.

    Returns:
        The numbers without final zeros, so that 2.10 equals 2.10.0.
    """
    match = _NUMBERS.match(version)
    if match is None:
        return None
    numbers = [int(part) for part in match[1].split(".")]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def satisfies(version: str, wanted: str) -> bool:
    """Whether a version fits a requirement, as far as numbers tell.

    Args:
        version: The version that is there.
        wanted: ``>=4.57.4,<5``; parts that cannot be read are passed over.

    Returns:
        False only where the numbers speak against it.
    """
    found = numbers_of(version)
    if found is None:
        return True
    for text in wanted.split(","):
        part = _PART.fullmatch(text.strip())
        bound = numbers_of(part[2]) if part else None
        if part and bound is not None and not _COMPARED[part[1]](found, bound):
            return False
    return True
