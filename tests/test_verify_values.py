"""Every byte by itself: NaN, scales, rows, digests; and what reading may meet."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glmquant.errors import SourceChangedError, StorageError
from glmquant.observer import Observer
from glmquant.source import FolderSource
from glmquant.verify.findings import Finding, Level, Severity
from glmquant.verify.subject import open_subject
from glmquant.verify.weights import crew, scan
from glmquant.verify.weights.check import check_values
from glmquant.verify.weights.trust import read_trust
from glmquant.verify.weights.units import units_of
from tests.builders import Recorded, build_checkpoint, write_shard
from tests.defects import Parts, assign, edit, floats, quantize, raw, read_shard
from tests.modelslim import make, stored

EXPERT = "model.layers.2.mlp.experts.1.up_proj"
Q = "model.layers.1.self_attn.q_proj"


class Counting(Observer):
    """Counts what it is told."""

    def __init__(self) -> None:
        self.started: list[tuple[str, int, int]] = []
        self.nbytes = 0
        self._lock = threading.Lock()

    def start(self, doing: str, done_nbytes: int, total_nbytes: int) -> None:
        self.started.append((doing, done_nbytes, total_nbytes))

    def advance(self, nbytes: int) -> None:
        with self._lock:
            self.nbytes += nbytes


@pytest.fixture
def ours(nano: Recorded, tmp_path: Path) -> Path:
    folder = tmp_path / "GLM-W8A8"
    quantize(nano.folder, folder, "--add-mtp")
    return folder


@pytest.fixture
def theirs(nano: Recorded, tmp_path: Path) -> Path:
    """Without a manifest, so that nothing but the values speaks."""
    return make(nano, tmp_path / "GLM-w8a8", layout="hf").folder


def check(folder: Path, workers: int = 2, observer: Observer | None = None) -> tuple[Finding, ...]:
    subject = open_subject(FolderSource(folder))
    return check_values(subject, observer=observer or Observer(), workers=workers).findings


def codes(findings: tuple[Finding, ...]) -> list[tuple[str, tuple[str, ...]]]:
    return [(finding.code, finding.tensors) for finding in findings]


@pytest.mark.parametrize("workers", [1, 3])
def test_every_byte_that_an_engine_loads_is_read_once(ours: Path, workers: int) -> None:
    observer = Counting()
    assert check(ours, workers, observer) == ()
    total = sum(
        len(data) for path in ours.glob("*.safetensors") for _, _, data in read_shard(path).values()
    )
    assert observer.started == [("verify", 0, total)]
    # Router biases are looked at twice: for NaN and digest, and for zeros.
    biases = 4 * 4 * 3
    assert observer.nbytes == total + biases


def test_every_tensor_is_in_one_unit(theirs: Path) -> None:
    subject = open_subject(FolderSource(theirs))
    units = units_of(subject)
    refs = [ref.name for found in units.values() for unit in found for ref in unit.refs]
    assert sorted(refs) == sorted(subject.tensors)
    int8 = {unit.name: set(unit.parts) for found in units.values() for unit in found if unit.parts}
    assert int8[Q] == {"weight_scale", "weight_offset", "bias"}
    assert int8[EXPERT] == {"weight_scale", "weight_offset"}
    for found in units.values():
        assert [unit.main.offset for unit in found] == sorted(unit.main.offset for unit in found)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_nan_is_named_with_its_place_and_count_in_any_float_dtype(theirs: Path, dtype: str) -> None:
    def alter(parts: Parts) -> str:
        values = np.ones((64, 16), {"F16": "<f2", "F64": "<f8"}.get(dtype, "<f4"))
        values[[3, 60], [15, 0]] = np.nan
        data = values.tobytes() if dtype in ("F16", "F64") else stored(values, dtype)[2]
        parts.set("lm_head.weight", (dtype, (64, 16), data))
        return ""

    edit(alter)(theirs)
    (finding,) = check(theirs)
    assert (finding.code, finding.severity) == ("W2", Severity.ERROR)
    assert finding.level is Level.VALUES
    assert finding.found == "nan at row 3, column 15, 2 of 1024 values"
    assert finding.tensors == ("lm_head.weight",)
    assert finding.where.endswith(": lm_head.weight")
    assert "fetch model-" in finding.hint


def test_places_and_counts_are_those_of_the_tensor_not_of_the_block(
    theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "BLOCK_ELEMENTS", 16)
    floats("lm_head.weight", assign(([40, 50, 60], [3, 4, 5]), np.inf))(theirs)
    floats(f"{Q}.weight_scale", assign((31, 0), -1.0))(theirs)
    found = {finding.code: finding.found for finding in check(theirs)}
    assert found["W2"] == "inf at row 40, column 3, 3 of 1024 values"
    assert found["W3"].startswith("-1.0 at row 31")


def test_findings_of_one_cause_and_role_are_one(theirs: Path) -> None:
    for layer in range(3):
        floats(f"model.layers.{layer}.input_layernorm.weight", assign(slice(layer + 1), np.inf))(
            theirs
        )
    (finding,) = check(theirs)
    assert finding.tensors == tuple(
        f"model.layers.{layer}.input_layernorm.weight" for layer in range(3)
    )
    assert finding.found == (
        "3 tensors; the worst model.layers.2.input_layernorm.weight: inf at element 0, "
        "3 of 16 values"
    )


@pytest.mark.parametrize(
    "value", [0.0, -1e-3, np.nan, np.inf, -np.inf, 1e-41], ids=lambda value: f"{value}"
)
def test_a_scale_that_is_no_scale_is_named_once(theirs: Path, value: float) -> None:
    floats(f"{EXPERT}.weight_scale", assign((7, 0), value))(theirs)
    (finding,) = check(theirs)
    assert (finding.code, finding.tensors) == ("W3", (f"{EXPERT}.weight_scale",))
    assert "at row 7, column 0, 1 of 12" in finding.found


def test_an_offset_that_is_not_zero_is_named(theirs: Path) -> None:
    floats(f"{Q}.weight_offset", assign((2, 0), -3.0))(theirs)
    assert codes(check(theirs)) == [("W3", (f"{Q}.weight_offset",))]


@pytest.mark.parametrize(
    ("row", "is_wrong"),
    [
        (np.full(16, 127), True),
        (np.full(16, -1), True),
        (np.zeros(16), False),
        (np.r_[np.zeros(15), 63], True),
        (np.r_[np.zeros(15), -63], True),
        (np.r_[np.zeros(15), 64], False),
        (np.r_[np.zeros(15), -64], False),
        (np.r_[np.full(15, 127), 126], False),
        (np.r_[-128, np.zeros(15)], False),
    ],
)
def test_int8_rows_that_no_rounding_leaves_are_named(
    theirs: Path, row: Any, is_wrong: bool
) -> None:
    def change(rows: Any) -> None:
        rows[11] = row

    raw(f"{EXPERT}.weight", change)(theirs)
    found = check(theirs)
    assert codes(found) == [("W3", (f"{EXPERT}.weight",))] * is_wrong
    assert all("row 11: " in finding.found for finding in found)


def test_a_row_below_the_floor_of_scales_may_have_few_levels(theirs: Path) -> None:
    raw(f"{EXPERT}.weight", assign((3, slice(1, None)), 2))(theirs)
    raw(f"{EXPERT}.weight", assign((3, 0), 5))(theirs)
    assert codes(check(theirs)) == [("W3", (f"{EXPERT}.weight",))]
    floats(f"{EXPERT}.weight_scale", assign((3, 0), 2.0**-23))(theirs)
    assert check(theirs) == ()


@pytest.mark.parametrize("name", [f"{EXPERT}.weight", "lm_head.weight"])
def test_a_weight_of_zeros_alone_is_a_warning(theirs: Path, name: str) -> None:
    raw(name, assign(slice(None), 0))(theirs)
    (finding,) = check(theirs)
    assert (finding.severity, finding.tensors) == (Severity.WARNING, (name,))
    assert "not fetched to its end" in finding.found


def test_router_biases_may_not_be_zero(theirs: Path) -> None:
    name = "model.layers.3.mlp.gate.e_score_correction_bias"
    floats(name, assign(slice(None), 0.0))(theirs)
    (finding,) = check(theirs)
    assert (finding.code, finding.tensors) == ("M1", (name,))
    assert finding.hint.startswith("glmquant add-mtp ")


def test_static_linears_are_checked_by_their_own_numbers(nano: Recorded, tmp_path: Path) -> None:
    folder = make(nano, tmp_path / "static", layout="v0", static=True).folder
    assert check(folder) == ()
    floats(f"{Q}.deq_scale", lambda values: values.__setitem__(5, values[5] * 1.1))(folder)
    (finding,) = check(folder)
    assert finding.what == "deq_scale is not input_scale times weight_scale"
    assert (finding.tensors, "row 5" in finding.expected) == ((f"{Q}.deq_scale",), True)
    k = Q.replace("q_proj", "k_proj")
    floats(f"{k}.input_offset", assign(0, 4.0))(folder)
    shared = [each for each in check(folder) if "share" in each.what]
    assert [each.what for each in shared] == ["q, k and v do not share one input_offset"]
    assert shared[0].tensors == tuple(Q.replace("q_proj", f"{x}_proj.input_offset") for x in "qkv")
    assert shared[0].found.endswith("q -3, k 4, v -3")


def test_deq_scales_of_fp16_models_are_read_as_bits(nano: Recorded, tmp_path: Path) -> None:
    folder = make(nano, tmp_path / "static", layout="hf", static=True).folder

    def alter(parts: Parts) -> str:
        _, shape, data = parts.tensor(f"{Q}.deq_scale")
        bits = np.frombuffer(data, "<u4").astype("<i8")
        bits[4] = np.array([-0.5], "<f4").view("<u4")[0]
        parts.set(f"{Q}.deq_scale", ("I64", shape, bits.tobytes()))
        return ""

    edit(alter)(folder)
    (finding,) = check(folder)
    assert (finding.code, finding.found) == ("W3", "-0.5 at element 4, 1 of 32")


@pytest.mark.parametrize(
    "name", ["lm_head.weight", f"{Q}.weight", f"{Q}.weight_scale", f"{Q}.bias"]
)
def test_one_bit_is_seen_by_its_digest(ours: Path, name: str) -> None:
    def flip(words: Any) -> None:
        words.reshape(-1)[-1] ^= 1

    raw(name, flip)(ours)
    (finding,) = check(ours)
    assert (finding.code, finding.tensors) == ("B1", (name,))


def test_the_manifest_and_the_folder_name_the_same_tensors(ours: Path) -> None:
    path = ours / "glmquant_manifest.json"
    manifest = json.loads(path.read_bytes())
    entry = manifest["tensors"].pop("model.norm.weight")
    manifest["tensors"]["model.norms.weight"] = entry
    path.write_text(json.dumps(manifest))
    assert codes(check(ours)) == [
        ("B1", ("model.norms.weight",)),
        ("B1", ("model.norm.weight",)),
    ]


def test_tensors_of_a_lost_shard_are_not_told_once_more(ours: Path) -> None:
    (ours / "model-00002-of-00003.safetensors").unlink()
    assert check(ours) == ()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"format": 1, "tensors": 3}',
        '{"format": 2, "tensors": {}}',
        '{"format": 1, "tensors": {"a.weight": {}}}',
        '{"format": 1, "tensors": {}, "rules": [1]}',
        '{"format": 1, "tensors": {}, "rules": 3}',
        '{"format": 1, "tensors": {}, "side_files": []}',
        '{"format": 1, "tensors": {}, "arithmetic": []}',
    ],
)
def test_a_manifest_that_says_nothing_is_one_finding(ours: Path, text: str) -> None:
    (ours / "glmquant_manifest.json").write_text(text)
    (finding,) = check(ours)
    assert (finding.code, finding.where) == ("B1", "glmquant_manifest.json")
    assert (finding.what, finding.tensors) == ("the manifest cannot be understood", ())


def test_a_manifest_of_another_formula_proves_nothing_of_it(ours: Path) -> None:
    path = ours / "glmquant_manifest.json"
    subject = open_subject(FolderSource(ours))
    assert read_trust(subject).rule(f"{Q}.weight", "attention_qkv").is_exact
    manifest = json.loads(path.read_bytes())
    manifest["arithmetic"]["W8A8_DYNAMIC"] = "another one"
    path.write_text(json.dumps(manifest))
    subject = open_subject(FolderSource(ours))
    assert not read_trust(subject).rule(f"{Q}.weight", "attention_qkv").is_exact
    assert check(ours) == ()


def test_side_files_are_held_against_their_digests(ours: Path) -> None:
    (ours / "tokenizer.json").write_text("{}")
    (ours / "LICENSE").write_text("mine")
    (ours / "chat_template.jinja").unlink()  # S1
    found = check(ours)
    assert [(each.code, each.severity, each.where) for each in found] == [
        ("B1", Severity.WARNING, "LICENSE"),
        ("B1", Severity.ERROR, "tokenizer.json"),
    ]


def test_tensors_of_unexpected_dtypes_and_shapes_do_no_harm(theirs: Path) -> None:
    def alter(parts: Parts) -> str:
        for number, (dtype, shape, data) in enumerate(
            [
                ("F8_E4M3", (4, 8), bytes(range(32))),
                ("U8", (0, 8), b""),
                ("I32", (), bytes(4)),
                ("I8", (3,), bytes(3)),
                ("U32", (2, 2), bytes(range(16))),
            ]
        ):
            parts.put(
                f"odd.{number}.weight", (dtype, shape, data), "FLOAT", parts.home(f"{Q}.weight")
            )
        parts.set(f"{EXPERT}.weight_scale", ("I32", (12, 1), bytes(48)))
        parts.set(f"{Q}.weight_scale", ("F32", (32, 16), np.ones(512, "<f4").tobytes()))
        return ""

    edit(alter)(theirs)
    assert check(theirs) == ()


def test_a_file_that_shrinks_or_vanishes_is_a_storage_error(theirs: Path) -> None:
    path = sorted(theirs.glob("*.safetensors"))[-1]
    subject = open_subject(FolderSource(theirs))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(StorageError, match="became shorter"):
        check_values(subject, observer=Observer(), workers=2)
    path.unlink()
    with pytest.raises(StorageError):
        check_values(subject, observer=Observer(), workers=2)


def test_a_file_that_is_rewritten_meanwhile_is_no_result(theirs: Path) -> None:
    path = sorted(theirs.glob("*.safetensors"))[0]

    class Meddling(Observer):
        def advance(self, nbytes: int) -> None:
            path.touch()

    with pytest.raises(SourceChangedError, match="changed while it was read"):
        check(theirs, observer=Meddling())


def test_a_large_tensor_takes_a_few_blocks_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "BLOCK_ELEMENTS", 1 << 10)
    monkeypatch.setattr(scan, "BLOCK_ELEMENTS", 1 << 10)
    sizes: list[int] = []
    buffer = crew.Worker.buffer

    def noting(worker: crew.Worker, key: str, nbytes: int) -> memoryview:
        sizes.append(nbytes)
        return buffer(worker, key, nbytes)

    monkeypatch.setattr(crew.Worker, "buffer", noting)
    source = build_checkpoint(tmp_path / "GLM", vocab_size=9_000)
    folder = make(source, tmp_path / "GLM-w8a8", layout="hf").folder
    assert check(folder) == ()
    assert max(sizes) <= 4 * 4 * (1 << 10)


def test_nobody_reads_on_when_another_has_failed(theirs: Path) -> None:
    source = FolderSource(theirs)
    ref = open_subject(source).tensors["lm_head.weight"]
    reads: list[int] = []

    def work(item: int, worker: crew.Worker) -> None:
        if item == 0:
            raise StorageError("the disk is gone")
        for number in range(10**9):
            worker.read(source, ref, "tensor", 0, 16)
            reads.append(number)

    with pytest.raises(StorageError, match="gone"):
        list(crew.work_through([1, 0], work, 2, Observer()))
    assert reads == list(range(len(reads)))


def test_a_thread_that_fails_stops_the_others(theirs: Path) -> None:
    class Failing(Observer):
        def advance(self, nbytes: int) -> None:
            raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        check(theirs, 4, Failing())
    assert threading.active_count() == before


def test_an_empty_folder_of_weights_is_no_crash(theirs: Path) -> None:
    for path in theirs.glob("*.safetensors"):
        write_shard(path, {})
    assert check(theirs) == ()
