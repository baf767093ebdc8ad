"""GLM-4.x MoE: what config.json says, and the tensors that follow from it.

Names and shapes as in transformers 5.23 ``Glm4MoeConfig`` / ``modeling_glm4_moe.py`` and vLLM
0.30.0 ``glm4_moe.py``, ``glm4_moe_mtp.py``. No layer number is written here: the MTP layer is
``num_hidden_layers``.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Annotated, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glmquant.errors import AlreadyQuantizedError, ArchitectureError, ConfigError
from glmquant.jsontext import parse_object

CONFIG_FILE: Final = "config.json"
ARCHITECTURE: Final = "Glm4MoeForCausalLM"
MODEL_TYPE: Final = "glm4_moe"

LOOK_ALIKES: Final = {
    "Glm4MoeLiteForCausalLM": "GLM-4.7-Flash",
    "Glm4vMoeForConditionalGeneration": "GLM-4.5V or GLM-4.6V (vision)",
    "Glm46VForConditionalGeneration": "GLM-4.6V (vision)",
    "Glm4vForConditionalGeneration": "GLM-4.1V or GLM-4.6V-Flash (vision)",
    "Glm4ForCausalLM": "dense GLM-4",
    "GlmForCausalLM": "dense GLM",
    "ChatGLMModel": "ChatGLM",
    "ChatGLMForConditionalGeneration": "ChatGLM",
    "GlmMoeDsaForCausalLM": "GLM-5",
}


class Role(str, Enum):
    """What a tensor does in the model: recipes choose schemes by it."""

    EMBEDDING = "embedding"
    NORM = "norm"
    ATTENTION_QKV = "attention_qkv"
    ATTENTION_OUT = "attention_out"
    ATTENTION_BIAS = "attention_bias"
    DENSE_MLP = "dense_mlp"
    ROUTED_EXPERT = "routed_expert"
    SHARED_EXPERT = "shared_expert"
    ROUTER = "router"
    ROUTER_BIAS = "router_bias"
    LM_HEAD = "lm_head"
    MTP = "mtp"


Count = Annotated[int, Field(ge=1, le=10_000_000)]


MAX_TENSORS: Final = 1_000_000
"""A config.json that calls for more is not believed; GLM-4.6 has 44,689."""


class Glm4MoeConfig(BaseModel):
    """The keys of config.json that decide names, shapes and placement."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    hidden_size: Count
    intermediate_size: Count
    moe_intermediate_size: Count
    vocab_size: Count
    num_hidden_layers: Annotated[int, Field(ge=1, le=1000)]
    first_k_dense_replace: Annotated[int, Field(ge=0, le=1000)]
    num_attention_heads: Count
    num_key_value_heads: Count
    head_dim: Count
    n_routed_experts: Annotated[int, Field(ge=1, le=10_000)]
    n_shared_experts: Annotated[int, Field(ge=0, le=1000)]
    num_nextn_predict_layers: Annotated[int, Field(ge=0, le=100)] | None = None
    use_qk_norm: bool = False
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    torch_dtype: str | None = None
    dtype: str | None = None

    @property
    def tensor_bound(self) -> int:
        """At least as many as ``expected_tensors`` would list, without listing them."""
        layers = self.num_hidden_layers + (self.num_nextn_predict_layers or 0)
        return layers * (3 * self.n_routed_experts + 20) + 10

    @property
    def model_dtype(self) -> str | None:
        """``torch_dtype`` (4.5, 4.6) or ``dtype`` (4.7)."""
        return self.torch_dtype or self.dtype


def first_fault(error: ValidationError) -> tuple[str, str]:
    """The first key of config.json that is missing or wrong, and why."""
    first = error.errors(include_url=False)[0]
    return ".".join(map(str, first["loc"])), first["msg"]


def parse_config(data: bytes) -> Glm4MoeConfig:
    """The checked configuration of a BF16 GLM-4.x MoE model.

    Args:
        data: The bytes of config.json.

    Returns:
        The keys we use.

    Raises:
        JsonError: Not a JSON object.
        ArchitectureError: Another model.
        AlreadyQuantizedError: There is a ``quantization_config``.
        ConfigError: A key is missing, of the wrong type, or contradicts another.
    """
    fields = parse_object(data, CONFIG_FILE)
    architectures = fields.get("architectures")
    if architectures != [ARCHITECTURE] or fields.get("model_type", MODEL_TYPE) != MODEL_TYPE:
        first = architectures[0] if isinstance(architectures, list) and architectures else None
        found = f"architectures {architectures!r}, model_type {fields.get('model_type')!r}"
        if isinstance(first, str) and first in LOOK_ALIKES:
            found = f"{LOOK_ALIKES[first]}: {found}"
        raise ArchitectureError(
            "this is not a GLM-4.5, 4.5-Air, 4.6 or 4.7 checkpoint",
            where=f"{CONFIG_FILE}: architectures",
            expected=f"[{ARCHITECTURE!r}], model_type {MODEL_TYPE!r}",
            found=found,
            hint="look-alikes (Flash, V, GLM-5) have other tensors and need another recipe",
        )
    for key in ("quantization_config", "compression_config"):
        if fields.get(key):
            method = fields[key].get("quant_method") if isinstance(fields[key], dict) else None
            raise AlreadyQuantizedError(
                "the source is already quantized",
                where=f"{CONFIG_FILE}: {key}",
                expected="the BF16 release, without that key",
                found=f"quant_method {method!r}",
                hint="take the BF16 weights of the same model",
            )
    try:
        config = Glm4MoeConfig.model_validate(fields)
    except ValidationError as error:
        key, message = first_fault(error)
        raise ConfigError(
            "config.json lacks a key or has a wrong value",
            where=f"{CONFIG_FILE}: {key}",
            expected=message,
            found=repr(fields[key])[:120] if key in fields else "no such key",
            hint="fetch config.json of the same release again",
        ) from error
    _check_sense(config)
    return config


def _check_sense(config: Glm4MoeConfig) -> None:
    def contradiction(keys: str, expected: str, found: str, hint: str | None = None) -> ConfigError:
        return ConfigError(
            "config.json contradicts itself",
            where=f"{CONFIG_FILE}: {keys}",
            expected=expected,
            found=found,
            hint=hint or "fetch config.json of the same release again",
        )

    if config.torch_dtype and config.dtype and config.torch_dtype != config.dtype:
        raise contradiction(
            "torch_dtype, dtype", "one dtype", f"{config.torch_dtype!r} and {config.dtype!r}"
        )
    if config.model_dtype != "bfloat16":
        raise ConfigError(
            "the model is not a BF16 one",
            where=f"{CONFIG_FILE}: torch_dtype or dtype",
            expected="'bfloat16': the engine then holds the scales in BF16, and they are chosen so",
            found=repr(config.model_dtype),
            hint="take the BF16 release, or set the key to 'bfloat16' if it is wrong",
        )
    if config.tensor_bound > MAX_TENSORS:
        raise contradiction(
            "num_hidden_layers, n_routed_experts",
            f"{MAX_TENSORS} tensors at most",
            f"layers and experts for {config.tensor_bound}",
        )
    if config.first_k_dense_replace >= config.num_hidden_layers:
        raise contradiction(
            "first_k_dense_replace",
            f"less than num_hidden_layers, {config.num_hidden_layers}",
            str(config.first_k_dense_replace),
        )
    if config.num_attention_heads % config.num_key_value_heads:
        raise contradiction(
            "num_attention_heads",
            f"a multiple of num_key_value_heads, {config.num_key_value_heads}",
            str(config.num_attention_heads),
        )


class ExpectedTensor(NamedTuple):
    """A tensor that the configuration calls for.

    Attributes:
        role: What it does; every tensor of an MTP layer has the role ``MTP``.
        shape: Its dimensions.
        is_router_bias: ``e_score_correction_bias``, F32 in the releases, also in an MTP layer.
        is_required: Not one of the copies that a release may leave out.
    """

    role: Role
    shape: tuple[int, ...]
    is_router_bias: bool = False
    is_required: bool = True


def mtp_layers(config: Glm4MoeConfig, count: int) -> range:
    """The indices of ``count`` MTP layers."""
    return range(config.num_hidden_layers, config.num_hidden_layers + count)


def optional_mtp_weights(layer: int) -> tuple[str, str]:
    """Names that vllm-ascend looks up for an MTP layer whether the tensors are there or not.

    4.5 has copies of the embedding and the head there, 4.6 has none, and the engine shares the
    target's. Without the description's entries 0.14-0.22 and 0.24-0.26 raise a KeyError.
    """
    return (
        f"model.layers.{layer}.embed_tokens.weight",
        f"model.layers.{layer}.shared_head.head.weight",
    )


def expected_tensors(config: Glm4MoeConfig, mtp_count: int) -> dict[str, ExpectedTensor]:
    """Every tensor of a checkpoint with this configuration, in the order of the model.

    Args:
        config: The configuration.
        mtp_count: How many MTP layers there are.

    Returns:
        Name → what is expected of it.
    """
    vocabulary = (config.vocab_size, config.hidden_size)
    tensors = {"model.embed_tokens.weight": ExpectedTensor(Role.EMBEDDING, vocabulary)}
    for layer in range(config.num_hidden_layers):
        for suffix, tensor in _decoder_layer(config, layer < config.first_k_dense_replace):
            tensors[f"model.layers.{layer}.{suffix}"] = tensor
    tensors["model.norm.weight"] = ExpectedTensor(Role.NORM, (config.hidden_size,))
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = ExpectedTensor(Role.LM_HEAD, vocabulary)
    for layer in mtp_layers(config, mtp_count):
        for suffix, tensor in _mtp_layer(config):
            tensors[f"model.layers.{layer}.{suffix}"] = tensor
    return tensors


def _decoder_layer(config: Glm4MoeConfig, is_dense: bool) -> Iterator[tuple[str, ExpectedTensor]]:
    hidden = config.hidden_size
    query = config.num_attention_heads * config.head_dim
    key_value = config.num_key_value_heads * config.head_dim
    yield "input_layernorm.weight", ExpectedTensor(Role.NORM, (hidden,))
    for letter, rows in (("q", query), ("k", key_value), ("v", key_value)):
        name = f"self_attn.{letter}_proj"
        yield f"{name}.weight", ExpectedTensor(Role.ATTENTION_QKV, (rows, hidden))
        if config.attention_bias:
            yield f"{name}.bias", ExpectedTensor(Role.ATTENTION_BIAS, (rows,))
    yield "self_attn.o_proj.weight", ExpectedTensor(Role.ATTENTION_OUT, (hidden, query))
    if config.use_qk_norm:
        for letter in "qk":
            yield (
                f"self_attn.{letter}_norm.weight",
                ExpectedTensor(Role.NORM, (config.head_dim,)),
            )
    yield "post_attention_layernorm.weight", ExpectedTensor(Role.NORM, (hidden,))
    if is_dense:
        yield from _mlp("mlp", Role.DENSE_MLP, config.intermediate_size, hidden)
        return
    for expert in range(config.n_routed_experts):
        yield from _mlp(
            f"mlp.experts.{expert}", Role.ROUTED_EXPERT, config.moe_intermediate_size, hidden
        )
    experts = config.n_routed_experts
    yield "mlp.gate.weight", ExpectedTensor(Role.ROUTER, (experts, hidden))
    yield (
        "mlp.gate.e_score_correction_bias",
        ExpectedTensor(Role.ROUTER_BIAS, (experts,), is_router_bias=True),
    )
    if config.n_shared_experts:
        rows = config.moe_intermediate_size * config.n_shared_experts
        yield from _mlp("mlp.shared_experts", Role.SHARED_EXPERT, rows, hidden)


def _mlp(prefix: str, role: Role, inner: int, hidden: int) -> Iterator[tuple[str, ExpectedTensor]]:
    yield f"{prefix}.gate_proj.weight", ExpectedTensor(role, (inner, hidden))
    yield f"{prefix}.up_proj.weight", ExpectedTensor(role, (inner, hidden))
    yield f"{prefix}.down_proj.weight", ExpectedTensor(role, (hidden, inner))


def _mtp_layer(config: Glm4MoeConfig) -> Iterator[tuple[str, ExpectedTensor]]:
    hidden = config.hidden_size
    vocabulary = (config.vocab_size, hidden)
    yield "embed_tokens.weight", ExpectedTensor(Role.MTP, vocabulary, is_required=False)
    for norm in ("enorm", "hnorm"):
        yield f"{norm}.weight", ExpectedTensor(Role.MTP, (hidden,))
    yield "eh_proj.weight", ExpectedTensor(Role.MTP, (hidden, 2 * hidden))
    for suffix, tensor in _decoder_layer(config, is_dense=False):
        yield suffix, tensor._replace(role=Role.MTP)
    yield "shared_head.norm.weight", ExpectedTensor(Role.MTP, (hidden,))
    yield "shared_head.head.weight", ExpectedTensor(Role.MTP, vocabulary, is_required=False)
