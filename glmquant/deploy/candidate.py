"""The checkpoint that is to be served: what its headers and JSON say about how."""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from glmquant.errors import GlmquantError, UsageError
from glmquant.glm4_moe import CONFIG_FILE, Glm4MoeConfig
from glmquant.markings import FLOAT_FORMATS, MODELSLIM_FORMATS, Format
from glmquant.sizing import TensorGroup
from glmquant.source import FolderSource
from glmquant.survey import printable
from glmquant.verify.engines.predict import Verdict, predict
from glmquant.verify.files.template import template_of
from glmquant.verify.subject import Subject, open_subject

INLINE: Final = "inline"
"""Tool calls in one line: ``<tool_call>name<arg_key>`` (GLM-4.7)."""

LINES: Final = "lines"
"""Tool calls over lines: ``<tool_call>name``, then ``<arg_key>`` in the next (GLM-4.5 and 4.6)."""

_CALL: Final = re.compile(r"<tool_call>\{?[\w-]+\}?(?P<end>\\n|\n)?\s*<arg_key>")
_CONTEXT_KEY: Final = "max_position_embeddings"
_MAX_LINKS: Final = 40
"""In a chain; the kernel follows no more."""

_NO_DIGITS: Final = dict.fromkeys(map(ord, "0123456789"))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A W8A8 checkpoint, and what serving it depends on.

    Attributes:
        folder: Where it lies, absolute, links as they are.
        name: Of the folder.
        config: The keys of config.json that decide shapes; None where one is wrong.
        groups: All its tensors, by their names without digits.
        nbytes: Of its weights.
        mtp_count: MTP layers that are there.
        announced: MTP layers that config.json announces.
        model_context: Tokens that config.json allows; None where it does not say.
        releases: The releases that its facts fit, without ``GLM-``.
        tool_form: ``inline`` or ``lines``, by its chat template or its release; None where neither
            tells.
        is_embedded: config.json holds the description, too.
        verdicts: What each version of vllm-ascend would do with the folder.
        link_folders: Folders outside that links in it lead to.
        config_faults: Of config.json: key, what it has to be, what it is.
    """

    folder: Path
    name: str
    config: Glm4MoeConfig | None
    groups: tuple[TensorGroup, ...]
    nbytes: int
    mtp_count: int
    announced: int
    model_context: int | None
    releases: tuple[str, ...]
    tool_form: str | None
    is_embedded: bool
    verdicts: tuple[Verdict, ...]
    link_folders: tuple[Path, ...]
    config_faults: tuple[tuple[str, str, str], ...] = ()

    @property
    def has_mtp(self) -> bool:
        """An engine would find an MTP layer to draft with."""
        return bool(self.mtp_count and self.announced)

    def verdict(self, series: str) -> Verdict | None:
        """What a version of vllm-ascend would do; None where that was never measured."""
        return next((each for each in self.verdicts if each.version == series), None)


def open_candidate(folder: Path) -> Candidate:
    """Read headers and JSON of a W8A8 folder.

    Args:
        folder: The folder.

    Raises:
        CheckpointError: The folder holds no model.
        UsageError: It holds one that is not quantized to W8A8.
        StorageError: It cannot be read.
    """
    subject = open_subject(FolderSource(folder))
    _require_w8a8(subject)
    path = Path(folder.absolute())
    allowed = subject.found.config.get(_CONTEXT_KEY)
    config = subject.config
    return Candidate(
        folder=path,
        name=path.resolve().name,
        config=config,
        groups=tuple(_groups(subject)),
        nbytes=sum(ref.nbytes for ref in subject.tensors.values()),
        mtp_count=len(subject.mtp_layers),
        announced=(config.num_nextn_predict_layers or 0) if config else 0,
        model_context=allowed if type(allowed) is int and allowed > 0 else None,
        releases=subject.identity.releases,
        tool_form=_tool_form(subject),
        is_embedded=subject.found.embedded_description is not None,
        verdicts=predict(subject),
        link_folders=tuple(sorted(set(_link_folders(path)) - {path})),
        config_faults=tuple(_config_faults(subject)),
    )


def _require_w8a8(subject: Subject) -> None:
    marking = subject.identity.marking
    is_ours = marking.format in (Format.GLMQUANT, *MODELSLIM_FORMATS)
    if is_ours or (subject.description and marking.format is not Format.UNFINISHED):
        return
    verb = "w8a8" if marking.format in FLOAT_FORMATS else "inspect"
    raise UsageError(
        "this is not a W8A8 checkpoint in the ModelSlim format",
        where=str(subject.path),
        expected="int8 weights and quant_model_description.json",
        found=subject.identity.text,
        hint=shlex.join(["glmquant", verb, str(subject.path.absolute())]),
    )


def _config_faults(subject: Subject) -> Iterator[tuple[str, str, str]]:
    """Values of keys that this goes by; one that is not there is the engine's to choose."""
    said = subject.found.config
    if subject.config_error is not None:
        key, expected = subject.config_error
        yield key, expected, _shown(said, key.partition(": ")[2])
    longest = said.get(_CONTEXT_KEY, 1)
    if type(longest) is not int or longest < 1:
        yield f"{CONFIG_FILE}: {_CONTEXT_KEY}", "a whole number above 0", _shown(said, _CONTEXT_KEY)


def _shown(config: dict[str, Any], key: str) -> str:
    return printable(repr(config[key])) if key in config else "no such key"


def _groups(subject: Subject) -> Iterator[TensorGroup]:
    counted = Counter(
        (name.translate(_NO_DIGITS), ref.dtype, ref.shape) for name, ref in subject.tensors.items()
    )
    for (name, dtype, shape), count in counted.items():
        yield TensorGroup(name, dtype, shape, count)


def _tool_form(subject: Subject) -> str | None:
    """By what the template tells the model to write, else by the release if that is one."""
    try:
        found = template_of(subject)
    except (GlmquantError, UnicodeDecodeError):
        found = None
    if found and (form := call_form(found[1])):
        return form
    forms = {INLINE if release == "4.7" else LINES for release in subject.identity.releases}
    return forms.pop() if len(forms) == 1 else None


def call_form(text: str) -> str | None:
    """``inline`` or ``lines``, by the tool calls in a text; None where there are none, or both.

    Args:
        text: A chat template, or what a model wrote.
    """
    calls = {bool(match["end"]) for match in _CALL.finditer(text)}
    if len(calls) != 1:
        return None
    return LINES if calls.pop() else INLINE


def _link_folders(folder: Path) -> Iterator[Path]:
    """The folders that a container needs beside this one, so that each link leads on there.

    A relative link starts from where its folder really is: that folder is needed, too, where the
    one that was named is a link itself.
    """
    here = folder.resolve()
    if here != folder:
        yield here
    for path in folder.iterdir():
        place = here / path.name
        for _ in range(_MAX_LINKS):
            if not place.is_symlink():
                break
            place = Path(os.path.normpath(place.parent.resolve() / place.readlink()))
            if not place.is_relative_to(here):
                yield place.parent
                yield place.parent.resolve()
