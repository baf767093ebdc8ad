"""How it stands with an environment, and its removal."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmquant.runtime.environment.kind import ENGINE, Kind
from glmquant.runtime.environment.layout import Built, Layout, disk_nbytes, find_built
from glmquant.runtime.environment.lock import exclusive, holder
from glmquant.runtime.environment.pins import Pins, engine_pins
from glmquant.storage import reading, writing


@dataclass(frozen=True, slots=True)
class Standing:
    """How it stands with an environment.

    Attributes:
        home: The folder of the environment of the present pins.
        state: ``complete``, ``unfinished``, ``absent``, or ``foreign``: files of somebody else.
        built: The complete environment, or None.
        next_step: The first step that an unfinished one lacks, or None.
        nbytes: What it takes on disk.
        others: Environments of other pins of that kind, of another version of glmquant.
        installer: The process that is at work there, or None.
    """

    home: Path
    state: str
    built: Built | None
    next_step: str | None
    nbytes: int
    others: tuple[Path, ...]
    installer: str | None

    def fields(self) -> dict[str, Any]:
        """What is the same of every kind, for JSON."""
        return {
            "home": str(self.home),
            "state": self.state,
            "next_step": self.next_step,
            "nbytes": self.nbytes,
            "others": [str(path) for path in self.others],
            "installer": self.installer,
        }


@dataclass(frozen=True, slots=True)
class Removed:
    """A folder that was removed, and what it took on disk."""

    home: Path
    nbytes: int


def status(*, pins: Pins | None = None) -> Standing:
    """How it stands with the engine; that there is none is no error.

    Args:
        pins: What it has to hold, that of ``engine_pins`` if left out.

    Raises:
        EngineError: The user has no home folder; a StorageError where it cannot be read.
    """
    return standing_of(pins or engine_pins())


def standing_of(pins: Pins) -> Standing:
    """How it stands with an environment; that there is none is no error.

    Args:
        pins: What it has to hold.

    Raises:
        GlmquantError: The user has no home folder; a StorageError where it cannot be read.
    """
    kind = pins.kind
    home = kind.home()
    layout = Layout(home / pins.name, kind)
    built = find_built(pins)
    step = None
    if built:
        state = "complete"
    elif layout.is_ours():
        state = "unfinished"
        found = layout.next_step(pins) if layout.is_in_place() else pins.steps()[0]
        step = (found or pins.steps()[-1]).name
    else:
        state = "foreign" if layout.home.exists() and any(layout.home.iterdir()) else "absent"
    return Standing(
        home=layout.home,
        state=state,
        built=built,
        next_step=step,
        nbytes=disk_nbytes(layout.home),
        others=tuple(path for path in _environments(home, kind) if path != layout.home),
        installer=holder(home),
    )


def remove(kind: Kind = ENGINE) -> tuple[Removed, ...]:
    """Remove every environment of a kind, of whatever pins, finished or not.

    Args:
        kind: That of the engine if left out.

    Raises:
        GlmquantError: An install is at work, the kind's own error; a StorageError where a folder
            cannot be removed.
    """
    home = kind.home()
    if not home.is_dir():
        return ()
    with exclusive(home, kind.error):
        return tuple(_remove(Layout(path, kind)) for path in _environments(home, kind))


def _environments(home: Path, kind: Kind) -> list[Path]:
    """The folders of ours, by name."""
    if not home.is_dir():
        return []
    with reading(home):
        named = [path for path in home.iterdir() if path.name.startswith(f"{kind.key}-py")]
        return sorted(path for path in named if Layout(path, kind).is_ours())


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
