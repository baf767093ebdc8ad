"""One thing that was looked at: how it is, and what to do where it is not as it should be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any


class State(str, Enum):
    """How a thing is."""

    OK = "ok"
    """As it should be."""
    NOTE = "note"
    """Absent or not told; nothing is wrong with that by itself."""
    WARNING = "warning"
    """It works, but costs something or may fail."""
    PROBLEM = "problem"
    """What it is for does not work."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report.

    Attributes:
        group: ``python``, ``npu``, ``host`` or ``hubs``.
        name: What was looked at.
        state: How it is.
        text: What was found, in a line.
        remedy: What to do or type; empty where nothing has to be done.
        source: Where it is written that it has to be otherwise: project, file, version.
    """

    group: str
    name: str
    state: State
    text: str
    remedy: str = ""
    source: str = ""

    def fields(self) -> dict[str, Any]:
        """All of it for JSON."""
        return {
            "group": self.group,
            "name": self.name,
            "state": self.state.value,
            "text": self.text,
            "remedy": self.remedy or None,
            "source": self.source or None,
        }


def verdict(checks: Iterable[Check]) -> str:
    """The report in a line: ``1 problem and 2 warnings``.

    Args:
        checks: All that was looked at.
    """
    states = [check.state for check in checks]
    counts = [
        f"{count} {state.value}{'s' * (count > 1)}"
        for state in (State.PROBLEM, State.WARNING)
        if (count := states.count(state))
    ]
    return " and ".join(counts) or "nothing speaks against it"
