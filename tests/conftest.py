from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from glmquant.cli import main
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


@pytest.fixture
def glmquant() -> Callable[..., Ran]:
    """Runs a command line; an exception that is not ours fails the test."""

    def run(*words: object) -> Ran:
        result: Result = CliRunner().invoke(main, [str(word) for word in words])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ran(result.exit_code, result.stdout, result.stderr)

    return run


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too, and its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
