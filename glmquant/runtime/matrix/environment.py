"""The Python of a pair: its own vLLM, vllm-ascend and transformers, the rest lent by the engine.

The environment of the CPU engine has torch and 140 packages, 2.7 GB; a path file lets the pair's
own see them. What a pair has itself is found before, 0.25 GB of Python sources.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from glmquant.errors import EngineError
from glmquant.runtime.environment.building import InstallObserver, build
from glmquant.runtime.environment.kind import ENGINE, Kind
from glmquant.runtime.environment.layout import Built, Layout, find_built, find_engine
from glmquant.runtime.environment.pins import ASCEND_BUILD, Pins, Step, engine_pins
from glmquant.runtime.environment.prospect import InstallPlan, plan_install
from glmquant.runtime.environment.standing import Removed, Standing, remove, standing_of
from glmquant.runtime.matrix.pairs import Pair

INSIDE: Final = Path(__file__).resolve().parent / "inside"
"""The programs that run in it."""

_COMMAND: Final = "glmquant engine install --matrix"

_SMOKE: Final = """
import sys
sys.path.insert(0, {inside!r})
import main
main.prepare()
import importlib.metadata as metadata, json, loading, placeholders
placeholders.put_in_place()
loading.import_engine()
versions = {{name: metadata.version(name) for name in ("vllm", "vllm-ascend", "transformers")}}
with open(sys.argv[1], "w") as file:
    json.dump(versions, file)
"""

_FROM_SOURCE: Final = ("--ignore-installed", "--no-build-isolation")
"""pip would take the engine's own for installed, and bring another torch to build with."""


@dataclass(frozen=True, slots=True)
class PairPins(Pins):
    """Everything that decides what the environment of a pair holds.

    Attributes:
        pair: Of which.
        lent: The packages of the engine.
    """

    pair: Pair | None = None
    lent: Path = Path()

    @property
    def _pair(self) -> Pair:
        assert self.pair is not None  # noqa: S101 - made by pair_pins alone
        return self.pair

    @property
    def kind(self) -> Kind:
        """That of this pair: all are beside the engine, under its lock."""
        return pair_kind(self._pair)

    @property
    def name(self) -> str:
        """The name of the environment's folder."""
        python = "".join(map(str, self.python))
        return f"{self.kind.key}-py{python}-{self._pair.version}-{self.digest}"

    @property
    def programs(self) -> tuple[str, ...]:
        """None that is run by name."""
        return ()

    def steps(self) -> tuple[Step, ...]:
        """The steps in their order."""
        pair = self._pair
        vllm, ascend = f"vllm=={pair.vllm}", f"vllm-ascend=={pair.ascend}"
        others = tuple(each for each in self.requirements if each not in (vllm, ascend))
        sources = () if pair.has_wheel else ("--no-binary", "vllm-ascend")
        # Without a device nothing is compiled; without cargo not even what is optional. The sources
        # name another version than their archive, unless they are told it.
        empty = (
            ("CARGO", "/nonexistent"),
            ("PATH", "/usr/bin:/bin"),
            ("VLLM_TARGET_DEVICE", "empty"),
            ("VLLM_VERSION_OVERRIDE", pair.vllm),
        )
        return (
            Step("venv", "an empty virtual environment", 26_000_000),
            Step("registrations", "torch and more, lent by the CPU engine", 0),
            Step("packages", f"{len(others)} packages of other versions", 85_000_000, others),
            Step(
                "vllm",
                f"{vllm}, its Python sources",
                95_000_000,
                (vllm,),
                (*_FROM_SOURCE, "--no-binary", "vllm"),
                empty,
            ),
            Step(
                "vllm-ascend",
                f"{ascend}, built without its kernels",
                25_000_000,
                (ascend,),
                (*_FROM_SOURCE, *sources),
                ASCEND_BUILD,
            ),
            Step("check", "import both, with the stand-ins", 0),
        )

    def registrations(self) -> dict[str, dict[str, str]]:
        """Where the engine's packages are found, after those that are here."""
        return {"": {"glmquant_engine.pth": f"{self.lent}\n"}}


def pair_kind(pair: Pair | None = None) -> Kind:
    """The kind of a pair's environment, or of all.

    Args:
        pair: It; all if left out.
    """
    more = f" --versions {pair.version}" if pair else ""
    return Kind(
        key="pair",
        title=f"the loader of vllm-ascend {pair.ascend}" if pair else "the loaders",
        command=_COMMAND + more,
        variable=ENGINE.variable,
        folder=ENGINE.folder,
        mark="glmquant-pair.json",
        error=EngineError,
    )


def pair_pins(pair: Pair) -> PairPins:
    """What the environment of a pair holds.

    Args:
        pair: It.

    Raises:
        EngineError: There is no place for environments.
    """
    engine = engine_pins()
    home = Layout(engine.kind.home() / engine.name).venv
    return PairPins(
        python=engine.python,
        requirements=pair.requirements,
        smoke=_SMOKE.format(inside=str(INSIDE)),
        nbytes=250_000_000,
        peak_nbytes=900_000_000,
        pair=pair,
        lent=home / "lib" / f"python{engine.python_text}" / "site-packages",
    )


def plan_pair(pair: Pair, python: Path | None = None) -> InstallPlan:
    """Ask everything that can be asked before the first byte of an install; writes nothing.

    Args:
        pair: Which one.
        python: The interpreter to build with; the one that runs this if left out.

    Raises:
        UsageError: ``python`` does not run.
        EngineError: This Python or folder will not do; DiskSpaceError where there is no room.
    """
    return plan_install(python, pins=pair_pins(pair))


def install_pair(
    pair: Pair, python: Path | None = None, observer: InstallObserver | None = None
) -> Built:
    """Build the environment of a pair, or go on with it; a complete one is given as it is.

    Args:
        pair: Which one.
        python: The interpreter to build with; the one that runs this if left out.
        observer: Told of each step.

    Raises:
        UsageError: ``python`` does not run.
        EngineError: The CPU engine is not there, Python or folder will not do, another install is
            at work, or a step failed; DiskSpaceError where there is no room.
    """
    if find_engine() is None:
        raise EngineError(
            "the loaders need the CPU engine, which lends them torch and more",
            where=str(ENGINE.home()),
            expected="a complete environment of the engine",
            found="none",
            hint=_COMMAND,
        )
    return build(plan_pair(pair, python), observer)


def find_pair(pair: Pair) -> Built | None:
    """The complete environment of a pair, or None; runs nothing.

    Args:
        pair: Which one.
    """
    try:
        return find_built(pair_pins(pair)) if find_engine() else None
    except EngineError:
        return None  # a user without a home folder


def pair_standing(pair: Pair) -> Standing:
    """How it stands with the environment of a pair; that there is none is no error.

    Args:
        pair: Which one.

    Raises:
        EngineError: The user has no home folder; a StorageError where it cannot be read.
    """
    return standing_of(pair_pins(pair))


def remove_pairs() -> tuple[Removed, ...]:
    """Remove the environments of all pairs, of whatever pins, finished or not.

    Raises:
        EngineError: An install is at work; a StorageError where a folder cannot be removed.
    """
    return remove(pair_kind())
