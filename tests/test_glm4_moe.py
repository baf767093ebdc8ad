from __future__ import annotations

import json
from math import prod
from typing import Any

import pytest
from hypothesis import example, given, settings

from glmquant.errors import AlreadyQuantizedError, ArchitectureError, ConfigError, JsonError
from glmquant.glm4_moe import (
    LOOK_ALIKES,
    ExpectedTensor,
    Glm4MoeConfig,
    Role,
    expected_tensors,
    optional_mtp_weights,
    parse_config,
)
from tests.builders import AIR, LARGE, LAYOUTS, TINY, layout_config, tensor_list
from tests.strategies import config_changes, layouts

REQUIRED = (*LARGE, "n_shared_experts")


def parse(fields: dict[str, Any]) -> Glm4MoeConfig:
    return parse_config(json.dumps(fields).encode())


def config_error(fields: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        parse(fields)
    return caught.value.fields()


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in TINY.items() if name != key}


@settings(derandomize=True, deadline=None, max_examples=150)
@given(layout=layouts(), changes=config_changes())
@example(layout="4.5", changes={})
@example(layout="4.5-air", changes={})
@example(layout="4.6", changes={})
@example(layout="4.7", changes={})
def test_the_expected_tensors_are_those_of_a_checkpoint_and_copies_are_optional(
    layout: str, changes: dict[str, Any]
) -> None:
    fields = layout_config(layout, **changes)
    mtp_count = fields["num_nextn_predict_layers"] or 0
    expected = expected_tensors(parse(fields), mtp_count)
    listed = {
        name: (shape, dtype == "F32")
        for name, dtype, shape in tensor_list(fields, mtp_copies=layout.startswith("4.5"))
    }
    last = fields["num_hidden_layers"]
    assert ("lm_head.weight" in expected) is not fields["tie_word_embeddings"]
    optional: set[str] = set()
    for layer in range(last, last + mtp_count):
        optional |= set(optional_mtp_weights(layer))
    assert {name for name, tensor in expected.items() if not tensor.is_required} == optional
    assert {
        name: (tensor.shape, tensor.is_router_bias)
        for name, tensor in expected.items()
        if tensor.is_required or name in listed
    } == listed


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_role_is_told_by_the_name(layout: str) -> None:
    parts = {
        Role.EMBEDDING: ("model.embed_tokens.weight",),
        Role.NORM: ("norm.weight",),
        Role.ATTENTION_QKV: ("q_proj.weight", "k_proj.weight", "v_proj.weight"),
        Role.ATTENTION_OUT: ("o_proj.weight",),
        Role.ATTENTION_BIAS: ("_proj.bias",),
        Role.ROUTER: ("mlp.gate.weight",),
        Role.ROUTER_BIAS: ("mlp.gate.e_score_correction_bias",),
        Role.LM_HEAD: ("lm_head.weight",),
    }
    config = parse(layout_config(layout))
    mtp_prefix = f"model.layers.{config.num_hidden_layers}."
    for name, tensor in expected_tensors(config, 1).items():
        roles = [role for role, ends in parts.items() if name.endswith(ends)]
        if name.startswith(mtp_prefix):
            roles = [Role.MTP]
        elif ".experts." in name:
            roles = [Role.ROUTED_EXPERT]
        elif ".shared_experts." in name:
            roles = [Role.SHARED_EXPERT]
        elif name.endswith(("mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight")):
            roles = [Role.DENSE_MLP]
        assert [tensor.role] == roles, name


def test_an_expected_tensor_is_required_and_no_router_bias_unless_said() -> None:
    tensors = expected_tensors(parse(dict(TINY)), 1)
    assert tensors["model.layers.2.mlp.experts.3.down_proj.weight"] == ExpectedTensor(
        Role.ROUTED_EXPERT, (16, 12), is_router_bias=False, is_required=True
    )
    assert tensors["model.layers.4.mlp.gate.e_score_correction_bias"] == ExpectedTensor(
        Role.MTP, (4,), is_router_bias=True, is_required=True
    )


@pytest.mark.parametrize(
    ("layout", "sizes", "tensors", "main", "mtp"),
    [
        ("4.5", LARGE, 44_691, "705.60", "11.08"),
        ("4.6", LARGE, 44_689, "705.60", "7.98"),
        ("4.5-air", AIR, 18_329, "213.70", "7.23"),
    ],
)
def test_at_real_size_tensors_and_bytes_are_those_of_the_releases(
    layout: str, sizes: dict[str, int], tensors: int, main: str, mtp: str
) -> None:
    config = parse(layout_config(layout, **sizes))
    present = [
        tensor
        for tensor in expected_tensors(config, 1).values()
        if tensor.is_required or layout != "4.6"
    ]
    nbytes = {False: 0, True: 0}
    for tensor in present:
        width = 4 if tensor.is_router_bias else 2
        nbytes[tensor.role is Role.MTP] += prod(tensor.shape) * width
    found = (f"{nbytes[False] / 1e9:.2f}", f"{nbytes[True] / 1e9:.2f}")
    assert (len(present), *found) == (tensors, main, mtp)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_configuration_of_each_release_is_read(layout: str) -> None:
    fields = layout_config(layout)
    config = parse(fields)
    assert config.model_dtype == "bfloat16"
    assert {key: getattr(config, key) for key in REQUIRED} == {key: fields[key] for key in REQUIRED}
    assert config.use_qk_norm is (layout != "4.5-air")


def test_a_byte_order_mark_before_the_configuration_is_allowed() -> None:
    assert parse_config(b"\xef\xbb\xbf" + json.dumps(TINY).encode()) == parse(dict(TINY))


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{", b'{"a": 1, "a": 1}', b"\xff"])
def test_a_configuration_that_is_no_json_object_is_an_error(data: bytes) -> None:
    with pytest.raises(JsonError) as caught:
        parse_config(data)
    assert caught.value.where == "config.json"


@pytest.mark.parametrize("architecture", sorted(LOOK_ALIKES))
def test_a_look_alike_is_refused_by_its_name(architecture: str) -> None:
    with pytest.raises(ArchitectureError) as caught:
        parse(TINY | {"architectures": [architecture], "model_type": "x"})
    assert caught.value.found == (
        f"{LOOK_ALIKES[architecture]}: architectures ['{architecture}'], model_type 'x'"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["LlamaForCausalLM"]},
        {"architectures": []},
        {"architectures": None},
        {"architectures": "Glm4MoeForCausalLM"},
        {"architectures": [["Glm4MoeForCausalLM"]]},
        {"architectures": ["Glm4MoeForCausalLM", "Glm4MoeForCausalLM"]},
        {"model_type": "glm4_moe_lite"},
        {"model_type": None},
    ],
    ids=str,
)
def test_another_architecture_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ArchitectureError) as caught:
        parse(TINY | changes)
    fields = TINY | changes
    assert caught.value.found == (
        f"architectures {fields['architectures']!r}, model_type {fields['model_type']!r}"
    )


def test_no_model_type_beside_the_architecture_is_allowed_and_no_architecture_is_not() -> None:
    assert parse(without("model_type")) == parse(dict(TINY))
    with pytest.raises(ArchitectureError):
        parse(without("architectures"))


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
@pytest.mark.parametrize(
    ("value", "method"), [({"quant_method": "fp8"}, "'fp8'"), ({"bits": 8}, "None"), ("x", "None")]
)
def test_a_quantized_source_is_refused(key: str, value: object, method: str) -> None:
    with pytest.raises(AlreadyQuantizedError) as caught:
        parse(TINY | {key: value})
    assert caught.value.where == f"config.json: {key}"
    assert caught.value.found == f"quant_method {method}"


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_key_is_named(key: str) -> None:
    fields = config_error(without(key))
    assert (fields["where"], fields["found"]) == (f"config.json: {key}", "no such key")


@pytest.mark.parametrize("key", REQUIRED)
@pytest.mark.parametrize("value", ["16", True, 16.0, None, -1, 10**9, [16]], ids=str)
def test_what_is_no_sensible_whole_number_is_named(key: str, value: object) -> None:
    fields = config_error(TINY | {key: value})
    assert (fields["where"], fields["found"]) == (f"config.json: {key}", repr(value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 0),
        ("num_nextn_predict_layers", True),
        ("num_nextn_predict_layers", "1"),
        ("num_nextn_predict_layers", -1),
        ("use_qk_norm", 1),
        ("attention_bias", "true"),
        ("tie_word_embeddings", None),
        ("torch_dtype", 16),
        ("dtype", ["bfloat16"]),
    ],
)
def test_other_values_of_a_wrong_kind_are_named(key: str, value: object) -> None:
    fields = config_error(TINY | {key: value})
    assert (fields["where"], fields["found"]) == (f"config.json: {key}", repr(value))


@pytest.mark.parametrize(
    ("changes", "key", "found"),
    [
        ({"torch_dtype": "float16"}, "torch_dtype or dtype", "'float16'"),
        ({"torch_dtype": None, "dtype": "float32"}, "torch_dtype or dtype", "'float32'"),
        ({"torch_dtype": None}, "torch_dtype or dtype", "None"),
        ({"dtype": "float16"}, "torch_dtype, dtype", "'bfloat16' and 'float16'"),
        ({"first_k_dense_replace": 4}, "first_k_dense_replace", "4"),
        ({"num_key_value_heads": 3}, "num_attention_heads", "4"),
    ],
    ids=str,
)
def test_keys_that_contradict_are_named(changes: dict[str, Any], key: str, found: str) -> None:
    fields = config_error(TINY | changes)
    assert (fields["where"], fields["found"]) == (f"config.json: {key}", found)
