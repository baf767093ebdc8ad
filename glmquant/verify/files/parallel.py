"""P1: does the model divide by a tensor-parallel size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from glmquant.glm4_moe import CONFIG_FILE, Glm4MoeConfig
from glmquant.machines import A3, Layout
from glmquant.sizing import advice, obstacles
from glmquant.verify.files.anatomy import Anatomy
from glmquant.verify.findings import Finding, file_finding

_SIZES: Final = (1, 2, 4, 8, 16, 32)
"""Tensor-parallel sizes that people use."""


def check_parallel(anatomy: Anatomy, tensor_parallel: int) -> Iterator[Finding]:
    """What vLLM refuses to cut, and what cuts badly.

    Args:
        anatomy: The folder.
        tensor_parallel: Cards of one engine.

    Yields:
        Findings with the code P1: an error where no command would do, else a warning.
    """
    config = anatomy.config
    if config is None:
        return
    whole = Layout(A3, 1, tensor_parallel)
    by_expert = Layout(A3, 1, tensor_parallel, is_expert_parallel=True)
    hopeless = list(obstacles(config, by_expert))
    refused = [text for text in obstacles(config, whole) if text not in hopeless]
    if hopeless:
        keys = ", ".join(dict.fromkeys(text.split()[0] for text in hopeless))
        yield file_finding(
            "P1",
            f"the model does not divide by tensor parallelism {tensor_parallel}",
            place=f"{CONFIG_FILE}: {keys}",
            expected="sizes that divide: vLLM refuses others",
            found="; ".join([*hopeless, *refused]),
            hint=_other_sizes(config),
        )
    elif cautions := [*refused, *([] if refused else advice(config, (), whole))]:
        yield file_finding(
            "P1",
            f"the experts divide badly by tensor parallelism {tensor_parallel}",
            place=f"{CONFIG_FILE}: moe_intermediate_size",
            expected="parts that are multiples of 32, or whole experts on each card",
            found="; ".join(cautions),
            hint="serve it with --enable-expert-parallel",
            is_warning=True,
        )


def _other_sizes(config: Glm4MoeConfig) -> str:
    """Sizes that would do."""
    good = [
        size
        for size in _SIZES
        if not list(obstacles(config, Layout(A3, 1, size)))
        or not list(obstacles(config, Layout(A3, 1, size, is_expert_parallel=True)))
    ]
    return f"take one of these for --tensor-parallel-size: {', '.join(map(str, good))}"
