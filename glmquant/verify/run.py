"""All levels of a verification, one after the other, and what they found."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from glmquant.checkpoint import Checkpoint
from glmquant.errors import GlmquantError, UsageError
from glmquant.fetched import JOURNAL_FILE, MARKER_FILE, parse_marker
from glmquant.markings import FLOAT_FORMATS, MODELSLIM_FORMATS, Format
from glmquant.observer import Observer
from glmquant.source import FolderSource
from glmquant.verify.behaviour.behaviour import Behaviour
from glmquant.verify.behaviour.check import Run, Wish, check_behaviour, choose
from glmquant.verify.behaviour.choice import INSTALL, Choice, EngineKind, next_engine
from glmquant.verify.companions import check_companions
from glmquant.verify.engines.foretold import check_foretold
from glmquant.verify.engines.predict import Verdict, predict
from glmquant.verify.files.anatomy import dissect
from glmquant.verify.files.check import check_files
from glmquant.verify.files.template import check_template
from glmquant.verify.findings import CODES, Finding, Level, Severity
from glmquant.verify.loads.check import LoadWish, check_loads
from glmquant.verify.loads.matrix import LoadMatrix
from glmquant.verify.remedies import SOURCE, naming_source, serve
from glmquant.verify.subject import Subject, open_subject
from glmquant.verify.weights.check import check_source, check_values
from glmquant.verify.weights.figures import RoleFigures, TensorFigures

VERIFIED_FORMATS: Final = (
    Format.GLMQUANT,
    Format.UNFINISHED,
    *MODELSLIM_FORMATS,
    Format.UNMARKED,
    Format.OTHER,
    Format.UNREADABLE,
    Format.NO_WEIGHTS,
)
"""What may be a W8A8 checkpoint, damaged perhaps."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a verification found.

    Attributes:
        subject: The checkpoint.
        source: What the BF16 weights are called that it was held against, or None.
        levels: The levels that ran, in order.
        findings: Errors first, in the order of their codes.
        engines: What each version of vllm-ascend would do with the folder.
        figures: How far the weights of each role are from the source's, where that was measured.
        tensors: The same for each int8 weight.
        notes: What was found and is right, a sentence each.
        lacks_mtp: The source has an MTP layer, the checkpoint has not.
        behaviour: What an engine did with the checkpoint; None where none was asked, or it failed.
        engine_log: The last lines of one that failed.
        loads: What the loaders of vllm-ascend's versions did with it, where they were asked.
        failure: Why a server that runs already could not be asked, or a loader gave no answer.
    """

    subject: Subject
    source: str | None
    levels: tuple[Level, ...]
    findings: tuple[Finding, ...]
    engines: tuple[Verdict, ...]
    figures: tuple[RoleFigures, ...] = ()
    tensors: tuple[TensorFigures, ...] = ()
    notes: tuple[str, ...] = ()
    lacks_mtp: bool = False
    behaviour: Behaviour | None = None
    engine_log: tuple[str, ...] = ()
    failure: GlmquantError | None = None
    loads: LoadMatrix | None = None

    @property
    def errors(self) -> int:
        """How many findings are errors."""
        return sum(finding.severity is Severity.ERROR for finding in self.findings)

    @property
    def verdict(self) -> str:
        """``clean``, ``warnings`` or ``findings``; ``open`` where a server or loader is silent."""
        if self.errors:
            return "findings"
        if self.failure is not None:
            return "open"
        return "warnings" if self.findings else "clean"


def verify(
    folder: Path,
    *,
    source: Checkpoint | None = None,
    deep: bool = False,
    tensor_parallel: int | None = None,
    workers: int = 1,
    wish: Wish | None = None,
    loads: LoadWish | None = None,
    observer: Observer | None = None,
) -> Report:
    """Judge a quantized checkpoint by what is on disk, and by what it does.

    Args:
        folder: The checkpoint.
        source: The BF16 weights it was made of: every byte of both is then read, on a hub of what
            became int8 a sample.
        deep: Read every byte of the checkpoint, and of a source on a hub.
        tensor_parallel: The size that the model has to be divided by.
        workers: Threads.
        wish: What engine is to be asked; None for none.
        loads: The loaders of which versions are to load it; None for none.
        observer: Is told how far it is.

    Returns:
        The report.

    Raises:
        CheckpointError: The folder holds no model.
        UsageError: It holds one that is not quantized to W8A8, or the engine cannot run here.
        StorageError: A file cannot be read, or became shorter meanwhile.
    """
    observer = observer or Observer()
    subject = open_subject(FolderSource(folder))
    _require_w8a8(subject)
    choice = choose(wish, subject, source) if wish is not None else None
    anatomy = dissect(subject)
    findings = [*check_files(subject, tensor_parallel, anatomy), *check_template(subject)]
    levels = [Level.FILES]
    figures: tuple[RoleFigures, ...] = ()
    tensors: tuple[TensorFigures, ...] = ()
    notes: tuple[str, ...] = ()
    if source is not None:
        levels += [Level.VALUES, Level.SOURCE]
        findings += check_companions(subject, source)
        compared = check_source(subject, source, deep=deep, observer=observer, workers=workers)
        findings += compared.findings
        figures, tensors, notes = compared.figures, compared.tensors, compared.notes
    elif deep:
        levels.append(Level.VALUES)
        findings += check_values(subject, observer=observer, workers=workers).findings
    engines = predict(subject, anatomy)
    matrix = check_loads(subject, loads, engines, observer) if loads is not None else None
    if matrix is not None:
        findings += matrix.findings
    elif not any(finding.severity is Severity.ERROR for finding in findings):
        findings += check_foretold(subject, engines)
    run = Run()
    if wish is not None and choice is not None:
        run = _behaviour(wish, choice, subject, source, findings, observer)
        findings += run.findings
        levels += [run.level] if run.level else []
        notes += (run.note,) if run.note else ()
    if matrix is not None and Level.ENGINE not in levels:
        levels.append(Level.ENGINE)
    return Report(
        subject=subject,
        source=source.source.shown if source else None,
        levels=tuple(levels),
        findings=_settled(findings, source),
        engines=engines,
        figures=figures,
        tensors=tensors,
        notes=notes,
        lacks_mtp=bool(source and source.mtp_count and not subject.mtp_layers),
        behaviour=run.behaviour,
        engine_log=run.log,
        failure=run.failure or (matrix.failure if matrix else None),
        loads=matrix,
    )


def _behaviour(
    wish: Wish,
    choice: Choice,
    subject: Subject,
    source: Checkpoint | None,
    findings: list[Finding],
    observer: Observer,
) -> Run:
    """Ask the engine, unless it was left to us and there are errors already."""
    if wish.engine is EngineKind.AUTO and wish.url is None:
        errors = sum(finding.severity is Severity.ERROR for finding in findings)
        if errors and choice.kind is not EngineKind.NONE:
            return Run(
                note="no engine was asked: the files have errors; --engine asks all the same"
            )
    return check_behaviour(wish, choice, subject, source, observer)


def _settled(findings: Iterable[Finding], source: Checkpoint | None) -> tuple[Finding, ...]:
    """Findings in order, each once, with one graft for all that a graft mends.

    Args:
        findings: Those of all levels.
        source: The BF16 weights, named in the hints where they are known.
    """
    found = list(findings)
    kept = [each for each in found if not any(_repeats(each, other) for other in found)]
    grafts = {each.hint for each in kept if each.hint.startswith("glmquant add-mtp ")}
    whole = max(grafts, key=len, default="")  # with --replace-mtp it does what the others do
    settled = []
    for each in sorted(kept, key=_rank):
        hint = whole if each.hint in grafts else each.hint
        if source is not None:
            hint = naming_source(hint, source.source.shown)
            if source.source.is_far and "glmquant w8a8 " in hint:
                hint += " --stream"
        settled.append(replace(each, hint=hint))
    return tuple(settled)


def _rank(finding: Finding) -> tuple[bool, int]:
    return finding.severity is not Severity.ERROR, list(CODES).index(finding.code)


def _repeats(finding: Finding, other: Finding) -> bool:
    """Whether another level tells the same: a file as the source has it, missing tensors before."""
    if finding.code != other.code or finding.level is other.level:
        return False
    if finding.tensors:
        is_second = finding.level is Level.SOURCE and other.level is Level.FILES
        return is_second and set(finding.tensors) <= set(other.tensors)
    is_first = finding.level is Level.FILES and other.level is Level.SOURCE
    return is_first and not other.tensors and finding.where == other.where


def _require_w8a8(subject: Subject) -> None:
    marking = subject.identity.marking
    if marking.format in VERIFIED_FORMATS or subject.description:
        return
    is_float = marking.format in FLOAT_FORMATS
    hint = shlex.join(["glmquant", "w8a8" if is_float else "inspect", str(subject.path)])
    if (subject.path / JOURNAL_FILE).is_file():
        hint = "run that glmquant fetch again: it has not ended"
    elif (subject.path / MARKER_FILE).is_file():
        data = (subject.path / MARKER_FILE).read_bytes()
        hint = f"it is a part of a model: {parse_marker(data).complete_with}"
    raise UsageError(
        "this is not a W8A8 checkpoint in the ModelSlim format",
        where=str(subject.path),
        expected="int8 weights and quant_model_description.json",
        found=subject.identity.text,
        hint=hint,
    )


def next_command(report: Report, folder: str) -> str:
    """What to type next: the remedy of the first error, or the next level.

    Args:
        report: What was found.
        folder: The checkpoint, as the user would type it.
    """
    if report.errors:
        return report.findings[0].hint
    if report.failure is not None:
        return report.failure.hint or shlex.join(["glmquant", "verify", folder, "--engine", "none"])
    if report.source is None:
        return shlex.join(["glmquant", "verify", folder, "--source", SOURCE])
    if report.lacks_mtp:
        return shlex.join(["glmquant", "add-mtp", folder, "--from", report.source])
    engine = next_engine(report.behaviour.engine if report.behaviour else None)
    if engine == INSTALL:
        return shlex.join(["glmquant", "engine", "install"])
    if engine is not None:
        source = ["--source", report.source] if engine != EngineKind.ASCEND.value else []
        return shlex.join(["glmquant", "verify", folder, *source, "--engine", engine])
    return serve(folder)
