"""A chat template as a prompt, as transformers makes it (5.23 ``chat_template_utils.py``).

The same sandbox, whitespace rules, extensions, filters and globals, so that what renders here does
so in an engine. As a program it renders what stands on standard input, within bounds of time and
memory: templates are code of others.
"""

from __future__ import annotations

import json
import resource
import sys
from datetime import datetime
from typing import Any, Final, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_SECONDS: Final = 5
MAX_NBYTES: Final = 1 << 30

_TOOL: Final = {
    "type": "function",
    "function": {
        "name": "glmquant_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Its name."}},
            "required": ["city"],
        },
    },
}
_QUESTION: Final = {"role": "user", "content": "What is the weather in Shenzhen?"}
_CALL: Final = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "call_0",
            "type": "function",
            "function": {"name": "glmquant_weather", "arguments": {"city": "Shenzhen"}},
        }
    ],
}
_ANSWER: Final = {"role": "tool", "tool_call_id": "call_0", "content": "28 degrees, clear"}

CASES: Final[dict[str, dict[str, Any]]] = {
    "a question": {"messages": [_QUESTION]},
    "a question, thinking off": {"messages": [_QUESTION], "enable_thinking": False},
    "a question with a tool": {"messages": [_QUESTION], "tools": [_TOOL]},
    "a tool's answer": {"messages": [_QUESTION, _CALL, _ANSWER], "tools": [_TOOL]},
}
"""What is rendered. vLLM hands a tool call's arguments over as an object."""


class _Generation(Extension):
    """``{% generation %}`` marks the assistant's tokens for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own way to declare them

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements up to ``{% endgeneration %}``."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def first_trouble(text: str, tokens: dict[str, str]) -> tuple[str, str] | None:
    """What was expected and what was found of the first case that does not render.

    Args:
        text: The template.
        tokens: ``eos_token`` and the like.
    """
    for case, variables in CASES.items():
        expected = f"{case} to be rendered"
        try:
            rendered = render(text, variables | tokens)
        except MemoryError:
            return expected, f"more than {MAX_NBYTES / 2**20:.0f} MiB"
        except Exception as error:  # noqa: BLE001 - a template runs code of its own
            return expected, f"{type(error).__name__}: {error}"
        if not rendered.strip():
            return expected, "nothing but white space"
        if _QUESTION["content"] not in rendered:
            return expected, "a prompt without the question"
    return None


def render(template: str, variables: dict[str, Any]) -> str:
    """A conversation as the prompt of a model.

    Args:
        template: The text of a chat template.
        variables: ``messages`` and all else that a template may ask for.

    Raises:
        Exception: Whatever the template's code raises.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(template).render(
        {"documents": None, "tools": None, "add_generation_prompt": True, **variables}
    )


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which would change the prompt."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _main() -> None:
    """Render what stands on standard input; say what is wrong with it, or null."""
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_NBYTES, MAX_NBYTES))
    asked = json.load(sys.stdin)
    sys.stdout.write(json.dumps(first_trouble(asked["template"], asked["tokens"])))


if __name__ == "__main__":
    _main()
