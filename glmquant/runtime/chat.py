"""Chat completions of an OpenAI-compatible server; ``events.py`` streams them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, NoReturn

from glmquant.errors import EngineError
from glmquant.runtime.client import Client, ServedModel, served_models

PATH: Final = "/v1/chat/completions"

REASONING_FIELDS: Final = ("reasoning", "reasoning_content")
"""Where thoughts stand: vLLM 0.13 renamed the second to the first, SGLang has the second."""

UNLIKE: Final = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    IndexError,
    RecursionError,
    OverflowError,
)


class RefusedError(EngineError):
    """A server answered with another status than 200.

    Attributes:
        status: HTTP's.
        said: What it said, in part.
    """

    status: int = 0
    said: str = ""


class StrangeError(EngineError):
    """A server answered something that is no chat completion."""


class Call(NamedTuple):
    """A call of a function, as the server read it out of the model's answer.

    Attributes:
        name: The function's.
        arguments: A text that should be JSON.
    """

    name: str
    arguments: str


class Token(NamedTuple):
    """A token of an answer.

    Attributes:
        text: What it says.
        gap: By how much its log-probability exceeds the second best; None where that was not told.
    """

    text: str
    gap: float | None


@dataclass(frozen=True, slots=True)
class Message:
    """What a server says that a model answered.

    Attributes:
        content: The answer.
        reasoning: The thoughts before it.
        reasoning_field: Where they stood; empty where there are none.
        calls: Of functions.
        finish: Why it ended: ``stop``, ``length``, ``tool_calls``.
        prompt_tokens: As the server counts them; None where it does not.
        completion_tokens: The same of the answer.
        tokens: The answer's, thoughts and marks included, where they were asked for.
    """

    content: str = ""
    reasoning: str = ""
    reasoning_field: str = ""
    calls: tuple[Call, ...] = ()
    finish: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    tokens: tuple[Token, ...] = ()

    @property
    def text(self) -> str:
        """Thoughts and answer."""
        return self.reasoning + self.content


def complete(client: Client, body: Mapping[str, Any]) -> Message:
    """An answer, whole.

    Args:
        client: Asks the server.
        body: The request.

    Raises:
        RefusedError: The server refused.
        StrangeError: It answered something else.
        EngineError: It did not answer.
    """
    reply = client.exchange("POST", PATH, body)
    if reply.status != 200:
        refuse(PATH, reply.status, reply.headers, reply.data)
    try:
        answer = json.loads(reply.data)
        (choice, *_) = answer["choices"]
        return _message(choice["message"], choice, answer.get("usage"))
    except UNLIKE as error:
        strange(PATH, reply.data, "a chat completion: choices[0].message", error)


def list_models(client: Client) -> tuple[ServedModel, ...]:
    """What a server serves, one model at least.

    Args:
        client: Asks the server.

    Raises:
        RefusedError: The server refused, or has no such address.
        StrangeError: It answered something else.
        EngineError: It did not answer.
    """
    reply = client.exchange("GET", "/v1/models")
    if reply.status != 200:
        refuse("/v1/models", reply.status, reply.headers, reply.data)
    try:
        found = served_models(json.loads(reply.data))
        if not found:
            raise ValueError("no model")
        return found
    except UNLIKE as error:
        strange("/v1/models", reply.data, "a list of models: data[0].id", error)


def count_tokens(client: Client, body: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    """How long the prompt of a request is, and its tokens as text where the server tells them.

    Args:
        client: Asks the server.
        body: The request, of which ``/tokenize`` takes the conversation and its settings.

    Raises:
        RefusedError: The server refused, or has no such address.
        StrangeError: It answered something else.
        EngineError: It did not answer.
    """
    kept = ("model", "messages", "tools", "chat_template_kwargs")
    asked = {key: body[key] for key in kept if key in body} | {"return_token_strs": True}
    reply = client.exchange("POST", "/tokenize", asked)
    if reply.status != 200:
        refuse("/tokenize", reply.status, reply.headers, reply.data)
    try:
        answer = json.loads(reply.data)
        count, texts = answer["count"], answer.get("token_strs") or ()
        if type(count) is not int or count < 0:
            raise ValueError("no count")
        return count, tuple(text_of(each) for each in texts)
    except UNLIKE as error:
        strange("/tokenize", reply.data, "count and token_strs", error)


def _message(said: Mapping[str, Any], choice: Mapping[str, Any], usage: Any) -> Message:
    """A message as it came, or one of ``UNLIKE``."""
    name, thoughts = reasoning_of(said)
    finish = choice.get("finish_reason")
    return Message(
        content=text_of(said.get("content")),
        reasoning=thoughts,
        reasoning_field=name,
        calls=tuple(
            Call(text_of(call["function"]["name"]), text_of(call["function"]["arguments"]))
            for call in said.get("tool_calls") or ()
        ),
        finish=None if finish is None else text_of(finish),
        prompt_tokens=count_of(usage, "prompt_tokens"),
        completion_tokens=count_of(usage, "completion_tokens"),
        tokens=_tokens(choice.get("logprobs")),
    )


def reasoning_of(said: Mapping[str, Any]) -> tuple[str, str]:
    """The field in which thoughts stand, and the thoughts; both empty where there are none.

    Args:
        said: A message, or a piece of one.

    Raises:
        ValueError: They are no text.
    """
    for name in REASONING_FIELDS:
        if thoughts := text_of(said.get(name)):
            return name, thoughts
    return "", ""


def _tokens(logprobs: Any) -> tuple[Token, ...]:
    """None where they are not told as vLLM tells them: other servers have other forms."""
    try:
        return tuple(_token(each) for each in logprobs["content"])
    except UNLIKE:
        return ()


def _token(found: Mapping[str, Any]) -> Token:
    best = sorted((float(top["logprob"]) for top in found["top_logprobs"]), reverse=True)
    return Token(text_of(found["token"]), best[0] - best[1] if len(best) > 1 else None)


def text_of(found: Any) -> str:
    """A text as it came; empty where there is none.

    Args:
        found: What stands in its place.

    Raises:
        ValueError: It is something else.
    """
    if found is None:
        return ""
    if not isinstance(found, str):
        raise ValueError("no text")
    return found


def count_of(usage: Any, key: str) -> int | None:
    """A number of tokens; None where it is not told.

    Args:
        usage: What an answer says of its length.
        key: Of which part.
    """
    found = usage.get(key) if isinstance(usage, dict) else None
    return found if type(found) is int else None


def refuse(path: str, status: int, headers: Mapping[str, str], data: bytes) -> NoReturn:
    """Raise that a server refused.

    Args:
        path: What was asked.
        status: What it answered.
        headers: With it.
        data: With it.

    Raises:
        RefusedError: Always.
    """
    said = _reason(data)
    if 300 <= status < 400:
        said = f"it sends us to {headers.get('Location') or 'nowhere'}"
    error = RefusedError(
        f"HTTP {status}", where=path, expected="HTTP 200", found=f"HTTP {status}: {said}"
    )
    error.status, error.said = status, said
    raise error


def _reason(data: bytes) -> str:
    """What a refusal says: its ``message``, else its first characters."""
    text = data[:4000].decode("utf-8", "replace")
    try:
        found = json.loads(data)
        inner = found.get("error", found)
        return str(inner if isinstance(inner, str) else inner.get("message", text))[:500]
    except UNLIKE:
        return text[:500] or "nothing"


def strange(path: str, data: bytes, expected: str, error: Exception | None) -> NoReturn:
    """Raise that an answer is something else.

    Args:
        path: What was asked.
        data: What came.
        expected: What should have come.
        error: Why it is not that.

    Raises:
        StrangeError: Always.
    """
    text = data[:300].decode("utf-8", "replace")
    raise StrangeError(
        "the answer is not one that vLLM gives",
        where=path,
        expected=expected,
        found=text or "nothing",
    ) from error
