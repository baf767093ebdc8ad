"""Runs one command and prints what it took, as a JSON list.

    python -I -S launcher.py LOG COMMAND...

A process of its own, and a small one: Linux counts the memory that a process had before ``exec`` to
the peak of the program that it becomes, so nothing is seen below this interpreter's 8 MB. The
figures are wall, user and system seconds, peak memory, the bytes of all reads and writes, the bytes
that reached the disk for reading, and the exit code.
"""

from __future__ import annotations

import os
import sys
import time


def counters(pid: int) -> dict[str, int]:
    """What ``/proc/PID/io`` counts: this process and the descendants that were waited for."""
    try:
        with open(f"/proc/{pid}/io") as file:  # noqa: PTH123 - pathlib would double the memory
            return {name: int(value) for name, value in (line.split(": ") for line in file)}
    except OSError:
        return {}


def main() -> None:
    """Run, wait, print."""
    log, *command = sys.argv[1:]
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    begun = time.monotonic()
    pid = os.posix_spawnp(command[0], command, os.environ, file_actions=actions)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    wall = time.monotonic() - begun
    io = counters(pid)  # gone once the process is waited for
    _, status, usage = os.wait4(pid, 0)
    print(
        [
            wall,
            usage.ru_utime,
            usage.ru_stime,
            usage.ru_maxrss * 1024,
            io.get("rchar", -1),
            io.get("wchar", -1),
            io.get("read_bytes", -1),
            os.waitstatus_to_exitcode(status),
        ]
    )


if __name__ == "__main__":
    main()
