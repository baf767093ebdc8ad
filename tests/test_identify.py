"""Formats, tools, models and releases, told by headers and JSON alone."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmquant.errors import CheckpointError, HeaderError
from glmquant.gguf import GgufHead, read_gguf
from glmquant.glm4_moe import Glm4MoeConfig, expected_tensors, mtp_layers
from glmquant.identify import Identity, identify
from glmquant.inventory import take_inventory
from glmquant.releases import RELEASES, fitting_releases
from glmquant.source import FolderSource
from glmquant.survey import Finding, Survey, survey
from glmquant.tensor_names import role_of
from tests.builders import LAYOUTS, TINY, build_checkpoint, layout_config
from tests.conftest import Ran
from tests.foreign import FOREIGN, GGUF_FIELDS, edit_config, gguf_bytes, modelslim
from tests.strategies import config_changes

Run = Callable[..., Ran]


def look(folder: Path) -> tuple[Survey, Identity]:
    found = survey(FolderSource(folder))
    return found, identify(found)


@pytest.mark.parametrize("case", sorted(FOREIGN))
def test_each_format_is_told_with_its_tool_and_by_what(case: str, tmp_path: Path) -> None:
    foreign = FOREIGN[case]
    foreign.build(tmp_path / "GLM")
    found, identity = look(tmp_path / "GLM")
    assert (identity.text, identity.evidence) == (foreign.text, foreign.evidence)
    assert found.findings == ()


@pytest.mark.parametrize("case", sorted(FOREIGN))
def test_w8a8_refuses_each_format_by_its_name(case: str, tmp_path: Path, glmquant: Run) -> None:
    foreign = FOREIGN[case]
    foreign.build(tmp_path / "GLM")
    ran = glmquant("w8a8", tmp_path / "GLM", tmp_path / "out", "--json")
    (event,) = ran.events
    assert ran.exit_code == 1
    assert foreign.text in event["found"]
    assert event["hint"]
    is_class = {"gguf": "CheckpointError", "pytorch": "IndexFileError"}
    assert event["error"] == is_class.get(case, "AlreadyQuantizedError")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_release_is_bf16_and_nothing_is_missing(layout: str, tmp_path: Path) -> None:
    source = build_checkpoint(tmp_path / "GLM", layout)
    found, identity = look(source.folder)
    assert identity.text == "BF16"
    assert identity.model == "GLM-4 MoE of another size"
    stock = take_inventory(found)
    assert stock.missing == ()
    is_unindexed = layout == "4.7"
    assert stock.findings == (Finding("mtp.safetensors", "not in the index"),) * is_unindexed


def test_our_own_output_is_told_by_its_manifest(tmp_path: Path, glmquant: Run) -> None:
    source = build_checkpoint(tmp_path / "GLM")
    glmquant("w8a8", source.folder, tmp_path / "out", "--add-mtp")
    _, identity = look(tmp_path / "out")
    assert identity.text == "W8A8, recipe w8a8, by glmquant 0.1.0"
    ran = glmquant("w8a8", tmp_path / "out", tmp_path / "again")
    assert "found:    W8A8, recipe w8a8, by glmquant 0.1.0" in ran.stderr
    (tmp_path / "out/glmquant_manifest.json").unlink()
    assert look(tmp_path / "out")[1].text == "ModelSlim under HF names, W8A8_DYNAMIC"


def test_a_description_inside_config_json_counts_as_one(tmp_path: Path, glmquant: Run) -> None:
    source = build_checkpoint(tmp_path / "GLM")
    glmquant("w8a8", source.folder, tmp_path / "out", "--embed-quant-config")
    for name in ("quant_model_description.json", "glmquant_manifest.json"):
        (tmp_path / "out" / name).unlink()
    _, identity = look(tmp_path / "out")
    assert identity.text == "ModelSlim under HF names, W8A8_DYNAMIC"
    assert identity.evidence == "config.json: quantization_config"


def test_a_manifest_beside_bf16_weights_makes_them_no_output(tmp_path: Path) -> None:
    source = build_checkpoint(tmp_path / "GLM")
    manifest = {"format": 1, "tool": {"name": "glmquant", "version": "0.1.0"}}
    (source.folder / "glmquant_manifest.json").write_text(json.dumps(manifest))
    assert look(source.folder)[1].text == "BF16"


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_a_float_model_of_another_dtype_is_named_by_it(dtype: str, tmp_path: Path) -> None:
    from tests.builders import tensor_list

    names = [name for name, _, _ in tensor_list(layout_config("4.6"), mtp_copies=False)]
    build_checkpoint(tmp_path / "GLM", dtypes=dict.fromkeys(names, dtype))
    assert look(tmp_path / "GLM")[1].text == dtype


@pytest.mark.parametrize(
    ("changes", "model"),
    [
        ({"architectures": ["Glm4MoeLiteForCausalLM"]}, "GLM-4.7-Flash"),
        ({"architectures": ["Glm4vMoeForConditionalGeneration"]}, "GLM-4.5V or GLM-4.6V (vision)"),
        ({"architectures": ["GlmMoeDsaForCausalLM"]}, "GLM-5"),
        ({"architectures": ["Glm4ForCausalLM"]}, "dense GLM-4"),
        ({"architectures": ["ChatGLMModel"]}, "ChatGLM"),
        ({"architectures": None, "model_type": "glm_moe_dsa"}, "GLM-5"),
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "LlamaForCausalLM"),
        ({"architectures": None, "model_type": "mamba"}, "mamba"),
        ({"architectures": None, "model_type": None}, "unknown model"),
        ({"architectures": 7, "model_type": [1]}, "unknown model"),
        ({"architectures": [[]], "model_type": {}}, "unknown model"),
        ({"architectures": ["\x1b[2J"]}, "\\x1b[2J"),
        ({"hidden_size": "16"}, "GLM-4 MoE of unknown size"),
    ],
)
def test_a_look_alike_or_another_model_is_named(
    changes: dict[str, Any], model: str, tmp_path: Path
) -> None:
    source = build_checkpoint(tmp_path / "GLM")
    edit_config(source.folder, **changes)
    assert look(source.folder)[1].model == model


def test_another_models_format_is_named_where_w8a8_refuses_it(
    tmp_path: Path, glmquant: Run
) -> None:
    FOREIGN["gptqmodel"].build(tmp_path / "GLM")
    edit_config(tmp_path / "GLM", architectures=["LlamaForCausalLM"], model_type="llama")
    (event,) = glmquant("w8a8", tmp_path / "GLM", "--json").events
    assert event["error"] == "ArchitectureError"
    assert event["found"].startswith(FOREIGN["gptqmodel"].text)
    assert "LlamaForCausalLM" in event["found"]


def release_config(name: str) -> dict[str, Any]:
    """config.json of a release at its real size."""
    release = next(release for release in RELEASES if release.name == name)
    layout = name.lower()
    config = layout_config(layout, **release.size)
    return config | {"max_position_embeddings": 202752 if name in ("4.6", "4.7") else 131072}


@pytest.mark.parametrize("name", ["4.5", "4.5-Air", "4.6", "4.7"])
def test_each_release_fits_itself_alone(name: str) -> None:
    has_file = name in ("4.6", "4.7")
    config = release_config(name)
    assert fitting_releases(config, is_as_released=True, has_mtp_file=has_file) == (name,)
    assert fitting_releases(config, is_as_released=True, has_mtp_file=None) == (name,)


def test_what_cannot_be_told_apart_is_said_so() -> None:
    rewritten = fitting_releases(release_config("4.6"), is_as_released=False, has_mtp_file=None)
    assert rewritten == ("4.6", "4.7")
    no_length = release_config("4.7") | {"max_position_embeddings": 1, "dtype": None}
    assert fitting_releases(no_length, is_as_released=False, has_mtp_file=None) == (
        "4.5",
        "4.6",
        "4.7",
    )
    assert fitting_releases(TINY, is_as_released=True, has_mtp_file=True) == ()
    assert fitting_releases({"hidden_size": True}, is_as_released=True, has_mtp_file=None) == ()


@pytest.mark.parametrize(
    ("name", "model"),
    [("4.6", "GLM-4 MoE, fits GLM-4.6 or 4.7"), ("4.5-Air", "GLM-4 MoE, fits GLM-4.5-Air")],
)
def test_a_quantized_release_is_named_by_what_its_config_fits(
    name: str, model: str, tmp_path: Path
) -> None:
    modelslim("v1")(tmp_path / "GLM")
    (tmp_path / "GLM/config.json").write_text(json.dumps(release_config(name)))
    assert look(tmp_path / "GLM")[1].model == model


@given(changes=config_changes(), suffix=st.sampled_from(["", "_scale", "_packed", "x"]))
def test_the_role_by_name_is_the_role_of_the_configuration(
    changes: dict[str, Any], suffix: str
) -> None:
    config = Glm4MoeConfig.model_validate(layout_config("4.6") | changes)
    count = config.num_nextn_predict_layers or 0
    layers = mtp_layers(config, count)
    for name, tensor in expected_tensors(config, count).items():
        grown = name + suffix if name.endswith(".weight") else name
        assert role_of(grown, layers) is tensor.role, grown


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("model.layers.0.self_attn.q_proj.quant_bias", "attention_qkv"),
        ("model.layers.0.self_attn.q_proj.bias", "attention_bias"),
        ("model.layers.3.mlp.experts.1.up_proj.qweight", "routed_expert"),
        ("model.layers.3.mlp.switch_mlp.up_proj.scales", "routed_expert"),
        ("model.layers.3.mlp.gate.weight_scale", "router"),
        ("model.layers.4.mlp.gate.e_score_correction_bias", "mtp"),
        ("model.norm.bias", "norm"),
        ("lm_headx.weight", None),
        ("model.layers.0.rot.weight", None),
        ("visual.blocks.0.mlp.up_proj.weight", None),
    ],
)
def test_companions_have_the_role_of_their_linear_and_strangers_none(
    name: str, role: str | None
) -> None:
    assert role_of(name, range(4, 5)) == role


def test_counts_and_bytes_are_those_of_the_folder(tmp_path: Path) -> None:
    source = FOREIGN["modelslim under HF names"].build(tmp_path / "GLM")
    found, _ = look(source.folder)
    stock = take_inventory(found)
    sizes = {name: len(data) for name, (_, _, data) in source.tensors.items()}
    assert (stock.total.tensors, stock.total.nbytes) == (len(sizes), sum(sizes.values()))
    by_dtype: Counter[str] = Counter()
    for dtype, _, data in source.tensors.values():
        by_dtype[dtype] += len(data)
    assert stock.total.dtypes == by_dtype
    experts = [n for n in sizes if ".experts." in n and not n.startswith(source.mtp_prefix)]
    assert stock.roles["routed_expert"].tensors == len(experts)
    assert stock.roles["routed_expert"].nbytes == sum(sizes[name] for name in experts)
    mtp = [name for name in sizes if name.startswith(source.mtp_prefix)]
    assert (stock.mtp.layers, stock.mtp.files, stock.mtp.kind) == (
        (4,),
        ("mtp.safetensors",),
        "int8",
    )
    assert (stock.mtp.share.tensors, stock.mtp.share.nbytes) == (
        len(mtp),
        sum(sizes[name] for name in mtp),
    )
    assert sum(share.tensors for share in stock.roles.values()) == len(sizes)


@pytest.mark.parametrize(
    ("layout", "files", "has_copies", "unindexed"),
    [
        ("4.5", ("model-00004-of-00004.safetensors",), True, ()),
        ("4.5-air", ("model-00005-of-00005.safetensors",), True, ()),
        ("4.6", ("mtp.safetensors",), False, ()),
        ("4.7", ("mtp.safetensors",), False, ("mtp.safetensors",)),
    ],
)
def test_where_the_mtp_layer_lives(
    layout: str,
    files: tuple[str, ...],
    has_copies: bool,
    unindexed: tuple[str, ...],
    tmp_path: Path,
) -> None:
    source = build_checkpoint(tmp_path / "GLM", layout)
    mtp = take_inventory(look(source.folder)[0]).mtp
    assert (mtp.layers, mtp.files, mtp.unindexed) == ((4,), files, unindexed)
    assert (mtp.has_embed_tokens, mtp.has_head) == (has_copies, has_copies)
    assert (mtp.announced, mtp.kind) == (1, "float")


def test_an_mtp_layer_is_found_without_a_config(tmp_path: Path) -> None:
    source = build_checkpoint(tmp_path / "GLM")
    (source.folder / "config.json").unlink()
    assert take_inventory(look(source.folder)[0]).mtp.layers == (4,)


@pytest.mark.parametrize(("version", "order"), [(2, "<"), (3, "<"), (3, ">")])
def test_a_gguf_head_is_read_in_either_byte_order(version: int, order: str) -> None:
    data = gguf_bytes(GGUF_FIELDS, version=version, order=order)
    assert read(data) == GgufHead(version, 7, "glm4moe", "GLM 4.6", "Q4_K_M", "Somebody")


def read(data: bytes) -> GgufHead:
    return read_gguf("x.gguf", len(data), lambda offset, nbytes: data[offset : offset + nbytes])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGU",
        b"GGML" + bytes(40),
        b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 4, 0, 0),
        b"GGUF" + struct.pack("<I", 3),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**64 - 1) + bytes(99),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 70_000) + bytes(99_000),
        b"GGUF" + struct.pack("<IQQQcI", 3, 0, 1, 1, b"k", 77) + bytes(99),
        b"GGUF" + struct.pack("<IQQQcIQ", 3, 0, 1, 1, b"k", 8, 2**40) + bytes(99),
        b"GGUF" + struct.pack("<IQQQcIIQ", 3, 0, 1, 1, b"k", 9, 0, 2**62) + bytes(99),
        b"GGUF" + struct.pack("<IQQQcIIQ", 3, 0, 1, 1, b"k", 9, 8, 2**62) + bytes(99),
        b"GGUF" + struct.pack("<IQQQcIIQ", 3, 0, 1, 1, b"k", 9, 9, 2**62) + bytes(99),
    ],
)
def test_a_hostile_gguf_head_is_a_header_error(data: bytes) -> None:
    with pytest.raises(HeaderError) as caught:
        read(data)
    assert caught.value.where == "x.gguf"


def test_lengths_without_end_do_not_make_a_gguf_head_long_to_read() -> None:
    strings = b"GGUF" + struct.pack("<IQQQcIIQ", 3, 0, 1, 1, b"k", 9, 8, 2**62) + bytes(2 << 20)
    assert read(strings) == GgufHead(3, 0, None, None, None, None)


@given(cut=st.integers(0, 700), flip=st.integers(0, 700), value=st.integers(0, 255))
def test_a_damaged_gguf_head_is_read_or_a_header_error(cut: int, flip: int, value: int) -> None:
    data = bytearray(gguf_bytes(GGUF_FIELDS))[: cut or None]
    if data:
        data[flip % len(data)] = value
    with suppress(HeaderError):
        read(bytes(data))


@pytest.mark.parametrize("names", [[], ["notes.txt"], ["tokenizer.json", "README.md"]])
def test_a_folder_that_tells_of_no_model_is_an_error(names: list[str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        look(tmp_path)
    assert caught.value.what == "this is not a model folder"
