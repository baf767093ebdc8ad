"""What was seen of a service: signs, how bad each is, and a verdict a request."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple


class Verdict(str, Enum):
    """How a request went. What a server has to do can fail; what a model may do is a warning."""

    OK = "ok"
    NOT_JUDGED = "not judged"
    WARNING = "warning"
    FAILED = "failed"


class Sign(Enum):
    """What can be seen to be wrong; ``causes.py`` knows of what it is the sign."""

    SILENT = "no answer"
    STRANGE = "an answer of another kind"
    KEY = "no or the wrong key"
    REDIRECTED = "sent elsewhere"
    NOT_THERE = "no such model or address"
    REFUSED = "refused"
    BROKEN = "an error of the server's"
    NO_TOOLS = "tool calls switched off"
    EMPTY = "no text"
    CUT = "cut short"
    LONG = "as long as allowed"
    ENDLESS = "far longer than allowed"
    UNFINISHED = "no reason for its end"
    REPLACED = "characters that are none"
    LOOPED = "a loop"
    LOOPED_GREEDILY = "a loop of greedy decoding"
    THINK_TAG = "marks of thinking in the text"
    CALL_TAG = "marks of a call in the text"
    TURN_MARK = "marks of turns in the text"
    WRONG = "a wrong answer"
    NO_NEEDLE = "a detail is not found"
    SHORT_PROMPT = "a shorter prompt"
    UNLIKE_ITSELF = "two greedy answers"
    STREAM = "a stream that is none"
    STREAM_DIFFERS = "another text in the stream"
    ONE_PIECE = "a stream in one piece"
    BAD_CALL = "a call that is wrong"
    NO_CALL = "no call"
    CALL_FINISH = "another reason for a call's end"
    NO_THOUGHTS = "no thoughts"
    THOUGHTS_ONLY = "thoughts and no answer"
    ALL_THOUGHTS = "the answer stands in the thoughts"
    THINKS_STILL = "thoughts though they are off"
    NO_TURNS = "a prompt without marks of turns"
    NO_SWITCH = "a prompt without the switch for thinking"
    TOOLS_UNSEEN = "a prompt without the tools"
    NO_DRAFTS = "no drafts"
    REJECTED = "drafts are not accepted"
    SELDOM = "drafts are seldom accepted"


class Finding(NamedTuple):
    """Something that is not as it should be.

    Attributes:
        sign: Of what kind it is.
        verdict: How bad it is: a warning, or failed.
        what: It, in words.
        evidence: What was seen, as it came.
    """

    sign: Sign
    verdict: Verdict
    what: str
    evidence: str = ""


def failed(sign: Sign, what: str, evidence: str = "") -> Finding:
    """What no server may do."""
    return Finding(sign, Verdict.FAILED, what, evidence)


def warned(sign: Sign, what: str, evidence: str = "") -> Finding:
    """What a model may do, or what need not be wrong."""
    return Finding(sign, Verdict.WARNING, what, evidence)


@dataclass(frozen=True, slots=True)
class Result:
    """How a request went.

    Attributes:
        name: Of the request.
        text: What came, in a line.
        findings: What is wrong with it.
        answer: What the model said, as it came.
        is_judged: Whether there was anything to judge.
    """

    name: str
    text: str
    findings: tuple[Finding, ...] = ()
    answer: str = ""
    is_judged: bool = True

    @property
    def verdict(self) -> Verdict:
        """That of the worst finding."""
        return worst((each.verdict for each in self.findings), self.is_judged)


@dataclass(frozen=True, slots=True)
class Report:
    """All of it.

    Attributes:
        url: Of the server.
        model: As it is called; empty where that is not known.
        root: The folder or hub id that the server says it serves; empty where it says none.
        max_model_len: Tokens of prompt and answer together; 0 where it does not say.
        results: One a request.
        notes: What is to be known, a sentence each.
    """

    url: str
    model: str
    root: str
    max_model_len: int
    results: tuple[Result, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def verdict(self) -> Verdict:
        """That of the worst request; not judged where none was."""
        judged = [each.verdict for each in self.results if each.verdict is not Verdict.NOT_JUDGED]
        return worst(judged, bool(judged))

    @property
    def headline(self) -> str:
        """The verdict in a line: ``failed: 1 failed, 2 warnings, 6 ok``."""
        verdicts = [each.verdict for each in self.results]
        counts = [
            f"{count} {verdict.value}{'s' * (verdict is Verdict.WARNING and count > 1)}"
            for verdict in (Verdict.FAILED, Verdict.WARNING, Verdict.OK, Verdict.NOT_JUDGED)
            if (count := verdicts.count(verdict))
        ]
        return f"{self.verdict.value}: {', '.join(counts)}"


def worst(verdicts: Iterable[Verdict], is_judged: bool = True) -> Verdict:
    """The worst of some; ok or not judged where there are none.

    Args:
        verdicts: Of what was found.
        is_judged: Whether there was anything to judge.
    """
    order: list[Any] = list(Verdict)
    start = Verdict.OK if is_judged else Verdict.NOT_JUDGED
    return max((start, *verdicts), key=order.index)
