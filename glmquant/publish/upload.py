"""The hub's own program, run as a child: it has the token, and goes on where it stopped."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from glmquant.errors import HubError

_TAIL_NBYTES: Final = 20_000
_TAIL_LINES: Final = 3

Say = Callable[[bytes], None]
"""Takes what the program says, as it says it."""


def find_modelscope() -> str | None:
    """The program ``modelscope``: that of this interpreter's environment, else one on the PATH."""
    beside = Path(sys.executable).parent / "modelscope"
    if os.access(beside, os.X_OK):
        return str(beside)
    return shutil.which("modelscope")


def run_modelscope(program: str, words: Sequence[str], what: str, hint: str, say: Say) -> None:
    """Run one of its commands to the end.

    Args:
        program: The program.
        words: The command, its first word ``modelscope``.
        what: What is not done where it fails, as a clause.
        hint: What to do then.
        say: Is given its words.

    Raises:
        HubError: It failed; with its last lines.
    """
    try:
        process = subprocess.Popen(
            [program, *words[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except OSError as error:
        raise HubError(
            what,
            where=program,
            expected="ModelScope's program",
            found=error.strerror or str(error),
            hint=hint,
        ) from error
    try:
        tail = _listen(process, say)
        code = process.wait()
    except BaseException:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)  # it then saves how far it is
        with suppress(subprocess.TimeoutExpired):
            process.wait(10.0)
        process.kill()
        process.wait()
        raise
    if code:
        raise HubError(
            what,
            where=" ".join(words[:3]),
            expected="exit code 0",
            found=f"exit code {code}: {_last_words(tail)}",
            hint=hint,
        )


def _listen(process: subprocess.Popen[bytes], say: Say) -> bytes:
    """Pass on what it says; give the end of it."""
    tail = b""
    if process.stdout is not None:
        while chunk := os.read(process.stdout.fileno(), 1 << 16):
            tail = (tail + chunk)[-_TAIL_NBYTES:]
            say(chunk)
    return tail


def _last_words(tail: bytes) -> str:
    """The end of what it said: lines with an error, else the last ones."""
    text = tail.decode("utf-8", "replace").replace("\r", "\n")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    wrong = [line for line in lines if "error" in line.lower() or "fail" in line.lower()]
    return " | ".join((wrong or lines)[-_TAIL_LINES:])[:600] or "it said nothing"
