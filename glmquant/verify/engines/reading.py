"""The folder as an engine reads it: laxer than we are in some things, stricter in others.

Measured on 0.13 to 0.30, as the rules are: JSON with a key twice is no error to it, the last one
counts; a file that is called ``consolidated*.safetensors`` makes it read no others; it opens every
weight file that the folder lists and the index names, a dead link too (vLLM
``model_loader/default_loader.py`` and ``weight_utils.py``).
"""

from __future__ import annotations

import glob
import json
from dataclasses import dataclass, replace
from typing import Any, Final

from glmquant.description import DESCRIPTION_FILE
from glmquant.glm4_moe import CONFIG_FILE
from glmquant.index import INDEX_FILE, natural_key
from glmquant.jsontext import MAX_JSON_NBYTES
from glmquant.storage import reading
from glmquant.survey import printable
from glmquant.verify.subject import Subject, begins_with_mark, subject_of

_WEIGHTS: Final = ".safetensors"

TAKEN_FOR_A_PATTERN: Final = "vLLM takes the path for a pattern, for its brackets"

_MISTRAL: Final = "consolidated"
"""Files of that name are of another layout to vLLM, and the only ones then."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What an engine reads.

    Attributes:
        subject: The folder as it takes it.
        refusal: Why it gets no further in any version, or None.
        absent: Weight files that the index names and the folder lacks: an error from 0.26 on.
    """

    subject: Subject
    refusal: str | None
    absent: tuple[str, ...]


def read_as_engine(subject: Subject) -> Reading:
    """The folder as an engine reads it.

    Args:
        subject: As we do.
    """
    lax = {
        name: content
        for name in (CONFIG_FILE, DESCRIPTION_FILE, INDEX_FILE)
        if (content := _lax(subject, name)) is not None
    }
    index = lax.pop(INDEX_FILE, None)
    if lax or index:
        found = replace(subject.found, objects=subject.found.objects | lax)
        weights = (index or {}).get("weight_map")
        if isinstance(weights, dict) and all(isinstance(each, str) for each in weights.values()):
            found = replace(found, weight_maps=found.weight_maps | {INDEX_FILE: weights})
        subject = subject_of(subject.source, found)
    if refusal := _taken_by_pattern(subject) or _marked(subject):
        return Reading(subject, refusal, ())
    weight_map = subject.found.weight_maps.get(INDEX_FILE)
    odd = [
        each.where
        for each in subject.found.findings
        if each.where.endswith(_WEIGHTS) and each.where not in subject.found.files
    ]
    alone = [file for file in subject.found.shards if file.startswith(_MISTRAL)]
    if alone:
        subject = _only(subject, alone)
        return Reading(subject, None, ())
    if subject.has_index and weight_map is None:
        return Reading(subject, f"{INDEX_FILE} is no index that can be read", ())
    named = set(weight_map.values()) if weight_map is not None else None
    if opened := [file for file in odd if named is None or file in named]:
        return Reading(subject, f"{printable(opened[0])} is no file that can be read", ())
    there = {file for file in subject.found.files if file.endswith(_WEIGHTS)}
    return Reading(subject, None, tuple(sorted((named or set()) - there, key=natural_key)))


def _taken_by_pattern(subject: Subject) -> str | None:
    """That a path with brackets does not find the files that are in it.

    vLLM gives it to ``glob`` (``model_loader/default_loader.py``).
    """
    path = subject.path.absolute()
    if not glob.has_magic(str(path)):
        return None
    found = set(glob.glob(f"{path}/*{_WEIGHTS}"))  # noqa: PTH207 - as vLLM does
    if found >= {str(path / name) for name in subject.found.shards}:
        return None
    return f"{TAKEN_FOR_A_PATTERN}: {printable(str(path), 200)}"


def _marked(subject: Subject) -> str | None:
    """That JSON which we take begins with a byte order mark."""
    for name in (CONFIG_FILE, DESCRIPTION_FILE, INDEX_FILE):
        is_taken = name in subject.found.objects or name in subject.found.weight_maps
        if is_taken and begins_with_mark(subject, name):
            return f"{name} begins with a byte order mark"
    return None


def _lax(subject: Subject, name: str) -> dict[str, Any] | None:
    """A JSON file that we do not take and Python's own reader does; else None."""
    found = subject.found
    if name in found.objects or name in found.weight_maps or name not in found.files:
        return None
    return read_laxly(subject, name)


def read_laxly(subject: Subject, name: str) -> dict[str, Any] | None:
    """A JSON object as an engine's reader takes it: plain UTF-8, keys twice and NaN allowed.

    Args:
        subject: The folder.
        name: A file of it.

    Returns:
        The object; None where there is none, or it is longer than what we read.
    """
    path = subject.path / name
    if subject.found.files[name] > MAX_JSON_NBYTES:
        return None
    try:
        with reading(path):
            content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _only(subject: Subject, files: list[str]) -> Subject:
    shards = subject.found.shards
    loaded = tuple(sorted(files, key=natural_key))
    tensors = {ref.name: ref for file in loaded for ref in shards[file]}
    return replace(subject, loaded=loaded, tensors=tensors)
