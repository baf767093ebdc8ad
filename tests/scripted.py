"""An OpenAI server whose answers are written down beforehand, question by question."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What a question is answered.

    Attributes:
        content: The answer; None for a thought that never ended.
        reasoning: What a reasoning parser cut off.
        finish_reason: ``stop``, or ``length`` where the answer was cut.
        failures: HTTP statuses that are sent first, one a request.
        has_choice: Whether the answer has one, as each should.
    """

    content: str | None
    reasoning: str | None = None
    finish_reason: str = "stop"
    failures: list[int] = field(default_factory=list)
    has_choice: bool = True


class Scripted:
    """A server on loopback and what it was asked.

    Args:
        replies: Words of a question → its reply.
        most_words: Of a prompt; a longer one is refused as vLLM 0.30 does, words for tokens.

    Attributes:
        url: Its address.
        bodies: Of the requests, as they came.
        keys: What they said in ``Authorization``.
    """

    def __init__(self, replies: Mapping[str, Reply], most_words: int | None = None) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self._lock = threading.Lock()
        script = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                is_asked = self.path == "/v1/models"
                model = {"id": "glm", "root": "/nowhere/GLM", "max_model_len": 4096}
                self.give(200 if is_asked else 404, {"data": [model]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with script._lock:
                    script.bodies.append(body)
                    script.keys.append(self.headers["Authorization"])
                    texts = (
                        [each["content"] for each in body["messages"]]
                        if "messages" in body
                        else [body["prompt"]]
                    )
                    asked = texts[-1]
                words = sum(len(text.split()) for text in texts)
                if most_words is not None and words > most_words:
                    error = refusal(words, most_words, body["max_tokens"])
                    # As a gateway may: whose request it was, with the key.
                    error["message"] += f" {self.headers['Authorization']}"
                    self.give(400, {"error": error})
                    return
                with script._lock:
                    (reply,) = (replies[key] for key in replies if key in asked)
                    status = reply.failures.pop(0) if reply.failures else 200
                self.give(
                    status, script.answer(body, reply) if status == 200 else {"error": "busy"}
                )

            def give(self, status: int, content: Any) -> None:
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                with suppress(ConnectionError):  # whoever asked has given up
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def answer(self, body: Mapping[str, Any], reply: Reply) -> dict[str, Any]:
        message = {"role": "assistant", "content": reply.content, "reasoning": reply.reasoning}
        given = {"message": message} if "messages" in body else {"text": reply.content}
        choice = {"index": 0, "finish_reason": reply.finish_reason, **given}
        return {
            "id": "1",
            "model": body["model"],
            "choices": [choice] * reply.has_choice,
            "usage": USAGE,
        }

    @contextmanager
    def running(self) -> Iterator[Scripted]:
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()


def refusal(words: int, most: int, asked: int) -> dict[str, Any]:
    """What vLLM 0.30 says to a prompt that is too long (``renderers/params.py``)."""
    message = (
        f"This model's maximum context length is {most} tokens. However, you requested {asked} "
        f"output tokens and your prompt contains {words} input tokens, for a total of "
        f"{words + asked} tokens. Please reduce the length of the input prompt or the number of "
        "requested output tokens. (parameter=input_tokens, value=...)"
    )
    return {"message": message, "type": "BadRequestError", "param": "input_tokens", "code": 400}


USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
