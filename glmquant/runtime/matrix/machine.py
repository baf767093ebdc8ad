"""What this machine could not do for a load: known by its words, and what to do about it."""

from __future__ import annotations

import re
from typing import Final

_AGAIN: Final = ", and run it again"

_CAUSES: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), remedy)
    for pattern, remedy in (
        (r"Too many open files", f"ulimit -n 4096{_AGAIN}"),
        (
            r"/dev/shm|shared memory|shm_open|signal 7$",
            f"make room in /dev/shm (df -h /dev/shm; docker run --shm-size=2g){_AGAIN}",
        ),
        (
            r"No space left on device|Disk quota exceeded",
            f"free room for temporary files, or name a folder that has some in TMPDIR{_AGAIN}",
        ),
        (
            r"can't start new thread|Resource temporarily unavailable",
            f"allow more processes (ulimit -u){_AGAIN}",
        ),
        (
            r"^(MemoryError|OutOfMemoryError)|can(?:'t|not) allocate memory"
            r"|GB of memory$|signal 9$",
            f"free memory{_AGAIN}",
        ),
    )
)
"""Words of the system or of torch that tell of this machine, and nothing of the checkpoint."""

_RANKS: Final = re.compile(r"gloo|network|socket|address|connect|device", re.IGNORECASE)

RANKS_DID_NOT_MEET: Final = "the ranks did not find each other"
"""With this begins what is said of an error before anything of the checkpoint is looked at."""


def is_of_machine(text: str) -> bool:
    """Whether an engine's exception tells of this machine alone.

    Args:
        text: Its class, a colon and its message.
    """
    return any(pattern.search(text) for pattern, _ in _CAUSES)


def remedy_of(stopped: str) -> str:
    """What to do where a load has no answer.

    Args:
        stopped: Why there is none, as ``Load`` has it.
    """
    for pattern, remedy in _CAUSES:
        if pattern.search(stopped):
            return remedy
    if stopped.startswith(RANKS_DID_NOT_MEET) and _RANKS.search(stopped):
        return f"bring up the loopback interface (ip link set lo up){_AGAIN}"
    return "free memory and room for temporary files, and run it again"
