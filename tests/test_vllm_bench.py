from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glmquant.errors import GlmquantError, MeasureError, UsageError
from glmquant.observer import Observer
from glmquant.results import Result
from glmquant.runtime.environment import find_engine
from glmquant.runtime.server import Server
from glmquant.runtime.serving import cpu_backend, serving
from glmquant.significance import mean_interval
from glmquant.suites.known import SUITES
from glmquant.suites.task import Call, Installed, Measured, Task
from glmquant.suites.vllm_bench import prepare, read
from glmquant.suites.vllm_output import percentile
from tests.builders import Recorded
from tests.conftest import run_glmquant
from tests.suite_calls import run_call

HOME = os.environ.get("GLMQUANT_TEST_ENGINE_HOME")

engine = [
    pytest.mark.engine,
    pytest.mark.skipif(not HOME, reason="`tools/check engine` makes the CPU engine that this asks"),
]

VLLM = Installed(Path("/usr/bin/python3"), "0.23.0")


def task_of(mode: Any, folder: Path | None, **more: Any) -> Task:
    url = "http://127.0.0.1:9" if mode == "serve" else None
    small = {"dataset": "random", "requests": 2, "input_len": 8, "output_len": 4, "concurrency": 2}
    return Task(mode, **{"url": url, "model": "glm", "folder": folder, **small, **more})


def flags_of(call: Call) -> dict[str, str]:
    """Flag → value, or nothing."""
    words = call.words[call.words.index("bench") + 2 :]
    return {
        word: "" if following.startswith("--") else following
        for word, following in zip(words, (*words[1:], "--"), strict=True)
        if word.startswith("--")
    }


def figures_of(measured: Measured) -> dict[str, Result]:
    return {result.metric: result for result in measured.results}


def test_a_server_is_asked_for_all_that_is_told_apart(tmp_path: Path) -> None:
    call = prepare(task_of("serve", tmp_path), VLLM, tmp_path)
    program = ("/usr/bin/python3", "-m", "vllm.entrypoints.cli.main", "bench", "serve")
    assert call.words[:5] == program
    assert flags_of(call) == {
        "--backend": "openai",
        "--base-url": "http://127.0.0.1:9",
        "--endpoint": "/v1/completions",
        "--model": "glm",
        "--tokenizer": str(tmp_path),
        "--dataset-name": "random",
        "--random-input-len": "8",
        "--random-output-len": "4",
        "--num-prompts": "2",
        "--max-concurrency": "2",
        "--num-warmups": "0",
        "--temperature": "0.0",
        "--seed": "1024",
        "--ignore-eos": "",
        "--percentile-metrics": "ttft,tpot,itl,e2el",
        "--metric-percentiles": "99",
        "--disable-tqdm": "",
        "--save-result": "",
        "--save-detailed": "",
        "--result-dir": str(tmp_path),
        "--result-filename": "result.json",
    }


def test_the_tutorials_form_has_its_lengths(tmp_path: Path) -> None:
    call = prepare(task_of("serve", tmp_path, dataset="tutorial"), VLLM, tmp_path)
    text = shlex.join(call.words)
    assert (
        "--dataset-name prefix_repetition --prefix-repetition-prefix-len 22400 "
        "--prefix-repetition-suffix-len 9600 --prefix-repetition-output-len 1024 "
        "--prefix-repetition-num-prefixes 1 --num-prompts 1" in text
    )
    assert "--ignore-eos" in text


def test_prefixes_share_the_prompts_evenly(tmp_path: Path) -> None:
    task = task_of(
        "serve",
        tmp_path,
        dataset="prefix_repetition",
        requests=6,
        input_len=100,
        settings={"num_prefixes": "3", "prefix_len": "60", "request_rate": "2.5"},
    )
    flags = flags_of(prepare(task, VLLM, tmp_path))
    assert flags["--prefix-repetition-prefix-len"] == "60"
    assert flags["--prefix-repetition-suffix-len"] == "40"
    assert flags["--prefix-repetition-num-prefixes"] == "3"
    assert flags["--request-rate"] == "2.5"
    with pytest.raises(UsageError, match="each beginning"):
        prepare(replace(task, requests=7), VLLM, tmp_path)


def test_no_key_is_on_the_command_line(tmp_path: Path) -> None:
    call = prepare(task_of("serve", tmp_path, api_key="sk-secret"), VLLM, tmp_path)
    assert call.secrets == {"OPENAI_API_KEY": "sk-secret"}
    assert "sk-secret" not in str(call.words) + str(call.env)
    assert prepare(task_of("serve", tmp_path), VLLM, tmp_path).env["OPENAI_API_KEY"] is None
    assert list(tmp_path.iterdir()) == []


def test_the_modules_of_an_npu_hosts_toolkit_are_still_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/usr/local/Ascend/python")
    call = prepare(task_of("serve", tmp_path), VLLM, tmp_path)
    assert call.env["PYTHONPATH"] == "/usr/local/Ascend/python"


@pytest.mark.parametrize(
    ("version", "flag"),
    [("0.13.0", "--input-len"), ("0.14.0", "--random-input-len"), ("0.30.0", "--random-input-len")],
)
def test_throughput_says_lengths_as_its_version_hears_them(
    nano: Recorded, tmp_path: Path, version: str, flag: str
) -> None:
    call = prepare(task_of("throughput", nano.folder), Installed(Path("p"), version), tmp_path)
    flags = flags_of(call)
    assert flags[flag] == "8"
    assert flags["--model"] == str(nano.folder)
    assert "--quantization" not in flags
    assert not {"--input-len", "--random-input-len"} - {flag} & set(flags)


def test_warming_up_throughput_needs_a_version_that_does(nano: Recorded, tmp_path: Path) -> None:
    task = task_of("throughput", nano.folder, settings={"warmups": "2"})
    assert flags_of(prepare(task, VLLM, tmp_path))["--num-warmups"] == "2"
    with pytest.raises(UsageError, match="warm up"):
        prepare(task, Installed(Path("p"), "0.19.0"), tmp_path)


def test_an_engine_by_itself_is_told_what_serve_tells_it(nano: Recorded, tmp_path: Path) -> None:
    (nano.folder / "quant_model_description.json").write_text("{}")
    settings = {
        "speculative_tokens": "1",
        "tensor_parallel": "8",
        "max_num_seqs": "4",
        "engine_args": "--block-size 128 --additional-config '{\"a\": 1}'",
    }
    call = prepare(task_of("throughput", nano.folder, settings=settings), VLLM, tmp_path)
    flags = flags_of(call)
    assert flags["--quantization"] == "ascend"
    assert flags["--tensor-parallel-size"] == "8"
    assert flags["--enable-expert-parallel"] == ""
    assert json.loads(flags["--speculative-config"])["method"] == "mtp"
    assert flags["--max-num-seqs"] == "4"
    assert call.words[-4:] == ("--block-size", "128", "--additional-config", '{"a": 1}')


def test_latency_wants_a_vocabulary_that_holds_its_prompts(nano: Recorded, tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match="latency") as caught:
        prepare(task_of("latency", nano.folder), VLLM, tmp_path)
    assert "at least 10,000 tokens" in str(caught.value)
    config = nano.folder / "config.json"
    told = json.loads(config.read_text())
    config.write_text(json.dumps(told | {"vocab_size": 151_552}))
    flags = flags_of(prepare(task_of("latency", nano.folder), VLLM, tmp_path))
    assert (flags["--batch-size"], flags["--num-iters"]) == ("2", "30")


@pytest.mark.parametrize(
    ("mode", "change", "kind", "said"),
    [
        ("accuracy", {}, UsageError, "measures speed"),
        ("serve", {"url": None}, UsageError, "needs a server"),
        ("serve", {"folder": None}, UsageError, "folder"),
        ("serve", {"dataset": "sharegpt"}, UsageError, "no such prompts"),
        ("serve", {"settings": {"tensor_parallel": "2"}}, UsageError, "setting"),
        ("serve", {"settings": {"temperature": "hot"}}, UsageError, "setting"),
        ("throughput", {"dataset": "tutorial"}, UsageError, "made-up prompts"),
        ("throughput", {"settings": {"temperature": "0"}}, UsageError, "setting"),
        ("throughput", {"input_len": 10**7}, UsageError, "longer than the model takes"),
        ("throughput", {"folder": Path("/nowhere")}, GlmquantError, "."),
        ("throughput", {"settings": {"engine_args": "--a 'b"}}, UsageError, "parted into words"),
        ("serve", {"seed": 2**32}, UsageError, "takes no such seed"),
        ("serve", {"model": "a\0b"}, MeasureError, "on a command line"),
        ("serve", {"model": "a\ud800b"}, MeasureError, "on a command line"),
        (
            "serve",
            {"dataset": "prefix_repetition", "settings": {"num_prefixes": "2"}, "requests": 3},
            UsageError,
            "each beginning",
        ),
    ],
)
def test_what_vllm_cannot_measure_is_refused(
    nano: Recorded,
    tmp_path: Path,
    mode: str,
    change: dict[str, Any],
    kind: type[GlmquantError],
    said: str,
) -> None:
    with pytest.raises(kind, match=said) as caught:
        prepare(replace(task_of(mode, nano.folder), **change), VLLM, tmp_path)
    assert caught.value.hint or kind is GlmquantError


@pytest.mark.parametrize("version", ["0.12.0", "", "unknown"])
def test_a_version_that_is_not_known_is_refused(tmp_path: Path, version: str) -> None:
    with pytest.raises(MeasureError, match="version"):
        prepare(task_of("serve", tmp_path), Installed(Path("p"), version), tmp_path)


# What vLLM writes, in little: two answers of four tokens, in numbers that can be added by hand.


def served(work: Path) -> dict[str, Any]:
    told = {
        "num_prompts": 2,
        "completed": 2,
        "failed": 0,
        "duration": 2.0,
        "total_input_tokens": 16,
        "total_output_tokens": 8,
        "request_throughput": 1.0,
        "output_throughput": 4.0,
        "total_token_throughput": 12.0,
        "input_lens": [8, 8],
        "output_lens": [4, 4],
        "ttfts": [0.1, 0.3],
        "itls": [[0.1, 0.1, 0.1], [0.2, 0.2, 0.2]],
        "latencies": [0.4, 0.9],
        "errors": ["", ""],
        "generated_texts": ["a", "b"],
        "mean_ttft_ms": 200.0,
        "mean_tpot_ms": 150.0,
        "mean_itl_ms": 150.0,
        "mean_e2el_ms": 650.0,
        "spec_decode_acceptance_rate": 50.0,
        "spec_decode_acceptance_length": 1.5,
        "spec_decode_draft_tokens": 4,
    }
    (work / "result.json").write_text(json.dumps(told))
    return told


def test_a_servers_figures_are_those_of_its_requests(tmp_path: Path) -> None:
    served(tmp_path)
    measured = read(task_of("serve", tmp_path), VLLM, tmp_path)
    found = {name: result.value for name, result in figures_of(measured).items()}
    assert found == pytest.approx(
        {
            "request throughput": 1.0,
            "output throughput": 4.0,
            "total throughput": 12.0,
            "TTFT mean": 200.0,
            "TTFT median": 200.0,
            "TTFT p99": 298.0,
            "TPOT mean": 150.0,
            "TPOT median": 150.0,
            "TPOT p99": 199.0,
            "ITL mean": 150.0,
            "ITL median": 150.0,
            "ITL p99": 200.0,
            "E2EL mean": 650.0,
            "E2EL median": 650.0,
            "E2EL p99": 895.0,
            "acceptance rate": 50.0,
            "acceptance length": 1.5,
            "failed requests": 0.0,
        }
    )
    assert measured.samples["TTFT"] == pytest.approx((100.0, 300.0))
    assert all(result.interval is None for result in measured.results)
    assert any("fewer than 5 requests" in note for note in measured.notes)


def test_five_requests_give_their_mean_an_interval(tmp_path: Path) -> None:
    told = served(tmp_path)
    ttfts = [0.1, 0.2, 0.3, 0.4, 0.5]
    told |= {
        "num_prompts": 5,
        "completed": 5,
        "input_lens": [8] * 5,
        "output_lens": [4] * 5,
        "ttfts": ttfts,
        "itls": [[0.1] * 3] * 5,
        "latencies": [ttft + 0.3 for ttft in ttfts],
        "errors": [""] * 5,
        "total_output_tokens": 20,
        "total_input_tokens": 40,
        "request_throughput": 2.5,
        "output_throughput": 10.0,
        "total_token_throughput": 30.0,
        "mean_ttft_ms": 300.0,
        "mean_tpot_ms": 100.0,
        "mean_itl_ms": 100.0,
        "mean_e2el_ms": 600.0,
    }
    (tmp_path / "result.json").write_text(json.dumps(told))
    measured = read(task_of("serve", tmp_path, requests=5), VLLM, tmp_path)
    # Student's t for four degrees of freedom is 2.776; the standard error is 158.1 / 5 ** 0.5.
    interval = figures_of(measured)["TTFT mean"].interval
    assert interval == pytest.approx((300 - 196.3, 300 + 196.3), rel=5e-3)
    assert figures_of(measured)["ITL mean"].interval is None


def test_failed_requests_are_counted_and_in_no_other_figure(tmp_path: Path) -> None:
    told = served(tmp_path)
    told |= {
        "completed": 1,
        "failed": 1,
        "total_input_tokens": 8,
        "total_output_tokens": 4,
        "request_throughput": 0.5,
        "output_throughput": 2.0,
        "total_token_throughput": 6.0,
        "output_lens": [4, 0],
        "ttfts": [0.1, 0.0],
        "itls": [[0.1, 0.1, 0.1], []],
        "latencies": [0.4, 0.0],
        "errors": ["", "Traceback\nConnectionResetError: \x1b[2J gone"],
        "mean_ttft_ms": 100.0,
        "mean_tpot_ms": 100.0,
        "mean_itl_ms": 100.0,
        "mean_e2el_ms": 400.0,
    }
    (tmp_path / "result.json").write_text(json.dumps(told))
    measured = read(task_of("serve", tmp_path), VLLM, tmp_path)
    found = figures_of(measured)
    assert (found["failed requests"].value, found["failed requests"].items) == (1.0, 2)
    assert (found["TTFT mean"].value, found["TTFT mean"].items) == (100.0, 1)
    assert "1 of 2 requests failed" in measured.notes[0]
    assert "\\x1b[2J gone" in measured.notes[0]


def test_an_older_version_tells_no_latencies_and_they_are_added_up(tmp_path: Path) -> None:
    told = served(tmp_path)
    del told["latencies"]
    (tmp_path / "result.json").write_text(json.dumps(told))
    measured = read(task_of("serve", tmp_path), VLLM, tmp_path)
    assert measured.samples["E2EL"] == pytest.approx((400.0, 900.0))


SPOILED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another number of requests": lambda told: told | {"num_prompts": 3},
    "a short list": lambda told: told | {"ttfts": [0.1]},
    "a failure that is not listed": lambda told: told | {"completed": 1, "failed": 1},
    "a failure that is not counted": lambda told: told | {"errors": ["", "gone"]},
    "completed and failed": lambda told: told | {"failed": 1},
    "output tokens": lambda told: told | {"total_output_tokens": 9},
    "a rate": lambda told: told | {"output_throughput": 5.0},
    "a mean": lambda told: told | {"mean_tpot_ms": 15.0},
    "no mean": lambda told: {key: told[key] for key in told if key != "mean_ttft_ms"},
    "not a number": lambda told: told | {"duration": float("nan")},
    "infinite": lambda told: told | {"ttfts": [0.1, float("inf")]},
    "negative": lambda told: told | {"ttfts": [0.1, -0.3]},
    "text": lambda told: told | {"completed": "2"},
    "a list": lambda told: [told],
    "no field": lambda told: {},
    "nothing answered": lambda told: (
        told | {"completed": 0, "failed": 2, "errors": ["gone", "gone"], "output_lens": [0, 0]}
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_result_that_does_not_add_up_is_refused(tmp_path: Path, name: str) -> None:
    spoiled = SPOILED[name](served(tmp_path))
    (tmp_path / "result.json").write_text(json.dumps(spoiled))
    with pytest.raises(MeasureError):
        read(task_of("serve", tmp_path), VLLM, tmp_path)


@pytest.mark.parametrize("mode", ["serve", "latency", "throughput"])
@pytest.mark.parametrize("text", [None, "", '{"completed": 2', "[" * 100_000, "{}"])
def test_no_result_is_an_error(tmp_path: Path, mode: str, text: str | None) -> None:
    if text is not None:
        (tmp_path / "result.json").write_text(text)
    with pytest.raises(MeasureError):
        read(task_of(mode, tmp_path), VLLM, tmp_path)


def test_a_batchs_latencies_are_counted(tmp_path: Path) -> None:
    latencies = [1.0, 2.0, 3.0, 4.0, 5.0]
    told = {"avg_latency": 3.0, "latencies": latencies, "percentiles": {"50": 3.0}}
    (tmp_path / "result.json").write_text(json.dumps(told))
    task = task_of("latency", tmp_path, settings={"iterations": "5"})
    found = figures_of(read(task, VLLM, tmp_path))
    assert found["batch latency mean"].value == 3000.0
    assert found["batch latency mean"].interval == pytest.approx((1037, 4963), rel=5e-3)
    assert found["batch latency p99"].value == pytest.approx(4960.0)
    with pytest.raises(MeasureError):
        read(task_of("latency", tmp_path), VLLM, tmp_path)
    (tmp_path / "result.json").write_text(json.dumps(told | {"avg_latency": 2.0}))
    with pytest.raises(MeasureError):
        read(task, VLLM, tmp_path)


def test_throughput_of_other_lengths_than_asked_is_refused(tmp_path: Path) -> None:
    told = {
        "elapsed_time": 2.0,
        "num_requests": 2,
        "total_num_tokens": 24,
        "requests_per_second": 1.0,
        "tokens_per_second": 12.0,
    }
    (tmp_path / "result.json").write_text(json.dumps(told))
    found = figures_of(read(task_of("throughput", tmp_path), VLLM, tmp_path))
    assert found["total throughput"].value == 12.0
    ignored = {"total_num_tokens": 2304, "tokens_per_second": 1152.0}
    (tmp_path / "result.json").write_text(json.dumps(told | ignored))
    with pytest.raises(MeasureError, match="add up"):
        read(task_of("throughput", tmp_path), VLLM, tmp_path)


def test_percentiles_and_intervals_are_those_of_the_textbooks() -> None:
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile([1.0], 99) == 1.0
    assert percentile([0.0, 10.0], 99) == pytest.approx(9.9)
    # Thirty values: t for 29 degrees of freedom is 2.0452.
    values = [float(n) for n in range(30)]
    low, high = mean_interval(values)
    assert (high - low) / 2 == pytest.approx(2.0452 * 8.80341 / 30**0.5, rel=1e-4)
    assert (high + low) / 2 == pytest.approx(14.5)


def test_vllm_is_known_by_its_name() -> None:
    assert SUITES["vllm"].modes == ("serve", "latency", "throughput")


# The genuine vLLM on the CPU engine.


@pytest.fixture(scope="module")
def cpu() -> Iterator[Installed]:
    os.environ["GLMQUANT_ENGINE_HOME"] = str(HOME)
    found = find_engine()
    assert found is not None
    yield Installed(found.python, found.versions["vllm"], is_ours=True)
    del os.environ["GLMQUANT_ENGINE_HOME"]


@pytest.fixture(scope="module")
def server(cpu: Installed, demo_output: Path) -> Iterator[Server]:
    found = find_engine()
    assert found is not None
    with serving(
        cpu_backend(found),
        demo_output,
        what="GLM-4-nano",
        is_quantized=True,
        max_model_len=256,
        observer=Observer(),
        speculative_tokens=1,
    ) as ready:
        yield ready


def url_of(server: Server) -> str:
    return server.client.url


@pytest.mark.parametrize("mark", [pytest.param(None, marks=engine)])
@pytest.mark.parametrize("dataset", ["random", "prefix_repetition"])
def test_the_genuine_load_on_a_server_is_counted(
    cpu: Installed, server: Server, demo_output: Path, tmp_path: Path, dataset: str, mark: None
) -> None:
    task = task_of(
        "serve",
        demo_output,
        url=url_of(server),
        model="glmquant",
        dataset=dataset,
        requests=6,
        input_len=32,
        output_len=8,
    )
    log = tmp_path / "log"
    assert run_call(prepare(task, cpu, tmp_path), log) == 0, log.read_text()[-3000:]
    measured = read(task, cpu, tmp_path)
    found = figures_of(measured)
    assert found["failed requests"].value == 0
    assert len(measured.samples["TTFT"]) == len(measured.samples["TPOT"]) == 6
    interval = found["E2EL mean"].interval
    assert interval is not None and interval[0] < found["E2EL mean"].value < interval[1]
    assert 0 <= found["acceptance rate"].value <= 100


@pytest.mark.parametrize("mark", [pytest.param(None, marks=engine)])
def test_prompts_that_the_server_refuses_are_failures(
    cpu: Installed, server: Server, demo_output: Path, tmp_path: Path, mark: None
) -> None:
    task = task_of(
        "serve", demo_output, url=url_of(server), model="glmquant", input_len=300, output_len=8
    )
    run_call(prepare(task, cpu, tmp_path), tmp_path / "log")
    with pytest.raises(MeasureError):
        read(task, cpu, tmp_path)


@pytest.mark.parametrize("mark", [pytest.param(None, marks=engine)])
def test_the_genuine_throughput_drafts(
    cpu: Installed, demo_output: Path, tmp_path: Path, mark: None
) -> None:
    task = task_of("throughput", demo_output, requests=3, settings={"speculative_tokens": "1"})
    log = tmp_path / "log"
    assert run_call(prepare(task, cpu, tmp_path), log) == 0, log.read_text()[-3000:]
    found = figures_of(read(task, cpu, tmp_path))
    assert found["request throughput"].items == 3
    assert "ModelSlim" in log.read_text() or "ascend" in log.read_text()


@pytest.mark.parametrize("mark", [pytest.param(None, marks=engine)])
def test_the_genuine_latency_of_a_wide_vocabulary(
    cpu: Installed, demo_source: Path, tmp_path: Path, mark: None
) -> None:
    wide = widened(demo_source, tmp_path / "wide", 10_240)
    target = tmp_path / "wide-W8A8"
    assert run_glmquant("w8a8", wide, target, "--add-mtp").exit_code == 0
    settings = {"iterations": "5", "warmups": "1", "speculative_tokens": "1"}
    task = task_of("latency", target, settings=settings)
    log = tmp_path / "log"
    assert run_call(prepare(task, cpu, tmp_path), log) == 0, log.read_text()[-3000:]
    measured = read(task, cpu, tmp_path)
    assert len(measured.samples["batch latency"]) == 5


def widened(source: Path, target: Path, vocabulary: int) -> Path:
    """A copy of a model with a longer vocabulary; what is new repeats what is there."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    path = target / "config.json"
    config = json.loads(path.read_text())
    old = config["vocab_size"]
    path.write_text(json.dumps(config | {"vocab_size": vocabulary}))
    total = 0
    for file in target.glob("*.safetensors"):
        tensors = load_file(file)
        for name, tensor in tensors.items():
            if tensor.ndim == 2 and tensor.shape[0] == old:
                rows = torch.arange(vocabulary) % old
                tensors[name] = tensor[rows].clone()
        total += sum(each.numel() * each.element_size() for each in tensors.values())
        save_file(tensors, file, metadata={"format": "pt"})
    index = target / "model.safetensors.index.json"
    told = json.loads(index.read_text())
    told["metadata"]["total_size"] = total
    index.write_text(json.dumps(told))
    return target
