"""The environments of suites: one each, pinned, in the user's cache, built as the engine's is."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from glmquant.errors import MeasureError, UsageError
from glmquant.runtime.environment import (
    Built,
    InstallObserver,
    InstallPlan,
    Removed,
    Standing,
    build,
    find_built,
    plan_install,
    remove,
    standing_of,
)
from glmquant.runtime.environment.kind import Kind
from glmquant.runtime.environment.pins import Pins, Step, parse_requirements
from glmquant.suites.task import Installed, Suite

REQUIREMENTS: Final = Path(__file__).resolve().parent / "requirements"
HOME_VARIABLE: Final = "GLMQUANT_SUITES_HOME"

_PYTHON: Final = (3, 11)
_VENV_NBYTES: Final = 26_000_000
_TORCH_NBYTES: Final = 800_000_000


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the environment of a suite is, beyond its requirements.

    Attributes:
        imports: Modules that a usable one can import.
        versions: Packages whose versions are told; the suite's own first.
        programs: Commands that it has.
        nbytes: What it takes on disk.
        peak_nbytes: At the worst moment, with pip's downloads.
    """

    imports: tuple[str, ...]
    versions: tuple[str, ...]
    programs: tuple[str, ...]
    nbytes: int
    peak_nbytes: int


RECIPES: Final = {
    "aisbench": Recipe(
        imports=(
            "ais_bench.benchmark.cli.config_manager",
            "ais_bench.benchmark.cli.workers",
            "ais_bench.benchmark.models",
            "ais_bench.benchmark.datasets",
            "ais_bench.benchmark.summarizers",
            "math_verify",
            "latex2sympy2_extended",
        ),
        versions=("ais-bench-benchmark", "torch", "transformers", "numpy"),
        programs=("ais_bench",),
        nbytes=1_950_000_000,
        peak_nbytes=2_900_000_000,
    ),
    "lm-eval": Recipe(
        imports=(
            "lm_eval.__main__",
            "lm_eval.models.openai_completions",
            "lm_eval.tasks.minerva_math.utils",
        ),
        versions=("lm-eval", "datasets"),
        programs=("lm_eval",),
        nbytes=660_000_000,
        peak_nbytes=1_000_000_000,
    ),
}
"""The suites that get an environment of their own; vLLM has the engine's, or that of its host."""


@dataclass(frozen=True, slots=True)
class SuitePins(Pins):
    """Everything that decides what the environment of a suite holds.

    Attributes:
        suite: As ``--suite`` calls it.
        title: As people call it.
        commands: What it is run by.
    """

    suite: str = ""
    title: str = ""
    commands: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        """That of this suite: all share a folder and a lock."""
        return Kind(
            key=self.suite,
            title=f"the environment of {self.title}",
            command=f"glmquant suites install {self.suite}",
            variable=HOME_VARIABLE,
            folder="suites",
            mark="glmquant-suite.json",
            error=MeasureError,
        )

    @property
    def programs(self) -> tuple[str, ...]:
        """The commands that a complete environment has."""
        return self.commands

    def steps(self) -> tuple[Step, ...]:
        """The steps in their order."""
        torch = [line for line in self.requirements if line.startswith("torch==")]
        others = tuple(line for line in self.requirements if line not in torch)
        packages = self.nbytes - _VENV_NBYTES - _TORCH_NBYTES * len(torch)
        first = Step("venv", "an empty virtual environment", _VENV_NBYTES)
        what = f"{self.title} and what it needs, {len(others)} packages"
        return (
            first,
            *(
                Step("torch", f"{each}, the build for the CPU", _TORCH_NBYTES, (each,))
                for each in torch
            ),
            Step("packages", what, max(0, packages), others),
            Step("check", "import what is measured with", 0),
        )

    def registrations(self) -> dict[str, dict[str, str]]:
        """None: nothing is looked up by other names here."""
        return {}


def pins_of(suite: Suite) -> SuitePins:
    """What the environment of a suite holds.

    Args:
        suite: One of those that get an environment.

    Raises:
        UsageError: It gets none.
    """
    recipe = RECIPES.get(suite.name)
    if recipe is None:
        raise UsageError(
            f"{suite.title} gets no environment of its own",
            expected=" or ".join(RECIPES),
            hint=" ".join(how_to_install(suite)),
        )
    text = (REQUIREMENTS / f"{suite.name}.txt").read_text(encoding="utf-8")
    lines = ["import importlib, importlib.metadata as metadata, json, sys"]
    lines += [f"importlib.import_module({name!r})" for name in recipe.imports]
    lines += [
        f"versions = {{name: metadata.version(name) for name in {recipe.versions!r}}}",
        "with open(sys.argv[1], 'w') as file:",
        "    json.dump(versions, file)",
    ]
    return SuitePins(
        python=_PYTHON,
        requirements=parse_requirements(text),
        smoke="\n".join(lines) + "\n",
        nbytes=recipe.nbytes,
        peak_nbytes=recipe.peak_nbytes,
        suite=suite.name,
        title=suite.title,
        commands=recipe.programs,
    )


def plan(
    suite: Suite,
    python: Path | None = None,
    torch_index: str | None = None,
    *,
    pins: SuitePins | None = None,
) -> InstallPlan:
    """Ask everything that can be asked before the first byte of an install; writes nothing.

    Args:
        suite: Which one.
        python: The interpreter to build with; if left out the one that runs this, or the one on
            PATH that has the version.
        torch_index: A package index for torch alone; pip's own settings if left out.
        pins: What to install, that of ``pins_of`` if left out.

    Raises:
        UsageError: ``python`` does not run, or the suite gets no environment.
        MeasureError: This Python or folder will not do; DiskSpaceError where there is no room.
    """
    pins = pins or pins_of(suite)
    if python is None and sys.version_info[:2] != pins.python:
        found = shutil.which(f"python{pins.python_text}")
        python = Path(found) if found else None
    return plan_install(python, torch_index, pins=pins)


def install(
    suite: Suite,
    python: Path | None = None,
    torch_index: str | None = None,
    *,
    pins: SuitePins | None = None,
    observer: InstallObserver | None = None,
) -> Installed:
    """Build the environment of a suite, or go on with it; a complete one is given as it is.

    Args:
        suite: Which one.
        python: The interpreter to build with; see ``plan``.
        torch_index: A package index for torch alone; pip's own settings if left out.
        pins: What to install, that of ``pins_of`` if left out.
        observer: Told of each step.

    Raises:
        UsageError: ``python`` does not run, or the suite gets no environment.
        MeasureError: Python or folder will not do, another install is at work, a step failed, or
            torch is not the build for the CPU; DiskSpaceError where there is no room.
    """
    pins = pins or pins_of(suite)
    return _installed(suite, build(plan(suite, python, torch_index, pins=pins), observer))


def find_own(suite: Suite, *, pins: SuitePins | None = None) -> Installed | None:
    """The complete environment of a suite that ``install`` made, or None; runs nothing.

    Args:
        suite: Which one.
        pins: What it has to hold, that of ``pins_of`` if left out.
    """
    if suite.name not in RECIPES:
        return None
    built = find_built(pins or pins_of(suite))
    return None if built is None else _installed(suite, built)


def how_it_stands(suite: Suite, *, pins: SuitePins | None = None) -> Standing:
    """How it stands with the environment of a suite; that there is none is no error.

    Args:
        suite: Which one.
        pins: What it has to hold, that of ``pins_of`` if left out.

    Raises:
        UsageError: The suite gets none.
        MeasureError: The user has no home folder; a StorageError where it cannot be read.
    """
    return standing_of(pins or pins_of(suite))


def remove_own(suite: Suite) -> tuple[Removed, ...]:
    """Remove every environment of a suite that ``install`` made, of whatever pins.

    Args:
        suite: Which one.

    Raises:
        UsageError: The suite gets none.
        MeasureError: An install is at work; a StorageError where a folder cannot be removed.
    """
    return remove(pins_of(suite).kind)


def how_to_install(suite: Suite) -> tuple[str, ...]:
    """The words to print where a suite is not installed, a line each.

    Args:
        suite: Which one.
    """
    if suite.name in RECIPES:
        return (
            f"`glmquant suites install {suite.name}`, or --install here, puts {suite.title} into "
            f"an environment of its own (Python {'.'.join(map(str, _PYTHON))});",
            "--python PATH takes one that you have: the interpreter that it is installed for",
        )
    return (
        f"{suite.title} is part of vLLM: --python PATH names the interpreter that has it, and "
        "`glmquant engine install` builds one for the CPU",
    )


def _installed(suite: Suite, built: Built) -> Installed:
    name = RECIPES[suite.name].versions[0]
    return Installed(built.python, built.versions.get(name, ""), is_ours=True)


__all__ = [
    "HOME_VARIABLE",
    "RECIPES",
    "SuitePins",
    "find_own",
    "how_it_stands",
    "how_to_install",
    "install",
    "pins_of",
    "plan",
    "remove_own",
]
