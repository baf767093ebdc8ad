"""What is installed in a Python, by its metadata alone: nothing is imported."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any, Final, NamedTuple

from glmquant.doctor.programs import run_program
from glmquant.errors import UsageError

NAMES: Final = (
    "torch",
    "torch-npu",
    "vllm",
    "vllm-ascend",
    "msmodelslim",
    "transformers",
    "numpy",
    "triton",
    "triton-ascend",
    "modelscope",
)
"""The distributions that matter, as the package index calls them."""

_ASK: Final = """
import json, platform, sys
from importlib import metadata
versions, requires, broken = {}, [], []
for name in sys.argv[1:]:
    try:
        versions[name] = metadata.version(name) or broken.append(name)
    except metadata.PackageNotFoundError:
        pass
    except Exception:
        broken.append(name)
versions = {name: str(version) for name, version in versions.items() if version}
if "vllm-ascend" in versions:
    requires = metadata.requires("vllm-ascend") or []
python = platform.python_version()
print(json.dumps({"python": python, "versions": versions, "requires": requires,
                  "broken": broken}))
"""
_REQUIREMENT: Final = re.compile(r"([A-Za-z0-9._-]+)\s*\(?([<>=!][^;)]*)?\)?\s*")


class Installed(NamedTuple):
    """A Python and its distributions.

    Attributes:
        path: The interpreter.
        python: Its version.
        versions: Distribution → version, of ``NAMES`` that are there.
        requires: What vllm-ascend, if it is there, declares of them: distribution → versions.
        broken: Distributions whose metadata cannot be read.
    """

    path: str
    python: str
    versions: dict[str, str]
    requires: dict[str, str]
    broken: tuple[str, ...] = ()


def installed_here() -> Installed:
    """What this interpreter has."""
    versions, broken = {}, []
    for name in NAMES:
        try:
            # A broken dist-info has no version: metadata then gives None, or raises a KeyError.
            version: str | None = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        except (KeyError, OSError, ValueError):  # UnicodeDecodeError is one
            version = None
        if version:
            versions[name] = str(version)
        else:
            broken.append(name)
    declared = metadata.requires("vllm-ascend") or [] if "vllm-ascend" in versions else []
    python = ".".join(map(str, sys.version_info[:3]))
    return Installed(sys.executable, python, versions, _requirements(declared), tuple(broken))


def installed_in(python: Path, limit_seconds: float) -> Installed:
    """What another interpreter has.

    Args:
        python: The interpreter.
        limit_seconds: How long it may take.

    Raises:
        UsageError: It cannot be run, or answers with something else.
    """
    ran = run_program([str(python), "-c", _ASK, *NAMES], limit_seconds)
    try:
        told: Any = json.loads(ran.output.splitlines()[-1]) if ran.failure is None else None
        versions = {str(name): str(version) for name, version in told["versions"].items()}
        declared = _requirements(map(str, told["requires"]))
        broken = tuple(map(str, told["broken"]))
        return Installed(str(python), str(told["python"]), versions, declared, broken)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise UsageError(
            "that Python cannot be asked for its packages",
            where=os.fspath(python),
            expected="the path of a Python 3.8 or newer",
            found=ran.failure or ran.last_line or "no answer",
            hint="glmquant doctor --python VENV/bin/python",
        ) from None


def _requirements(declared: Iterable[str]) -> dict[str, str]:
    """``torch==2.10.0`` → ``{"torch": "==2.10.0"}``; those with a marker or an extra are left."""
    found = {}
    for text in declared:
        match = _REQUIREMENT.fullmatch(text)
        if match and match[2]:
            found[match[1].lower().replace("_", "-")] = match[2].replace(" ", "")
    return {name: wanted for name, wanted in found.items() if name in NAMES}
