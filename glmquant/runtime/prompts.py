"""What a model is asked: prompts that it continues, and text whose tokens it rates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

import glmquant
from glmquant.errors import EngineError, JsonError, UsageError
from glmquant.jsontext import parse_object
from glmquant.runtime.observed import Prompt
from glmquant.storage import reading

EMBEDDED_TEXT: Final = Path(glmquant.__file__).parent / "demo" / "heldout" / "stdlib.txt"
"""Python code that GLM-4-nano was not trained on; ``LICENSE.txt`` beside it."""

CODE_PROMPTS: Final = 12
CODE_CHARACTERS: Final = 240
LONG: Final = "long"
LONG_TOKENS: Final = 1500
"""Of the one long prompt, where the model's context allows it."""

TEXT_TOKENS: Final = 4096
WINDOW_TOKENS: Final = 256
"""The text is rated in windows of that many tokens, each from its own beginning."""

MAX_FILE_NBYTES: Final = 16_000_000
BEGINNING: Final = "[gMASK]<sop>"
"""What every text of a GLM begins with; its chat template writes it by itself."""

_TOOL: Final = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
_CHATS: Final[tuple[dict[str, Any], ...]] = (
    {
        "name": "chat",
        "messages": [{"role": "user", "content": "Return the larger of two numbers."}],
    },
    {
        "name": "second turn",
        "messages": [
            {"role": "system", "content": "Write Python."},
            {"role": "user", "content": "Return the larger of two numbers."},
            {"role": "assistant", "content": "def larger(a, b):\n    return max(a, b)"},
            {"role": "user", "content": "And now the smaller."},
        ],
    },
    {
        "name": "tool call",
        "messages": [{"role": "user", "content": "Weather in Oslo?"}],
        "tools": [_TOOL],
    },
)


class Encoder(Protocol):
    """Whatever turns text into a model's token ids."""

    def encode(self, text: str) -> tuple[int, ...]:
        """Of a text, special tokens in it taken as such."""

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> tuple[int, ...]:
        """Of a conversation, up to where the model has to answer."""


class _Line(BaseModel):
    """A line of a user's file: one of ``prompt``, ``messages`` and ``text``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str | None = None
    prompt: str | None = Field(None, min_length=1)
    messages: list[dict[str, Any]] | None = Field(None, min_length=1)
    tools: list[dict[str, Any]] | None = None
    text: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _is_one_thing(self) -> _Line:
        if [self.prompt, self.messages, self.text].count(None) != 2:
            raise ValueError("it needs one of prompt, messages and text")
        return self


@dataclass(frozen=True, slots=True)
class Material:
    """What is asked, before a tokenizer saw it.

    Attributes:
        requests: Each with a ``name``, and either ``prompt`` or ``messages`` and ``tools``.
        text: What is rated token by token.
        origin: Where it is from.
        has_own_text: The text is the user's.
    """

    requests: tuple[dict[str, Any], ...]
    text: str
    origin: str
    has_own_text: bool = False


@dataclass(frozen=True, slots=True)
class Questions:
    """What is asked, in a model's token ids.

    Attributes:
        prompts: To be continued.
        windows: Texts to be rated, each of at least two tokens.
        max_tokens: How long the answers are to be.
        shortened: Names of prompts that were cut to fit the model's context; the long one always
            is.
        unfit: Names of conversations that its chat template does not take.
    """

    prompts: tuple[Prompt, ...]
    windows: tuple[tuple[int, ...], ...]
    max_tokens: int
    shortened: tuple[str, ...] = ()
    unfit: tuple[str, ...] = ()

    @property
    def context(self) -> int:
        """The most tokens of a prompt with its answer, or of a window."""
        longest = max((len(prompt.tokens) for prompt in self.prompts), default=0)
        return max([longest + self.max_tokens, *map(len, self.windows)])


def embedded_material() -> Material:
    """Prompts of code, conversations with and without a tool, and a long one; and a text."""
    with reading(EMBEDDED_TEXT):
        text = EMBEDDED_TEXT.read_text(encoding="utf-8")
    step = len(text) // CODE_PROMPTS
    requests: list[dict[str, Any]] = []
    for number in range(CODE_PROMPTS):
        begin = text.index("\n", number * step) + 1
        piece = text[begin : begin + CODE_CHARACTERS]
        requests.append({"name": f"code {number + 1}", "prompt": BEGINNING + piece})
    requests += _CHATS
    requests.append({"name": LONG, "prompt": BEGINNING + text[: LONG_TOKENS * 6]})
    return Material(tuple(requests), text, "embedded")


def read_material(file: Path) -> Material:
    """Prompts of a user's own, and a text, a JSON object a line.

    A line has ``prompt`` or ``messages`` (with ``tools`` perhaps), or ``text``, and may have a
    ``name``. What the file has none of, prompts or text, is the embedded.

    Raises:
        UsageError: The file is none of that kind.
        StorageError: It cannot be read.
    """
    with reading(file):
        if file.exists() and not file.is_file():
            _refuse(file, 0, "a folder, pipe or device")
        if file.stat().st_size > MAX_FILE_NBYTES:
            _refuse(file, 0, f"a file of {file.stat().st_size:,} bytes")
        lines = file.read_bytes().split(b"\n")
    requests: list[dict[str, Any]] = []
    texts: list[str] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            fields = _line(file, number, line)
            if "text" in fields:
                texts.append(fields["text"])
            else:
                requests.append({"name": f"line {number}"} | fields)
    if not requests and not texts:
        _refuse(file, 0, "no line with either")
    embedded = embedded_material()
    return Material(
        tuple(requests) or embedded.requests,
        "\n".join(texts) or embedded.text,
        str(file),
        bool(texts),
    )


def ask(material: Material, encoder: Encoder, *, context: int, max_tokens: int) -> Questions:
    """The material in a model's token ids, cut to fit.

    Args:
        material: What is asked.
        encoder: The model's tokenizer.
        context: Most tokens of a prompt with its answer.
        max_tokens: How long the answers are to be.
    """
    room = context - max_tokens
    prompts, shortened, unfit = [], [], []
    for request in material.requests:
        try:
            if "prompt" in request:
                tokens = encoder.encode(request["prompt"])
            else:
                tokens = encoder.encode_chat(request["messages"], request.get("tools") or ())
        except EngineError:
            if "prompt" in request:
                raise
            unfit.append(request["name"])
            continue
        is_long = request["name"] == LONG
        if len(tokens) > room and not is_long:
            shortened.append(request["name"])
        tokens = tokens[: min(room, LONG_TOKENS) if is_long else room]
        prompts.append(Prompt(request["name"], tokens))
    return Questions(
        tuple(prompts),
        tuple(_windows(encoder, material.text, min(WINDOW_TOKENS, context))),
        max_tokens,
        tuple(shortened),
        tuple(unfit),
    )


def _windows(encoder: Encoder, text: str, length: int) -> Iterator[tuple[int, ...]]:
    """Pieces of the text from all over it, each behind the tokens that a text begins with."""
    beginning = encoder.encode(BEGINNING)
    tokens = encoder.encode(text)
    room = length - len(beginning)
    count = max(1, min(TEXT_TOKENS // length, len(tokens) // room))
    step = max(1, (len(tokens) - room) // max(1, count - 1)) if count > 1 else 1
    for number in range(count):
        piece = beginning + tokens[number * step : number * step + room]
        if len(piece) > 1:
            yield piece


def _line(file: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        fields = parse_object(line, str(file))
        return _Line.model_validate(fields).model_dump(exclude_none=True)
    except JsonError as error:
        _refuse(file, number, error.found or error.what)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        _refuse(file, number, f"{'.'.join(map(str, fault['loc'])) or 'the line'}: {fault['msg']}")


def _refuse(file: Path, line: int, found: str) -> NoReturn:
    raise UsageError(
        "the file with prompts cannot be used",
        where=f"{file}: line {line}" if line else str(file),
        expected='a JSON object a line: {"prompt": "…"} or {"messages": […], "tools": […]} or '
        '{"text": "…"}',
        found=found,
        hint="leave --prompts out to use the embedded ones",
    )
