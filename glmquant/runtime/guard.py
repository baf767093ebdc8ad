"""Runs a command so that nothing of it outlives the process that asked for it.

A program of its own, on the standard library alone: ``python guard.py SCRATCH LOG COMMAND…``.
SCRATCH is the folder for the command's temporary files, and goes with it. LOG is what the command
writes to, and goes with a command that is ended, unless ``KEEP`` was told before. The guard ends
the command and all its descendants when its standard input closes, which the kernel does however
its parent ends, ``kill -9`` included. Descendants whose parent has gone become the guard's
(``PR_SET_CHILD_SUBREAPER``), so none gets away by a process in between that dies.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

KEEP = b"keep"
"""On standard input: somebody will want to read the log."""

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
"""``linux/prctl.h``."""

GRACE_SECONDS = 10.0
"""From the polite signal to the other."""

POLL_SECONDS = 0.1


def descendants(pid: int) -> list[int]:
    """The processes below one, by the kernel's lists of children."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found


def signal_all(number: int) -> list[int]:
    """Send a signal to everything below this process, and say what that was."""
    living = descendants(os.getpid())
    for pid in living:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
    return living


def reap() -> None:
    """Take note of descendants that ended."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def end_all(child: subprocess.Popen[bytes]) -> None:
    """End the command: politely, then not."""
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    while signal_all(signal.SIGKILL):
        time.sleep(POLL_SECONDS / 2)
        child.poll()
        reap()


def dismiss(process: subprocess.Popen[bytes]) -> None:
    """For whoever started a guard: have it end its command, and wait until it has.

    Args:
        process: The guard.
    """
    if process.stdin is not None:
        with suppress(OSError):  # it ended already
            process.stdin.close()
    try:
        process.wait(GRACE_SECONDS * 3)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main() -> int:
    """Run the command of the command line; its exit code is this one's."""
    scratch, log, *command = sys.argv[1:]
    is_log_of_use = False
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the closed pipe is the only sign that counts

    def at_birth() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)  # where the guard itself is killed

    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": scratch},
            start_new_session=True,
            preexec_fn=at_birth,
        )
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)  # noqa: T201
        shutil.rmtree(scratch, ignore_errors=True)
        return 127
    while child.poll() is None:
        readable, _, _ = select.select([0], [], [], POLL_SECONDS)
        if readable:
            told = os.read(0, 4096)
            is_log_of_use = is_log_of_use or told == KEEP
            if not told:
                if not is_log_of_use:
                    Path(log).unlink(missing_ok=True)
                break
    end_all(child)
    shutil.rmtree(scratch, ignore_errors=True)
    code = child.returncode
    return code if code >= 0 else 128 - code  # a signal's number, as shells say it


if __name__ == "__main__":
    sys.exit(main())
