from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from glmquant.cli import main
from glmquant.demo import unpack_model
from tests.builders import Recorded, build_checkpoint


def pytest_configure(config: pytest.Config) -> None:
    """Give the tests a user's cache of their own, kept from run to run for its machine code.

    No engine is found in it: tests that need one name its place.
    """
    os.environ["XDG_CACHE_HOME"] = str(config.cache.mkdir("home"))
    os.environ.pop("GLMQUANT_ENGINE_HOME", None)


@pytest.fixture
def nano(tmp_path: Path) -> Recorded:
    """A tiny checkpoint in the layout of 4.6 in the folder ``GLM``."""
    return build_checkpoint(tmp_path / "GLM")


@dataclass(frozen=True)
class Ran:
    """A command that was run in this process."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stdout.splitlines()]


def run_glmquant(*words: object) -> Ran:
    """Run a command line; an exception that is not ours fails the test."""
    result: Result = CliRunner().invoke(main, [str(word) for word in words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def glmquant() -> Callable[..., Ran]:
    """Runs a command line."""
    return run_glmquant


@pytest.fixture(scope="module")
def demo_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GLM-4-nano, for a module that leaves it as it is."""
    return unpack_model(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def demo_output(demo_source: Path) -> Path:
    """What w8a8 --add-mtp makes of it."""
    target = demo_source.with_name("GLM-4-nano-W8A8-floatmtp")
    assert run_glmquant("w8a8", demo_source, target, "--add-mtp").exit_code == 0
    return target


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too, and its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a real file system of so many bytes; skips where that is not allowed."""
    mounted = []

    def mount(nbytes: int) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir(exist_ok=True)
        ran = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={nbytes}", "tmpfs", folder], capture_output=True
        )
        if ran.returncode:
            pytest.skip("mounting a small disk needs root")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)
