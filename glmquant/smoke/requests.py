"""What is asked: the requests, as data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

PLAIN: Final = "plain"
AGAIN: Final = "again"
STREAMING: Final = "streaming"
LONG: Final = "long"
TEMPLATE: Final = "template"
TOOLS: Final = "tools"
THINKING_ON: Final = "thinking-on"
THINKING_OFF: Final = "thinking-off"
DRAFTS: Final = "drafts"

NAMES: Final = (
    *(PLAIN, AGAIN, STREAMING, LONG, TEMPLATE, TOOLS, THINKING_ON, THINKING_OFF, DRAFTS),
)
"""In the order in which they are asked and told."""

ANSWER_TOKENS: Final = 1024
"""Of an answer with its thoughts: about such questions GLM-4.5 to 4.7 think some hundreds."""

SHORT_ANSWER_TOKENS: Final = 256
"""Of an answer without thoughts."""

MOST_CHARACTERS: Final = 100_000
"""Of an answer, of its thoughts, and of a call: about a hundred for each token that is allowed.
What goes on after that is not judged."""

LONG_TOKENS: Final = 8000
"""Of the long prompt, where the server takes so many."""

UNKNOWN_CONTEXT: Final = 4096
"""Assumed of a server that does not say how many tokens it takes."""

QUESTION: Final = "Which city is the capital of France? Answer in one sentence."
ANSWER: Final = "Paris"
SUM: Final = "What is 17 + 25? Answer with the number."
SUM_ANSWER: Final = "42"
WEATHER: Final = "What will the weather be like in Oslo over the next 3 days? Ask the function."

NEEDLE: Final = "Entry {number}: the new code of the archive is 70418."
NEEDLE_QUESTION: Final = "What is the new code of the archive? Answer with the number alone."
NEEDLE_ANSWER: Final = "70418"
_ENTRY: Final = "Entry {number}: the lamp at gate {gate} was looked at and found in order."
_INTRODUCTION: Final = "This is a journal."

LEAST_ENTRIES: Final = 10
"""Of the journal, so that the needle stands within."""

_CHARACTERS_A_TOKEN: Final = 2
"""Assumed of such text where the server does not count: GLM's own tokenizer has about three."""

FUNCTION: Final = "get_weather"
PARAMETERS: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "Its name."},
        "days": {"type": "integer", "description": "How many days ahead."},
    },
    "required": ["city", "days"],
}
TOOL: Final[Mapping[str, Any]] = {
    "type": "function",
    "function": {
        "name": FUNCTION,
        "description": "Tells the weather of a city over the next days.",
        "parameters": PARAMETERS,
    },
}


def answer_tokens(context: int, most: int = ANSWER_TOKENS) -> int:
    """How long an answer may be, where prompt and answer together have so many tokens.

    Args:
        context: Of the server.
        most: Where there is room.
    """
    return max(1, min(most, context // 4))


def question(model: str, content: str, max_tokens: int) -> dict[str, Any]:
    """A greedy request with one question.

    Args:
        model: As the server calls it.
        content: The question.
        max_tokens: Most of the answer.
    """
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "temperature": 0,
    }


def thinking(is_on: bool) -> dict[str, Any]:
    """What switches thinking on or off, by the chat template.

    Args:
        is_on: Which.
    """
    return {"chat_template_kwargs": {"enable_thinking": is_on}}


def sampled(body: Mapping[str, Any]) -> dict[str, Any]:
    """The same request with the model's own settings in place of greedy decoding.

    Args:
        body: The request.
    """
    return {key: value for key, value in body.items() if key != "temperature"} | {"seed": 0}


def with_tool(*, is_named: bool) -> dict[str, Any]:
    """What offers the function, or names it as the one to be called.

    Args:
        is_named: Which.
    """
    named = {"type": "function", "function": {"name": FUNCTION}}
    return {"tools": [TOOL], "tool_choice": named if is_named else "auto"}


def entries_in(tokens: int) -> int:
    """How many lines of the journal surely have no more tokens than that.

    Args:
        tokens: Of the prompt.
    """
    return tokens * _CHARACTERS_A_TOKEN // len(_ENTRY)


def journal(entries: int) -> str:
    """A long text with the needle in its first half, and the question for it.

    Args:
        entries: How many lines it has.
    """
    place = entries * 3 // 10
    lines = [
        NEEDLE.format(number=number)
        if number == place
        else _ENTRY.format(number=number, gate=number * 37 % 1000)
        for number in range(entries)
    ]
    return "\n".join([_INTRODUCTION, *lines, "", NEEDLE_QUESTION])
