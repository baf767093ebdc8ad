"""Factors moved between neighbours are found again; what they do not explain is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import glmquant
from glmquant.checkpoint import open_checkpoint
from glmquant.observer import Observer
from glmquant.source import FolderSource
from glmquant.verify.subject import open_subject
from glmquant.verify.weights.check import SourceResult, check_source
from tests.builders import Recorded, build_checkpoint
from tests.defects import Parts, assign, edit, floats, multiply, quantize, raw, read_shard
from tests.modelslim import bf16, make, stored, to_f32

NORM = "model.layers.1.input_layernorm.weight"
ATTENTION = "model.layers.1.self_attn"
INPUT = "smoothed: 4 input_layernorm, and the columns of q, k, v make up for it"
POST = "smoothed: 4 post_attention_layernorm, and the columns of the MLP make up for it"
VALUES = "smoothed: the rows of 4 v_proj; the columns of o_proj make up for it"


@pytest.fixture
def source(tmp_path: Path) -> Recorded:
    """Larger than the tiny one, so that factors are told from few rows of each linear."""
    return build_checkpoint(tmp_path / "GLM", hidden_size=64, head_dim=16, moe_intermediate_size=48)


def compare(folder: Path, source: Path) -> SourceResult:
    subject = open_subject(FolderSource(folder))
    checkpoint = open_checkpoint(FolderSource(source))
    return check_source(subject, checkpoint, observer=Observer(), workers=2)


def wrong(result: SourceResult) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for finding in result.findings:
        found.setdefault(f"{finding.code} {finding.what}", set()).update(finding.tensors)
    return found


def factors(name: str, count: int) -> NDArray[np.float32]:
    generator = np.random.default_rng([7, *name.encode()])
    return bf16(np.exp2(generator.uniform(-1.5, 1.5, count)))


def smoothed(
    source: Recorded, change: Callable[[dict[str, NDArray[np.float32]]], None]
) -> Recorded:
    """The source with some tensors of its body changed: what a tool rounds in the end."""
    values = {name: to_f32(tensor) for name, tensor in source.tensors.items()}
    before = dict(values)
    change(values)
    changed = {
        name: stored(values[name], tensor[0]) if values[name] is not before[name] else tensor
        for name, tensor in source.tensors.items()
    }
    return replace(source, tensors=changed)


def smooth_mlps(values: dict[str, NDArray[np.float32]]) -> None:
    """``post_attention_layernorm`` into router, gate and up."""
    for layer in range(4):
        at = f"model.layers.{layer}"
        norm = f"{at}.post_attention_layernorm.weight"
        scale = factors(norm, 64)
        values[norm] = values[norm] * bf16(1 / scale)
        for name in [*values]:
            if name.startswith(f"{at}.mlp.") and name.endswith(
                ("gate_proj.weight", "up_proj.weight", "mlp.gate.weight")
            ):
                values[name] = bf16(values[name] * scale)


def smooth_down(values: dict[str, NDArray[np.float32]]) -> None:
    """The rows of each up into the columns of its down."""
    for name in [*values]:
        if name.startswith("model.layers.4.") or not name.endswith("down_proj.weight"):
            continue
        up = name.replace("down_proj", "up_proj")
        scale = factors(name, values[name].shape[1])
        values[name] = bf16(values[name] * scale)
        values[up] = bf16(values[up] * bf16(1 / scale)[:, None])


def smooth_both(values: dict[str, NDArray[np.float32]]) -> None:
    smooth_down(values)
    smooth_mlps(values)


@pytest.mark.parametrize("layout", ["v0", "v1"])
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("biased", [True, False], ids=["biased", "unbiased"])
def test_the_smoothing_of_attention_is_explained(
    tmp_path: Path, layout: Any, static: bool, biased: bool
) -> None:
    source = build_checkpoint(tmp_path / "GLM", hidden_size=64, head_dim=16, attention_bias=biased)
    for number, smooth_vo in enumerate((False, True)):
        folder = tmp_path / f"out{number}"
        make(source, folder, layout=layout, smooth=True, smooth_vo=smooth_vo, static=static)
        result = compare(folder, source.folder)
        assert wrong(result) == {}
        assert result.notes == (INPUT, VALUES)[: 1 + smooth_vo]


@pytest.mark.parametrize(
    ("change", "notes"),
    [
        (smooth_mlps, [POST]),
        (
            smooth_down,
            ["smoothed: the rows of 12 up_proj; the columns of down_proj make up for it"],
        ),
        (
            smooth_both,
            [POST, "smoothed: the rows of 12 up_proj; the columns of down_proj make up for it"],
        ),
    ],
)
def test_the_smoothing_of_mlps_is_explained(
    source: Recorded, tmp_path: Path, change: Any, notes: list[str]
) -> None:
    folder = make(smoothed(source, change), tmp_path / "out", layout="hf", smooth=True).folder
    result = compare(folder, source.folder)
    assert wrong(result) == {}
    assert list(result.notes) == [INPUT, *notes]


def test_factors_are_found_exactly(tmp_path: Path) -> None:
    """The figures are those against the smoothed weights themselves."""
    source = build_checkpoint(tmp_path / "GLM", hidden_size=128, head_dim=64, num_hidden_layers=3)

    def change(values: dict[str, NDArray[np.float32]]) -> None:
        for layer in range(3):
            at = f"model.layers.{layer}"
            scale = factors(at, 128)
            values[f"{at}.input_layernorm.weight"] = bf16(
                values[f"{at}.input_layernorm.weight"] * bf16(1 / scale)
            )
            for letter in "qkv":
                name = f"{at}.self_attn.{letter}_proj.weight"
                values[name] = bf16(values[name] * scale)

    wanted = smoothed(source, change)
    made = make(wanted, tmp_path / "out", layout="hf")
    result = compare(made.folder, source.folder)
    assert wrong(result) == {}
    found = {each.tensor: each.sqnr_db for each in result.tensors if "qkv" in each.role}
    assert len(found) == 9
    for name, sqnr_db in found.items():
        weight = to_f32(wanted.tensors[name]).astype(np.float64)
        _, shape, data = made.tensors[name]
        rows = np.frombuffer(data, np.int8).reshape(shape) * to_f32(made.tensors[f"{name}_scale"])
        expected = 10 * np.log10((weight**2).sum() / ((weight - rows) ** 2).sum())
        assert sqnr_db == pytest.approx(expected, abs=0.01)


def test_a_static_linear_without_its_bias_has_the_sources_divided_by_the_factors(
    source: Recorded, tmp_path: Path
) -> None:
    folder = make(
        source, tmp_path / "out", layout="hf", static=True, smooth=True, smooth_vo=True
    ).folder
    parts = Parts(folder)
    for layer in range(4):
        parts.drop(f"model.layers.{layer}.self_attn.v_proj.bias")
    parts.save()
    assert set(wrong(compare(folder, source.folder))) == {"N1 a tensor of the source is missing"}


def test_no_smoothing_is_found_where_there_is_none(source: Recorded, tmp_path: Path) -> None:
    for arithmetic in ("bf16", "f32"):
        folder = tmp_path / arithmetic
        make(source, folder, layout="hf", arithmetic=arithmetic, static=arithmetic == "f32")
        result = compare(folder, source.folder)
        assert (wrong(result), result.notes) == ({}, ())


@pytest.fixture
def folder(source: Recorded, tmp_path: Path) -> Path:
    return make(source, tmp_path / "out", layout="hf", smooth=True, smooth_vo=True).folder


UNEXPLAINED = "N1 a norm is neither the source's nor smoothed into the weights behind it"


@pytest.mark.parametrize(
    "where", [slice(None), 3, slice(5, 9)], ids=["every channel", "one channel", "some channels"]
)
@pytest.mark.parametrize("factor", [2.0, 1.06, 0.9])
def test_a_norm_that_its_weights_do_not_make_up_for_is_named(
    folder: Path, source: Recorded, where: Any, factor: float
) -> None:
    floats(NORM, multiply(where, factor))(folder)
    assert wrong(compare(folder, source.folder)) == {UNEXPLAINED: {NORM}}


def test_a_norm_that_is_the_sources_before_smoothed_weights_is_named(
    folder: Path, source: Recorded
) -> None:
    def lose(parts: Parts) -> str:
        parts.set(NORM, source.tensors[NORM])
        return ""

    edit(lose)(folder)
    tensors = set().union(*wrong(compare(folder, source.folder)).values())
    assert tensors >= {f"{ATTENTION}.{letter}_proj.weight" for letter in "qkv"}


@pytest.mark.parametrize("name", ["input_layernorm", "post_attention_layernorm"])
def test_one_bit_of_a_norm_without_smoothing_is_named(
    source: Recorded, tmp_path: Path, name: str
) -> None:
    folder = make(source, tmp_path / "out", layout="hf").folder

    def flip(words: Any) -> None:
        words[5] ^= 1

    raw(f"model.layers.2.{name}.weight", flip)(folder)
    assert wrong(compare(folder, source.folder)) == {UNEXPLAINED: {f"model.layers.2.{name}.weight"}}


def test_our_own_output_is_never_explained_by_smoothing(nano: Recorded, tmp_path: Path) -> None:
    folder = tmp_path / "ours"
    quantize(nano.folder, folder)
    floats(NORM, multiply(slice(None), 0.5))(folder)
    floats(f"{ATTENTION}.q_proj.weight_scale", multiply(slice(None), 2.0))(folder)
    floats(f"{ATTENTION}.k_proj.weight_scale", multiply(slice(None), 2.0))(folder)
    floats(f"{ATTENTION}.v_proj.weight_scale", multiply(slice(None), 2.0))(folder)
    found = wrong(compare(folder, nano.folder))
    assert found["N1 values are not those of the source"] == {NORM}
    assert found["N1 scales are not those that the formula gives for the source's rows"] == {
        f"{ATTENTION}.{letter}_proj.weight_scale" for letter in "qkv"
    }


@pytest.mark.parametrize("letter", "qkvo")
def test_a_linear_that_was_left_out_of_it_is_named(
    folder: Path, source: Recorded, tmp_path: Path, letter: str
) -> None:
    plain = Parts(make(source, tmp_path / "plain", layout="hf").folder)
    linear = f"{ATTENTION}.{letter}_proj"

    def replace_it(parts: Parts) -> str:
        for suffix in ("weight", "weight_scale"):
            parts.set(f"{linear}.{suffix}", plain.tensor(f"{linear}.{suffix}"))
        return ""

    edit(replace_it)(folder)
    tensors = set().union(*wrong(compare(folder, source.folder)).values())
    # A plain o speaks against v, which is divided.
    blamed = f"{ATTENTION}.v_proj" if letter == "o" else linear
    assert any(name.startswith(blamed) for name in tensors)
    assert all(name.startswith(ATTENTION) for name in tensors)


def test_damage_in_smoothed_linears_is_named(folder: Path, source: Recorded) -> None:
    changes: dict[str, Any] = {
        f"{ATTENTION}.q_proj.weight": assign((slice(None), 3), 0),
        f"{ATTENTION}.o_proj.weight": assign(7, 0),
    }
    for name, change in changes.items():
        raw(name, change)(folder)
    floats(f"{ATTENTION}.v_proj.bias", multiply(2, 1.5))(folder)
    floats(f"{ATTENTION}.k_proj.weight_scale", multiply(slice(None), 2.0))(folder)
    tensors = set().union(*wrong(compare(folder, source.folder)).values())
    assert tensors >= {*changes, f"{ATTENTION}.v_proj.bias", f"{ATTENTION}.k_proj.weight_scale"}
    assert all(name.startswith(ATTENTION) or name == NORM for name in tensors)


@pytest.mark.parametrize("seed", range(3))
def test_the_demo_model_is_explained_in_every_way(tmp_path: Path, seed: int) -> None:
    model = Path(glmquant.__file__).parent / "demo" / "GLM-4-nano"
    config = json.loads((model / "config.json").read_bytes())
    tensors: dict[str, Any] = {}
    for shard in sorted(model.glob("*.safetensors")):
        tensors |= read_shard(shard)
    source = Recorded(model, config, tensors)
    folder = tmp_path / "out"
    make(source, folder, layout="v1", smooth=True, smooth_vo=True, static=seed > 0, seed=seed)
    result = compare(folder, model)
    assert wrong(result) == {}
    assert result.notes == (INPUT, VALUES)
