"""Where the environment lies, what says how far it is, and whether there is a complete one."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmquant.errors import GlmquantError
from glmquant.runtime.environment.kind import ENGINE, Kind
from glmquant.runtime.environment.pins import Pins, Step, engine_pins
from glmquant.storage import writing


@dataclass(frozen=True, slots=True)
class Built:
    """A complete environment.

    Attributes:
        home: Its folder.
        python: Its interpreter.
        versions: Of what its check names.
    """

    home: Path
    python: Path
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Engine:
    """A complete environment of the engine.

    Attributes:
        home: Its folder.
        python: Its interpreter.
        vllm: The command of vLLM.
        versions: Of ``python``, ``vllm``, ``vllm-ascend``, ``torch`` and ``transformers``.
    """

    home: Path
    python: Path
    vllm: Path
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of one environment."""

    home: Path
    kind: Kind = ENGINE

    @property
    def mark(self) -> Path:
        """What makes the folder one of ours."""
        return self.home / self.kind.mark

    @property
    def complete(self) -> Path:
        """There once all steps are done; holds the versions."""
        return self.home / "complete.json"

    @property
    def log(self) -> Path:
        """What the commands of the steps said."""
        return self.home / "install.log"

    @property
    def steps(self) -> Path:
        """A file for each step that is done."""
        return self.home / "steps"

    @property
    def scratch(self) -> Path:
        """For pip's downloads, gone after the install: so only one disk has to have room."""
        return self.home / "tmp"

    @property
    def venv(self) -> Path:
        """The virtual environment."""
        return self.home / "venv"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.venv / "bin" / "python"

    def program(self, name: str) -> Path:
        """One of its commands."""
        return self.venv / "bin" / name

    def is_ours(self) -> bool:
        """Whether the folder was made by ``install``, there or wherever it was moved from."""
        return self.home.is_dir() and not self.home.is_symlink() and bool(read_json(self.mark))

    def is_in_place(self) -> bool:
        """Whether it was made here (scripts name their folder) and its Python is still there."""
        is_here = read_json(self.mark).get("home") == str(self.home.resolve())
        return is_here and (not self.is_done("venv") or os.access(self.python, os.X_OK))

    def is_done(self, step: str) -> bool:
        """Whether a step was done."""
        return (self.steps / f"{step}.json").is_file()

    def next_step(self, pins: Pins) -> Step | None:
        """The first step that is not done."""
        return next((step for step in pins.steps() if not self.is_done(step.name)), None)


def read_json(path: Path) -> dict[str, Any]:
    """An object of a small file, empty where there is none."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Put a small file there, whole or not at all.

    Raises:
        StorageError: It cannot be written; DiskSpaceError where the disk is full.
    """
    part = path.with_name(f"{path.name}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)


def find_built(pins: Pins) -> Built | None:
    """The complete environment of these pins, or None; runs nothing.

    Args:
        pins: What it has to hold.
    """
    try:
        layout = Layout(pins.kind.home() / pins.name, pins.kind)
    except GlmquantError:
        return None
    versions = read_json(layout.complete).get("versions")
    if not isinstance(versions, dict) or not layout.is_in_place():
        return None
    programs = (layout.python, *map(layout.program, pins.programs))
    if not all(os.access(program, os.X_OK) for program in programs):
        return None
    return Built(layout.home, layout.python, versions)


def find_engine(pins: Pins | None = None) -> Engine | None:
    """The complete environment of the engine, or None; runs nothing.

    Args:
        pins: What it has to hold, that of ``engine_pins`` if left out.
    """
    built = find_built(pins or engine_pins())
    return None if built is None else as_engine(built)


def as_engine(built: Built) -> Engine:
    """A complete environment of the engine, with its command."""
    vllm = Layout(built.home).program("vllm")
    return Engine(built.home, built.python, vllm, built.versions)


def disk_nbytes(folder: Path) -> int:
    """What a folder takes on its disk, hard links once; 0 where there is none."""
    total = 0
    seen: set[int] = set()
    folders = [folder]
    while folders:
        try:
            entries = list(os.scandir(folders.pop()))
        except OSError:
            continue
        for entry in entries:
            try:
                found = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if found.st_ino not in seen:
                seen.add(found.st_ino)
                total += found.st_blocks * 512
            if entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
    return total
