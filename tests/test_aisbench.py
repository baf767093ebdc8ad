"""AISBench: what is written for it, what it leaves, and the genuine one against known answers."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glmquant.demo import unpack_model
from glmquant.errors import MeasureError, UsageError
from glmquant.results import Result
from glmquant.runs import Run
from glmquant.suites.aisbench import AISBENCH, DATA_VARIABLE, KEY_VARIABLE
from glmquant.suites.aisbench_output import DATASET, MODEL, OUTPUT
from glmquant.suites.answers import is_number, last_letter, last_number, without_thinking
from glmquant.suites.compare import compare_runs
from glmquant.suites.environment import find_own
from glmquant.suites.items import item_name
from glmquant.suites.task import Installed, Measured, Task
from tests.scripted import Reply, Scripted

INSTALLED = Installed(Path("/usr/bin/python3.11"), "3.1.20260630")
SECRET = "sk-never-on-disk"
QUESTIONS = {
    "Apples: how many?": "5 + 3 #### 8",
    "Pears: how many?": "#### 9",
    "House: what price?": "#### 18,000",
    "Road: how far?": "#### 7",
    "Sheep: how many?": "#### 42",
    "Broken: how many?": "#### 1",
}
REPLIES = {
    "Apples": Reply("5 and 3 are\nanswer:8"),
    "Pears": Reply("answer:10"),
    "House": Reply("It costs $18,000."),
    "Road": Reply(reasoning="so far 7", finish_reason="length"),
    "Sheep": Reply("<think>1 or 2</think>answer:42"),
    "Broken": Reply(failures=[500] * 9),
}


def gsm8k(folder: Path, questions: Mapping[str, str] = QUESTIONS) -> Path:
    lines = [{"question": question, "answer": answer} for question, answer in questions.items()]
    return write_lines(folder / "shop.jsonl", lines)


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def task_of(data: Path | None, **changes: Any) -> Task:
    plain = Task("accuracy", "shop", data=data, url="http://127.0.0.1:8000", model="glm")
    return replace(plain, api_key=SECRET, **changes)


def config_of(work: Path) -> dict[str, Any]:
    """What the configuration says, but for what it takes over from AISBench."""
    text = (work / "config.py").read_text()
    own = [line for line in text.splitlines() if line.startswith(("models", "datasets["))]
    scope: dict[str, Any] = {"datasets": [{}]}
    exec(compile("\n".join(own), "config.py", "exec"), scope)
    compile(text, "config.py", "exec")
    return {"model": scope["models"][0], "data": scope["datasets"][0]}


def test_the_configuration_leaves_room_to_think_and_names_no_key(tmp_path: Path) -> None:
    work = tmp_path / "a run"
    task = task_of(gsm8k(tmp_path), concurrency=24, settings={"top_p": "0.95", "thinking": "off"})
    call = AISBENCH.prepare(task, INSTALLED, work)
    config = config_of(work)
    model = config["model"]
    assert model["max_out_len"] == 32_768
    assert model["batch_size"] == 24
    assert model["url"] == "http://127.0.0.1:8000/"
    assert (model["model"], model["stream"]) == ("glm", False)
    assert model["generation_kwargs"] == {
        "temperature": 0.01,
        "seed": 1024,
        "ignore_eos": False,
        "top_p": 0.95,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert model["pred_postprocessor"]["type"].endswith(".extract_non_reasoning_content")
    assert config["data"] == {"abbr": "items", "path": str(work / "data")}
    assert "infer" not in (work / "config.py").read_text().split("import")[-1]
    assert call.words[0] == "/usr/bin/python3.11"
    assert call.words[call.words.index("--mode") + 1] == "all"
    assert "--dump-eval-details" in call.words
    assert call.secrets == {KEY_VARIABLE: SECRET}
    assert call.env["PYTHONPATH"] == str(work)
    assert "127.0.0.1" in str(call.env["no_proxy"])
    told = [*call.words, *map(str, call.env.values())]
    files = [path.read_text() for path in work.rglob("*") if path.is_file()]
    assert not [text for text in (*told, *files) if SECRET in text]
    written = [json.loads(line) for line in (work / "data/test.jsonl").read_text().splitlines()]
    assert [each["question"] for each in written] == list(QUESTIONS)


def test_speed_is_measured_with_streams_and_prompts_that_share_nothing(tmp_path: Path) -> None:
    task = task_of(
        None,
        mode="serve",
        dataset="random",
        folder=tmp_path,
        requests=5,
        input_len=300,
        output_len=64,
    )
    call = AISBENCH.prepare(task, INSTALLED, tmp_path / "one")
    model = config_of(tmp_path / "one")["model"]
    assert (model["stream"], model["max_out_len"]) == (True, 64)
    assert model["generation_kwargs"]["ignore_eos"] is True
    assert model["path"] == str(tmp_path)
    assert call.words[call.words.index("--mode") + 1] == "perf"
    assert call.words[call.words.index("--num-warmups") + 1] == "0"

    def prompts(work: Path) -> list[list[str]]:
        lines = (work / "data" / "test.jsonl").read_text().splitlines()
        return [json.loads(line)["question"].split() for line in lines]

    first = prompts(tmp_path / "one")
    assert [len(words) for words in first] == [300] * 5
    assert len({tuple(words[:16]) for words in first}) == 5
    AISBENCH.prepare(task, INSTALLED, tmp_path / "two")
    AISBENCH.prepare(replace(task, seed=7), INSTALLED, tmp_path / "three")
    assert prompts(tmp_path / "two") == first != prompts(tmp_path / "three")


def test_the_limit_takes_the_first_items(tmp_path: Path) -> None:
    AISBENCH.prepare(task_of(gsm8k(tmp_path), limit=2), INSTALLED, tmp_path / "work")
    asked = json.loads((tmp_path / "work" / "questions.json").read_text())
    assert asked == {"form": "gsm8k", "names": [item_name(each) for each in list(QUESTIONS)[:2]]}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mode": "latency"}, "AISBench measures a server"),
        ({"url": None}, "AISBench measures a server"),
        ({"mode": "serve"}, "needs the tokenizer"),
        ({"max_out_len": 200_000}, "no such length"),
        ({"settings": {"top_q": "1"}}, "a setting of aisbench is wrong"),
        ({"settings": {"temperature": "hot"}}, "a setting of aisbench is wrong"),
        ({"mode": "serve", "folder": Path("/"), "requests": 7}, "fewer prompts than requests"),
        ({"seed": 2**63}, "takes no such seed"),
    ],
)
def test_a_task_that_aisbench_cannot_do_is_refused(
    changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        AISBENCH.prepare(task_of(gsm8k(tmp_path), **changes), INSTALLED, tmp_path / "work")
    assert caught.value.hint


def test_an_older_version_is_refused(tmp_path: Path) -> None:
    older = replace(INSTALLED, version="3.0.20250930")
    with pytest.raises(MeasureError, match="version of AISBench is not known"):
        AISBENCH.prepare(task_of(gsm8k(tmp_path)), older, tmp_path / "work")


def test_an_interpreter_whose_path_has_a_blank_is_refused(tmp_path: Path) -> None:
    """AISBench starts itself by a line of the shell, in which it quotes nothing."""
    blank = replace(INSTALLED, python=Path("/my envs/bin/python"))
    with pytest.raises(MeasureError, match="a path with a blank"):
        AISBENCH.prepare(task_of(gsm8k(tmp_path)), blank, tmp_path / "work")


@pytest.mark.parametrize(
    ("dataset", "place", "text"),
    [
        ("gsm8k", "gsm8k/test.jsonl", '{"question": "q", "answer": "#### 1"}\n'),
        (
            "gpqa",
            "gpqa/gpqa_diamond.csv",
            "Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3\n"
            "q,a,b,c,d\n",
        ),
        ("math500", "math/test_prm800k_500.jsonl", '{"problem": "q", "answer": "1"}\n'),
    ],
)
def test_data_are_found_in_aisbenchs_own_folder_and_missing_ones_are_named(
    dataset: str, place: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    with pytest.raises(MeasureError, match=f"the items of {dataset} are not there") as caught:
        AISBENCH.prepare(task_of(None, dataset=dataset), INSTALLED, tmp_path / "none")
    file = tmp_path / "ais_bench" / "datasets" / place
    assert caught.value.where == str(file.parent)
    assert DATA_VARIABLE in str(caught.value.hint)
    file.parent.mkdir(parents=True)
    file.write_text(text)
    AISBENCH.prepare(task_of(None, dataset=dataset), INSTALLED, tmp_path / "work")
    asked = json.loads((tmp_path / "work" / "questions.json").read_text())
    assert asked == {"form": dataset, "names": [item_name("q")]}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("answer:8", "8"),
        ("It costs $18,000.", "18000"),
        ("1,234,567 or 2,5", "5"),
        ("from 3 to -4.50%", "-4.50"),
        ("so \\boxed{70{,}000}", "70000"),
        ("none", ""),
        ("12,34", "34"),
        ("He pays $18,000, and goes.", "18000"),
        ("1,234,56", "56"),
    ],
)
def test_the_last_number_is_read_with_its_separators(text: str, number: str) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Answer: B", "B"),
        ("**Answer: (C)**", "C"),
        ("Answer: $\\boxed{D}$", "D"),
        ("The answer is A. No: the answer is B.", "B"),
        ("Answer: Carbon", ""),
        ("A or B", ""),
        ("The answer is\n\n: **( \\text{ C } )**", "C"),
    ],
)
def test_the_last_letter_that_is_called_the_answer_is_read(text: str, letter: str) -> None:
    assert last_letter(text) == letter


@pytest.mark.parametrize(
    ("reader", "text"),
    [
        ("last_letter", "'answer' + '\\n' * 200_000"),
        ("last_letter", "'The answer is' + ' \\n' * 200_000"),
        ("last_letter", "'answer' + '(\\\\text' * 100_000"),
        ("last_letter", "'answer: ' * 100_000"),
        ("last_number", "'111,111,' * 100_000"),
        ("last_number", "'1,234.' + '5' * 500_000 + ',5' * 100_000"),
    ],
)
def test_a_long_reply_that_says_one_thing_over_and_over_is_read(reader: str, text: str) -> None:
    program = f"from glmquant.suites.answers import {reader}; print(repr({reader}({text})))"
    # A reading that looks at each place again from each place would take hours.
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout.strip() in ("''", repr("111" * 11), "'5'")


def test_numbers_are_equal_by_their_value() -> None:
    assert is_number("18000.0", "18,000")
    assert not is_number("18", "18000")
    assert not is_number("", "1")
    assert without_thinking("<think>a</think> b") == " b"


def record(work: Path, replies: Sequence[tuple[str, str, bool, str] | None], value: float) -> None:
    """What AISBench 3.1 leaves of gsm8k: reply, its reading, its verdict, why it ended; or None."""
    run = work / OUTPUT / "20261130_175641"
    told: dict[str, Any] = {"type": "GEN"}
    good, bad, ends = [], [], []
    for place, reply in enumerate(replies):
        text, read, verdict, reason = reply or ("", "NULL", False, "")
        told[str(place)] = {"predictions": [read], "references": ["7"], "correct": [verdict]}
        if reply is None:
            bad.append({"id": place, "error_info": "Internal Server Error"})
        else:
            good.append({"id": place, "uuid": f"u{place}", "prediction": text})
            ends.append({"uuid": f"u{place}", "finish_reason": reason})
    write_lines(run / "predictions" / MODEL / f"{DATASET}.jsonl", good[::-1])
    if bad:
        write_lines(run / "predictions" / MODEL / f"{DATASET}_failed.jsonl", bad)
    write_lines(work / "replies.jsonl", ends)
    write_lines(run / "results" / MODEL / f"{DATASET}.json", [{"accuracy": value, "details": told}])


def prepared(tmp_path: Path, count: int) -> tuple[Task, Path]:
    questions = {f"question {number}": "#### 7" for number in range(count)}
    task = task_of(gsm8k(tmp_path, questions))
    AISBENCH.prepare(task, INSTALLED, tmp_path / "work")
    return task, tmp_path / "work"


def test_verdicts_are_read_as_the_suite_gave_them_and_doubts_are_said(tmp_path: Path) -> None:
    task, work = prepared(tmp_path, 5)
    record(
        work,
        [
            ("answer:7", "7", True, "stop"),
            ("answer: 7,000", "000", False, "stop"),
            ("thoughts that end at 7", "7", True, "length"),
            ("nothing", "NULL", False, "stop"),
            None,
        ],
        40.0,
    )
    measured = AISBENCH.read(task, INSTALLED, work)
    (figure,) = measured.results
    assert figure == Result(
        dataset="shop", metric="accuracy", value=40.0, unit="%", items=5, interval=(11.76, 76.93)
    )
    assert [item.correct for item in measured.items] == [True, False, True, False, False]
    assert [item.is_cut for item in measured.items] == [False, False, True, False, False]
    assert [item.answer for item in measured.items] == ["7", "000", "7", "", ""]
    assert [item.expected for item in measured.items] == ["7"] * 5
    assert [item.name for item in measured.items] == [
        item_name(f"question {number}") for number in range(5)
    ]
    lost, cut, empty = measured.notes
    assert lost == "1 of 5 requests failed and count as wrong: 1 x Internal Server Error"
    assert cut.startswith("1 replies were cut at 32,768 tokens, 1 of them")
    assert empty == "1 replies held no answer that the suite finds"


def test_why_requests_failed_is_told_without_the_colours_of_a_terminal(tmp_path: Path) -> None:
    task, work = prepared(tmp_path, 2)
    record(work, [("answer:7", "7", True, "stop"), None], 50.0)
    (failed,) = work.rglob("*_failed.jsonl")
    told = "[\x1b[1m\x1b[31mMODEL-DATA-003\x1b[0m] the reply is broken"
    write_lines(failed, [{"id": 1, "error_info": told}])
    (note,) = [each for each in AISBENCH.read(task, INSTALLED, work).notes if "failed" in each]
    assert note.endswith("count as wrong: 1 x [MODEL-DATA-003] the reply is broken")


def test_verdicts_that_do_not_add_up_to_the_accuracy_are_refused(tmp_path: Path) -> None:
    task, work = prepared(tmp_path, 2)
    record(work, [("7", "7", True, "stop"), ("8", "8", False, "stop")], 100.0)
    with pytest.raises(MeasureError, match="accuracy is not that of its verdicts"):
        AISBENCH.read(task, INSTALLED, work)


def test_a_run_without_an_answer_is_an_error_with_its_reason(tmp_path: Path) -> None:
    task, work = prepared(tmp_path, 2)
    with pytest.raises(MeasureError, match="AISBench wrote nothing"):
        AISBENCH.read(task, INSTALLED, work)
    record(work, [None, None], 0.0)
    with pytest.raises(MeasureError, match="AISBench got no answer") as caught:
        AISBENCH.read(task, INSTALLED, work)
    assert caught.value.found == "2 x Internal Server Error"


def test_items_of_the_same_text_keep_names_of_their_own(tmp_path: Path) -> None:
    lines = [{"question": "twice", "answer": "#### 7"}] * 2
    task = task_of(write_lines(tmp_path / "shop.jsonl", lines))
    AISBENCH.prepare(task, INSTALLED, tmp_path / "work")
    record(tmp_path / "work", [("7", "7", True, "stop"), ("8", "8", False, "stop")], 50.0)
    items = AISBENCH.read(task, INSTALLED, tmp_path / "work").items
    assert [item.name for item in items] == [item_name("twice"), f"{item_name('twice')}-2"]


def record_speed(work: Path, requests: Sequence[tuple[list[float], int]], mean_ttft: str) -> None:
    """What AISBench 3.1 leaves of a measurement of speed: time points and tokens a request."""
    folder = work / OUTPUT / "20261130_175758" / "performances" / MODEL
    (folder / "db_data").mkdir(parents=True)
    lines = []
    with sqlite3.connect(folder / "db_data" / "a.db") as store:
        store.execute("CREATE TABLE numpy_store (id INTEGER PRIMARY KEY, arr_blob BLOB NOT NULL)")
        for number, (times, tokens) in enumerate(requests, start=1):
            blob = io.BytesIO()
            np.save(blob, np.array(times))
            store.execute("INSERT INTO numpy_store VALUES (?, ?)", (number, blob.getvalue()))
            counts = {"input_tokens": 10, "output_tokens": tokens}
            points = {"time_points": {"__db_ref__": number}, "db_name": "a.db"}
            lines.append({"success": True, **counts, **points})
    store.close()
    write_lines(folder / f"{DATASET}_details.jsonl", [*lines, {"success": False}])
    (folder / f"{DATASET}.csv").write_text(
        "Performance Parameters,Stage,Average,Median,P99,N\n"
        f"TTFT,total,{mean_ttft} ms,150.0 ms,199.0 ms,{len(lines)}\n"
    )
    (folder / f"{DATASET}.json").write_text(
        json.dumps(
            {
                "Success Requests": {"total": len(lines)},
                "Output Token Throughput": {"total": "12.5 token/s"},
            }
        )
    )


def test_times_are_read_from_the_table_and_held_against_each_request(tmp_path: Path) -> None:
    task = task_of(None, mode="serve", dataset="random", requests=3, output_len=5)
    work = tmp_path / "good"
    record_speed(work, [([0, 0.1, 0.5], 5), ([0, 0.20004, 0.7], 3)], "150.0")
    measured = AISBENCH.read(task, INSTALLED, work)
    figures = {each.metric: (each.value, each.unit, each.items) for each in measured.results}
    assert figures == {
        "output throughput": (12.5, "tok/s", 2),
        "TTFT mean": (pytest.approx(150.02), "ms", 2),
        "TTFT median": (pytest.approx(150.02), "ms", 2),
        "TTFT p99": (pytest.approx(199.0396, rel=1e-5), "ms", 2),
        "failed requests": (1.0, "", 3),
        "input tokens mean": (10.0, "", 2),
        "output tokens mean": (4.0, "", 2),
    }
    assert list(measured.samples["TTFT"]) == pytest.approx([100, 200.04])
    assert list(measured.samples["TPOT"]) == pytest.approx([100, 249.98])
    assert measured.notes[0].startswith("1 of 3 requests failed")
    assert measured.notes[1].startswith("1 of 2 answers are shorter than the 5 tokens")
    record_speed(tmp_path / "bad", [([0, 0.1, 0.5], 5), ([0, 0.2, 0.7], 3)], "170.0")
    with pytest.raises(MeasureError, match="times do not add up"):
        AISBENCH.read(task, INSTALLED, tmp_path / "bad")


def leave_means_alone(work: Path) -> None:
    """Take the median and the percentile out of the table."""
    (table,) = work.rglob("*.csv")
    table.write_text(table.read_text().replace("150.0 ms,199.0 ms", ","))


def test_means_of_requests_have_students_interval_and_no_other_figure_has_one(
    tmp_path: Path,
) -> None:
    task = task_of(None, mode="serve", dataset="random", requests=6, output_len=5)
    ttft = (0.1, 0.12, 0.15, 0.18, 0.2)
    requests = [([0, first, 0.9], 5) for first in ttft]
    record_speed(tmp_path / "five", requests, "150.0")
    leave_means_alone(tmp_path / "five")
    measured = AISBENCH.read(task, INSTALLED, tmp_path / "five")
    found = {each.metric: each.interval for each in measured.results if each.interval}
    # By Student's t of four degrees, 2.776: 150 ± 2.776 * 41.231 / sqrt(5).
    assert list(found) == ["TTFT mean"]
    assert list(found["TTFT mean"]) == pytest.approx([98.81, 201.19], abs=0.2)
    assert sum("Student" in note for note in measured.notes) == 1
    record_speed(tmp_path / "four", requests[:4], "137.5")
    leave_means_alone(tmp_path / "four")
    fewer = AISBENCH.read(task, INSTALLED, tmp_path / "four")
    assert [each for each in fewer.results if each.interval] == []
    assert not [note for note in fewer.notes if "Student" in note]


# The genuine one.


@pytest.fixture(scope="module")
def genuine() -> Installed:
    """AISBench in the environment that tools/check has built."""
    home = os.environ.get("GLMQUANT_TEST_SUITES_HOME")
    if not home:
        pytest.skip("`tools/check aisbench` makes the AISBench that this asks")
    os.environ["GLMQUANT_SUITES_HOME"] = home
    try:
        found = find_own(AISBENCH)
    finally:
        del os.environ["GLMQUANT_SUITES_HOME"]
    assert found is not None, "glmquant suites install aisbench"
    return found


def run(task: Task, installed: Installed, server: Scripted, work: Path) -> Measured:
    """Have AISBench ask the scripted server."""
    with server.running():
        task = replace(task, url=server.url)
        call = AISBENCH.prepare(task, installed, work)
        env = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
        env |= {name: text for name, text in call.env.items() if text is not None}
        with (work / "log").open("wb") as log:
            subprocess.run(
                call.words,
                cwd=work,
                env=env | dict(call.secrets),
                stdout=log,
                stderr=log,
                check=True,
                timeout=600,
            )
    for path in work.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    return AISBENCH.read(task, installed, work)


@pytest.mark.suites
def test_the_genuine_aisbench_judges_gsm8k_as_counted_by_hand(
    genuine: Installed, tmp_path: Path
) -> None:
    """Apples, road and sheep are right; the house is not to it; the broken one counts as wrong."""
    server = Scripted(REPLIES)
    task = task_of(gsm8k(tmp_path), concurrency=2)
    measured = run(task, genuine, server, tmp_path / "a run")
    assert len(server.bodies) == 6
    assert set(server.keys) == {f"Bearer {SECRET}"}
    assert {body["max_tokens"] for body in server.bodies} == {32_768}
    assert {body["model"] for body in server.bodies} == {"glm"}
    figures = {each.metric: (each.value, each.items) for each in measured.results}
    assert figures == {"accuracy": (50.0, 6), "accuracy (numbers with separators)": (66.6667, 6)}
    told = [(item.correct, item.answer, item.expected, item.is_cut) for item in measured.items]
    assert told == [
        (True, "8", "8", False),
        (False, "10", "9", False),
        (False, "000", "18000", False),
        (True, "7", "7", True),
        (True, "42", "42", False),
        (False, "", "1", False),
    ]
    assert [item.name for item in measured.items] == [item_name(each) for each in QUESTIONS]
    lost, reading, cut = measured.notes
    assert lost == "1 of 6 requests failed and count as wrong: 1 x Internal Server Error"
    assert reading.startswith("AISBench's reading of answers decides 1:")
    assert cut.startswith("1 replies were cut at 32,768 tokens, 1 of them")


@pytest.mark.suites
def test_a_reply_without_a_choice_is_a_request_that_failed(
    genuine: Installed, tmp_path: Path
) -> None:
    server = Scripted({"Apples": Reply("answer:8"), "Pears": Reply(has_choice=False)})
    questions = {question: QUESTIONS[question] for question in list(QUESTIONS)[:2]}
    measured = run(task_of(gsm8k(tmp_path, questions)), genuine, server, tmp_path / "a run")
    assert [item.correct for item in measured.items] == [True, False]
    (note,) = [each for each in measured.notes if "failed" in each]
    assert "1 of 2 requests failed" in note and "a reply without a choice" in note
    assert not [each for each in measured.notes if "no answer" in each]


@pytest.mark.suites
def test_the_genuine_aisbench_judges_gpqa_as_counted_by_hand(
    genuine: Installed, tmp_path: Path
) -> None:
    """It turns the choices by the item's place: the first is right at D, then C, then B."""
    head = "Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3\n"
    rows = [f'"Stone {number}, which?",right{number},x,y,z\n' for number in (1, 2, 3)]
    data = tmp_path / "gpqa_diamond.csv"
    data.write_text(head + "".join(rows))
    server = Scripted({}, otherwise=Reply("Answer: A"))
    task = replace(task_of(data), dataset="gpqa")
    first = run(task, genuine, server, tmp_path / "first")
    expected = [item.expected for item in first.items]
    assert sorted(set(expected) - set("ABCD")) == []
    asked = sorted(body["messages"][0]["content"] for body in server.bodies)
    for number, letter in enumerate(expected, start=1):
        assert f"{letter}) right{number}" in asked[number - 1]
    boxed = Reply(f"Answer: \\boxed{{{expected[1]}}}")
    server = Scripted(
        {"Stone 1": Reply(f"Answer: {expected[0]}"), "Stone 2": boxed, "Stone 3": Reply("Hm.")}
    )
    measured = run(task, genuine, server, tmp_path / "second")
    assert [item.correct for item in measured.items] == [True, False, False]
    assert [item.answer for item in measured.items] == [expected[0], "", ""]
    figures = {each.metric: (each.value, each.items) for each in measured.results}
    assert figures == {"accuracy": (33.3333, 3), "accuracy (last answer)": (66.6667, 3)}


@pytest.mark.suites
def test_the_genuine_aisbench_judges_math_as_counted_by_hand(
    genuine: Installed, tmp_path: Path
) -> None:
    lines = [
        {"problem": "Half of one?", "answer": "\\frac{1}{2}"},
        {"problem": "Two and two?", "answer": "4", "solution": "We get $\\boxed{4}$."},
        {"problem": "A root?", "answer": "\\sqrt{2}"},
    ]
    server = Scripted(
        {
            "Half": Reply("It is $\\boxed{0.5}$."),
            "Two": Reply("Three, no: $\\boxed{5}$."),
            "root": Reply("Ah, $\\boxed{\\sqrt{2}}$"),
        }
    )
    task = replace(task_of(write_lines(tmp_path / "test.jsonl", lines)), dataset="math500")
    measured = run(task, genuine, server, tmp_path / "work")
    (figure,) = measured.results
    assert (figure.value, figure.items) == (66.6667, 3)
    assert [item.correct for item in measured.items] == [True, False, True]


@pytest.mark.suites
def test_the_genuine_aisbench_measures_speed_and_counts_what_failed(
    genuine: Installed, tmp_path: Path
) -> None:
    server = Scripted({"Broken": Reply(failures=[500] * 9)}, otherwise=Reply("a b c d e f g h"))
    task = task_of(
        gsm8k(tmp_path),
        mode="serve",
        folder=unpack_model(tmp_path),
        requests=6,
        output_len=8,
        concurrency=2,
    )
    measured = run(task, genuine, server, tmp_path / "work")
    assert len(server.bodies) == 6
    assert all(body["stream"] for body in server.bodies)
    assert {body["max_tokens"] for body in server.bodies} == {8}
    figures = {each.metric: each for each in measured.results}
    assert (figures["failed requests"].value, figures["failed requests"].items) == (1, 6)
    assert (figures["output tokens mean"].value, figures["input tokens mean"].value) == (8, 10)
    for metric in ("TTFT mean", "TPOT mean", "E2EL mean", "ITL p99"):
        assert (figures[metric].unit, figures[metric].items) == ("ms", 5)
    assert {name: len(values) for name, values in measured.samples.items()} == {
        "TTFT": 5,
        "TPOT": 5,
        "E2EL": 5,
    }
    for metric in ("TTFT mean", "TPOT mean", "E2EL mean"):
        low, high = figures[metric].interval or (0, 0)
        assert low < figures[metric].value < high
    kept = Run(
        suite="aisbench",
        mode="serve",
        dataset="shop",
        date="2026-11-30T10:00:00Z",
        results=measured.results,
        samples=dict(measured.samples),
    )
    rows = compare_runs(kept, kept.model_copy(update={"date": "2026-11-30T11:00:00Z"})).rows
    tested = {row.metric for row in rows if row.difference is not None}
    assert tested == {"TTFT mean", "TPOT mean", "E2EL mean", "failed requests"}
    rate, tokens = figures["request throughput"], figures["output throughput"]
    assert tokens.value == pytest.approx(8 * rate.value, rel=1e-3)
    assert measured.notes[0] == (
        "1 of 6 requests failed, and no time of them is counted: 1 x Internal Server Error"
    )
