"""What is planned is what is written, for configurations of any shape."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmquant.checkpoint import open_checkpoint
from glmquant.execute import execute
from glmquant.glm4_moe import Role
from glmquant.manifest import MANIFEST_FILE
from glmquant.plan import make_plan
from glmquant.recipe import load_recipe
from glmquant.schemes import Scheme
from glmquant.source import FolderSource
from tests.builders import LAYOUTS, build_checkpoint, read_shards
from tests.conftest import folder_bytes

GOLDENS = Path(__file__).parent / "goldens"

CONFIGURATIONS = st.fixed_dictionaries(
    {
        "num_hidden_layers": st.integers(2, 4),
        "first_k_dense_replace": st.integers(0, 1),
        "n_routed_experts": st.integers(1, 5),
        "n_shared_experts": st.integers(0, 2),
        "hidden_size": st.integers(1, 40),
        "moe_intermediate_size": st.integers(1, 20),
        "head_dim": st.sampled_from([1, 3, 8]),
        "vocab_size": st.integers(1, 70),
        "use_qk_norm": st.booleans(),
        "attention_bias": st.booleans(),
        "tie_word_embeddings": st.booleans(),
        "num_nextn_predict_layers": st.integers(0, 2),
    }
)


@given(
    changes=CONFIGURATIONS,
    layout=st.sampled_from(LAYOUTS),
    shard_nbytes=st.sampled_from([1, 2_000, 10**9]),
    recipe=st.sampled_from(["w8a8", "w8a8-full"]),
    wide=st.sampled_from(["F32", "F16", "BF16"]),
    add_mtp=st.booleans(),
)
@settings(derandomize=True, deadline=None, max_examples=60)
def test_planned_is_written(
    changes: dict[str, Any],
    layout: str,
    shard_nbytes: int,
    recipe: str,
    wide: str,
    add_mtp: bool,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        dtypes = {"model.layers.0.self_attn.o_proj.weight": wide, "model.norm.weight": wide}
        build_checkpoint(root / "GLM", layout, shard_nbytes=shard_nbytes, dtypes=dtypes, **changes)
        source = FolderSource(root / "GLM")
        add_mtp = add_mtp and changes["num_nextn_predict_layers"] > 0
        plan = make_plan(open_checkpoint(source), load_recipe(recipe), add_mtp=add_mtp)
        execute(plan, source, root / "out")
        planned = {shard.file: shard.nbytes for shard in plan.shards} | plan.side_files
        planned |= {name: len(data) for name, data in plan.small_files.items()}
        written = folder_bytes(root / "out")
        assert len(written.pop(MANIFEST_FILE)) <= plan.manifest_nbytes
        assert {name: len(data) for name, data in written.items()} == planned
        refs = [ref for shard in plan.shards for ref in shard.places().values()]
        tensors = read_shards(root / "out")
        assert sorted(ref.name for ref in refs) == sorted(tensors)
        for ref in refs:
            assert (ref.dtype, list(ref.shape)) == tensors[ref.name][:2]
            data = written[ref.file][ref.offset : ref.offset + ref.nbytes]
            assert data == tensors[ref.name][2]


def test_every_source_tensor_has_one_step(tmp_path: Path) -> None:
    source = build_checkpoint(tmp_path / "GLM")
    plan = make_plan(
        open_checkpoint(FolderSource(source.folder)), load_recipe("w8a8"), add_mtp=True
    )
    steps = [step.source.name for shard in plan.shards for step in shard.steps]
    assert sorted(steps) == sorted(source.tensors)


def test_the_recipes_choose_by_role(tmp_path: Path) -> None:
    source = build_checkpoint(tmp_path / "GLM")
    checkpoint = open_checkpoint(FolderSource(source.folder))
    attention = {Role.ATTENTION_QKV, Role.ATTENTION_OUT, Role.ROUTED_EXPERT}
    mlps = {Role.DENSE_MLP, Role.SHARED_EXPERT}
    for name, quantized in (("w8a8", attention), ("w8a8-full", attention | mlps)):
        plan = make_plan(checkpoint, load_recipe(name), add_mtp=True)
        steps = [step for shard in plan.shards for step in shard.steps]
        assert {step.role for step in steps if step.scheme is Scheme.W8A8_DYNAMIC} == quantized
        assert {step.role for step in steps} == set(Role)


def test_the_digest_tells_plans_apart(tmp_path: Path) -> None:
    source = build_checkpoint(tmp_path / "GLM")
    checkpoint = open_checkpoint(FolderSource(source.folder))
    plans = [
        make_plan(checkpoint, load_recipe("w8a8")),
        make_plan(checkpoint, load_recipe("w8a8"), add_mtp=True),
        make_plan(checkpoint, load_recipe("w8a8-full")),
        make_plan(checkpoint, load_recipe("w8a8"), embed_quant_config=True),
        make_plan(checkpoint, load_recipe("w8a8"), also=["mindie"]),
    ]
    assert len({plan.digest for plan in plans}) == 5
    again = make_plan(checkpoint, load_recipe("w8a8"), also=["mindie", "mindie"])
    assert again.digest == plans[4].digest
    assert "also" not in plans[0].settings
    assert make_plan(checkpoint, load_recipe("w8a8")).digest == plans[0].digest
    shutil.copytree(source.folder, tmp_path / "copy")
    copy = open_checkpoint(FolderSource(tmp_path / "copy"))
    assert make_plan(copy, load_recipe("w8a8")).digest == plans[0].digest


@pytest.mark.parametrize("add_mtp", [False, True])
def test_the_contract_files_are_the_golden_ones(
    tmp_path: Path, add_mtp: bool, request: pytest.FixtureRequest
) -> None:
    """A golden changes only with the sentence that says why."""
    source = build_checkpoint(
        tmp_path / "GLM", "4.6", num_hidden_layers=2, first_k_dense_replace=1, n_routed_experts=2
    )
    plan = make_plan(
        open_checkpoint(FolderSource(source.folder)), load_recipe("w8a8"), add_mtp=add_mtp
    )
    found = {name: json.loads(data) for name, data in plan.small_files.items()}
    found["plan"] = {
        shard.file: {
            name: [ref.dtype, list(ref.shape), ref.offset] for name, ref in shard.places().items()
        }
        for shard in plan.shards
    }
    golden = GOLDENS / f"contract{'-mtp' if add_mtp else ''}.json"
    assert found == json.loads(golden.read_bytes())
