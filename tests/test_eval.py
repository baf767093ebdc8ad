"""``glmquant eval`` with the genuine suites, against answers that are written down."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from glmquant.suites.environment import find_own
from glmquant.suites.known import SUITES
from tests.conftest import Ran
from tests.scripted import Reply, Scripted

Run = Callable[..., Ran]
HOME = os.environ.get("GLMQUANT_TEST_SUITES_HOME")

pytestmark = [
    pytest.mark.suites,
    pytest.mark.skipif(not HOME, reason="`tools/check --all` makes the suites that this asks"),
]

ITEMS = [
    {"question": "How many apples?", "answer": "9 * 2 = 18\n#### 18"},
    {"question": "How many beans?", "answer": "#### 7"},
    {"question": "How many cats?", "answer": "#### 5"},
    {"question": "How many dogs?", "answer": "#### 4"},
]
REPLIES = {
    "apples": Reply("So it is 18. The answer is 18"),
    "beans": Reply("The answer is 7", reasoning="or 8?"),
    "cats": Reply("The answer is 6"),
    "dogs": Reply("It may be 4, or", finish_reason="length"),
}


@pytest.mark.parametrize("name", ["aisbench", "lm-eval"])
def test_one_command_counts_keeps_and_shows(
    name: str,
    demo_output: Path,
    tmp_path: Path,
    glmquant: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GLMQUANT_SUITES_HOME", str(HOME))
    monkeypatch.setenv("VLLM_API_KEY", "sk-secret")
    if find_own(SUITES[name]) is None:
        pytest.skip(f"`tools/check` makes {name} in a step of its own")
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    folder = tmp_path / "GLM"
    folder.mkdir()
    for path in demo_output.iterdir():
        if path.is_file():
            (folder / path.name).hardlink_to(path)
    with Scripted(REPLIES, counters=[(10, 5), (30, 20)]).running() as server:
        words = ["eval", server.url, "--suite", name, "--dataset", data, "--checkpoint", folder]
        ran = glmquant(*words, "--concurrency", 2, "--machine", "a desk")
    assert ran.exit_code == 0, ran.stderr
    assert set(server.keys) == {"Bearer sk-secret"}
    rows = {
        line.split("  ")[1]: line.split() for line in ran.stdout.splitlines() if line[:2] == "  "
    }
    # Three by hand; the fourth was cut behind a number that is the right one.
    assert "75" in rows["mine accuracy"] and "4" in rows["mine accuracy"]
    assert "75" in rows["MTP acceptance rate"]
    assert "note: 1" in ran.stdout and "cut" in ran.stdout
    (kept,) = (folder / ".glmquant/results").glob("*.json")
    run = json.loads(kept.read_text())
    assert [item["correct"] for item in run["items"]] == [True, True, False, True]
    assert [item["is_cut"] for item in run["items"]] == [False, False, False, True]
    assert run["machine"] == "a desk"
    assert run["settings"]["temperature"] == {"aisbench": 0.01, "lm-eval": 0}[name]
    assert run["settings"]["api"] == "chat"
    for path in (folder / ".glmquant").rglob("*"):
        assert path.is_dir() or b"sk-secret" not in path.read_bytes()
    page = glmquant("card", folder, "--print")
    assert "| mine | accuracy | 75 %, " in page.stdout
    assert "| MTP | acceptance rate | 75 %, " in page.stdout
    assert glmquant("compare", kept, kept).exit_code == 0


def test_answers_longer_than_the_server_takes_are_cut_and_said(
    tmp_path: Path, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLMQUANT_SUITES_HOME", str(HOME))
    monkeypatch.chdir(tmp_path)
    if find_own(SUITES["lm-eval"]) is None:
        pytest.skip("`tools/check lmeval` makes it")
    Path("mine.jsonl").write_text(json.dumps(ITEMS[0]) + "\n")
    with Scripted(REPLIES, max_model_len=1000).running() as server:
        words = ["eval", server.url, "--suite", "lm-eval", "--dataset", "mine.jsonl"]
        ran = glmquant(*words, "--max-out-len", 600)
        assert ran.exit_code == 2
        assert "500 at most" in ran.stderr
        assert server.bodies == []
        ran = glmquant(*words)
    assert ran.exit_code == 0, ran.stderr
    assert "answers are cut at 500 tokens" in ran.stdout
    assert [body["max_tokens"] for body in server.bodies] == [500]


def test_a_known_data_set_stands_beside_what_others_have_published(
    tmp_path: Path, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLMQUANT_SUITES_HOME", str(HOME))
    monkeypatch.chdir(tmp_path)
    if find_own(SUITES["aisbench"]) is None:
        pytest.skip("`tools/check aisbench` makes it")
    folder = tmp_path / "ais_bench/datasets/gsm8k"
    folder.mkdir(parents=True)
    (folder / "test.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    monkeypatch.setenv("AIS_BENCH_DATASETS_CACHE", str(tmp_path))
    with Scripted(REPLIES).running() as server:
        ran = glmquant("eval", server.url, "--dataset", "gsm8k")
    assert ran.exit_code == 0, ran.stderr
    rows = ran.stdout.splitlines()
    place = next(place for place, row in enumerate(rows) if row.startswith("  gsm8k accuracy"))
    npu, gpu = rows[place + 1], rows[place + 2]
    assert "GLM-4.6-W8A8, one Atlas 800 A3" in npu and "96.13 %" in npu and "1,319" in npu
    assert "GPU" in gpu and "96.06 %" in gpu
    # Four items of ours are no sample of the 1,319.
    assert "of other items" in npu
