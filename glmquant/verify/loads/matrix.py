"""What came of the loads: an answer for each way, a row for each version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
        """``target`` or ``draft``, where one fails; ``load`` where it was stopped."""
        if self.load.stopped:
            return "load"
        return next((name for name, model in self.models if model and model.error), None)

    @property
    def verdict(self) -> str:
        """In a few words."""
        if self.load.stopped:
            return "stopped"
        if self.failed:
            return "fails" if self.failed == "target" else "the draft fails"
        if self.lost:
            return f"loads, {len(self.lost)} unfilled"
        return "loads"

    @property
    def is_right(self) -> bool:
        """Whether it loads, and every parameter is filled."""
        return self.verdict == "loads"

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
        failure: Why its loader did not run at all, or None.
    """

    pair: Pair
    answers: tuple[Answer, ...]
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class LoadMatrix:
    """What all versions made of it.

    Attributes:
        rows: A row for each version that was asked.
        absent: Versions that were not asked: they are not installed.
        copy: What was loaded in place of the checkpoint, or None.
        findings: What is wrong.
    """

    rows: tuple[Row, ...]
    absent: tuple[Pair, ...]
    copy: str | None
    findings: tuple[Finding, ...]

    def fields(self) -> dict[str, Any]:
        """All of it for JSON."""
        return {
            "copy": self.copy,
            "versions": [
                {
                    "version": row.pair.version,
                    "vllm": row.pair.vllm,
                    "vllm_ascend": row.pair.ascend,
                    "failure": row.failure,
                    "ways": [answer.fields() for answer in row.answers],
                }
                for row in self.rows
            ],
            "not_installed": [pair.version for pair in self.absent],
        }
