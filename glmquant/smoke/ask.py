"""The requests of one service, one after the other, each with its verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from glmquant.errors import EngineError
from glmquant.observer import Observer
from glmquant.runtime.chat import (
    Message,
    RefusedError,
    StrangeError,
    complete,
    count_tokens,
)
from glmquant.runtime.client import Client, ServedModel
from glmquant.runtime.events import stream
from glmquant.smoke import requests
from glmquant.smoke.checks import (
    check_again,
    check_answer,
    check_call,
    check_length,
    check_long,
    check_refusal,
    check_stream,
    check_template,
    check_thinking_off,
    check_thinking_on,
    has_call,
    is_same_text,
    within,
)
from glmquant.smoke.drafts import judge_drafts, read_counters
from glmquant.smoke.findings import Finding, Result, Sign, Verdict, failed, warned
from glmquant.smoke.garble import excerpt, judge_loop


@dataclass(slots=True)
class Asker:
    """Asks a server that has told what it serves.

    Attributes:
        client: Asks it.
        model: What it serves.
        names: Of the requests.
        long_tokens: Of the long prompt.
        made_tokens: That it has made for us so far.
    """

    client: Client
    model: ServedModel
    names: tuple[str, ...]
    long_tokens: int
    made_tokens: int = 0
    _longest: int = 0
    _plain: Message | None = None
    _may_log: bool = True
    _rendered: dict[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)

    def results(self, observer: Observer) -> Iterator[Result]:
        """One a request, in order."""
        asks: dict[str, Callable[[], Result]] = {
            requests.PLAIN: self._ask_plain,
            requests.AGAIN: self._ask_again,
            requests.STREAMING: self._ask_streaming,
            requests.LONG: self._ask_long,
            requests.TEMPLATE: self._ask_template,
            requests.TOOLS: self._ask_tools,
            requests.THINKING_ON: self._ask_thinking_on,
            requests.THINKING_OFF: self._ask_thinking_off,
        }
        counts = requests.DRAFTS in self.names
        before = read_counters(self.client) if counts else ""
        for name, ask in asks.items():
            if name in self.names:
                observer.tell(f"asking: {name}")
                self._longest = 0
                try:
                    result = ask()
                    too_long = tuple(check_length(self._longest))
                    yield replace(result, findings=(*too_long, *result.findings))
                except EngineError as error:
                    finding = finding_of(error)
                    yield Result(name, finding.what, (finding,))
        if counts:
            yield judge_drafts(before, read_counters(self.client), self.made_tokens)

    @property
    def _context(self) -> int:
        return self.model.max_model_len or requests.UNKNOWN_CONTEXT

    @property
    def _most(self) -> int:
        return requests.answer_tokens(self._context)

    def _body(self, content: str, most: int | None = None) -> dict[str, Any]:
        return requests.question(self.model.name, content, most or self._most)

    def _complete(self, body: Mapping[str, Any]) -> Message:
        return self._taken(complete(self.client, body))

    def _taken(self, message: Message) -> Message:
        """An answer that came, counted, as far as it is judged."""
        self.made_tokens += message.completion_tokens or 0
        message, longest = within(message)
        self._longest = max(self._longest, longest)
        return message

    def _logged(self, body: Mapping[str, Any]) -> Message:
        """With log-probabilities, which tell a near tie, where the server gives them."""
        if self._may_log:
            try:
                return self._complete({**body, "logprobs": True, "top_logprobs": 2})
            except RefusedError as error:
                if error.status != 400 or "logprobs" not in error.said:
                    raise
                self._may_log = False
        return self._complete(body)

    def _first(self) -> Message:
        """The answer to the plain question, asked once."""
        if self._plain is None:
            self._plain = self._logged(self._body(requests.QUESTION))
        return self._plain

    def _result(
        self, name: str, body: Mapping[str, Any], message: Message, findings: list[Finding]
    ) -> Result:
        """With a loop in it, where there is one: asked once more without greedy decoding."""
        round_, is_all = judge_loop(message)
        if round_:
            # A loop is why it did not end.
            findings = [each for each in findings if each.sign is not Sign.LONG]
            findings.append(self._loop(body, round_, is_all))
        return Result(name, _text_of(message), tuple(findings), message.content)

    def _loop(self, body: Mapping[str, Any], round_: str, is_all: bool) -> Finding:
        again, is_all_again = judge_loop(self._complete(requests.sampled(body)))
        evidence = f"{round_[:120]!r} over and over"
        if again and (is_all or is_all_again):
            what = "the answer is a loop, with the model's own settings, too"
            return failed(Sign.LOOPED, what, evidence)
        what = "the greedy answer ends in a loop"
        return warned(Sign.LOOPED_GREEDILY, what, evidence)

    def _ask_plain(self) -> Result:
        body, message = self._body(requests.QUESTION), self._first()
        findings = [*check_answer(message, self._most, requests.ANSWER)]
        return self._result(requests.PLAIN, body, message, findings)

    def _ask_again(self) -> Result:
        second = self._first(), self._logged(self._body(requests.QUESTION))
        text, findings = check_again(*second)
        return Result(requests.AGAIN, text, tuple(findings), second[1].content)

    def _ask_streaming(self) -> Result:
        body, first = self._body(requests.QUESTION), self._first()
        streamed = stream(self.client, body)
        message = self._taken(streamed.message)
        findings = [*check_stream(streamed)]
        is_told = requests.PLAIN in self.names and is_same_text(first, message)
        if message.finish is not None and not is_told:
            findings += check_answer(message, self._most, requests.ANSWER)
        if not streamed.flaws:
            findings += self._differences(body, first, message)
        text = f"{streamed.pieces:,} pieces, {_text_of(message)}"
        return Result(requests.STREAMING, text, tuple(findings), message.content)

    def _differences(
        self, body: Mapping[str, Any], first: Message, message: Message
    ) -> Iterator[Finding]:
        """How a stream says something else than the whole answer: always, or by chance."""
        if is_same_text(first, message):
            return
        second = self._taken(stream(self.client, body).message)
        is_steady = is_same_text(second, message)
        what = "the stream says something else than the whole answer to the same greedy request"
        if is_steady:
            what += ", twice"
        make = failed if is_steady else warned
        yield make(Sign.STREAM_DIFFERS, what, _parting(first.text, message.text))

    def _ask_long(self) -> Result:
        most = requests.answer_tokens(self._context, requests.SHORT_ANSWER_TOKENS)
        room = min(self.long_tokens, self._context - most)
        body, counted = self._long_body(room, most)
        if counted is not None and counted + most > self._context:
            text = f"the server takes {self._context:,} tokens: too few for a long prompt"
            return Result(requests.LONG, text, is_judged=False)
        message = self._complete(body)
        findings = [*check_long(message, counted, most)]
        made = self._result(requests.LONG, body, message, findings)
        found = message.prompt_tokens
        length = f"a prompt of {found:,} tokens, " if found is not None else ""
        return replace(made, text=length + made.text)

    def _long_body(self, room: int, most: int) -> tuple[dict[str, Any], int | None]:
        """A request whose prompt takes most of some room, and its length by ``/tokenize``."""

        def body_of(entries: int) -> dict[str, Any]:
            content = requests.journal(entries)
            return self._body(content, most) | requests.thinking(False)

        least = requests.LEAST_ENTRIES
        try:
            few, _ = count_tokens(self.client, body_of(least))
            more, _ = count_tokens(self.client, body_of(2 * least))
            each = max((more - few) / least, 1.0)
            body = body_of(max(least, int(least + (room * 0.97 - few) / each)))
            return body, count_tokens(self.client, body)[0]
        except EngineError:
            return body_of(max(least, requests.entries_in(room))), None

    def _prompts(self) -> dict[str, tuple[int, tuple[str, ...]]]:
        """What the server makes of a question: plain, thinking on and off, with a function."""
        if not self._rendered:
            plain = self._body(requests.QUESTION)
            asked = {
                "plain": plain,
                "on": plain | requests.thinking(True),
                "off": plain | requests.thinking(False),
                "tools": plain | requests.with_tool(is_named=False),
            }
            self._rendered = {key: count_tokens(self.client, body) for key, body in asked.items()}
        return self._rendered

    def _has_switch(self) -> bool | None:
        """Whether the prompt depends on ``enable_thinking``; None where that is not told."""
        try:
            prompts = self._prompts()
        except EngineError:
            return None
        (_, on), (_, off) = prompts["on"], prompts["off"]
        return on != off if on and off else None

    def _ask_template(self) -> Result:
        try:
            prompts = self._prompts()
        except EngineError as error:
            text = f"/tokenize tells no prompt: {finding_of(error).what}"
            return Result(requests.TEMPLATE, text, is_judged=False)
        texts = {key: texts for key, (_, texts) in prompts.items()}
        if not all(texts.values()):
            text = "/tokenize does not tell the tokens of a prompt as text"
            return Result(requests.TEMPLATE, text, is_judged=False)
        findings = tuple(check_template(texts["plain"], texts["on"], texts["off"], texts["tools"]))
        lengths = ", ".join(f"{key} {count:,}" for key, (count, _) in prompts.items())
        return Result(requests.TEMPLATE, f"prompts of {lengths} tokens", findings)

    def _ask_tools(self) -> Result:
        body = self._body(requests.WEATHER) | requests.with_tool(is_named=False)
        message = self._complete(body)
        findings = [*check_call(message, self._most, is_named=False)]
        if has_call(message, findings):
            return self._result(requests.TOOLS, body, message, findings)
        named = self._body(requests.WEATHER) | requests.with_tool(is_named=True)
        try:
            second = self._complete(named)
        except EngineError as error:
            findings.append(finding_of(error))
        else:
            found = check_call(second, self._most, is_named=True)
            findings += [each for each in found if each.verdict is Verdict.FAILED]
            made = "a call was made" if second.calls else "none was made then, either"
            made += " and not finished" * bool(second.calls and second.finish == "length")
            what = f"no call was made; with the function named as the one to call, {made}"
            findings.append(warned(Sign.NO_CALL, what, excerpt(message.content)))
        return self._result(requests.TOOLS, body, message, [*dict.fromkeys(findings)])

    def _ask_thinking_on(self) -> Result:
        body = self._body(requests.SUM) | requests.thinking(True)
        message = self._complete(body)
        findings = [*check_thinking_on(message, self._most)]
        return self._result(requests.THINKING_ON, body, message, findings)

    def _ask_thinking_off(self) -> Result:
        most = requests.answer_tokens(self._context, requests.SHORT_ANSWER_TOKENS)
        body = self._body(requests.SUM, most) | requests.thinking(False)
        message = self._complete(body)
        findings = [*check_thinking_off(message, most, self._has_switch())]
        return self._result(requests.THINKING_OFF, body, message, findings)


def _parting(one: str, other: str) -> str:
    """Where two texts part, and how each goes on."""
    pairs = enumerate(zip(one, other, strict=False))
    place = next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
    return f"{one[max(0, place - 40) : place + 40]!r} or {other[max(0, place - 40) : place + 40]!r}"


def _text_of(message: Message) -> str:
    """What came, in a line."""
    parts = []
    if message.completion_tokens is not None:
        parts.append(f"{message.completion_tokens:,} tokens")
    if message.reasoning.strip():
        parts.append(f"thoughts in {message.reasoning_field!r}")
    if message.calls:
        parts.append(f"calls {', '.join(call.name for call in message.calls)}")
    parts.append(f"finish_reason {message.finish}")
    return ", ".join(parts)


def finding_of(error: EngineError) -> Finding:
    """What it says of a server that it did not answer as asked.

    Args:
        error: As it was raised.
    """
    if isinstance(error, RefusedError):
        return check_refusal(error)
    if isinstance(error, StrangeError):
        what = f"{error.what}: {error.where} should give {error.expected}"
        return failed(Sign.STRANGE, what, error.found or "")
    return failed(Sign.SILENT, error.what, error.found or "")
