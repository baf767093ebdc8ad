"""A program of the machine that is asked something, and ended where it does not answer."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

_MAX_NBYTES: Final = 1_000_000


class Ran(NamedTuple):
    """What became of it.

    Attributes:
        output: What it said on stdout, and on stderr where it failed.
        failure: Why it gave no answer; None where it ended with 0.
    """

    output: str
    failure: str | None

    @property
    def last_line(self) -> str:
        """The end of what it said, for a message."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return lines[-1][:200] if lines else ""


def run_program(words: Sequence[str], limit_seconds: float) -> Ran:
    """Run a program without input, with all that it starts ended at the limit.

    Args:
        words: The program and its arguments.
        limit_seconds: How long it may take.

    Returns:
        What it said; that it is missing, fails or hangs is no error here.
    """
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        return Ran("", f"it cannot be run: {error.strerror or error}")
    try:
        output, errors = process.communicate(timeout=limit_seconds)
    except subprocess.TimeoutExpired:
        _end(process)
        return Ran("", f"no answer within {limit_seconds:g} s")
    except BaseException:
        _end(process)
        raise
    text = output[:_MAX_NBYTES].decode("utf-8", "replace")
    if process.returncode:
        text += errors[-_MAX_NBYTES:].decode("utf-8", "replace")
        return Ran(text, f"exit code {process.returncode}")
    return Ran(text, None)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the program and its children, so that none holds the pipe, and take the exit code."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # one that no signal reaches: in the kernel
        process.wait(1.0)
