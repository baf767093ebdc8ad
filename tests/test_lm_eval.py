from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glmquant.errors import GlmquantError, MeasureError, UsageError
from glmquant.suites.datafiles import read_data
from glmquant.suites.environment import find_own
from glmquant.suites.items import item_name
from glmquant.suites.known import SUITES
from glmquant.suites.lm_eval import LM_EVAL, prepare, read
from glmquant.suites.lm_eval_output import explain_failure
from glmquant.suites.run import measure
from glmquant.suites.task import Installed, Task
from tests.scripted import Reply, Scripted
from tests.suite_calls import run_call

HOME = os.environ.get("GLMQUANT_TEST_SUITES_HOME")
INSTALLED = Installed(Path("/usr/bin/python3.11"), "0.4.13")

suites = [
    pytest.mark.suites,
    pytest.mark.skipif(not HOME, reason="`tools/check lmeval` makes the lm-eval that this asks"),
]

GSM8K = [
    {"question": "How many apples?", "answer": "9 * 2 = 18\n#### 18"},
    {"question": "How many beans?", "answer": "#### 18,000"},
    {"question": "How many cats?", "answer": "#### 7"},
]
GPQA = {
    "Question": "Which one?",
    "Correct Answer": "this",
    **{f"Incorrect Answer {n}": f"that {n}" for n in (1, 2, 3)},
}


def written(path: Path, items: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def task_of(data: Path | None, dataset: str = "gsm8k", **more: Any) -> Task:
    url = more.pop("url", "http://127.0.0.1:9")
    return Task("accuracy", dataset, data, url, "glm, the one", **more)


def files_of(work: Path) -> dict[str, Any]:
    """The task and the configuration that were written."""
    kinds = {"task": work / "tasks" / "glmquant.yaml", "config": work / "config.yaml"}
    return {kind: json.loads(path.read_text()) for kind, path in kinds.items()}


def test_a_question_has_one_name_however_it_is_spaced() -> None:
    assert item_name("How  many\n apples? ") == item_name("How many apples?")
    assert item_name("How many apples?") != item_name("How many pears?")
    assert len(item_name("\ud800")) == 16


def test_a_file_is_measured_offline_by_the_suites_own_task(tmp_path: Path) -> None:
    data = written(tmp_path / "mine.jsonl", GSM8K)
    call = prepare(task_of(data, "mine", limit=2), INSTALLED, tmp_path)
    files = files_of(tmp_path)
    assert files["task"]["include"] == "../suite/gsm8k/gsm8k-cot-zeroshot.yaml"
    assert files["task"]["dataset_path"] == "json"
    assert files["task"]["num_fewshot"] == 0
    kept = Path(files["task"]["dataset_kwargs"]["data_files"]["test"])
    assert [json.loads(line) for line in kept.read_text().splitlines()] == GSM8K
    assert files["config"]["limit"] == 2
    assert files["config"]["model_args"]["model"] == "glm, the one"
    assert files["config"]["model_args"]["base_url"] == "http://127.0.0.1:9/v1/chat/completions"
    assert call.env["HF_HUB_OFFLINE"] == call.env["HF_DATASETS_OFFLINE"] == "1"
    assert call.words[0] == str(INSTALLED.python)
    assert call.words[-3:] == ("run", "--config", str(tmp_path / "config.yaml"))


def test_the_suites_own_data_are_fetched_by_the_suite(tmp_path: Path) -> None:
    call = prepare(task_of(None), INSTALLED, tmp_path)
    task = files_of(tmp_path)["task"]
    assert task["include"] == "../suite/gsm8k/gsm8k.yaml"
    assert task["num_fewshot"] == 5
    assert "dataset_path" not in task
    assert "HF_HUB_OFFLINE" not in call.env


def test_a_thinking_model_has_room_and_no_stop_words(tmp_path: Path) -> None:
    data = written(tmp_path / "d.jsonl", GSM8K)
    prepare(task_of(data), INSTALLED, tmp_path)
    files = files_of(tmp_path)
    asked = files["task"]["generation_kwargs"]
    assert asked == {"max_gen_toks": 32768, "temperature": 0, "do_sample": False, "until": []}
    assert files["config"]["model_args"]["think_end_token"] == "</think>"
    assert files["config"]["apply_chat_template"] is True


def test_a_bare_prompt_keeps_the_stop_words_of_the_task(tmp_path: Path) -> None:
    data = written(tmp_path / "d.jsonl", GSM8K)
    prepare(task_of(data, settings={"api": "completions"}), INSTALLED, tmp_path)
    files = files_of(tmp_path)
    assert files["task"]["generation_kwargs"]["until"] == ["Q:", "</s>", "<|im_end|>"]
    assert files["config"]["model_args"]["base_url"].endswith("/v1/completions")
    assert files["config"]["apply_chat_template"] is False


def test_settings_reach_the_requests(tmp_path: Path) -> None:
    settings = {"temperature": "0.6", "top_p": "0.95", "thinking": "off", "timeout": "60"}
    data = written(tmp_path / "d.jsonl", GSM8K)
    task = task_of(data, max_out_len=99, concurrency=3, seed=7, settings=settings)
    prepare(task, INSTALLED, tmp_path)
    files = files_of(tmp_path)
    assert files["task"]["generation_kwargs"] == {
        "max_gen_toks": 99,
        "temperature": 0.6,
        "do_sample": True,
        "until": [],
        "top_p": 0.95,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert files["config"]["model_args"]["timeout"] == 60
    assert files["config"]["model_args"]["num_concurrent"] == 3
    assert files["config"]["seed"] == [7, 7, 7, 7]


def test_a_train_file_beside_gives_the_examples(tmp_path: Path) -> None:
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    written(folder / "test.jsonl", GSM8K)
    written(folder / "train.jsonl", GSM8K[:2])
    prepare(task_of(folder), INSTALLED, tmp_path)
    task = files_of(tmp_path)["task"]
    assert task["include"] == "../suite/gsm8k/gsm8k.yaml"
    assert task["num_fewshot"] == 2
    assert sorted(task["dataset_kwargs"]["data_files"]) == ["test", "train"]


def test_no_key_is_written_or_taken_from_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody-else")
    data = written(tmp_path / "d.jsonl", GSM8K)
    call = prepare(task_of(data, api_key="sk-secret"), INSTALLED, tmp_path)
    assert call.secrets == {"OPENAI_API_KEY": "sk-secret"}
    assert "sk-secret" not in str(call.words) + str(call.env)
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"sk-" not in path.read_bytes()
    without = prepare(task_of(data), INSTALLED, tmp_path)
    assert without.secrets == {}
    assert without.env["OPENAI_API_KEY"] is None


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"mode": "serve"}, UsageError, "answers of a server"),
        ({"url": None}, UsageError, "answers of a server"),
        ({"dataset": "mmlu", "data": None}, UsageError, "no such data set"),
        ({"settings": {"shots": "5"}}, UsageError, "setting of lm-eval"),
        ({"settings": {"api": "grpc"}}, UsageError, "setting of lm-eval"),
        ({"settings": {"temperature": "nan"}}, UsageError, "setting of lm-eval"),
        ({"settings": {"timeout": "1.5"}}, UsageError, "setting of lm-eval"),
        ({"settings": {"fewshot": "5"}}, UsageError, "train.jsonl"),
        ({"settings": {"api": "completions", "thinking": "off"}}, UsageError, "bare prompt"),
        ({"seed": 2**32}, UsageError, "takes no such seed"),
    ],
)
def test_what_lm_eval_cannot_do_is_refused(
    tmp_path: Path, change: dict[str, Any], kind: type[GlmquantError], said: str
) -> None:
    task = replace(task_of(written(tmp_path / "d.jsonl", GSM8K)), **change)
    with pytest.raises(kind) as caught:
        prepare(task, INSTALLED, tmp_path)
    assert said in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("version", ["0.4.12", "0.3.0", "unknown", ""])
def test_a_version_that_is_not_known_is_refused(tmp_path: Path, version: str) -> None:
    data = written(tmp_path / "d.jsonl", GSM8K)
    with pytest.raises(MeasureError, match="version"):
        prepare(task_of(data), Installed(Path("python"), version), tmp_path)


def test_forms_are_told_by_their_fields(tmp_path: Path) -> None:
    head = ",".join(GPQA)
    csv = tmp_path / "diamond.csv"
    csv.write_text(f'Record ID,{head}\n1,"Which\none?",this,that 1,that 2,that 3\n')
    found = read_data(csv, "diamond")
    assert found.form.name == "gpqa"
    assert found.items == ({**GPQA, "Question": "Which\none?"},)
    listed = tmp_path / "math.json"
    listed.write_text(json.dumps([{"problem": "1 + 1?", "answer": 2, "level": 1}]))
    assert read_data(listed, "math").items == ({"problem": "1 + 1?", "answer": "2"},)
    plain = written(tmp_path / "plain.jsonl", [{"question": "q", "answer": "1,000"}])
    assert read_data(plain, "plain").items == ({"question": "q", "answer": "#### 1,000"},)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"prompt": "q", "label": "a"}\n', "Incorrect Answer 3"),
        ("", "no item"),
        ("[]", "no item"),
        ('{"question": "q", "answer"', "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ('{"question": "q", "answer": "#### 1"}\n{"question": "q"}\n', "item 2"),
        ('{"question": "q", "answer": "#### 1"}\n[1]\n', "item 2"),
        ('{"question": " ", "answer": "#### 1"}\n', "a text in 'question'"),
        ('{"question": "q", "answer": "eighteen"}\n', "no result"),
        ("PAR1 and so on", "Parquet"),
        ('{"question": "q", "answer": "1"}\n{"question": "\\ud800", "answer": "1"}\n', "item 2"),
        ('{"question": "a \\ud800", "answer": "1"}\n', "a \\ud800"),
        ('{"question": NaN, "answer": "1"}\n', "a text in 'question'"),
        ('{"question": Infinity, "answer": "1"}\n', "inf"),
        ('{"question": 1e999, "answer": "1"}\n', "inf"),
    ],
)
def test_a_data_file_that_will_not_do_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(text)
    with pytest.raises(MeasureError) as caught:
        read_data(path, "data")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "count", "dataset"),
    [
        ("gsm8k.jsonl", 3, "file gsm8k.jsonl (3 items)"),
        ("MTP.jsonl", 3, "file MTP.jsonl (3 items)"),
        ("GPQA diamond.json", 1, "file GPQA diamond.json (1 item)"),
        ("Random", 1319, "gsm8k"),
        ("gsm8k-hard.jsonl", 1, "file gsm8k-hard.jsonl (1 item)"),
        ("gsm8ks.jsonl", 1, "gsm8ks"),
        ("shop.jsonl", 3, "shop"),
    ],
)
def test_a_file_takes_the_name_of_a_known_data_set_only_with_its_number_of_items(
    tmp_path: Path, name: str, count: int, dataset: str
) -> None:
    path = written(tmp_path / name, GSM8K[:1] * count)
    assert read_data(path, str(path)).dataset == dataset


def test_a_data_set_without_a_name_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "test.jsonl", GSM8K)
    with pytest.raises(UsageError, match="no data set is named"):
        read_data(Path(), "")


def test_a_folder_without_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match="no data file") as caught:
        read_data(tmp_path, "gsm8k")
    assert "test.jsonl" in str(caught.value)
    with pytest.raises(MeasureError, match="no data file"):
        read_data(tmp_path / "nothing", "gsm8k")


# What lm-eval writes, in little.


def sample(number: int, item: dict[str, Any], reply: str, found: str, score: Any) -> dict[str, Any]:
    return {
        "doc_id": number,
        "doc": item,
        "target": item["answer"],
        "resps": [[reply]],
        "filtered_resps": [found],
        "filter": "flexible-extract",
        "prompt_hash": f"prompt {number}",
        "exact_match": score,
    }


def output(work: Path) -> Path:
    """Three items: right, right with a separator, and one whose thought was cut."""
    prepare(task_of(written(work / "d.jsonl", GSM8K)), INSTALLED, work)
    told = [
        sample(0, GSM8K[0], "It is 18.", "18.", 1.0),
        sample(1, GSM8K[1], "It is 18,000", "18,000", 1.0),
        sample(2, GSM8K[2], "", "[invalid]", 0.0),
    ]
    strict = [each | {"filter": "strict-match", "exact_match": 0.0} for each in told]
    place = work / "out" / "glm"
    place.mkdir(parents=True)
    written(place / "samples_glmquant_2026-11-30T10-00-00.jsonl", told + strict)
    figures = {"exact_match,flexible-extract": 2 / 3, "exact_match,strict-match": 0.0}
    results = {
        "results": {"glmquant": figures},
        "n-samples": {"glmquant": {"original": 3, "effective": 3}},
    }
    (place / "results_2026-11-30T10-00-00.json").write_text(json.dumps(results))
    events: list[dict[str, Any]] = [
        {"prompt": f"prompt {n}", "event": "sent"} for n in (0, 1, 2, 1)
    ]
    for number, reason in enumerate(("stop", "stop", "length")):
        ended = {"event": "answered", "finish_reason": reason, "tokens": 5 + number}
        events.append({"prompt": f"prompt {number}", **ended})
    written(work / "requests.jsonl", events)
    return place


def the(place: Path, pattern: str) -> Path:
    (path,) = place.glob(pattern)
    return path


def test_figures_items_and_notes_are_those_of_the_samples(tmp_path: Path) -> None:
    output(tmp_path)
    measured = read(task_of(tmp_path / "d.jsonl"), INSTALLED, tmp_path)
    first, strict = measured.results
    assert (first.metric, first.value, first.items) == ("accuracy", 66.6667, 3)
    assert first.interval == (20.77, 93.85)
    assert (strict.metric, strict.value) == ("accuracy (strict-match)", 0.0)
    assert [item.correct for item in measured.items] == [True, True, False]
    assert [item.is_cut for item in measured.items] == [False, False, True]
    assert [item.expected for item in measured.items] == ["18", "18,000", "7"]
    assert measured.items[0].name == item_name("How many apples?")
    assert measured.samples == {"answer tokens": (5.0, 6.0, 7.0)}
    notes = "\n".join(measured.notes)
    assert "1 of 3 answers were cut at 32,768 tokens" in notes
    assert "1 of 3 answers were empty" in notes
    assert "1 requests failed and were sent again" in notes
    assert "strict-match" in notes


def test_a_request_that_failed_for_good_counts_as_wrong_and_is_told(tmp_path: Path) -> None:
    output(tmp_path)
    path = tmp_path / "requests.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    events[-1] = {"prompt": "prompt 2", "event": "failed", "reason": "HTTP 500\x1b"}
    written(path, events)
    measured = read(task_of(tmp_path / "d.jsonl"), INSTALLED, tmp_path)
    assert measured.results[0].value == 66.6667
    assert not measured.items[2].is_cut
    notes = "\n".join(measured.notes)
    assert "1 of 3 requests failed and count as wrong: 1 x HTTP 500\\x1b" in notes
    assert "answers were empty" not in notes
    assert "1 requests failed and were sent again" in notes


def test_a_limit_is_what_has_to_be_there(tmp_path: Path) -> None:
    output(tmp_path)
    with pytest.raises(MeasureError, match="add up"):
        read(task_of(tmp_path / "d.jsonl", limit=2), INSTALLED, tmp_path)


def spoil_missing_results(place: Path) -> None:
    the(place, "results_*").unlink()


def spoil_missing_samples(place: Path) -> None:
    the(place, "samples_*").unlink()


def spoil_two_runs(place: Path) -> None:
    path = the(place, "results_*")
    path.with_name("results_2.json").write_bytes(path.read_bytes())


def spoil_lost_item(place: Path) -> None:
    path = the(place, "samples_*")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


def spoil_lost_of_a_filter(place: Path) -> None:
    path = the(place, "samples_*")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def spoil_twice(place: Path) -> None:
    path = the(place, "samples_*")
    path.write_text(path.read_text().replace('"doc_id": 1', '"doc_id": 0'))


def spoil_cut_line(place: Path) -> None:
    path = the(place, "samples_*")
    path.write_text(path.read_text()[:-40])


def spoil_nan(place: Path) -> None:
    path = the(place, "samples_*")
    path.write_text(path.read_text().replace('"exact_match": 1.0', '"exact_match": NaN'))


def spoil_other_figure(place: Path) -> None:
    path = the(place, "results_*")
    path.write_text(path.read_text().replace("0.666", "0.999"))


def spoil_figure_of_no_kind(place: Path) -> None:
    path = the(place, "results_*")
    told = json.loads(path.read_text())
    told["results"] = []
    path.write_text(json.dumps(told))


def spoil_no_counts(place: Path) -> None:
    path = the(place, "results_*")
    path.write_text(path.read_text().replace("n-samples", "samples"))


def spoil_no_json(place: Path) -> None:
    the(place, "results_*").write_text("[" * 100_000)


def spoil_other_question(place: Path) -> None:
    path = the(place, "samples_*")
    path.write_text(path.read_text().replace('"question"', '"prompt"'))


def spoil_requests(place: Path) -> None:
    (place.parent.parent / "requests.jsonl").unlink()


REFUSED = {"prompt": "p", "event": "failed", "reason": "HTTP 400"}
GAVE_UP = {
    "prompt": "",
    "event": "gave up",
    "reason": "1 of 3 requests failed so far: 1 x HTTP 400",
}


@pytest.mark.parametrize(
    ("said", "limit"),
    [
        # vLLM 0.13, entrypoints/openai/serving_engine.py, twice; 0.23, v1/engine.
        (
            "This model's maximum context length is 1024 tokens. However, your request has 1500 "
            "input tokens. Please reduce the length of the input messages.",
            "1,024",
        ),
        (
            "'max_tokens' or 'max_completion_tokens' is too large: 512. This model's maximum "
            "context length is 1024 tokens and your request has 700 input tokens (512 > 1024 - "
            "700).",
            "1,024",
        ),
        (
            "The decoder prompt (length 1500) is longer than the maximum model length of 2048. "
            "Make sure that `max_model_len` is no smaller than the number of text tokens.",
            "2,048",
        ),
    ],
)
@pytest.mark.parametrize("shots", [0, 2])
def test_a_refusal_of_length_is_known_by_the_words_of_vllm(
    tmp_path: Path, said: str, limit: str, shots: int
) -> None:
    output(tmp_path)
    asked = json.loads((tmp_path / "asked.json").read_text())
    (tmp_path / "asked.json").write_text(json.dumps(asked | {"shots": shots}))
    written(tmp_path / "requests.jsonl", [REFUSED | {"said": said}, GAVE_UP])
    error = explain_failure(task_of(None, max_out_len=512), tmp_path)
    assert error is not None and error.what == "the server refuses requests so long"
    assert f"(512) of {limit} tokens together" in str(error.expected)
    assert said in str(error.found)
    wanted = "--set fewshot=0, " if shots else "--max-out-len 256; "
    assert str(error.hint).startswith(f"the same command with {wanted}")


def test_another_failure_of_requests_is_told_with_the_servers_words(tmp_path: Path) -> None:
    output(tmp_path)
    written(tmp_path / "requests.jsonl", [REFUSED | {"said": "no \x1b such model"}, GAVE_UP])
    error = explain_failure(task_of(None), tmp_path)
    assert error is not None and error.what == "so many requests failed that there is no figure"
    assert str(error.found).endswith("1 x HTTP 400; the server says: no \\x1b such model")


def test_what_is_no_failure_of_requests_is_told_by_the_log(tmp_path: Path) -> None:
    assert explain_failure(task_of(None), tmp_path) is None
    output(tmp_path)
    assert explain_failure(task_of(None), tmp_path) is None


SPOILS = [value for name, value in sorted(globals().items()) if name.startswith("spoil_")]


@pytest.mark.parametrize("spoil", SPOILS)
def test_an_output_that_does_not_add_up_is_refused(tmp_path: Path, spoil: Any) -> None:
    spoil(output(tmp_path))
    with pytest.raises(GlmquantError):
        read(task_of(tmp_path / "d.jsonl"), INSTALLED, tmp_path)


def test_lm_eval_is_known_by_its_name() -> None:
    assert SUITES["lm-eval"].modes == ("accuracy",)


# The genuine lm-eval before a server whose answers are written down.


@pytest.fixture
def genuine(monkeypatch: pytest.MonkeyPatch) -> Installed:
    monkeypatch.setenv("GLMQUANT_SUITES_HOME", str(HOME))
    found = find_own(LM_EVAL)
    assert found is not None, "glmquant suites install lm-eval"
    return found


SCRIPT: list[tuple[str, str, Reply]] = [
    ("apples", "#### 18", Reply("So it is 18. The answer is 18.", "hm, Question: 5 or Q: 6?")),
    ("beans", "#### 18,000", Reply("It is **18,000**.")),
    ("cats", "#### 7", Reply("It is 8.")),
    ("dogs", "#### 5", Reply(None, "it might be", "length")),
    ("eels", "#### 6", Reply("\\boxed{6}", failures=[500])),
    ("figs", "#### 18", Reply("He pays $18.00.")),
    ("goats", "#### 3", Reply("<think>it is 4 or 5</think>3 goats")),
]


@pytest.mark.parametrize("mark", [pytest.param(None, marks=suites)])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_the_genuine_counts_are_those_made_by_hand(
    genuine: Installed, tmp_path: Path, mark: None, concurrency: int
) -> None:
    items = [{"question": f"How many {what}?", "answer": answer} for what, answer, _ in SCRIPT]
    server = Scripted({f"How many {what}?": reply for what, _, reply in SCRIPT})
    with server.running():
        task = task_of(
            written(tmp_path / "d.jsonl", items),
            url=server.url,
            concurrency=concurrency,
            max_out_len=64,
            api_key="sk-secret",
        )
        log = tmp_path / "log"
        assert run_call(prepare(task, genuine, tmp_path), log) == 0, log.read_text()[-3000:]
    measured = read(task, genuine, tmp_path)
    # apples, beans, eels and goats; figs is $18.00, which lm-eval does not take for 18.
    assert [item.correct for item in measured.items] == [
        True,
        True,
        False,
        False,
        True,
        False,
        True,
    ]
    assert [item.is_cut for item in measured.items] == [False] * 3 + [True] + [False] * 3
    assert [result.value for result in measured.results] == [57.1429, 14.2857]
    notes = "\n".join(measured.notes)
    assert "1 of 7 answers that count as wrong say the right one" in notes
    assert "1 requests failed and were sent again" in notes
    assert len(server.bodies) == len(SCRIPT) + 1
    assert set(server.keys) == {"Bearer sk-secret"}
    assert "sk-secret" not in log.read_text()
    assert all(body["stop"] == [] and body["max_tokens"] == 64 for body in server.bodies)


@pytest.mark.parametrize("mark", [pytest.param(None, marks=suites)])
@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("failure", ["status", "no choice"])
def test_one_request_that_never_succeeds_takes_no_other_with_it(
    genuine: Installed, tmp_path: Path, mark: None, concurrency: int, failure: str
) -> None:
    items = [{"question": f"How many {n} cats?", "answer": "#### 18"} for n in range(10)]
    failing = Reply("It is 18.", failures=[500] * 9)
    if failure == "no choice":
        failing = Reply("It is 18.", has_choice=False)
    others = {f"How many {n} cats": Reply("It is 18.") for n in range(10) if n != 3}
    server = Scripted(others | {"How many 3 cats": failing})
    with server.running():
        task = task_of(
            written(tmp_path / "d.jsonl", items),
            url=server.url,
            concurrency=concurrency,
            settings={"retries": "2"},
        )
        log = tmp_path / "log"
        assert run_call(prepare(task, genuine, tmp_path), log) == 0, log.read_text()[-3000:]
    measured = read(task, genuine, tmp_path)
    assert [item.correct for item in measured.items] == [n != 3 for n in range(10)]
    assert measured.results[0].value == 90.0
    why = "HTTP 500" if failure == "status" else "ValueError: an answer without one choice"
    assert f"1 of 10 requests failed and count as wrong: 1 x {why}" in measured.notes
    assert "1 requests failed and were sent again" in measured.notes
    assert len(server.bodies) == 11
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("mark", [pytest.param(None, marks=suites)])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_request_that_never_succeeds_is_no_wrong_answer(
    genuine: Installed, tmp_path: Path, mark: None, concurrency: int
) -> None:
    server = Scripted({"How many": Reply("It is 18.", failures=[500] * 99)})
    with server.running():
        data = written(tmp_path / "d.jsonl", GSM8K)
        settings = {"retries": "2"}
        more: dict[str, Any] = {
            "concurrency": concurrency,
            "settings": settings,
            "api_key": "sk-secret",
        }
        call = prepare(task_of(data, url=server.url, **more), genuine, tmp_path)
        log = tmp_path / "log"
        assert run_call(call, log) != 0
    end = "\n".join(log.read_text().splitlines()[-7:])
    assert "1 of 3 requests failed so far: 1 x HTTP 500" in end
    assert "More than a tenth failed each time" in end
    assert "sk-secret" not in log.read_text()
    with pytest.raises(MeasureError):
        read(task_of(data, url=server.url), genuine, tmp_path)


@pytest.mark.parametrize("mark", [pytest.param(None, marks=suites)])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_examples_that_are_too_long_are_the_cause_that_comes_first(
    genuine: Installed, tmp_path: Path, mark: None, concurrency: int
) -> None:
    problems = [{"problem": f"Halve {n}.", "answer": "1"} for n in range(12)]
    server = Scripted({"Halve": Reply("It is $\\boxed{1}$.")}, most_words=100)
    with server.running():
        task = task_of(
            written(tmp_path / "math.jsonl", problems),
            "math500",
            url=server.url,
            concurrency=concurrency,
            max_out_len=64,
            api_key="sk-secret",
        )
        with pytest.raises(MeasureError) as caught:
            measure(LM_EVAL, task, genuine, tmp_path, client=None)
        # What is refused is refused again: it is not sent twice.
        assert len(server.bodies) == len({str(body) for body in server.bodies})
        assert len(server.bodies) <= 2 * concurrency  # those under way, and their next at most
        asked = len(server.bodies)
        error = caught.value
        assert error.what == "the server refuses requests so long"
        assert "minerva_math500, with 4 examples before each; log " in str(error.where)
        assert "64) of 100 tokens together" in str(error.expected)
        assert "of 12 requests failed so far" in str(error.found)
        assert "maximum context length is 100 tokens" in str(error.found)
        assert "Traceback" not in str(error)
        assert "Bearer ***" in str(error.found) and "sk-secret" not in str(error)
        for path in tmp_path.rglob("*"):
            assert not path.is_file() or b"sk-secret" not in path.read_bytes(), path
        assert str(error.hint).startswith("the same command with --set fewshot=0,")
        found = measure(
            LM_EVAL, replace(task, settings={"fewshot": "0"}), genuine, tmp_path, client=None
        )
    assert found.run.results[0].value == 100.0
    assert len(server.bodies) == asked + 12


@pytest.mark.parametrize("mark", [pytest.param(None, marks=suites)])
def test_data_that_cannot_be_fetched_are_asked_for(
    genuine: Installed, tmp_path: Path, mark: None
) -> None:
    call = prepare(task_of(None), genuine, tmp_path)
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    log = tmp_path / "log"
    assert run_call(replace(call, env={**call.env, **offline}), log) != 0
    assert "name its file: --dataset FILE.jsonl" in log.read_text().splitlines()[-1]


@pytest.mark.parametrize("mark", [pytest.param(None, marks=suites)])
def test_gpqa_and_math_are_scored_by_the_suites_own_rules(
    genuine: Installed, tmp_path: Path, mark: None
) -> None:
    letters = [{**GPQA, "Question": f"Which {n}?"} for n in range(4)]
    server = Scripted({"this": Reply("The answer is surely this.")})
    with server.running():
        task = task_of(written(tmp_path / "gpqa.jsonl", letters), "gpqa", url=server.url, limit=3)
        work = tmp_path / "gpqa"
        work.mkdir()
        assert run_call(prepare(task, genuine, work), tmp_path / "log") == 0
    measured = read(task, genuine, work)
    assert (measured.results[0].value, measured.results[0].items) == (100.0, 3)
    assert [item.name for item in measured.items] == [item_name(f"Which {n}?") for n in range(3)]
    problems = [
        {"problem": "Halve one.", "answer": "\\frac{1}{2}"},
        {"problem": "Name it.", "answer": "7"},
        {"problem": "Double five.", "answer": "10"},
    ]
    server = Scripted(
        {
            "Halve one.": Reply("It is $\\boxed{0.5}$."),
            "Name it.": Reply("Final Answer: The final answer is $7$. I hope it is correct."),
            "Double five.": Reply("$\\boxed{11}$"),
        }
    )
    with server.running():
        task = task_of(written(tmp_path / "math.jsonl", problems), "math500", url=server.url)
        work = tmp_path / "math"
        work.mkdir()
        assert run_call(prepare(task, genuine, work), tmp_path / "log") == 0
    measured = read(task, genuine, work)
    assert [item.correct for item in measured.items] == [True, True, False]
    assert [result.value for result in measured.results] == [66.6667, 33.3333]
