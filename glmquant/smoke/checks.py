"""What is wrong with an answer: one function a request, from what came to findings.

What the server has to do can fail; what a model may do otherwise is a warning.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from glmquant.runtime.chat import Call, Message, RefusedError, Token
from glmquant.runtime.events import Stream
from glmquant.smoke import requests
from glmquant.smoke.findings import Finding, Sign, failed, warned
from glmquant.smoke.garble import excerpt, judge_text, think_tag
from glmquant.verify.behaviour.judge import NEAR_TIE

ENDS: Final = ("stop", "length", "tool_calls")
"""Reasons for an end that are no trouble."""

LEAST_PROMPT: Final = 0.9
"""Of the tokens that /tokenize counts, so many have to reach the model."""

ONE_PIECE_TOKENS: Final = 16
"""Of an answer that has to come in more than one piece: drafts bring at most nine at a step."""

_TYPES: Final[Mapping[str, Any]] = {"string": str, "integer": int, "number": (int, float)}


def check_refusal(error: RefusedError) -> Finding:
    """What a status other than 200 says.

    Args:
        error: As it was raised.
    """
    said = error.said
    if error.status in (401, 403):
        sign = Sign.KEY
    elif error.status == 404:
        sign = Sign.NOT_THERE
    elif 300 <= error.status < 400:
        sign = Sign.REDIRECTED
    elif "tool choice" in said and "enable-auto-tool-choice" in said:
        sign = Sign.NO_TOOLS
    else:
        sign = Sign.BROKEN if error.status >= 500 else Sign.REFUSED
    return failed(sign, f"{error.where} answered HTTP {error.status}", said)


def within(message: Message) -> tuple[Message, int]:
    """As much of an answer as is judged, and how many characters came; see ``MOST_CHARACTERS``.

    Args:
        message: The answer, of any length.
    """
    texts = (message.content, message.reasoning, *(call.arguments for call in message.calls))
    longest = max(map(len, texts))
    if longest <= requests.MOST_CHARACTERS:
        return message, longest
    most = slice(requests.MOST_CHARACTERS)
    kept = replace(
        message,
        content=message.content[most],
        reasoning=message.reasoning[most],
        calls=tuple(call._replace(arguments=call.arguments[most]) for call in message.calls),
    )
    return kept, longest


def check_length(longest: int) -> Iterator[Finding]:
    """What is wrong with an answer that is far too long.

    Args:
        longest: Characters of its longest part.
    """
    if longest > requests.MOST_CHARACTERS:
        what = f"{longest:,} characters came, far more than the tokens that were allowed can have; "
        what += f"only the first {requests.MOST_CHARACTERS:,} are judged"
        yield failed(Sign.ENDLESS, what)


def check_answer(message: Message, max_tokens: int, expected: str = "") -> Iterator[Finding]:
    """What is wrong with an answer to a question, whether the model thought about it or not.

    Args:
        message: The answer.
        max_tokens: As many as it might have.
        expected: What has to be in it.
    """
    yield from check_end(message, max_tokens)
    yield from judge_text(message)
    if found := think_tag(message.content):
        yield failed(Sign.THINK_TAG, "marks of thinking stand in the answer's text", found)
    is_right = expected in message.content
    if message.content.strip() and not is_right and message.finish != "length":
        what = f"the answer to an easy question has no {expected!r} in it"
        yield warned(Sign.WRONG, what, excerpt(message.content))


def check_end(message: Message, max_tokens: int) -> Iterator[Finding]:
    """What is wrong with an answer's length and end.

    Args:
        message: The answer.
        max_tokens: As many as it might have.
    """
    count = message.completion_tokens
    if message.finish not in ENDS:
        what = f"its finish_reason is {message.finish!r}, not one of {', '.join(ENDS)}"
        yield failed(Sign.UNFINISHED, what)
    if not message.text.strip() and not message.calls:
        what = f"no text: neither an answer nor thoughts, in {count or 'no'} tokens"
        yield failed(Sign.EMPTY, what)
    if message.finish == "length":
        if count is not None and count < max_tokens:
            what = f"it was cut after {count} tokens, though {max_tokens} were allowed"
            yield failed(Sign.CUT, what)
        else:
            what = f"it did not end within the {max_tokens} tokens that were allowed"
            yield warned(Sign.LONG, what, message.text[-120:])
    if count is not None and count > max_tokens:
        yield failed(Sign.CUT, f"it has {count} tokens, though {max_tokens} were allowed")
    if message.finish == "stop" and message.reasoning.strip() and not message.content.strip():
        what = "it ended with thoughts alone, and no answer"
        yield warned(Sign.THOUGHTS_ONLY, what, excerpt(message.reasoning))


def check_again(first: Message, second: Message) -> tuple[str, list[Finding]]:
    """How two answers to one greedy request differ, in words and as findings.

    Args:
        first: The one, with its tokens where the server tells them.
        second: The other.
    """
    if not first.tokens or not second.tokens:
        if (first.content, first.reasoning) == (second.content, second.reasoning):
            return f"the same {len(first.text):,} characters", []
        what = "one greedy request was answered in two ways; the server tells no log-probabilities"
        return "another text", [warned(Sign.UNLIKE_ITSELF, what, excerpt(second.text))]
    texts = [[token.text for token in each.tokens] for each in (first, second)]
    if texts[0] == texts[1]:
        return f"the same {len(texts[0]):,} tokens", []
    pairs = enumerate(zip(*texts, strict=False))
    place = next((at for at, (one, other) in pairs if one != other), min(map(len, texts)))
    text = f"the same {place:,} tokens, then others"
    gap = min(_gap(first.tokens, place), _gap(second.tokens, place))
    if gap <= NEAR_TIE:
        return f"{text}: a near tie, {gap:.2f} nats", []
    what = f"one greedy request was answered in two ways, and token {place + 1} was no near tie"
    evidence = f"{''.join(texts[0][:place][-10:])!r}, then {_next(texts[0], place)} or "
    evidence += f"{_next(texts[1], place)}, with a lead of {gap:.2f} nats"
    return text, [failed(Sign.UNLIKE_ITSELF, what, evidence)]


def _gap(tokens: Sequence[Token], place: int) -> float:
    gap = tokens[place].gap if place < len(tokens) else None
    return float("inf") if gap is None else gap


def _next(texts: Sequence[str], place: int) -> str:
    return repr(texts[place]) if place < len(texts) else "the end"


def check_stream(streamed: Stream) -> Iterator[Finding]:
    """What is wrong with how a stream came, whatever it says.

    Args:
        streamed: All of it.
    """
    message = streamed.message
    for flaw in streamed.flaws:
        yield failed(Sign.STREAM, flaw)
    if streamed.pieces == 1 and (message.completion_tokens or 0) > ONE_PIECE_TOKENS:
        what = f"{message.completion_tokens} tokens came in one piece"
        yield warned(Sign.ONE_PIECE, what)


def is_same_text(one: Message, other: Message) -> bool:
    """Whether answer and thoughts are the same, but for white space around them."""
    return one.content.strip() == other.content.strip() and (
        one.reasoning.strip() == other.reasoning.strip()
    )


def check_long(message: Message, counted: int | None, max_tokens: int) -> Iterator[Finding]:
    """What is wrong with the answer about a long text.

    Args:
        message: The answer.
        counted: Tokens of the prompt, by ``/tokenize``; None where that was not told.
        max_tokens: As many as the answer might have.
    """
    yield from check_end(message, max_tokens)
    yield from judge_text(message)
    found = message.prompt_tokens
    if counted is not None and found is not None and found < LEAST_PROMPT * counted:
        what = f"{found:,} tokens of the prompt reached the model, of {counted:,}"
        yield failed(Sign.SHORT_PROMPT, what)
    if message.text.strip() and requests.NEEDLE_ANSWER not in message.text:
        what = f"a number that stands in the text, {requests.NEEDLE_ANSWER}, was not found"
        yield warned(Sign.NO_NEEDLE, what, excerpt(message.text))


def check_template(
    plain: Sequence[str], on: Sequence[str], off: Sequence[str], tools: Sequence[str]
) -> Iterator[Finding]:
    """What is wrong with the prompts that the server makes of messages.

    Args:
        plain: Tokens of a question, as text.
        on: Of the same with thinking on.
        off: With thinking off.
        tools: With a function to be called.
    """
    marks = [mark for mark in ("[gMASK]", "<|user|>", "<|assistant|>") if mark not in plain]
    if marks:
        what = f"the prompt has no token {' or '.join(marks)}"
        yield failed(Sign.NO_TURNS, what, excerpt("".join(plain)))
    if tuple(on) == tuple(off):
        what = "the prompt is the same with enable_thinking true and false"
        yield failed(Sign.NO_SWITCH, what, excerpt("".join(off)))
    if len(tools) <= len(plain):
        what = "the prompt does not grow by the function that is offered"
        yield failed(Sign.TOOLS_UNSEEN, what, excerpt("".join(tools)))


def check_thinking_on(message: Message, max_tokens: int) -> Iterator[Finding]:
    """What is wrong with an answer that was to be thought about.

    Args:
        message: The answer.
        max_tokens: As many as it might have.
    """
    yield from check_answer(message, max_tokens, requests.SUM_ANSWER)
    if found := think_tag(message.reasoning):
        yield failed(Sign.THINK_TAG, "marks of thinking stand in the thoughts", found)
    has_text = message.content.strip() and not think_tag(message.content)
    if has_text and not message.reasoning.strip():
        yield warned(Sign.NO_THOUGHTS, "no thoughts came", excerpt(message.content))


def check_thinking_off(
    message: Message, max_tokens: int, has_switch: bool | None
) -> Iterator[Finding]:
    """What is wrong with an answer that was not to be thought about.

    Args:
        message: The answer.
        max_tokens: As many as it might have.
        has_switch: Whether the prompt differs from that with thinking on; None if not known.
    """
    if message.reasoning.strip() and not message.content.strip():
        what = f"thinking is off, and all of the answer stands in {message.reasoning_field!r}"
        yield failed(Sign.ALL_THOUGHTS, what, excerpt(message.reasoning))
        return
    yield from check_end(message, max_tokens)
    yield from judge_text(message)
    found = think_tag(message.content) or excerpt(message.reasoning.strip())
    if found:
        # The prompt says no: then the model does as it likes.
        make = warned if has_switch else failed
        yield make(Sign.THINKS_STILL, "thinking is off, and the model thinks", found)


def check_call(message: Message, max_tokens: int, *, is_named: bool) -> Iterator[Finding]:
    """What is wrong with an answer where a function was offered or named.

    Args:
        message: The answer.
        max_tokens: As many as it might have.
        is_named: The function was named, so that it had to be called.
    """
    yield from check_end(message, max_tokens)
    yield from judge_text(message, is_alone=False)
    if found := think_tag(message.content):
        yield failed(Sign.THINK_TAG, "marks of thinking stand in the answer's text", found)
    is_cut = message.finish == "length"
    for call in message.calls:
        for what in _wrong(call):
            make = warned if is_cut else failed
            yield make(Sign.BAD_CALL, what, f"{call.name}({call.arguments})")
    if message.calls and not is_cut and not is_named and message.finish != "tool_calls":
        what = f"the finish_reason of a call is {message.finish!r}, not 'tool_calls'"
        yield failed(Sign.CALL_FINISH, what)


def has_call(message: Message, findings: Sequence[Finding]) -> bool:
    """Whether a call was made, or one was written that no parser read."""
    return bool(message.calls) or any(each.sign is Sign.CALL_TAG for each in findings)


def _wrong(call: Call) -> Iterator[str]:
    """How a call differs from the schema that was given; no more of JSON schema than that needs."""
    if call.name != requests.FUNCTION:
        yield f"it calls {call.name!r}, and the function is {requests.FUNCTION!r}"
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        yield "the arguments of the call are no JSON"
        return
    if not isinstance(arguments, dict):
        yield "the arguments of the call are no JSON object"
        return
    properties = requests.PARAMETERS["properties"]
    for key in requests.PARAMETERS["required"]:
        if key not in arguments:
            yield f"the arguments of the call lack {key!r}"
    for key, value in arguments.items():
        if key not in properties:
            yield f"the arguments of the call have {key!r}, which the function has not"
            continue
        kind = properties[key]["type"]
        if not isinstance(value, _TYPES[kind]) or isinstance(value, bool):
            found = json.dumps(value)[:40]
            yield f"the argument {key!r} of the call is {found}, not of type {kind}"
