"""A chat completion that comes as server-sent events, and what is wrong with how it comes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from glmquant.runtime.chat import (
    PATH,
    UNLIKE,
    Call,
    Message,
    count_of,
    reasoning_of,
    refuse,
    strange,
    text_of,
)
from glmquant.runtime.client import Client

EVENTS: Final = "text/event-stream"
"""The content type of a stream."""

DONE: Final = "[DONE]"
"""What ends a stream."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A message that came in pieces, and how they came.

    Attributes:
        message: The pieces joined.
        pieces: How many held text.
        flaws: What was not as it has to be, in words.
    """

    message: Message
    pieces: int
    flaws: tuple[str, ...]


def stream(client: Client, body: Mapping[str, Any]) -> Stream:
    """An answer as it comes, read to its end.

    Args:
        client: Asks the server.
        body: The request, without ``stream``.

    Raises:
        RefusedError: The server refused.
        StrangeError: It answered something else.
        EngineError: It did not answer, or not to its end.
    """
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    with client.opened("POST", PATH, asked) as reply:
        if reply.status != 200:
            refuse(PATH, reply.status, reply.headers, b"".join(reply.chunks))
        kind = reply.headers.get("Content-Type", "")
        joined = _Joined()
        if kind.partition(";")[0].strip().lower() != EVENTS:
            joined.flaws.append(f"the content type is {kind or 'not told'}, not {EVENTS}")
        for line in _lines(reply.chunks):
            joined.take(line)
    if not joined.pieces and not joined.is_done:
        strange(PATH, joined.first, "events of a stream: lines that begin with data:", None)
    return joined.whole()


def _lines(chunks: Iterator[bytes]) -> Iterator[str]:
    """Lines of UTF-8, the last one too where nothing ends it."""
    held = bytearray()
    for chunk in chunks:
        held += chunk
        if b"\n" not in chunk:
            continue
        *whole, rest = bytes(held).split(b"\n")
        held = bytearray(rest)
        for line in whole:
            yield line.rstrip(b"\r").decode("utf-8", "replace")
    if held:
        yield held.decode("utf-8", "replace")


@dataclass(slots=True)
class _Joined:
    """What came of a stream so far."""

    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    reasoning_field: str = ""
    calls: dict[int, list[str]] = field(default_factory=dict)
    finishes: list[str] = field(default_factory=list)
    usage: Any = None
    pieces: int = 0
    is_done: bool = False
    first: bytes = b""
    flaws: list[str] = field(default_factory=list)

    def take(self, line: str) -> None:
        """One more line."""
        if not line.strip() or line.startswith(":"):  # comments keep a connection alive
            return
        self.first = self.first or line.encode(errors="replace")
        name, _, data = line.partition(":")
        if name in {"event", "id", "retry"}:
            return
        data = data.strip()
        if name != "data":
            self._flaw(f"a line is no event: {line[:80]}")
        elif self.is_done:
            self._flaw(f"something follows {DONE}")
        elif data == DONE:
            self.is_done = True
        else:
            self._event(data)

    def _event(self, data: str) -> None:
        try:
            event = json.loads(data)
            if event.get("error"):
                self._flaw(f"the stream ends with an error: {json.dumps(event['error'])[:200]}")
                return
            self.usage = event.get("usage") or self.usage
            for choice in event["choices"][:1]:
                self._delta(choice.get("delta") or {}, choice.get("finish_reason"))
        except UNLIKE:
            self._flaw(f"an event is no piece of a chat completion: {data[:80]}")

    def _delta(self, delta: Mapping[str, Any], finish: object) -> None:
        content = text_of(delta.get("content"))
        name, thoughts = reasoning_of(delta)
        calls = delta.get("tool_calls") or []
        if content or thoughts or calls:
            self.pieces += 1
            if self.finishes:
                self._flaw("text follows the piece that names a finish reason")
        self.content.append(content)
        self.reasoning.append(thoughts)
        self.reasoning_field = self.reasoning_field or name
        for call in calls:
            whole = self.calls.setdefault(int(call["index"]), ["", ""])
            function = call.get("function") or {}
            whole[0] += text_of(function.get("name"))
            whole[1] += text_of(function.get("arguments"))
        if finish is not None:
            self.finishes.append(text_of(finish))

    def _flaw(self, what: str) -> None:
        if what not in self.flaws:
            self.flaws.append(what)

    def whole(self) -> Stream:
        """All of it, with what is missing at its end."""
        if not self.is_done:
            self._flaw(f"it ends without {DONE}")
        if len(self.finishes) != 1:
            self._flaw(f"{len(self.finishes)} pieces name a finish reason, not one")
        if self.usage is None:
            self._flaw("no usage, which was asked for")
        message = Message(
            content="".join(self.content),
            reasoning="".join(self.reasoning),
            reasoning_field=self.reasoning_field,
            calls=tuple(Call(*self.calls[place]) for place in sorted(self.calls)),
            finish=self.finishes[-1] if self.finishes else None,
            prompt_tokens=count_of(self.usage, "prompt_tokens"),
            completion_tokens=count_of(self.usage, "completion_tokens"),
        )
        return Stream(message, self.pieces, tuple(self.flaws))
