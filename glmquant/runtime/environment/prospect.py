"""What an install would do, and whether it may: all that can be asked before the first byte."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from glmquant.runtime.environment.host import require_processor, require_python, require_room
from glmquant.runtime.environment.layout import Layout, disk_nbytes, find_built
from glmquant.runtime.environment.pins import Pins, engine_pins


@dataclass(frozen=True, slots=True)
class InstallPlan:
    """What an install would do.

    Attributes:
        layout: Where.
        pins: Of what.
        python: The interpreter that builds it; its own where it has one.
        torch_index: The package index that torch alone is taken from, or None.
        done: Names of the steps that an earlier run has done.
        needed_nbytes: Room that is still needed, downloads included.
        free_nbytes: Room that is there.
        is_complete: Nothing is left to do.
    """

    layout: Layout
    pins: Pins
    python: Path
    torch_index: str | None
    done: frozenset[str]
    needed_nbytes: int
    free_nbytes: int
    is_complete: bool


def plan_install(
    python: Path | None = None, torch_index: str | None = None, *, pins: Pins | None = None
) -> InstallPlan:
    """Ask everything that can be asked before the first byte; writes nothing.

    Args:
        python: The interpreter to build with; the one that runs this if left out.
        torch_index: A package index for torch alone; pip's own settings if left out.
        pins: What to install, that of ``engine_pins`` if left out.

    Raises:
        UsageError: ``python`` does not run.
        GlmquantError: This processor, Python or folder will not do; the kind's own error, and
            DiskSpaceError where the disk has too little room.
    """
    pins = pins or engine_pins()
    if pins.kind.is_of_processor:
        require_processor()
    layout = Layout(pins.kind.home() / pins.name, pins.kind)
    if find_built(pins):
        done = frozenset(step.name for step in pins.steps())
        return InstallPlan(layout, pins, layout.python, torch_index, done, 0, 0, is_complete=True)
    require_ours(layout)
    kept = layout.is_in_place()
    has_venv = kept and layout.is_done("venv")
    interpreter = layout.python if has_venv else require_python(pins, python)
    done = frozenset(step.name for step in pins.steps() if kept and layout.is_done(step.name))
    needed = max(0, pins.peak_nbytes - disk_nbytes(layout.home))
    free = require_room(layout.home, needed, pins.kind)
    return InstallPlan(
        layout, pins, interpreter, torch_index, done, needed, free, is_complete=False
    )


def require_ours(layout: Layout) -> None:
    """Refuse a folder of somebody else; an empty one is what a killed install leaves.

    Args:
        layout: Where the environment is to be.

    Raises:
        GlmquantError: It is a link, or holds files and no mark of ours; the kind's own error.
    """
    home = layout.home
    if home.is_symlink() or (home.exists() and not layout.is_ours() and any(home.iterdir())):
        raise layout.kind.error(
            "the environment's folder is in use",
            where=str(home),
            expected="a folder that glmquant made, or none",
            found="a link" if home.is_symlink() else "files, and none that says it is ours",
            hint=f"move it away, or name another folder in {layout.kind.variable}",
        )
