"""Where a suite is installed: in an environment of ours, or where the user has it."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from glmquant.errors import UsageError
from glmquant.runtime.environment import find_engine
from glmquant.suites.environment import find_own
from glmquant.suites.task import Installed, Suite

_PROGRAMS: Final = {"aisbench": "ais_bench", "lm-eval": "lm_eval", "vllm": "vllm"}
"""The commands that the suites bring along."""

_ASK: Final = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
_ASK_SECONDS: Final = 60
_MAX_SHEBANG: Final = 1_000


def find(suite: Suite, python: Path | None = None) -> Installed | None:
    """Where a suite is, or None; nothing of it is imported, its version is what pip noted.

    First comes what the user names, then our own environment, then the Python that runs this, then
    the suite's command on PATH; for vLLM at last the CPU engine.

    Args:
        suite: Which one.
        python: The interpreter that has it, as the user says; then nothing else is asked.

    Raises:
        UsageError: ``python`` does not run, or has not got it.
    """
    if python is not None:
        return _named(suite, python)
    return find_own(suite) or _here(suite) or _on_path(suite) or _of_engine(suite)


def _named(suite: Suite, python: Path) -> Installed:
    path = Path(shutil.which(python) or python).absolute()
    if not path.is_file() or not os.access(path, os.X_OK):
        raise UsageError(
            "--python names no interpreter that runs",
            where=str(path),
            hint="name an executable, as `--python /usr/bin/python3.11`",
        )
    found = _ask(suite, path)
    if found is None:
        raise UsageError(
            f"--python names an interpreter without {suite.title}",
            where=str(path),
            expected=f"the package {suite.package}",
            hint=f"{path} -m pip install {suite.package}, or leave --python out",
        )
    return found


def _here(suite: Suite) -> Installed | None:
    try:
        version = importlib.metadata.version(suite.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    return Installed(Path(sys.executable), version)


def _on_path(suite: Suite) -> Installed | None:
    program = shutil.which(_PROGRAMS[suite.name])
    if program is None:
        return None
    script = Path(program).absolute()
    pythons = (_interpreter(script), script.with_name("python"), script.with_name("python3"))
    for python in pythons:
        if python is not None and os.access(python, os.X_OK) and (found := _ask(suite, python)):
            return found
    return None


def _of_engine(suite: Suite) -> Installed | None:
    engine = find_engine() if suite.name == "vllm" else None
    if engine is None:
        return None
    return Installed(engine.python, engine.versions.get("vllm", ""), is_ours=True)


def _interpreter(script: Path) -> Path | None:
    """The interpreter that a script names, in its first line or, where that is too long, below."""
    try:
        with script.open("rb") as file:
            head = file.read(_MAX_SHEBANG).decode("utf-8", "replace")
    except OSError:
        return None
    for pattern in (r"#!\s*(/\S*python\S*)", r"'''exec' \"?(/[^\"\n]*python[^\"\s]*)"):
        found = re.match(pattern, head) or re.search(rf"^{pattern}", head, re.MULTILINE)
        if found:
            return Path(found.group(1))
    return None


def _ask(suite: Suite, python: Path) -> Installed | None:
    """What an interpreter's own packages say, those of a PYTHONPATH of ours left out."""
    try:
        ran = subprocess.run(
            [python, "-E", "-c", _ASK, suite.package],
            capture_output=True,
            text=True,
            timeout=_ASK_SECONDS,
            cwd=python.parent,
        )
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    version = ran.stdout.strip()
    return Installed(python, version) if ran.returncode == 0 and version else None
