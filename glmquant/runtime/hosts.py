"""What this machine can run an engine with: NPUs, memory, the engines themselves."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final

RESERVE_NBYTES: Final = 5 * 10**9
"""Of two processes of vLLM on a CPU with 1 GiB of KV cache; 2 GB were measured on a tiny model."""

WEIGHT_FACTOR: Final = 1.3
"""Weights in memory while they load, over weights on disk: a layer is transposed at a time."""

_DAVINCI: Final = re.compile(r"davinci\d+")


def count_npus(devices: Path = Path("/dev")) -> int:
    """The Ascend NPUs that this process can see: ``/dev/davinci0`` and on.

    Args:
        devices: The folder of the devices.
    """
    with suppress(OSError):
        return sum(bool(_DAVINCI.fullmatch(name)) for name in os.listdir(devices))  # noqa: PTH208
    return 0


def available_nbytes() -> int:
    """Bytes of memory that a new process may take: the machine's, or its container's if less."""
    nbytes = 0
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                nbytes = int(line.split()[1]) * 1024
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
        nbytes = min(nbytes, max(0, limit - used))
    return nbytes


def engine_nbytes(weights_nbytes: int) -> int:
    """Bytes of memory that vLLM on a CPU needs for weights of so many bytes."""
    return int(weights_nbytes * WEIGHT_FACTOR) + RESERVE_NBYTES


def has_torch() -> bool:
    """Whether the reference model can run in this Python: torch and transformers are there."""
    return find_spec("torch") is not None and find_spec("transformers") is not None


def find_vllm() -> str | None:
    """The ``vllm`` command of this machine, or None."""
    return shutil.which("vllm")
