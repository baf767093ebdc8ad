"""What add-mtp refuses, by name, and that it has then changed nothing."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import modelslim
from tests.builders import Recorded, build_checkpoint, random_tensor, write_shard
from tests.conftest import Ran
from tests.grafting import DESCRIPTION, INDEX, everything, load, make_base
from tests.test_execute import interrupted
from tests.test_graft import drop, graft, read_shard

Run = Callable[..., Ran]


def refused(
    glmquant: Run, base: Path, source: Path, *words: str, flags: tuple[str, ...] = ()
) -> Ran:
    """The command fails, says these words, and leaves everything as it was."""
    around = base.parent
    before = everything(around)
    ran = glmquant("add-mtp", base, "--from", source, *flags)
    assert ran.exit_code == 1, ran.stdout
    assert [word for word in words if word not in ran.stderr] == [], ran.stderr
    assert everything(around) == before
    return ran


def change(folder: Path, name: str, tensor: modelslim.Tensor) -> None:
    """Another tensor under the same name."""
    for path in folder.glob("*.safetensors"):
        held = {key: (d, tuple(s), data) for key, (d, s, data) in read_shard(path).items()}
        if name in held:
            write_shard(path, {**held, name: tensor})
            return
    raise AssertionError(name)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))


@pytest.mark.parametrize(
    "mark",
    [
        {"metadata": {"quarot": {"max_tp_size": 4}}},
        {
            "optional": {
                "quarot": {"rotation_map": {"global_rotation": "optional/quarot.safetensors"}}
            }
        },
        {"is_rot_used": True},
        {"model.layers.0.self_attn.o_proj.rot.weight": "FLOAT"},
        None,
    ],
)
def test_a_rotated_body(
    nano: Recorded, tmp_path: Path, glmquant: Run, mark: dict[str, Any] | None
) -> None:
    base = make_base(nano, tmp_path / "base", "v1")
    if mark is None:
        edit(base / "config.json", quarot={"on": True})
    else:
        edit(base / DESCRIPTION, **mark)
    refused(glmquant, base, nano.folder, "rotated", "QuaRot")


def test_marks_that_say_that_nothing_was_rotated(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    base = make_base(nano, tmp_path / "base", "v1")
    edit(base / DESCRIPTION, is_rot_used=False, optional={"quarot": {}})
    graft(glmquant, base, nano)


def test_a_rotated_body_that_nothing_marks(tmp_path: Path, glmquant: Run) -> None:
    import numpy as np

    source = build_checkpoint(tmp_path / "GLM", hidden_size=128)
    base = make_base(source, tmp_path / "base", "v1")
    name = "model.embed_tokens.weight"
    turned, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((128, 128)))
    values = modelslim.to_f32(source.tensors[name]) @ turned.astype(np.float32)
    change(base, name, modelslim.stored(values, "BF16"))
    refused(glmquant, base, source.folder, "seems rotated", name)


@pytest.mark.parametrize("form", ["glmquant", "v1"])
def test_a_source_of_another_release(tmp_path: Path, glmquant: Run, form: str) -> None:
    source = build_checkpoint(tmp_path / "GLM", seed=0)
    other = build_checkpoint(tmp_path / "other", seed=1)
    base = make_base(source, tmp_path / "base", form)
    ran = refused(glmquant, base, other.folder, "not of the same model", "compared tensors differ")
    assert "4.5, 4.6 and 4.7 look the same" in ran.stderr


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
        "model.layers.3.self_attn.k_norm.weight",
        "model.layers.3.post_attention_layernorm.weight",
        "model.layers.2.mlp.gate.weight",
        "model.layers.2.mlp.gate.e_score_correction_bias",
    ],
)
def test_one_tensor_of_another_release(
    nano: Recorded, tmp_path: Path, glmquant: Run, name: str
) -> None:
    base = make_base(nano, tmp_path / "base", "hf", router_biases=True)
    dtype, shape, _ = nano.tensors[name]
    change(base, name, (dtype, shape, random_tensor(name, dtype, shape, 7)))
    refused(glmquant, base, nano.folder, name, "the source")


def test_wide_norms_and_a_rounded_router_bias_are_the_same_model(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    base = make_base(nano, tmp_path / "base", "v1", router_biases=True, widen=True, smooth=True)
    name = "model.layers.2.mlp.gate.e_score_correction_bias"
    change(base, name, modelslim.stored(modelslim.to_f32(nano.tensors[name]), "BF16"))
    assert (
        "router biases rounded to BF16, as the engine holds them: 1"
        in graft(glmquant, base, nano).stderr
    )


@pytest.mark.parametrize("is_consistent", [True, False])
def test_a_router_that_is_smoothed_with_the_norm_before_it(
    nano: Recorded, tmp_path: Path, glmquant: Run, is_consistent: bool
) -> None:
    import numpy as np

    base = make_base(nano, tmp_path / "base", "v1")
    factors = np.exp2(np.random.default_rng(0).uniform(-1.5, 1.5, 16)).astype(np.float32)
    norm, router = (
        f"model.layers.3.{name}.weight" for name in ("post_attention_layernorm", "mlp.gate")
    )
    change(base, norm, modelslim.stored(modelslim.to_f32(nano.tensors[norm]) / factors, "BF16"))
    if is_consistent:
        values = modelslim.to_f32(nano.tensors[router]) * factors
        change(base, router, modelslim.stored(values, "BF16"))
        assert "router are smoothed alike: 1" in graft(glmquant, base, nano).stderr
    else:
        refused(glmquant, base, nano.folder, norm)


@pytest.mark.parametrize(
    ("key", "value"), [("num_hidden_layers", 5), ("n_routed_experts", 8), ("use_qk_norm", False)]
)
def test_a_config_of_another_model(
    nano: Recorded, tmp_path: Path, glmquant: Run, key: str, value: Any
) -> None:
    other = build_checkpoint(tmp_path / "other", **{key: value})
    base = make_base(nano, tmp_path / "base", "v1")
    refused(glmquant, base, other.folder, f"config.json: {key}", f"{value}, as in the source")


def test_shapes_and_counts_that_config_json_hides(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    other = build_checkpoint(tmp_path / "other", n_routed_experts=2)
    base = make_base(nano, tmp_path / "base", "hf")
    edit(base / "config.json", n_routed_experts=2)
    refused(glmquant, base, other.folder, "not of the same model", "[2, 16], as in the source")
    edit(base / "config.json", n_routed_experts=4)
    for kind in ("weight", "weight_scale", "weight_offset"):
        name = f"model.layers.3.mlp.experts.4.up_proj.{kind}"
        write_shard(base / f"model-extra-{kind}.safetensors", {name: ("I8", (1,), b"x")})
        index = json.loads((base / INDEX).read_bytes())
        index["weight_map"][name] = f"model-extra-{kind}.safetensors"
        (base / INDEX).write_text(json.dumps(index))
    refused(glmquant, base, nano.folder, "no such tensor: n_routed_experts = 4", "experts.4")


def test_a_body_that_lacks_tensors(nano: Recorded, tmp_path: Path, glmquant: Run) -> None:
    base = make_base(nano, tmp_path / "base", "v1")
    drop(base, lambda name: "layers.3.mlp.experts.1." in name)
    refused(glmquant, base, nano.folder, "3 tensors of the body are missing", "experts.1.")


def test_a_source_without_an_mtp_layer(tmp_path: Path, glmquant: Run) -> None:
    source = build_checkpoint(tmp_path / "GLM", num_nextn_predict_layers=0)
    base = make_base(source, tmp_path / "base", "v1")
    refused(glmquant, base, source.folder, "the source has no MTP layer", "model.layers.4.*")


def test_a_source_with_nan_in_its_mtp_layer(tmp_path: Path, glmquant: Run) -> None:
    source = build_checkpoint(tmp_path / "GLM", "4.5")
    path = tmp_path / "GLM" / source.shard_of[f"{source.mtp_prefix}enorm.weight"]
    for form in ("glmquant", "v1"):
        base = make_base(source, tmp_path / form, form)
        data = path.read_bytes()
        path.write_bytes(data[:-2] + b"\xc0\x7f")
        refused(glmquant, base, source.folder, "a weight is not finite", "model.layers.4.")
        path.write_bytes(data)


def test_what_is_no_quantized_checkpoint(nano: Recorded, tmp_path: Path, glmquant: Run) -> None:
    build_checkpoint(tmp_path / "other")
    refused(glmquant, tmp_path / "other", nano.folder, "is not quantized", "glmquant w8a8")
    (tmp_path / "empty").mkdir()
    refused(glmquant, tmp_path / "empty", nano.folder, "not a model folder")
    base = make_base(nano, tmp_path / "base", "hf")
    (base / DESCRIPTION).unlink()
    refused(glmquant, base, nano.folder, "has no description")
    base = make_base(nano, tmp_path / "base2", "hf")
    (base / "config.json").unlink()
    refused(glmquant, base, nano.folder, "no config.json", "copy config.json")
    base = make_base(nano, tmp_path / "base3", "hf")
    edit(base / "config.json", architectures=["Glm4MoeLiteForCausalLM"])
    refused(glmquant, base, nano.folder, "GLM-4.7-Flash")
    interrupted(nano.folder, tmp_path / "out")
    refused(glmquant, tmp_path / "out", nano.folder, "run of glmquant w8a8 that did not end")


def test_shards_that_are_missing_broken_or_of_other_weights(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    base = make_base(nano, tmp_path / "base", "hf")
    shard = sorted(base.glob("*.safetensors"))[1]
    data = shard.read_bytes()
    shard.write_bytes(data[:-5])
    refused(glmquant, base, nano.folder, "a shard of the checkpoint is broken", shard.name)
    shard.unlink()
    refused(glmquant, base, nano.folder, "shards of the index are not there", shard.name)
    base = make_base(nano, tmp_path / "v1", "v1")
    (base / INDEX).write_bytes((nano.folder / INDEX).read_bytes())
    refused(glmquant, base, nano.folder, f"move {INDEX} away", "quant_model_weights-00001")
    (base / INDEX).write_text("{}")
    refused(glmquant, base, nano.folder, "the index of the checkpoint cannot be read")
    (base / INDEX).unlink()
    write_shard(base / "copy.safetensors", {"lm_head.weight": nano.tensors["lm_head.weight"]})
    refused(glmquant, base, nano.folder, "a tensor is there twice", "lm_head.weight")


def test_source_and_checkpoint_and_output_lie_apart(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    base = make_base(nano, tmp_path / "base", "v1")
    refused(glmquant, nano.folder, nano.folder, "overlap")
    refused(glmquant, base, nano.folder, "overlap", flags=("--output", str(base / "new")))
    refused(glmquant, base, nano.folder, "overlap", flags=("--output", str(base)))
    refused(glmquant, base, nano.folder, "overlap", flags=("--output", str(nano.folder / "new")))
    inner = make_base(nano, nano.folder / "w8a8", "v1")
    refused(glmquant, inner, nano.folder, "overlap")


def test_one_run_at_a_time(nano: Recorded, tmp_path: Path, glmquant: Run) -> None:
    base = make_base(nano, tmp_path / "base", "glmquant")
    descriptor = os.open(base, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    refused(glmquant, base, nano.folder, "another run is writing")
    assert glmquant("add-mtp", base, "--undo").exit_code == 1
    os.close(descriptor)
    graft(glmquant, base, nano)


def test_too_little_room_is_seen_before_the_first_byte(
    tmp_path: Path, glmquant: Run, small_disk: Callable[[int], Path]
) -> None:
    source = build_checkpoint(tmp_path / "GLM", "4.5", hidden_size=512, vocab_size=512)
    base = make_base(source, tmp_path / "base", "v1")
    nbytes = sum(path.stat().st_size for path in base.iterdir() if path.is_file())
    room = small_disk(nbytes + 600_000)
    subprocess.run(["cp", "-a", base, room], check=True)
    ran = refused(glmquant, room / "base", source.folder, "the disk has too little room")
    assert "MB free" in ran.stderr
    other = room / "new"
    refused(glmquant, base, source.folder, "too little room", flags=("--output", str(other)))
    assert not other.exists()


def test_an_output_on_another_disk_is_a_copy(
    nano: Recorded, tmp_path: Path, glmquant: Run, small_disk: Callable[[int], Path]
) -> None:
    base = make_base(nano, tmp_path / "base", "v1", shard_mode=0o600)
    room = small_disk(20_000_000)
    before = everything(base)
    graft(glmquant, base, nano, "--output", room / "new")
    assert everything(base) == before
    assert {path.stat().st_nlink for path in (room / "new").glob("*.safetensors")} == {1}
    assert {path.stat().st_mode & 0o777 for path in (room / "new").glob("*.safetensors")} == {0o644}


def test_a_mount_point_is_not_swapped_but_may_be_grafted_in_place(
    nano: Recorded, tmp_path: Path, glmquant: Run, small_disk: Callable[[int], Path]
) -> None:
    base = small_disk(20_000_000)
    modelslim.make(nano, tmp_path / "made", layout="v1", mtp=None, router_biases=False)
    subprocess.run(f"cp -a {tmp_path}/made/. {base}", shell=True, check=True)
    refused(glmquant, base, nano.folder, "cannot be swapped", "a mount point", "--output")
    for path in base.glob("quant_model_weights*"):
        path.unlink()
    shards = {"model.safetensors": load(tmp_path / "made").tensors}
    for file, tensors in shards.items():
        write_shard(base / file, {n: (d, tuple(s), b) for n, (d, s, b) in tensors.items()})
    names = dict.fromkeys(shards["model.safetensors"], "model.safetensors")
    (base / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    graft(glmquant, base, nano)
    assert (base / "mtp.safetensors").exists()
