"""Runs of the reference model that are killed, damaged, or measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from glmquant.demo import model_dir
from glmquant.errors import (
    ArchitectureError,
    ConfigError,
    GlmquantError,
    MismatchError,
    NoMtpError,
    NonFiniteError,
    TensorSetError,
    UsageError,
)
from glmquant.runtime.observed import Prompt
from tests.builders import Recorded, build_checkpoint, write_shard
from tests.modelslim import make

torch = pytest.importorskip("torch")

from glmquant.runtime.reference import Reference, divergence  # noqa: E402

pytestmark = pytest.mark.torch

TEXTS = [[1, 2, 3, 4, 5, 6], [9, 8, 7]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(
    cache: Path, what: str, folder: Path, nbytes: int = 0, other: Path | None = None
) -> dict[str, Any] | None:
    """The results of a run, or None where it was killed."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.reference_killer",
            what,
            folder,
            other or folder,
            str(nbytes),
        ],
        env=os.environ | {"XDG_CACHE_HOME": str(cache)},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if nbytes:
        assert done.returncode == -signal.SIGKILL, done.stderr
        return None
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("what", ["greedy", "text", "divergence"])
def test_a_killed_run_goes_on_and_gives_the_same(tmp_path: Path, what: str) -> None:
    folder = build_checkpoint(tmp_path / "GLM").folder
    other = build_checkpoint(tmp_path / "other", seed=1).folder
    whole = run(tmp_path / "a", what, folder, other=other)
    assert whole is not None and whole["done"] == 0 and whole["told"] == whole["total"]
    cache = tmp_path / "b"
    for part in (3, 5):
        run(cache, what, folder, whole["total"] // part, other)
    rest = run(cache, what, folder, other=other)
    assert rest is not None and rest["found"] == whole["found"]
    assert rest["done"] > 0 and rest["done"] + rest["told"] == rest["total"] == whole["total"]
    assert not list((cache / "glmquant").iterdir())


def test_what_was_saved_of_other_files_is_not_used(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path / "GLM").folder
    whole = run(tmp_path / "a", "greedy", folder)
    assert whole is not None
    run(tmp_path / "b", "greedy", folder, whole["total"] // 2)
    os.utime(folder / "mtp.safetensors")
    again = run(tmp_path / "b", "greedy", folder)
    assert again is not None and again["done"] == 0 and again["found"] == whole["found"]


@pytest.mark.parametrize("cut", [1, 40, 5000])
def test_a_torn_record_is_calculated_anew(tmp_path: Path, cut: int) -> None:
    folder = build_checkpoint(tmp_path / "GLM").folder
    whole = run(tmp_path / "a", "greedy", folder)
    assert whole is not None
    cache = tmp_path / "b"
    run(cache, "greedy", folder, whole["total"] // 2)
    (log,) = (cache / "glmquant").iterdir()
    log.write_bytes(log.read_bytes()[:-cut])
    again = run(cache, "greedy", folder)
    assert again is not None and again["found"] == whole["found"]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path / "GLM").folder
    whole = run(tmp_path / "a", "greedy", folder)
    (tmp_path / "file").write_text("")
    again = run(tmp_path / "file", "greedy", folder)
    assert whole is not None and again is not None and again["found"] == whole["found"]


@pytest.mark.parametrize("what", ["greedy", "text", "divergence"])
def test_memory_holds_less_than_two_layers(tmp_path: Path, what: str) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "moe_intermediate_size": 512,
        "n_routed_experts": 32,
        "num_experts_per_tok": 4,
        "first_k_dense_replace": 1,
        "head_dim": 64,
        "num_attention_heads": 8,
        "vocab_size": 2048,
    }
    folder = build_checkpoint(tmp_path / "GLM", shard_nbytes=60_000_000, keep=False, **sizes).folder
    assert sum(path.stat().st_size for path in folder.glob("*.safetensors")) > 200_000_000
    layer = 2 * 32 * 3 * 512 * 512
    found = run(tmp_path / "cache", what, folder)
    assert found is not None and found["above"] < 2 * layer


def without(recorded: Recorded, name: str, replaced: Any = None) -> None:
    """Take a tensor out of its shard, or put another one in its place."""
    shard = recorded.shard_of[name]
    held = {n: t for n, t in recorded.tensors.items() if recorded.shard_of.get(n) == shard}
    del held[name]
    path = recorded.folder / shard
    path.chmod(0o644)
    write_shard(path, held | ({name: replaced} if replaced else {}))


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.2.mlp.experts.{}.down_proj.weight_scale",
        "model.layers.3.mlp.gate.e_score_correction_bias",
        "model.layers.1.self_attn.k_proj.bias",
        "model.norm.weight",
        "model.embed_tokens.weight",
    ],
)
def test_a_missing_tensor_is_named(nano: Recorded, name: str) -> None:
    made = make(nano, nano.folder.parent / "made")
    names = [name.format(expert) for expert in range(4)] if "{}" in name else [name]
    for each in names:
        without(made, each)
        made.tensors.pop(each)
    with pytest.raises(TensorSetError) as caught:
        Reference(made.folder).prompt_logprobs(TEXTS)
    assert caught.value.where is not None
    assert any(each in caught.value.where for each in names)
    assert str(made.folder) in caught.value.where


@pytest.mark.parametrize(
    ("dtype", "shape", "nbytes"), [("BF16", (15,), 30), ("I8", (16,), 16), ("F32", (4, 4), 64)]
)
def test_another_shape_or_dtype_is_named(
    nano: Recorded, dtype: str, shape: tuple[int, ...], nbytes: int
) -> None:
    name = "model.layers.2.input_layernorm.weight"
    without(nano, name, (dtype, shape, bytes(nbytes)))
    with pytest.raises(TensorSetError) as caught:
        Reference(nano.folder).continue_greedily([Prompt("", (1, 2))], 2)
    assert caught.value.where == f"{nano.folder / nano.shard_of[name]}: {name}"
    assert caught.value.found == f"{dtype} {list(shape)}"


def test_int8_that_the_description_calls_float_is_refused(nano: Recorded) -> None:
    made = make(nano, nano.folder.parent / "made")
    (path,) = made.folder.glob("quant_model_description*.json")
    path.chmod(0o644)
    path.write_text(path.read_text().replace('"W8A8_DYNAMIC"', '"FLOAT"'))
    with pytest.raises(TensorSetError, match="another shape or dtype"):
        Reference(made.folder).prompt_logprobs(TEXTS)
    path.write_text(path.read_text().replace('"FLOAT"', '"W4A16"'))
    with pytest.raises(ConfigError, match="type"):
        Reference(made.folder).prompt_logprobs(TEXTS)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, ArchitectureError),
        ({"architectures": ["Glm4MoeLiteForCausalLM"]}, ArchitectureError),
        ({"architectures": None}, ArchitectureError),
        ({"hidden_act": "gelu"}, ConfigError),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, ConfigError),
        ({"rms_norm_eps": 0}, ConfigError),
        ({"num_experts_per_tok": 5}, ConfigError),
        ({"n_group": 3}, ConfigError),
        ({"n_routed_experts": 10**9}, ConfigError),
        ({"num_hidden_layers": 1000, "n_routed_experts": 10_000}, ConfigError),
        ({"num_key_value_heads": 3}, ConfigError),
        ({"partial_rotary_factor": 0.1}, ConfigError),
        ({"vocab_size": "many"}, ConfigError),
    ],
)
def test_a_config_that_cannot_be_run_is_refused(
    nano: Recorded, changes: dict[str, Any], error: type[GlmquantError]
) -> None:
    (nano.folder / "config.json").write_text(json.dumps(nano.config | changes))
    with pytest.raises(error) as caught:
        Reference(nano.folder)
    assert caught.value.where is not None and "config.json" in caught.value.where


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchitectureError):
        Reference(tmp_path)


def test_texts_that_the_model_cannot_have_are_refused(nano: Recorded) -> None:
    reference = Reference(nano.folder)
    wrong: list[list[list[int]]] = [[], [[]], [[1]], [[1, 64]], [[-1, 2]]]
    for texts in wrong:
        with pytest.raises(UsageError):
            reference.prompt_logprobs(texts)
    for prompts in ([], [Prompt("", ())], [Prompt("", (64,))]):
        with pytest.raises(UsageError):
            reference.continue_greedily(prompts, 3)
    for most, drafted in ((0, 0), (131_072, 0), (3, -1)):
        with pytest.raises(UsageError):
            reference.continue_greedily([Prompt("", (1,))], most, drafted)


def test_drafts_without_an_mtp_layer_are_refused(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path / "GLM", num_nextn_predict_layers=0).folder
    reference = Reference(folder)
    assert not reference.has_mtp
    with pytest.raises(NoMtpError, match="MTP"):
        reference.continue_greedily([Prompt("", (1,))], 3, 1)


def test_other_vocabularies_have_no_divergence(nano: Recorded) -> None:
    with pytest.raises(MismatchError, match="vocabular"):
        divergence(Reference(nano.folder), Reference(model_dir()), TEXTS)


def test_a_model_that_calculates_no_numbers_is_an_error(nano: Recorded) -> None:
    name = "model.layers.1.self_attn.o_proj.weight"
    dtype, shape, data = nano.tensors[name]
    without(nano, name, (dtype, shape, b"\xc0\x7f" * (len(data) // 2)))
    with pytest.raises(NonFiniteError):
        Reference(nano.folder).prompt_logprobs(TEXTS)
    with pytest.raises(NonFiniteError):
        Reference(nano.folder).continue_greedily([Prompt("", (1, 2))], 2)
