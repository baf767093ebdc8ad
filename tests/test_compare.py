"""Two runs side by side."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glmquant.errors import MeasureError
from glmquant.results import Result, read_results
from glmquant.runs import Item, Run, find_runs, read_run, write_run
from glmquant.suites.compare import compare_runs, pair_runs
from tests.conftest import Ran
from tests.runs import a_run

Runner = Callable[..., Ran]


def latency(date: str, seconds: tuple[float, ...]) -> Run:
    mean = Result(
        dataset="random", metric="TTFT mean", value=sum(seconds) / len(seconds), unit="ms"
    )
    p99 = Result(dataset="random", metric="TTFT p99", value=max(seconds), unit="ms")
    rate = Result(dataset="random", metric="output throughput", value=9.0, unit="tok/s")
    return a_run(
        0,
        1,
        mode="serve",
        dataset="random",
        suite="vllm",
        date=date,
        items=(),
        results=(mean, p99, rate),
        samples={"TTFT": seconds},
    )


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = a_run(9, 10, settings={"concurrency": 4, "limit": None})
    path = write_run(tmp_path, run)
    assert path.name == "20260822T101500Z-aisbench-gsm8k.json"
    assert read_run(path) == run
    assert find_runs(tmp_path) == (path,)


def test_what_a_run_measured_is_a_result_of_the_checkpoint(tmp_path: Path) -> None:
    write_run(tmp_path, a_run(9, 10, machine="Atlas 800 A3"))
    write_run(tmp_path, a_run(8, 10, machine="Atlas 800 A3", date="2026-08-23T00:00:00Z"))
    results = read_results(tmp_path)
    assert results.notes == ()
    assert [result.value for result in results.found] == [90, 80]
    (newest,) = results.shown
    assert newest.value == 80
    assert newest.how == ("aisbench 3.1, 10 items, vLLM 0.23.0, Atlas 800 A3, 2026-08-23T00:00:00Z")


def test_one_question_more_is_no_difference(tmp_path: Path, glmquant: Runner) -> None:
    a = write_run(tmp_path / "A", a_run(1267, 1319))
    b = write_run(tmp_path / "B", a_run(1268, 1319, date="2026-08-23T00:00:00Z"))
    ran = glmquant("compare", a, b)
    assert ran.exit_code == 0
    (row,) = [line for line in ran.stdout.splitlines() if line.startswith("  gsm8k accuracy")]
    assert "no difference shown" in row
    assert "1,319" in row and "1.000" in row


def test_the_same_questions_are_compared_one_by_one(tmp_path: Path, glmquant: Runner) -> None:
    # Of the same 1,000 questions B loses nine: as plain counts that is nothing.
    write_run(tmp_path / "A", a_run(950, 1000))
    write_run(tmp_path / "B", a_run(941, 1000))
    (found,) = glmquant("compare", tmp_path / "A", tmp_path / "B", "--json").events
    (row,) = found["rows"]
    assert row["test"] == "McNemar's exact test"
    assert row["p_value"] == pytest.approx(2 / 2**9)
    assert row["verdict"] == "B is worse"
    assert row["difference"] == pytest.approx(-0.9)
    assert row["items"] == [1000]


def test_other_questions_are_compared_by_their_counts() -> None:
    others = tuple(Item(name=f"other-{place}", correct=place < 941) for place in range(1000))
    (row,) = compare_runs(a_run(950, 1000), a_run(941, 1000, items=others)).rows
    assert row.difference is not None
    assert row.difference.test == "Fisher's exact test"
    assert row.verdict == "no difference shown"


def test_questions_that_only_one_has_are_left_out_and_said() -> None:
    found = compare_runs(a_run(9, 10), a_run(9, 20))
    (row,) = found.rows
    assert row.items == (10,)
    assert "accuracy: B - A is of the 10 items that both have, of 10 and 20" in found.notes


def test_requests_are_compared_by_their_times_and_single_figures_are_not_judged() -> None:
    slow = latency("2026-01-01T00:00:00Z", tuple(100.0 + place for place in range(20)))
    fast = latency("2026-01-02T00:00:00Z", tuple(50.0 + place for place in range(20)))
    rows = {row.metric: row for row in compare_runs(slow, fast).rows}
    assert rows["TTFT mean"].verdict == "B is better"
    assert rows["TTFT mean"].items == (20, 20)
    assert rows["TTFT p99"].verdict == "not judged: one figure a run"
    assert rows["output throughput"].verdict == "not judged: one figure a run"


def test_one_request_says_nothing() -> None:
    one = latency("2026-01-01T00:00:00Z", (100.0,))
    rows = {row.metric: row.verdict for row in compare_runs(one, one).rows}
    assert rows["TTFT mean"] == "not judged: one request says nothing"


def test_what_else_differs_is_said() -> None:
    a = a_run(9, 10, settings={"max_out_len": 512, "url": "http://a"})
    b = a_run(9, 10, settings={"max_out_len": 32768, "url": "http://b"}, engine="vLLM 0.30.0")
    cut = b.items[0].model_copy(update={"is_cut": True})
    b = b.model_copy(update={"items": (cut, *b.items[1:])})
    assert compare_runs(a, b).notes == (
        "engine: vLLM 0.23.0 and vLLM 0.30.0",
        "max_out_len: 512 and 32768",
        "B has 1 answers that were cut: they say little of the model",
    )


def test_runs_with_nothing_in_common_are_an_error(tmp_path: Path, glmquant: Runner) -> None:
    write_run(tmp_path / "A", a_run(9, 10))
    write_run(tmp_path / "B", a_run(9, 10, dataset="math500"))
    ran = glmquant("compare", tmp_path / "A", tmp_path / "B")
    assert ran.exit_code == 1
    assert "aisbench accuracy gsm8k; aisbench accuracy math500" in ran.stderr
    with pytest.raises(MeasureError, match="no figure in common"):
        compare_runs(a_run(9, 10), a_run(9, 10, results=()))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        ("[]", "it: "),
        ('{"dataset": "gsm8k", "metric": "accuracy", "value": 95}', "suite: "),
        ("[" * 200_000, "no JSON"),
    ],
)
def test_a_file_that_holds_no_run_is_an_error(
    text: str, found: str, tmp_path: Path, glmquant: Runner
) -> None:
    good = write_run(tmp_path, a_run(9, 10))
    bad = tmp_path / "bad.json"
    bad.write_text(text)
    ran = glmquant("compare", good, bad)
    assert ran.exit_code == 1
    assert "bad.json" in ran.stderr and found in ran.stderr


def test_a_value_that_is_no_number_is_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path, a_run(9, 10))
    told = json.loads(path.read_text())
    told["results"][0]["value"] = "NaN"
    path.write_text(json.dumps(told))
    with pytest.raises(MeasureError):
        read_run(path)


def test_a_name_that_is_nowhere_is_wrong_usage(tmp_path: Path, glmquant: Runner) -> None:
    assert glmquant("compare", tmp_path, tmp_path / "nowhere").exit_code == 2
    ran = glmquant("compare", tmp_path, tmp_path)
    assert ran.exit_code == 1
    assert "nothing that both have measured" in ran.stderr


def test_a_trial_of_a_few_items_takes_no_ones_place(tmp_path: Path) -> None:
    full = a_run(1268, 1319)
    write_run(tmp_path, full)
    write_run(tmp_path, a_run(3, 5, date="2026-08-23T00:00:00Z"))
    assert [result.items for result in read_results(tmp_path).shown] == [1319]
    ((one, other),), notes = pair_runs(tmp_path, tmp_path)
    assert one == other == full and notes == ()
    assert compare_runs(one, other).notes == ("A and B are the same run",)


def test_a_torn_run_is_left_out_and_the_others_are_compared(
    tmp_path: Path, glmquant: Runner
) -> None:
    write_run(tmp_path, a_run(9, 10))
    results = tmp_path / ".glmquant/results"
    (results / "torn.json").write_text('{"format":"glmquant-run-1",')
    os.mkfifo(results / "pipe.json")
    ran = glmquant("compare", tmp_path, tmp_path)
    assert ran.exit_code == 0
    assert "note: torn.json is left out: no JSON" in ran.stderr


def test_questions_whose_answer_was_changed_are_no_pair() -> None:
    items = tuple(
        Item(name=f"question-{place}", correct=place < 9, expected=f"#### {place:,}")
        for place in range(10)
    )
    a = a_run(9, 10, items=items)
    changed = items[0].model_copy(update={"expected": "77"})
    written_otherwise = items[1].model_copy(update={"expected": "1"})
    found = compare_runs(a, a_run(9, 10, items=(changed, written_otherwise, *items[2:])))
    (row,) = found.rows
    assert row.items == (9,)
    assert (
        "1 questions have another answer in B's data than in A's, and are left out" in found.notes
    )


def test_failed_requests_are_compared_by_their_counts_and_gaps_not_at_all() -> None:
    def run(failed: int, date: str) -> Run:
        load = latency(date, (1.0, 2.0, 3.0))
        more = (
            Result(dataset="random", metric="failed requests", value=failed, items=64),
            Result(dataset="random", metric="ITL mean", value=9.0, unit="ms"),
        )
        return load.model_copy(
            update={"results": (*load.results, *more), "samples": {"ITL": (1.0,) * 200_000}}
        )

    a, b = run(0, "2026-01-01T00:00:00Z"), run(60, "2026-01-02T00:00:00Z")
    rows = {row.metric: row for row in compare_runs(a, b).rows}
    assert rows["failed requests"].verdict == "B is worse"
    assert rows["ITL mean"].verdict == "not judged: gaps within an answer go together"


def test_acceptance_on_other_prompts_is_not_compared() -> None:
    drafts = Result(dataset="MTP", metric="acceptance rate", value=50, unit="%", items=900)
    a = a_run(9, 10, results=(drafts,))
    b = a_run(9, 10, results=(drafts,), dataset="math500")
    (row,) = compare_runs(a, b).rows
    assert row.verdict == "not judged: of other prompts"


@pytest.mark.parametrize(
    "change",
    [
        {"items": -5},
        {"items": 10**400},
        {"value": 1e308},
        {"interval": [3, 1]},
        {"value": None},
    ],
)
def test_figures_that_can_be_none_are_refused(
    change: dict[str, Any], tmp_path: Path, glmquant: Runner
) -> None:
    path = write_run(tmp_path, a_run(9, 10))
    told = json.loads(path.read_text())
    told["results"][0].update(change)
    path.write_text(json.dumps(told))
    ran = glmquant("compare", path, path)
    assert ran.exit_code == 1
    assert "a file holds no run" in ran.stderr
    (note,) = read_results(tmp_path).notes
    assert "left out" in note


def test_texts_that_no_file_can_hold_are_kept_as_their_numbers(tmp_path: Path) -> None:
    cut = Item(name="a", correct=True, answer="\ud800")
    run = a_run(1, 1, model="b\udcff", machine="\ud800", items=(cut,))
    found = read_run(write_run(tmp_path, run))
    assert (found.model, found.machine, found.items[0].answer) == ("b\\udcff", "\\ud800", "\\ud800")


def test_what_a_file_says_reaches_a_terminal_as_text(tmp_path: Path, glmquant: Runner) -> None:
    path = write_run(tmp_path, a_run(9, 10))
    told = json.loads(path.read_text())
    told["\x1b[31m"] = 1
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(told))
    ran = glmquant("compare", path, bad)
    assert ran.exit_code == 1
    assert "\x1b" not in ran.stderr


def test_a_page_shows_a_load_with_its_lengths_and_no_tails(tmp_path: Path) -> None:
    settings = {"input_len": 128, "output_len": 64, "concurrency": 4}
    run = latency("2026-01-01T00:00:00Z", (1.0, 2.0))
    drafts = Result(dataset="MTP", metric="acceptance rate", value=50, unit="%", items=900)
    write_run(
        tmp_path,
        run.model_copy(update={"settings": settings, "results": (*run.results, drafts)}),
    )
    shown = {each.metric: each for each in read_results(tmp_path).shown}
    assert set(shown) == {"TTFT mean", "output throughput", "acceptance rate"}
    assert shown["TTFT mean"].dataset == "random, serve, 128 + 64 tokens, 4 at once"
    assert shown["acceptance rate"].dataset == "MTP"
    assert shown["acceptance rate"].suite.startswith("vllm 3.1 on random, serve")
