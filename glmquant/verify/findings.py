"""What a check finds: a code, how bad it is, where, what was expected, and what to do next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from glmquant.reconcile import listing
from glmquant.survey import printable

CODES: Final = {
    "F1": "one index, which names every weight file of the folder and no other",
    "W1": "every header parses, its offsets adjoin, the file's length is exact",
    "C3": "architecture, dtype and all else in config.json as in the source",
    "C4": "layer, expert and dense counts agree with the tensors",
    "S1": "tokenizer, template and generation config are there, byte-equal to the source's",
    "D1": "tensors, index and description name the same",
    "D2": "the MTP layer is whole and float",
    "D3": "one type inside each fused group, over all experts",
    "D4": "known types only, static ones only where the engine takes them",
    "L1": "each linear has the tensors, dtypes and shapes that its type calls for",
    "W2": "no NaN or Inf in a float tensor",
    "W3": "scales are finite and above zero, offsets zero, int8 rows not constant unless zero",
    "M1": "every MoE layer has its router bias: F32, not all zero, bit-equal to the source's",
    "M2": "the MTP layer is bit-equal to the source's",
    "M3": "the body is not rotated",
    "C1": "config.json has no quantization_config, or the whole description",
    "C2": "num_nextn_predict_layers agrees with the tensors",
    "S2": "the chat template renders, with a tool and with thinking off",
    "N1": "int8 weights are those that the source's round to; float ones are equal",
    "B1": "the bytes are those that the manifest has digests of",
    "F2": "no file is narrower in its mode than its siblings",
    "P1": "the model divides by the tensor-parallel size",
    "E6": "the loaders of vllm-ascend's versions take it, and a tensor fills every parameter",
    "E1": "the engine loads the checkpoint and answers",
    "E2": "greedy answers are the same with and without drafting",
    "E3": "draft tokens are accepted, as often as the source's",
    "E5": "the model has learned language: a text is likelier to it than chance",
    "E4": "next-token distributions are the source's, but for the noise of the arithmetic",
}
"""Code → what holds in a right checkpoint, in the order in which one mends what does not."""


class Severity(str, Enum):
    """How bad it is."""

    ERROR = "error"
    """An engine fails, or answers wrongly."""
    WARNING = "warning"
    """It works, but costs something or may fail elsewhere."""


class Level(str, Enum):
    """What has to be read to see it."""

    FILES = "files"
    """Headers and JSON."""
    VALUES = "values"
    """Every byte of the checkpoint."""
    SOURCE = "source"
    """Every byte of the checkpoint and of the BF16 weights it was made of."""
    REFERENCE = "reference"
    """What the reference model says with it."""
    ENGINE = "engine"
    """What vLLM says with it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it has to be.

    Attributes:
        code: A key of ``CODES``.
        severity: How bad it is.
        level: What was read to see it.
        what: What is wrong, as a clause without a full stop.
        where: The file, key or tensors, for people.
        expected: What should be there.
        found: What is there.
        hint: What to do or type next.
        tensors: Every tensor that it is about, in full.
    """

    code: str
    severity: Severity
    level: Level
    what: str
    where: str
    expected: str
    found: str
    hint: str
    tensors: tuple[str, ...] = ()

    def fields(self) -> dict[str, Any]:
        """All of it for JSON; the hint is called ``next``, as everywhere."""
        return {
            "code": self.code,
            "severity": self.severity.value,
            "level": self.level.value,
            "what": self.what,
            "where": self.where,
            "tensors": list(self.tensors),
            "expected": self.expected,
            "found": self.found,
            "next": self.hint,
        }


def about(tensors: Sequence[str], place: str | None = None) -> dict[str, Any]:
    """The fields ``where`` and ``tensors`` of a finding about several tensors.

    Args:
        tensors: Their names, at least one.
        place: The file or key, said first.
    """
    text = listing(tensors)
    return {"where": f"{place}: {text}" if place else text, "tensors": tuple(tensors)}


def file_finding(
    code: str,
    what: str,
    *,
    expected: str,
    found: str,
    hint: str,
    place: str | None = None,
    tensors: Iterable[str] = (),
    is_warning: bool = False,
) -> Finding:
    """A finding of the level of files: an error unless it is a warning.

    Args:
        code: A key of ``CODES``.
        what: What is wrong, as a clause.
        expected: What should be there.
        found: What is there.
        hint: What to do or type next.
        place: The file or key.
        tensors: Every tensor that it is about; the first of them are named in ``where``.
        is_warning: It works, but costs something or may fail elsewhere.
    """
    names = tuple(tensors)
    shown = listing([printable(name, 200) for name in names[:3]])
    if len(names) > 3:
        shown += f" and {len(names) - 3} more"
    where = ": ".join(filter(None, (place and printable(place, 300), shown)))
    severity = Severity.WARNING if is_warning else Severity.ERROR
    return Finding(
        code, severity, Level.FILES, what, where, expected, printable(found, 300), hint, names
    )
