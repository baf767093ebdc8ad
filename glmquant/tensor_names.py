"""What a name says by itself: a layer, a role, the key of config.json that it contradicts."""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Final

from glmquant.glm4_moe import Glm4MoeConfig, Role

_LAYER: Final = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,8})\.")
_MTP_ONLY: Final = re.compile(r"[0-9]\.(eh_proj|enorm|hnorm|shared_head|embed_tokens)\.")
_EXPERT: Final = re.compile(r"\.mlp\.experts\.(0|[1-9][0-9]{0,8})\.")


def layer_of(name: str) -> int | None:
    """The decoder layer a tensor belongs to, or None outside the layers."""
    match = _LAYER.match(name)
    return int(match[1]) if match else None


def is_mtp_part(name: str) -> bool:
    """Whether only an MTP layer has such a tensor, at whatever index it lies."""
    return bool(_MTP_ONLY.search(name))


def is_router_bias(name: str) -> bool:
    """Whether it is the bias that a router adds to its scores, of whatever layer."""
    return name.endswith(".mlp.gate.e_score_correction_bias")


_IN_LAYER: Final = r"model\.layers\.[0-9]+\."
_ROLES: Final = re.compile(
    "|".join(
        f"(?P<{role.value}>{pattern})"
        for role, pattern in {
            Role.ROUTED_EXPERT: _IN_LAYER + r"mlp\.(?:experts|switch_mlp)\.",
            Role.ATTENTION_BIAS: _IN_LAYER + r"self_attn\.[qkv]_proj\.bias$",
            Role.ATTENTION_QKV: _IN_LAYER + r"self_attn\.[qkv]_proj\.",
            Role.ATTENTION_OUT: _IN_LAYER + r"self_attn\.o_proj\.",
            Role.SHARED_EXPERT: _IN_LAYER + r"mlp\.shared_experts\.",
            Role.ROUTER_BIAS: _IN_LAYER + r"mlp\.gate\.e_score_correction_bias$",
            Role.ROUTER: _IN_LAYER + r"mlp\.gate\.",
            Role.DENSE_MLP: _IN_LAYER + r"mlp\.(?:gate|up|down)_proj\.",
            Role.NORM: rf"model\.norm\.|{_IN_LAYER}(?:\w+_layernorm|self_attn\.[qk]_norm)\.",
            Role.EMBEDDING: r"model\.embed_tokens\.",
            Role.LM_HEAD: r"lm_head\.",
        }.items()
    )
)


def role_of(name: str, mtp_layers: Container[int]) -> Role | None:
    """What a tensor does, by its name alone, whatever a tool has made of its linear.

    A linear's scales, zero points and packed weights have its role, as ``weight_scale`` of
    ModelSlim, ``qweight`` of GPTQ and AWQ or ``weight_packed`` of compressed-tensors.

    Args:
        name: The tensor's.
        mtp_layers: Layers that are MTP layers.

    Returns:
        The role that ``expected_tensors`` gives the linear or the norm, or None for other names.
    """
    if layer_of(name) in mtp_layers:
        return Role.MTP
    match = _ROLES.match(name)
    return Role(match.lastgroup) if match else None


def contradicted_key(config: Glm4MoeConfig, name: str) -> str | None:
    """The key of config.json that a tensor which is not expected speaks against.

    Args:
        config: The configuration.
        name: A name that ``expected_tensors`` does not hold.

    Returns:
        ``key = value``, or None where no key would make the name right.
    """
    layer = layer_of(name)
    key = "tie_word_embeddings" if name == "lm_head.weight" else None
    if layer is not None:
        expert = _EXPERT.search(name)
        is_mtp_name = is_mtp_part(name) and layer < config.num_hidden_layers
        if is_mtp_name or layer >= config.num_hidden_layers + (
            config.num_nextn_predict_layers or 0
        ):
            key = "num_hidden_layers, num_nextn_predict_layers"
        elif expert and int(expert[1]) >= config.n_routed_experts:
            key = "n_routed_experts"
        elif name.endswith(("q_norm.weight", "k_norm.weight")):
            key = "use_qk_norm"
        elif name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias")):
            key = "attention_bias"
        elif ".mlp.shared_experts." in name and layer >= config.first_k_dense_replace:
            key = "n_shared_experts"
        elif re.search(r"\.mlp\.(experts|gate|shared_experts|\w+_proj)\.", name):
            key = "first_k_dense_replace"
    if key is None:
        return None
    return ", ".join(f"{each} = {getattr(config, each)}" for each in key.split(", "))
