"""add-mtp: what is there afterwards, in every layout, and that it can be taken back."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glmquant.checkpoint import open_checkpoint
from glmquant.manifest import parse_manifest
from glmquant.source import FolderSource
from glmquant.verify.run import verify
from tests import modelslim
from tests.builders import LAYOUTS, Recorded, build_checkpoint, write_shard
from tests.conftest import Ran, folder_bytes
from tests.grafting import (
    DESCRIPTION,
    FORMATS,
    INDEX,
    everything,
    expected,
    load,
    make_base,
    small,
    without_state,
)

Run = Callable[..., Ran]


def graft(glmquant: Run, base: Path, source: Recorded, *flags: object) -> Ran:
    ran = glmquant("add-mtp", base, "--from", source.folder, *flags)
    assert ran.exit_code == 0, ran.stderr
    return ran


def require_contract(folder: Path, source: Recorded) -> None:
    """Tensors = index = description, both ways, and config.json counts the MTP layers."""
    loaded = load(folder)
    index = json.loads((folder / INDEX).read_bytes())
    assert index["weight_map"].keys() == loaded.tensors.keys()
    assert set(index["weight_map"].values()) == {path.name for path in folder.glob("*.safetensors")}
    assert index["metadata"]["total_size"] == sum(len(d) for _, _, d in loaded.tensors.values())
    assert [path.name for path in folder.glob("*.index.json")] == [INDEX]
    assert [path.name for path in folder.glob("quant_model_description*")] == [DESCRIPTION]
    count = source.config["num_nextn_predict_layers"]
    first = source.config["num_hidden_layers"]
    always = {
        f"model.layers.{layer}.{name}.weight"
        for layer in range(first, first + count)
        for name in ("embed_tokens", "shared_head.head")
    }
    assert loaded.types.keys() == loaded.tensors.keys() | always
    for name, kind in loaded.types.items():
        if name.startswith(source.mtp_prefix) or name.endswith("e_score_correction_bias"):
            assert kind == "FLOAT", name
    assert loaded.config["num_nextn_predict_layers"] == count


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_missing_is_grafted_bit_for_bit_and_undone_again(
    tmp_path: Path, glmquant: Run, form: str, layout: str
) -> None:
    source = build_checkpoint(tmp_path / "GLM", layout)
    base = make_base(source, tmp_path / "base", form)
    wanted, before = expected(source, base), everything(tmp_path)
    ran = graft(glmquant, base, source)
    assert f"next: glmquant verify {base} --source {source.folder}" in ran.stdout
    assert load(base).tensors == wanted
    require_contract(base, source)
    after = everything(tmp_path)
    assert "nothing is missing" in graft(glmquant, base, source).stdout
    assert everything(tmp_path) == after
    assert glmquant("add-mtp", base, "--undo").exit_code == 0
    assert everything(tmp_path) == before


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("flags", [[], ["--embed-quant-config"], ["--also", "mindie"]])
def test_w8a8_and_then_add_mtp_is_w8a8_with_add_mtp_up_to_the_layout_of_shards(
    tmp_path: Path, glmquant: Run, layout: str, flags: list[str]
) -> None:
    source = build_checkpoint(tmp_path / "GLM", layout)
    glmquant("w8a8", source.folder, tmp_path / "base", *flags)
    glmquant("w8a8", source.folder, tmp_path / "whole", "--add-mtp", *flags)
    graft(glmquant, tmp_path / "base", source)
    base, whole = load(tmp_path / "base"), load(tmp_path / "whole")
    assert base == whole
    made, wanted = folder_bytes(tmp_path / "base"), folder_bytes(tmp_path / "whole")
    for name in ("config.json", DESCRIPTION):
        assert made[name] == wanted[name]
    manifests = [parse_manifest(each["glmquant_manifest.json"]) for each in (made, wanted)]
    for manifest in manifests:
        del manifest["plan"]
        manifest["files"] = [name for name in manifest["files"] if ".safetensors" not in name]
    assert manifests[0] == manifests[1]
    assert list(manifests[0]) == list(manifests[1])


def test_w8a8_does_not_take_a_grafted_folder_for_its_own_and_overwrites_it_whole(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    out = tmp_path / "out"
    glmquant("w8a8", nano.folder, out)
    graft(glmquant, out, nano)
    ran = glmquant("w8a8", nano.folder, out)
    assert (ran.exit_code, "found:    add_mtp True" in ran.stderr) == (1, True)
    flags = ("--recipe", "w8a8-full")
    assert glmquant("w8a8", nano.folder, out, "--overwrite", *flags).exit_code == 0
    glmquant("w8a8", nano.folder, tmp_path / "whole", *flags)
    whole = without_state(tmp_path / "whole")
    assert without_state(out) == whole
    ran = glmquant("add-mtp", out, "--undo")
    assert (ran.exit_code, "a file was changed after the graft" in ran.stderr) == (1, True)
    assert without_state(out) == whole
    assert glmquant("add-mtp", out, "--forget").exit_code == 0
    assert everything(out) == everything(tmp_path / "whole")
    graft(glmquant, out, nano)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shard_mode", [0o600, 0o400, 0o444])
def test_files_that_others_may_not_read_are_mended_and_put_back_by_undo(
    nano: Recorded, tmp_path: Path, glmquant: Run, form: str, shard_mode: int
) -> None:
    base = make_base(nano, tmp_path / "base", form)
    for path in base.glob("*.safetensors"):
        path.chmod(shard_mode)
    before = everything(tmp_path)
    graft(glmquant, base, nano)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in base.iterdir()}
    assert {name for name, mode in modes.items() if mode & 0o444 != 0o444} == set()
    assert glmquant("add-mtp", base, "--undo").exit_code == 0
    assert everything(tmp_path) == before


@pytest.mark.parametrize("form", FORMATS)
def test_a_folder_that_is_its_owners_alone_stays_so(
    nano: Recorded, tmp_path: Path, glmquant: Run, form: str
) -> None:
    base = make_base(nano, tmp_path / "base", form)
    for path in base.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    base.chmod(0o700)
    before = everything(tmp_path)
    graft(glmquant, base, nano)
    files = [path for path in base.rglob("*") if path.is_file() and ".glmquant" not in path.parts]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE(base.stat().st_mode) == 0o700
    assert glmquant("add-mtp", base, "--undo").exit_code == 0
    assert everything(tmp_path) == before


@pytest.mark.parametrize("form", ["glmquant", "v1"])
def test_the_umask_of_the_one_who_grafts_does_not_matter(
    nano: Recorded, tmp_path: Path, glmquant: Run, form: str
) -> None:
    base = make_base(nano, tmp_path / "base", form)
    umask = os.umask(0o077)
    try:
        graft(glmquant, base, nano)
    finally:
        os.umask(umask)
    files = [path for path in base.iterdir() if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o644}


def test_several_mtp_layers_are_grafted(tmp_path: Path, glmquant: Run) -> None:
    source = build_checkpoint(tmp_path / "GLM", "4.5", num_nextn_predict_layers=2)
    base = make_base(source, tmp_path / "base", "glmquant")
    wanted = expected(source, base)
    ran = graft(glmquant, base, source)
    assert "of MTP layers 4, 5 added" in ran.stdout
    assert load(base).tensors == wanted
    require_contract(base, source)


@pytest.mark.parametrize("form", ["hf", "v1", "v0"])
@pytest.mark.parametrize("kind", ["f32", "int8", "int8 with eh_proj"])
def test_an_mtp_layer_that_is_wide_or_quantized_is_replaced(
    nano: Recorded, tmp_path: Path, glmquant: Run, form: str, kind: str
) -> None:
    base = make_base(nano, tmp_path / "base", form, mtp=kind)
    wanted, before = expected(nano, base), everything(tmp_path)
    ran = glmquant("add-mtp", base, "--from", nano.folder)
    if kind == "f32":
        assert (ran.exit_code, "F32 of the source's values" in ran.stderr) == (0, True)
        biases = {name for name in nano.tensors if name.endswith("e_score_correction_bias")}
        assert biases <= load(base).tensors.keys()
        assert glmquant("add-mtp", base, "--undo").exit_code == 0
    else:
        hint = f"glmquant add-mtp {base} --from {nano.folder} --replace-mtp"
        assert (ran.exit_code, ran.stderr.rstrip().endswith(f"  hint:     {hint}")) == (1, True)
    assert everything(tmp_path) == before
    graft(glmquant, base, nano, "--replace-mtp")
    assert load(base).tensors == wanted
    require_contract(base, nano)
    after = everything(tmp_path)
    assert "nothing is missing" in graft(glmquant, base, nano, "--replace-mtp").stdout
    assert everything(tmp_path) == after
    assert glmquant("add-mtp", base, "--undo").exit_code == 0
    assert everything(tmp_path) == before


def test_the_vendors_checkpoint_with_its_smoothing_and_modes(tmp_path: Path, glmquant: Run) -> None:
    source = build_checkpoint(tmp_path / "GLM", "4.7")
    modelslim.make(source, tmp_path / "base", modelslim.VENDOR)
    wanted = expected(source, tmp_path / "base")
    graft(glmquant, tmp_path / "base", source, "--replace-mtp")
    assert load(tmp_path / "base").tensors == wanted
    require_contract(tmp_path / "base", source)
    files = [path for path in (tmp_path / "base").glob("[!.]*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) & 0o444 for path in files} == {0o444}


def test_static_attention_without_its_biases_is_taken(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    base = make_base(nano, tmp_path / "base", "v1", static=True, smooth_vo=True)
    for path in base.glob("*.safetensors"):
        held = {
            name: (dtype, tuple(shape), data)
            for name, (dtype, shape, data) in read_shard(path).items()
            if not name.endswith("_proj.bias")
        }
        write_shard(path, held)
    wanted = expected(nano, base)
    graft(glmquant, base, nano)
    assert load(base).tensors == wanted


def read_shard(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    import safetensors

    entries = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    return {
        name: (entry["dtype"], list(entry["shape"]), bytes(entry["data"]))
        for name, entry in entries
    }


def drop(folder: Path, is_dropped: Callable[[str], bool]) -> None:
    """Take tensors out of the shards and of the index that an engine reads."""
    for path in folder.glob("*.safetensors"):
        held = read_shard(path)
        kept = {
            name: (dtype, tuple(shape), data)
            for name, (dtype, shape, data) in held.items()
            if not is_dropped(name)
        }
        if kept:
            write_shard(path, kept)
        else:
            path.unlink()
    if (folder / INDEX).exists():
        index = json.loads((folder / INDEX).read_bytes())
        index["weight_map"] = {
            name: file for name, file in index["weight_map"].items() if not is_dropped(name)
        }
        (folder / INDEX).write_text(json.dumps(index))


def test_of_a_partial_mtp_layer_only_the_rest_is_read_and_added(
    tmp_path: Path, glmquant: Run
) -> None:
    source = build_checkpoint(tmp_path / "GLM", "4.5")
    base = tmp_path / "base"
    glmquant("w8a8", source.folder, base, "--add-mtp")
    drop(base, lambda name: "eh_proj" in name or name.endswith("4.shared_head.head.weight"))
    ran = graft(glmquant, base, source, "--json")
    plan = ran.events[-2] if ran.events[-1]["event"] == "done" else {}
    plan = next(event for event in ran.events if event["event"] == "plan") or plan
    prefix = source.mtp_prefix
    assert sorted(plan["add"]) == [f"{prefix}eh_proj.weight", f"{prefix}shared_head.head.weight"]
    assert plan["way"] == "in place"
    glmquant("w8a8", source.folder, tmp_path / "whole", "--add-mtp")
    assert load(base).tensors == load(tmp_path / "whole").tensors


def test_a_partial_layer_with_other_values_is_refused_and_replaced_on_request(
    tmp_path: Path, glmquant: Run
) -> None:
    source = build_checkpoint(tmp_path / "GLM", "4.5")
    base = make_base(source, tmp_path / "base", "hf", mtp="bf16")
    name = f"{source.mtp_prefix}enorm.weight"
    path = next(path for path in base.glob("*.safetensors") if name in read_shard(path))
    held = {key: (d, tuple(s), data) for key, (d, s, data) in read_shard(path).items()}
    held[name] = ("BF16", held[name][1], bytes(len(held[name][2])))
    write_shard(path, held)
    before = everything(tmp_path)
    ran = glmquant("add-mtp", base, "--from", source.folder)
    assert (ran.exit_code, name in ran.stderr, "--replace-mtp" in ran.stderr) == (1, True, True)
    assert everything(tmp_path) == before
    wanted = expected(source, base)
    graft(glmquant, base, source, "--replace-mtp")
    assert load(base).tensors == wanted


@pytest.mark.parametrize("kind", ["same", "f32", "other"])
def test_an_mtp_file_that_the_index_does_not_list(
    nano: Recorded, tmp_path: Path, glmquant: Run, kind: str
) -> None:
    base = make_base(nano, tmp_path / "base", "glmquant")
    tensors = {
        name: held for name, held in nano.tensors.items() if name.startswith(nano.mtp_prefix)
    }
    if kind == "f32":
        tensors = {n: modelslim.stored(modelslim.to_f32(t), "F32") for n, t in tensors.items()}
    elif kind == "other":
        tensors = {n: (d, s, bytes(len(data))) for n, (d, s, data) in tensors.items()}
    write_shard(base / "mtp.safetensors", tensors)
    before = everything(tmp_path)
    ran = glmquant("add-mtp", base, "--from", nano.folder)
    if kind == "other":
        assert (ran.exit_code, "mtp.safetensors: model.layers.4" in ran.stderr) == (1, True)
    else:
        assert ran.exit_code == 0
        assert (base / "mtp.safetensors").read_bytes() == before["base/mtp.safetensors"][1]
        require_contract(base, nano)
        assert glmquant("add-mtp", base, "--undo").exit_code == 0
    assert everything(tmp_path) == before
    wanted = expected(nano, base)
    graft(glmquant, base, nano, "--replace-mtp")
    assert load(base).tensors == wanted
    require_contract(base, nano)


def test_copies_of_embedding_and_head_in_the_mtp_layer_may_stay(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    base = make_base(nano, tmp_path / "base", "hf", mtp="bf16")
    copies = {
        f"{nano.mtp_prefix}{name}.weight": nano.tensors[body]
        for name, body in (
            ("embed_tokens", "model.embed_tokens.weight"),
            ("shared_head.head", "lm_head.weight"),
        )
    }
    write_shard(base / "model-copies.safetensors", copies)
    index = json.loads((base / INDEX).read_bytes())
    index["weight_map"] |= dict.fromkeys(copies, "model-copies.safetensors")
    (base / INDEX).write_text(json.dumps(index))
    graft(glmquant, base, nano)
    assert copies.keys() <= load(base).tensors.keys()


def test_an_mtp_layer_at_another_index_is_refused_or_taken_out(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    base = make_base(nano, tmp_path / "base", "hf")
    wanted = expected(nano, base)
    wrong = {
        name.replace("layers.4.", "layers.5."): held
        for name, held in nano.tensors.items()
        if name.startswith(nano.mtp_prefix)
    }
    write_shard(base / "model-mtp.safetensors", wrong)
    index = json.loads((base / INDEX).read_bytes())
    index["weight_map"] |= dict.fromkeys(wrong, "model-mtp.safetensors")
    (base / INDEX).write_text(json.dumps(index))
    description = json.loads((base / DESCRIPTION).read_bytes())
    (base / DESCRIPTION).write_text(json.dumps(dict.fromkeys(wrong, "FLOAT") | description))
    ran = glmquant("add-mtp", base, "--from", nano.folder)
    assert (ran.exit_code, "expected: MTP layers 4" in ran.stderr) == (1, True)
    graft(glmquant, base, nano, "--replace-mtp")
    assert load(base).tensors == wanted
    require_contract(base, nano)


def test_a_stale_description_of_the_mtp_layer_is_corrected(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    base = make_base(nano, tmp_path / "base", "hf")
    path = base / DESCRIPTION
    description = json.loads(path.read_bytes())
    stale = {
        f"{nano.mtp_prefix}eh_proj.{kind}": "W8A8_DYNAMIC" for kind in ("weight", "weight_scale")
    }
    path.write_text(json.dumps(stale | description))
    graft(glmquant, base, nano)
    require_contract(base, nano)


@pytest.mark.parametrize("kind", ["whole", "whole without method", "partial", "empty", "only"])
@pytest.mark.parametrize("form", ["hf", "v1"])
def test_quantization_config_is_whole_or_not_there(
    nano: Recorded, tmp_path: Path, glmquant: Run, kind: str, form: str
) -> None:
    base = make_base(nano, tmp_path / "base", form)
    description = json.loads((base / DESCRIPTION).read_bytes())
    embedded: dict[str, Any] = {
        "whole": {"quant_method": "ascend", **description},
        "whole without method": description,
        "partial": {"quant_method": "ascend"},
        "empty": {},
        "only": {"quant_method": "ascend", **description},
    }[kind]
    config = json.loads((base / "config.json").read_bytes())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": embedded}))
    if kind == "only":
        (base / DESCRIPTION).unlink()
    before = everything(tmp_path)
    ran = graft(glmquant, base, nano)
    after = json.loads((base / "config.json").read_bytes())
    described = json.loads((base / DESCRIPTION).read_bytes())
    if kind in ("partial", "empty"):
        assert "quantization_config" not in after
        assert "partial quantization_config" in ran.stderr
    else:
        method = {} if kind == "whole without method" else {"quant_method": "ascend"}
        assert after["quantization_config"] == {**method, **described}
    require_contract(base, nano)
    assert glmquant("add-mtp", base, "--undo").exit_code == 0
    assert everything(tmp_path) == before


@pytest.mark.parametrize("count", ["0", "null", "7", None])
def test_config_json_keeps_every_byte_but_the_count(
    nano: Recorded, tmp_path: Path, glmquant: Run, count: str | None
) -> None:
    base = make_base(nano, tmp_path / "base", "hf")
    config = json.loads((base / "config.json").read_bytes())
    config["name"] = "Жук"
    text = json.dumps(config, indent=7)
    key = '"num_nextn_predict_layers": '
    if count is None:
        del config["num_nextn_predict_layers"]
        text = json.dumps(config, indent=7)
    else:
        text = text.replace(f"{key}0", key + count)
    (base / "config.json").write_text(text)
    graft(glmquant, base, nano)
    after = (base / "config.json").read_text()
    if count is None:
        assert json.loads(after) == config | {"num_nextn_predict_layers": 1}
    else:
        assert after == text.replace(key + count, f"{key}1")


def test_the_order_of_a_description_is_kept_and_its_globals_stay_last(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    base = make_base(nano, tmp_path / "base", "v1")
    before = list(json.loads((base / DESCRIPTION).read_bytes()))
    graft(glmquant, base, nano)
    after = list(json.loads((base / DESCRIPTION).read_bytes()))
    assert [key for key in after if key in before] == before
    assert after[-5:] == ["version", "model_quant_type", "metadata", "group_size", "optional"]


def test_everything_else_in_the_folder_goes_along(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    base = make_base(nano, tmp_path / "base", "v1")
    (base / ".glmquant").mkdir()
    (base / ".glmquant/verify.json").write_text("{}")
    (base / "logs/deep").mkdir(parents=True, mode=0o750)
    (base / "logs/deep/run.log").write_text("a line")
    (base / "notes.txt").write_text("mine")
    (base / "link.txt").symlink_to("notes.txt")
    (base / "outside").symlink_to("../GLM")
    os.utime(base / "notes.txt", ns=(5, 5))
    before = everything(tmp_path)
    graft(glmquant, base, nano)
    after = everything(tmp_path)
    for name in (".glmquant/verify.json", "logs/deep/run.log", "link.txt", "outside", "logs/deep"):
        assert after[f"base/{name}"] == before[f"base/{name}"]
    assert (base / "notes.txt").stat().st_mtime_ns == 5
    assert glmquant("add-mtp", base, "--undo").exit_code == 0
    assert everything(tmp_path) == before


def test_the_smallest_checkpoint_of_the_kill_tests_is_whole(tmp_path: Path, glmquant: Run) -> None:
    source = small(tmp_path / "GLM")
    base = make_base(source, tmp_path / "base", "v1", mtp="f32")
    wanted = expected(source, base)
    graft(glmquant, base, source, "--replace-mtp")
    assert load(base).tensors == wanted


def test_our_own_output_with_a_damaged_mtp_layer_is_mended_and_its_manifest_too(
    tmp_path: Path, glmquant: Run
) -> None:
    source = build_checkpoint(tmp_path / "GLM", "4.5")
    base = tmp_path / "base"
    glmquant("w8a8", source.folder, base, "--add-mtp")
    whole = load(base)
    manifest = parse_manifest((base / "glmquant_manifest.json").read_bytes())
    last = base / source.shard_of[f"{source.mtp_prefix}enorm.weight"]
    data = last.read_bytes()
    last.write_bytes(data[:-2] + bytes([data[-2] ^ 1, data[-1]]))
    ran = glmquant("add-mtp", base, "--from", source.folder)
    assert (ran.exit_code, "--replace-mtp" in ran.stderr) == (1, True)
    graft(glmquant, base, source, "--replace-mtp")
    assert load(base) == whole
    after = parse_manifest((base / "glmquant_manifest.json").read_bytes())
    assert after["tensors"] == manifest["tensors"]
    assert after["source"] == manifest["source"]
    assert sorted(after["files"]) == sorted(
        path.relative_to(base).as_posix()
        for path in base.rglob("*")
        if path.is_file() and ".glmquant" not in path.parts
    )


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("layout", ["4.5-air", "4.7"])
def test_what_was_grafted_into_verifies_clean(
    tmp_path: Path, glmquant: Run, form: str, layout: str
) -> None:
    source = build_checkpoint(tmp_path / "GLM", layout)
    base = make_base(source, tmp_path / "base", form)
    graft(glmquant, base, source)
    report = verify(base, source=open_checkpoint(FolderSource(source.folder)))
    assert (report.verdict, report.findings) == ("clean", ())
