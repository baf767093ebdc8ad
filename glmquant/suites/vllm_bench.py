"""vLLM's own benchmark: a server under load, or an engine by itself on a checkpoint's folder."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from glmquant.description import DESCRIPTION_FILE
from glmquant.errors import MeasureError, UsageError
from glmquant.runtime import hosts
from glmquant.runtime.environment import find_engine
from glmquant.runtime.launch import ServeRequest, command_words, engine_options
from glmquant.runtime.serving import Backend, ascend_backend, cpu_backend
from glmquant.storage import reading
from glmquant.suites.settings import Settings
from glmquant.suites.task import Call, Installed, Measured, Suite, Task
from glmquant.suites.vllm_output import RESULT_FILE, read_latency, read_serve, read_throughput
from glmquant.survey import printable

OLDEST: Final = (0, 13)
"""Of the versions whose flags were read in vLLM's sources: 0.13, 0.19, 0.23 and 0.30."""

MAX_SEED: Final = 2**32 - 1
"""It seeds numpy with it, which takes no more."""

LATENCY_VOCABULARY: Final = 10_000
"""``bench latency`` draws its token ids below this, whatever the model has (vLLM 0.13 to 0.30)."""

_RANDOM_LENGTHS: Final = (0, 14)
"""The first whose ``throughput`` has ``--random-input-len``."""

_WARM_THROUGHPUT: Final = (0, 23)
"""The first of those whose ``throughput`` warms up."""

_TUTORIAL: Final = {"prefix_len": 22_400, "suffix_len": 9_600, "output_len": 1_024}
"""vllm-ascend's GLM4.x tutorial: one prompt of 32,000 tokens."""

_DATASETS: Final = ("random", "prefix_repetition", "tutorial")

_ENGINE: Final = {
    "tensor_parallel": "over how many cards a layer is divided; all there are if left out",
    "max_model_len": "most tokens of a prompt and its answer",
    "max_num_seqs": "most requests at a time",
    "speculative_tokens": "how many the MTP layer drafts at a step; 0 for none",
    "engine_args": "more flags of vLLM, as on a command line",
}
_SETTINGS: Final = {
    "serve": {
        "temperature": "of sampling",
        "request_rate": "requests a second; all at once if left out",
        "warmups": "requests that are not counted",
        "prefix_len": "tokens that the prompts of prefix_repetition share",
        "num_prefixes": "how many such beginnings there are",
        "endpoint": "completions or chat",
    },
    "latency": _ENGINE
    | {"iterations": "how often the batch is run", "warmups": "how often before it counts"},
    "throughput": _ENGINE | {"warmups": "requests that are not counted, from vLLM 0.23 on"},
}


def prepare(task: Task, installed: Installed, work: Path) -> Call:
    """The command of a measurement; vLLM needs no configuration file.

    Args:
        task: What is to be measured.
        installed: Where vLLM is.
        work: Where its results go.

    Raises:
        UsageError: The task is none of vLLM's, or a setting is wrong.
        MeasureError: The version or the checkpoint will not do.
        StorageError: The checkpoint cannot be read.
    """
    work = work.resolve()
    version = _version(installed)
    if task.mode not in _SETTINGS:
        raise UsageError(
            "vLLM's benchmark measures speed",
            expected=f"one of {', '.join(_SETTINGS)}",
            found=task.mode,
            hint="answers are measured by glmquant eval",
        )
    settings = Settings(f"vllm bench {task.mode}", _SETTINGS[task.mode], task.settings)
    settings.require_seed(task.seed, MAX_SEED)
    _require_sendable(task)
    if task.folder is None:
        raise UsageError(
            "vLLM's benchmark needs the checkpoint's folder",
            expected="the folder, whose tokenizer makes up the prompts"
            if task.mode == "serve"
            else "the folder: the engine is run by itself",
            found="none",
            hint="name it: glmquant bench DIR, or --checkpoint DIR beside a URL",
        )
    backend = _backend(installed)
    if task.mode == "serve":
        options = _serve_options(task, settings, work)
    elif task.mode == "latency":
        options = _latency_options(task, settings, work) | _engine(task, settings, backend)
    else:
        options = _throughput_options(task, settings, work, version)
        options |= _engine(task, settings, backend)
    program = [str(installed.python), "-m", "vllm.entrypoints.cli.main", "bench"]
    words = command_words(program, task.mode, options)
    words += _engine_args(settings)
    env: dict[str, str | None] = dict.fromkeys(backend.dropped)
    # A key that the user has for somebody else is not sent to this server.
    env |= {**backend.environment, "OPENAI_API_KEY": None}
    if "PYTHONPATH" not in env and (path := os.environ.get("PYTHONPATH")):
        env["PYTHONPATH"] = path  # CANN's own modules are found by it
    secrets = {"OPENAI_API_KEY": task.api_key} if task.api_key else {}
    told = {"api": settings.text("endpoint") or "completions"} if task.mode == "serve" else {}
    return Call(tuple(words), env, secrets, told)


def read(task: Task, installed: Installed, work: Path) -> Measured:
    """What vLLM wrote.

    Args:
        task: What was asked for.
        installed: Where vLLM is.
        work: The folder of ``prepare``.

    Raises:
        MeasureError: It wrote nothing, no request was answered, or its figures do not add up.
        StorageError: It cannot be read.
    """
    if task.mode == "serve":
        return read_serve(task, work)
    if task.mode == "latency":
        settings = Settings("vllm bench latency", _SETTINGS["latency"], task.settings)
        return read_latency(task, work, settings.whole("iterations", 30, 1, 10**6))
    return read_throughput(task, work)


def _require_sendable(task: Task) -> None:
    """A model's name goes to vLLM on a command line, which does not hold every text."""
    try:
        task.model.encode()
        is_sendable = "\0" not in task.model
    except UnicodeEncodeError:
        is_sendable = False
    if not is_sendable:
        raise MeasureError(
            "the server's name of its model does not go on a command line",
            where=task.url,
            expected="a name in UTF-8 without NUL",
            found=printable(task.model),
            hint="serve it under another: vllm serve --served-model-name NAME",
        )


def _serve_options(task: Task, settings: Settings, work: Path) -> dict[str, Any]:
    if task.url is None:
        raise UsageError(
            "bench serve needs a server",
            expected="a URL",
            found="none",
            hint="glmquant bench http://HOST:PORT --checkpoint DIR",
        )
    is_chat = settings.choice("endpoint", ("completions", "chat"), "completions") == "chat"
    return {
        "--backend": "openai-chat" if is_chat else "openai",
        "--base-url": task.url.rstrip("/"),
        "--endpoint": "/v1/chat/completions" if is_chat else "/v1/completions",
        "--model": task.model,
        "--tokenizer": str(task.folder),
        **_prompts(task, settings),
        "--max-concurrency": task.concurrency,
        "--request-rate": settings.number("request_rate", 1, 1e-6, 1e9)
        if settings.text("request_rate")
        else None,
        "--num-warmups": settings.whole("warmups", 0, 0, 10**6),
        # Left out it is 0 in vLLM 0.13 and the server's default in later ones.
        "--temperature": settings.number("temperature", 0, 0, 2),
        "--seed": task.seed,
        "--ignore-eos": True,
        "--percentile-metrics": "ttft,tpot,itl,e2el",
        "--metric-percentiles": "99",
        "--disable-tqdm": True,
        "--save-result": True,
        "--save-detailed": True,
        "--result-dir": str(work),
        "--result-filename": RESULT_FILE,
    }


def _prompts(task: Task, settings: Settings) -> dict[str, Any]:
    """The flags of the prompts that are made up."""
    if task.dataset not in _DATASETS:
        raise UsageError(
            "vLLM's benchmark has no such prompts here",
            expected=f"one of {', '.join(_DATASETS)}",
            found=task.dataset,
            hint=f"--dataset {_DATASETS[0]}",
        )
    if task.dataset == "random":
        return {
            "--dataset-name": "random",
            "--random-input-len": task.input_len,
            "--random-output-len": task.output_len,
            "--num-prompts": task.requests,
        }
    if task.dataset == "tutorial":
        prefix, suffix, output = _TUTORIAL.values()
        requests, prefixes = 1, 1
    else:
        prefix = settings.whole("prefix_len", task.input_len * 7 // 10, 1, task.input_len)
        suffix, output = task.input_len - prefix, task.output_len
        requests = task.requests
        prefixes = settings.whole("num_prefixes", 1, 1, requests)
        if requests % prefixes:
            raise UsageError(
                "each beginning needs as many prompts as the others, or vLLM sends fewer",
                expected=f"a number of requests that {prefixes} divides",
                found=str(requests),
                hint=f"--requests {-(-requests // prefixes) * prefixes}",
            )
    return {
        "--dataset-name": "prefix_repetition",
        "--prefix-repetition-prefix-len": prefix,
        "--prefix-repetition-suffix-len": suffix,
        "--prefix-repetition-output-len": output,
        "--prefix-repetition-num-prefixes": prefixes,
        "--num-prompts": requests,
    }


def _latency_options(task: Task, settings: Settings, work: Path) -> dict[str, Any]:
    vocabulary = _config(task).get("vocab_size")
    if isinstance(vocabulary, int) and vocabulary < LATENCY_VOCABULARY:
        raise MeasureError(
            "vllm bench latency does not run on this model",
            where=str(task.folder),
            expected=f"at least {LATENCY_VOCABULARY:,} tokens, of which it draws its prompts",
            found=f"a vocabulary of {vocabulary:,}",
            hint="glmquant bench DIR --mode throughput draws from what there is",
        )
    return {
        "--input-len": task.input_len,
        "--output-len": task.output_len,
        "--batch-size": task.concurrency,
        "--num-iters": settings.whole("iterations", 30, 1, 10**6),
        "--num-iters-warmup": settings.whole("warmups", 10, 0, 10**6),
        "--output-json": str(work / RESULT_FILE),
    }


def _throughput_options(
    task: Task, settings: Settings, work: Path, version: tuple[int, int]
) -> dict[str, Any]:
    if task.dataset != "random":
        raise UsageError(
            "vllm bench throughput is asked with made-up prompts here",
            expected="random",
            found=task.dataset,
            hint="--dataset random",
        )
    warmups = settings.whole("warmups", 0, 0, 10**6)
    if warmups and version < _WARM_THROUGHPUT:
        raise UsageError(
            "this vLLM's throughput does not warm up",
            expected="0.23 or newer, or no warmups",
            found=".".join(map(str, version)),
            hint="leave --set warmups out",
        )
    # Later versions take --input-len, and send prompts of 1,024 tokens whatever it says.
    name = "--random-{}-len" if version >= _RANDOM_LENGTHS else "--{}-len"
    return {
        "--dataset-name": "random",
        name.format("input"): task.input_len,
        name.format("output"): task.output_len,
        "--num-prompts": task.requests,
        "--num-warmups": warmups or None,
        "--output-json": str(work / RESULT_FILE),
    }


def _engine_args(settings: Settings) -> list[str]:
    """The user's own flags, as a shell parts them."""
    text = settings.text("engine_args") or ""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(
            "the flags for vLLM cannot be parted into words",
            where="--set engine_args",
            expected="each quotation mark twice",
            found=f"{printable(text)}: {error}",
            hint="as in --set 'engine_args=--block-size 128'",
        ) from error


def _engine(task: Task, settings: Settings, backend: Backend) -> dict[str, Any]:
    """The flags of the engine that is run by itself."""
    folder = Path(str(task.folder)).resolve()
    config = _config(task)
    longest = config.get("max_position_embeddings")
    needed = task.input_len + task.output_len
    most = longest if isinstance(longest, int) else 2 * needed
    # Made-up text does not always come back as the tokens that it was made of.
    roomy = min(most, needed + task.input_len // 8 + 64)
    if needed > most:
        raise UsageError(
            "prompt and answer are longer than the model takes",
            expected=f"at most {most:,} tokens together",
            found=f"{needed:,}",
            hint="smaller ones: --input-len TOKENS, --output-len TOKENS",
        )
    is_cpu = backend.key == "cpu"
    cards = backend.tensor_parallel
    cards = cards if is_cpu else settings.whole("tensor_parallel", cards, 1, 1024)
    batch = task.concurrency if task.mode == "latency" else None
    request = ServeRequest(
        folder=folder,
        port=0,
        quantization="ascend" if (folder / DESCRIPTION_FILE).is_file() else None,
        speculative_tokens=settings.whole("speculative_tokens", 0, 0, 8),
        tensor_parallel=cards,
        expert_parallel=cards > 1,
        max_model_len=settings.whole("max_model_len", roomy, needed, most),
        max_num_seqs=settings.whole("max_num_seqs", batch or task.concurrency, 1, 10**5),
        dtype="bfloat16" if is_cpu else None,
        eager=is_cpu,
        prefix_caching=False,
    )
    return {"--model": str(folder), "--seed": task.seed} | engine_options(request)


def _config(task: Task) -> Mapping[str, Any]:
    path = Path(str(task.folder)) / "config.json"
    try:
        with reading(path):
            told = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise MeasureError(
            "config.json is no JSON", where=str(path), found=str(error)[:200]
        ) from error
    return told if isinstance(told, dict) else {}


def _backend(installed: Installed) -> Backend:
    """What the engine's variables are: those of the CPU engine, or of an NPU host."""
    engine = find_engine()
    if engine is not None and engine.python == installed.python:
        return cpu_backend(engine)
    return ascend_backend(str(installed.python), max(1, hosts.count_npus()))


def _version(installed: Installed) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", installed.version)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    if version < OLDEST:
        raise MeasureError(
            "this version of vLLM is not known",
            where=str(installed.python),
            expected=f"{'.'.join(map(str, OLDEST))} or newer",
            found=installed.version,
            hint="run it by hand: vllm bench serve --help",
        )
    return version


VLLM: Final = Suite(
    name="vllm",
    title="vLLM's benchmark",
    package="vllm",
    modes=("serve", "latency", "throughput"),
    datasets=_DATASETS,
    prepare=prepare,
    read=read,
)
