"""One command: its seconds, memory and bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LAUNCHER = Path(__file__).with_name("launcher.py")
LOG_TAIL = 4000


class CommandError(Exception):
    """A command that was to be measured ended with an error; the text ends with its output."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a command took, with the descendants that were waited for.

    Attributes:
        wall_seconds: From its start to its end.
        user_seconds: CPU time in the programs.
        system_seconds: CPU time in the kernel on their behalf.
        peak_rss_nbytes: The most memory of any one of the processes, not their sum.
        read_nbytes: By read calls; what is read through a mapped file is not among them. -1 where
            the kernel does not tell, here and below.
        written_nbytes: By write calls.
        disk_read_nbytes: What was not in the page cache.
        other_seconds: CPU time of everything else on the machine meanwhile.
    """

    wall_seconds: float
    user_seconds: float
    system_seconds: float
    peak_rss_nbytes: int
    read_nbytes: int
    written_nbytes: int
    disk_read_nbytes: int
    other_seconds: float

    @property
    def cpu_seconds(self) -> float:
        """User and system time."""
        return self.user_seconds + self.system_seconds


def measure(
    command: Sequence[str | Path], log: Path, extra_env: Mapping[str, str] | None = None
) -> Usage:
    """Run a command in a session of its own; leave none of it behind, whatever happens.

    Args:
        command: Program and arguments.
        log: Where its output goes.
        extra_env: Variables that differ from those of this process.

    Raises:
        CommandError: It could not be started or did not exit with 0.
    """
    words = [str(word) for word in command]
    busy = busy_seconds()
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", LAUNCHER, log, *words],
        env={**os.environ, **(extra_env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate()
    finally:
        if process.poll() is None:
            end_session(process)
    busy = busy_seconds() - busy
    if process.returncode:
        raise CommandError(f"{words[0]} could not be run:\n{stderr}")
    wall, user, system, rss, read, written, disk_read, code = json.loads(stdout)
    if code:
        said = log.read_text(errors="replace")[-LOG_TAIL:].strip()
        raise CommandError(f"{words[0]} ended with exit code {code}:\n{said}")
    others = max(0.0, busy - user - system)
    return Usage(wall, user, system, rss, read, written, disk_read, others)


def end_session(process: subprocess.Popen[str]) -> None:
    """Kill a process and its descendants, and wait until they write no more."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60  # a process in fsync dies when that is over
    while is_running(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)


def is_running(group: int) -> bool:
    """Whether a process of a group lives; one that only waits to be reaped does not."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, of, *_ = stat.read_text().rpartition(")")[2].split()
            if int(of) == group and state != "Z":
                return True
    return False


def busy_seconds() -> float:
    """CPU time that the machine has spent on anything since it started."""
    fields = Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    user, nice, system, _, _, irq, softirq, _ = map(int, fields)
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
