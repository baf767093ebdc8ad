from __future__ import annotations

import pytest

from glmquant.glm4_moe import expected_tensors
from glmquant.tensor_names import contradicted_key, layer_of
from tests.builders import TINY
from tests.test_glm4_moe import parse


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.0.mlp.gate.weight", 0),
        ("model.layers.92.eh_proj.weight", 92),
        ("model.layers.9", None),
        ("model.layers.09.x", None),
        ("model.layers.-1.x", None),
        ("x.model.layers.1.x", None),
        ("model.layers.٣.x", None),
        ("model.layers.1٣.x", None),
        ("lm_head.weight", None),
    ],
)
def test_the_layer_is_read_off_a_name(name: str, layer: int | None) -> None:
    assert layer_of(name) == layer


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("model.layers.5.eh_proj.weight", "num_hidden_layers = 4, num_nextn_predict_layers = 1"),
        ("model.layers.2.mlp.experts.4.up_proj.weight", "n_routed_experts = 4"),
        ("model.layers.0.mlp.experts.0.up_proj.weight", "first_k_dense_replace = 2"),
        ("model.layers.2.mlp.up_proj.weight", "first_k_dense_replace = 2"),
        ("model.layers.1.mlp.gate.weight", "first_k_dense_replace = 2"),
        ("model.layers.1.mlp.shared_experts.up_proj.weight", "first_k_dense_replace = 2"),
        ("model.layers.2.mlp.shared_experts.up_proj.weight", "n_shared_experts = 0"),
        ("model.layers.0.self_attn.q_norm.weight", "use_qk_norm = False"),
        ("model.layers.0.self_attn.v_proj.bias", "attention_bias = False"),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", None),
        ("model.visual.weight", None),
    ],
)
def test_an_unexpected_tensor_names_the_key_it_speaks_against(name: str, key: str | None) -> None:
    changes = {"use_qk_norm": False, "attention_bias": False, "n_shared_experts": 0}
    config = parse(TINY | changes)
    assert name not in expected_tensors(config, 1)
    assert contradicted_key(config, name) == key
