"""What is wrong with single tensors, and the findings that they add up to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from glmquant.glm4_moe import Role
from glmquant.reconcile import listing
from glmquant.verify.findings import Finding, Level, Severity, about
from glmquant.verify.remedies import add_mtp, quantize_anew
from glmquant.verify.subject import Subject

OTHER_ROLE: Final = "other"
MOST: Final = 0.5
"""Where more of the compared tensors than this differ, the source is another model's."""


class Flaw(NamedTuple):
    """One thing that is wrong with one tensor.

    Attributes:
        code: A key of ``CODES``.
        what: The cause: flaws of one cause and role become one finding.
        role: The tensor's.
        tensor: Its name.
        expected: What should be there.
        found: What is there.
        badness: The worst of a cause is the one that is told.
        is_source: The source was needed to see it.
        is_warning: The checkpoint works all the same.
    """

    code: str
    what: str
    role: str
    tensor: str
    expected: str
    found: str
    badness: float = 0.0
    is_source: bool = False
    is_warning: bool = False


def gather(flaws: Iterable[Flaw], subject: Subject, compared: int = 0) -> tuple[Finding, ...]:
    """One finding for each cause and role.

    Args:
        flaws: Those of all tensors, in the order of the files.
        subject: The checkpoint.
        compared: Tensors that were held against the source's.

    Returns:
        The findings, in the order of the first flaw of each.
    """
    causes: dict[tuple[str, str, str, bool, bool], list[Flaw]] = {}
    for flaw in flaws:
        key = (flaw.code, flaw.what, flaw.role, flaw.is_source, flaw.is_warning)
        causes.setdefault(key, []).append(flaw)
    wrong = {f.tensor for fs in causes.values() for f in fs if f.is_source and not f.is_warning}
    is_other_model = len(wrong) > MOST * compared > 0
    return tuple(_finding(found, subject, is_other_model) for found in causes.values())


def _finding(flaws: list[Flaw], subject: Subject, is_other_model: bool) -> Finding:
    worst = max(flaws, key=lambda flaw: flaw.badness)
    names = list(dict.fromkeys(flaw.tensor for flaw in flaws))
    refs = [subject.tensors[name] for name in names if name in subject.tensors]
    files = list(dict.fromkeys(ref.file for ref in refs))
    found = worst.found
    if len(names) > 1:
        which = "the worst" if any(flaw.badness < worst.badness for flaw in flaws) else "such as"
        found = f"{len(names)} tensors; {which} {worst.tensor}: {found}"
    hint = _hint(worst, files, subject)
    if is_other_model and worst.is_source:
        hint = f"most tensors differ: name the release that this one was made of; else {hint}"
    told = about(names, files[0] if len(files) == 1 else None)
    if all(name in subject.found.files for name in names):
        told = {"where": listing(names)}  # side files, the manifest
    return Finding(
        code=worst.code,
        severity=Severity.WARNING if worst.is_warning else Severity.ERROR,
        level=Level.SOURCE if worst.is_source else Level.VALUES,
        what=worst.what,
        expected=worst.expected,
        found=found,
        hint=hint,
        **told,
    )


def _hint(flaw: Flaw, files: list[str], subject: Subject) -> str:
    if flaw.code == "M1":
        return add_mtp(subject, *["--replace-mtp"] * (flaw.tensor in subject.tensors))
    if flaw.code == "M2" or flaw.role == Role.MTP.value:
        return add_mtp(subject, "--replace-mtp")
    damaged = files or [flaw.tensor] * (flaw.tensor in subject.found.files)
    anew = quantize_anew(subject)
    return f"fetch {listing(damaged)} again, or {anew}" if damaged else anew
