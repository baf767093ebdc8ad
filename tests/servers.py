"""Servers that behave as a test needs them to: ``python servers.py KIND PORT``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

COUNTERS = """\
vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} %d.0
vllm:spec_decode_num_drafts_created{engine="0",model_name="m"} 1.79e+09
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="m"} %d.0
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="m"} %d.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="0"} %d.0
"""


MAX_MODEL_LEN = 256

Server = TypeVar("Server", bound="Loopback")


def words_of(kind: str, port: int) -> list[str]:
    """The command of a server."""
    return [sys.executable, __file__, kind, str(port)]


class Answering(BaseHTTPRequestHandler):
    """What each server here does alike: takes JSON, gives JSON or text, and says nothing of it."""

    def body(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def send_json(self, content: Any, status: int = 200) -> None:
        self.send(status, json.dumps(content))

    def send(self, status: int, text: str, kind: str = "application/json", **headers: str) -> None:
        data = text.encode()
        self.send_response(status)
        for name, value in (
            {"Content-Type": kind, "Content-Length": str(len(data))} | headers
        ).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Loopback(ThreadingHTTPServer):
    """A server on a free port of loopback, in a thread of the test."""

    def __init__(self, handler: type[Answering]) -> None:
        super().__init__(("127.0.0.1", 0), handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @contextmanager
    def running(self: Server) -> Iterator[Server]:
        """The server, which is gone when the block ends."""
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()
            thread.join()


class Handler(Answering):
    """Answers like vLLM with a model that always says token 1, drafted every time."""

    kind = "well"
    drafts = 0

    def do_GET(self) -> None:
        if self.path == "/health":
            self.send(200, "")
        elif self.path == "/v1/models":
            self.send_json({"data": [{"id": "m", "root": "/GLM", "max_model_len": MAX_MODEL_LEN}]})
        elif self.path == "/metrics":
            count = Handler.drafts
            accepted = {"backwards": -count, "generous": 3 * count}.get(self.kind, count // 2)
            text = COUNTERS % (count, count, accepted, accepted)
            if self.kind == "restarts":
                text += f"process_start_time_seconds {1.7e9 + count}\n"
            self.send(200, text if self.kind != "undrafted" else "python_info 1.0\n")
        else:
            self.send(404, "no such page")

    def do_POST(self) -> None:
        body = self.body()
        if self.kind == "hangs":
            time.sleep(600)
        if self.kind == "dies":
            print("out of memory, said the server", flush=True)
            os._exit(9)
        if self.kind in {"drips", "floods"}:
            self.send_response(200)
            self.end_headers()
            while True:
                self.wfile.write(b" " if self.kind == "drips" else b" " * 2**20)
                time.sleep(0.2 if self.kind == "drips" else 0)
        if self.kind == "500":
            self.send(500, '{"error": "EngineCore encountered an issue"}')
        elif self.kind == "garbage":
            self.send(200, "<html>hello</html>")
        elif self.kind == "deep":
            self.send(200, "[" * 200_000)
        elif self.kind == "infinite":
            self.send(200, '{"tokens": [1e999], "choices": [{"token_ids": [1e999]}]}')
        elif self.kind == "schema":
            self.send_json({"tokens": "none", "choices": [{"token_ids": None}]})
        elif self.path == "/tokenize":
            self.send_json({"tokens": [len(word) for word in str(body).split()]})
        elif len(body["prompt"]) + body["max_tokens"] > MAX_MODEL_LEN:
            self.send(400, "longer than max_model_len")
        else:
            self.send_json({"choices": [self.completion(body)]})

    def completion(self, body: Mapping[str, Any]) -> dict[str, Any]:
        count = body["max_tokens"]
        best = float("nan") if self.kind == "nan" else -0.1
        Handler.drafts += count // 2
        top = {"token_id:1": best, "token_id:2": -3.1}
        marks: Sequence[Any] = [
            {
                str(token): {"logprob": -2.0, "rank": 3, "decoded_token": "x"},
                "-7": {"logprob": -0.5, "rank": 1, "decoded_token": "y"},
            }
            for token in body["prompt"][1:]
        ]
        return {
            "token_ids": [1] * count,
            "logprobs": {"top_logprobs": [top] * count},
            "prompt_logprobs": [None, *marks] if "prompt_logprobs" in body else None,
        }

    def log_message(self, format: str, *args: Any) -> None:
        print(format % args, flush=True)


def main() -> None:
    kind, port = sys.argv[1], int(sys.argv[2])
    print(f"a server that {kind} on {port}", flush=True)
    if kind == "fails":
        sys.exit("KeyError: 'model.layers.4.eh_proj.weight'")
    if kind == "silent":
        time.sleep(600)
    if kind == "forks":  # a child in a session of its own, as engines have
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(601)"], start_new_session=True
        )
    Handler.kind = kind
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
