from __future__ import annotations

import json

from glmquant.description import (
    DESCRIPTION_FILE,
    build_description,
    embedded_config,
    encode_description,
)

TYPES = {
    "model.layers.0.mlp.experts.0.up_proj.weight": "W8A8_DYNAMIC",
    "model.layers.0.mlp.experts.0.up_proj.weight_scale": "W8A8_DYNAMIC",
    "model.layers.0.mlp.experts.0.up_proj.weight_offset": "W8A8_DYNAMIC",
    "lm_head.weight": "FLOAT",
}


def test_the_file_has_the_name_by_which_the_engine_finds_the_format() -> None:
    assert DESCRIPTION_FILE == "quant_model_description.json"


def test_a_description_is_the_tensors_in_the_given_order_and_then_the_global_keys() -> None:
    assert list(build_description(TYPES).items()) == [
        *TYPES.items(),
        ("version", "1.0.0"),
        ("model_quant_type", "W8A8_DYNAMIC"),
        ("metadata", {}),
        ("group_size", 0),
        ("optional", {}),
    ]


def test_an_encoded_description_is_indented_json_with_a_final_newline() -> None:
    assert encode_description(build_description({"lm_head.weight": "FLOAT"})) == (
        b'{\n  "lm_head.weight": "FLOAT",\n  "version": "1.0.0",\n'
        b'  "model_quant_type": "W8A8_DYNAMIC",\n  "metadata": {},\n  "group_size": 0,\n'
        b'  "optional": {}\n}\n'
    )


def test_the_embedded_form_is_the_whole_description_under_the_engines_method() -> None:
    embedded = embedded_config(build_description(TYPES))
    assert embedded == {
        "quant_method": "ascend",
        **json.loads(encode_description(build_description(TYPES))),
    }


def test_a_built_description_shares_nothing_with_what_it_was_built_of() -> None:
    types = dict(TYPES)
    description = build_description(types)
    description["lm_head.weight"] = "W8A8_DYNAMIC"
    embedded_config(description)["version"] = "2"
    assert (types, build_description(types)["version"]) == (TYPES, "1.0.0")
