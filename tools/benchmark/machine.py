"""What the figures depend on: the machine, its filesystem, the versions."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from environments import ROOT

from benchmark.contestants import PEERS, peers_python

OWN_PACKAGES = ("numpy", "numba")
PEER_PACKAGES = ("torch", "safetensors", "llmcompressor", "compressed-tensors", "transformers")


def machine(folder: Path) -> dict[str, str]:
    """The machine in words, by key."""
    processor = re.search(
        r"^(?:model name|CPU part)\s*: (.*)$", read("/proc/cpuinfo"), re.MULTILINE
    )
    memory = re.search(r"^MemTotal:\s*(\d+) kB$", read("/proc/meminfo"), re.MULTILINE)
    return {
        "CPU": f"{processor[1] if processor else 'unknown'} ({platform.machine()})",
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{int(memory[1]) * 1024 / 1e9:.0f} GB" if memory else "unknown",
        "kernel": f"Linux {platform.release()}",
        "filesystem": filesystem(folder),
    }


def filesystem(folder: Path) -> str:
    """Type of the filesystem that a folder lies on, such as ``ext4``."""
    found, longest = "unknown", -1
    for line in read("/proc/self/mounts").splitlines():
        _, point, kind, *_ = line.split()
        mount = Path(point.encode().decode("unicode_escape"))
        if folder.is_relative_to(mount) and len(mount.parts) >= longest:
            found, longest = kind, len(mount.parts)
    return found


def versions(contestants: Iterable[str]) -> dict[str, str]:
    """Versions of what takes part."""
    found = {"Python": platform.python_version()}
    chosen = set(contestants)
    if "glmquant" in chosen:
        found["glmquant"] = git("describe", "--always", "--dirty", "--abbrev=10")
        found |= {name: metadata.version(name) for name in OWN_PACKAGES}
    if chosen & PEERS:
        script = "import sys; from importlib.metadata import version\n"
        script += "print(*(version(name) for name in sys.argv[1:]))"
        told = output_of(str(peers_python()), "-c", script, *PEER_PACKAGES).split()
        found |= dict(zip(PEER_PACKAGES, told, strict=True))
    if chosen & {"cp", "cp+sync"}:
        told = output_of("cp", "--version").splitlines()
        found["cp"] = told[0].removeprefix("cp ") if told else "unknown"
    return found


def git(*words: str) -> str:
    """What git says of the checkout, or ``unknown``."""
    return output_of("git", "-C", str(ROOT), *words).strip() or "unknown"


def output_of(*command: str) -> str:
    """What a command prints; nothing if there is no such command."""
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout
    except OSError as error:
        sys.stderr.write(f"note: {error}\n")
        return ""


def read(file: str) -> str:
    """The text of a file of the kernel."""
    return Path(file).read_text(encoding="utf-8", errors="replace")
