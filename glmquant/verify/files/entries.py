"""F1: the index and the headers name the same tensors, in the same files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from glmquant.errors import GlmquantError
from glmquant.index import INDEX_FILE
from glmquant.verify.files.anatomy import Anatomy, hidden_shards
from glmquant.verify.findings import Finding, file_finding
from glmquant.verify.subject import Subject

_TOTAL_SIZE: Final = re.compile(rb'"total_size"\s*:\s*(\d{1,18})\b')


def check_entries(anatomy: Anatomy) -> Iterator[Finding]:
    """Index and headers, both ways; tensors that other findings miss are not said again.

    Args:
        anatomy: The folder.

    Yields:
        Findings with the code F1.
    """
    subject, found = anatomy.subject, anatomy.subject.found
    weight_map, loaded = found.weight_map, subject.tensors
    if not weight_map or hidden_shards(subject):
        return
    place = INDEX_FILE if INDEX_FILE in found.weight_maps else next(iter(found.weight_maps))
    said = {*anatomy.missing, *anatomy.elsewhere}
    absent = sorted(weight_map.keys() - loaded.keys() - said)
    if absent:
        yield file_finding(
            "F1",
            "the index names tensors that are in no file",
            place=place,
            tensors=absent,
            expected="the tensors of the shards",
            found=f"{len(absent)} more",
            hint="fetch the index and the shards of one revision",
        )
    moved = sorted(
        name
        for name, ref in loaded.items()
        if weight_map.get(name, ref.file) != ref.file
        and weight_map[name] in found.shards
        and name not in anatomy.copies
    )
    if moved:
        yield file_finding(
            "F1",
            "the index puts tensors into another file",
            place=place,
            tensors=moved,
            expected=f"{moved[0]} in {loaded[moved[0]].file}",
            found=weight_map[moved[0]],
            hint="fetch the index and the shards of one revision",
        )
    yield from _check_total_size(subject, place)
    named = set(weight_map.values())
    unlisted = sorted(
        name for name in loaded.keys() - weight_map.keys() if loaded[name].file in named
    )
    if unlisted:
        yield file_finding(
            "F1",
            "the index lacks tensors of its files",
            place=place,
            tensors=unlisted,
            expected=f"an entry for each of {len(loaded)} tensors",
            found=f"{len(unlisted)} without one",
            hint="fetch the index and the shards of one revision",
        )


def _check_total_size(subject: Subject, place: str) -> Iterator[Finding]:
    """``total_size`` is the bytes of all tensors; vLLM does not ask, other tools do."""
    shards, named = subject.found.shards, set(subject.found.weight_map.values())
    if not named <= shards.keys():
        return  # what they hold is unknown
    try:
        text = subject.source.read(place, 0, subject.found.files[place])
    except GlmquantError:
        return
    finally:
        subject.source.release(place)
    match = _TOTAL_SIZE.search(text)
    held = sum(ref.nbytes for file in named for ref in shards[file])
    whole = sum(ref.nbytes for refs in shards.values() for ref in refs)  # a stray is told as such
    if match and int(match[1]) not in (held, whole):
        yield file_finding(
            "F1",
            "total_size is not that of the tensors",
            place=f"{place}: metadata.total_size",
            expected=f"{held} bytes",
            found=f"{int(match[1])} bytes",
            hint="correct that number: vLLM does not ask for it, other tools do",
            is_warning=True,
        )
