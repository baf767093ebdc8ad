"""AISBench: its own data sets' prompts and scoring, over a server's chat API.

The configuration that is written builds on those that AISBench ships, so a figure is that of the
suite. What differs is where the data lie, the room for an answer, and where the key comes from.
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from glmquant.errors import MeasureError, UsageError
from glmquant.storage import writing
from glmquant.suites.aisbench_output import (
    DATASET,
    MODEL,
    OUTPUT,
    QUESTIONS,
    read_accuracy,
    read_speed,
)
from glmquant.suites.datafiles import FORMS, DataFile, read_data
from glmquant.suites.items import item_name
from glmquant.suites.settings import Settings
from glmquant.suites.task import Call, Installed, Measured, Suite, Task

CONFIG: Final = "config.py"
DATA_VARIABLE: Final = "AIS_BENCH_DATASETS_CACHE"
KEY_VARIABLE: Final = "GLMQUANT_SUITE_API_KEY"
MADE_UP: Final = "random"
"""Prompts of words drawn by chance, whose answers go on to their full length."""

OLDEST: Final = (3, 1)
"""Of the versions whose classes and configurations are known; PyPI has no older one."""

MAX_OUT_LEN: Final = 131_072
"""AISBench 3.1 takes no more (``utils/config/build.py``)."""

MAX_SEED: Final = 2**63 - 1
"""A server takes no more (vLLM 0.13 to 0.30, ``seed`` of a request)."""

_INSIDE: Final = Path(__file__).parent / "inside" / "aisbench_chat.py"
_CONFIGS: Final = "ais_bench.benchmark.configs"
_CHAT: Final = "aisbench_chat.Chat"
_SUFFIX: Final = "ais_bench.benchmark.utils.postprocess.model_postprocessors"

_SETTINGS: Final = {
    "temperature": "of sampling; AISBench ships 0.01",
    "top_p": "of sampling",
    "top_k": "of sampling",
    "repetition_penalty": "of sampling",
    "thinking": "on or off, as GLM's chat template knows it",
    "retry": "how often a request is sent at most where the line breaks",
    "warmups": "requests before those that count",
}

_SOURCES: Final = {
    "gsm8k": "openai/gsm8k on a hub, or openai/grade-school-math on GitHub: test.jsonl",
    "gpqa": "Idavidrein/gpqa on a hub, after its terms: gpqa_diamond.csv",
    "math500": "HuggingFaceH4/MATH-500 on a hub: test.jsonl",
}

_WORDS: Final = (
    "the of and to in that it was for on are as with his they at be this from have or by one had "
    "not but what all were when we there can an your which their said if do will each about how "
    "up out them then she many some so these would other into has more her two like him see time "
    "could no make than first been its who now people my made over did down only way find use may "
    "water long little very after words called just where most know"
)
"""Common words: nearly every tokenizer has each, with the blank before it, as one token."""


@dataclass(frozen=True, slots=True)
class Base:
    """A data set's configuration that AISBench ships.

    Attributes:
        module: Below its configurations.
        variable: The list in it.
        folder: Of the data in AISBench's own place.
        file: What holds the items for it.
    """

    module: str
    variable: str
    folder: str
    file: str


_ACCURACY: Final = {
    "gsm8k": Base(
        "datasets.gsm8k.gsm8k_gen_0_shot_cot_chat_prompt", "gsm8k_datasets", "gsm8k", "test.jsonl"
    ),
    "gpqa": Base(
        "datasets.gpqa.gpqa_gen_0_shot_cot_chat_prompt", "gpqa_datasets", "gpqa", "items.csv"
    ),
    "math500": Base(
        "datasets.math.math500_gen_0_shot_cot_chat_prompt", "math_datasets", "math", "items.jsonl"
    ),
}
_SPEED: Final = Base(
    "datasets.gsm8k.gsm8k_gen_0_shot_cot_str_perf", "gsm8k_datasets", "gsm8k", "test.jsonl"
)


def prepare(task: Task, installed: Installed, work: Path) -> Call:
    """Write configuration, model and data into an empty folder, and give the command.

    Args:
        task: What is to be measured.
        installed: Where AISBench is.
        work: The folder, in which the command is to be run.

    Raises:
        UsageError: The task is none of AISBench's.
        MeasureError: The data are not there or of no known form, or this version is not known.
        StorageError: It cannot be written.
    """
    if task.url is None or task.mode not in AISBENCH.modes:
        raise UsageError(
            "AISBench measures a server",
            expected="eval URL --suite aisbench, or bench URL --suite aisbench --mode serve",
            found=f"mode {task.mode}" if task.url else "no URL",
            hint="--mode serve, or --suite vllm" if task.url else "name it: http://HOST:PORT",
        )
    _require_usable(installed)
    settings = Settings("aisbench", _SETTINGS, task.settings)
    is_speed = task.mode != "accuracy"
    if is_speed and task.folder is None:
        raise UsageError(
            "AISBench needs the tokenizer to measure speed",
            expected="the checkpoint's folder on this machine",
            found="no folder",
            hint="name it: --checkpoint DIR",
        )
    config = _speed_data(task, installed, work) if is_speed else _items(task, installed, work)
    sampling = _sampling(task, settings, is_speed)
    config += _models(task, settings, sampling, is_speed)
    _write(work / CONFIG, config)
    _write(work / _INSIDE.name, _INSIDE.read_text(encoding="utf-8"))
    words = [str(installed.python), "-m", "ais_bench.benchmark.cli.main", CONFIG]
    words += ["--mode", "perf" if is_speed else "all", "--work-dir", OUTPUT, "--debug"]
    words += ["--num-warmups", str(settings.whole("warmups", 0, 0, 1000))]
    words += [] if is_speed else ["--dump-eval-details"]
    env: dict[str, str | None] = {
        "PYTHONPATH": str(work),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(work / "cache"),
        "TOKENIZERS_PARALLELISM": "false",
        KEY_VARIABLE: None,
        **_no_proxy(task.url),
    }
    secrets = {KEY_VARIABLE: task.api_key} if task.api_key else {}
    told = {"temperature": sampling["temperature"], "api": "chat"}
    return Call(tuple(words), env, secrets, told)


def read(task: Task, installed: Installed, work: Path) -> Measured:
    """What AISBench wrote.

    Args:
        task: What was asked for.
        installed: Where AISBench is.
        work: The folder of ``prepare``.

    Raises:
        MeasureError: It wrote nothing, or its figures do not add up.
        StorageError: It cannot be read.
    """
    return read_accuracy(task, work) if task.mode == "accuracy" else read_speed(task, work)


def _require_usable(installed: Installed) -> None:
    parts = installed.version.split(".")[:2]
    numbers = tuple(int(part) if part.isdigit() else 0 for part in parts)
    if numbers < OLDEST:
        raise MeasureError(
            "this version of AISBench is not known",
            where=str(installed.python),
            expected=f"{'.'.join(map(str, OLDEST))} or newer",
            found=installed.version,
            hint="glmquant suites install aisbench builds one that is",
        )
    if str(installed.python) != "".join(str(installed.python).split()):
        # It starts itself by a line of the shell, and quotes nothing (``runners/local.py``).
        raise MeasureError(
            "AISBench does not run from a path with a blank",
            where=str(installed.python),
            expected="an interpreter without one in its path",
            hint="GLMQUANT_SUITES_HOME=DIR glmquant suites install aisbench builds one in DIR",
        )


def _no_proxy(url: str) -> dict[str, str | None]:
    """AISBench obeys the proxies of the environment, for this machine's own servers, too."""
    host = urlsplit(url).hostname or ""
    if host != "localhost" and not host.startswith("127.") and host != "::1":
        return {}
    there = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = ",".join(filter(None, (there, host)))
    return {"no_proxy": hosts, "NO_PROXY": hosts}


def _sampling(task: Task, settings: Settings, is_speed: bool) -> dict[str, Any]:
    """What each request says of its answer."""
    made_up = is_speed and task.dataset == MADE_UP
    sampling: dict[str, Any] = {
        "temperature": settings.number("temperature", 0.01, 0, 10),
        "seed": settings.require_seed(task.seed, MAX_SEED),
        "ignore_eos": made_up,
    }
    for name, low, high in (("top_p", 0, 1), ("repetition_penalty", 0, 10)):
        if settings.text(name) is not None:
            sampling[name] = settings.number(name, 0, low, high)
    if settings.text("top_k") is not None:
        sampling["top_k"] = settings.whole("top_k", 0, -1, 1_000_000)
    if settings.text("thinking") is not None:
        thinks = settings.choice("thinking", ("on", "off"), "on") == "on"
        sampling["chat_template_kwargs"] = {"enable_thinking": thinks}
    return sampling


def _models(task: Task, settings: Settings, sampling: dict[str, Any], is_speed: bool) -> str:
    """The part of the configuration that says whom to ask, and how."""
    room = task.output_len if is_speed else task.max_out_len
    if not 0 < room <= MAX_OUT_LEN:
        raise UsageError(
            "AISBench takes no such length of an answer",
            expected=f"1 to {MAX_OUT_LEN:,} tokens",
            found=f"{room:,}",
            hint=f"{'--output-len' if is_speed else '--max-out-len'} {MAX_OUT_LEN} or less",
        )
    model = {
        "attr": "service",
        "type": _CHAT,
        "abbr": MODEL,
        "path": str(task.folder.absolute()) if is_speed and task.folder else "",
        "model": task.model,
        "stream": is_speed,
        "request_rate": 0,
        "use_timestamp": False,
        "retry": settings.whole("retry", 2, 1, 1000),
        # A host by its name is refused as ``host_ip``; ``url`` takes any.
        "url": (task.url or "").rstrip("/") + "/",
        "max_out_len": room,
        "batch_size": task.concurrency,
        "trust_remote_code": False,
        "generation_kwargs": sampling,
        "pred_postprocessor": {"type": f"{_SUFFIX}.extract_non_reasoning_content"},
    }
    return f"models = [{model!r}]\n"


def _items(task: Task, installed: Installed, work: Path) -> str:
    """The part of the configuration that says what to ask; writes the items."""
    data = _data(task, installed)
    form = data.form.name
    base = _ACCURACY[form]
    items = data.items[: task.limit]
    folder = work / "data"
    _write(folder / base.file, _lines(form, items))
    changes: dict[str, Any] = {"abbr": DATASET, "path": str(folder)}
    if form == "gsm8k":
        # It reads both, and asks the second only.
        _write(folder / "train.jsonl", _lines(form, items[:1]))
    else:
        changes["name" if form == "gpqa" else "file_name"] = base.file
    names = [item_name(item[data.form.question]) for item in items]
    _write(work / QUESTIONS, json.dumps({"form": form, "names": names}))
    return _config(base, "accuracy", changes)


def _speed_data(task: Task, installed: Installed, work: Path) -> str:
    """The same for speed: as many prompts as requests."""
    folder = work / "data"
    if task.dataset == MADE_UP:
        draw = random.Random(task.seed)
        prompts = [
            " ".join(draw.choices(_WORDS.split(), k=max(1, task.input_len)))
            for _ in range(task.requests)
        ]
    else:
        data = _data(task, installed)
        if data.form.name != "gsm8k":
            raise UsageError(
                "AISBench measures speed on other prompts here",
                expected=f"{MADE_UP}, gsm8k, or a file of its form",
                found=task.dataset,
                hint=f"--dataset {MADE_UP}",
            )
        prompts = [item["question"] for item in data.items[: task.requests]]
        if len(prompts) < task.requests:
            raise UsageError(
                "there are fewer prompts than requests",
                where=str(data.path),
                expected=f"{task.requests:,} items: one that is sent twice would be cached",
                found=f"{len(prompts):,}",
                hint=f"--requests {len(prompts)}",
            )
    items = [{"question": prompt, "answer": "#### 0"} for prompt in prompts]
    _write(folder / _SPEED.file, _lines("gsm8k", items))
    _write(folder / "train.jsonl", _lines("gsm8k", items[:1]))
    return _config(_SPEED, "performance", {"abbr": DATASET, "path": str(folder)})


def _config(base: Base, attr: str, changes: dict[str, Any]) -> str:
    """What AISBench ships for a data set, with changes, and how to sum it up."""
    lines = [
        '"""Written by glmquant; `ais_bench` runs it in this folder."""',
        "from mmengine.config import read_base",
        "with read_base():",
        f"    from {_CONFIGS}.{base.module} import {base.variable} as datasets",
    ]
    if attr == "performance":
        lines += [f"    from {_CONFIGS}.summarizers.perf.default_perf import summarizer"]
    else:
        lines += ["summarizer = {'attr': 'accuracy', 'summary_groups': []}"]
    lines += [f"datasets[0][{name!r}] = {value!r}" for name, value in changes.items()]
    return "\n".join(lines) + "\n"


def _data(task: Task, installed: Installed) -> DataFile:
    """The items: of the user's file, of the folder that AISBench's variable names, or its own."""
    if task.data is not None:
        return read_data(task.data, task.dataset)
    base = _ACCURACY.get(task.dataset)
    if base is None:
        raise UsageError(
            "AISBench has no such data set here",
            expected=f"one of {', '.join(_ACCURACY)}, or a file",
            found=task.dataset,
            hint="name a file: --dataset FILE.jsonl",
        )
    named = os.environ.get(DATA_VARIABLE)
    roots = [Path(named)] if named else _site_packages(installed.python)
    folders = [root / "ais_bench" / "datasets" / base.folder for root in roots]
    for folder in folders:
        if any((folder / name).is_file() for name in FORMS[task.dataset].files):
            return read_data(folder, task.dataset)
    raise MeasureError(
        f"the items of {task.dataset} are not there",
        where=str(folders[0]) if folders else None,
        expected=f"{FORMS[task.dataset].files[0]}, from {_SOURCES[task.dataset]}",
        hint=f"name the file with --dataset FILE, or the folder that holds "
        f"ais_bench/datasets/{base.folder} with {DATA_VARIABLE}=DIR",
    )


def _site_packages(python: Path) -> list[Path]:
    """Where an interpreter's packages are; AISBench looks for its data beside itself."""
    return sorted(python.parent.parent.glob("lib*/python3*/*-packages"))


def _lines(form: str, items: Sequence[dict[str, str]]) -> str:
    """The items as AISBench reads them."""
    if form == "gpqa":
        # It reads columns 7 to 11 by their places, and takes the question's title for the head.
        names = ("Question", "Correct Answer", *(f"Incorrect Answer {n}" for n in (1, 2, 3)))
        text = io.StringIO(newline="")
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow([""] * 7 + list(names))
        rows.writerows([""] * 7 + [item[name] for name in names] for item in items)
        return text.getvalue()
    if form == "math500":
        items = [
            {
                "problem": item["problem"],
                "solution": item.get("solution") or f"$\\boxed{{{item['answer']}}}$",
            }
            for item in items
        ]
    return "".join(json.dumps(item) + "\n" for item in items)


def _write(path: Path, text: str) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")


AISBENCH: Final = Suite(
    name="aisbench",
    title="AISBench",
    package="ais-bench-benchmark",
    modes=("accuracy", "serve"),
    datasets=("gsm8k", "gpqa", "math500", MADE_UP),
    prepare=prepare,
    read=read,
)
