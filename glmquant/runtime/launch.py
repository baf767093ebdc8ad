"""The command that serves a checkpoint: one function, for whoever starts or prints it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

SERVED_NAME: Final = "glmquant"
"""Under which the model is asked for, wherever it lies."""

KEY_VARIABLE: Final = "VLLM_API_KEY"
"""Has the key that vLLM's server asks for, and that is sent to one."""


def key_here() -> str | None:
    """The key of the server, where one is set."""
    return os.environ.get(KEY_VARIABLE) or None


@dataclass(frozen=True, slots=True)
class ServeRequest:
    """What is to be served, and how.

    Attributes:
        folder: The checkpoint.
        port: On which the server listens.
        host: Where it listens: this machine alone, unless told otherwise.
        quantization: What ``--quantization`` says; None for BF16 weights.
        speculative_tokens: How many the MTP layer drafts at a step; 0 for none.
        tensor_parallel: Over how many cards each layer is divided.
        expert_parallel: Whole experts on a card in place of slices.
        max_model_len: Most tokens of prompt and answer together; None for the model's own.
        max_num_seqs: Most requests at a time; None for the engine's own choice.
        dtype: Of activations and float weights; None for the checkpoint's.
        eager: Without graphs, which cost minutes to capture.
        prefix_caching: Keep the beginnings of prompts; without it each one is computed whole.
        max_logprobs: Most log-probabilities that may be asked for at a token; None for the default.
    """

    folder: Path
    port: int
    host: str = "127.0.0.1"
    quantization: str | None = None
    speculative_tokens: int = 0
    tensor_parallel: int = 1
    expert_parallel: bool = False
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    dtype: str | None = None
    eager: bool = False
    prefix_caching: bool = True
    max_logprobs: int | None = None


def serve_command(request: ServeRequest, program: str = "vllm") -> list[str]:
    """The words of the ``vllm serve`` command.

    Args:
        request: What is to be served.
        program: The ``vllm`` to run.
    """
    options = {
        "--host": request.host,
        "--port": request.port,
        "--served-model-name": SERVED_NAME,
        "--seed": 0,
    }
    return command_words([program, "serve"], str(request.folder), options | engine_options(request))


def engine_options(request: ServeRequest) -> dict[str, Any]:
    """Flag → value of what is told to the engine, whether it serves or measures itself.

    Args:
        request: What is to be loaded, and how.
    """
    tokens = request.speculative_tokens
    return {
        "--quantization": request.quantization,
        "--dtype": request.dtype,
        "--max-model-len": request.max_model_len,
        "--max-num-seqs": request.max_num_seqs,
        "--max-logprobs": request.max_logprobs,
        "--tensor-parallel-size": request.tensor_parallel if request.tensor_parallel > 1 else None,
        "--enable-expert-parallel": request.expert_parallel,
        "--enforce-eager": request.eager,
        "--no-enable-prefix-caching": not request.prefix_caching,
        "--speculative-config": speculative_config(tokens) if tokens else None,
    }


def command_words(program: Sequence[str], folder: str, options: Mapping[str, Any]) -> list[str]:
    """The words of a command that serves a folder, whatever engine it is of.

    Args:
        program: Its first words.
        folder: What stands behind them.
        options: Flag → value, in the order of the command. True is the flag alone, None and False
            are left out, and what is no text or number is written as JSON.
    """
    words = [*program, folder]
    for flag, value in options.items():
        if value is True:
            words.append(flag)
        elif value is not None and value is not False:
            is_plain = isinstance(value, (str, int, float))
            words += [flag, str(value) if is_plain else json.dumps(value)]
    return words


def speculative_config(tokens: int) -> str:
    """The JSON of ``--speculative-config`` for drafting with the model's own MTP layer."""
    return json.dumps({"method": "mtp", "num_speculative_tokens": tokens})
