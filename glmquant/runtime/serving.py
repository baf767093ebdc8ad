"""Which engine serves a checkpoint on this machine, and with which settings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from glmquant.observer import Observer
from glmquant.runtime.connection import ANSWER_SECONDS
from glmquant.runtime.environment.layout import Engine
from glmquant.runtime.launch import KEY_VARIABLE, ServeRequest, serve_command
from glmquant.runtime.server import Server, free_port, running

STANDINS: Final = Path(__file__).parent / "standins"
"""Modules that the CPU engine finds before its own."""

TOP_LOGPROBS: Final = 64
"""Next tokens whose log-probabilities are asked for."""

_QUIET: Final = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


_FOREIGN: Final = (KEY_VARIABLE, "VLLM_USE_MODELSCOPE", "VLLM_LOGGING_CONFIG_PATH")
"""Variables that would have a server of ours ask for a key, fetch or be silent."""


@dataclass(frozen=True, slots=True)
class Backend:
    """An engine that can be started here.

    Attributes:
        key: As ``--engine`` calls it.
        name: For people, with versions.
        program: Its ``vllm``.
        start_seconds: How long it may take to be ready.
        is_exact: Tokens with and without drafting have to be the same, to the last.
        tensor_parallel: Over how many cards a layer is divided.
        environment: What it needs of variables, over those of this process.
        dropped: Variables of this process that it must not see.
    """

    key: str
    name: str
    program: str
    start_seconds: float
    is_exact: bool
    tensor_parallel: int = 1
    environment: dict[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()


def cpu_backend(engine: Engine) -> Backend:
    """The genuine vLLM on this machine's processor, with vllm-ascend's quantization code.

    Args:
        engine: Its environment.
    """
    versions = engine.versions
    return Backend(
        key="cpu",
        name=f"vLLM {versions['vllm']} on the CPU with vllm-ascend {versions['vllm-ascend']}'s "
        "quantization code",
        program=str(engine.vllm),
        start_seconds=900.0,
        is_exact=True,
        environment=_QUIET
        | {
            "PYTHONPATH": str(STANDINS),
            "PYTHONNOUSERSITE": "1",
            "VLLM_PLUGINS": "glmquant_standins",
            "VLLM_CPU_KVCACHE_SPACE": "1",
        },
        dropped=(*_FOREIGN, "PYTHONHOME", "VIRTUAL_ENV"),
    )


def ascend_backend(program: str, npus: int) -> Backend:
    """The vLLM of an NPU host.

    Args:
        program: Its ``vllm``.
        npus: How many NPUs there are.
    """
    return Backend(
        key="vllm-ascend",
        name=f"vLLM with vllm-ascend on {npus} NPUs",
        program=program,
        start_seconds=7200.0,
        is_exact=False,
        tensor_parallel=npus,
        # vLLM's own limit of 600 s is short of what 366 GB take to load.
        environment=_QUIET | {"VLLM_ENGINE_READY_TIMEOUT_S": "7200"},
        dropped=_FOREIGN,
    )


@contextmanager
def serving(
    backend: Backend,
    folder: Path,
    *,
    what: str,
    is_quantized: bool,
    max_model_len: int,
    observer: Observer,
    speculative_tokens: int = 0,
    dtype: str | None = None,
    limit_seconds: float | None = None,
) -> Iterator[Server]:
    """A server of a checkpoint that is ready, and gone when the block ends.

    Args:
        backend: What runs it.
        folder: The checkpoint.
        what: What it is, for progress: ``the source``.
        is_quantized: It is W8A8.
        max_model_len: Most tokens of a prompt and its answer.
        observer: Is told how it goes.
        speculative_tokens: How many the MTP layer drafts at a step.
        dtype: Of activations and float weights; None for BF16.
        limit_seconds: How long it may take to be ready, and to answer; None for the usual.

    Raises:
        EngineError: It cannot be started, ended, or did not answer in time.
    """
    request = ServeRequest(
        folder=folder.resolve(),
        port=free_port(),
        quantization="ascend" if is_quantized else None,
        speculative_tokens=speculative_tokens,
        tensor_parallel=backend.tensor_parallel,
        expert_parallel=backend.tensor_parallel > 1,
        max_model_len=max_model_len,
        max_num_seqs=8,
        dtype=dtype or "bfloat16",
        eager=True,
        prefix_caching=False,
        max_logprobs=TOP_LOGPROBS,
    )
    environment = {key: value for key, value in os.environ.items() if key not in backend.dropped}
    with running(
        serve_command(request, backend.program),
        environment | backend.environment,
        f"http://{request.host}:{request.port}",
        what=what,
        limit_seconds=limit_seconds or backend.start_seconds,
        answer_seconds=limit_seconds or ANSWER_SECONDS,
        observer=observer,
    ) as server:
        yield server
