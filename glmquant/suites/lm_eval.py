"""lm-eval: its own tasks on a file of the user's or on the hub's data, over a server's API.

The task file that is written builds on the one that lm-eval ships (prompt, examples, filters,
scoring), so a figure is that of the suite. What differs is where the data lie and what a thinking
model needs: room for its answer, and no stop words, which would end its thoughts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from glmquant.errors import MeasureError, UsageError
from glmquant.storage import writing
from glmquant.suites.datafiles import FORMS, DataFile, read_data
from glmquant.suites.lm_eval_output import Asked, explain_failure, read_output
from glmquant.suites.settings import Settings
from glmquant.suites.task import Call, Installed, Measured, Suite, Task
from glmquant.survey import printable

TASK: Final = "glmquant"
"""The name of the one task that is written."""

OLDEST: Final = (0, 4, 13)
"""Of the versions whose files and classes are known."""

_MAIN: Final = Path(__file__).parent / "inside" / "lm_eval_main.py"
_MAX_SEED: Final = 2**32 - 1
"""It seeds numpy with it, which takes no more."""

_TIMEOUT: Final = 7200
_RETRIES: Final = 5
_SETTINGS: Final = {
    "api": "chat (with the model's chat template) or completions (the bare prompt)",
    "fewshot": "examples before each question",
    "temperature": "of sampling; 0 takes the likeliest token",
    "top_p": "of sampling",
    "thinking": "on or off, as GLM's chat template knows it",
    "timeout": "seconds that a request may take",
    "retries": "how often a request is sent at most",
}


@dataclass(frozen=True, slots=True)
class Base:
    """A task that lm-eval ships.

    Attributes:
        name: As lm-eval calls it.
        file: Its YAML file, below lm-eval's tasks.
        shots: Examples before each question.
        split: The split with the items.
        stops: At which words an answer to a bare prompt ends.
        filters: How an answer is taken from a reply, each a figure of its own, the main one first.
    """

    name: str
    file: str
    shots: int
    split: str
    stops: tuple[str, ...]
    filters: tuple[tuple[str, str], ...]


_FLEXIBLE: Final = (("exact_match", "flexible-extract"), ("exact_match", "strict-match"))
_STOPS: Final = ("</s>", "<|im_end|>")

# lm-eval 0.4.13, tasks/: the tasks' own files.
_GSM8K: Final = Base("gsm8k", "gsm8k/gsm8k.yaml", 5, "test", ("Question:", *_STOPS), _FLEXIBLE)
_GSM8K_BARE: Final = Base(
    "gsm8k_cot_zeroshot", "gsm8k/gsm8k-cot-zeroshot.yaml", 0, "test", ("Q:", *_STOPS), _FLEXIBLE
)
_GPQA: Final = Base(
    "gpqa_diamond_cot_zeroshot",
    "gpqa/cot_zeroshot/gpqa_diamond_cot_zeroshot.yaml",
    0,
    "train",
    ("</s>",),
    _FLEXIBLE,
)
_MATH500: Final = Base(
    "minerva_math500",
    "minerva_math/minerva_math500.yaml",
    4,
    "test",
    ("Problem:",),
    (("math_verify", "none"), ("exact_match", "none")),
)


def prepare(task: Task, installed: Installed, work: Path) -> Call:
    """Write task file, data and configuration into an empty folder, and give the command.

    Args:
        task: What is to be measured.
        installed: Where lm-eval is.
        work: The folder.

    Raises:
        UsageError: The task is none of lm-eval's.
        MeasureError: The data are of no known form, or this version is not known.
        StorageError: It cannot be written.
    """
    _require(task, installed)
    work = work.resolve()
    settings = Settings("lm-eval", _SETTINGS, task.settings)
    data = read_data(task.data, task.dataset) if task.data else None
    form = data.form.name if data else task.dataset
    base, shots = _base(form, data, settings)
    own: dict[str, Any] = {
        "include": f"../suite/{base.file}",
        "task": TASK,
        "num_fewshot": shots,
        "generation_kwargs": _generation(task, settings, base),
    }
    if data is not None:
        own |= _local_data(work, base, data, needs_examples=bool(shots))
    _write_json(work / "tasks" / "glmquant.yaml", own)
    _write_json(work / "config.yaml", _config(task, settings, work))
    asked = Asked(
        form=form,
        base=base.name,
        shots=shots,
        filters=base.filters,
        items=None if data is None else len(data.items),
    )
    asked.write(work)
    # A key that the user has for somebody else is not sent to this server.
    env: dict[str, str | None] = {"OPENAI_API_KEY": None, "LMEVAL_LOG_LEVEL": "INFO"}
    if data is not None:
        env |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        env |= {"HF_HOME": str(work / "cache"), "HF_DATASETS_CACHE": str(work / "cache")}
    words = [str(installed.python), str(_MAIN), str(work), "run"]
    secrets = {"OPENAI_API_KEY": task.api_key} if task.api_key else {}
    told = {
        "temperature": settings.number("temperature", 0, 0, 2),
        "api": "chat" if _is_chat(settings) else "completions",
        "fewshot": shots,
    }
    return Call((*words, "--config", str(work / "config.yaml")), env, secrets, told)


def read(task: Task, installed: Installed, work: Path) -> Measured:
    """What lm-eval wrote.

    Args:
        task: What was asked for.
        installed: Where lm-eval is.
        work: The folder of ``prepare``.

    Raises:
        MeasureError: It wrote nothing, or its figures do not add up.
        StorageError: It cannot be read.
    """
    return read_output(task, work)


def _require(task: Task, installed: Installed) -> None:
    """Refuse what lm-eval does not measure, and versions that are not known."""
    if task.mode != "accuracy" or task.url is None:
        raise UsageError(
            "lm-eval measures the answers of a server",
            expected="glmquant eval URL --suite lm-eval",
            found=f"mode {task.mode}" if task.url else "no URL",
            hint="glmquant bench measures speed" if task.url else "name it: http://HOST:PORT",
        )
    if task.data is None and task.dataset not in FORMS:
        raise UsageError(
            "lm-eval has no such data set here",
            expected=f"one of {', '.join(FORMS)}, or a file",
            found=task.dataset,
            hint="name a file: --dataset FILE.jsonl",
        )
    parts = installed.version.split(".")[:3]
    if tuple(int(part) if part.isdigit() else 0 for part in parts) < OLDEST:
        raise MeasureError(
            "this version of lm-eval is not known",
            where=str(installed.python),
            expected=f"{'.'.join(map(str, OLDEST))} or newer",
            found=installed.version,
            hint="the same command with --install takes one that is",
        )


def _base(form: str, data: DataFile | None, settings: Settings) -> tuple[Base, int]:
    """The task to build on, and how many examples stand before each question."""
    if form == "gsm8k":
        most = len(data.examples) if data else 64
        if data and not most and settings.text("fewshot") not in (None, "0"):
            raise UsageError(
                "there are no examples to show before each question",
                where="--set fewshot",
                expected=f"a train.jsonl with some beside {data.path.name}",
                found=f"none in {printable(str(data.path.parent), 300)}",
                hint="put train.jsonl beside the file, or leave --set fewshot out",
            )
        shots = settings.whole("fewshot", min(_GSM8K.shots, most), 0, most)
        return (_GSM8K if shots else _GSM8K_BARE), shots
    base = _GPQA if form == "gpqa" else _MATH500
    return base, settings.whole("fewshot", base.shots, 0, base.shots)


def _generation(task: Task, settings: Settings, base: Base) -> dict[str, Any]:
    """What each request says of its answer."""
    temperature = settings.number("temperature", 0, 0, 2)
    is_chat = _is_chat(settings)
    asked: dict[str, Any] = {
        "max_gen_toks": task.max_out_len,
        "temperature": temperature,
        "do_sample": temperature > 0,
        # A stop word also ends a thought that has it, and nothing is answered.
        "until": [] if is_chat else list(base.stops),
    }
    if settings.text("top_p") is not None:
        asked["top_p"] = settings.number("top_p", 1, 0, 1)
    if settings.text("thinking") is not None:
        is_on = settings.choice("thinking", ("on", "off"), "on") == "on"
        if not is_chat:
            raise UsageError(
                "a bare prompt has no thinking to switch",
                where="--set thinking",
                expected="api=chat",
                found="api=completions",
                hint="leave --set thinking out, or --set api=chat",
            )
        asked["chat_template_kwargs"] = {"enable_thinking": is_on}
    return asked


def _is_chat(settings: Settings) -> bool:
    return settings.choice("api", ("chat", "completions"), "chat") == "chat"


def _config(task: Task, settings: Settings, work: Path) -> dict[str, Any]:
    """The options of ``lm_eval run``."""
    is_chat = _is_chat(settings)
    kind = "chat/completions" if is_chat else "completions"
    model: dict[str, Any] = {
        "model": task.model,
        "base_url": f"{str(task.url).rstrip('/')}/v1/{kind}",
        "num_concurrent": task.concurrency,
        "max_retries": settings.whole("retries", _RETRIES, 1, 100),
        "timeout": settings.whole("timeout", _TIMEOUT, 1, 10**6),
        "seed": settings.require_seed(task.seed, _MAX_SEED),
        # Without one lm-eval needs no transformers: the server has the tokenizer.
        "tokenizer_backend": "none",
        "tokenized_requests": False,
    }
    if is_chat:
        # For a server without a reasoning parser, whose answers begin with the thoughts.
        model["think_end_token"] = "</think>"
    config: dict[str, Any] = {
        "model": "glmquant-chat" if is_chat else "glmquant-completions",
        "model_args": model,
        "tasks": [TASK],
        "include_path": str(work / "tasks"),
        "apply_chat_template": is_chat,
        "seed": [task.seed] * 4,
        "log_samples": True,
        "output_path": str(work / "out"),
    }
    return config if task.limit is None else config | {"limit": task.limit}


def _local_data(work: Path, base: Base, data: DataFile, needs_examples: bool) -> dict[str, Any]:
    """Write the items where lm-eval reads them; gives what the task file says of that."""
    files = {base.split: _write_items(work / "data" / "items.jsonl", data)}
    own: dict[str, Any] = {}
    if needs_examples and data.examples:
        files["train"] = _write_lines(work / "data" / "train.jsonl", data.examples)
    elif data.form.name == "gsm8k":
        own = {"training_split": None, "fewshot_split": None}
    return own | {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
    }


def _write_items(path: Path, data: DataFile) -> str:
    """MATH-500's tasks take the result from the solution's box, which not every file has."""
    items = data.items
    if data.form.name == "math500":
        items = tuple(
            {"problem": item["problem"], "answer": item["answer"], "solution": _boxed(item)}
            for item in items
        )
    return _write_lines(path, items)


def _boxed(item: dict[str, str]) -> str:
    solution = item.get("solution", "")
    return solution if "\\boxed{" in solution else f"$\\boxed{{{item['answer']}}}$"


def _write_lines(path: Path, items: tuple[dict[str, str], ...]) -> str:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
        path.write_text(text, encoding="utf-8", errors="replace")
    return str(path)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """JSON is YAML, and no string in it is taken for anything else."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


LM_EVAL: Final = Suite(
    name="lm-eval",
    title="lm-eval",
    package="lm-eval",
    modes=("accuracy",),
    datasets=tuple(FORMS),
    prepare=prepare,
    read=read,
    explain=explain_failure,
)
