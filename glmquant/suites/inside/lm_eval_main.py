"""lm-eval with clients that take down how each request ended; run by path, in its environment.

``python lm_eval_main.py WORK [words of lm-eval]``. WORK gets a link ``suite`` to the tasks that
lm-eval has, for the task file in WORK to be built on, and ``requests.jsonl``, a line for each
request that was sent, one for each answer, and one for each that failed as often as it was sent:
lm-eval itself keeps neither why an answer ended nor that a request was sent again, and one request
that fails would take all other answers with it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import lm_eval
from aiohttp import ClientError, ClientResponseError
from datasets.exceptions import DatasetsError
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from requests import RequestException

_FAILURES = (ClientError, RequestException, TimeoutError, LookupError, TypeError, ValueError)
"""No answer, a status other than 200, or something that is no completion with one choice."""

_NO_ANSWER = {"choices": [{"index": 0, "message": {"content": ""}, "text": ""}]}
_MOST_FAILED = 0.1
"""Of all requests; a figure of fewer answers says little of the model."""

_REFUSALS = frozenset({400, 413, 422})
"""HTTP's statuses of a request that is refused again however often it is sent."""

_MAX_SAID = 1_000

_prompt: ContextVar[str] = ContextVar("prompt")
_said: ContextVar[str] = ContextVar("said", default="")
"""What the server said with the last status other than 200 of a request."""


class _TooManyError(Exception):
    """So many requests failed that there is no figure."""


def _digest(messages: Any) -> str:
    """That of the first of a batch, as lm-eval's own ``prompt_hash`` is made."""
    first = messages[0]
    text = first.prompt if hasattr(first, "prompt") else first
    return hashlib.sha256(str(text).encode("utf-8")).hexdigest()


class _Heard:
    """A session of aiohttp; what comes with a status other than 200 is kept.

    An error of aiohttp has the status alone.
    """

    def __init__(self, session: Any) -> None:
        self._session = session

    @asynccontextmanager
    async def post(self, *args: Any, **kwargs: Any) -> Any:
        async with self._session.post(*args, **kwargs) as response:
            if not response.ok:
                _said.set(await response.text())
            yield response


class _Noted:
    """Notes each request before it goes, and each answer when it has come.

    A request is sent again here and not by lm-eval, which gives up all of them with one.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tries = self.max_retries
        self.max_retries = 1
        self._asked = 0
        self._failed: Counter[str] = Counter()

    def generate_until(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        self._asked, self._failed = len(requests), Counter()
        return super().generate_until(requests, *args, **kwargs)  # type: ignore[misc]

    def model_call(self, messages: Any, **kwargs: Any) -> Any:
        for tried in range(1, self._tries + 1):
            try:
                output = super().model_call(messages, **kwargs)  # type: ignore[misc]
                _choice(output)
                super().parse_generations(outputs=output)  # type: ignore[misc]
                return output
            except _FAILURES as error:
                if self._is_last(tried, error):
                    return _NO_ANSWER
            time.sleep(_pause(tried))
        return _NO_ANSWER

    async def amodel_call(self, session: Any, *args: Any, **kwargs: Any) -> Any:
        heard = _Heard(session)
        for tried in range(1, self._tries + 1):
            try:
                return await super().amodel_call(heard, *args, **kwargs)  # type: ignore[misc]
            except _FAILURES as error:
                if self._is_last(tried, error):
                    break
            await asyncio.sleep(_pause(tried))
        return [""]

    def _is_last(self, tried: int, error: Exception) -> bool:
        """Whether a request is given up; notes it then."""
        status = _status(error)
        if tried < self._tries and status not in _REFUSALS:
            return False
        reason = _reason(error)
        note = {"prompt": _prompt.get(), "event": "failed", "reason": reason}
        if status is not None:
            response = getattr(error, "response", None)
            note["said"] = _words(_said.get() if response is None else response.text)
        _note(note)
        self._failed[reason] += 1
        if (failed := self._failed.total()) > _MOST_FAILED * self._asked:
            told = "; ".join(f"{count} x {why}" for why, count in self._failed.most_common(3))
            raise _TooManyError(f"{failed} of {self._asked} requests failed so far: {told}")
        return True

    def create_message(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        _prompt.set(_digest(messages))
        _note({"prompt": _prompt.get(), "event": "sent"})
        return super().create_message(messages, *args, **kwargs)  # type: ignore[misc]

    def parse_generations(self, outputs: Any, **kwargs: Any) -> list[str]:
        given: list[str] = super().parse_generations(outputs=outputs, **kwargs)  # type: ignore[misc]
        for output in outputs if isinstance(outputs, list) else [outputs]:
            if output is _NO_ANSWER:
                continue
            choice, usage = _choice(output), output.get("usage") or {}
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


def _choice(output: Any) -> Any:
    """The one choice of an answer."""
    choices = output.get("choices") if isinstance(output, dict) else None
    if not isinstance(choices, list) or len(choices) != 1:
        raise ValueError("an answer without one choice")
    return choices[0]


def _status(error: Exception) -> int | None:
    """HTTP's, where there is one."""
    if isinstance(error, ClientResponseError):
        return error.status
    return getattr(getattr(error, "response", None), "status_code", None)


def _words(body: str) -> str:
    """What a server says of an error: its message, or all of it; without the key."""
    try:
        told = json.loads(body)
        told = told.get("error", told)
        body = told if isinstance(told, str) else told["message"]
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError):
        pass
    text = " ".join(str(body).split())
    if key := os.environ.get("OPENAI_API_KEY"):
        text = text.replace(key, "***")
    return text[:_MAX_SAID]


def _reason(error: Exception) -> str:
    """Why a request failed, without its headers, which have the key."""
    if (status := _status(error)) is not None:
        return f"HTTP {status}"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200] if text else type(error).__name__


def _pause(tried: int) -> float:
    """Seconds until a request is sent again, as lm-eval has them."""
    return min(10.0, max(1.0, 0.5 * 2.0 ** min(tried - 1, 10)))


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
    except _TooManyError as error:
        _note({"prompt": "", "event": "gave up", "reason": str(error)})
        _give_up(
            str(error),
            "More than a tenth failed each time that they were sent, so there is no figure. See",
            "what the server says; --set retries=N sends more often, --set timeout=SECONDS waits",
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
