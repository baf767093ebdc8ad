"""The commands of an install: each in a group of its own, its words in a log, ended with us."""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from glmquant.runtime.guard import PR_SET_PDEATHSIG
from glmquant.storage import reading, writing

_GRACE_SECONDS: Final = 5.0
_TAIL_LINES: Final = 15
_TAIL_NBYTES: Final = 20_000

_PIP_PLACES: Final = frozenset(
    f"PIP_{name}"
    for name in ("TARGET", "PREFIX", "ROOT", "USER", "PYTHON", "REQUIREMENT", "CONSTRAINT")
)
"""They would send packages elsewhere or add others; index, proxy and CA are the user's own."""


class CommandError(Exception):
    """A command ended with another exit code than 0.

    Args:
        command: As it may be shown, without a password.
        code: The exit code; negative for a signal.
        tail: The end of what it said.
    """

    def __init__(self, command: str, code: int, tail: str) -> None:
        super().__init__(command)
        self.command = command
        self.code = code
        self.tail = tail


def clean_environment(scratch: Path, **more: str) -> dict[str, str]:
    """The environment of a command: the user's, less what belongs to other Pythons and engines.

    Args:
        scratch: The folder for its temporary files.
        more: Added to it.
    """
    kept = {
        name: text
        for name, text in os.environ.items()
        if not name.startswith(("PYTHON", "VLLM_", "VIRTUAL_ENV", "__PYVENV"))
        and name not in _PIP_PLACES
    }
    ours = {"PYTHONNOUSERSITE": "1", "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return {**kept, **ours, "TMPDIR": str(scratch), **more}


def run_logged(
    command: Sequence[str | Path],
    log: Path,
    env: dict[str, str],
    cwd: Path,
    lock: int,
) -> None:
    """Run a command to its end, what it says going to the end of a log.

    Args:
        command: The program and its arguments.
        log: The log.
        env: The environment.
        cwd: The working directory.
        lock: A descriptor that it holds open, too.

    Raises:
        CommandError: It failed.
    """
    words = [str(word) for word in command]
    shown = shown_words(words)
    with writing(log), log.open("ab") as output:
        output.write(f"$ {shown}\n".encode())
        output.flush()
        begin = output.tell()
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=cwd,
            start_new_session=True,
            pass_fds=(lock,),
            preexec_fn=_end_with_parent(),
        )
    try:
        code = process.wait()
    except BaseException:
        _end_group(process)
        raise
    if code:
        raise CommandError(shown, code, tail_of(log, begin))


def shown_words(words: Sequence[str]) -> str:
    """A command as it may be shown: without the password of an address.

    Args:
        words: The command.
    """
    return re.sub(r"(?<=://)[^/@\s]+@", "***@", shlex.join(words))


def _end_with_parent() -> Callable[[], None]:
    """What a child does before it becomes the command: ask to be killed when we are."""
    libc = ctypes.CDLL(None)

    def ask() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    return ask


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        end = time.monotonic() + _GRACE_SECONDS
        while process.poll() is None and time.monotonic() < end:
            with suppress(KeyboardInterrupt):  # a second Ctrl-C: the end is under way
                time.sleep(0.02)


def tail_of(log: Path, begin: int) -> str:
    """The last lines of a log that were written from a place on.

    Args:
        log: It.
        begin: The place.
    """
    with reading(log), log.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(begin, end - _TAIL_NBYTES))
        text = file.read().decode("utf-8", "replace")
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    return "\n".join(
        line if len(line) < 300 else f"{line[:297]}..." for line in lines[-_TAIL_LINES:]
    )
