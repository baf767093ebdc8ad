"""The genuine vLLM with vllm-ascend's quantization code, on the CPU, with GLM-4-nano."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glmquant.observer import Observer
from glmquant.runtime.environment import find_engine
from glmquant.runtime.guard import descendants
from glmquant.runtime.serving import Backend, cpu_backend, serving
from tests.conftest import run_glmquant
from tests.defects import MTP, Apply, describe_as, edit, swap_halves, undescribe
from tests.modelslim import DYNAMIC
from tests.test_server import is_free, soon

HOME = os.environ.get("GLMQUANT_TEST_ENGINE_HOME")
ROOT = Path(__file__).resolve().parent.parent

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not HOME, reason="`tools/check engine` makes the CPU engine that this asks"),
]


@pytest.fixture(autouse=True, scope="module")
def _home() -> Iterator[None]:
    os.environ["GLMQUANT_ENGINE_HOME"] = str(HOME)
    yield
    del os.environ["GLMQUANT_ENGINE_HOME"]


@pytest.fixture(scope="module")
def backend() -> Backend:
    engine = find_engine()
    assert engine is not None
    return cpu_backend(engine)


def verified(folder: Path, *words: object) -> dict[str, Any]:
    """The report of a verification in the CPU engine."""
    ran = run_glmquant("verify", folder, "--engine", "cpu", "--json", *words)
    found: dict[str, Any] = ran.events[-1]
    assert found["event"] == "verify", found
    assert ran.exit_code == (1 if found["verdict"] == "findings" else 0)
    return found


def codes(found: dict[str, Any], *levels: str) -> set[str]:
    """The codes of the findings, those of some levels alone where levels are named."""
    return {each["code"] for each in found["findings"] if not levels or each["level"] in levels}


def damaged(demo_output: Path, folder: Path, apply: Apply) -> Path:
    shutil.copytree(demo_output, folder)
    apply(folder)
    return folder


def engines_below(pid: int) -> list[int]:
    """The guards below a process and all that they guard, which vLLM names anew."""
    below = descendants(pid)
    guards = [each for each in below if b"guard.py" in command_line(each)]
    return [each for one in guards for each in (one, *descendants(one))]


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def are_gone(pids: list[int]) -> bool:
    return not any(command_line(pid) for pid in pids)


def test_w8a8_with_mtp_is_right_in_the_engine_and_beside_its_source(
    demo_source: Path, demo_output: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    found = verified(demo_output, "--source", demo_source, "--html", page)
    assert found["verdict"] == "clean"
    assert found["levels"] == ["files", "values", "source", "engine"]
    assert found["next"] == f"glmquant verify {demo_output} --engine vllm-ascend"
    seen = found["behaviour"]
    assert seen["engine"] == "cpu"
    assert (seen["prompts"], seen["tokens"]) == (16, 768)
    assert seen["partings"] == []  # with drafting as without it, on every prompt
    rate, source_rate = (seen[key]["rate"] for key in ("acceptance", "source_acceptance"))
    assert seen["acceptance"]["draft_tokens"] > 400
    assert rate > 0.5
    assert abs(rate - source_rate) <= 0.05
    divergence, floor = seen["divergence"], seen["noise_floor"]
    assert divergence["tokens"] == floor["tokens"] == 16 * 255
    assert 0 < divergence["kl_mean"] < 1e-3
    assert divergence["kl_median"] < 3e-4
    assert divergence["same_top"] > 0.975
    assert 0.99 < divergence["perplexity_ratio"] < 1.01
    assert 0 < floor["kl_mean"] < 1e-3
    text = page.read_text()
    assert "What it does when it runs" in text
    assert "with MTP = without on 16 of 16" in text
    assert engines_below(os.getpid()) == []


def test_swapped_halves_of_eh_proj_are_seen_by_the_engine_alone(
    demo_output: Path, tmp_path: Path
) -> None:
    found = verified(damaged(demo_output, tmp_path / "GLM", edit(swap_halves)))
    assert codes(found) == {"E3"}
    assert found["behaviour"]["acceptance"]["rate"] < 0.1
    assert found["behaviour"]["partings"] == []
    assert found["next"].startswith("glmquant verify ")


def test_mtp_described_as_quantized_is_seen_by_files_and_by_the_engine(
    demo_output: Path, tmp_path: Path
) -> None:
    found = verified(damaged(demo_output, tmp_path / "GLM", describe_as(MTP, DYNAMIC)))
    assert "D2" in codes(found, "files")
    assert codes(found, "engine") & {"E1", "E3"}


def test_an_engine_that_does_not_load_it_is_a_finding_with_the_engines_own_words(
    demo_output: Path, tmp_path: Path
) -> None:
    folder = damaged(demo_output, tmp_path / "GLM", undescribe(MTP))
    ran = run_glmquant("verify", folder, "--engine", "cpu")
    assert ran.exit_code == 1
    assert "error E1: the engine ended before it answered" in ran.stdout
    assert "quant_model_description.json has no entry" in ran.stdout
    assert "    | " in ran.stdout
    log = re.search(r"(/\S+engine-\S+\.log)", ran.stdout)
    assert log
    Path(log[1]).unlink()
    assert engines_below(os.getpid()) == []


def start(demo_output: Path, *words: object) -> subprocess.Popen[str]:
    """A verification in a process of its own, once it has begun to ask."""
    command = [sys.executable, "-m", "glmquant", "verify", str(demo_output), "--engine", "cpu"]
    running = subprocess.Popen(
        [*command, *map(str, words), "--json"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    for line in running.stdout:
        if json.loads(line).get("doing", "").startswith("asking the engine"):
            return running
    raise AssertionError("it never asked")


def test_a_kill_of_the_command_leaves_no_process_and_no_port(demo_output: Path) -> None:
    running = start(demo_output)
    engines = engines_below(running.pid)
    assert len(engines) >= 4  # the guard, the API server, the engine's core and its worker
    (words, *_) = [line for line in map(command_line, engines) if b"--port\0" in line]
    port = int(words.split(b"--port\0")[1].split(b"\0")[0])
    assert not is_free(port)
    running.kill()
    running.wait()
    assert soon(lambda: are_gone(engines), 40)
    assert is_free(port)


def test_an_engine_that_is_killed_is_a_finding(demo_output: Path) -> None:
    running = start(demo_output)
    engines = engines_below(running.pid)
    (worker, *_) = [pid for pid in engines if b"Worker" in command_line(pid)]
    os.kill(worker, signal.SIGKILL)
    stdout, _ = running.communicate(timeout=240)
    report = json.loads(stdout.splitlines()[-1])
    assert running.returncode == 1
    assert codes(report) == {"E1"}
    assert report["engine_log"]
    assert are_gone(engines)


def test_a_server_that_hangs_is_given_up(demo_output: Path, backend: Backend) -> None:
    with serving(
        backend,
        demo_output,
        what="a test",
        is_quantized=True,
        max_model_len=256,
        observer=Observer(),
        speculative_tokens=3,
    ) as server:
        ran = run_glmquant("verify", demo_output, "--url", server.client.url, "--json")
        seen = ran.events[-1]["behaviour"]
        assert ran.exit_code == 0
        assert seen["num_speculative_tokens"] == 3
        rates = seen["acceptance"]["rate_by_position"]
        assert len(rates) == 3
        assert rates[0] > rates[1] > rates[2] > 0.1
        guarded, *stopped = engines_below(os.getpid())
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(0.2)
        hung = run_glmquant("verify", demo_output, "--url", server.client.url, "--timeout", "3")
        assert hung.exit_code == 2
        assert "the engine did not answer within 3 s" in hung.stderr
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    assert are_gone([guarded, *stopped])
