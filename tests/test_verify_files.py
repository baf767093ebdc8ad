"""What the catalogue of defects does not say: each cause once, all tensors, what to do next."""

from __future__ import annotations

import cProfile
import json
import pstats
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from glmquant.errors import GlmquantError
from glmquant.source import FolderSource
from glmquant.verify.engines.predict import predict
from glmquant.verify.files.check import check_files
from glmquant.verify.findings import CODES, Finding, Severity
from glmquant.verify.subject import open_subject
from tests.builders import AIR, LARGE, Recorded, build_checkpoint, write_shard
from tests.defects import (
    BASES,
    DEFECTS,
    DESCRIPTION,
    INDEX,
    MTP,
    MTP_FILE,
    Parts,
    edit,
    quantize,
    read_shard,
)
from tests.foreign import edit_config
from tests.modelslim import make, stored

V1_INDEX: Final = "quant_model_weights.safetensors.index.json"
LAYER: Final = "model.layers.1"
Edit = Callable[[Path], object]


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return build_checkpoint(tmp_path_factory.mktemp("files") / "source")


@pytest.fixture(scope="session")
def right(source: Recorded) -> Path:
    """A right checkpoint, not to be changed."""
    folder = source.folder.parent / "right"
    quantize(source.folder, folder, "--add-mtp")
    return folder


@pytest.fixture
def folder(right: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(right, tmp_path / "GLM"))


def look(folder: Path, tensor_parallel: int | None = None) -> list[Finding]:
    findings = check_files(open_subject(FolderSource(folder)), tensor_parallel)
    for finding in findings:
        assert finding.code in CODES
        assert all([finding.what, finding.where, finding.expected, finding.found, finding.hint])
    return findings


def one(folder: Path, code: str, *, is_warning: bool = False) -> Finding:
    """The only finding."""
    findings = look(folder)
    assert [finding.code for finding in findings] == [code], findings
    severity = Severity.WARNING if is_warning else Severity.ERROR
    assert findings[0].severity is severity, findings
    return findings[0]


def by(change: Callable[[Parts], object]) -> Edit:
    """A change of the parts, saved."""

    def apply(parts: Parts) -> str:
        change(parts)
        return ""

    return edit(apply)


def put(tensors: dict[str, tuple[str, tuple[int, ...], bytes]], kind: str | None = "FLOAT") -> Edit:
    """More tensors in the last shard, described as one type or not at all."""

    def change(parts: Parts) -> None:
        file = "model-00003-of-00003.safetensors"
        for name, tensor in tensors.items():
            parts.put(name, tensor, kind or "", file)
            if kind is None:
                del parts.description[name]

    return by(change)


def ones(*shape: int, dtype: str = "BF16") -> tuple[str, tuple[int, ...], bytes]:
    return stored(np.ones(shape, np.float32), dtype)


ALSO: Final = {
    "one static expert": {"D3"},
}
"""Defects of the catalogue that are two things at once."""


@pytest.mark.parametrize(
    "name", [name for name, defect in DEFECTS.items() if defect.level == "files"]
)
def test_a_defect_is_told_once(source: Recorded, right: Path, tmp_path: Path, name: str) -> None:
    defect = DEFECTS[name]
    folder = tmp_path / "GLM"
    if defect.base in BASES:
        BASES[defect.base](source, folder)
    elif defect.base == "embedded":
        quantize(source.folder, folder, "--add-mtp", "--embed-quant-config")
    else:
        shutil.copytree(right, folder)
    defect.apply(folder)
    size = int(defect.options[1]) if defect.options else None
    findings = look(folder, size)
    if name != "a wrong total_size":  # which stays as it was where a defect takes files away
        findings = [finding for finding in findings if "total_size" not in finding.where]
    codes = {finding.code for finding in findings}
    assert len(findings) == (0 if defect.code == "S2" else 1 + len(ALSO.get(name, ()))), findings
    assert codes <= defect.codes | ALSO.get(name, set()), codes
    assert {finding.severity.value for finding in findings} <= {defect.severity}, findings


def test_all_tensors_of_a_finding_are_named_and_the_first_shown(folder: Path) -> None:
    def lose(parts: Parts) -> None:
        for name in parts.names("model.layers."):
            if ".mlp.experts." in name and name.endswith("up_proj.weight_scale"):
                parts.drop(name)

    by(lose)(folder)
    finding = one(folder, "L1")
    names = [
        f"model.layers.{n}.mlp.experts.{e}.up_proj.weight_scale" for n in (2, 3) for e in range(4)
    ]
    assert finding.tensors == tuple(names)
    assert finding.where == f"{', '.join(names[:3])} and 5 more"


def test_experts_and_attention_are_two_findings(folder: Path) -> None:
    def lose(parts: Parts) -> None:
        for linear in (f"{LAYER}.self_attn.q_proj", "model.layers.3.mlp.experts.2.up_proj"):
            parts.drop(f"{linear}.weight_scale")

    by(lose)(folder)
    assert [finding.code for finding in look(folder)] == ["L1", "L1"]


# ---- files and index


def test_a_shard_that_is_missing_is_told_once_with_all_its_tensors(folder: Path) -> None:
    names = set(Parts(folder).shards[MTP_FILE])
    (folder / MTP_FILE).unlink()
    finding = one(folder, "F1")
    assert set(finding.tensors) == names
    assert "fetch mtp.safetensors" in finding.hint


def test_a_broken_shard_is_told_once(folder: Path) -> None:
    path = folder / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert one(folder, "W1").where.startswith(path.name)


def test_an_mtp_file_that_is_not_in_the_index_is_told_once(folder: Path) -> None:
    def unlist(parts: Parts) -> None:
        for name in parts.names(MTP):
            del parts.weight_map[name]

    by(unlist)(folder)
    index = json.loads((folder / INDEX).read_bytes())
    finding = next(each for each in look(folder) if each.severity is Severity.ERROR)
    assert (finding.code, finding.where.partition(":")[0]) == ("F1", MTP_FILE)
    assert "glmquant add-mtp" in finding.hint
    assert MTP_FILE not in set(index["weight_map"].values())


def test_a_hidden_v1_checkpoint_is_judged_by_its_own_shards(
    source: Recorded, tmp_path: Path
) -> None:
    made = make(source, tmp_path / "GLM", layout="v1").folder
    index = {"weight_map": dict.fromkeys(source.tensors, "model-00001-of-00001.safetensors")}
    (made / INDEX).write_text(json.dumps(index))
    write_shard(made / "model-00001-of-00001.safetensors", dict(source.tensors))
    finding = one(made, "F1")
    assert (finding.where, finding.what) == (INDEX, "an index hides the quantized shards")
    assert "remove model.safetensors.index.json" in finding.hint


def test_a_stale_shard_that_is_read_last_is_told_once(source: Recorded, tmp_path: Path) -> None:
    made = make(source, tmp_path / "GLM", layout="v1").folder
    names = [f"{LAYER}.self_attn.q_proj.weight", f"{LAYER}.input_layernorm.weight"]
    stale = {name: source.tensors[name] for name in names}
    stale[names[1]] = ones(1, 16)
    write_shard(made / "stale.safetensors", stale)
    finding = one(made, "F1")
    assert finding.tensors == tuple(sorted(names))
    assert "reads them all the same" in finding.found


def test_an_unfinished_run_is_an_error(folder: Path) -> None:
    (folder / ".glmquant").mkdir()
    (folder / ".glmquant" / "journal.json").write_text("{}")
    errors = [each for each in look(folder) if each.severity is Severity.ERROR]
    assert [(each.code, each.where) for each in errors] == [("F1", ".glmquant/journal.json")]
    assert "glmquant w8a8" in errors[0].hint


def test_an_unfinished_graft_is_an_error(folder: Path) -> None:
    (folder / ".glmquant" / "graft" / "1").mkdir(parents=True)
    finding = one(folder, "F1")
    assert finding.where == ".glmquant/graft"
    assert finding.hint.endswith(f"glmquant add-mtp {folder} --from SOURCE")


def test_an_empty_graft_folder_is_none(folder: Path) -> None:
    (folder / ".glmquant" / "graft").mkdir(parents=True)
    assert look(folder) == []


@pytest.mark.parametrize(
    "place", [".cache/huggingface/download/x.incomplete", "._____temp/part", "x.safetensors.aria2"]
)
def test_what_downloads_left_is_a_warning(folder: Path, place: str) -> None:
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    (folder / place).write_bytes(b"")
    one(folder, "F1", is_warning=True)


def test_a_single_file_needs_no_index(folder: Path) -> None:
    parts = Parts(folder)
    tensors = {name: tensor for shard in parts.shards.values() for name, tensor in shard.items()}
    for path in [*folder.glob("*.safetensors"), folder / INDEX]:
        path.unlink()
    write_shard(folder / "model.safetensors", tensors)
    assert look(folder) == []


def test_an_index_that_leads_nowhere_is_told_as_one(folder: Path) -> None:
    by(lambda parts: parts.weight_map.update({"a.weight": MTP_FILE}))(folder)
    assert one(folder, "F1").tensors == ("a.weight",)


@pytest.mark.parametrize("damage", ["truncated", "dead link"])
def test_what_a_broken_file_held_is_unknown_without_an_index(folder: Path, damage: str) -> None:
    (folder / INDEX).unlink()
    path = folder / "model-00002-of-00003.safetensors"
    data = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(data[:-1])
    else:
        path.symlink_to("gone")
    assert [each.code for each in look(folder)] == ["W1", "F1"]


def test_no_weights_at_all(folder: Path) -> None:
    for path in [*folder.glob("*.safetensors"), folder / INDEX]:
        path.unlink()
    assert look(folder)[0].what == "there are no weights"


@pytest.mark.parametrize("name", ["model.bin", "README.md", "picture.png", ".gitattributes"])
def test_other_files_are_nobodys_business(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"")
    (folder / name).chmod(0o600)
    assert look(folder) == []


def test_modes_tell_the_command(folder: Path) -> None:
    shard = "model-00001-of-00003.safetensors"
    (folder / shard).chmod(0o600)
    finding = one(folder, "F2")
    assert finding.hint == f"chmod a+r {folder / shard}"
    assert (finding.expected, finding.found) == (
        "readable as 0444 like chat_template.jinja",
        "1 file with mode 0600",
    )


def test_modes_of_a_group(folder: Path) -> None:
    for path in folder.iterdir():
        path.chmod(0o750 if path.is_dir() else 0o640)
    (folder / INDEX).chmod(0o600)
    assert one(folder, "F2").hint == f"chmod ug+r {folder / INDEX}"


def test_modes_of_many_files_take_one_command(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.chmod(0o400)
    (folder / DESCRIPTION).chmod(0o600)
    assert one(folder, "F2").hint == f"chmod a+r {folder}/*"


# ---- side files


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer.json", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        ("tokenizer.json", ""),
        ("tokenizer_config.json", "{"),
        ("generation_config.json", "[]"),
        ("chat_template.jinja", ""),
    ],
)
def test_a_side_file_that_cannot_be_read(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    assert one(folder, "S1").where == name


def test_a_dead_link_for_a_side_file(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("gone")
    codes = {(each.code, each.where) for each in look(folder)}
    assert codes == {("S1", "tokenizer.json"), ("W1", "tokenizer.json")}


# ---- description


def test_a_description_under_the_old_name_is_not_found(folder: Path) -> None:
    (folder / DESCRIPTION).rename(folder / "quant_model_description_w8a8_dynamic.json")
    finding = one(folder, "D1")
    assert finding.hint == f"write it as {DESCRIPTION}, too"


def test_a_description_in_config_alone_is_a_warning(source: Recorded, tmp_path: Path) -> None:
    quantize(source.folder, tmp_path / "GLM", "--add-mtp", "--embed-quant-config")
    (tmp_path / "GLM" / DESCRIPTION).unlink()
    one(tmp_path / "GLM", "D1", is_warning=True)


def test_a_second_description_of_other_content(folder: Path) -> None:
    other = folder / "quant_model_description_w8a8_dynamic.json"
    other.write_text(json.dumps(Parts(folder).description | {"lm_head.weight": "W8A8"}))
    assert one(folder, "D1", is_warning=True).where == other.name


@pytest.mark.parametrize(
    "name", [f"{LAYER}.input_layernorm.weight", "model.layers.2.mlp.gate.e_score_correction_bias"]
)
def test_an_entry_that_nobody_looks_up_is_a_warning(folder: Path, name: str) -> None:
    by(lambda parts: parts.description.pop(name) and "")(folder)
    assert one(folder, "D1", is_warning=True).tensors == (name,)


def test_a_scale_of_another_type_than_its_weight_is_a_warning(folder: Path) -> None:
    name = f"{LAYER}.self_attn.o_proj.weight_scale"
    by(lambda parts: parts.description.update({name: "FLOAT"}))(folder)
    assert one(folder, "D4", is_warning=True).tensors == (name,)


def test_biases_of_norms_without_a_key_are_dropped(folder: Path) -> None:
    name = f"{LAYER}.post_attention_layernorm.bias"
    put({name: ones(16)}, None)(folder)
    findings = {each.what: each for each in look(folder)}
    assert findings["biases of norms are dropped in silence"].tensors == (name,)


def test_without_a_description_the_tensors_speak(folder: Path) -> None:
    (folder / DESCRIPTION).unlink()
    name = f"{LAYER}.self_attn.o_proj.weight_scale"
    home: str = json.loads((folder / INDEX).read_bytes())["weight_map"][name]
    tensors = read_shard(folder / home)
    del tensors[name]
    write_shard(folder / home, tensors)
    findings = look(folder)
    assert {each.code for each in findings} == {"D1", "L1", "F1"}
    assert next(each for each in findings if each.code == "L1").tensors == (name,)


# ---- dtypes


def test_a_wide_norm_is_a_warning(folder: Path) -> None:
    name = f"{LAYER}.input_layernorm.weight"
    by(lambda parts: parts.set(name, ones(16, dtype="F32")))(folder)
    found = {each.code: each for each in look(folder)}
    assert found["L1"].severity is Severity.WARNING
    assert found["L1"].tensors == (name,)


# ---- config.json


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("hidden_size", 32, "16"),
        ("intermediate_size", 48, "24"),
        ("moe_intermediate_size", 24, "12"),
        ("vocab_size", 128, "64"),
        ("num_hidden_layers", 3, "4"),
        ("num_hidden_layers", 5, "4"),
        ("first_k_dense_replace", 0, "2"),
        ("first_k_dense_replace", 4, "2"),
        ("num_attention_heads", 8, "4"),
        ("num_key_value_heads", 1, "2"),
        ("head_dim", 16, "8"),
        ("n_routed_experts", 8, "4"),
        ("n_shared_experts", 0, "1"),
        ("n_shared_experts", 3, "1"),
        ("use_qk_norm", False, "True"),
        ("attention_bias", False, "True"),
        ("tie_word_embeddings", True, "False"),
        ("n_routed_experts", -3, "4"),
        ("hidden_size", 10**9, "16"),
    ],
)
def test_a_key_against_the_tensors_is_told_once(
    folder: Path, key: str, value: Any, found: str
) -> None:
    edit_config(folder, **{key: value})
    finding = one(folder, "C4")
    assert finding.where == f"config.json: {key}"
    assert finding.expected.startswith(found)
    assert str(value) in finding.found


def test_shared_experts_that_are_nowhere_are_one_key(tmp_path: Path) -> None:
    made = build_checkpoint(tmp_path / "GLM", n_shared_experts=0)
    quantize(made.folder, tmp_path / "out", "--add-mtp")
    assert look(tmp_path / "out") == []
    edit_config(tmp_path / "out", n_shared_experts=1)
    finding = one(tmp_path / "out", "C4")
    assert (finding.where, finding.expected) == (
        "config.json: n_shared_experts",
        "0: no shared expert",
    )


def test_two_keys_and_a_lost_tensor_are_three_findings(folder: Path) -> None:
    edit_config(folder, hidden_size=32, n_routed_experts=3)
    name = "model.layers.3.mlp.experts.3.down_proj.weight"
    by(lambda parts: parts.drop(name))(folder)
    found = [(each.code, each.where) for each in look(folder) if each.severity is Severity.ERROR]
    assert sorted(found) == [
        ("C4", "config.json: hidden_size"),
        ("C4", "config.json: n_routed_experts"),
        ("D1", name),
    ]


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"architectures": ["Glm4MoeLiteForCausalLM"]}, "architectures"),
        ({"architectures": None}, "architectures"),
        ({"model_type": "glm4"}, "model_type"),
        ({"torch_dtype": "float16"}, "torch_dtype or dtype"),
        ({"torch_dtype": None}, "torch_dtype or dtype"),
        ({"dtype": "float32"}, "torch_dtype or dtype"),
        ({"hidden_size": "16"}, "hidden_size"),
        ({"vocab_size": None}, "vocab_size"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok"),
        ({"routed_scaling_factor": "2.5"}, "routed_scaling_factor"),
        ({"norm_topk_prob": 1}, "norm_topk_prob"),
    ],
)
def test_a_key_that_is_wrong_in_any_release(
    folder: Path, changes: dict[str, Any], where: str
) -> None:
    edit_config(folder, **changes)
    assert one(folder, "C3").where == f"config.json: {where}"


def test_heads_that_are_no_multiple_of_kv_heads(folder: Path) -> None:
    edit_config(folder, num_key_value_heads=3)
    codes = {(each.code, each.where) for each in look(folder)}
    assert ("C3", "config.json: num_attention_heads") in codes


def test_a_config_that_calls_for_a_million_tensors(folder: Path) -> None:
    edit_config(folder, num_nextn_predict_layers=100, n_routed_experts=10_000)
    for path in folder.glob("model-*.safetensors"):
        path.unlink()  # so that nothing says how many there are
    where = "config.json: num_hidden_layers, n_routed_experts"
    assert ("C4", where) in {(each.code, each.where) for each in look(folder)}


def test_a_key_that_transformers_would_make_up_is_a_warning(folder: Path) -> None:
    edit_config(folder, routed_scaling_factor=None)
    one(folder, "C3", is_warning=True)


def test_a_wrong_key_leaves_the_tensors_to_be_checked(folder: Path) -> None:
    edit_config(folder, num_hidden_layers="4")
    name = "model.layers.2.mlp.gate.e_score_correction_bias"
    by(lambda parts: parts.drop(name))(folder)
    found = {(each.code, each.where) for each in look(folder)}
    assert found == {("C3", "config.json: num_hidden_layers"), ("M1", name)}


def test_settings_of_another_tool_beside(folder: Path) -> None:
    (folder / "quantize_config.json").write_text("{}")
    one(folder, "C1", is_warning=True)


def test_another_tools_key(folder: Path) -> None:
    edit_config(folder, compression_config={"format": "int-quantized"})
    assert one(folder, "C1").where == "config.json: compression_config"


@pytest.mark.parametrize("value", [{}, [], "ascend", 1, True])
def test_an_embedded_description_that_is_none(folder: Path, value: Any) -> None:
    edit_config(folder, quantization_config=value)
    assert one(folder, "C1").where == "config.json: quantization_config"


def test_an_mtp_layer_that_is_announced_only_asks_for_a_graft(
    source: Recorded, tmp_path: Path
) -> None:
    made = make(source, tmp_path / "GLM", layout="v1", mtp=None, announce=1).folder
    finding = one(made, "C2")
    assert finding.hint == f"glmquant add-mtp {made} --from SOURCE"
    assert f"{MTP}eh_proj.weight" in finding.tensors
    assert f"{MTP}embed_tokens.weight" not in finding.tensors


# ---- MTP


def test_msmodelslims_mtp_layer_is_one_warning_and_its_router_biases_one_error(
    source: Recorded, tmp_path: Path
) -> None:
    made = make(source, tmp_path / "GLM", layout="v1", mtp="f32", router_biases=False).folder
    wide, biases = sorted(look(made), key=lambda finding: finding.code)
    assert (wide.code, wide.severity) == ("D2", Severity.WARNING)
    assert wide.hint == f"glmquant add-mtp {made} --from SOURCE --replace-mtp"
    assert biases.tensors == tuple(
        f"model.layers.{n}.mlp.gate.e_score_correction_bias" for n in (2, 3, 4)
    )


def test_an_int8_eh_proj_is_an_error(source: Recorded, tmp_path: Path) -> None:
    made = make(source, tmp_path / "GLM", layout="v1", mtp="int8 with eh_proj").folder
    assert f"{MTP}eh_proj.weight" in one(made, "D2").tensors


@pytest.mark.parametrize("name", ["enorm", "mlp.gate", "shared_head.head", "embed_tokens"])
def test_what_cannot_be_quantized_is_not_described_so(folder: Path, name: str) -> None:
    entry = {f"{MTP}{name}.weight": "W8A8_DYNAMIC"}
    by(lambda parts: parts.description.update(entry))(folder)
    assert one(folder, "D2").tensors == (f"{MTP}{name}.weight",)


def test_missing_names_tell_the_versions_they_break(folder: Path) -> None:
    name = f"{MTP}shared_head.head.weight"
    by(lambda parts: parts.description.pop(name))(folder)
    finding = one(folder, "D2")
    assert "0.14 to 0.22" in finding.found
    assert finding.tensors == (name,)


def test_a_rotation_that_is_not_used_is_none(folder: Path) -> None:
    by(lambda parts: parts.description.update({"is_rot_used": False, "metadata": {"quarot": {}}}))(
        folder
    )
    assert look(folder) == []


# ---- tensor parallelism


@pytest.mark.parametrize("size", [1, 2])
def test_sizes_that_divide(folder: Path, size: int) -> None:
    assert [each for each in look(folder, size) if each.severity is Severity.ERROR] == []


def test_a_size_that_does_not_divide_names_those_that_do(folder: Path) -> None:
    (finding,) = look(folder, 3)
    assert finding.hint == "take one of these for --tensor-parallel-size: 1, 2, 4"


SIZES: Final[dict[str, Any]] = {
    "hidden_size": 1,
    "vocab_size": 64,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "n_routed_experts": 16,
    "head_dim": 1,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
}


@pytest.mark.parametrize(
    ("width", "size", "severities"),
    [
        (AIR["moe_intermediate_size"], 16, [Severity.WARNING]),
        (AIR["moe_intermediate_size"], 8, [Severity.WARNING]),
        (AIR["moe_intermediate_size"], 4, []),
        (LARGE["moe_intermediate_size"], 16, []),
    ],
)
def test_experts_of_air_divide_badly(
    tmp_path: Path, width: int, size: int, severities: list[Severity]
) -> None:
    made = build_checkpoint(
        tmp_path / "GLM", **SIZES | {"moe_intermediate_size": width, "intermediate_size": 16}
    )
    quantize(made.folder, tmp_path / "out", "--add-mtp")
    findings = look(tmp_path / "out", size)
    assert [each.severity for each in findings] == severities
    assert all("--enable-expert-parallel" in each.hint for each in findings)


# ---- cost


def test_the_cost_grows_with_the_tensors(tmp_path: Path) -> None:
    """Calls, not seconds: those of eight times the experts are at most nine times as many."""
    calls, tensors = [], []
    for experts in (32, 256):
        name = str(experts)
        built = build_checkpoint(
            tmp_path / name,
            shard_nbytes=10**6,
            keep=False,
            n_routed_experts=experts,
            moe_intermediate_size=2,
        )
        quantize(built.folder, tmp_path / f"{name}-W8A8", "--add-mtp")
        subject = open_subject(FolderSource(tmp_path / f"{name}-W8A8"))
        profile = cProfile.Profile()
        profile.enable()
        assert check_files(subject, None) == []
        predict(subject)
        profile.disable()
        calls.append(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]
        tensors.append(len(subject.tensors))
    assert calls[1] / calls[0] < 1.1 * tensors[1] / tensors[0]
    assert calls[1] / tensors[1] < 80


# ---- noise

VALUES: Final[tuple[Any, ...]] = (
    None, True, False, 0, 1, -1, 2**63, 1e300, 0.5, "", "FLOAT", "W8A8", "x" * 5000, [], [1], [[]],
    {}, {"a": 1}, {"weight_map": {}}, "\u0000\u001b[31m", "²", ["Glm4MoeForCausalLM"],
)  # fmt: skip


def mutate(value: Any, generator: random.Random) -> Any:
    """A JSON value with a random part of it replaced, removed, renamed or doubled."""
    if isinstance(value, dict) and value and generator.random() < 0.9:
        changed = dict(value)
        key = generator.choice(list(changed))
        action = generator.randrange(5)
        if action == 0:
            del changed[key]
        elif action == 1:
            changed[generator.choice([*changed, "norm.bias", "model.layers.99.x", "²", ""])] = (
                changed.pop(key)
            )
        else:
            changed[key] = mutate(changed[key], generator)
        return changed
    if isinstance(value, list) and value and generator.random() < 0.5:
        return [mutate(each, generator) for each in value]
    return generator.choice(VALUES)


def mutated_header(data: bytes, generator: random.Random) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    fields = mutate(json.loads(data[8 : 8 + length]), generator)
    text = json.dumps(fields).encode()
    if generator.random() < 0.1:
        return generator.randbytes(generator.randrange(64))
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def renamed_header(data: bytes, generator: random.Random) -> bytes:
    """A header that still parses: other names, dtypes of the same width, shapes of one size."""
    (length,) = struct.unpack("<Q", data[:8])
    fields = json.loads(data[8 : 8 + length])
    name = generator.choice([key for key in fields if key != "__metadata__"])
    entry = fields.pop(name)
    action = generator.randrange(3)
    if action == 0:
        name = generator.choice(
            ["", ".", "²", "model.layers.99999999999.x", "model.layers.007.a.weight", "a" * 300,
             "model.layers.4.self_attn.q_proj.rot.weight", "\u001b[31m.weight", "model.layers..x"]
        )  # fmt: skip
    elif action == 1:
        entry["dtype"] = {"BF16": "F16", "F32": "I32", "I8": "U8"}.get(entry["dtype"], "I8")
    else:
        entry["shape"] = entry["shape"][::-1] + [1] * generator.randrange(3)
    fields[name] = entry
    text = json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def damages(folder: Path, generator: random.Random) -> Iterator[None]:
    """One to three mutations."""
    files = [path for path in folder.iterdir() if path.is_file() and path.suffix != ".jinja"]
    for _ in range(generator.randrange(1, 4)):
        path = generator.choice(files)
        data = path.read_bytes()
        if generator.random() < 0.05:
            path.write_bytes(generator.choice([b"", b"\0", b"{", data[:-1], b"\xff\xfe"]))
        elif path.suffix == ".json":
            try:
                fields = json.loads(data)
            except ValueError:
                continue
            path.write_text(json.dumps(mutate(fields, generator)))
        elif path.suffix == ".safetensors" and len(data) > 100:
            change = generator.choice([mutated_header, renamed_header, renamed_header])
            try:
                path.write_bytes(change(data, generator))
            except (ValueError, struct.error, IndexError, KeyError, TypeError, AttributeError):
                continue  # it was noise already
        yield


@pytest.mark.parametrize("seed", range(12))
def test_noise_is_judged_without_a_crash(right: Path, tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    for number in range(25):
        folder = Path(shutil.copytree(right, tmp_path / str(number)))
        for _ in damages(folder, generator):
            pass
        try:
            subject = open_subject(FolderSource(folder))
        except GlmquantError:
            continue
        findings = check_files(subject, generator.randrange(1, 17))
        for finding in findings:
            assert finding.where.isprintable(), finding
            assert len(finding.where) < 1500, finding
            json.dumps(finding.fields())
        assert len(predict(subject)) == 5
