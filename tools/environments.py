"""The virtual environments of the tools, each made once from its pinned requirements."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
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


def unpacked(python: str | Path, package: str, versions: tuple[str, ...]) -> Path:
    """A folder with the Python files of a package's wheels, ``PACKAGE-VERSION`` each, got once.

    Args:
        python: The interpreter whose pip takes them and for which they are.
        package: Its name.
        versions: Exactly these.
    """
    home = cache_dir() / "sources"
    for version in versions:
        folder = home / f"{package}-{version}"
        if folder.exists():
            continue
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as scratch:
            pip = (python, "-m", "pip", "--disable-pip-version-check", "download", "-q")
            only = ("--no-deps", "--only-binary", ":all:")
            run(*pip, *only, "-d", scratch, f"{package}=={version}")
            (wheel,) = Path(scratch).glob("*.whl")
            part = Path(scratch) / "part"
            with zipfile.ZipFile(wheel) as archive:
                names = [name for name in archive.namelist() if name.endswith(".py")]
                archive.extractall(part, names)
            part.rename(folder)
    return home
