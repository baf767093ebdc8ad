"""What of config.json decides the arithmetic of the model."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError

from glmquant.errors import ArchitectureError, ConfigError
from glmquant.glm4_moe import (
    ARCHITECTURE,
    CONFIG_FILE,
    LOOK_ALIKES,
    MAX_TENSORS,
    MODEL_TYPE,
    Glm4MoeConfig,
    first_fault,
)

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

_DEFAULT_ROTATED: Final = 0.5
"""Of ``head_dim`` where config.json does not say (vLLM 0.30.0 ``glm4_moe.py``)."""


class Precision(str, Enum):
    """In what the model calculates between its int8 matrices."""

    BFLOAT16 = "bfloat16"
    """Rounded to BF16 where the engine rounds."""
    FLOAT32 = "float32"
    """F32 throughout: what BF16 rounding does to the results is seen by comparison."""


class ModelConfig(Glm4MoeConfig):
    """The keys of config.json that decide names, shapes and arithmetic."""

    hidden_act: Literal["silu"]
    rms_norm_eps: Positive
    max_position_embeddings: Annotated[int, Field(ge=1, le=100_000_000)]
    rope_theta: Positive
    partial_rotary_factor: Annotated[float, Field(gt=0, le=1)] = _DEFAULT_ROTATED
    rope_scaling: None = None
    num_experts_per_tok: Annotated[int, Field(ge=1)]
    n_group: Annotated[int, Field(ge=1)]
    topk_group: Annotated[int, Field(ge=1)]
    norm_topk_prob: bool
    routed_scaling_factor: Positive

    @property
    def rotary_dim(self) -> int:
        """How many of a head's first elements are rotated."""
        return int(self.head_dim * self.partial_rotary_factor)


def read_settings(fields: dict[str, Any]) -> ModelConfig:
    """The checked keys of config.json, of a BF16 checkpoint or a quantized one.

    transformers 5 writes ``rope_theta`` and ``partial_rotary_factor`` into ``rope_parameters``.

    Args:
        fields: What config.json holds.

    Raises:
        ArchitectureError: It is another model's, or empty.
        ConfigError: A key is missing, wrong, or contradicts another.
    """
    architectures = fields.get("architectures")
    if architectures != [ARCHITECTURE] or fields.get("model_type", MODEL_TYPE) != MODEL_TYPE:
        first = architectures[0] if isinstance(architectures, list) and architectures else None
        name = LOOK_ALIKES.get(first) if isinstance(first, str) else None
        raise ArchitectureError(
            "the reference model runs GLM-4.5, 4.5-Air, 4.6 and 4.7 only",
            where=f"{CONFIG_FILE}: architectures",
            expected=f"[{ARCHITECTURE!r}], model_type {MODEL_TYPE!r}",
            found=(f"{name}: " if name else "")
            + f"architectures {architectures!r}, model_type {fields.get('model_type')!r}"[:200],
        )
    try:
        config = ModelConfig.model_validate(_with_flat_rope(fields))
    except ValidationError as error:
        key, message = first_fault(error)
        raise ConfigError(
            "config.json lacks a key or has a value that the reference model cannot run",
            where=f"{CONFIG_FILE}: {key}",
            expected=message,
            found=repr(fields[key])[:120] if key in fields else "no such key",
            hint="fetch config.json of the same release again",
        ) from error
    _require_sense(config)
    return config


def _with_flat_rope(fields: dict[str, Any]) -> dict[str, Any]:
    rope = fields.get("rope_parameters")
    if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
        return fields if rope is None else fields | {"rope_scaling": rope}
    moved = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    return moved | fields


def _require_sense(config: ModelConfig) -> None:
    groups, experts = config.n_group, config.n_routed_experts
    rules = (
        (
            "num_attention_heads",
            config.num_attention_heads % config.num_key_value_heads == 0,
            f"a multiple of num_key_value_heads, {config.num_key_value_heads}",
        ),
        (
            "head_dim, partial_rotary_factor",
            config.rotary_dim > 0 and config.rotary_dim % 2 == 0,
            "an even number of rotated elements",
        ),
        ("n_group", experts % groups == 0, f"a divisor of n_routed_experts, {experts}"),
        ("n_routed_experts", experts // groups > 1, "at least two experts a group"),
        ("topk_group", config.topk_group <= groups, f"at most n_group, {groups}"),
        (
            "num_experts_per_tok",
            config.num_experts_per_tok <= config.topk_group * (experts // groups),
            "at most the experts of topk_group groups",
        ),
        (
            "num_hidden_layers, n_routed_experts",
            config.tensor_bound <= MAX_TENSORS,
            f"{MAX_TENSORS} tensors at most",
        ),
    )
    for keys, holds, expected in rules:
        if not holds:
            found = ", ".join(f"{key} {getattr(config, key)}" for key in keys.split(", "))
            raise ConfigError(
                "config.json contradicts itself",
                where=f"{CONFIG_FILE}: {keys}",
                expected=expected,
                found=found,
                hint="fetch config.json of the same release again",
            )
