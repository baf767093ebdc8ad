"""The commands of serve before the genuine parsers, and a service on the CPU engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from glmquant.deploy.data import load_engine
from glmquant.runtime.environment import find_engine
from glmquant.runtime.guard import descendants
from glmquant.runtime.launch import ServeRequest, serve_command
from glmquant.runtime.server import free_port
from glmquant.runtime.serving import STANDINS
from tests.conftest import run_glmquant
from tests.deploying import candidate_of, combinations, setup_of
from tests.test_engine import HOME, ROOT, are_gone, command_line, engines_below
from tests.test_server import is_free, soon

SOURCES = os.environ.get("GLMQUANT_ASCEND_SOURCES")

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not HOME, reason="`tools/check engine` makes the CPU engine that this asks"),
]


@pytest.fixture(autouse=True, scope="module")
def _home() -> Iterator[None]:
    os.environ["GLMQUANT_ENGINE_HOME"] = str(HOME)
    yield
    del os.environ["GLMQUANT_ENGINE_HOME"]


def judged(kind: str, cases: list[Any], *more: str) -> list[dict[str, Any]]:
    """The answers of the engine's own Python."""
    engine = find_engine()
    assert engine is not None
    ran = subprocess.run(
        [engine.python, ROOT / "tests/engine_judge.py", kind, *more],
        input=json.dumps(cases),
        env={
            **os.environ,
            "PYTHONPATH": str(STANDINS),
            "VLLM_PLUGINS": "glmquant_standins",
            "VLLM_NO_USAGE_STATS": "1",
        },
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    answers: list[dict[str, Any]] = json.loads(ran.stdout)
    return answers


def commands() -> list[tuple[str, dict[str, Any], list[str]]]:
    """``(what it is, flags, words)`` of every node of every combination, values in place."""
    values = {"$port": "9300", "$rank": "1", "$node0_ip": "10.0.0.1", "$local_ip": "10.0.0.2"}
    made = []
    for form in ("lines", "inline"):
        for series, target, profile in combinations():
            setup = setup_of(candidate_of(tool_form=form), target, series, profile)
            for node in setup.nodes:
                name = f"{series} {target} {profile} {node.name}"
                words = [values.get(word, word) for word in setup.words(node)]
                made.append((name, node.options, words[2:]))
    return made


def test_vllms_own_parser_takes_every_command() -> None:
    made = commands()
    answers = judged("words", [words for _, _, words in made])
    assert len(answers) > 100
    for (name, options, _), answer in zip(made, answers, strict=True):
        assert "error" not in answer, f"{name}: {answer}"
        assert answer["model"] == "/weights/GLM-4.6-W8A8-floatmtp"
        assert answer["unknown"] == []
        assert answer["additional"] == options.get("--additional-config", {})
        mode = options.get("--compilation-config", {}).get("cudagraph_mode", "None")
        assert answer["graph_mode"].endswith(mode)
        role = options.get("--kv-transfer-config", {}).get("kv_role")
        assert answer["kv_role"] == role
        for flag in ("--max-model-len", "--tensor-parallel-size", "--max-num-seqs"):
            assert answer["values"][flag[2:].replace("-", "_")] == options[flag]


def test_vllms_own_parser_refuses_what_it_does_not_know() -> None:
    setup = setup_of(candidate_of())
    words = setup.words(setup.nodes[0])[2:]
    answers = judged(
        "words",
        [
            [*words, "--no-such-flag"],
            [*words, "--kv-transfer-config", '{"kv_role": "nobody"}'],
            [*words, "--compilation-config", '{"cudagraph_mood": "FULL"}'],
            [*words, "--tensor-parallel-size", "eight"],
        ],
    )
    assert all("error" in answer for answer in answers)


def test_verify_and_serve_make_their_words_in_one_place() -> None:
    request = ServeRequest(Path("/GLM"), 8000, quantization="ascend", speculative_tokens=1)
    (answer,) = judged("words", [serve_command(request)[2:]])
    assert answer["model"] == "/GLM"
    assert answer["values"]["port"] == 8000


def additional_configs(series: str) -> list[dict[str, Any]]:
    """Every ``--additional-config`` that a version is given."""
    found = {
        json.dumps(node.options["--additional-config"], sort_keys=True)
        for version, target, profile in combinations()
        if version == series
        for node in setup_of(candidate_of(), target, series, profile).nodes
        if "--additional-config" in node.options
    }
    return [json.loads(text) for text in sorted(found)]


def test_vllm_ascend_0_30_takes_every_additional_config_and_no_other_key() -> None:
    configs = additional_configs("0.30")
    wrong = [{"no_such_key": True}, {"scheduler_config": {"no_such_key": True}}]
    answers = judged("additional", [*configs, *wrong])
    assert len(configs) > 2
    assert [answer.get("error") for answer in answers[: len(configs)]] == [None] * len(configs)
    for config, answer in zip(configs, answers, strict=False):
        is_on = config.get("scheduler_config", {}).get("enable_balance_scheduling", False)
        assert f"enable_balance_scheduling={is_on}" in answer["made"]
    for answer in answers[len(configs) :]:
        assert "no_such_key" in answer["error"]


@pytest.mark.skipif(not SOURCES, reason="`tools/check engine` unpacks other versions' sources")
@pytest.mark.parametrize("series", ["0.13", "0.18", "0.23", "0.26"])
def test_earlier_versions_read_every_key_that_they_are_given(series: str) -> None:
    engine = load_engine("vllm-ascend")
    (exact,) = [version.exact for version in engine.versions if version.series == series]
    root = Path(str(SOURCES)) / f"vllm-ascend-{exact}"
    configs = additional_configs(series)
    answers = judged("additional", [*configs, {"no_such_key": True}], str(root))
    assert configs
    assert [answer["unread"] for answer in answers] == [[]] * len(configs) + [["no_such_key"]]


def started(folder: Path, port: int) -> subprocess.Popen[str]:
    """A service on the CPU engine, once it is ready."""
    words = [sys.executable, "-m", "glmquant", "serve", str(folder), "--machine", "cpu"]
    running = subprocess.Popen(
        [*words, "--port", str(port), "--run", "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    for line in running.stdout:
        event = json.loads(line)
        assert event["event"] != "error", event
        if event["event"] == "ready":
            return running
    raise AssertionError("it was never ready")


def ask(port: int) -> str:
    """An answer of the model, by the interface that people use."""
    body = {"model": "glm", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
    answer = urllib3.request(
        "POST", f"http://127.0.0.1:{port}/v1/chat/completions", json=body, timeout=120
    )
    assert answer.status == 200, answer.data
    found: dict[str, Any] = answer.json()
    assert found["usage"]["completion_tokens"] == 8
    message = found["choices"][0]["message"]
    return str(message.get("content") or message.get("reasoning_content") or message)


def test_a_service_on_the_cpu_engine_answers_and_ends_cleanly(demo_output: Path) -> None:
    port = free_port()
    running = started(demo_output, port)
    engines = engines_below(running.pid)
    assert len(engines) >= 4
    assert ask(port)
    running.send_signal(signal.SIGTERM)
    stdout, _ = running.communicate(timeout=120)
    assert running.returncode == 0
    assert json.loads(stdout.splitlines()[-1])["event"] == "ended"
    assert are_gone(engines)
    assert is_free(port)


def test_a_kill_of_serve_leaves_no_engine_and_no_port(demo_output: Path) -> None:
    port = free_port()
    running = started(demo_output, port)
    engines = engines_below(running.pid)
    running.kill()
    running.wait()
    assert soon(lambda: are_gone(engines), 40)
    assert is_free(port)


def test_an_engine_that_is_killed_ends_serve_with_the_end_of_its_log(demo_output: Path) -> None:
    port = free_port()
    running = started(demo_output, port)
    engines = engines_below(running.pid)
    (worker, *_) = [pid for pid in engines if b"Worker" in command_line(pid)]
    os.kill(worker, signal.SIGKILL)
    _, stderr = running.communicate(timeout=240)
    assert running.returncode == 1
    assert "the engine ended by itself" in stderr
    assert "    | " in stderr
    assert soon(lambda: are_gone(engines), 40)
    assert is_free(port)
    assert descendants(running.pid) == []


def test_the_command_of_the_cpu_engine_is_printed_with_its_environment(demo_output: Path) -> None:
    ran = run_glmquant("serve", demo_output, "--machine", "cpu")
    assert ran.exit_code == 0
    assert "export VLLM_PLUGINS=glmquant_standins" in ran.stdout
    assert f"/bin/vllm serve {demo_output} \\" in ran.stdout
