"""The virtual environments of the tools, each made once from its pinned requirements."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "tools" / "requirements"


def cache_dir() -> Path:
    """Where the environments are kept."""
    if named := os.environ.get("GLMQUANT_CHECK_CACHE"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "glmquant-check"


def run(*command: str | Path, cwd: Path = ROOT, **extra_env: str) -> None:
    """Run a command from the checkout; end the tool where it fails."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "", **extra_env}
    print("$", " ".join(map(str, command)), flush=True)
    result = subprocess.run([str(part) for part in command], cwd=cwd, env=env)
    if result.returncode:
        sys.exit(f"failed with exit code {result.returncode}: {command[0]}")


def environment(name: str) -> Path:
    """The folder of executables of the environment that ``requirements/NAME.txt`` pins."""
    pins = (REQUIREMENTS / f"{name}.txt").read_bytes()
    key = hashlib.sha256(pins + sys.version.encode() + sys.platform.encode()).hexdigest()[:16]
    home = cache_dir() / f"{name}-{key}"
    done = home / "complete"
    if not done.exists():
        shutil.rmtree(home, ignore_errors=True)
        home.parent.mkdir(parents=True, exist_ok=True)
        run(sys.executable, "-m", "venv", home)
        pip = (home / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "-q")
        # torch first and by itself: other packages then find it there and add no CUDA build.
        torch = [line for line in pins.decode().splitlines() if line.startswith("torch==")]
        if torch:
            run(*pip, torch[0])
        run(*pip, "-r", REQUIREMENTS / f"{name}.txt")
        done.touch()
    return home / "bin"
