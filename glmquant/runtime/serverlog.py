"""What an engine's log says: its end, and the error behind all that follows from it."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final

from glmquant.survey import printable

TAIL_LINES: Final = 15
"""In an error."""

_READ_NBYTES: Final = 512_000
"""From the end: a failing vLLM writes some 40 kB of tracebacks."""

_COLOURS: Final = re.compile(r"\x1b\[[\d;]*m")
_PREFIX: Final = re.compile(r"^(\(\w+ pid=\d+\) ?)?((ERROR|WARNING|INFO) [\d: -]+\[[^\]]*\] ?)?")
_ERROR: Final = re.compile(r"^([A-Za-z_][\w.]*(?:Error|Exception)\b.*|.*: error: .*)$")
_CARETS: Final = re.compile(r"^[\s^~]*$")
_FOLLOWS: Final = ("Engine core initialization failed", "EngineDeadError", "WorkerProc initial")


def read_tail(log: Path, lines: int = TAIL_LINES) -> tuple[str, ...]:
    """The last lines that say something, without the names of processes before them."""
    return tuple(printable(line, 300) for line in _lines(log)[-lines:])


def read_cause(log: Path) -> str | None:
    """The error that the others follow from, as far as its line tells; None without any."""
    errors = [line for line in _lines(log) if _ERROR.match(line)]
    causes = [line for line in errors if not any(sign in line for sign in _FOLLOWS)]
    return printable((causes or errors or [""])[-1], 500) or None


def _lines(log: Path) -> list[str]:
    with suppress(OSError):
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _READ_NBYTES))
            text = file.read().decode("utf-8", "replace")
        text = _COLOURS.sub("", text)
        lines = (_PREFIX.sub("", line).expandtabs().rstrip() for line in re.split(r"[\r\n]+", text))
        return [line for line in lines if not _CARETS.match(line)]
    return []
