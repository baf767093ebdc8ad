"""The genuine loaders of vLLM and vllm-ascend, and the table of rules held against them.

``GLMQUANT_TEST_MATRIX`` names the versions.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Final

import pytest

from glmquant.checkpoint import open_checkpoint
from glmquant.header import build_header
from glmquant.plan import make_plan
from glmquant.recipe import default_recipe
from glmquant.runtime.matrix import Case, Load, Pair, Way, choose_pairs, find_pair, run_cases
from glmquant.source import FolderSource
from glmquant.tensors import tensor_nbytes
from glmquant.verify.engines.predict import ENGINES, predict
from glmquant.verify.engines.rules import Fate
from glmquant.verify.loads.explain import differs, explained, lost
from glmquant.verify.subject import Subject, open_subject
from tests.builders import (
    build_checkpoint,
    layout_config,
    tensor_list,
    write_side_files,
)
from tests.conftest import Ran
from tests.defects import DEFECTS, DESCRIPTION, INDEX, MTP, RIGHT, met_by_loading, quantize

HOME: Final = os.environ.get("GLMQUANT_TEST_ENGINE_HOME")
VERSIONS: Final = os.environ.get("GLMQUANT_TEST_MATRIX", "0.23,0.30")
PAIRS: Final = choose_pairs(VERSIONS)
ROOT: Final = Path(__file__).resolve().parent.parent

LEFT_OUT: Final = object()

SETTINGS: Final[tuple[dict[str, Any], ...]] = (
    {"hidden_act": "xsilu"},
    {"hidden_act": None},
    {"speculators_config": {"algorithm": "eagle3"}},
    {"compression_config": {"quant_method": "compressed-tensors"}},
    {"quantization_config": None},
    {"model_type": LEFT_OUT},
    {"model_type": "llama"},
    {"num_experts_per_tok": "2"},
    {"num_key_value_heads": 1},
    {"num_attention_heads": 2},
    {"intermediate_size": 12},
    {"moe_intermediate_size": 6},
    {"num_key_value_heads": 4},
    {"architectures": ["Glm4MoeForCausalLM", "Other"]},
    {"torch_dtype": "nonsense"},
    {"max_position_embeddings": None},
    {"max_position_embeddings": 0},
    {"rope_theta": None},
    {"rope_theta": "x"},
    {"rope_scaling": {"rope_type": "nonsense", "factor": 4.0}},
    {"rope_scaling": {"rope_type": "linear"}},
    {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
    {"partial_rotary_factor": 2.0},
    {"partial_rotary_factor": 0},
    {"rms_norm_eps": 0},
    {"routed_scaling_factor": "x"},
    {"norm_topk_prob": None},
)
"""Changes of config.json that some versions load, in silence at times, and some do not."""

pytestmark = [
    pytest.mark.matrix,
    pytest.mark.skipif(not HOME, reason="`tools/check matrix` builds the loaders that this asks"),
]


@pytest.fixture(autouse=True, scope="module")
def _home() -> Iterator[None]:
    os.environ["GLMQUANT_ENGINE_HOME"] = str(HOME)
    yield
    del os.environ["GLMQUANT_ENGINE_HOME"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every folder that is loaded: right ones, and one for each defect."""
    room = tmp_path_factory.mktemp("loads")
    source = build_checkpoint(room / "source")
    made = dict(met_by_loading(source, room))
    quantize(source.folder, room / "settings", "--add-mtp")
    for number, changes in enumerate(SETTINGS):
        made[f"config.json with {changes}"] = folder = room / f"settings-{number}"
        shutil.copytree(room / "settings", folder)
        config = json.loads((folder / "config.json").read_bytes()) | changes
        left = {key: value for key, value in config.items() if value is not LEFT_OUT}
        (folder / "config.json").write_text(json.dumps(left))
    for name, encoding in product(("config.json", DESCRIPTION, INDEX), ("utf-8-sig", "utf-16")):
        made[f"{name} in {encoding}"] = folder = room / f"{name}-{encoding}"
        shutil.copytree(room / "settings", folder)
        (folder / name).write_text((folder / name).read_text(), encoding=encoding)
    made["a path with brackets"] = room / "a [b]"
    shutil.copytree(room / "settings", room / "a [b]")
    for number, (name, build) in enumerate(RIGHT.items()):
        (room / f"right-{number}").mkdir()
        made[name] = build(room / f"right-{number}")[0]
    return made


def subject_of(folder: Path) -> Subject:
    return open_subject(FolderSource(folder))


def cases_of(folders: dict[str, Path]) -> list[Case]:
    """With the flag and without, each with a draft where config.json announces one."""
    cases = []
    for name, folder in folders.items():
        config = subject_of(folder).config
        has_draft = bool(config and config.num_nextn_predict_layers)
        for has_flag in (True, False):
            way = Way(has_flag=has_flag)
            cases.append(Case(f"{name}|{has_flag}", folder, way, has_draft, limit_seconds=120))
    return cases


@pytest.mark.parametrize("pair", PAIRS, ids=[pair.version for pair in PAIRS])
def test_the_loaders_do_what_the_table_says(pair: Pair, folders: dict[str, Path]) -> None:
    """One test a version, so that its loads are made once and versions run beside each other."""
    built = find_pair(pair)
    assert built is not None, "tools/check matrix"
    loads = list(run_cases(pair, built, cases_of(folders)))
    _the_table_says_what_the_loaders_do(pair, folders, loads)
    _right_folders_load_with_every_parameter_filled(pair, loads)
    _most_failures_are_explained_by_their_message_alone(loads)


def _the_table_says_what_the_loaders_do(
    pair: Pair, folders: dict[str, Path], loads: list[Load]
) -> None:
    assert len(loads) == 2 * len(folders)
    (engine,) = (each for each in ENGINES if each.version == pair.version)
    opposed = []
    for load in loads:
        subject = subject_of(load.case.folder)
        (verdict,) = (each for each in predict(subject) if each.version == pair.version)
        run = verdict.with_flag if load.case.way.has_flag else verdict.without_flag
        if load.stopped is not None:  # a thousand million layers, say: it neither loads nor fails
            assert run.target.fate is Fate.FAILS, load
            continue
        assert load.target is not None
        for outcome, model in ((run.target, load.target), (run.draft, load.draft)):
            gone = model is not None and lost(model, engine, subject.types)
            if differs(outcome, model, bool(gone)):
                opposed.append((load.case.name, outcome, model))
    assert opposed == []


def _right_folders_load_with_every_parameter_filled(pair: Pair, loads: list[Load]) -> None:
    (engine,) = (each for each in ENGINES if each.version == pair.version)
    right = {load.case.name: load for load in loads if load.case.name.partition("|")[0] in RIGHT}
    assert len(right) == 2 * len(RIGHT)
    for name, load in right.items():
        if name.startswith("a head tied"):
            continue  # vLLM ties none: the table says so
        if not (load.case.way.has_flag or engine.detects or name.startswith("the description in")):
            assert load.target is not None
            assert load.target.error == "KeyError"
            continue
        types = subject_of(load.case.folder).types
        for model in (load.target, load.draft):
            if model is None:
                assert not load.case.has_draft
                continue
            assert model.error is None, (name, model)
            assert lost(model, engine, types) == (), name
            assert model.parameters > 10


def _most_failures_are_explained_by_their_message_alone(loads: list[Load]) -> None:
    failed = [each for load in loads for each in (load.target, load.draft) if each and each.error]
    assert len(failed) > 10
    unexplained = {(each.error, each.message[:80]) for each in failed if not explained(each, None)}
    assert len(unexplained) <= len(failed) // 5, unexplained


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    quantize(build_checkpoint(tmp_path / "source").folder, tmp_path / "GLM", "--add-mtp")
    return tmp_path / "GLM"


def verified(glmquant: Callable[..., Ran], folder: Path, *words: object) -> tuple[Ran, Any]:
    ran = glmquant("verify", folder, "--load-matrix", *words, "--json")
    return ran, ran.events[-1]


def test_every_way_loads_on_every_version(glmquant: Callable[..., Ran], checkpoint: Path) -> None:
    ran, event = verified(glmquant, checkpoint, "--versions", VERSIONS)
    assert ran.exit_code == 0, ran.stderr
    assert event["levels"] == ["files", "engine"]
    assert [each["version"] for each in event["loads"]["versions"]] == [p.version for p in PAIRS]
    for each in event["loads"]["versions"]:
        assert each["failure"] is None
        told = {
            (way["quantization"], way["names_model"], way["tensor_parallel"]): way["verdict"]
            for way in each["ways"]
            if not way["expert_parallel"]
        }
        right = dict.fromkeys(told, "loads, the draft too")
        if each["version"] == "0.13":
            right |= dict.fromkeys([(None, False, 1), (None, True, 1)], "fails")
        assert told == right
        assert len(each["ways"]) == 6


def test_what_a_named_version_does_not_load_is_an_error_in_its_own_words(
    glmquant: Callable[..., Ran], checkpoint: Path
) -> None:
    DEFECTS["MTP keys absent from the description"].apply(checkpoint)
    ran, event = verified(glmquant, checkpoint, "--versions", PAIRS[-1].version)
    assert ran.exit_code == 1
    (finding,) = [each for each in event["findings"] if each["code"] == "E6"]
    assert finding["severity"] == "error"
    assert finding["what"].startswith("the description has no entry for a weight")
    assert finding["found"] == f"KeyError: '{MTP}self_attn.q_proj.weight'"
    (version,) = event["loads"]["versions"]
    assert {way["verdict"] for way in version["ways"]} == {"the draft fails"}


def test_parameters_that_no_tensor_fills_are_counted_and_named(
    glmquant: Callable[..., Ran], checkpoint: Path
) -> None:
    DEFECTS["one MTP expert absent"].apply(checkpoint)
    _, event = verified(glmquant, checkpoint, "--versions", PAIRS[-1].version)
    (version,) = event["loads"]["versions"]
    first = version["ways"][0]
    assert first["verdict"] == "loads, the draft 2 unfilled"
    for way in version["ways"]:  # a quarter of the experts, over all ranks
        experts = [each for each in way["draft"]["unfilled"] if "w13_weight" in each["name"]]
        assert [(each["elements"] * 4, each["is_default"]) for each in experts] == [
            (experts[0]["of"], False)
        ]
    (finding,) = [each for each in event["findings"] if each["code"] == "E6"]
    assert finding["found"].startswith("2 parameters that no tensor filled: ")


def test_what_does_not_fit_is_judged_on_a_small_copy(
    glmquant: Callable[..., Ran], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glmquant.verify.loads.check.available_nbytes", lambda: 1000)
    ran, event = verified(glmquant, checkpoint, "--versions", PAIRS[-1].version)
    assert ran.exit_code == 0, event["findings"]
    assert "a copy of small widths" in event["loads"]["copy"]
    (version,) = event["loads"]["versions"]
    assert {way["verdict"] for way in version["ways"]} == {"loads, the draft too"}


AIR: Final = {
    "hidden_size": 4096,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 46,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "n_routed_experts": 128,
    "num_experts_per_tok": 8,
    "vocab_size": 151552,
}
"""GLM-4.5-Air, as its config.json has it."""


def test_a_whole_air_is_judged_in_a_gigabyte(glmquant: Callable[..., Ran], tmp_path: Path) -> None:
    """Its 114 GB are holes: headers, index and description are those of the real one."""
    config = layout_config("4.5-air", **AIR)
    source, target = tmp_path / "source", tmp_path / "GLM"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config))
    write_side_files(source, config)
    tensors = list(tensor_list(config, mtp_copies=True))
    header, _ = build_header(tensors)
    nbytes = len(header) + sum(tensor_nbytes(dtype, shape) for _, dtype, shape in tensors)
    _sparse(source / "model.safetensors", header, nbytes)
    plan = make_plan(open_checkpoint(FolderSource(source)), default_recipe(), add_mtp=True)
    assert plan.weights_nbytes > 110e9
    for name in plan.side_files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, target / name)
    for name, content in plan.small_files.items():
        (target / name).write_bytes(content)
    for shard in plan.shards:
        _sparse(target / shard.file, shard.header, shard.nbytes)

    ran, event = verified(glmquant, target, "--versions", PAIRS[-1].version)
    assert ran.exit_code == 0, event["findings"]
    assert "4 of 128 experts" in event["loads"]["copy"]
    (version,) = event["loads"]["versions"]
    assert {way["verdict"] for way in version["ways"]} == {"loads, the draft too"}
    assert max(way["peak_nbytes"] for way in version["ways"]) < 1e9


def _sparse(path: Path, header: bytes, nbytes: int) -> None:
    with path.open("wb") as file:
        file.write(header)
        file.truncate(nbytes)


def test_time_and_memory_of_a_load_are_bounded(checkpoint: Path) -> None:
    pair = PAIRS[-1]
    built = find_pair(pair)
    assert built is not None
    usual = Case("usual", checkpoint, Way(), has_draft=True)
    bounded = [
        usual,
        replace(usual, name="time", limit_seconds=0.01),
        replace(usual, name="memory", limit_nbytes=1000),
    ]
    stopped = {load.case.name: load.stopped for load in run_cases(pair, built, bounded)}
    assert stopped == {
        "usual": None,
        "time": "it took more than 0 s",
        "memory": "it took more than 0.0 GB of memory",
    }


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder of a short name: sockets may have to lie in one."""
    with tempfile.TemporaryDirectory(prefix="m-", dir="/tmp") as folder:
        yield Path(folder)


def test_a_killed_command_leaves_no_process_and_no_file(checkpoint: Path, temporary: Path) -> None:
    words = ["verify", str(checkpoint), "--load-matrix", "--versions", PAIRS[-1].version]
    command = subprocess.Popen(
        [sys.executable, "-m", "glmquant", *words],
        env={**os.environ, "TMPDIR": str(temporary)},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _until(lambda: any(temporary.glob("gq-*/cases.json")) or command.poll() is not None)
        assert command.poll() is None
    finally:
        command.send_signal(signal.SIGKILL)
        command.wait()
    _until(lambda: not list(temporary.iterdir()) and not _processes(str(temporary)))


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _processes(text: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(path.read_bytes().decode("utf-8", "replace"))
    return [each for each in found if text in each]


def test_the_demo_loads(glmquant: Callable[..., Ran], demo_output: Path) -> None:
    ran = glmquant("verify", demo_output, "--load-matrix", "--versions", PAIRS[0].version)
    assert ran.exit_code == 0
    assert "--quantization ascend, TP 2, expert parallel  loads" in ran.stdout
    assert "verdict: right, no finding" in ran.stdout
