"""What one kind of environment differs in from another: its place, its words, its command."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from glmquant.errors import EngineError, GlmquantError
from glmquant.usercache import cache_dir


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of environment.

    Attributes:
        key: Its name begins with it.
        title: As messages call it.
        command: Builds it, or goes on with it.
        variable: Names the folder of its environments.
        folder: That folder in the user's cache, where the variable is not set.
        mark: The file that makes a folder one of ours.
        error: What is raised where it cannot be had.
        is_of_processor: It runs on some processors only.
    """

    key: str
    title: str
    command: str
    variable: str
    folder: str
    mark: str
    error: type[GlmquantError]
    is_of_processor: bool = False

    def home(self) -> Path:
        """The folder of the environments: that of the variable, else in the user's cache.

        Raises:
            GlmquantError: Neither says a folder; the kind's own error.
        """
        if named := os.environ.get(self.variable):
            return Path(named).absolute()
        try:
            return cache_dir() / self.folder
        except RuntimeError as error:
            raise self.error(
                f"there is no place for {self.title}",
                found="a user without a home folder",
                hint=f"name a folder in {self.variable}",
            ) from error


ENGINE: Final = Kind(
    key="engine",
    title="the CPU engine",
    command="glmquant engine install",
    variable="GLMQUANT_ENGINE_HOME",
    folder="engine",
    mark="glmquant-engine.json",
    error=EngineError,
    is_of_processor=True,
)
