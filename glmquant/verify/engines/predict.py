"""What each version of vllm-ascend would do with a folder, by facts of the folder alone.

The rules are those measured with the real loaders of vLLM and vllm-ascend 0.13.0, 0.18.0, 0.23.0,
0.26.0rc1 and 0.30.0rc2 on a CPU, one defect at a time. Nothing is run here, no finding is asked.
An engine that holds int8 weights tracks no missing ones (``model_loader/default_loader.py``, 0.23
and 0.30): what is not in the files stays as the memory was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from glmquant.description import DESCRIPTION_FILE
from glmquant.glm4_moe import (
    ARCHITECTURE,
    MAX_TENSORS,
    expected_tensors,
    mtp_layers,
)
from glmquant.survey import printable
from glmquant.verify.engines.reading import Reading, read_as_engine
from glmquant.verify.engines.rules import (
    Engine,
    Fate,
    Model,
    Trouble,
    copies,
    lookups,
    noticed,
    noticed_of_all,
    shapes,
    some,
    tensors,
)
from glmquant.verify.engines.settings import refusal_of_settings
from glmquant.verify.files.anatomy import Anatomy, dissect, linears_of
from glmquant.verify.files.names import NORM_BIAS
from glmquant.verify.subject import Subject

ENGINES: Final = (
    Engine(
        "0.13",
        detects=False,
        sorts=False,
        has_static_shared=True,
        cuts_experts=True,
        tracks_all=True,
    ),
    Engine("0.18", asks_for_head=True, has_static_shared=True, cuts_experts=True, tracks_all=True),
    Engine("0.23", guesses_head=True, checks_types=True),
    Engine(
        "0.26",
        asks_for_head=True,
        wants_every_file=True,
        assumes_mtp=True,
        checks_types=True,
    ),
    Engine(
        "0.30",
        guesses=True,
        guesses_head=True,
        takes_method_alone=True,
        wants_every_file=True,
        assumes_mtp=True,
        checks_types=True,
        drops_expert_biases=True,
    ),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of the target model or of the draft model.

    Attributes:
        fate: In a word.
        why: The error, or what is wrong; empty where it loads.
    """

    fate: Fate
    why: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The fate and why, in a line."""
        return f"{self.fate.value}: {'; '.join(self.why)}" if self.why else self.fate.value

    def fields(self) -> dict[str, Any]:
        """All of it for JSON."""
        return {"fate": self.fate.value, "why": list(self.why)}


@dataclass(frozen=True, slots=True)
class Run:
    """An engine that was started in one of the two ways.

    Attributes:
        target: The model itself.
        draft: The MTP layer, where one is there or announced and the target loads; else None.
    """

    target: Outcome
    draft: Outcome | None

    @property
    def fate_text(self) -> str:
        """What becomes of both, in a few words."""
        if self.target.fate is not Fate.LOADS or self.draft is None:
            return self.target.fate.value
        if self.draft.fate is Fate.LOADS:
            return "loads, the draft too"
        return f"loads; the draft {self.draft.fate.value}"

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why, where something is wrong."""
        return (*self.target.why, *(self.draft.why if self.draft else ()))

    @property
    def text(self) -> str:
        """Both in a line."""
        if self.target.fate is not Fate.LOADS or self.draft is None:
            return self.target.text
        if self.draft.fate is Fate.LOADS:
            return "loads, the draft too"
        return f"loads; the draft {self.draft.text}"

    def fields(self) -> dict[str, Any]:
        """All of it for JSON."""
        return {
            "target": self.target.fields(),
            "draft": self.draft.fields() if self.draft else None,
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a version would do.

    Attributes:
        version: Of vllm-ascend.
        with_flag: With ``--quantization ascend``.
        without_flag: Without it.
    """

    version: str
    with_flag: Run
    without_flag: Run

    def fields(self) -> dict[str, Any]:
        """All of it for JSON: a line for each way, and its parts."""
        return {
            "version": self.version,
            "with_flag": self.with_flag.text,
            "without_flag": self.without_flag.text,
            "runs": {
                "with_flag": self.with_flag.fields(),
                "without_flag": self.without_flag.fields(),
            },
        }


def predict(subject: Subject, anatomy: Anatomy | None = None) -> tuple[Verdict, ...]:
    """What each version would do with the folder, with ``--quantization ascend`` and without.

    Args:
        subject: The folder.
        anatomy: What was found in it, where that is known already.

    Returns:
        A verdict a version, the oldest first.
    """
    read = read_as_engine(subject)
    if anatomy is None or read.subject is not subject:
        anatomy = dissect(read.subject)
    judge = _Judge(read, anatomy)
    return tuple(
        Verdict(engine.version, judge.run(engine, True), judge.run(engine, False))
        for engine in ENGINES
    )


class _Judge:
    """Holds what was worked out for one description, for the versions that believe it too."""

    def __init__(self, read: Reading, anatomy: Anatomy) -> None:
        self._read = read
        self._subject = read.subject
        self._anatomy = anatomy
        self._known: dict[tuple[str, int], tuple[Model, list[Trouble]]] = {}
        self._shapes: dict[int, list[Trouble]] = {}

    def run(self, engine: Engine, has_flag: bool) -> Run:
        """What becomes of target and draft."""
        settings = self._subject.found.config
        if refusal := (
            self._refusal() or refusal_of_settings(settings, engine) or self._absent(engine)
        ):
            return Run(Outcome(Fate.FAILS, (refusal,)), None)
        which = self._believed(engine, has_flag)
        if which not in ("file", "embedded", "none"):
            return Run(Outcome(Fate.FAILS, (which,)), None)
        config = self._subject.config
        announced = (config.num_nextn_predict_layers if config else 0) or 0
        says_nothing = "num_nextn_predict_layers" not in self._subject.found.config
        layers = 1 if says_nothing and engine.assumes_mtp else announced
        model, troubles = self._troubles(which, layers)
        target = _outcome(troubles, engine, is_draft=False)
        if target.fate is Fate.FAILS or not announced:
            return Run(target, None)
        # The draft's own quantization is None without the flag, and missing tensors are then seen.
        own = has_flag or which == "embedded"
        return Run(target, self._draft(engine, model, troubles, own))

    def _refusal(self) -> str | None:
        """Why no version comes as far as the weights."""
        subject = self._subject
        if not subject.found.config:
            return "no config.json that can be read"
        names = subject.found.config.get("architectures")
        if not isinstance(names, list) or names[:1] != [ARCHITECTURE]:
            return f"architectures is not [{ARCHITECTURE!r}]"
        if subject.config is None:
            key, message = subject.config_error or ("config.json", "")
            return printable(f"{key}: {message}", 200)
        if self._read.refusal:
            return self._read.refusal
        if subject.config.tensor_bound > MAX_TENSORS:
            return "config.json calls for more tensors than any GLM-4.x has"
        named = set(subject.found.weight_map.values()) if subject.has_index else None
        if broken := [name for name in subject.found.broken if named is None or name in named]:
            return f"{printable(broken[0])} cannot be read"
        return None if subject.tensors else "no weights"

    def _absent(self, engine: Engine) -> str | None:
        """Why a version that wants every file of the index refuses the folder."""
        absent = list(self._read.absent)
        if not absent or not engine.wants_every_file:
            return None
        return f"FileNotFoundError: {some(absent)}, named in the index"

    def _believed(self, engine: Engine, has_flag: bool) -> str:
        """Where the engine takes the description from, or the error without one.

        checkpoint.md, lookup by the engine: the whole description in config.json works in every
        version, a partial one in none, the method alone in 0.30. Else the file, by the flag or from
        0.17 on by itself.
        """
        objects = self._subject.found.objects
        embedded = self._subject.found.config.get("quantization_config")
        file = objects.get(DESCRIPTION_FILE)
        if embedded is not None:
            # Without a method in it, vllm-ascend takes it for its own.
            ours = ("ascend", "", None)
            if not isinstance(embedded, dict) or embedded.get("quant_method") not in ours:
                return "quantization_config in config.json is another tool's, or no object"
            if embedded.keys() == {"quant_method"}:
                is_enough = engine.takes_method_alone and file is not None
                return "file" if is_enough else "KeyError: quantization_config holds no types"
            # What it says counts, where it says something of all that the file does.
            if file is not None and not file.keys() <= embedded.keys():
                return "KeyError: quantization_config holds a part of the description"
            return "embedded"
        is_there = DESCRIPTION_FILE in self._subject.found.files
        if file is None and is_there and (has_flag or engine.detects):
            return f"{DESCRIPTION_FILE} is no JSON object that can be read"
        if file is None:
            return f"no {DESCRIPTION_FILE} to be read" if has_flag else "none"
        return "file" if has_flag or engine.detects else "none"

    def _troubles(self, which: str, layers: int) -> tuple[Model, list[Trouble]]:
        if (which, layers) not in self._known:
            found = self._subject.found
            sources = {
                "file": found.objects.get(DESCRIPTION_FILE),
                "embedded": found.config.get("quantization_config"),
                "none": None,
            }
            model = self._model(sources[which], layers)
            rules = [tensors, copies] if model.types is None else [lookups, tensors, copies]
            troubles = [trouble for rule in rules for trouble in rule(model)]
            if id(model.linears) not in self._shapes:  # the same with and without a description
                self._shapes[id(model.linears)] = list(shapes(model))
            self._known[which, layers] = model, troubles + self._shapes[id(model.linears)]
        return self._known[which, layers]

    def _model(self, types: dict[str, Any] | None, announced: int) -> Model:
        subject, anatomy = self._subject, self._anatomy
        config = subject.config
        assert config is not None  # noqa: S101 - refused before
        expected, linears = anatomy.expected, anatomy.linears
        is_same = not anatomy.contradictions and len(anatomy.mtp_layers) == announced
        is_known = types is None or types is _types(subject)
        if not is_same or not is_known or anatomy.tensors is not subject.tensors:
            expected = expected_tensors(config, announced)
            linears = linears_of(expected, subject.tensors, types or {})
        prefixes = tuple(f"model.layers.{layer}." for layer in mtp_layers(config, announced))
        return Model(subject, expected, linears, prefixes, types)

    def _draft(
        self, engine: Engine, model: Model, troubles: list[Trouble], has_own: bool
    ) -> Outcome:
        outcome = _outcome(troubles, engine, is_draft=True)
        if outcome.fate is Fate.FAILS:
            return outcome
        lost = noticed(model, is_draft=True)
        lost += noticed_of_all(model) if engine.tracks_all else []
        if not lost and model.types:  # such a key gives every norm a bias, which is then missed
            lost = [key for key in model.types if NORM_BIAS in key][:1]
        if lost and not has_own:
            return Outcome(Fate.FAILS, (f"ValueError: {some(lost)} not initialized",))
        return outcome


def _types(subject: Subject) -> dict[str, Any] | None:
    return subject.description[1] if subject.description else None


def _outcome(troubles: list[Trouble], engine: Engine, *, is_draft: bool) -> Outcome:
    mine = [each for each in troubles if each.is_draft is is_draft and each.when(engine)]
    for fate in (Fate.FAILS, Fate.WRONG):
        texts = list(dict.fromkeys(each.text for each in mine if each.fate is fate))
        if texts:
            return Outcome(fate, tuple(texts[:1] if fate is Fate.FAILS else texts))
    return Outcome(Fate.LOADS)
