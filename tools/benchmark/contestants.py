"""Who takes part, and the command that each is run by."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from environments import ROOT, environment

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Contestant:
    """A program that makes a folder out of a folder.

    Attributes:
        says: The command for people, with SRC, OUT and N.
        command: The command for a source, a target and a number of workers.
        quantizes: Its output must hold the int8 weights of the recipe ``w8a8``.
    """

    says: str
    command: Callable[[Path, Path, int], list[str | Path]]
    quantizes: bool = True


def peers_python() -> Path:
    """The interpreter that has torch and llm-compressor."""
    return environment("bench") / "python"


CONTESTANTS: Final = {
    "cp": Contestant(
        "cp -r SRC OUT",
        lambda source, target, _: ["cp", "-r", source, target],
        quantizes=False,
    ),
    "cp+sync": Contestant(
        "cp -r SRC OUT && sync -f OUT",
        lambda source, target, _: [
            *("sh", "-c", 'cp -r "$0" "$1" && sync -f "$1"', source, target)
        ],
        quantizes=False,
    ),
    "glmquant": Contestant(
        "python -m glmquant w8a8 SRC OUT --add-mtp --workers N",
        lambda source, target, workers: [
            *(sys.executable, "-m", "glmquant", "w8a8", source, target),
            *("--add-mtp", "--workers", str(workers)),
        ],
    ),
    "torch-loop": Contestant(
        "python tools/benchmark/torch_loop.py SRC OUT",
        lambda source, target, _: [peers_python(), HERE / "torch_loop.py", source, target],
    ),
    "llm-compressor": Contestant(
        "python tools/benchmark/model_free.py SRC OUT N",
        lambda source, target, workers: [
            *(peers_python(), HERE / "model_free.py", source, target, str(workers))
        ],
    ),
}


PEERS: Final = frozenset({"torch-loop", "llm-compressor"})
"""Those that run in the environment ``bench``."""


def contestant_env(torch_threads: int) -> dict[str, str]:
    """Variables for all of them: the checkout's glmquant, its bytecode cached; torch's threads."""
    return {
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "",
        "OMP_NUM_THREADS": str(torch_threads),
    }
