"""What bench and eval say before a suite runs, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from glmquant.suites.datafiles import read_data
from tests.builders import Recorded
from tests.conftest import Ran, folder_bytes
from tests.scripted import Scripted

Run = Callable[..., Ran]
URL = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_suites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an environment of ours nor a command on PATH."""
    monkeypatch.setenv("GLMQUANT_SUITES_HOME", str(tmp_path / "suites"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["eval", "127.0.0.1:8000"], "no address of a server"),
        (["eval", "ftp://host"], "no address of a server"),
        (["eval", "http://host:port"], "no address of a server"),
        (["eval", "http://me:secret@host:80"], "holds a user or a password"),
        (["eval", URL, "--dataset", ""], "no such data set"),
        (["eval", URL, "--set", "temperature"], "NAME=VALUE"),
        (["eval", URL, "--set", "a=1", "--set", "a=2"], "each option once"),
        (["eval", URL, "--suite", "vllm"], "Invalid value"),
        (["eval", URL, "--limit", "0"], "Invalid value"),
        (["eval", URL, "--python", "/nowhere/python"], "names no interpreter"),
        (["eval", URL, "--checkpoint", "nowhere"], "no such folder"),
        (["bench", URL, "--checkpoint", "."], "a folder without it"),
        (["bench", URL, "--mode", "latency"], "--mode latency wants a folder"),
        (["bench", "GLM", "--mode", "serve"], "--mode serve wants a server"),
        (["bench", "GLM", "--checkpoint", "GLM"], "--checkpoint is DIR itself"),
        (["bench", "GLM", "--suite", "aisbench"], "does not measure that"),
        (["bench", "nowhere"], "no such folder"),
    ],
)
def test_wrong_usage_ends_with_2_and_leaves_nothing(
    words: list[str],
    found: str,
    nano: Recorded,
    tmp_path: Path,
    glmquant: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = folder_bytes(tmp_path)
    ran = glmquant(*words)
    assert ran.exit_code == 2, ran.stderr
    assert found in ran.stderr
    assert folder_bytes(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "how"),
    [
        (["eval", URL], "glmquant suites install aisbench"),
        (["eval", URL, "--suite", "lm-eval"], "glmquant suites install lm-eval"),
        (["bench", URL], "glmquant engine install"),
    ],
)
def test_a_suite_that_is_not_installed_is_said_and_how_to_get_it(
    words: list[str], how: str, tmp_path: Path, glmquant: Run
) -> None:
    ran = glmquant(*words)
    assert ran.exit_code == 1
    assert "is not installed" in ran.stderr and how in ran.stderr
    dry = glmquant(*words, "--dry-run")
    assert dry.exit_code == 0
    assert how in dry.stdout and "nothing was run" in dry.stdout


def test_a_file_with_as_many_items_as_a_known_data_set_is_taken_for_it(tmp_path: Path) -> None:
    item = json.dumps({"question": "How many?", "answer": "#### 5"}) + "\n"
    whole, part = tmp_path / "test.jsonl", tmp_path / "part.jsonl"
    whole.write_text(item * 1319)
    part.write_text(item * 1318)
    assert read_data(whole, whole.name).dataset == "gsm8k"
    assert read_data(part, part.name).dataset == "part"


def test_data_that_cannot_be_read_are_said_before_anybody_is_asked(
    tmp_path: Path, glmquant: Run
) -> None:
    (tmp_path / "x.jsonl").write_text('{"prompt": "How many?"}\n')
    with Scripted({}).running() as server:
        for name, code in (("x.jsonl", 1), ("nowhere.jsonl", 2)):
            ran = glmquant("eval", server.url, "--dataset", tmp_path / name)
            assert ran.exit_code == code
            assert name in ran.stderr
        assert server.bodies == []
