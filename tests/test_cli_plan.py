"""``plan`` and ``w8a8 --dry-run``: what they say, and that it comes true."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glmquant.checkpoint import open_checkpoint
from glmquant.forecast import forecast
from glmquant.glm4_moe import Role
from glmquant.plan import make_plan
from glmquant.rates import RATE_FILES, Rate, load_rate, store_rate
from glmquant.recipe import load_recipe
from glmquant.schemes import Scheme
from glmquant.source import FolderSource
from tests.builders import LAYOUTS, Recorded, build_checkpoint
from tests.conftest import Ran, folder_bytes
from tests.test_execute import ENV

Run = Callable[..., Ran]

DIVISIBLE: dict[str, Any] = {
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "intermediate_size": 64,
    "moe_intermediate_size": 512,
    "n_routed_experts": 16,
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--add-mtp"],
        ["--recipe", "w8a8-full", "--workers", "3"],
        ["--add-mtp", "--embed-quant-config"],
        ["--add-mtp", "--also", "mindie"],
    ],
)
def test_a_dry_run_prints_the_same_as_plan(
    options: list[str], nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    before = folder_bytes(tmp_path)
    for json_option in ([], ["--json"]):
        planned = glmquant("plan", nano.folder, *options, *json_option)
        dry = glmquant("w8a8", nano.folder, *options, "--dry-run", *json_option)
        assert (planned.exit_code, dry.exit_code) == (0, 0)
        assert planned.stdout == dry.stdout
        assert planned.stderr == dry.stderr
        assert planned.stdout
    assert folder_bytes(tmp_path) == before


def test_a_run_emits_the_plan_that_plan_prints(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    (planned,) = glmquant("plan", nano.folder, "--add-mtp", "--json").events
    ran = glmquant("w8a8", nano.folder, "--add-mtp", "--json").events
    assert ran[0] == planned
    assert planned["event"] == "plan"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "options", [[], ["--add-mtp"], ["--add-mtp", "--embed-quant-config"], ["--also", "mindie"]]
)
def test_planned_lengths_are_those_of_the_written_files(
    layout: str, options: list[str], tmp_path: Path, glmquant: Run
) -> None:
    source = build_checkpoint(tmp_path / "GLM", layout)
    (planned,) = glmquant("plan", source.folder, *options, "--json").events
    text = glmquant("plan", source.folder, *options, "--files").stdout
    out = tmp_path / "out"
    assert glmquant("w8a8", source.folder, out, *options).exit_code == 0
    written = {name: len(data) for name, data in folder_bytes(out).items()}
    manifest = written.pop("glmquant_manifest.json")
    assert {file["file"]: file["nbytes"] for file in planned["files"]} == written
    assert manifest <= planned["manifest_nbytes_bound"] < 3 * manifest
    assert sum(written.values()) + manifest <= planned["output_nbytes_bound"]
    assert planned["output_nbytes_bound"] <= planned["disk_nbytes_peak"]
    for name, nbytes in written.items():
        assert re.search(rf"^  {re.escape(name)} +{nbytes:,} ", text, re.MULTILINE), name


def test_runs_of_shards_of_one_length_take_a_line(tmp_path: Path, glmquant: Run) -> None:
    source = build_checkpoint(tmp_path / "GLM", shard_nbytes=400)
    (planned,) = glmquant("plan", source.folder, "--json").events
    shards = [file for file in planned["files"] if file["file"].startswith("model-")]
    assert len(shards) > 50
    text = glmquant("plan", source.folder).stdout
    sizes = [file["nbytes"] for file in shards]
    (line,) = re.findall(r"^  model-.*$", text, re.MULTILINE)
    assert f"model-{{00001..{len(shards):05d}}}-of-{len(shards):05d}.safetensors" in line
    assert f"{len(shards)} x {min(sizes):,} to {max(sizes):,}" in line
    assert glmquant("plan", source.folder, "--files").stdout.count("  model-") == len(shards)


def test_equal_shards_are_told_to_the_byte() -> None:
    from glmquant.cli.forecast import _runs

    shards = [(f"model-{number:05d}-of-00004.safetensors", 10**9) for number in range(1, 4)]
    shards += [("model-00004-of-00004.safetensors", 5), ("mtp.safetensors", 5)]
    shards += [(f"x-{number:05d}-of-00009.safetensors", 7) for number in (1, 2, 4)]
    assert list(_runs(shards, same_length=True)) == [
        ("model-{00001..00003}-of-00004.safetensors", "3 x 1,000,000,000", "3.00 GB"),
        ("model-00004-of-00004.safetensors", "5", "5 B"),
        ("mtp.safetensors", "5", "5 B"),
        ("x-{00001..00002}-of-00009.safetensors", "2 x 7", "14 B"),
        ("x-00004-of-00009.safetensors", "7", "7 B"),
    ]


def test_the_essence_comes_first_and_the_next_command_last(
    tmp_path: Path, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_checkpoint(tmp_path / "GLM 4.6", **DIVISIBLE)
    monkeypatch.chdir(tmp_path)
    first, *_, last = glmquant("plan", "--add-mtp", "--workers", "2").stdout.splitlines()
    assert first.startswith("GLM 4.6 -> GLM 4.6-W8A8-floatmtp: ")
    assert first.endswith("; fits an A2 and an A3 at 131,072 tokens")
    said = "nothing was written; to run it: "
    assert last == f"{said}glmquant w8a8 'GLM 4.6' --add-mtp --workers 2"
    assert glmquant(*shlex.split(last.removeprefix(said))[1:]).exit_code == 0
    assert (tmp_path / "GLM 4.6-W8A8-floatmtp/config.json").is_file()


def test_the_command_of_a_dry_run_names_its_target(nano: Recorded, glmquant: Run) -> None:
    out = nano.folder.with_name("out")
    ran = glmquant("w8a8", nano.folder, out, "--recipe", "w8a8-full", "--overwrite", "--dry-run")
    said = f"glmquant w8a8 {nano.folder} {out} --recipe w8a8-full --overwrite"
    assert ran.stdout.splitlines()[-1] == f"nothing was written; to run it: {said}"


def test_a_machine_limits_the_layouts(tmp_path: Path, glmquant: Run) -> None:
    source = build_checkpoint(tmp_path / "GLM", **DIVISIBLE).folder
    (both,) = glmquant("plan", source, "--json").events
    (a3,) = glmquant("plan", source, "--json", "--machine", "A3").events
    assert [fit["machine"] for fit in both["fits"]] == ["a2", "a3", "a3"]
    assert a3["fits"] == both["fits"][1:]
    text = glmquant("plan", source, "--machine", "a3").stdout
    assert "Atlas 800 A2" not in text
    assert text.splitlines()[0].endswith("fits an A3 at 131,072 tokens")
    assert "6 GiB of that assumed for activations and graphs" in text


def test_what_does_not_fit_is_said_plainly_and_is_no_failure(tmp_path: Path, glmquant: Run) -> None:
    changes = DIVISIBLE | {"num_key_value_heads": 1, "head_dim": 4096}
    source = build_checkpoint(tmp_path / "GLM", keep=False, **changes).folder
    ran = glmquant("plan", source, "--context", "9000000")
    assert ran.exit_code == 0
    assert ran.stdout.splitlines()[0].endswith("does not fit an A2 or an A3 at 9,000,000 tokens")
    assert ran.stdout.count("none: does not fit") == 3
    (planned,) = glmquant("plan", source, "--context", "9000000", "--json").events
    assert [fit["fits"] for fit in planned["fits"]] == [False] * 3


def test_a_model_that_cannot_be_cut_is_said_so(nano: Recorded, glmquant: Run) -> None:
    ran = glmquant("plan", nano.folder)
    assert ran.stdout.splitlines()[0].endswith("; cannot be cut for an A2 or an A3")
    assert "Atlas 800 A2, dp1 tp8: cannot be cut: num_attention_heads 4" in ran.stdout
    (planned,) = glmquant("plan", nano.folder, "--json").events
    assert planned["fits"][0]["weights_nbytes_per_card"] is None
    assert planned["fits"][0]["obstacles"]


@pytest.mark.parametrize(
    ("allowed", "options", "context", "said"),
    [
        (1024, [], 1024, "sequences of 1,024 tokens;"),
        (202752, [], 131072, "sequences of 131,072 tokens (config.json allows 202,752);"),
        (202752, ["--context", "35000"], 35000, "35,000 tokens (config.json allows 202,752);"),
        (None, [], 131072, "131,072 tokens (config.json names no limit);"),
        ("many", [], 131072, "131,072 tokens (config.json names no limit);"),
        (1024, ["--context", "2048"], 2048, "2,048 tokens (config.json allows 1,024);"),
    ],
)
def test_the_context_is_what_the_model_allows_within_reason(
    allowed: object, options: list[str], context: int, said: str, tmp_path: Path, glmquant: Run
) -> None:
    source = build_checkpoint(tmp_path / "GLM", max_position_embeddings=allowed).folder
    assert said in glmquant("plan", source, *options).stdout
    (planned,) = glmquant("plan", source, *options, "--json").events
    assert planned["context"] == context


def test_layers_of_one_treatment_are_one_range(tmp_path: Path) -> None:
    source = build_checkpoint(tmp_path / "GLM", "4.5", num_hidden_layers=5)
    checkpoint = open_checkpoint(FolderSource(source.folder))
    told = forecast(make_plan(checkpoint, load_recipe("w8a8"), add_mtp=True), checkpoint)
    found = [(each.first, each.last, each.is_mtp) for each in told.layers]
    assert found == [(0, 1, False), (2, 4, False), (5, 5, True), (None, None, False)]
    dense, moe, mtp, outside = (layers.schemes for layers in told.layers)
    assert dense[Role.DENSE_MLP] is Scheme.FLOAT
    assert dense[Role.ATTENTION_QKV] is moe[Role.ROUTED_EXPERT] is Scheme.W8A8_DYNAMIC
    assert mtp == {Role.MTP: Scheme.FLOAT}
    assert outside == dict.fromkeys((Role.EMBEDDING, Role.NORM, Role.LM_HEAD), Scheme.FLOAT)
    assert Role.DENSE_MLP not in moe
    without = forecast(make_plan(checkpoint, load_recipe("w8a8")), checkpoint)
    assert [each.is_mtp for each in without.layers] == [False] * 3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_sums_over_roles_are_the_plans(layout: str, tmp_path: Path) -> None:
    source = build_checkpoint(tmp_path / "GLM", layout, dtypes={"model.norm.weight": "F32"})
    checkpoint = open_checkpoint(FolderSource(source.folder))
    plan = make_plan(checkpoint, load_recipe("w8a8"), add_mtp=True)
    roles = forecast(plan, checkpoint).roles
    assert sum(total.source_nbytes for total in roles) == plan.source_nbytes
    headers = sum(len(shard.header) for shard in plan.shards)
    assert sum(total.output_nbytes for total in roles) == plan.weights_nbytes - headers
    assert sum(total.tensors for total in roles) == sum(len(shard.steps) for shard in plan.shards)


def test_the_time_comes_from_a_named_machine_until_this_one_was_measured(
    nano: Recorded, tmp_path: Path, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = glmquant("plan", nano.folder).stdout
    assert "time: under a second at 1.95 GB/s, measured with 4 workers on 2 cores" in text
    assert "not here" in text
    assert glmquant("w8a8", nano.folder, tmp_path / "a", "--workers", "2").exit_code == 0
    assert load_rate() is None  # too little to tell
    monkeypatch.setattr("glmquant.rates.LEAST_NBYTES", 1)
    assert glmquant("w8a8", nano.folder, tmp_path / "b", "--workers", "1").exit_code == 0
    rate = load_rate()
    assert rate is not None
    assert (rate.workers, rate.machine) == (1, platform.node())
    text = glmquant("plan", nano.folder).stdout
    assert f"measured on this machine {rate.day} with 1 worker\n" in text
    (planned,) = glmquant("plan", nano.folder, "--json").events
    assert planned["rate"]["nbytes_per_second"] == rate.nbytes_per_second
    assert planned["rate"]["is_of_this_machine"] is True


def test_a_run_that_finds_its_work_done_measures_nothing(
    nano: Recorded, tmp_path: Path, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    glmquant("w8a8", nano.folder, tmp_path / "out")
    monkeypatch.setattr("glmquant.rates.LEAST_NBYTES", 1)
    assert "already done" in glmquant("w8a8", nano.folder, tmp_path / "out").stdout
    assert load_rate() is None


def test_the_time_of_a_stored_rate(nano: Recorded, glmquant: Run) -> None:
    store_rate(Rate(100_000, 8, platform.node(), 10**12, "2026-11-20"))
    (planned,) = glmquant("plan", nano.folder, "--json").events
    assert planned["seconds"] == round(planned["source_nbytes"] / 100_000, 1)
    text = glmquant("plan", nano.folder).stdout
    assert "at 100.00 kB/s, measured on this machine 2026-11-20 with 8 workers" in text


@pytest.mark.parametrize("data", [b"{", b"\x00" * 100, b"[[[", b'{"nbytes_per_second": 0}'])
def test_a_corrupt_cache_changes_nothing(data: bytes, nano: Recorded, glmquant: Run) -> None:
    before = glmquant("plan", nano.folder).stdout
    cache = Path(os.environ["XDG_CACHE_HOME"]) / "glmquant"
    cache.mkdir()
    (cache / RATE_FILES[False]).write_bytes(data)
    assert glmquant("plan", nano.folder).stdout == before


@pytest.mark.parametrize(
    "words",
    [
        ["--context", "0"],
        ["--context", "-1"],
        ["--context", "99999999999"],
        ["--context", "long"],
        ["--machine", "a5"],
        ["--workers", "0"],
        ["--recipe", "nothing"],
        ["elsewhere"],
    ],
)
def test_wrong_usage_ends_with_2(words: list[str], nano: Recorded, glmquant: Run) -> None:
    ran = glmquant("plan", nano.folder, *words)
    assert ran.exit_code == 2
    assert ran.stderr


def test_where_no_source_can_be_meant_the_hint_names_the_verb(
    tmp_path: Path, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = glmquant("plan")
    assert ran.exit_code == 2
    assert "glmquant plan FOLDER" in ran.stderr


def test_mtp_that_is_not_there_is_an_error_here_too(tmp_path: Path, glmquant: Run) -> None:
    source = build_checkpoint(tmp_path / "GLM", num_nextn_predict_layers=0).folder
    ran = glmquant("plan", source, "--add-mtp", "--json")
    assert ran.exit_code == 1
    assert [event["error"] for event in ran.events] == ["NoMtpError"]


def test_the_help_of_plan_imports_nothing_heavy() -> None:
    script = (
        "import sys; from glmquant.cli import main\n"
        "try: main(['plan', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numba', 'numpy', 'pydantic', 'rich', 'yaml', 'xxhash', 'glmquant.execute'}\n"
        "sys.exit(str(sorted(heavy & sys.modules.keys())) if heavy & sys.modules.keys() else 0)"
    )
    subprocess.run([sys.executable, "-c", script], env=ENV, check=True, capture_output=True)


def test_every_figure_of_the_plan_is_json(nano: Recorded, glmquant: Run) -> None:
    (line,) = glmquant("plan", nano.folder, "--json").stdout.splitlines()
    planned = json.loads(line)
    assert planned["next"] == f"glmquant w8a8 {nano.folder}"
    assert planned["memory_nbytes_peak"] > 10**7
    assert {each["first"] for each in planned["layers"]} == {0, 2, None}


def test_a_plan_warns_of_what_would_stop_the_run(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    occupied = tmp_path / "GLM-W8A8"
    occupied.mkdir()
    (occupied / "notes.txt").write_text("mine")
    plain, dry = glmquant("plan", nano.folder), glmquant("w8a8", nano.folder, "--dry-run")
    assert plain.exit_code == dry.exit_code == 0
    assert (plain.stdout, plain.stderr) == (dry.stdout, dry.stderr)
    assert "warning: the run would fail: the target is not empty" in plain.stderr
    kinds = [event["event"] for event in glmquant("plan", nano.folder, "--json").events]
    assert kinds == ["plan", "warning"]
