"""A service of GLM-4.6 on loopback that answers rightly, but for what a test changes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tests.servers import COUNTERS, Answering, Loopback

Change = Callable[[str, dict[str, Any], dict[str, Any]], None]
"""Is told the kind of a request and the request, and changes what is answered."""

Raw = Callable[["Handler"], None]
"""Answers in place of the service, in whatever way."""


def kind_of(body: Mapping[str, Any]) -> str:
    """Which request it is."""
    if "tools" in body:
        return "tools" if body["tool_choice"] == "auto" else "named"
    if len(body["messages"][0]["content"]) > 300:
        return "long"
    switch = body.get("chat_template_kwargs", {}).get("enable_thinking")
    return {None: "plain", True: "on", False: "off"}[switch]


def right_answer(kind: str) -> dict[str, Any]:
    """What a sound model says."""
    call = {"name": "get_weather", "arguments": '{"city": "Oslo", "days": 3}'}
    answers: dict[str, dict[str, Any]] = {
        "plain": {"reasoning": "A capital.", "content": "Paris is the capital of France."},
        "on": {"reasoning": "17 and 25.", "content": "42"},
        "off": {"content": "42"},
        "long": {"content": "70418"},
        "tools": {"calls": [call], "finish": "tool_calls"},
        "named": {"calls": [call], "finish": "stop"},
    }
    usual: dict[str, Any] = {"content": "", "reasoning": "", "calls": [], "finish": "stop"}
    return usual | {"gap": 3.0} | answers[kind]


def rendered(body: Mapping[str, Any]) -> list[str]:
    """The prompt that a sound chat template makes, as tokens."""
    tools = [f" {word}" for word in json.dumps(body.get("tools", [])).split()]
    words = body["messages"][0]["content"].split()
    is_off = body.get("chat_template_kwargs", {}).get("enable_thinking") is False
    return [
        *("[gMASK]", "<sop>"),
        *(["<|system|>", *tools] if "tools" in body else []),
        *("<|user|>", "\n", *words, *(["/nothink"] if is_off else []), "<|assistant|>"),
        *(["\n", "<think>", "</think>"] if is_off else []),
    ]


class Service(Loopback):
    """Answers on a port of its own; see ``a_service`` for what can be changed."""

    def __init__(self, change: Change | None, raw: Mapping[str, Raw], **settings: Any) -> None:
        super().__init__(Handler)
        self.change, self.raw = change, raw
        self.acceptance: float | None = settings.pop("acceptance", 0.8)
        self.prompt: Callable[[Mapping[str, Any]], list[str]] = settings.pop("prompt", rendered)
        self.events: Callable[[list[str]], list[str]] = settings.pop("events", lambda lines: lines)
        self.models: list[dict[str, Any]] = settings.pop(
            "models", [{"id": "glm", "root": "/GLM", "max_model_len": 8192}]
        )
        self.field: str = settings.pop("field", "reasoning")
        assert not settings
        self.drafts = 0
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.keys: list[str | None] = []


class Handler(Answering):
    server: Service

    def do_GET(self) -> None:
        self.server.keys.append(self.headers["Authorization"])
        if self.path in self.server.raw:
            self.server.raw[self.path](self)
        elif self.path == "/v1/models":
            self.send_json({"data": self.server.models})
        elif self.path == "/metrics" and self.server.acceptance is not None:
            count = self.server.drafts
            accepted = round(count * self.server.acceptance)
            self.send(200, COUNTERS % (count, count, accepted, accepted), "text/plain")
        else:
            self.send(404, '{"detail": "Not Found"}')

    def do_POST(self) -> None:
        body = self.body()
        self.server.keys.append(self.headers["Authorization"])
        if self.path == "/tokenize":
            if self.path in self.server.raw:
                return self.server.raw[self.path](self)
            tokens = self.server.prompt(body)
            return self.send_json({"count": len(tokens), "token_strs": tokens})
        kind = kind_of(body)
        self.server.asked.append((kind, body))
        for name in (kind, "stream" if body.get("stream") else "whole", "chat"):
            if name in self.server.raw:
                return self.server.raw[name](self)
        answer = right_answer(kind)
        if self.server.change is not None:
            self.server.change(kind, body, answer)
        tokens = (answer["reasoning"] + answer["content"]).split(" ")
        answer.setdefault("tokens", len(tokens))
        answer.setdefault("prompt_tokens", len(rendered(body)))
        self.server.drafts += 25
        if body.get("stream"):
            return self.send_stream(answer)
        return self.send_json(self.completion(body, answer, tokens))

    def completion(
        self, body: Mapping[str, Any], answer: Mapping[str, Any], tokens: list[str]
    ) -> dict[str, Any]:
        gap = answer["gap"]
        marks = [
            {"token": each, "top_logprobs": [{"logprob": 0}, {"logprob": -gap}]} for each in tokens
        ]
        message = {
            "content": answer["content"] or None,
            self.server.field: answer["reasoning"] or None,
            "tool_calls": [{"type": "function", "function": call} for call in answer["calls"]],
        }
        choice = {
            "message": message,
            "finish_reason": answer["finish"],
            "logprobs": {"content": marks} if body.get("logprobs") else None,
        }
        return {"choices": [choice], "usage": usage_of(answer)}

    def send_stream(self, answer: Mapping[str, Any]) -> None:
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        for field, text in (
            (self.server.field, answer["reasoning"]),
            ("content", answer["content"]),
        ):
            deltas += [{field: text[at : at + 5]} for at in range(0, len(text), 5)]
        choices = [{"delta": delta, "finish_reason": None} for delta in deltas]
        choices[-1]["finish_reason"] = answer["finish"]
        events: list[Any] = [{"choices": [choice]} for choice in choices]
        events.append({"choices": [], "usage": usage_of(answer)})
        lines = [*(f"data: {json.dumps(event)}" for event in events), "data: [DONE]"]
        text = "".join(f"{line}\n\n" for line in self.server.events(lines))
        self.send(200, text, "text/event-stream; charset=utf-8")


def usage_of(answer: Mapping[str, Any]) -> dict[str, int]:
    return {"prompt_tokens": answer["prompt_tokens"], "completion_tokens": answer["tokens"]}


@contextmanager
def a_service(
    change: Change | None = None, raw: Mapping[str, Raw] | None = None, **settings: Any
) -> Iterator[Service]:
    """A service that is gone when the block ends.

    Args:
        change: Changes answers.
        raw: Path or kind of request → what answers in its place.
        settings: ``acceptance`` of drafts, None for no counters; ``prompt``, which renders;
            ``events``, which changes the lines of a stream; ``models``; ``field`` of thoughts.
    """
    with Service(change, raw or {}, **settings).running() as service:
        yield service
