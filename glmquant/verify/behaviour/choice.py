"""Which engine is asked: the one that was named, else the best that this machine has."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from glmquant.errors import UsageError
from glmquant.runtime import hosts
from glmquant.runtime.environment import host
from glmquant.runtime.environment.layout import Engine, find_engine
from glmquant.runtime.serving import Backend, ascend_backend, cpu_backend

REFERENCE_NBYTES: Final = 10**9
"""Larger checkpoints take the reference model too long to be run unasked."""


class EngineKind(str, Enum):
    """What ``--engine`` says."""

    AUTO = "auto"
    ASCEND = "vllm-ascend"
    CPU = "cpu"
    REFERENCE = "reference"
    NONE = "none"


INSTALL: Final = "install"
"""Of an engine, before it can be asked."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What will be asked.

    Attributes:
        kind: Never ``AUTO``.
        backend: How a server is started; None where none is.
        reason: Why no engine is asked, or not the next better one.
    """

    kind: EngineKind
    backend: Backend | None = None
    reason: str | None = None


def choose_engine(wanted: EngineKind, nbytes: int) -> Choice:
    """The engine for a checkpoint.

    Args:
        wanted: What the user named.
        nbytes: Of the largest weights that it will hold.

    Raises:
        UsageError: The one that was named cannot run here.
    """
    if wanted is EngineKind.AUTO:
        return _best(nbytes)
    if wanted is EngineKind.NONE:
        return Choice(wanted)
    if wanted is EngineKind.REFERENCE:
        if not hosts.has_torch():
            raise UsageError(
                "the reference model needs torch and transformers",
                where="--engine reference",
                expected="both in the Python that runs glmquant",
                found="one of them is missing",
                hint="pip install 'glmquant[reference]'",
            )
        return Choice(wanted)
    return _ascend() if wanted is EngineKind.ASCEND else _cpu(nbytes)


def _ascend() -> Choice:
    npus, program = hosts.count_npus(), hosts.find_vllm()
    if not npus or program is None:
        raise UsageError(
            "vllm-ascend cannot be run here",
            where="--engine vllm-ascend",
            expected="NPUs in /dev, and the command vllm on the PATH; or --url of a running server",
            found=f"{npus} NPUs, {program or 'no command vllm'}",
            hint="run it in the vllm-ascend container, or name --url http://HOST:PORT",
        )
    return Choice(EngineKind.ASCEND, ascend_backend(program, npus))


def require_cpu_engine(nbytes: int, asked: str, otherwise: str) -> Engine:
    """The CPU engine, which has room for weights.

    Args:
        nbytes: Of the weights.
        asked: The option that asked for it.
        otherwise: What to do where it has not.

    Raises:
        UsageError: There is none, or too little memory.
    """
    engine = find_engine()
    if engine is None:
        raise UsageError(
            "the CPU engine is not installed",
            where=asked,
            expected="the environment that `glmquant engine install` makes",
            found="none, or an unfinished one",
            hint="glmquant engine install",
        )
    needed, available = hosts.engine_nbytes(nbytes), hosts.available_nbytes()
    if needed > available:
        raise UsageError(
            "the checkpoint does not fit the CPU engine",
            where=asked,
            expected=f"{needed / 1e9:.1f} GB of memory",
            found=f"{available / 1e9:.1f} GB available",
            hint=otherwise,
        )
    return engine


def _cpu(nbytes: int) -> Choice:
    otherwise = "--engine reference holds one layer at a time; --engine none reads files alone"
    return Choice(
        EngineKind.CPU, cpu_backend(require_cpu_engine(nbytes, "--engine cpu", otherwise))
    )


def _best(nbytes: int) -> Choice:
    if hosts.count_npus() and hosts.find_vllm() is not None:
        return _ascend()
    reason = None
    if find_engine() is not None:
        try:
            return _cpu(nbytes)
        except UsageError as error:
            reason = f"{error.what}: it takes {error.expected}, {error.found}"
    if hosts.has_torch() and nbytes < REFERENCE_NBYTES:
        return Choice(EngineKind.REFERENCE, reason=reason)
    return Choice(EngineKind.NONE, reason=reason)


def next_engine(asked: str | None) -> str | None:
    """The next better engine than the one that was asked, as ``--engine`` calls it.

    Args:
        asked: Which it was; None for none.

    Returns:
        ``INSTALL`` where it has to be installed first; None where there is no better one.
    """
    if asked in (None, EngineKind.REFERENCE.value):
        if find_engine() is not None:
            return EngineKind.CPU.value
        if host.missing_here() is None:
            return INSTALL
    return EngineKind.ASCEND.value if asked in (None, "reference", "cpu") else None
