"""Packages of a Python that do not go together, each with the place where that is written."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Final

from glmquant.doctor.checks import Check, State
from glmquant.doctor.packages import Installed
from glmquant.doctor.stacks import (
    CANN_SOURCE,
    MSMODELSLIM_SOURCE,
    NAMING_SOURCE,
    STACKS,
    TORCH_NPU_SOURCE,
    TRITON_SOURCE,
    Stack,
)
from glmquant.doctor.versions import numbers_of, satisfies

GROUP: Final = "python"
_SERVING: Final = ("vllm", "vllm-ascend", "torch-npu")
"""What a machine with NPUs needs to serve."""


def check_packages(installed: Installed, *, has_npus: bool, cann: str | None) -> Iterator[Check]:
    """Every distribution that matters, and every clash.

    Args:
        installed: The Python and what is in it.
        has_npus: Whether this machine has NPUs, so that it is to serve.
        cann: The version of CANN; None where there is none.

    Yields:
        The interpreter, then one check a distribution, then one a clash.
    """
    versions = installed.versions
    yield Check(GROUP, "Python", State.OK, f"{installed.python}, {installed.path}")
    pip = f"{shlex.quote(installed.path)} -m pip"
    for name in ("torch", "torch-npu", "vllm", "vllm-ascend", "transformers", "msmodelslim"):
        if version := versions.get(name):
            yield Check(GROUP, name, State.OK, version)
        elif name in installed.broken:
            yield _broken(name, pip)
        elif has_npus and name in _SERVING:
            remedy = "quay.io/ascend/vllm-ascend has all of it; another Python: --python PATH"
            yield Check(GROUP, name, State.WARNING, "not installed, and needed to serve", remedy)
        else:
            yield Check(GROUP, name, State.NOTE, "not installed")
    for name in ("numpy", "triton", "triton-ascend", "modelscope"):
        if version := versions.get(name):
            yield Check(GROUP, name, State.OK, version)
        elif name in installed.broken:
            yield _broken(name, pip)
    yield from _check_torch(installed, cann, pip)
    yield from _check_triton(versions, pip)
    yield from _check_stack(installed, cann, pip)
    if "msmodelslim" in versions:
        yield Check(
            GROUP,
            "msmodelslim's outputs",
            State.NOTE,
            "its GLM checkpoints lack router biases",
            "glmquant verify DIR, and glmquant add-mtp DIR --from SOURCE",
            MSMODELSLIM_SOURCE,
        )


def _broken(name: str, pip: str) -> Check:
    text = "installed, but its metadata cannot be read"
    return Check(GROUP, name, State.PROBLEM, text, f"{pip} install --force-reinstall {name}")


def _check_torch(installed: Installed, cann: str | None, pip: str) -> Iterator[Check]:
    """Torch and torch-npu are of one number, and torch-npu has CANN."""
    torch, npu = installed.versions.get("torch"), installed.versions.get("torch-npu")
    if npu is None:
        return
    number = ".".join(map(str, (numbers_of(npu) or ())))
    if torch is None or numbers_of(torch) != numbers_of(npu):
        yield Check(
            GROUP,
            "torch with torch-npu",
            State.PROBLEM,
            f"torch {torch or 'is missing'}, torch-npu {npu}: one is built for another",
            f"{pip} install 'torch=={number}.*'",
            TORCH_NPU_SOURCE,
        )
    if cann is None:
        yield Check(
            GROUP,
            "torch-npu with CANN",
            State.PROBLEM,
            "torch-npu is installed, CANN is not: import torch fails",
            f"install CANN, or {pip} uninstall -y torch-npu where no NPU is used",
            CANN_SOURCE,
        )


def _check_triton(versions: dict[str, str], pip: str) -> Iterator[Check]:
    """Triton and triton-ascend overwrite each other."""
    theirs, ascend = versions.get("triton"), versions.get("triton-ascend")
    if theirs and ascend:
        yield Check(
            GROUP,
            "triton with triton-ascend",
            State.PROBLEM,
            f"triton {theirs} and triton-ascend {ascend} have the same files",
            f"{pip} uninstall -y triton triton-ascend && {pip} install triton-ascend=={ascend}",
            TRITON_SOURCE,
        )
    elif theirs and versions.get("vllm-ascend"):
        yield Check(
            GROUP,
            "triton with vllm-ascend",
            State.PROBLEM,
            f"triton {theirs} has no back-end for NPUs, triton-ascend is missing",
            f"{pip} uninstall -y triton && {pip} install triton-ascend",
            "vllm-ascend Dockerfile (182b75e), which removes what vllm brings along on x86-64",
        )


def _check_stack(installed: Installed, cann: str | None, pip: str) -> Iterator[Check]:
    """All else against the release of vllm-ascend that is there."""
    versions = installed.versions
    ascend = versions.get("vllm-ascend")
    if ascend is None:
        return
    stack = STACKS.get(ascend.partition("+")[0]) or _declared(ascend, installed)
    yield from _check_vllm(ascend, versions.get("vllm"), stack, pip)
    for name, wanted in stack.requires.items():
        version = versions.get(name)
        if version is not None and not satisfies(version, wanted):
            yield Check(
                GROUP,
                f"{name} with vllm-ascend",
                State.PROBLEM,
                f"{name} {version}, vllm-ascend {ascend} takes {wanted}",
                f"{pip} install {shlex.quote(name + wanted)}",
                stack.source,
            )
    if stack.python and not satisfies(installed.python, stack.python):
        yield Check(
            GROUP,
            "Python with vllm-ascend",
            State.PROBLEM,
            f"Python {installed.python}, vllm-ascend {ascend} takes {stack.python}",
            f"a virtual environment of a Python {stack.python}",
            NAMING_SOURCE,
        )
    if stack.cann and cann is not None and numbers_of(cann) != numbers_of(stack.cann):
        yield Check(
            GROUP,
            "CANN with vllm-ascend",
            State.WARNING,
            f"CANN {cann}, vllm-ascend {ascend} is released for {stack.cann}",
            f"CANN {stack.cann}, or the release of vllm-ascend for {cann}",
            NAMING_SOURCE,
        )


def _declared(ascend: str, installed: Installed) -> Stack:
    """What a release that the table lacks says of itself: its name and its requirements."""
    vllm = ".".join(map(str, _three(ascend)))
    return Stack(ascend, vllm, installed.requires, f"vllm-ascend {ascend} METADATA, as installed")


def _three(version: str) -> tuple[int, ...]:
    numbers = (*(numbers_of(version) or ()), 0, 0, 0)
    return numbers[:3]


def _check_vllm(ascend: str, vllm: str | None, stack: Stack, pip: str) -> Iterator[Check]:
    """A plug-in of vllm-ascend works with the one release of vLLM that it was made for."""
    # A build from source would take its version of git, which is not there.
    build = f"VLLM_TARGET_DEVICE=empty VLLM_VERSION_OVERRIDE={stack.vllm}"
    remedy = f"{build} {pip} install --no-binary vllm vllm=={stack.vllm}"
    if vllm is None:
        text = f"vllm is missing, vllm-ascend {ascend} plugs into {stack.vllm}"
    elif numbers_of(vllm) != numbers_of(stack.vllm):
        text = f"vllm {vllm}, vllm-ascend {ascend} plugs into {stack.vllm}"
    else:
        return
    known = ascend.partition("+")[0] in STACKS
    state = State.PROBLEM if known else State.WARNING
    yield Check(GROUP, "vllm with vllm-ascend", state, text, remedy, NAMING_SOURCE)
