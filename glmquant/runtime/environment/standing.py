"""How it stands with the environment, and its removal."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmquant.runtime.environment import host
from glmquant.runtime.environment.layout import (
    Engine,
    Layout,
    disk_nbytes,
    engine_home,
    find_engine,
)
from glmquant.runtime.environment.lock import exclusive, holder
from glmquant.runtime.environment.pins import Pins, engine_pins
from glmquant.storage import reading, writing


@dataclass(frozen=True, slots=True)
class Status:
    """How it stands.

    Attributes:
        home: The folder of the environment of the present pins.
        state: ``complete``, ``unfinished``, ``absent``, or ``foreign``: files of somebody else.
        engine: The complete environment, or None.
        next_step: The first step that an unfinished one lacks, or None.
        nbytes: What it takes on disk.
        others: Environments of other pins, of another version of glmquant.
        installer: The process that is at work there, or None.
        unsupported: Why the engine does not run on this processor, or None.
    """

    home: Path
    state: str
    engine: Engine | None
    next_step: str | None
    nbytes: int
    others: tuple[Path, ...]
    installer: str | None
    unsupported: str | None

    def fields(self) -> dict[str, Any]:
        """All of it for JSON."""
        engine = self.engine
        return {
            "home": str(self.home),
            "state": self.state,
            "python": str(engine.python) if engine else None,
            "vllm": str(engine.vllm) if engine else None,
            "versions": engine.versions if engine else {},
            "next_step": self.next_step,
            "nbytes": self.nbytes,
            "others": [str(path) for path in self.others],
            "installer": self.installer,
            "unsupported": self.unsupported,
        }


@dataclass(frozen=True, slots=True)
class Removed:
    """A folder that was removed, and what it took on disk."""

    home: Path
    nbytes: int


def status(*, pins: Pins | None = None) -> Status:
    """How it stands with the environment; that there is none is no error.

    Args:
        pins: What it has to hold, that of ``engine_pins`` if left out.

    Raises:
        EngineError: The user has no home folder; a StorageError where it cannot be read.
    """
    pins = pins or engine_pins()
    home = engine_home()
    layout = Layout(home / pins.name)
    engine = find_engine(pins)
    step = None
    if engine:
        state = "complete"
    elif layout.is_ours():
        state = "unfinished"
        found = layout.next_step(pins) if layout.is_in_place() else pins.steps()[0]
        step = (found or pins.steps()[-1]).name
    else:
        state = "foreign" if layout.home.exists() and any(layout.home.iterdir()) else "absent"
    return Status(
        home=layout.home,
        state=state,
        engine=engine,
        next_step=step,
        nbytes=disk_nbytes(layout.home),
        others=tuple(path for path in _environments(home) if path != layout.home),
        installer=holder(home),
        unsupported=host.missing_here(),
    )


def remove() -> tuple[Removed, ...]:
    """Remove every environment that ``install`` made, of whatever pins, finished or not.

    Raises:
        EngineError: An install is at work; a StorageError where a folder cannot be removed.
    """
    home = engine_home()
    if not home.is_dir():
        return ()
    with exclusive(home):
        return tuple(_remove(Layout(path)) for path in _environments(home))


def _environments(home: Path) -> list[Path]:
    """The folders of ours, by name."""
    if not home.is_dir():
        return []
    with reading(home):
        return sorted(path for path in home.iterdir() if Layout(path).is_ours())


def _remove(layout: Layout) -> Removed:
    """Its end is taken first, its mark last: killed on the way it is unfinished, and still ours."""
    nbytes = disk_nbytes(layout.home)
    with writing(layout.home):
        layout.complete.unlink(missing_ok=True)
        for path in layout.home.iterdir():
            if path == layout.mark:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        layout.mark.unlink()
        layout.home.rmdir()
    return Removed(layout.home, nbytes)
