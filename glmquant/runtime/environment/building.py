"""Build an environment in steps; the same command goes on where it ended."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

from glmquant.runtime.environment.child import CommandError, clean_environment, run_logged
from glmquant.runtime.environment.layout import (
    Built,
    Engine,
    Layout,
    as_engine,
    disk_nbytes,
    find_built,
    read_json,
    write_json,
)
from glmquant.runtime.environment.lock import exclusive
from glmquant.runtime.environment.pins import Pins, Step
from glmquant.runtime.environment.prospect import InstallPlan, plan_install, require_ours
from glmquant.storage import reading, writing

_TORCH_BUILD: Final = """
import importlib.util, json, pathlib, runpy, sys
folder = pathlib.Path(importlib.util.find_spec("torch").origin).parent
found = runpy.run_path(str(folder / "version.py"))
names = ("__version__", "cuda", "hip")
with open(sys.argv[1], "w") as file:
    json.dump({name: str(found.get(name) or "") for name in names}, file)
"""
"""Of a CUDA build ``import torch`` fails without the CUDA libraries; its version file does not."""


class InstallObserver:
    """Does nothing; a user interface overrides what it shows."""

    def start(self, step: Step, number: int, count: int) -> None:
        """A step begins.

        Args:
            step: The step.
            number: Its place, from 1.
            count: How many there are.
        """

    def finish(self, step: Step, seconds: float, nbytes: int) -> None:
        """A step is done.

        Args:
            step: The step.
            seconds: What it took.
            nbytes: What it added to the disk.
        """

    def stop(self) -> None:
        """The install ends before its end."""


def install(
    python: Path | None = None,
    torch_index: str | None = None,
    *,
    pins: Pins | None = None,
    observer: InstallObserver | None = None,
) -> Engine:
    """Build the environment of the engine, or go on with it; a complete one is given as it is.

    Args:
        python: The interpreter to build with; the one that runs this if left out.
        torch_index: A package index for torch alone; pip's own settings if left out.
        pins: What to install, that of ``engine_pins`` if left out.
        observer: Told of each step.

    Raises:
        UsageError: ``python`` does not run.
        EngineError: This processor, Python or folder will not do, another install is at work, a
            step failed, or torch is not the build for the CPU.
        DiskSpaceError: The disk has too little room.
    """
    return as_engine(build(plan_install(python, torch_index, pins=pins), observer))


def build(plan: InstallPlan, observer: InstallObserver | None = None) -> Built:
    """Do what a plan says, or go on with it; a complete environment is given as it is.

    Args:
        plan: Of ``plan_install``.
        observer: Told of each step.

    Raises:
        GlmquantError: Another install is at work, a step failed, or torch is not the build for the
            CPU; the kind's own error, and DiskSpaceError where the disk has too little room.
    """
    if plan.is_complete and (built := find_built(plan.pins)):
        return built
    with exclusive(plan.layout.home.parent, plan.pins.kind.error) as lock:
        # Another install may have ended since it was asked.
        return find_built(plan.pins) or _Builder(plan, lock).run(observer or InstallObserver())


class _Builder:
    """Does the steps that are not done."""

    def __init__(self, plan: InstallPlan, lock: int) -> None:
        self._plan = plan
        self._lock = lock
        self._layout = plan.layout
        self._kind = plan.pins.kind
        self._versions: dict[str, str] = {}

    def run(self, observer: InstallObserver) -> Built:
        layout, pins = self._layout, self._plan.pins
        self._begin()
        steps = pins.steps()
        nbytes = disk_nbytes(layout.home)
        for number, step in enumerate(steps, 1):
            # The check is done again where its answer was not kept.
            if layout.is_done(step.name) and step.name != "check":
                continue
            observer.start(step, number, len(steps))
            began = time.monotonic()
            self._do(step)
            shutil.rmtree(layout.scratch, ignore_errors=True)
            seconds, before = time.monotonic() - began, nbytes
            nbytes = disk_nbytes(layout.home)
            write_json(layout.steps / f"{step.name}.json", {"seconds": round(seconds, 1)})
            observer.finish(step, seconds, nbytes - before)
        write_json(layout.complete, {"versions": self._versions})
        built = find_built(pins)
        if built is None:
            raise self._kind.error(
                "the environment vanished while it was made",
                where=str(layout.home),
                hint=self._command(),
            )
        return built

    def _begin(self) -> None:
        layout = self._layout
        require_ours(layout)
        with writing(layout.home):
            layout.home.mkdir(mode=0o700, exist_ok=True)
            layout.complete.unlink(missing_ok=True)
        if not layout.is_in_place():
            for folder in (layout.steps, layout.venv):
                shutil.rmtree(folder, ignore_errors=True)
        pins = self._plan.pins
        mark = {"home": str(layout.home.resolve()), "pins": pins.digest, "python": pins.python_text}
        write_json(layout.mark, mark)

    def _do(self, step: Step) -> None:
        special: dict[str, Callable[[Step], None]] = {
            "venv": self._make_venv,
            "torch": self._install_torch,
            "registrations": self._register,
            "check": self._check,
        }
        shutil.rmtree(self._layout.scratch, ignore_errors=True)
        with writing(self._layout.scratch):
            self._layout.scratch.mkdir(mode=0o700, exist_ok=True)
        try:
            special.get(step.name, self._install_packages)(step)
        except CommandError as error:
            self._fail(step, error)

    def _make_venv(self, step: Step) -> None:
        shutil.rmtree(self._layout.venv, ignore_errors=True)
        self._call([self._plan.python, "-I", "-m", "venv", self._layout.venv])

    def _install_packages(self, step: Step, *options: str) -> None:
        _drop_unfinished(self._layout)
        listed = self._layout.home / f"{step.name}.txt"
        with writing(listed):
            listed.write_text("".join(f"{line}\n" for line in step.packages), encoding="utf-8")
        words = ("--no-deps", *step.options, *options, "--requirement", str(listed))
        self._pip("install", *words, **dict(step.env))

    def _install_torch(self, step: Step) -> None:
        index = self._plan.torch_index
        self._install_packages(step, *(["--index-url", index] if index else []))
        found = self._ask("torch", _TORCH_BUILD)
        makes = (("CUDA", "cuda"), ("ROCm", "hip"))
        other = [f"{make} {found[key]}" for make, key in makes if found.get(key)]
        if other:
            self._pip("uninstall", "--yes", "torch")
            raise self._kind.error(
                "torch is not the build for the CPU",
                where=f"the package index {'of --torch-index' if index else 'that pip is set to'}",
                expected="a build for the CPU",
                found=f"torch {found.get('__version__')} for {other[0]}; it was removed again",
                hint=f"{self._kind.command} --torch-index URL, with the index of PyTorch's CPU "
                "builds or a mirror of it",
            )

    def _register(self, step: Step) -> None:
        packages = _site_packages(self._layout)
        for folder, files in self._plan.pins.registrations().items():
            with writing(packages / folder):
                (packages / folder).mkdir(exist_ok=True)
                for name, text in files.items():
                    (packages / folder / name).write_text(text, encoding="utf-8")

    def _check(self, step: Step) -> None:
        # Any name that is no plugin's: vllm-ascend's would want an NPU.
        more = {"VLLM_PLUGINS": "none", "VLLM_NO_USAGE_STATS": "1"}
        self._versions = self._ask("check", self._plan.pins.smoke, **more)

    def _ask(self, name: str, script: str, **env: str) -> dict[str, str]:
        """What a program of ours, run in the environment, writes into the file it is given."""
        program = self._layout.home / f"{name}.py"
        with writing(program):
            program.write_text(script, encoding="utf-8")
        answer = self._layout.scratch / f"{name}.json"
        self._python(str(program), str(answer), **env)
        return {key: str(text) for key, text in read_json(answer).items()}

    def _pip(self, *words: str, **env: str) -> None:
        self._python("-m", "pip", *words, **env)

    def _python(self, *words: str, **env: str) -> None:
        self._call([self._layout.python, "-I", *words], **env)

    def _call(self, command: list[str | Path], **env: str) -> None:
        scratch = self._layout.scratch
        run_logged(
            command, self._layout.log, clean_environment(scratch, **env), scratch, self._lock
        )

    def _command(self) -> str:
        """The command that goes on."""
        words = self._kind.command.split()
        if self._plan.python not in (Path(sys.executable), self._layout.python):
            words += ["--python", str(self._plan.python)]
        if self._plan.torch_index:
            words += ["--torch-index", self._plan.torch_index]
        return shlex.join(words)

    def _fail(self, step: Step, error: CommandError) -> NoReturn:
        ended = f"signal {-error.code}" if error.code < 0 else f"exit code {error.code}"
        tail = error.tail.replace("\n", "\n            ")
        raise self._kind.error(
            f"the step {step.name} of {self._kind.title} failed",
            where=f"log {self._layout.log}",
            expected=error.command if len(error.command) < 400 else f"{error.command[:397]}...",
            found=f"{ended}; the log ends with\n            {tail}",
            hint=f"`{self._command()}` goes on with this step; for index, proxy and certificates "
            "pip's own settings hold",
        ) from error


def _site_packages(layout: Layout) -> Path:
    (found,) = (layout.venv / "lib").glob("python*/site-packages")
    return found


def _drop_unfinished(layout: Layout) -> None:
    """Forget packages that a killed pip left half-way: the next pip would take them for installed.

    A wheel brings a RECORD; pip writes it anew, with INSTALLER in it, as its last act (pip 23.2
    ``operations/install/wheel.py``). A folder ``~name`` is what pip has moved out of the way.
    """
    packages = _site_packages(layout)
    for folder in (*packages.glob("*.dist-info"), *packages.glob("~*")):
        record = folder / "RECORD"
        with reading(record):
            whole = record.is_file() and b"/INSTALLER," in record.read_bytes()
        if folder.name.startswith("~") or not whole:
            with writing(folder):
                shutil.rmtree(folder)
