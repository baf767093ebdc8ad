"""Every byte against the source's: what has to be equal is, what was rounded was rounded right."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glmquant.checkpoint import Checkpoint, open_checkpoint
from glmquant.errors import StorageError
from glmquant.observer import Observer
from glmquant.source import FolderSource
from glmquant.verify.findings import Finding, Level, Severity
from glmquant.verify.subject import open_subject
from glmquant.verify.weights import equality
from glmquant.verify.weights.check import SourceResult, check_source
from tests.builders import Recorded, build_checkpoint, encode, random_tensor, write_shard
from tests.defects import Parts, assign, edit, floats, multiply, quantize, raw
from tests.modelslim import Tensor, make, stored, to_f32
from tests.strategies import ROW_KINDS, row_of_kind
from tests.test_verify_values import Counting

EXPERT = "model.layers.2.mlp.experts.1.up_proj"
Q = "model.layers.1.self_attn.q_proj"
MTP = "model.layers.4."


@pytest.fixture
def ours(nano: Recorded, tmp_path: Path) -> Path:
    folder = tmp_path / "GLM-W8A8"
    quantize(nano.folder, folder, "--add-mtp")
    return folder


@pytest.fixture
def theirs(nano: Recorded, tmp_path: Path) -> Path:
    return make(nano, tmp_path / "GLM-w8a8", layout="hf").folder


def compare(folder: Path, source: Path, workers: int = 2) -> SourceResult:
    subject = open_subject(FolderSource(folder))
    return check_source(subject, opened(source), observer=Observer(), workers=workers)


def opened(source: Path) -> Checkpoint:
    return open_checkpoint(FolderSource(source))


def by_code(result: SourceResult, *codes: str) -> list[Finding]:
    """Those with a code, or all; digests of the manifest aside."""
    return [f for f in result.findings if f.code != "B1" and (not codes or f.code in codes)]


def named(result: SourceResult, level: Level = Level.SOURCE) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for f in by_code(result):
        if f.level is level:
            what = f"{f.code} {f.what}"
            found[what] = (*found.get(what, ()), *f.tensors)
    return found


@pytest.mark.parametrize("workers", [1, 4])
def test_every_byte_of_both_is_read_and_the_same_is_found(
    ours: Path, nano: Recorded, workers: int
) -> None:
    observer = Counting()
    subject = open_subject(FolderSource(ours))
    result = check_source(subject, opened(nano.folder), observer=observer, workers=workers)
    total = sum(len(data) for _, _, data in nano.tensors.values())
    total += sum(ref.nbytes for ref in subject.tensors.values())
    assert (result.findings, result.notes) == ((), ())
    assert observer.started == [("verify", 0, total)]
    # Biases of int8 linears and router biases are looked at twice.
    assert total <= observer.nbytes < total + 2000
    assert result == compare(ours, nano.folder, 2)


def test_figures_are_those_that_the_run_measured(ours: Path, nano: Recorded) -> None:
    result = compare(ours, nano.folder)
    manifest = json.loads((ours / "glmquant_manifest.json").read_bytes())["tensors"]
    measured = {name: entry["sqnr_db"] for name, entry in manifest.items() if "sqnr_db" in entry}
    found = {figures.tensor: figures.sqnr_db for figures in result.tensors}
    assert found == pytest.approx(measured, abs=0.02)
    assert [figures.tensor for figures in result.tensors] == sorted(found)
    roles = {figures.role: figures for figures in result.figures}
    assert {role: figures.tensors for role, figures in roles.items()} == {
        "routed_expert": 24,
        "attention_qkv": 12,
        "attention_out": 4,
    }
    experts = {name: db for name, db in measured.items() if ".experts." in name}
    least = min(experts, key=lambda name: experts[name])
    assert roles["routed_expert"].least_tensor == least
    assert roles["routed_expert"].least_db == pytest.approx(experts[least], abs=0.02)
    assert roles["routed_expert"].median_db == pytest.approx(
        np.median([*experts.values()]), abs=0.02
    )
    assert 0.4 < roles["routed_expert"].worst_steps <= 0.5
    json.dumps([figures.fields() for figures in result.figures])


@pytest.mark.parametrize("style", ["w8a8", "w8a8-mse", "w8a8-full", "bf16", "f32"])
def test_rows_of_every_kind_are_right_where_they_are(tmp_path: Path, style: Any) -> None:
    """Zero, subnormal, huge, constant, heavy: nothing of it is wrong."""

    def values(name: str, dtype: str, shape: tuple[int, ...], seed: int) -> bytes:
        if len(shape) != 2 or "_proj" not in name:
            return random_tensor(name, dtype, shape, seed)
        # F32 scales of the smallest rows are below all BF16 numbers: the engine would hold 0.
        tiny = ("subnormal", "underflowing", "constant") if style == "f32" else ()
        lost = ("any", *tiny)
        kinds = [kind for kind in ROW_KINDS if kind not in lost]
        rows = [
            row_of_kind(kinds[row % len(kinds)], "BF16", shape[1], row) for row in range(shape[0])
        ]
        return np.stack(rows).tobytes()

    source = build_checkpoint(tmp_path / "GLM", values=values)
    folder = tmp_path / "out"
    if style.startswith("w8a8"):
        quantize(source.folder, folder, "--add-mtp", "--recipe", style)
    else:
        make(source, folder, layout="hf", arithmetic=style)
    result = compare(folder, source.folder)
    assert by_code(result) == []
    assert result.findings == ()


@pytest.mark.parametrize("arithmetic", ["bf16", "f32"])
@pytest.mark.parametrize("layout", ["v0", "v1", "hf"])
def test_other_tools_are_judged_by_a_step_and_a_half_decibel(
    nano: Recorded, tmp_path: Path, layout: Any, arithmetic: Any
) -> None:
    made = make(nano, tmp_path / "out", layout=layout, arithmetic=arithmetic, widen=True)
    result = compare(made.folder, nano.folder)
    assert result.findings == ()
    worst = max(figures.worst_steps for figures in result.figures)
    assert worst <= (0.75 if arithmetic == "bf16" else 1.0)
    made = make(nano, tmp_path / "wide", layout=layout, arithmetic=arithmetic, mtp="f32")
    assert compare(made.folder, nano.folder).findings == ()


@pytest.mark.parametrize("mtp", ["int8", None])
def test_an_mtp_layer_may_be_int8_or_left_out_for_all_that_this_level_knows(
    nano: Recorded, tmp_path: Path, mtp: Any
) -> None:
    made = make(nano, tmp_path / "out", layout="hf", mtp=mtp)
    assert compare(made.folder, nano.folder).findings == ()
    if mtp:
        raw(f"{MTP}mlp.experts.1.down_proj.weight", assign(slice(None), 0))(made.folder)
        (finding,) = by_code(compare(made.folder, nano.folder), "N1")
        assert finding.tensors == (f"{MTP}mlp.experts.1.down_proj.weight",)
        assert finding.hint.startswith("glmquant add-mtp ")
        assert finding.hint.endswith(" --replace-mtp")


def test_each_tensor_that_differs_is_named_by_code_and_role(ours: Path, nano: Recorded) -> None:
    """A bias lost, an embedding's element, a router, a norm, MTP parts, a router bias."""
    names = {
        "N1": [
            "model.embed_tokens.weight",
            "model.layers.0.mlp.up_proj.weight",
            "model.layers.1.input_layernorm.weight",
            f"{Q.replace('q_proj', 'k_proj')}.bias",
            "model.layers.2.mlp.gate.weight",
            "model.layers.3.mlp.shared_experts.down_proj.weight",
        ],
        "M1": [
            "model.layers.2.mlp.gate.e_score_correction_bias",
            f"{MTP}mlp.gate.e_score_correction_bias",
        ],
        "M2": [f"{MTP}shared_head.norm.weight", f"{MTP}eh_proj.weight"],
    }

    def flip(words: Any) -> None:
        words.reshape(-1)[3] ^= 1

    for each in names.values():
        for name in each:
            raw(name, flip)(ours)
    result = compare(ours, nano.folder)
    found: dict[str, list[str]] = {}
    for finding in by_code(result):
        assert finding.severity is Severity.ERROR
        assert finding.what == "values are not those of the source"
        found.setdefault(finding.code, []).extend(finding.tensors)
    assert {code: sorted(each) for code, each in found.items()} == {
        code: sorted(each) for code, each in names.items()
    }
    (bias,) = [f for f in by_code(result) if f.tensors[0].endswith("k_proj.bias")]
    value = to_f32(nano.tensors[bias.tensors[0]])[3]
    assert bias.expected == f"{value:.9g} at element 3"
    assert bias.found.endswith("; 1 of 16 values differ")


def test_a_lost_bias_is_named(ours: Path, nano: Recorded) -> None:
    name = f"{Q.replace('q_proj', 'k_proj')}.bias"

    def drop(parts: Parts) -> str:
        parts.drop(name)
        return name

    edit(drop)(ours)
    assert named(compare(ours, nano.folder)) == {"N1 a tensor of the source is missing": (name,)}


def test_an_mtp_layer_that_is_there_is_there_whole(tmp_path: Path) -> None:
    source = build_checkpoint(tmp_path / "GLM", "4.5")
    folder = make(source, tmp_path / "out", layout="hf").folder
    parts = Parts(folder)
    for name in ("embed_tokens", "shared_head.head", "enorm"):
        parts.drop(f"{MTP}{name}.weight")
    parts.save()
    assert named(compare(folder, source.folder)) == {
        "M2 a tensor of the source is missing": (f"{MTP}enorm.weight",)
    }


def test_rows_of_one_value_are_told_of_as_without_the_source(ours: Path, nano: Recorded) -> None:
    raw(f"{EXPERT}.weight", assign(3, 5))(ours)
    result = compare(ours, nano.folder)
    assert [f.what for f in by_code(result, "W3")] == ["an int8 row is one value over and over"]
    assert len(by_code(result, "N1")) == 1


def test_widened_tensors_are_compared_by_their_bits(
    nano: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(*_: object) -> None:
        raise AssertionError("one number after the other")

    monkeypatch.setattr(equality.FloatComparison, "_compare", slowly)
    folder = make(nano, tmp_path / "out", layout="hf", mtp="f32", widen=True).folder
    assert compare(folder, nano.folder).findings == ()


def test_swapped_tensors_are_both_named(ours: Path, theirs: Path, nano: Recorded) -> None:
    gate = EXPERT.replace("up_proj", "gate_proj")

    def swap(parts: Parts) -> str:
        for suffix in ("weight", "weight_scale"):
            one, other = f"{EXPERT}.{suffix}", f"{gate}.{suffix}"
            first, second = parts.tensor(one), parts.tensor(other)
            parts.set(one, second)
            parts.set(other, first)
        return ""

    for folder in (ours, theirs):
        edit(swap)(folder)
        tensors = {name for f in by_code(compare(folder, nano.folder), "N1") for name in f.tensors}
        assert tensors >= {f"{EXPERT}.weight", f"{gate}.weight"}
        assert all(name.startswith((EXPERT, gate)) for name in tensors)


def test_doubled_scales_are_blamed_on_the_scales(ours: Path, theirs: Path, nano: Recorded) -> None:
    for folder in (ours, theirs):
        floats(f"{EXPERT}.weight_scale", multiply(slice(None), 2.0))(folder)
        (finding,) = by_code(compare(folder, nano.folder))
        assert (finding.code, finding.tensors) == ("N1", (f"{EXPERT}.weight_scale",))
        assert finding.found.endswith("; 12 of 12 rows")
        assert "fetch model-" in finding.hint


def test_a_searched_recipe_is_held_to_its_own_rule(nano: Recorded, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    quantize(nano.folder, folder, "--recipe", "w8a8-mse")
    assert compare(folder, nano.folder).findings == ()
    floats(f"{EXPERT}.weight_scale", multiply((0, 0), 1 + 2.0**-4))(folder)
    found = named(compare(folder, nano.folder))
    assert set(found.values()) <= {(f"{EXPERT}.weight_scale",), (f"{EXPERT}.weight",)}
    assert found


@pytest.mark.parametrize(
    ("suffix", "change", "blamed"),
    [
        ("deq_scale", multiply(slice(None), 2.0), "deq_scale"),
        ("deq_scale", multiply(3, 0.5), "deq_scale"),
        ("weight", assign((4, 4), 0), "weight"),
        ("input_scale", multiply(slice(None), 3.0), "deq_scale"),
    ],
)
def test_static_linears_are_judged_by_their_product(
    nano: Recorded, tmp_path: Path, suffix: str, change: Any, blamed: str
) -> None:
    folder = make(nano, tmp_path / "out", layout="hf", static=True).folder
    assert compare(folder, nano.folder).findings == ()
    alter = raw if suffix == "weight" else floats
    alter(f"{Q}.{suffix}", change)(folder)
    tensors = {name for f in by_code(compare(folder, nano.folder), "N1") for name in f.tensors}
    assert f"{Q}.{blamed}" in tensors


@pytest.mark.parametrize("with_bias", [True, False], ids=["with its bias", "without"])
def test_quant_bias_is_the_bias_less_the_offset(
    nano: Recorded, tmp_path: Path, with_bias: bool
) -> None:
    folder = make(nano, tmp_path / "out", layout="hf", static=True).folder
    if not with_bias:  # of the source then
        parts = Parts(folder)
        parts.drop(f"{Q}.bias")
        parts.save()
    before = [f.what for f in by_code(compare(folder, nano.folder))]
    assert before == ["a tensor of the source is missing"] * (not with_bias)

    def change(words: Any) -> None:
        words[9] += 7 + abs(words[9]) // 50

    raw(f"{Q}.quant_bias", change)(folder)
    found = [f for f in by_code(compare(folder, nano.folder)) if "quant_bias" in f.what]
    assert [f.tensors for f in found] == [(f"{Q}.quant_bias",)]
    assert "in row 9" in found[0].expected


def test_tensors_that_add_nothing_are_no_findings(theirs: Path, nano: Recorded) -> None:
    def add(parts: Parts) -> str:
        home = parts.home(f"{Q}.weight")
        zeros: Tensor = ("BF16", (16,), bytes(32))
        parts.put("model.layers.1.self_attn.o_proj.bias", zeros, "FLOAT", home)
        embedding = parts.tensor("model.embed_tokens.weight")
        head = parts.tensor("lm_head.weight")
        parts.put(f"{MTP}embed_tokens.weight", embedding, "FLOAT", home)
        parts.put(f"{MTP}shared_head.head.weight", stored(to_f32(head), "F32"), "FLOAT", home)
        return ""

    edit(add)(theirs)
    assert compare(theirs, nano.folder).findings == ()
    floats("model.layers.1.self_attn.o_proj.bias", assign(0, 1.0))(theirs)
    floats(f"{MTP}embed_tokens.weight", assign((0, 0), 1.0))(theirs)
    assert named(compare(theirs, nano.folder)) == {
        "N1 a tensor is not in the source": ("model.layers.1.self_attn.o_proj.bias",),
        "M2 values are not those of the source": (f"{MTP}embed_tokens.weight",),
    }


def test_narrowing_is_told_where_nothing_was_lost_and_wrong_where_it_was(
    ours: Path, nano: Recorded
) -> None:
    name = "model.layers.2.mlp.gate.e_score_correction_bias"

    def narrow(parts: Parts) -> str:
        parts.set(name, stored(to_f32(parts.tensor(name)), "BF16"))
        return ""

    edit(narrow)(ours)
    (finding,) = by_code(compare(ours, nano.folder))
    assert (finding.code, finding.severity) == ("M1", Severity.ERROR)
    assert "values differ" in finding.found
    norm = "model.norm.weight"

    def to_half(parts: Parts) -> str:
        half = np.ones(16, "<f2")
        parts.set(norm, ("F16", (16,), half.tobytes()))
        return ""

    edit(to_half)(ours)
    source = nano.folder
    dtype, shape, _ = nano.tensors[norm]
    home = nano.shard_of[norm]
    held = {each: nano.tensors[each] for each, file in nano.shard_of.items() if file == home}
    write_shard(
        source / home, {**held, norm: (dtype, shape, encode(np.ones(16, np.float32), dtype))}
    )
    found = [f for f in by_code(compare(ours, source)) if norm in f.tensors]
    assert [(f.code, f.severity) for f in found] == [("N1", Severity.WARNING)]
    assert found[0].what == "a tensor is of a narrower dtype than the source's"


def test_other_shapes_and_dtypes_are_findings(ours: Path, nano: Recorded) -> None:
    def alter(parts: Parts) -> str:
        parts.set(f"{EXPERT}.weight", ("I8", (16, 12), parts.tensor(f"{EXPERT}.weight")[2]))
        parts.set("model.norm.weight", ("F8_E4M3", (16,), bytes(16)))
        parts.set("lm_head.weight", ("BF16", (1, 1024), parts.tensor("lm_head.weight")[2]))
        parts.set(f"{MTP}enorm.weight", ("I8", (16,), bytes(16)))
        return ""

    edit(alter)(ours)
    found = named(compare(ours, nano.folder))
    assert {what: set(each) for what, each in found.items()} == {
        "N1 a tensor has another shape than the source's": {f"{EXPERT}.weight", "lm_head.weight"},
        "N1 a tensor has a dtype that cannot be compared with the source's": {"model.norm.weight"},
        "M2 values are not those of the source": {f"{MTP}enorm.weight"},
    }


def test_another_model_is_told_as_that(ours: Path, tmp_path: Path) -> None:
    other = build_checkpoint(tmp_path / "other", seed=9)
    result = compare(ours, other.folder)
    sources = [f for f in by_code(result) if f.level is Level.SOURCE]
    assert sources
    assert all("name the release that this one was made of" in f.hint for f in sources)
    larger = build_checkpoint(tmp_path / "larger", hidden_size=32, num_hidden_layers=5)
    shapes = [f for f in compare(ours, larger.folder).findings if "another shape" in f.what]
    assert sum(len(f.tensors) for f in shapes) > 60


def test_a_source_without_an_mtp_layer_says_nothing_of_it(ours: Path, tmp_path: Path) -> None:
    bare = build_checkpoint(tmp_path / "bare", num_nextn_predict_layers=0)
    result = compare(ours, bare.folder)
    assert by_code(result) == []
    assert result.notes == ("MTP: the source has no layer 4 to compare",)


def test_a_source_that_shrinks_is_a_storage_error(ours: Path, nano: Recorded) -> None:
    checkpoint = opened(nano.folder)
    subject = open_subject(FolderSource(ours))
    path = nano.folder / "model-00002-of-00003.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(StorageError, match="became shorter"):
        check_source(subject, checkpoint, observer=Observer(), workers=2)
    path.unlink()
    with pytest.raises(StorageError):
        check_source(subject, checkpoint, observer=Observer(), workers=2)


def test_hints_are_commands(ours: Path, nano: Recorded) -> None:
    raw("model.layers.2.mlp.gate.e_score_correction_bias", assign(slice(None), 0))(ours)
    raw(f"{MTP}enorm.weight", assign(slice(None), 0))(ours)
    hints = {f.code: shlex.split(f.hint) for f in by_code(compare(ours, nano.folder))}
    command = ["glmquant", "add-mtp", str(ours), "--from", "SOURCE", "--replace-mtp"]
    assert (hints["M1"], hints["M2"]) == (command, command)


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_sources_of_other_float_dtypes_are_compared(tmp_path: Path, dtype: str) -> None:
    names = [f"{Q}.weight", f"{EXPERT}.weight", "lm_head.weight"]
    source = build_checkpoint(tmp_path / "GLM", dtypes=dict.fromkeys(names, dtype))
    folder = tmp_path / "out"
    quantize(source.folder, folder, "--add-mtp")
    assert compare(folder, source.folder).findings == ()
    raw(f"{EXPERT}.weight", assign((0, 0), 99))(folder)
    assert {name for f in by_code(compare(folder, source.folder)) for name in f.tensors} == {
        f"{EXPERT}.weight"
    }
    shutil.rmtree(folder)
