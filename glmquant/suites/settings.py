"""The suite's own options as the user gave them, ``NAME=VALUE`` each, read strictly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NoReturn

from glmquant.errors import UsageError
from glmquant.survey import printable


class Settings:
    """Options that a suite knows, and what was given for them.

    Args:
        suite: Whose they are.
        known: Name → what it says.
        given: Name → text.

    Raises:
        UsageError: One is not known.
    """

    def __init__(self, suite: str, known: Mapping[str, str], given: Mapping[str, str]) -> None:
        self._suite = suite
        self._given = given
        if unknown := sorted(set(given) - set(known)):
            told = ", ".join(f"{name} ({what})" for name, what in known.items())
            self._refuse(unknown[0], told, hint=f"leave --set {printable(unknown[0])}=… out")

    def require_seed(self, seed: int, most: int) -> int:
        """The seed of a measurement, which is no setting of the suite's own.

        Raises:
            UsageError: The suite does not take it.
        """
        if not 0 <= seed <= most:
            raise UsageError(
                f"{self._suite} takes no such seed",
                where="--seed",
                expected=f"0 to {most:,}",
                found=printable(f"{seed:,}"),
                hint="a smaller one, as --seed 1024",
            )
        return seed

    def text(self, name: str) -> str | None:
        """What was given, or None."""
        return self._given.get(name)

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        """One of a few words.

        Raises:
            UsageError: It is none of them.
        """
        value = self._given.get(name, default)
        if value not in choices:
            self._refuse(name, f"one of {', '.join(choices)}")
        return value

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number within bounds.

        Raises:
            UsageError: It is none.
        """
        value = self.number(name, default, low, high)
        if value != int(value):
            self._refuse(name, f"a whole number from {low} to {high}")
        return int(value)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A number within bounds.

        Raises:
            UsageError: It is none.
        """
        try:
            value = float(self._given.get(name, default))
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            self._refuse(name, f"a number from {low:g} to {high:g}")
        return value

    def _refuse(self, name: str, expected: str, hint: str | None = None) -> NoReturn:
        raise UsageError(
            f"a setting of {self._suite} is wrong",
            where=printable(name),
            expected=expected,
            found=printable(self._given.get(name, "")) or "nothing",
            hint=hint or f"--set {printable(name)}=VALUE with another value, or leave it out",
        )
