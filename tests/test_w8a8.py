"""The main job, from a folder to a folder, against an oracle that is not the package's code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash

from glmquant.manifest import parse_manifest
from tests import oracle
from tests.builders import LAYOUTS, Recorded, build_checkpoint, read_shards
from tests.conftest import Ran, folder_bytes

Run = Callable[..., Ran]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("recipe", ["w8a8", "w8a8-full"])
@pytest.mark.parametrize("add_mtp", [True, False])
def test_every_tensor_of_the_output_is_the_contracts(
    tmp_path: Path, glmquant: Run, layout: str, recipe: str, add_mtp: bool
) -> None:
    source = build_checkpoint(tmp_path / "GLM", layout)
    flags = ["--add-mtp"] if add_mtp else []
    ran = glmquant("w8a8", source.folder, tmp_path / "out", "--recipe", recipe, *flags)
    assert ran.exit_code == 0
    expected = oracle.expected_tensors(
        source.tensors, recipe=recipe, mtp_prefix=source.mtp_prefix, add_mtp=add_mtp
    )
    written = read_shards(tmp_path / "out")
    assert written.keys() == expected.keys()
    assert [name for name in expected if written[name] != expected[name]] == []


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("add_mtp", [True, False])
def test_index_description_and_config_agree_with_the_shards(
    tmp_path: Path, glmquant: Run, layout: str, add_mtp: bool
) -> None:
    source = build_checkpoint(tmp_path / "GLM", layout)
    out = tmp_path / "out"
    assert glmquant("w8a8", source.folder, out, *["--add-mtp"][: int(add_mtp)]).exit_code == 0
    tensors = read_shards(out)
    index = json.loads((out / "model.safetensors.index.json").read_bytes())
    assert index["weight_map"].keys() == tensors.keys()
    assert set(index["weight_map"].values()) == {path.name for path in out.glob("*.safetensors")}
    assert index["metadata"]["total_size"] == sum(len(data) for _, _, data in tensors.values())
    for shard in out.glob("*.safetensors"):
        listed = {name for name, file in index["weight_map"].items() if file == shard.name}
        header_nbytes = int.from_bytes(shard.read_bytes()[:8], "little")
        header = json.loads(shard.read_bytes()[8 : 8 + header_nbytes])
        assert header.keys() - {"__metadata__"} == listed

    description = json.loads((out / "quant_model_description.json").read_bytes())
    globals_found = {key: description.pop(key) for key in list(description)[-5:]}
    assert globals_found == {
        "version": "1.0.0",
        "model_quant_type": "W8A8_DYNAMIC",
        "metadata": {},
        "group_size": 0,
        "optional": {},
    }
    always = {f"{source.mtp_prefix}{name}.weight" for name in ("embed_tokens", "shared_head.head")}
    assert description.keys() == tensors.keys() | (always if add_mtp else set())
    int8_linears = {name for name, (dtype, _, _) in tensors.items() if dtype == "I8"}
    for name, kind in description.items():
        base = re.sub(r"_(scale|offset)$", "", name)
        assert kind == ("W8A8_DYNAMIC" if base in int8_linears else "FLOAT"), name
    assert int8_linears

    config = json.loads((out / "config.json").read_bytes())
    assert config == source.config | {"num_nextn_predict_layers": int(add_mtp)}
    assert list(config) == list(source.config)


def test_an_unchanged_config_keeps_its_bytes(nano: Recorded, tmp_path: Path, glmquant: Run) -> None:
    glmquant("w8a8", nano.folder, tmp_path / "out", "--add-mtp")
    assert (tmp_path / "out/config.json").read_bytes() == (nano.folder / "config.json").read_bytes()


def test_side_files_go_along_byte_for_byte_and_the_rest_stays(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    glmquant("w8a8", nano.folder, tmp_path / "out", "--add-mtp")
    before, after = folder_bytes(nano.folder), folder_bytes(tmp_path / "out")
    copied = {
        "LICENSE",
        "assets/figure.svg",
        "chat_template.jinja",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    made = {
        "config.json",
        "glmquant_manifest.json",
        "model.safetensors.index.json",
        "quant_model_description.json",
    }
    shards = {path.name for path in nano.folder.glob("*.safetensors")}
    assert after.keys() == copied | made | shards
    assert {name: after[name] for name in copied} == {name: before[name] for name in copied}


def test_the_manifest_holds_the_digests_of_what_is_on_disk(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    glmquant("w8a8", nano.folder, tmp_path / "out", "--add-mtp")
    manifest = parse_manifest((tmp_path / "out/glmquant_manifest.json").read_bytes())
    written = read_shards(tmp_path / "out")
    assert manifest["tensors"].keys() == written.keys()
    for name, entry in manifest["tensors"].items():
        (source,) = entry["sources"]
        assert entry["xxh3_128"] == xxhash.xxh3_128(written[name][2]).hexdigest()
        assert entry["source_xxh3_128"] == xxhash.xxh3_128(nano.tensors[source][2]).hexdigest()
    assert manifest["mtp_layers"] == 1
    assert set(manifest["files"]) == set(folder_bytes(tmp_path / "out"))


def test_the_manifests_error_figures_are_those_of_the_bytes(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    import numpy as np

    glmquant("w8a8", nano.folder, tmp_path / "out")
    manifest = parse_manifest((tmp_path / "out/glmquant_manifest.json").read_bytes())
    written = read_shards(tmp_path / "out")
    checked = 0
    for name, (dtype, shape, data) in written.items():
        entry = manifest["tensors"][name]
        if dtype != "I8":
            assert "sqnr_db" not in entry
            continue
        scale = np.frombuffer(written[name + "_scale"][2], "<f4").astype(np.float64)
        restored = np.frombuffer(data, np.int8).reshape(shape) * scale[:, None]
        weight = oracle.to_f64(*nano.tensors[name])
        error = weight - restored
        sqnr = 10 * np.log10((weight**2).sum() / (error**2).sum())
        assert entry["sqnr_db"] == pytest.approx(sqnr, abs=0.02)
        # Counted in 1/512 steps of its row.
        assert entry["max_error"] == pytest.approx(np.abs(error).max(), abs=scale.max() / 1000)
        checked += 1
    assert checked == 40


def test_the_whole_description_can_be_embedded(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    glmquant("w8a8", nano.folder, tmp_path / "out", "--add-mtp", "--embed-quant-config")
    config = json.loads((tmp_path / "out/config.json").read_bytes())
    description = json.loads((tmp_path / "out/quant_model_description.json").read_bytes())
    assert config == nano.config | {
        "quantization_config": {"quant_method": "ascend", **description}
    }


@pytest.mark.parametrize("more", [[], ["--embed-quant-config"]])
def test_mindie_finds_its_key_and_nothing_else_changes(
    more: list[str], nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    plain, also = tmp_path / "plain", tmp_path / "also"
    words = ("w8a8", nano.folder, also, "--add-mtp", *more)
    assert glmquant("w8a8", nano.folder, plain, "--add-mtp", *more).exit_code == 0
    assert glmquant(*words, "--also", "mindie").exit_code == 0
    before, after = folder_bytes(plain), folder_bytes(also)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed == {"config.json", "glmquant_manifest.json"}
    config = json.loads(before["config.json"])
    assert json.loads(after["config.json"]) == config | {"quantize": "w8a8_dynamic"}
    report = glmquant("verify", also, "--source", nano.folder, "--engine", "none", "--json")
    assert (report.exit_code, report.events[-1]["findings"]) == (0, [])
    plain_report = glmquant("verify", plain, "--source", nano.folder, "--engine", "none", "--json")
    assert report.events[-1]["engines"] == plain_report.events[-1]["engines"]
    inspected = glmquant("inspect", also, "--json").events[-1]
    assert inspected["format"]["name"] == "W8A8"
    assert "already done" in glmquant(*words, "--also", "mindie").stdout
    refused = glmquant(*words)
    assert refused.exit_code == 1
    assert "also ['mindie']" in refused.stderr
    assert glmquant("w8a8", nano.folder, also, "--also", "sglang").exit_code == 2


def test_numbered_shards_count_anew_where_the_mtp_shard_is_dropped(
    tmp_path: Path, glmquant: Run
) -> None:
    source = build_checkpoint(tmp_path / "GLM", "4.5")
    before = sorted(path.name for path in source.folder.glob("*.safetensors"))
    glmquant("w8a8", source.folder, tmp_path / "out")
    glmquant("w8a8", source.folder, tmp_path / "with", "--add-mtp")
    count = len(before) - 1
    assert sorted(path.name for path in (tmp_path / "out").glob("*.safetensors")) == [
        f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)
    ]
    assert sorted(path.name for path in (tmp_path / "with").glob("*.safetensors")) == before


def test_the_user_is_told_what_happens_to_mtp(tmp_path: Path, glmquant: Run) -> None:
    source = build_checkpoint(tmp_path / "GLM", "4.7")
    without = glmquant("w8a8", source.folder, tmp_path / "a")
    assert "the MTP layer is left out" in without.stderr
    assert "mtp.safetensors is not in the source's index" in without.stderr
    with_mtp = glmquant("w8a8", source.folder, tmp_path / "b", "--add-mtp")
    assert "left out" not in with_mtp.stderr.replace("left out, other weights", "")
    index = json.loads((tmp_path / "b/model.safetensors.index.json").read_bytes())
    assert "mtp.safetensors" in index["weight_map"].values()


def test_modes_follow_the_umask(nano: Recorded, tmp_path: Path, glmquant: Run) -> None:
    import os

    for path in nano.folder.rglob("*"):
        if path.is_file():
            path.chmod(0o600)
    for mask, mode in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
        before = os.umask(mask)
        try:
            target = tmp_path / f"out{mask:o}"
            assert glmquant("w8a8", nano.folder, target).exit_code == 0
        finally:
            os.umask(before)
        files = [path for path in target.rglob("*") if path.is_file()]
        assert {path.stat().st_mode & 0o777 for path in files} == {mode}


def test_the_output_does_not_depend_on_where_the_source_lies(tmp_path: Path, glmquant: Run) -> None:
    for name in ("one", "two"):
        source = build_checkpoint(tmp_path / name / f"GLM-{name}")
        glmquant("w8a8", source.folder, tmp_path / name / "out", "--add-mtp")
    assert folder_bytes(tmp_path / "one/out") == folder_bytes(tmp_path / "two/out")


def test_the_source_is_not_touched(nano: Recorded, tmp_path: Path, glmquant: Run) -> None:
    before = folder_bytes(nano.folder)
    stamps = {path: path.stat().st_mtime_ns for path in nano.folder.rglob("*")}
    glmquant("w8a8", nano.folder, "--add-mtp")
    assert folder_bytes(nano.folder) == before
    assert {path: path.stat().st_mtime_ns for path in nano.folder.rglob("*")} == stamps
    assert (tmp_path / "GLM-W8A8-floatmtp/config.json").is_file()


def test_float_tensors_of_other_dtypes_are_kept_and_named(tmp_path: Path, glmquant: Run) -> None:
    dtypes = {
        "model.norm.weight": "F32",
        "model.layers.0.self_attn.q_proj.weight": "F32",
        "model.layers.1.self_attn.o_proj.weight": "F16",
    }
    source = build_checkpoint(tmp_path / "GLM", dtypes=dtypes)
    ran = glmquant("w8a8", source.folder, tmp_path / "out")
    assert "3 tensors are not BF16 in the source" in ran.stderr
    expected = oracle.expected_tensors(
        source.tensors, recipe="w8a8", mtp_prefix=source.mtp_prefix, add_mtp=False
    )
    assert read_shards(tmp_path / "out") == expected


def test_a_single_file_without_an_index_will_do(tmp_path: Path, glmquant: Run) -> None:
    source = build_checkpoint(tmp_path / "GLM", "4.5", shard_nbytes=10**9)
    shards = sorted(source.folder.glob("*.safetensors"))
    from tests.builders import write_shard

    write_shard(source.folder / "model.safetensors", source.tensors)
    for path in (*shards, source.folder / "model.safetensors.index.json"):
        path.unlink()
    assert glmquant("w8a8", source.folder, tmp_path / "out", "--add-mtp").exit_code == 0
    expected = oracle.expected_tensors(
        source.tensors, recipe="w8a8", mtp_prefix=source.mtp_prefix, add_mtp=True
    )
    assert read_shards(tmp_path / "out") == expected
    assert (tmp_path / "out/model.safetensors.index.json").is_file()
