"""Run a command of many processes to its end, none of which outlives us: by the guard."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from glmquant.runtime import guard
from glmquant.runtime.environment.child import CommandError, shown_words, tail_of
from glmquant.runtime.server import short_temporary_folder
from glmquant.storage import writing


def run_guarded(command: Sequence[str], log: Path, env: dict[str, str], cwd: Path) -> None:
    """Run a command to its end, what it says going to the end of a log.

    What it leaves running is ended with it; all of it ends where this process does, even by
    ``kill -9``.

    Args:
        command: The program and its arguments.
        log: The log, which is kept.
        env: The environment.
        cwd: The working directory.

    Raises:
        CommandError: It failed; the code is 128 and the signal's number where it was killed.
    """
    with writing(log), log.open("ab") as output:
        begin = output.tell()
        # Sockets lie in it, whose paths may have 107 characters.
        scratch = tempfile.mkdtemp(prefix="gq-", dir=short_temporary_folder())
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, scratch, str(log), *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=cwd,
            start_new_session=True,  # Ctrl-C is for us; the command's end is by the pipe
        )
    pipe = process.stdin
    if pipe is None:
        raise RuntimeError("a process without a standard input")
    with suppress(OSError):  # it ended already
        pipe.write(guard.KEEP)
        pipe.flush()
    try:
        code = process.wait()
    finally:
        guard.dismiss(process)
    if code:
        raise CommandError(shown_words(command), code, tail_of(log, begin))
