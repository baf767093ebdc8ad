"""A chat server whose replies a test has written down, by words of the question."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.servers import COUNTERS


@dataclass(frozen=True)
class Reply:
    """What the server says.

    Attributes:
        content: The answer.
        reasoning: Thoughts, as a reasoning parser parts them.
        finish_reason: Why it ended.
        status: Of HTTP.
        pieces: In how many a stream comes.
        has_choice: Whether there is one, as there should be.
    """

    content: str = ""
    reasoning: str = ""
    finish_reason: str = "stop"
    status: int = 200
    pieces: int = 4
    has_choice: bool = True


@dataclass
class Script:
    """What is said to whom, and what was asked.

    Attributes:
        replies: Words of a question → the reply.
        otherwise: The reply to any other question.
        counters: Drafted and accepted tokens, one pair for each time that they are asked for; None
            where the server has none.
        started: When the process that counts began, one for each time that it is asked; none where
            it does not tell.
        max_model_len: As the server says it; None where it does not.
        bodies: The requests that came.
        keys: Their ``Authorization``.
    """

    replies: dict[str, Reply]
    otherwise: Reply = field(default_factory=Reply)
    counters: list[tuple[int, int] | None] = field(default_factory=list)
    started: list[float] = field(default_factory=list)
    max_model_len: int | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    url: str = ""

    def reply_to(self, body: dict[str, Any]) -> Reply:
        asked = body["messages"][-1]["content"]
        found = [reply for words, reply in self.replies.items() if words in asked]
        assert len(found) < 2, asked
        return found[0] if found else self.otherwise


def counters_text(drafted: int, accepted: int) -> str:
    """What ``/metrics`` says of one token drafted a step."""
    return COUNTERS % (drafted, drafted, accepted, accepted)


@contextmanager
def chatting(script: Script) -> Iterator[Script]:
    """The server, for as long as it is needed."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/metrics":
                drafted = script.counters.pop(0) if script.counters else None
                text = "" if drafted is None else counters_text(*drafted)
                if script.started:
                    text += f"process_start_time_seconds {script.started.pop(0)}\n"
                self.send_text(200, "text/plain", text)
            elif self.path == "/version":
                self.send_json(200, {"version": "0.23.0"})
            else:
                self.send_json(200, {"data": [{"id": "m", "max_model_len": script.max_model_len}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            script.bodies.append(body)
            script.keys.append(self.headers["Authorization"])
            reply = script.reply_to(body)
            usage = {"prompt_tokens": 10, "completion_tokens": len(reply.content.split())}
            if reply.status != 200:
                self.send_json(reply.status, {"error": "EngineCore encountered an issue"})
            elif body.get("stream"):
                self.stream(reply, usage)
            else:
                message = {
                    "role": "assistant",
                    "content": reply.content or None,
                    "reasoning_content": reply.reasoning or None,
                }
                choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
                choices = [choice] if reply.has_choice else []
                self.send_json(200, {"id": "1", "choices": choices, "usage": usage})

        def stream(self, reply: Reply, usage: dict[str, int]) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            words = reply.content.split()
            size = -(-len(words) // reply.pieces)
            for begin in range(0, len(words), size):
                text = " ".join(words[begin : begin + size]) + " "
                self.event({"choices": [{"index": 0, "delta": {"content": text}}]})
            end = {"index": 0, "delta": {}, "finish_reason": reply.finish_reason}
            self.event({"choices": [end]})
            self.event({"choices": [], "usage": usage})
            self.wfile.write(b"data: [DONE]\n\n")
            self.close_connection = True

        def event(self, content: object) -> None:
            self.wfile.write(b"data: " + json.dumps(content).encode() + b"\n\n")
            self.wfile.flush()

        def send_json(self, status: int, content: object) -> None:
            self.send_text(status, "application/json", json.dumps(content))

        def send_text(self, status: int, kind: str, text: str) -> None:
            data = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        script.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield script
        server.shutdown()
        thread.join()
