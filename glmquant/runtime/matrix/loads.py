"""Loads in the Python of a pair: what is asked, what came of it, and the process that does it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, NoReturn

from glmquant.errors import EngineError
from glmquant.runtime import guard
from glmquant.runtime.environment.child import clean_environment
from glmquant.runtime.environment.layout import Built
from glmquant.runtime.matrix.environment import INSIDE
from glmquant.runtime.matrix.machine import RANKS_DID_NOT_MEET, is_of_machine
from glmquant.runtime.matrix.pairs import Pair
from glmquant.runtime.server import short_temporary_folder
from glmquant.runtime.serverlog import read_cause, read_tail
from glmquant.storage import writing

IMPORT_SECONDS: Final = 300.0
"""How long a pair may take before its first load begins: 10 s on an idle machine."""

_POLL_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Way:
    """How an engine is told to load.

    Attributes:
        has_flag: ``--quantization ascend``.
        names_model: ``"model"`` in the speculative configuration.
        ranks: ``--tensor-parallel-size``.
        expert_parallel: ``--enable-expert-parallel``.
    """

    has_flag: bool = True
    names_model: bool = False
    ranks: int = 1
    expert_parallel: bool = False

    @property
    def text(self) -> str:
        """In a few words."""
        words = ["--quantization ascend" if self.has_flag else "no flag"]
        words += ['"model" given'] * self.names_model
        words += [f"TP {self.ranks}"] * (self.ranks > 1)
        words += ["expert parallel"] * self.expert_parallel
        return ", ".join(words)


WAYS: Final = (
    Way(),
    Way(names_model=True),
    Way(has_flag=False),
    Way(has_flag=False, names_model=True),
    Way(ranks=2),
    Way(ranks=2, expert_parallel=True),
)
"""The ways that are tried, the usual one first."""


@dataclass(frozen=True, slots=True)
class Case:
    """A load that is asked for.

    Attributes:
        name: By which the answer is known.
        folder: The checkpoint.
        way: How.
        has_draft: With the MTP layer as draft model.
        limit_seconds: How long it may take.
        limit_nbytes: How much memory all its processes may take together.
    """

    name: str
    folder: Path
    way: Way
    has_draft: bool
    limit_seconds: float = 300.0
    limit_nbytes: int = 8_000_000_000

    def fields(self) -> dict[str, Any]:
        """As the program reads it."""
        return {
            "name": self.name,
            "folder": str(self.folder),
            "quantization": "ascend" if self.way.has_flag else None,
            "draft": self.has_draft,
            "names_model": self.way.names_model,
            "ranks": self.way.ranks,
            "expert_parallel": self.way.expert_parallel,
            "limit_seconds": self.limit_seconds,
            "limit_nbytes": self.limit_nbytes,
        }


class Unfilled(NamedTuple):
    """A parameter that no tensor was put into, or not into all of it.

    Attributes:
        name: As the engine calls it.
        elements: How many are without a value, on all ranks together.
        of: How many it has, on all of them.
        is_default: They have the engine's own, as the ones of a norm; else what the memory held.
    """

    name: str
    elements: int
    of: int
    is_default: bool


@dataclass(frozen=True, slots=True)
class Model:
    """What became of a model.

    Attributes:
        error: The class of the engine's exception; None where it loads.
        message: Its text.
        place: The line of the engine that raised it.
        parameters: How many it has.
        unfilled: Those that no tensor was put into, or not into all of it.
    """

    error: str | None
    message: str = ""
    place: str = ""
    parameters: int = 0
    unfilled: tuple[Unfilled, ...] = ()

    @classmethod
    def of(cls, answer: dict[str, Any]) -> Model:
        """What the program said of it."""
        if answer["fate"] == "fails":
            return cls(answer["error"], answer["message"], answer["place"])
        unfilled = sorted(answer["unfilled"].items())
        lost = tuple(Unfilled(name, *told) for name, told in unfilled)
        return cls(None, parameters=answer["parameters"], unfilled=lost)

    def fields(self) -> dict[str, Any]:
        """All of it for JSON."""
        return {
            "loads": self.error is None,
            "error": self.error,
            "message": self.message,
            "place": self.place,
            "parameters": self.parameters,
            "unfilled": [each._asdict() for each in self.unfilled],
        }


@dataclass(frozen=True, slots=True)
class Load:
    """What became of a load.

    Attributes:
        case: It.
        target: The model itself; None where the load was stopped.
        draft: The MTP layer, where one was asked for and the target loads; else None.
        stopped: Why there is no answer, or None: it says nothing of the checkpoint.
        seconds: What it took.
        peak_nbytes: The most memory that a process of it took.
    """

    case: Case
    target: Model | None
    draft: Model | None
    stopped: str | None = None
    seconds: float = 0.0
    peak_nbytes: int = 0


def run_cases(
    pair: Pair,
    built: Built,
    cases: Sequence[Case],
    copy: Callable[[Path], object] | None = None,
) -> Iterator[Load]:
    """Load in a pair's environment, one case after the other; gives each as soon as it is known.

    Nothing of it outlives this process, and nothing is left on the disk.

    Args:
        pair: Which one.
        built: Its environment.
        cases: What is asked for, each under another name.
        copy: Fills an empty folder with what is loaded in place of the checkpoint: of one, then.

    Raises:
        EngineError: The program ended, or gave no answer in time.
    """
    if not cases:
        return
    scratch = Path(tempfile.mkdtemp(prefix="gq-", dir=short_temporary_folder()))
    process = None
    try:
        log, asked, answers = (scratch / name for name in ("log", "cases.json", "answers"))
        answers.touch()
        # The guard removes the folder when the program ends; what is open can be read still.
        with log.open("wb") as output, log.open("rb") as said, answers.open("rb") as answered:
            guarded = [sys.executable, "-I", "-S", guard.__file__, str(scratch), str(log)]
            program = [str(built.python), "-I", str(INSIDE / "main.py"), str(asked), str(answers)]
            process = subprocess.Popen(
                [*guarded, *program],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=clean_environment(scratch),
                start_new_session=True,  # Ctrl-C is for us; its end is by the pipe
            )
            # Only now is there somebody who removes the folder, whatever becomes of us.
            place = None
            if copy is not None:
                place = scratch / "copy" / (cases[0].folder.name or "copy")
                place.mkdir(parents=True)
                copy(place)
            _ask(asked, [replace(case, folder=place or case.folder) for case in cases])
            by_name = {case.name: case for case in cases}
            for answer in _answers(pair, process, answered, said, cases):
                yield _load(by_name[answer["case"]], answer, place)
    finally:
        if process is not None:
            guard.dismiss(process)
        shutil.rmtree(scratch, ignore_errors=True)


def _ask(asked: Path, cases: Sequence[Case]) -> None:
    part = asked.with_suffix(".part")
    with writing(asked), suppress(FileNotFoundError):  # the program has ended, as its log tells
        part.write_text(json.dumps([case.fields() for case in cases]), encoding="utf-8")
        part.rename(asked)


def _answers(
    pair: Pair,
    process: subprocess.Popen[bytes],
    answered: BinaryIO,
    said: BinaryIO,
    cases: Sequence[Case],
) -> Iterator[dict[str, Any]]:
    most = max(case.limit_seconds for case in cases)
    deadline = time.monotonic() + IMPORT_SECONDS + most
    left = len(cases)
    while left:
        has_ended = process.poll() is not None
        begin = answered.tell()
        line = answered.readline()
        if line.endswith(b"\n"):
            left -= 1
            deadline = time.monotonic() + most + IMPORT_SECONDS
            yield json.loads(line)
            continue
        answered.seek(begin)
        if has_ended:
            _fail(pair, said, f"it ended with exit code {process.returncode}")
        if time.monotonic() > deadline:
            _fail(pair, said, "it gives no answer")
        time.sleep(_POLL_SECONDS)


def _fail(pair: Pair, said: BinaryIO, found: str) -> NoReturn:
    log = Path(f"/proc/self/fd/{said.fileno()}")
    cause = read_cause(log)
    error = EngineError(
        f"the loader of vllm-ascend {pair.ascend} does not run",
        expected="an answer to each load",
        found=f"{found}; it said: {cause}" if cause else found,
        hint="glmquant engine remove, then glmquant engine install --matrix",
    )
    error.log = read_tail(log)
    raise error


def _load(case: Case, answer: dict[str, Any], place: Path | None) -> Load:
    """The answer to a case; what the engine says of a copy in a place is said of the checkpoint."""
    models = [
        Model.of(answer[which]) if answer.get(which) else None for which in ("target", "draft")
    ]
    stopped = answer.get("stopped")
    if unmet := answer.get("unmet"):
        stopped = f"{RANKS_DID_NOT_MEET}: {unmet}"
    for number, model in enumerate(models):
        if model is None or model.error is None:
            continue
        text = f"{model.error}: {model.message}"
        stopped = stopped or (text if is_of_machine(text) else None)
        if place is not None:
            message = model.message.replace(str(place), str(case.folder))
            models[number] = replace(model, message=message)
    target, draft = (None, None) if stopped else models
    return Load(case, target, draft, stopped, answer["seconds"], answer.get("peak_nbytes", 0))
