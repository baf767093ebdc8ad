"""Values of config.json that an engine stumbles over before it looks at a weight.

Measured as the rules are. transformers 5, which 0.23 and later ask for, checks the types of the
keys that it knows, where 4 takes what comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from glmquant.glm4_moe import CONFIG_FILE, MODEL_TYPE
from glmquant.survey import printable
from glmquant.verify.engines.rules import Engine

OF_CONFIG: Final = "a value of config.json is none that the engine can build a model by"
"""What is said of a refusal whose key is not known."""

_TYPES: Final[dict[str, type]] = {
    "hidden_act": str,
    "max_position_embeddings": int,
    "num_experts_per_tok": int,
    "n_group": int,
    "topk_group": int,
    "rms_norm_eps": float,
    "routed_scaling_factor": float,
    "norm_topk_prob": bool,
}
"""Keys of ``Glm4MoeConfig`` of transformers 5 beside those that decide shapes. An int is no float
to it."""

_OTHER_TYPES: Final = frozenset({"glm4", "llama"})
"""Model types of transformers that 0.30 was seen to load the class of ``architectures`` with."""

_DTYPES: Final = frozenset({"bfloat16", "float16", "float32", "float64", "float", "half", "double"})

_ROPE_TYPES: Final = frozenset(
    {"default", "linear", "dynamic", "yarn", "longrope", "llama3", "mllama4", "ntk"}
)
"""Read in vLLM 0.13 to 0.30, ``rotary_embedding``: those that every version has."""


def refusal_of_settings(config: Mapping[str, Any], engine: Engine) -> str | None:
    """Why a version refuses config.json whatever the tensors are; None where it does not.

    Args:
        config: config.json.
        engine: The version.
    """
    return next(_refusals(config, engine), None)


def _refusals(config: Mapping[str, Any], engine: Engine) -> Iterator[str]:
    if not isinstance(config.get("model_type"), str):
        yield f"{CONFIG_FILE}: no model_type, by which transformers knows the model"
    elif config["model_type"] != MODEL_TYPE and not (
        engine.guesses and config["model_type"] in _OTHER_TYPES
    ):
        # It tells vllm-ascend up to 0.26 which linears are one parameter.
        yield _told(config, "model_type")
    if config.get("quantization_config", ...) is None and not engine.checks_types:
        yield _told(config, "quantization_config")
    if engine.checks_types:
        for key, kind in _TYPES.items():
            if key in config and type(config[key]) is not kind:
                yield _told(config, key)
    for key in ("n_group", "topk_group"):
        if config.get(key, ...) is None:
            yield _told(config, key)
    longest = config.get("max_position_embeddings", 1)
    if not isinstance(longest, int) or longest < 1:
        yield _told(config, "max_position_embeddings")
    if "speculators_config" in config:
        yield f"{CONFIG_FILE}: speculators_config, of a draft for another model"
    if config.get("compression_config"):
        yield f"{CONFIG_FILE}: compression_config, of another tool's format"
    if config.get("hidden_act", "silu") != "silu":
        yield _told(config, "hidden_act")
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    if isinstance(config.get(key), str) and config[key] not in _DTYPES:
        yield _told(config, key)
    yield from _refusals_of_rope(config, engine)


def _refusals_of_rope(config: Mapping[str, Any], engine: Engine) -> Iterator[str]:
    base = config.get("rope_theta", 1)
    if not isinstance(base, (int, float)) and (base is not None or engine.checks_types):
        yield _told(config, "rope_theta")
    scaling = config.get("rope_scaling")
    if isinstance(scaling, dict):
        kind = scaling.get("rope_type", scaling.get("type"))
        if kind not in _ROPE_TYPES or (kind != "default" and "factor" not in scaling):
            yield _told(config, "rope_scaling")
    factor = config.get("partial_rotary_factor")
    if isinstance(factor, (int, float)) and not 0 < factor <= 1:
        yield _told(config, "partial_rotary_factor")


def _told(config: Mapping[str, Any], key: str) -> str:
    return printable(f"{CONFIG_FILE}: {key} is {config[key]!r}", 200)
