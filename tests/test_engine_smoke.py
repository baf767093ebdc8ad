"""``glmquant smoke`` on the genuine vLLM with GLM-4-nano, served rightly and wrongly."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from glmquant.observer import Observer
from glmquant.runtime.environment import find_engine
from glmquant.runtime.launch import ServeRequest, serve_command
from glmquant.runtime.server import free_port, running
from glmquant.runtime.serving import Backend, cpu_backend
from glmquant.smoke import requests
from tests.conftest import run_glmquant
from tests.defects import edit, swap_halves
from tests.test_engine import HOME

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not HOME, reason="`tools/check engine` makes the CPU engine that this asks"),
]

KEY = "secret-7731"
PARSERS = (
    "--reasoning-parser",
    "glm45",
    "--enable-auto-tool-choice",
    "--tool-call-parser",
    "glm45",
)
LOST_TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    os.environ["GLMQUANT_ENGINE_HOME"] = str(HOME)
    engine = find_engine()
    assert engine is not None
    yield cpu_backend(engine)
    del os.environ["GLMQUANT_ENGINE_HOME"]


@contextmanager
def served(backend: Backend, folder: Path, more: Sequence[str]) -> Iterator[str]:
    """The address of a server with MTP drafting, a short context and a key."""
    request = ServeRequest(
        folder=folder,
        port=free_port(),
        quantization="ascend",
        speculative_tokens=1,
        max_model_len=512,
        max_num_seqs=4,
        dtype="bfloat16",
        eager=True,
    )
    environment = {key: each for key, each in os.environ.items() if key not in backend.dropped}
    url = f"http://127.0.0.1:{request.port}"
    with running(
        [*serve_command(request, backend.program), *more],
        environment | backend.environment | {"VLLM_API_KEY": KEY},
        url,
        what="GLM-4-nano",
        limit_seconds=backend.start_seconds,
        answer_seconds=120,
        observer=Observer(),
        api_key=KEY,
    ):
        yield url


def smoked(url: str, monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, Any]:
    """The report; requests by their names."""
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    ran = run_glmquant("smoke", url, "--json", *words)
    found: dict[str, Any] = ran.events[-1]
    assert found["event"] == "smoke", found
    assert ran.exit_code == (1 if found["verdict"] == "failed" else 0)
    assert KEY not in ran.stdout + ran.stderr
    return found | {"requests": {each["name"]: each for each in found["requests"]}}


def failures(found: dict[str, Any], name: str) -> set[str]:
    return {
        each["sign"] for each in found["requests"][name]["findings"] if each["verdict"] == "failed"
    }


@pytest.fixture(scope="module")
def right(backend: Backend, demo_output: Path) -> Iterator[str]:
    with served(backend, demo_output, PARSERS) as url:
        yield url


@pytest.fixture(scope="module")
def wrong(
    backend: Backend, demo_output: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Without tool calls, another model's reasoning parser, no template, a broken MTP layer."""
    folder = tmp_path_factory.mktemp("wrong") / "GLM"
    shutil.copytree(demo_output, folder)
    edit(swap_halves)(folder)
    template = folder.with_name("lost.jinja")
    template.write_text(LOST_TEMPLATE)
    more = ("--reasoning-parser", "deepseek_r1", "--chat-template", str(template))
    with served(backend, folder, more) as url:
        yield url


def test_a_small_model_is_warned_of_and_its_server_is_right(
    right: str, demo_output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = smoked(right, monkeypatch)
    assert {name for name in requests.NAMES if failures(found, name)} == set()
    assert found["verdict"] == "warning"
    assert found["root"] == str(demo_output)
    verdicts = {name: each["verdict"] for name, each in found["requests"].items()}
    assert verdicts["server"] == verdicts["again"] == verdicts["template"] == "ok"
    assert "not judged" not in verdicts.values()
    (no_call,) = [
        each for each in found["requests"]["tools"]["findings"] if each["sign"] == "no_call"
    ]
    assert "the model's own choice" in no_call["cause"]


def test_a_wrong_server_is_told_by_what_is_wrong_with_it(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = smoked(wrong, monkeypatch)
    assert found["verdict"] == "failed"
    assert failures(found, "template") == {"no_turns", "no_switch", "tools_unseen"}
    assert failures(found, "tools") == {"no_tools"}
    assert failures(found, "thinking-off") == {"all_thoughts"}
    assert failures(found, "drafts") == {"rejected"}
    assert failures(found, "again") == set()
    (rejected,) = found["requests"]["drafts"]["findings"]
    assert "a broken MTP layer" in rejected["cause"]
    assert rejected["next"] == f"glmquant verify {found['root']} --source SOURCE"


def test_without_the_key_the_server_is_not_asked_further(
    right: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    ran = run_glmquant("smoke", right, "--json")
    assert ran.exit_code == 1
    (server, *others) = ran.events[-1]["requests"]
    assert [each["sign"] for each in server["findings"]] == ["key"]
    assert {each["verdict"] for each in others} == {"not judged"}
