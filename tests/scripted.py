"""An OpenAI server whose answers are written down beforehand, question by question."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tests.servers import COUNTERS, Answering, Loopback


@dataclass(frozen=True)
class Reply:
    """What a question is answered.

    Attributes:
        content: The answer; None for a thought that never ended.
        reasoning: What a reasoning parser cut off.
        finish_reason: ``stop``, or ``length`` where the answer was cut.
        failures: HTTP statuses that are sent first, one a request.
        has_choice: Whether the answer has one, as each should.
    """

    content: str | None = None
    reasoning: str | None = None
    finish_reason: str = "stop"
    failures: Sequence[int] = ()
    has_choice: bool = True


class Scripted(Loopback):
    """The server and what it was asked.

    Args:
        replies: Words of a question → the reply.
        otherwise: The reply to any other question; None where there may be no other.
        counters: Drafted and accepted tokens, one pair for each time that they are asked for; None
            where the server has none.
        started: When the process that counts began, one for each time that it is asked; none where
            it does not tell.
        max_model_len: As the server says it; None where it does not.
        most_words: Of a prompt; a longer one is refused as vLLM 0.30 does, words for tokens.

    Attributes:
        bodies: Of the requests, as they came.
        keys: What they said in ``Authorization``.
    """

    def __init__(
        self,
        replies: Mapping[str, Reply],
        *,
        otherwise: Reply | None = None,
        counters: Iterable[tuple[int, int] | None] = (),
        started: Iterable[float] = (),
        max_model_len: int | None = None,
        most_words: int | None = None,
    ) -> None:
        super().__init__(Handler)
        self.counters, self.started = iter(counters), iter(started)
        self.max_model_len, self.most_words = max_model_len, most_words
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self._replies, self._otherwise = replies, otherwise
        self._asked: Counter[str] = Counter()
        self._lock = threading.Lock()

    def reply_to(self, body: dict[str, Any]) -> tuple[int, Reply]:
        """The status and the reply that a request gets."""
        question = texts_of(body)[-1]
        with self._lock:
            found = {words: reply for words, reply in self._replies.items() if words in question}
            if not found and self._otherwise is not None:
                found = {"": self._otherwise}
            ((words, reply),) = found.items()
            before = self._asked[words]
            self._asked[words] += 1
        return (reply.failures[before] if before < len(reply.failures) else 200), reply


class Handler(Answering):
    server: Scripted

    def do_GET(self) -> None:
        if self.path == "/metrics":
            text = ""
            if counts := next(self.server.counters, None):
                drafted, accepted = counts
                text = COUNTERS % (drafted, drafted, accepted, accepted)
            if started := next(self.server.started, None):
                text += f"process_start_time_seconds {started}\n"
            self.send(200, text, "text/plain")
        elif self.path == "/version":
            self.send_json({"version": "0.23.0"})
        elif self.path == "/v1/models":
            model = {"id": "m", "max_model_len": self.server.max_model_len}
            self.send_json({"data": [model]})
        else:
            self.send(404, '{"detail": "Not Found"}')

    def do_POST(self) -> None:
        body = self.body()
        self.server.bodies.append(body)
        self.server.keys.append(self.headers["Authorization"])
        words, most = sum(len(text.split()) for text in texts_of(body)), self.server.most_words
        if most is not None and words > most:
            error = refusal(words, most, body["max_tokens"])
            # As a gateway may: whose request it was, with the key.
            error["message"] += f" {self.headers['Authorization']}"
            self.send_json({"error": error}, 400)
            return
        status, reply = self.server.reply_to(body)
        with suppress(ConnectionError):  # whoever asked has given up
            if status != 200:
                self.send_json({"error": "EngineCore encountered an issue"}, status)
            elif body.get("stream"):
                self.stream(reply)
            else:
                self.send_json(completion(body, reply))

    def stream(self, reply: Reply) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        words = words_of(reply)
        size = -(-len(words) // 4)
        for begin in range(0, len(words), size):
            text = " ".join(words[begin : begin + size]) + " "
            self.event({"choices": [{"index": 0, "delta": {"content": text}}]})
        end = {"index": 0, "delta": {}, "finish_reason": reply.finish_reason}
        self.event({"choices": [end]})
        self.event({"choices": [], "usage": usage_of(reply)})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, content: object) -> None:
        self.wfile.write(b"data: " + json.dumps(content).encode() + b"\n\n")
        self.wfile.flush()


def texts_of(body: Mapping[str, Any]) -> list[str]:
    """All that a request asks, of a chat or a prompt."""
    if "messages" in body:
        return [each["content"] for each in body["messages"]]
    return [body["prompt"]]


def refusal(words: int, most: int, asked: int) -> dict[str, Any]:
    """What vLLM 0.30 says to a prompt that is too long (``renderers/params.py``)."""
    message = (
        f"This model's maximum context length is {most} tokens. However, you requested {asked} "
        f"output tokens and your prompt contains {words} input tokens, for a total of "
        f"{words + asked} tokens. Please reduce the length of the input prompt or the number of "
        "requested output tokens. (parameter=input_tokens, value=...)"
    )
    return {"message": message, "type": "BadRequestError", "param": "input_tokens", "code": 400}


def completion(body: Mapping[str, Any], reply: Reply) -> dict[str, Any]:
    """The answer in one piece, to a chat or a prompt; thoughts under vLLM's name, old and new."""
    message = {
        "role": "assistant",
        "content": reply.content,
        "reasoning": reply.reasoning,
        "reasoning_content": reply.reasoning,
    }
    given = {"message": message} if "messages" in body else {"text": reply.content}
    choice = {"index": 0, "finish_reason": reply.finish_reason, **given}
    return {
        "id": "1",
        "model": body["model"],
        "choices": [choice] * reply.has_choice,
        "usage": usage_of(reply),
    }


def usage_of(reply: Reply) -> dict[str, int]:
    count = len(words_of(reply))
    return {"prompt_tokens": 10, "completion_tokens": count, "total_tokens": 10 + count}


def words_of(reply: Reply) -> list[str]:
    return (reply.content or "").split()
