"""lm-eval with clients that take down how each request ended; run by path, in its environment.

``python lm_eval_main.py WORK [words of lm-eval]``. WORK gets a link ``suite`` to the tasks that
lm-eval has, for the task file in WORK to be built on, and ``requests.jsonl``, a line for each
request that was sent and one for each answer: lm-eval itself keeps neither why an answer ended
nor that a request was sent again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import lm_eval
from aiohttp import ClientError
from datasets.exceptions import DatasetsError
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from requests import RequestException

_prompt: ContextVar[str] = ContextVar("prompt")


def _digest(messages: Any) -> str:
    """That of the first of a batch, as lm-eval's own ``prompt_hash`` is made."""
    first = messages[0]
    text = first.prompt if hasattr(first, "prompt") else first
    return hashlib.sha256(str(text).encode("utf-8")).hexdigest()


class _Noted:
    """Notes each request before it goes, and each answer when it has come."""

    def create_message(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        _prompt.set(_digest(messages))
        _note({"prompt": _prompt.get(), "event": "sent"})
        return super().create_message(messages, *args, **kwargs)  # type: ignore[misc]

    def parse_generations(self, outputs: Any, **kwargs: Any) -> list[str]:
        given: list[str] = super().parse_generations(outputs=outputs, **kwargs)  # type: ignore[misc]
        for output in outputs if isinstance(outputs, list) else [outputs]:
            (choice,) = output["choices"]
            usage = output.get("usage") or {}
            _note(
                {
                    "prompt": _prompt.get(),
                    "event": "answered",
                    "finish_reason": choice.get("finish_reason"),
                    "tokens": usage.get("completion_tokens"),
                }
            )
        return given


@register_model("glmquant-chat")
class Chat(_Noted, LocalChatCompletion):  # type: ignore[misc]
    """``local-chat-completions``, noted."""


@register_model("glmquant-completions")
class Completions(_Noted, LocalCompletionsAPI):  # type: ignore[misc]
    """``local-completions``, noted."""


def _note(what: dict[str, Any]) -> None:
    with (Path(sys.argv[0]) / "requests.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(what) + "\n")


def _hide_key() -> None:
    """Where a request fails, lm-eval logs its headers, with the key."""
    key = os.environ.get("OPENAI_API_KEY")
    make = logging.getLogRecordFactory()

    def without(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        if key and key in (text := record.getMessage()):
            record.msg, record.args = text.replace(key, "***"), None
        return record

    logging.setLogRecordFactory(without)


def main() -> None:
    """Link the tasks, then do what lm-eval's own program does."""
    _hide_key()
    work = Path(sys.argv[1]).resolve()
    tasks = Path(next(iter(lm_eval.__path__))) / "tasks"
    link = work / "suite"
    if link.is_symlink():
        link.unlink()
    link.symlink_to(tasks)
    sys.argv = [str(work), *sys.argv[2:]]
    try:
        cli_evaluate()
    except (ClientError, RequestException, TimeoutError) as error:
        _give_up(
            f"{type(error).__name__}: {error}",  # its repr has the headers, with the key
            "A request failed each time that it was sent, so there is no figure. See what the",
            "server says; --set retries=N sends it more often, --set timeout=SECONDS waits longer",
        )
    except (ConnectionError, DatasetsError) as error:
        _give_up(
            str(error),
            "The data set could not be had from its hub. Where there is no way to it, or it wants",
            "an account (as GPQA does), name its file: --dataset FILE.jsonl",
        )


def _give_up(*lines: str) -> None:
    """Say why as the very last; requests that were on their way would be heard after it."""
    logging.disable(logging.CRITICAL)
    sys.exit("\n".join(lines))


if __name__ == "__main__":
    main()
