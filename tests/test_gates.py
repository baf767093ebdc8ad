"""Bad sources: each is refused by name, with a hint and exit code 1, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders import (
    Recorded,
    build_checkpoint,
    layout_config,
    read_shards,
    tensor_list,
    write_shard,
)
from tests.conftest import Ran, folder_bytes

Run = Callable[..., Ran]
INDEX = "model.safetensors.index.json"
SHARD = "model-00002-of-00003.safetensors"
EXPERT = "model.layers.3.mlp.experts.1.up_proj.weight"


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    fields = json.loads(path.read_bytes())
    change(fields)
    path.write_text(json.dumps(fields))


def rewrite(source: Recorded, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the tensors of a checkpoint and write its shards and index anew."""
    change(source.tensors)
    for file in set(source.shard_of.values()):
        names = [name for name in source.tensors if source.shard_of.get(name, SHARD) == file]
        write_shard(source.folder / file, {name: source.tensors[name] for name in names})
    weight_map = {name: source.shard_of.get(name, SHARD) for name in source.tensors}
    edit_json(source.folder / INDEX, lambda index: index.update(weight_map=weight_map))


def refused(glmquant: Run, source: Recorded, *flags: str) -> Ran:
    """The run failed as every failure must."""
    parent = source.folder.parent
    before = folder_bytes(parent)
    ran = glmquant("w8a8", source.folder, parent / "out", *flags)
    assert ran.exit_code == 1, ran.stderr
    assert not (parent / "out").exists()
    assert folder_bytes(parent) == before
    assert ran.stderr.splitlines()[-1].startswith("  hint:")
    assert {"  where:", "  expected:", "  found:"} <= {
        line[: line.index(":") + 1] for line in ran.stderr.splitlines() if line.startswith("  ")
    }
    assert glmquant("w8a8", source.folder, parent / "out", *flags, "--json").events[-1][
        "event"
    ] == ("error")
    return ran


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name",
    [EXPERT, "lm_head.weight", "model.layers.4.eh_proj.weight", "model.norm.weight"],
)
def test_a_weight_that_is_not_finite(
    nano: Recorded, glmquant: Run, name: str, value: float
) -> None:
    # The last shard alone, so that nothing is finished before the fault is met.
    dtype, shape, data = nano.tensors[name]
    bits = np.frombuffer(data, "<u2").copy()
    bits[-3] = np.float32(value).view(np.uint32) >> 16
    shutil.rmtree(nano.folder)
    source = build_checkpoint(nano.folder, shard_nbytes=10**9)
    rewrite(source, lambda tensors: tensors.update({name: (dtype, shape, bits.tobytes())}))
    ran = refused_with_finished_shards_kept(glmquant, source)
    last = shape[-1] - 3
    place = f"element {last}" if len(shape) == 1 else f"row {shape[0] - 1}, column {last}"
    assert f"{name}, {place}" in ran.stderr
    assert f"found:    {value}" in ran.stderr


def refused_with_finished_shards_kept(glmquant: Run, source: Recorded) -> Ran:
    """A fault that only the bytes show: whole shards may be there, but nothing that loads."""
    out = source.folder.parent / "out"
    ran = glmquant("w8a8", source.folder, out, "--add-mtp")
    assert ran.exit_code == 1
    left = folder_bytes(out) if out.exists() else {}
    assert not [name for name in left if name.endswith((".part", ".json")) and name[0] != "."]
    return ran


def test_the_first_of_several_bad_tensors_is_named_for_any_number_of_workers(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    bad = sorted(name for name in nano.tensors if ".experts." in name)
    for name in bad:
        dtype, shape, data = nano.tensors[name]
        nano.tensors[name] = (dtype, shape, b"\xff\x7f" + data[2:])
    rewrite(nano, lambda tensors: None)
    messages = {
        glmquant("w8a8", nano.folder, tmp_path / f"out{workers}", "--workers", workers).stderr
        for workers in (1, 2, 8)
    }
    assert len(messages) == 1


def test_a_shard_that_was_refused_may_be_replaced(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    path = nano.folder / "model-00003-of-00003.safetensors"
    good = path.read_bytes()
    data = bytearray(good)
    data[-2:] = b"\x80\x7f"
    path.write_bytes(bytes(data))
    assert glmquant("w8a8", nano.folder, tmp_path / "out").exit_code == 1
    assert (tmp_path / "out/model-00001-of-00003.safetensors").exists()
    path.write_bytes(good)
    assert glmquant("w8a8", nano.folder, tmp_path / "out").exit_code == 0
    assert glmquant("w8a8", nano.folder, tmp_path / "whole").exit_code == 0
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "whole")


def test_a_tensor_without_a_rule(nano: Recorded, glmquant: Run) -> None:
    extra = {"model.layers.1.mlp.rotary_emb.inv_freq": ("BF16", (4,), bytes(8))}
    rewrite(nano, lambda tensors: tensors.update(extra))
    ran = refused(glmquant, nano)
    assert "a tensor has no rule" in ran.stderr
    assert "model.layers.1.mlp.rotary_emb.inv_freq" in ran.stderr


def test_a_recipe_that_forgets_a_role_names_the_tensor(nano: Recorded, glmquant: Run) -> None:
    recipe = nano.folder.parent / "mine.yaml"
    recipe.write_text("name: mine\nrules:\n  - roles: [embedding, norm]\n    scheme: FLOAT\n")
    ran = refused(glmquant, nano, "--recipe", str(recipe))
    assert "model.layers.0.self_attn.q_proj.weight" in ran.stderr


@pytest.mark.parametrize(
    "name",
    [EXPERT, "model.layers.2.mlp.gate.e_score_correction_bias", "model.layers.4.enorm.weight"],
)
@pytest.mark.parametrize("flags", [(), ("--add-mtp",)])
def test_an_expected_tensor_that_is_missing(
    nano: Recorded, glmquant: Run, name: str, flags: tuple[str, ...]
) -> None:
    rewrite(nano, lambda tensors: tensors.pop(name))
    ran = refused(glmquant, nano, *flags)
    assert "1 expected tensor is missing" in ran.stderr
    assert name in ran.stderr


def test_a_shard_that_is_missing(nano: Recorded, glmquant: Run) -> None:
    (nano.folder / SHARD).unlink()
    ran = refused(glmquant, nano)
    assert "1 of 4 shards of the index is missing" in ran.stderr
    assert SHARD in ran.stderr


@pytest.mark.parametrize("left", [0, 5, 8, 100, 2000, -1])
def test_a_truncated_shard(nano: Recorded, glmquant: Run, left: int) -> None:
    size = (nano.folder / SHARD).stat().st_size
    os.truncate(nano.folder / SHARD, left % size)
    ran = refused(glmquant, nano)
    assert "a safetensors file is broken" in ran.stderr
    assert SHARD in ran.stderr


@pytest.mark.parametrize("length", [0, 2**63, 2**64 - 1, 200_000_000])
def test_an_absurd_header_length(nano: Recorded, glmquant: Run, length: int) -> None:
    data = (nano.folder / SHARD).read_bytes()
    (nano.folder / SHARD).write_bytes(struct.pack("<Q", length) + data[8:])
    assert "a safetensors file is broken" in refused(glmquant, nano).stderr


@pytest.mark.parametrize(("shift", "word"), [(2, "a gap"), (-2, "overlap")])
def test_tensors_that_overlap_or_leave_a_gap(
    nano: Recorded, glmquant: Run, shift: int, word: str
) -> None:
    data = (nano.folder / SHARD).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = max(
        (name for name in header if name != "__metadata__"),
        key=lambda name: int(header[name]["data_offsets"][0]),
    )
    header[name]["data_offsets"] = [at + shift for at in header[name]["data_offsets"]]
    text = json.dumps(header).encode()
    body = data[8 + length :] + bytes(max(shift, 0))
    (nano.folder / SHARD).write_bytes(struct.pack("<Q", len(text)) + text + body)
    ran = refused(glmquant, nano)
    assert word in ran.stderr
    assert name in ran.stderr


def test_a_weight_file_that_is_not_in_the_index(nano: Recorded, glmquant: Run) -> None:
    write_shard(nano.folder / "stray.safetensors", {"stray.weight": ("BF16", (2,), bytes(4))})
    ran = refused(glmquant, nano)
    assert "a weight file is not in the index" in ran.stderr
    assert "stray.safetensors" in ran.stderr


@pytest.mark.parametrize("extra", ["model.layers.3.extra.weight", None])
def test_an_unindexed_file_with_more_than_the_mtp_layer_or_nothing(
    tmp_path: Path, glmquant: Run, extra: str | None
) -> None:
    source = build_checkpoint(tmp_path / "GLM", "4.7")
    tensors = {name: source.tensors[name] for name in source.tensors if "layers.4." in name}
    if extra is None:
        write_shard(source.folder / "empty.safetensors", {})
    else:
        tensors[extra] = ("BF16", (2,), bytes(4))
        write_shard(source.folder / "mtp.safetensors", tensors)
    assert "a weight file is not in the index" in refused(glmquant, source).stderr


def test_an_index_that_disagrees_with_a_shard(nano: Recorded, glmquant: Run) -> None:
    name = next(iter(nano.tensors))
    edit_json(nano.folder / INDEX, lambda index: index["weight_map"].update({name: SHARD}))
    ran = refused(glmquant, nano)
    assert "the index and a shard disagree" in ran.stderr
    assert name in ran.stderr


@pytest.mark.parametrize("shard", ["../a.safetensors", "/etc/a.safetensors", ".a.safetensors", 7])
def test_an_index_that_leads_out_of_the_folder(
    nano: Recorded, glmquant: Run, shard: object
) -> None:
    edit_json(nano.folder / INDEX, lambda index: index["weight_map"].update({"a.weight": shard}))
    assert "not a file of this folder" in refused(glmquant, nano).stderr


def test_several_shards_without_an_index(nano: Recorded, glmquant: Run) -> None:
    (nano.folder / INDEX).unlink()
    assert "several shards and no index" in refused(glmquant, nano).stderr


def test_a_tensor_that_is_there_twice(nano: Recorded, glmquant: Run) -> None:
    name = next(name for name in nano.tensors if nano.shard_of[name] == "mtp.safetensors")
    tensors = {each: nano.tensors[each] for each in nano.tensors if nano.shard_of[each] == SHARD}
    write_shard(nano.folder / SHARD, tensors | {name: nano.tensors[name]})
    ran = refused(glmquant, nano)
    assert "a tensor is there twice" in ran.stderr
    assert name in ran.stderr


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"num_hidden_layers": 3}, "num_hidden_layers"),
        ({"num_hidden_layers": 5}, "num_hidden_layers"),
        ({"num_nextn_predict_layers": 0}, "num_nextn_predict_layers"),
        ({"num_nextn_predict_layers": 2}, "num_nextn_predict_layers"),
        ({"n_routed_experts": 3}, "shape"),
        ({"n_routed_experts": 5}, "shape"),
        ({"hidden_size": 32}, "shape"),
        ({"head_dim": 16}, "shape"),
        ({"vocab_size": 65}, "shape"),
        ({"moe_intermediate_size": 13}, "shape"),
        ({"n_shared_experts": 0}, "n_shared_experts = 0"),
        ({"n_shared_experts": 2}, "shape"),
        ({"use_qk_norm": False}, "use_qk_norm = False"),
        ({"attention_bias": False}, "attention_bias = False"),
        ({"first_k_dense_replace": 1}, "first_k_dense_replace = 1"),
        ({"first_k_dense_replace": 3}, "first_k_dense_replace = 3"),
        ({"first_k_dense_replace": 4}, "first_k_dense_replace"),
        ({"torch_dtype": "float16"}, "torch_dtype"),
        ({"dtype": "float32"}, "torch_dtype, dtype"),
        ({"hidden_size": "16"}, "hidden_size"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"num_hidden_layers": 1000, "n_routed_experts": 10_000}, "1000000 tensors at most"),
        ({"num_attention_heads": 3}, "num_attention_heads"),
    ],
)
def test_a_config_that_contradicts_the_tensors(
    nano: Recorded, glmquant: Run, change: dict[str, Any], word: str
) -> None:
    edit_json(nano.folder / "config.json", lambda config: config.update(change))
    assert word in refused(glmquant, nano, "--add-mtp").stderr


def test_a_router_bias_that_lost_bits(tmp_path: Path, glmquant: Run) -> None:
    name = "model.layers.2.mlp.gate.e_score_correction_bias"
    source = build_checkpoint(tmp_path / "GLM", dtypes={name: "BF16"})
    ran = refused(glmquant, source)
    assert "a router bias is not F32" in ran.stderr
    assert name in ran.stderr


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("Glm4MoeLiteForCausalLM", "GLM-4.7-Flash"),
        ("Glm4vMoeForConditionalGeneration", "GLM-4.5V"),
        ("GlmMoeDsaForCausalLM", "GLM-5"),
        ("LlamaForCausalLM", "LlamaForCausalLM"),
    ],
)
def test_another_architecture_is_named(
    nano: Recorded, glmquant: Run, architecture: str, name: str
) -> None:
    edit_json(
        nano.folder / "config.json", lambda config: config.update(architectures=[architecture])
    )
    assert name in refused(glmquant, nano).stderr


def test_a_source_that_is_quantized_already(nano: Recorded, tmp_path: Path, glmquant: Run) -> None:
    quantized = {"quantization_config": {"quant_method": "fp8"}}
    edit_json(nano.folder / "config.json", lambda config: config.update(quantized))
    assert "'fp8'" in refused(glmquant, nano).stderr
    edit_json(nano.folder / "config.json", lambda config: config.pop("quantization_config"))
    glmquant("w8a8", nano.folder, tmp_path / "first")
    ran = glmquant("w8a8", tmp_path / "first", tmp_path / "second")
    assert (ran.exit_code, "already quantized" in ran.stderr) == (1, True)
    (tmp_path / "first/quant_model_description.json").unlink()
    ran = glmquant("w8a8", tmp_path / "first", tmp_path / "second")
    assert (ran.exit_code, "already quantized" in ran.stderr) == (1, True)
    assert "I8" in ran.stderr


@pytest.mark.parametrize("announced", [0, 1, None])
def test_mtp_that_is_asked_for_and_not_there(
    tmp_path: Path, glmquant: Run, announced: int | None
) -> None:
    source = build_checkpoint(tmp_path / "GLM", num_nextn_predict_layers=0)
    edit_json(
        source.folder / "config.json",
        lambda config: config.update(num_nextn_predict_layers=announced),
    )
    ran = refused(glmquant, source, "--add-mtp")
    assert "an MTP layer was asked for and the source has none" in ran.stderr
    assert glmquant("w8a8", source.folder, tmp_path / "out").exit_code == 0
    config = json.loads((tmp_path / "out/config.json").read_bytes())
    assert config["num_nextn_predict_layers"] == 0


@pytest.mark.parametrize("name", ["config.json", INDEX])
@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"a": 1, "a": 2}', "\xff", "[" * 100_000, '{"a": NaN}']
)
def test_a_json_file_that_is_none(nano: Recorded, glmquant: Run, name: str, text: str) -> None:
    (nano.folder / name).write_bytes(text.encode("latin-1"))
    assert name in refused(glmquant, nano).stderr


def test_a_folder_that_is_no_checkpoint(tmp_path: Path, glmquant: Run) -> None:
    (tmp_path / "empty").mkdir()
    ran = glmquant("w8a8", tmp_path / "empty")
    assert (ran.exit_code, "this is not a checkpoint folder" in ran.stderr) == (1, True)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_dead_link_and_a_pipe_among_the_files(nano: Recorded, glmquant: Run) -> None:
    (nano.folder / "merges.txt").symlink_to("../blobs/gone")
    assert "a dead link" in refused_for_a_file(glmquant, nano).stderr
    (nano.folder / "merges.txt").unlink()
    (nano.folder / "merges.txt").symlink_to("merges.txt")
    assert "a dead link (Too many levels" in refused_for_a_file(glmquant, nano).stderr
    (nano.folder / "merges.txt").unlink()
    os.mkfifo(nano.folder / "pipe.txt")
    assert "pipe.txt" in refused_for_a_file(glmquant, nano).stderr


def refused_for_a_file(glmquant: Run, source: Recorded) -> Ran:
    ran = glmquant("w8a8", source.folder, source.folder.parent / "out")
    assert ran.exit_code == 1
    assert not (source.folder.parent / "out").exists()
    return ran


def test_an_unfinished_download(nano: Recorded, glmquant: Run) -> None:
    (nano.folder / "model-00003-of-00003.safetensors.part").write_bytes(b"")
    assert "a download of the source is unfinished" in refused(glmquant, nano).stderr


def test_links_into_a_cache_are_followed(nano: Recorded, tmp_path: Path, glmquant: Run) -> None:
    glmquant("w8a8", nano.folder, tmp_path / "plain")
    blobs = tmp_path / "blobs"
    nano.folder.rename(blobs)
    nano.folder.mkdir()
    for path in blobs.iterdir():
        if path.is_file():
            (nano.folder / path.name).symlink_to(path)
    shutil.copytree(blobs / "assets", nano.folder / "assets")
    assert glmquant("w8a8", nano.folder, tmp_path / "out").exit_code == 0
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "plain")


def test_series_of_shards_that_would_meet_in_a_name_keep_their_names(
    tmp_path: Path, glmquant: Run
) -> None:
    source = build_checkpoint(tmp_path / "GLM", "4.5", shard_nbytes=25_000)
    names = sorted(path.name for path in source.folder.glob("*.safetensors"))
    assert len(names) == 3  # the last holds the MTP layer
    new = dict(
        zip(
            names,
            (f"model-0000{n}.safetensors" for n in ("1-of-00001", "1-of-00002", "2-of-00002")),
            strict=True,
        )
    )
    for number, name in enumerate(names):
        (source.folder / name).rename(source.folder / f"{number}.tmp")
    for number, name in enumerate(names):
        (source.folder / f"{number}.tmp").rename(source.folder / new[name])
    weight_map = {name: new[file] for name, file in source.shard_of.items()}
    edit_json(source.folder / INDEX, lambda index: index.update(weight_map=weight_map))
    assert glmquant("w8a8", source.folder, tmp_path / "out").exit_code == 0
    index = json.loads((tmp_path / "out" / INDEX).read_bytes())
    held = set(read_shards(tmp_path / "out"))
    assert held == set(index["weight_map"])


@pytest.mark.parametrize("layout", ["4.6", "4.7"])
def test_a_name_that_vllm_leaves_out(tmp_path: Path, glmquant: Run, layout: str) -> None:
    source = build_checkpoint(tmp_path / "GLM", layout)
    (source.folder / "mtp.safetensors").rename(source.folder / "consolidated.safetensors")
    if layout == "4.6":
        edit_json(
            source.folder / INDEX,
            lambda index: index.update(
                weight_map={
                    name: file.replace("mtp", "consolidated")
                    for name, file in index["weight_map"].items()
                }
            ),
        )
    assert "a name that vLLM leaves out" in refused(glmquant, source, "--add-mtp").stderr


@pytest.mark.parametrize("value", [{}, None, [], 0])
def test_an_empty_quantization_config_does_not_reach_the_output(
    nano: Recorded, tmp_path: Path, glmquant: Run, value: object
) -> None:
    edit_json(nano.folder / "config.json", lambda config: config.update(quantization_config=value))
    assert glmquant("w8a8", nano.folder, tmp_path / "out", "--add-mtp").exit_code == 0
    assert json.loads((tmp_path / "out/config.json").read_bytes()) == nano.config


def test_weights_that_are_mostly_of_another_dtype(tmp_path: Path, glmquant: Run) -> None:
    names = [name for name, _, _ in tensor_list(layout_config("4.6"), mtp_copies=False)]
    dtypes = dict.fromkeys((n for n in names if "bias" not in n), "F32")
    source = build_checkpoint(tmp_path / "GLM", dtypes=dtypes)
    assert "found:    mostly F32" in refused(glmquant, source).stderr


def test_a_head_beside_tied_embeddings(nano: Recorded, glmquant: Run) -> None:
    edit_json(nano.folder / "config.json", lambda config: config.update(tie_word_embeddings=True))
    assert "tie_word_embeddings = True" in refused(glmquant, nano).stderr


def test_a_manifest_among_the_source_files_is_no_side_file(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    (nano.folder / "glmquant_manifest.json").write_text('{"x": 1}')
    for _ in range(2):
        assert glmquant("w8a8", nano.folder, tmp_path / "out").exit_code == 0


@pytest.mark.parametrize("name", [b"side\xff.txt", b"x" * 250 + b".txt"])
def test_a_side_file_whose_name_cannot_be_written(
    nano: Recorded, glmquant: Run, name: bytes
) -> None:
    with open(os.path.join(os.fsencode(nano.folder), name), "wb"):  # noqa: PTH118, PTH123
        pass
    assert "name" in refused_for_a_file(glmquant, nano).stderr


def test_folders_without_end(nano: Recorded, glmquant: Run) -> None:
    (nano.folder / "loop").symlink_to(nano.folder)
    assert "leads back" in refused_for_a_file(glmquant, nano).stderr
    (nano.folder / "loop").unlink()
    (nano.folder / "/".join("a" * 40)).mkdir(parents=True)
    (nano.folder / "/".join("a" * 40) / "file.txt").write_text("")
    assert "folders deep" in refused_for_a_file(glmquant, nano).stderr


def test_a_linked_folder_of_side_files_goes_along(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/figure.svg").write_text("<svg/>")
    (nano.folder / "figures").symlink_to(tmp_path / "elsewhere")
    assert glmquant("w8a8", nano.folder, tmp_path / "out").exit_code == 0
    assert (tmp_path / "out/figures/figure.svg").read_text() == "<svg/>"


def test_a_folder_with_the_name_of_a_planned_file(nano: Recorded, glmquant: Run) -> None:
    (nano.folder / "quant_model_description.json.d").mkdir()
    (nano.folder / "glmquant_manifest.json").mkdir()
    (nano.folder / "glmquant_manifest.json/x").write_text("")
    ran = refused_for_a_file(glmquant, nano)
    assert "a folder of the source has the name of a file to be written" in ran.stderr


def test_a_pointer_of_git_lfs_is_called_that(nano: Recorded, glmquant: Run) -> None:
    shard = nano.folder / "mtp.safetensors"
    shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    ran = refused_for_a_file(glmquant, nano)
    assert "a Git LFS pointer to one" in ran.stderr
    assert "hint:     git lfs pull" in ran.stderr
