"""The prediction, held against what was measured with the real loaders, defect by defect."""

from __future__ import annotations

import codecs
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from glmquant.source import FolderSource
from glmquant.verify.engines.predict import ENGINES, Run, Verdict, predict
from glmquant.verify.engines.rules import Fate
from glmquant.verify.files.anatomy import dissect
from glmquant.verify.subject import open_subject
from tests.builders import Recorded, build_checkpoint, write_shard
from tests.defects import (
    BASES,
    DEFECTS,
    DESCRIPTION,
    EXPERT,
    INDEX,
    MOE,
    MTP,
    Parts,
    describe,
    describe_as,
    edit,
    quantize,
    recast,
    to_static,
    undescribe,
)
from tests.foreign import edit_config
from tests.modelslim import VENDOR, make, stored

VERSIONS: Final = ("0.13", "0.18", "0.23", "0.26", "0.30")
LOADS: Final = "loads, the draft too"
FLAGLESS: Final = {"0.13": "fails: KeyError '….weight_offset': no description is read"}
"""What 0.13 says of every int8 folder without ``--quantization ascend``; later ones detect it."""

ATTENTION: Final = "model.layers.1.self_attn"


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return build_checkpoint(tmp_path_factory.mktemp("engines") / "source")


@pytest.fixture(scope="session")
def right(source: Recorded) -> Path:
    folder = source.folder.parent / "right"
    quantize(source.folder, folder, "--add-mtp")
    return folder


@pytest.fixture
def folder(right: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(right, tmp_path / "GLM"))


def judged(folder: Path) -> dict[str, Verdict]:
    subject = open_subject(FolderSource(folder))
    verdicts = predict(subject)
    assert predict(subject, dissect(subject)) == verdicts
    assert tuple(verdict.version for verdict in verdicts) == VERSIONS
    json.dumps([verdict.fields() for verdict in verdicts])
    return {verdict.version: verdict for verdict in verdicts}


def texts(folder: Path) -> dict[str, str]:
    """Version → what it does with ``--quantization ascend``."""
    return {version: verdict.with_flag.text for version, verdict in judged(folder).items()}


def everywhere(text: str) -> dict[str, str]:
    return dict.fromkeys(VERSIONS, text)


def test_a_right_folder_loads_everywhere_but_in_013_without_the_flag(folder: Path) -> None:
    verdicts = judged(folder)
    assert texts(folder) == everywhere(LOADS)
    assert {
        version: verdict.without_flag.text for version, verdict in verdicts.items()
    } == everywhere(LOADS) | FLAGLESS


def test_an_embedded_description_needs_no_flag_anywhere(source: Recorded, tmp_path: Path) -> None:
    quantize(source.folder, tmp_path / "GLM", "--add-mtp", "--embed-quant-config")
    assert {each.without_flag.text for each in judged(tmp_path / "GLM").values()} == {LOADS}


def test_without_an_mtp_layer_there_is_no_draft(source: Recorded, tmp_path: Path) -> None:
    quantize(source.folder, tmp_path / "GLM")
    runs = [verdict.with_flag for verdict in judged(tmp_path / "GLM").values()]
    assert {run.text for run in runs} == {"loads"}
    assert [run.draft for run in runs] == [None] * 5


def test_bf16_weights_load_without_the_flag_alone(source: Recorded) -> None:
    verdicts = judged(source.folder)
    assert {each.without_flag.text for each in verdicts.values()} == {LOADS}
    assert {each.with_flag.text for each in verdicts.values()} == {
        f"fails: no {DESCRIPTION} to be read"
    }


EVERY_FILE: Final = ("0.26", "0.30")
"""These refuse a folder without a file that the index names."""

HEAD: Final = f"loads; the draft fails: KeyError '{MTP}head.weight'"
DRAFT_LOST: Final = (
    "loads; the draft loads, wrong in silence: acceptance 0, uninitialised tensors: "
)

MEASURED: Final[dict[str, tuple[str, dict[str, str]]]] = {
    # checkpoint.md, lookup by the engine
    "the head's entry": (
        "the description lacks the MTP layer's shared_head.head",
        everywhere(LOADS) | {"0.18": HEAD, "0.26": HEAD},
    ),
    "the copy's entry": (
        "the description lacks the MTP layer's embed_tokens",
        everywhere(LOADS),
    ),
    "o_proj's entry": (
        "the description lacks an o_proj",
        everywhere(f"fails: KeyError '{ATTENTION}.o_proj.weight'")
        | {"0.30": f"fails: no place for {ATTENTION}.o_proj.weight_scale"},
    ),
    "an entry of a fused group": (
        "a weight without an entry in the description",
        everywhere(f"fails: KeyError '{ATTENTION}.q_proj.weight'"),
    ),
    "entries of expert 1": ("one expert without entries in the description", everywhere(LOADS)),
    "q, k of two types": (
        "q in int8 and k float",
        everywhere(f"fails: ValueError: {ATTENTION}.qkv_proj has several types"),
    ),
    "the method alone": (
        "a quantization_config of quant_method alone",
        everywhere("fails: KeyError: quantization_config holds no types") | {"0.30": LOADS},
    ),
    "a part of the description": (
        "a partial quantization_config",
        everywhere("fails: KeyError: quantization_config holds a part of the description"),
    ),
    "another tool's": (
        "a quantization_config of another tool",
        everywhere("fails: quantization_config in config.json is another tool's, or no object"),
    ),
    "no description": ("no description", everywhere(f"fails: no {DESCRIPTION} to be read")),
    "no MTP count": (
        "no num_nextn_predict_layers",
        everywhere(f"fails: no place for {MTP}") | dict.fromkeys(EVERY_FILE, "loads"),
    ),
    "a router bias": (
        "a router bias absent",
        everywhere(
            f"loads, wrong in silence: uninitialised router biases: "
            f"{MOE}.gate.e_score_correction_bias"
        ),
    ),
    "the draft's router bias": (
        "the MTP layer's router bias absent",
        everywhere(
            f"loads; the draft loads, wrong in silence: uninitialised router biases: "
            f"{MTP}mlp.gate.e_score_correction_bias"
        ),
    ),
    "a router bias in BF16, as it is held": ("a router bias in BF16", everywhere(LOADS)),
    "static experts": (
        "static experts",
        everywhere(f"fails: no scheme W8A8 for experts: {MOE}.experts"),
    ),
    "a rotated body": (
        "is_rot_used in the description",
        everywhere(
            "loads; the draft loads, wrong in silence: acceptance 0, a float draft of a rotated "
            f"body: {DESCRIPTION}: is_rot_used"
        ),
    ),
    # engine-on-cpu.md, what the engine does not notice
    "MTP keys": (
        "MTP keys absent from the description",
        everywhere(f"loads; the draft fails: KeyError '{MTP}self_attn.q_proj.weight'"),
    ),
    "MTP tensors": ("MTP tensors absent but described", everywhere(DRAFT_LOST)),
    "an unknown tensor": (
        "an unknown tensor",
        everywhere(f"fails: no place for {ATTENTION}.extra.weight"),
    ),
    "a 1-D scale": (
        "a 1-D scale",
        everywhere("fails: model.layers.0.self_attn.q_proj.weight_scale is [32], not [32, 1]"),
    ),
    "MTP at N + 1": ("MTP at index N + 1", everywhere("fails: no place for model.layers.5.")),
    "no MTP announced": ("num_nextn_predict_layers 0", everywhere(f"fails: no place for {MTP}")),
    "float MTP as int8": (
        "description says W8A8_DYNAMIC for MTP, tensors float",
        everywhere(
            "loads; the draft loads, wrong in silence: acceptance 0, float tensors read as int8: "
        ),
    ),
    "one weight_scale": (
        "one expert's weight_scale missing",
        everywhere(
            "loads, wrong in silence: uninitialised weight_scale: "
            "model.layers.2.mlp.experts.1.down_proj.weight_scale"
        ),
    ),
    "one quant_bias": (
        "a quant_bias missing",
        everywhere("loads, wrong in silence: uninitialised quant_bias: model.layers.0"),
    ),
    "int8 eh_proj": (
        "an int8 eh_proj",
        everywhere(f"loads; the draft fails: no place: {MTP}eh_proj.weight_"),
    ),
}
"""What was measured → the defect of the catalogue, and how each version's verdict begins."""


@pytest.mark.parametrize("case", MEASURED)
def test_what_was_measured_is_predicted(
    source: Recorded, right: Path, tmp_path: Path, case: str
) -> None:
    name, expected = MEASURED[case]
    defect = DEFECTS[name]
    folder = tmp_path / "GLM"
    if defect.base in BASES:
        BASES[defect.base](source, folder)
    else:
        shutil.copytree(right, folder)
    defect.apply(folder)
    found = texts(folder)
    assert {version: found[version][: len(text)] for version, text in expected.items()} == expected
    assert all(text == expected[v] for v, text in found.items() if expected[v] == LOADS)


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({"hidden_act": "gelu"}, VERSIONS),
        ({"speculators_config": {}}, VERSIONS),
        ({"compression_config": {"quant_method": "fp8"}}, VERSIONS),
        ({"model_type": None}, VERSIONS),
        ({"model_type": "llama"}, VERSIONS[:-1]),
        ({"torch_dtype": "nonsense"}, VERSIONS),
        ({"max_position_embeddings": 0}, VERSIONS),
        ({"rope_theta": "x"}, VERSIONS),
        ({"rope_theta": None}, VERSIONS[2:]),
        ({"rope_scaling": {"rope_type": "linear"}}, VERSIONS),
        ({"partial_rotary_factor": 0}, VERSIONS),
        ({"rms_norm_eps": 0}, VERSIONS[2:]),
        ({"num_experts_per_tok": "2"}, VERSIONS[2:]),
        ({"model_type": "glm4_moe_mtp"}, VERSIONS),
        ({"n_group": None}, VERSIONS),
        ({"norm_topk_prob": None}, VERSIONS[2:]),
        ({"quantization_config": None}, VERSIONS[:2]),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, ()),
    ],
)
def test_settings_that_a_version_stumbles_over(
    folder: Path, changes: dict[str, object], failing: Sequence[str]
) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))
    (key,) = changes
    for version, text in texts(folder).items():
        assert (text == LOADS) is (version not in failing), (version, text)
        assert text == LOADS or key in text


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("num_key_value_heads", 1, "k_proj.bias from [16] to [8]"),
        ("num_attention_heads", 2, "q_proj.bias from [32] to [16]"),
        ("intermediate_size", 12, "gate_proj.weight from [24, 16] to [12, 16]"),
    ],
)
def test_what_ranks_would_share_is_cut_in_silence_where_it_is_too_long(
    folder: Path, key: str, value: int, name: str
) -> None:
    edit_config(folder, **{key: value})
    for text in texts(folder).values():
        assert text.startswith("loads, wrong in silence: cut in silence: ")
        assert name in text


def test_experts_that_are_too_long_are_cut_up_to_018(folder: Path) -> None:
    edit_config(folder, moe_intermediate_size=6)
    found = texts(folder)
    for version in VERSIONS[:2]:
        assert found[version].startswith("loads, wrong in silence: cut in silence: ")
    for version in VERSIONS[2:]:
        assert found[version].startswith("fails: model.layers.2.mlp.experts.0.gate_proj.")


def test_a_description_that_is_cut_short_is_there_and_cannot_be_read(folder: Path) -> None:
    (folder / DESCRIPTION).write_text('{"a": "FLO')
    told = f"fails: {DESCRIPTION} is no JSON object that can be read"
    assert texts(folder) == everywhere(told)
    assert judged(folder)["0.30"].without_flag.text == told


@pytest.mark.parametrize("name", ["config.json", DESCRIPTION, INDEX])
def test_json_with_a_byte_order_mark_is_refused_by_every_version(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert texts(folder) == everywhere(f"fails: {name} begins with a byte order mark")


def test_absent_mtp_tensors_are_seen_only_without_the_flag(folder: Path) -> None:
    DEFECTS["MTP tensors absent but described"].apply(folder)
    verdicts = judged(folder)
    for version in VERSIONS[1:]:
        text = verdicts[version].without_flag.text
        assert text.startswith("loads; the draft fails: ValueError: model.layers.4.")
        assert verdicts[version].with_flag.draft.fate is Fate.WRONG  # type: ignore[union-attr]


def test_copies_of_embedding_and_head_may_be_absent(folder: Path) -> None:
    assert not any("shared_head.head" in name for name in Parts(folder).names(MTP))
    assert texts(folder) == everywhere(LOADS)


def test_static_shared_experts_fail_from_023_on(folder: Path) -> None:
    shared = f"{MOE}.shared_experts"
    to_static(*(f"{shared}.{part}_proj" for part in ("gate", "up", "down")))(folder)
    later = f"fails: at the first token: {shared}.gate_up_proj is run as W8A8_DYNAMIC"
    assert texts(folder) == everywhere(later) | {"0.13": LOADS, "0.18": LOADS}


def test_the_head_is_looked_up_as_a_linear_in_no_group(folder: Path) -> None:
    undescribe("lm_head.")(folder)
    error = "fails: KeyError 'lm_head.weight'"
    assert texts(folder) == everywhere(error) | {"0.23": LOADS, "0.30": LOADS}


def test_no_head_is_tied_to_the_embedding(tmp_path: Path) -> None:
    source = build_checkpoint(tmp_path / "source", tie_word_embeddings=True)
    quantize(source.folder, tmp_path / "GLM", "--add-mtp")
    for version in ("0.23", "0.30"):
        text = texts(tmp_path / "GLM")[version]
        assert text == "loads, wrong in silence: uninitialised tensors: lm_head.weight"


def test_a_head_may_be_int8_to_the_loaders(folder: Path) -> None:
    DEFECTS["a quantized head"].apply(folder)
    assert texts(folder) == everywhere(LOADS)


def test_a_float_head_that_is_described_as_int8_has_no_scale(folder: Path) -> None:
    describe_as("lm_head.", "W8A8_DYNAMIC")(folder)
    assert texts(folder) == everywhere(
        "loads, wrong in silence: uninitialised tensors: lm_head.weight_scale"
    )


def test_a_head_of_an_unknown_type_fails(folder: Path) -> None:
    describe_as("lm_head.", "W3")(folder)
    assert texts(folder) == everywhere("fails: no scheme for the type 'W3' of lm_head")


def test_a_norm_of_another_shape_fails(folder: Path) -> None:
    name = "model.layers.1.input_layernorm.weight"
    recast(name, "BF16", (1, 16))(folder)
    assert texts(folder) == everywhere(f"fails: {name} is [1, 16], not [16]")


def test_a_float_model_notices_what_is_missing(source: Recorded, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(source.folder, tmp_path / "GLM"))
    shard = source.shard_of["lm_head.weight"]
    (folder / shard).unlink()
    for version, verdict in judged(folder).items():
        if version in EVERY_FILE:
            error = f"fails: FileNotFoundError: {shard}, named in the index"
            assert verdict.without_flag.text == error
            continue
        assert verdict.without_flag.text.startswith("fails: ValueError: ")
        assert verdict.without_flag.text.endswith(" not initialized")


def test_a_draft_without_a_flag_is_held_to_all_its_parameters_in_018_alone(folder: Path) -> None:
    DEFECTS["description says W8A8_DYNAMIC for MTP experts, tensors float"].apply(folder)
    told = {version: verdict.without_flag.text for version, verdict in judged(folder).items()}
    experts = "model.layers.4.mlp.experts"
    silent = "loads; the draft loads, wrong in silence: acceptance 0, float tensors read as int8"
    assert told["0.18"] == (
        f"loads; the draft fails: ValueError: {experts}.0.gate_proj.weight_scale and 23 more not "
        "initialized"
    )
    for version in ("0.23", "0.26", "0.30"):
        assert told[version].startswith(silent)
    assert texts(folder)["0.18"].startswith(silent)


def test_a_float_linear_without_an_entry_is_right_in_030_by_luck(folder: Path) -> None:
    undescribe(f"{MOE}.shared_experts.down_proj.")(folder)
    error = f"fails: KeyError '{MOE}.shared_experts.down_proj.weight'"
    assert texts(folder) == everywhere(error) | {"0.30": LOADS}


def test_expert_0_decides_for_all(folder: Path) -> None:
    describe_as(f"{EXPERT}.", "FLOAT")(folder)
    assert texts(folder) == everywhere(LOADS)
    describe_as(f"{MOE}.experts.0.", "FLOAT")(folder)
    assert all(text.startswith("fails: no place: ") for text in texts(folder).values())


def test_an_unknown_type_of_a_linear(folder: Path) -> None:
    describe_as(f"{ATTENTION}.o_proj.", "W4A8")(folder)
    assert texts(folder) == everywhere(
        f"fails: no scheme for the type 'W4A8' of {ATTENTION}.o_proj"
    )


def test_two_copies_confuse_013_alone(folder: Path) -> None:
    def twice(parts: Parts) -> str:
        name = f"{ATTENTION}.q_proj.bias"
        parts.shards["mtp.safetensors"][name] = parts.tensor(name)
        return name

    edit(twice)(folder)
    wrong = "loads, wrong in silence: tensors lie in two files, and the one read last wins"
    assert texts(folder) == everywhere(LOADS) | {"0.13": wrong}


def test_the_stale_shard_wins_where_it_sorts_last(source: Recorded, tmp_path: Path) -> None:
    made = make(source, tmp_path / "GLM", layout="v1").folder
    stale = {f"{ATTENTION}.q_proj.weight": source.tensors[f"{ATTENTION}.q_proj.weight"]}
    write_shard(made / "model-00001-of-00092.safetensors", stale)
    assert texts(made)["0.18"] == LOADS  # "model" comes before "quant_model"
    write_shard(made / "stale.safetensors", stale)
    expected = f"float tensors read as int8: {ATTENTION}.q_proj.weight"
    assert texts(made)["0.18"] == f"loads, wrong in silence: {expected}"


def test_an_index_of_bf16_shards_that_are_gone_leaves_no_weights(
    source: Recorded, tmp_path: Path
) -> None:
    made = make(source, tmp_path / "GLM", layout="v1").folder
    (made / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": "a.safetensors"}}))
    assert texts(made) == everywhere("fails: no weights")


def test_a_shard_that_is_not_there_is_noticed_from_026_on(folder: Path) -> None:
    shard = folder / "model-00002-of-00003.safetensors"
    shard.unlink()
    for version, text in texts(folder).items():
        if version in EVERY_FILE:
            assert text == f"fails: FileNotFoundError: {shard.name}, named in the index"
        else:
            assert text.startswith("loads, wrong in silence: uninitialised tensors: ")


@pytest.mark.parametrize("name", ["a shard as a dead link", "a folder in a shard's place"])
def test_what_is_no_file_is_opened_all_the_same(folder: Path, name: str) -> None:
    DEFECTS[name].apply(folder)
    assert {text.partition(" is no file")[2] for text in texts(folder).values()} == {
        " that can be read"
    }


def test_an_index_that_is_no_json_is_noticed(folder: Path) -> None:
    DEFECTS["an index that is no JSON"].apply(folder)
    assert texts(folder) == everywhere(f"fails: {INDEX} is no index that can be read")


def test_a_key_twice_is_no_error_to_an_engine(folder: Path) -> None:
    DEFECTS["a key twice in the description"].apply(folder)
    assert texts(folder) == everywhere(LOADS)


def test_a_file_called_consolidated_is_the_only_one_that_is_read(folder: Path) -> None:
    DEFECTS["a stray consolidated.safetensors"].apply(folder)
    assert {text.partition(": uninit")[0] for text in texts(folder).values()} == {
        "loads, wrong in silence"
    }


def test_one_tensor_of_a_fused_parameter_is_enough_to_count_as_loaded(folder: Path) -> None:
    DEFECTS["one MTP expert absent"].apply(folder)
    for version in VERSIONS[1:]:
        draft = judged(folder)[version].without_flag.draft
        assert draft is not None
        assert draft.fate is Fate.WRONG


def test_a_norm_bias_that_is_only_described_is_missed_where_missing_ones_are(folder: Path) -> None:
    DEFECTS["a norm.bias key in the description"].apply(folder)
    for version in VERSIONS[1:]:
        draft = judged(folder)[version].without_flag.draft
        assert draft is not None
        assert draft.fate is Fate.FAILS


def test_a_bias_of_an_expert_is_dropped_by_030_alone(folder: Path) -> None:
    name = DEFECTS["a bias at an expert"].apply(folder)
    assert {text.startswith(f"fails: no place for {name}") for text in texts(folder).values()} == {
        True,
        False,
    }
    assert texts(folder)["0.30"] == LOADS


def test_a_quantization_config_without_a_method_is_taken_for_theirs(
    source: Recorded, tmp_path: Path
) -> None:
    quantize(source.folder, tmp_path / "GLM", "--add-mtp", "--embed-quant-config")
    DEFECTS["a quantization_config without quant_method"].apply(tmp_path / "GLM")
    assert {each.without_flag.text for each in judged(tmp_path / "GLM").values()} == {LOADS}


def test_a_broken_shard_is(folder: Path) -> None:
    path = folder / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    assert texts(folder) == everywhere(f"fails: {path.name} cannot be read")


def test_msmodelslims_own_output_is_wrong_in_silence(source: Recorded, tmp_path: Path) -> None:
    made = make(source, tmp_path / "GLM", VENDOR).folder
    for verdict in judged(made).values():
        run: Run = verdict.with_flag
        assert run.target.fate is Fate.WRONG
        assert run.target.why == (
            f"uninitialised router biases: {MOE}.gate.e_score_correction_bias and 1 more",
        )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"architectures": ["Glm4ForCausalLM"]}, "fails: architectures is not"),
        ({"hidden_size": None}, "fails: config.json: hidden_size"),
        ({"n_routed_experts": 9999, "num_hidden_layers": 999}, "fails: config.json calls for more"),
        ({"hidden_size": 32}, "fails: "),
        ({"n_routed_experts": 3}, "fails: "),
    ],
)
def test_a_config_that_cannot_be_meant(folder: Path, changes: dict[str, Any], text: str) -> None:
    edit_config(folder, **changes)
    assert all(found.startswith(text) for found in texts(folder).values())


def test_more_layers_in_config_than_on_disk_are_uninitialised(
    source: Recorded, tmp_path: Path
) -> None:
    quantize(source.folder, tmp_path / "GLM")
    edit_config(tmp_path / "GLM", num_hidden_layers=5)
    error = "fails: KeyError 'model.layers.4.self_attn.q_proj.weight'"
    assert texts(tmp_path / "GLM") == everywhere(error)


def test_a_bias_of_a_norm_is_dropped_without_a_key_and_told_with_one(folder: Path) -> None:
    name = "model.layers.1.input_layernorm.bias"

    def add(parts: Parts) -> str:
        parts.put(name, stored(np.ones(16, np.float32), "BF16"), "FLOAT", "mtp.safetensors")
        del parts.description[name]
        return name

    edit(add)(folder)
    assert texts(folder) == everywhere(LOADS)
    describe(name, "FLOAT")(folder)
    assert all("gives every RMSNorm a bias" in text for text in texts(folder).values())


def test_each_version_stands_for_a_measured_one() -> None:
    assert tuple(engine.version for engine in ENGINES) == VERSIONS
