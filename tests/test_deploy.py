"""What a service is made of: the command by machine, version, profile and checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glmquant.deploy.candidate import open_candidate
from glmquant.deploy.setup import Setup
from tests.builders import AIR, LARGE, build_checkpoint
from tests.conftest import run_glmquant
from tests.defects import MTP, undescribe
from tests.deploying import VERSIONS, candidate_of, combinations, setup_of
from tests.foreign import edit_config

TUTORIAL_23 = {
    "--data-parallel-size": 2,
    "--tensor-parallel-size": 8,
    "--enable-expert-parallel": True,
    "--seed": 1024,
    "--served-model-name": "glm",
    "--max-model-len": 133000,
    "--max-num-batched-tokens": 8192,
    "--max-num-seqs": 16,
    "--quantization": "ascend",
    "--gpu-memory-utilization": 0.9,
    "--speculative-config": {
        "num_speculative_tokens": 3,
        "method": "mtp",
        "enforce_eager": True,
    },
    "--compilation-config": {
        "cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64, 128, 256, 512],
        "cudagraph_mode": "FULL_DECODE_ONLY",
    },
    "--additional-config": {
        "enable_shared_expert_dp": True,
        "ascend_fusion_config": {"fusion_ops_gmmswigluquant": False},
        "enable_balance_scheduling": True,
    },
}
"""The tutorial's command for one A3 (0.23.0), its variable for balance scheduling as a key."""

OURS = {
    "--host": "127.0.0.1",
    "--port": 8000,
    "--reasoning-parser": "glm45",
    "--enable-auto-tool-choice": True,
    "--tool-call-parser": "glm45",
}


def options(setup: Setup, node: int = 0) -> dict[str, Any]:
    return setup.nodes[node].options


def variables(setup: Setup, node: int = 0) -> dict[str, str]:
    return setup.nodes[node].variables


def test_one_a3_with_0_23_has_the_tutorials_command_with_parsers() -> None:
    setup = setup_of(candidate_of())
    assert options(setup) == TUTORIAL_23 | OURS
    assert variables(setup) == {
        "HCCL_BUFFSIZE": "512",
        "HCCL_OP_EXPANSION_MODE": "AIV",
        "OMP_PROC_BIND": "false",
        "OMP_NUM_THREADS": "1",
        "PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True",
        "VLLM_ENGINE_READY_TIMEOUT_S": "3600",
    }
    assert setup.problems == ()
    assert setup.words(setup.nodes[0])[:3] == ["vllm", "serve", "/weights/GLM-4.6-W8A8-floatmtp"]


@pytest.mark.parametrize(
    ("series", "variable", "key"),
    [
        ("0.13", "1", None),
        ("0.18", "1", None),
        ("0.23", None, ["enable_balance_scheduling"]),
        ("0.26", None, ["scheduler_config", "enable_balance_scheduling"]),
        ("0.30", None, ["scheduler_config", "enable_balance_scheduling"]),
    ],
)
def test_balance_scheduling_is_asked_for_as_each_version_reads_it(
    series: str, variable: str | None, key: list[str] | None
) -> None:
    setup = setup_of(candidate_of(), series=series)
    assert variables(setup).get("VLLM_ASCEND_BALANCE_SCHEDULING") == variable
    found = options(setup)["--additional-config"]
    for part in key or []:
        found = found[part]
    assert key is None or found is True
    assert ("balance_scheduling" in json.dumps(options(setup))) == (key is not None)


@pytest.mark.parametrize(("series", "target", "profile"), combinations())
def test_a_355b_fits_every_machine_and_profile(series: str, target: str, profile: str) -> None:
    setup = setup_of(candidate_of(), target, series, profile)
    texts = [problem.what for problem in setup.problems]
    is_early = series == "0.13" and target in ("2xa2", "pd-2p1d")
    assert texts == ["this version has no instructions for these machines"] * is_early


def test_the_tutorials_first_command_is_word_for_word_with_what_it_lacks() -> None:
    setup = setup_of(candidate_of(), series="0.13", profile="tutorial")
    assert variables(setup) == {
        "HCCL_BUFFSIZE": "1024",
        "HCCL_OP_EXPANSION_MODE": "AIV",
        "OMP_PROC_BIND": "false",
        "OMP_NUM_THREADS": "10",
        "PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True",
    }
    assert {
        key: value for key, value in options(setup).items() if key not in ("--host", "--port")
    } == {
        "--served-model-name": "glm",
        "--data-parallel-size": 1,
        "--tensor-parallel-size": 16,
        "--seed": 1024,
        "--max-model-len": 35000,
        "--max-num-batched-tokens": 16384,
        "--max-num-seqs": 16,
        "--async-scheduling": True,
        "--quantization": "ascend",
        "--trust-remote-code": True,
        "--gpu-memory-utilization": 0.9,
        "--speculative-config": {
            "num_speculative_tokens": 1,
            "method": "mtp",
            "model": "/weights/GLM-4.6-W8A8-floatmtp",
        },
        "--compilation-config": {
            "cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32],
            "cudagraph_mode": "FULL_DECODE_ONLY",
        },
    }


def test_the_tutorials_first_command_needs_no_flag_where_config_holds_the_description() -> None:
    setup = setup_of(candidate_of(is_embedded=True), series="0.13", profile="tutorial")
    assert "--quantization" not in options(setup)


@pytest.mark.parametrize("series", VERSIONS)
def test_what_a_version_does_not_know_is_left_out(series: str) -> None:
    setup = setup_of(candidate_of(), series=series, profile="latency")
    assert ("--async-scheduling" in options(setup)) == (series in ("0.13", "0.18"))
    assert ("VLLM_ENGINE_READY_TIMEOUT_S" in variables(setup)) == (series != "0.13")
    assert ("enforce_eager" in options(setup)["--speculative-config"]) == (
        series not in ("0.13", "0.18")
    )
    assert ("--additional-config" in options(setup)) == (series != "0.13")


def test_a_checkpoint_without_an_mtp_layer_is_served_without_drafting_and_it_is_said() -> None:
    setup = setup_of(candidate_of(has_mtp=False))
    assert "--speculative-config" not in options(setup)
    assert any("the checkpoint has no MTP layer" in note for note in setup.notes)
    assert setup.problems == ()


def test_an_mtp_layer_that_config_does_not_announce_is_not_drafted_with() -> None:
    setup = setup_of(candidate_of(announced=0))
    assert "--speculative-config" not in options(setup)
    assert any("config.json announces none" in note for note in setup.notes)


def test_drafting_can_be_left_out_and_chosen() -> None:
    assert "--speculative-config" not in options(setup_of(candidate_of(), speculative_tokens=0))
    chosen = options(setup_of(candidate_of(), speculative_tokens=2))
    assert chosen["--speculative-config"]["num_speculative_tokens"] == 2


@pytest.mark.parametrize(
    ("form", "series", "parser"),
    [
        ("lines", "0.13", "glm45"),
        ("lines", "0.30", "glm45"),
        ("inline", "0.13", None),
        ("inline", "0.18", "glm47"),
        ("inline", "0.30", "glm47"),
        (None, "0.23", "glm45"),
    ],
)
def test_tool_calls_are_read_as_the_release_writes_them(
    form: str | None, series: str, parser: str | None
) -> None:
    setup = setup_of(candidate_of(tool_form=form), series=series)
    assert options(setup).get("--tool-call-parser") == parser
    assert ("--enable-auto-tool-choice" in options(setup)) == (parser is not None)
    assert options(setup)["--reasoning-parser"] == "glm45"
    told = [note for note in setup.notes if "tool-call parser" in note or "tool calls" in note]
    assert bool(told) == (parser is None or form is None)


def test_a_named_tool_parser_is_taken() -> None:
    setup = setup_of(candidate_of(tool_form=None), tool_parser="mine")
    assert options(setup)["--tool-call-parser"] == "mine"
    assert not any("tool calls" in note for note in setup.notes)


def test_a_model_of_a_shorter_context_gets_its_own() -> None:
    setup = setup_of(candidate_of(model_context=131_072))
    assert options(setup)["--max-model-len"] == 131_072
    assert any("131072" in note for note in setup.notes)
    assert setup.problems == ()


def test_a_context_that_the_model_does_not_take_is_a_problem() -> None:
    setup = setup_of(candidate_of(model_context=131_072), context=140_000)
    (problem,) = setup.problems
    assert problem.expected == "at most 131072 (max_position_embeddings)"
    assert options(setup)["--max-model-len"] == 140_000


def test_a_context_without_room_is_a_problem_with_one_that_has_room() -> None:
    setup = setup_of(candidate_of(model_context=None), "a2", context=1_000_000)
    (problem,) = setup.problems
    assert "no room for a sequence of 1,000,000 tokens" in problem.what
    tokens = int(problem.hint.split()[1])
    assert setup_of(candidate_of(model_context=None), "a2", context=tokens).problems == ()
    more = setup_of(candidate_of(model_context=None), "a2", context=tokens + 1025)
    assert len(more.problems) == 1


def test_shared_experts_on_every_card_count() -> None:
    """0.23 room beside 3.4 GiB more: a context that fits without them does not fit with them."""

    def longest(expert_parallel: bool) -> int:
        low, high = 1, 10_000_000
        while low < high:
            middle = (low + high + 1) // 2
            made = setup_of(
                candidate_of(model_context=None), context=middle, expert_parallel=expert_parallel
            )
            low, high = (low, middle - 1) if made.problems else (middle, high)
        return low

    per_token = 2 * 93 * 1 * 128 * 2
    shared_nbytes = (
        89 * 3 * 5120 * 1536 * 2 + 3 * 5120 * 1536 * 2
    )  # 89 MoE layers and the MTP layer
    missing = (longest(False) - longest(True)) * per_token
    assert abs(missing - shared_nbytes * 7 / 8) < 300_000_000  # attention and experts lie alike


@pytest.mark.parametrize(("sizes", "has_experts"), [(AIR, True), (LARGE, False)])
def test_slices_of_experts_that_divide_badly_become_whole_experts(
    sizes: dict[str, Any], has_experts: bool
) -> None:
    setup = setup_of(candidate_of(sizes), profile="latency")
    assert ("--enable-expert-parallel" in options(setup)) == has_experts
    assert any("expert parallel, since" in note for note in setup.notes) == has_experts


@pytest.mark.parametrize(("sizes", "is_said"), [(AIR, True), (LARGE, False)])
def test_the_tutorials_command_says_where_experts_divide_badly(
    sizes: dict[str, Any], is_said: bool
) -> None:
    note = (
        "moe_intermediate_size 1408 / 16 = 88 is not a multiple of 32: --expert-parallel leaves "
        "experts whole, and the profile tutorial does not ask for it"
    )
    setup = setup_of(candidate_of(sizes), profile="tutorial")
    assert (note in setup.notes) == is_said
    assert "--enable-expert-parallel" not in options(setup)
    chosen = setup_of(candidate_of(sizes), profile="tutorial", expert_parallel=True)
    assert "--enable-expert-parallel" in options(chosen) and note not in chosen.notes


def test_a_model_that_does_not_divide_is_a_problem() -> None:
    setup = setup_of(candidate_of({**LARGE, "num_attention_heads": 100}))
    (problem,) = setup.problems
    assert "num_attention_heads 100 is not a multiple of tp 8" in problem.found


def test_the_second_of_two_nodes_has_no_head_and_starts_with_the_second_rank() -> None:
    setup = setup_of(candidate_of(), "2xa2")
    first, second = setup.nodes
    assert (first.name, second.name) == ("node0", "node1")
    assert "--headless" not in first.options
    listening = {"--host": "127.0.0.1", "--port": 8000}
    assert {key: first.options[key] for key in listening} == listening
    rest = {key: value for key, value in first.options.items() if key not in listening}
    assert second.options == rest | {"--headless": True, "--data-parallel-start-rank": 1}
    assert first.options["--data-parallel-start-rank"] == 0
    assert first.options["--data-parallel-size-local"] == 1
    assert first.options["--data-parallel-address"] == "$node0_ip"
    assert first.options["--data-parallel-rpc-port"] == 13389


def test_prefill_nodes_are_engines_apart_and_decode_nodes_are_one() -> None:
    setup = setup_of(candidate_of(), "pd-2p1d")
    nodes = {node.name: node for node in setup.nodes}
    assert {name: list(node.ranks) for name, node in nodes.items()} == {
        "prefill0": [0, 1],
        "prefill1": [0, 1],
        "decode0": [0, 1, 2, 3],
        "decode1": [4, 5, 6, 7],
    }
    transfers = {name: node.options["--kv-transfer-config"] for name, node in nodes.items()}
    assert {name: (each["kv_role"], each["kv_port"]) for name, each in transfers.items()} == {
        "prefill0": ("kv_producer", 30000),
        "prefill1": ("kv_producer", 30100),
        "decode0": ("kv_consumer", 30200),
        "decode1": ("kv_consumer", 30200),
    }
    assert transfers["prefill0"]["kv_connector_extra_config"] == {
        "prefill": {"dp_size": 2, "tp_size": 8},
        "decode": {"dp_size": 8, "tp_size": 4},
    }
    prefill, decode = nodes["prefill1"].options, nodes["decode1"].options
    assert prefill["--data-parallel-address"] == "$local_ip"
    assert decode["--data-parallel-address"] == "$node0_ip"
    assert prefill["--enforce-eager"] is True
    assert "--compilation-config" not in prefill
    assert prefill["--speculative-config"]["num_speculative_tokens"] == 1
    assert decode["--speculative-config"]["num_speculative_tokens"] == 3
    assert decode["--additional-config"]["recompute_scheduler_enable"] is True


def test_sglang_has_its_own_words() -> None:
    setup = setup_of(candidate_of(), series="0.5", engine="sglang")
    words = setup.words(setup.nodes[0])
    assert words[:5] == [
        *("python3", "-m", "sglang.launch_server", "--model-path"),
        "/weights/GLM-4.6-W8A8-floatmtp",
    ]
    found = options(setup)
    assert found["--quantization"] == "modelslim"
    assert found["--tp-size"] == 16
    assert found["--speculative-algorithm"] == "NEXTN"
    assert found["--speculative-num-steps"] == 3
    assert found["--speculative-num-draft-tokens"] == 4
    assert found["--speculative-draft-model-quantization"] == "unquant"
    assert found["--tool-call-parser"] == "glm"
    assert not any(isinstance(value, dict) for value in found.values())


def test_what_verify_measured_of_a_version_is_a_problem(tmp_path: Path) -> None:
    build_checkpoint(tmp_path / "GLM")
    folder = tmp_path / "GLM-W8A8-floatmtp"
    assert run_glmquant("w8a8", tmp_path / "GLM", folder, "--add-mtp").exit_code == 0
    right = open_candidate(folder)
    divisible = replace(candidate_of(), verdicts=right.verdicts)
    assert setup_of(divisible, series="0.30").problems == ()
    undescribe(MTP)(folder)
    wrong = replace(candidate_of(), verdicts=open_candidate(folder).verdicts)
    (problem,) = setup_of(wrong).problems
    assert "would not load the MTP layer rightly" in problem.what
    assert setup_of(wrong, speculative_tokens=0).problems == ()


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("<tool_call>{function-name}<arg_key>{arg-key-1}</arg_key>", "inline"),
        ("<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>", "lines"),
        ("{{- '<tool_call>name\\n<arg_key>first</arg_key>' -}}", "lines"),
        ("no word of tools", None),
    ],
)
def test_the_form_of_tool_calls_is_read_in_the_chat_template(
    template: str, form: str | None, tmp_path: Path
) -> None:
    build_checkpoint(tmp_path / "GLM")
    folder = tmp_path / "GLM-W8A8"
    assert run_glmquant("w8a8", tmp_path / "GLM", folder).exit_code == 0
    (folder / "chat_template.jinja").write_text(template)
    assert open_candidate(folder).tool_form == form


@pytest.mark.parametrize("value", [None, "131072", True, 0, -1, 4096.0, [4096]])
def test_a_length_in_config_that_is_none_is_a_problem(value: Any, tmp_path: Path) -> None:
    build_checkpoint(tmp_path / "GLM", max_position_embeddings=4096)
    folder = tmp_path / "GLM-W8A8"
    assert run_glmquant("w8a8", tmp_path / "GLM", folder).exit_code == 0
    assert open_candidate(folder).config_faults == ()
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_position_embeddings": value}))
    found = open_candidate(folder)
    (problem,) = setup_of(replace(candidate_of(), config_faults=found.config_faults)).problems
    assert problem.where == "config.json: max_position_embeddings"
    assert (problem.expected, problem.found) == ("a whole number above 0", repr(value))


def test_a_size_in_config_that_is_none_is_a_problem(tmp_path: Path) -> None:
    build_checkpoint(tmp_path / "GLM")
    folder = tmp_path / "GLM-W8A8"
    assert run_glmquant("w8a8", tmp_path / "GLM", folder).exit_code == 0
    edit_config(folder, num_attention_heads="x", max_position_embeddings="\x1b")
    ran = run_glmquant("serve", folder, "--machine", "a3")
    assert ran.exit_code == 0
    assert "config.json has a wrong value (config.json: num_attention_heads): 'x'" in ran.stderr
    assert "(config.json: max_position_embeddings): '\\x1b'" in ran.stderr


def test_a_candidate_is_what_its_folder_says(tmp_path: Path) -> None:
    build_checkpoint(tmp_path / "GLM", max_position_embeddings=4096)
    folder = tmp_path / "GLM-W8A8-floatmtp"
    words = ["w8a8", tmp_path / "GLM", folder, "--add-mtp", "--embed-quant-config"]
    assert run_glmquant(*words).exit_code == 0
    found = open_candidate(folder)
    assert (found.mtp_count, found.announced, found.has_mtp) == (1, 1, True)
    assert found.model_context == 4096
    assert found.is_embedded
    assert found.link_folders == ()
    edit_config(folder, num_nextn_predict_layers=0)
    assert not open_candidate(folder).has_mtp
    (shard, *_) = sorted(folder.glob("model-*.safetensors"))
    (tmp_path / "store").mkdir()
    moved = shard.rename(tmp_path / "store" / shard.name)
    shard.symlink_to(moved)
    assert open_candidate(folder).link_folders == (tmp_path / "store",)
