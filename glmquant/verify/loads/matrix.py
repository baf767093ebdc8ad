"""What came of the loads: an answer for each way, a row for each version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from glmquant.errors import EngineError
from glmquant.runtime.matrix import Load, Model, Pair, Unfilled, Way
from glmquant.verify.findings import Finding


@dataclass(frozen=True, slots=True)
class Answer:
    """What one version made of the checkpoint in one way.

    Attributes:
        way: How it was told to load.
        load: What came of it.
        lost: Parameters of target and draft that matter and that no tensor filled.
        meaning: What is behind a failure, in our words.
        said: The engine's own message.
        differs: The rules of ``verify`` say another thing.
    """

    way: Way
    load: Load
    lost: tuple[Unfilled, ...]
    meaning: str
    said: str
    differs: bool

    @property
    def models(self) -> tuple[tuple[str, Model | None], ...]:
        """Target and draft."""
        return (("target", self.load.target), ("draft", self.load.draft))

    @property
    def failed(self) -> str | None:
        """``target`` or ``draft``, where one fails."""
        return next((name for name, model in self.models if model and model.error), None)

    @property
    def verdict(self) -> str:
        """In a few words; those of the table of rules where they say the same."""
        if self.load.stopped:
            return "no answer"
        if self.failed:
            return "fails" if self.failed == "target" else "the draft fails"
        if self.lost:
            target = self.load.target.unfilled if self.load.target else ()
            whose = "" if any(each in target for each in self.lost) else "the draft "
            return f"loads, {whose}{len(self.lost)} unfilled"
        return "loads, the draft too" if self.load.draft else "loads"

    @property
    def is_wrong(self) -> bool:
        """Whether it does not load, or a parameter stays unfilled; not where nobody knows."""
        return bool(self.failed or self.lost)

    @property
    def whys(self) -> tuple[str, ...]:
        """Why it is no better, a line each."""
        whys = [self.load.stopped] if self.load.stopped else []
        if self.said:
            whys.append(f"{self.meaning}: {self.said}" if self.meaning else self.said)
        if self.lost:
            names = [
                each.name
                if each.elements == each.of
                else f"{each.name} ({each.elements} of {each.of})"
                for each in self.lost
            ]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            whys.append(f"no tensor fills {', '.join(names[:3])}{more}")
        return tuple(whys)

    def fields(self) -> dict[str, Any]:
        """All of it for JSON."""
        load = self.load
        return {
            "quantization": "ascend" if self.way.has_flag else None,
            "names_model": self.way.names_model,
            "tensor_parallel": self.way.ranks,
            "expert_parallel": self.way.expert_parallel,
            "verdict": self.verdict,
            "target": load.target.fields() if load.target else None,
            "draft": load.draft.fields() if load.draft else None,
            "unfilled": [each.name for each in self.lost],
            "meaning": self.meaning,
            "said": self.said,
            "stopped": load.stopped,
            "differs_from_rules": self.differs,
            "seconds": load.seconds,
            "peak_nbytes": load.peak_nbytes,
        }


@dataclass(frozen=True, slots=True)
class Row:
    """What one version made of the checkpoint.

    Attributes:
        pair: The version.
        answers: For each way.
        failure: Why its loader did not run, or not to its end; or None.
    """

    pair: Pair
    answers: tuple[Answer, ...]
    failure: EngineError | None = None

    @property
    def reason(self) -> str | None:
        """Why there is no answer to some way, in a line; None where there is one to each."""
        if self.failure is not None:
            return f"{self.failure.what}: {self.failure.found}"
        return next((each.load.stopped for each in self.answers if each.load.stopped), None)


@dataclass(frozen=True, slots=True)
class LoadMatrix:
    """What all versions made of it.

    Attributes:
        ways: How they were asked to load.
        rows: A row for each version that was asked.
        absent: Versions that were not asked: they are not installed.
        copy: What was loaded in place of the checkpoint, or None.
        undrafted: Why no draft was loaded though there are tensors for one, or None.
        findings: What is wrong.
        failure: Why some load has no answer, or None.
    """

    ways: tuple[Way, ...]
    rows: tuple[Row, ...]
    absent: tuple[Pair, ...]
    copy: str | None
    undrafted: str | None
    findings: tuple[Finding, ...]
    failure: EngineError | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be known beside the table, a sentence each."""
        notes = [
            f"{row.pair.version}: the table above says otherwise; this was measured"
            for row in self.rows
            if any(answer.differs for answer in row.answers)
        ]
        notes += [each for each in (self.copy, self.undrafted) if each]
        if self.absent:
            names = ", ".join(pair.version for pair in self.absent)
            notes.append(f"not installed: {names} (glmquant engine install --matrix)")
        return tuple(notes)

    def table(self) -> tuple[list[list[str]], list[str]]:
        """For people: a row for each way, and the reasons that its words have numbers of.

        Returns:
            Rows of equally many cells, the head first; and the reasons, the first numbered 1.
        """
        reasons: dict[str, int] = {}
        rows = [["loaded on this CPU by", *(row.pair.version for row in self.rows)]]
        for way in self.ways:
            words = [way.text]
            for row in self.rows:
                found = next((each for each in row.answers if each.way == way), None)
                whys = found.whys if found else tuple(filter(None, [row.reason]))
                marks = [f" [{reasons.setdefault(why, len(reasons) + 1)}]" for why in whys]
                words.append((found.verdict if found else "no answer") + "".join(marks))
            rows.append(words)
        return rows, list(reasons)

    def fields(self) -> dict[str, Any]:
        """All of it for JSON."""
        return {
            "copy": self.copy,
            "undrafted": self.undrafted,
            "versions": [
                {
                    "version": row.pair.version,
                    "vllm": row.pair.vllm,
                    "vllm_ascend": row.pair.ascend,
                    "failure": row.reason if row.failure else None,
                    "ways": [answer.fields() for answer in row.answers],
                }
                for row in self.rows
            ],
            "not_installed": [pair.version for pair in self.absent],
        }
