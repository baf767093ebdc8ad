"""F1, W1: the weight files of a folder, and the index by which an engine finds them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from typing import Final

from glmquant.glm4_moe import CONFIG_FILE
from glmquant.index import INDEX_FILE, INDEX_SUFFIX, is_shard_name
from glmquant.reconcile import listing
from glmquant.survey import printable
from glmquant.tensor_names import layer_of
from glmquant.verify.files.anatomy import Anatomy, hidden_shards
from glmquant.verify.findings import Finding, file_finding
from glmquant.verify.remedies import add_mtp
from glmquant.verify.subject import Subject

_FETCH: Final = "fetch that file again"


def check_layout(anatomy: Anatomy) -> Iterator[Finding]:
    """Whether an engine reads each weight file of the folder, and each tensor once.

    Args:
        anatomy: The folder.

    Yields:
        Findings with the codes F1 and W1.
    """
    subject = anatomy.subject
    if not (subject.found.shards or subject.found.broken or subject.found.weight_maps):
        yield file_finding(
            "F1",
            "there are no weights",
            place=printable(str(subject.path)),
            expected="*.safetensors",
            found=f"{len(subject.found.files)} other files",
            hint="fetch the weights of the checkpoint",
        )
    yield from _check_broken(subject)
    yield from _check_leftovers(subject)
    yield from _check_indexes(subject)
    yield from _check_names(subject)
    if not hidden_shards(subject):
        yield from _check_index_files(anatomy)
    yield from _check_copies(anatomy)


def _check_broken(subject: Subject) -> Iterator[Finding]:
    """Weight files that cannot be read; other things with names of files, too."""
    for finding in subject.found.findings:
        name = _file_of(subject, finding.where)
        is_leftover = finding.what.startswith("the rest of") or name.startswith(".")
        if name in subject.found.broken or (is_shard_name(name) and not is_leftover):
            yield file_finding(
                "W1",
                "a weight file cannot be read",
                place=finding.where,
                expected="a safetensors file, whole",
                found=finding.what,
                hint=_FETCH if "git lfs" not in finding.what else "git lfs pull",
            )
        elif name.endswith(INDEX_SUFFIX):
            yield file_finding(
                "F1",
                "the index cannot be read",
                place=finding.where,
                expected="a JSON object with a weight_map of names of files in this folder",
                found=finding.what,
                hint=_FETCH,
            )
        elif name not in subject.found.files and not is_leftover and name != CONFIG_FILE:
            yield file_finding(
                "W1",
                "something in the folder cannot be read",
                place=finding.where,
                expected="files and folders",
                found=finding.what,
                hint="fetch that file again, or remove it",
                is_warning=True,
            )


def _file_of(subject: Subject, where: str) -> str:
    """The file that a finding of the survey is about: its ``where`` may go on after a colon."""
    if where in subject.found.files:
        return where
    head = where.partition(": ")[0]
    return head if head in subject.found.files else where


def _check_leftovers(subject: Subject) -> Iterator[Finding]:
    folder = str(subject.path)
    if subject.found.is_unfinished_run:
        yield file_finding(
            "F1",
            "a run of glmquant did not end",
            place=".glmquant/journal.json",
            expected="a finished folder",
            found="a journal of what is done so far",
            hint=f"run the same command again: glmquant w8a8 SOURCE {shlex.quote(folder)} …",
        )
    if _has_entries(subject, ".glmquant/graft"):
        yield file_finding(
            "F1",
            "an add-mtp of glmquant did not end",
            place=".glmquant/graft",
            expected="a finished folder",
            found="files of a graft that was not completed",
            hint=f"run the same command again: {add_mtp(subject)}",
        )
    for finding in subject.found.findings:
        if finding.what.startswith("the rest of") or finding.where.startswith(
            (".cache", "._____temp")
        ):
            yield file_finding(
                "F1",
                "something was left of a run or download that did not end",
                place=finding.where,
                expected="finished files alone",
                found=finding.what,
                hint="let it end, or remove what it left",
                is_warning=True,
            )


def _has_entries(subject: Subject, folder: str) -> bool:
    try:
        return bool(os.listdir(subject.path / folder))  # noqa: PTH208
    except OSError:
        return False


def _check_indexes(subject: Subject) -> Iterator[Finding]:
    found = subject.found
    names = [name for name in found.files if name.endswith(INDEX_SUFFIX)]
    hidden = hidden_shards(subject)
    if hidden:
        yield file_finding(
            "F1",
            "an index hides the quantized shards",
            place=INDEX_FILE,
            expected=f"an index that names {listing(hidden, 1)}",
            found=f"it names {listing(sorted(set(found.weight_map.values())), 2)}: vLLM reads no "
            "other file",
            hint=f"remove {INDEX_FILE}: it is that of the BF16 weights",
        )
    elif len(names) > 1:
        others = [name for name in names if name != INDEX_FILE] or names[1:]
        is_same = all(
            found.weight_maps.get(name) == found.weight_map and found.weight_map for name in others
        )
        yield file_finding(
            "F1",
            "there is more than one index",
            place=", ".join(others),
            expected=f"{INDEX_FILE} alone: vLLM reads no other",
            found=f"{len(others)} more, " + ("the same" if is_same else "of other contents"),
            hint=shlex.join(["rm", *(str(subject.path / name) for name in others)]),
        )
    shards = [*found.shards, *found.broken]
    if not names and len(shards) > 1:
        yield file_finding(
            "F1",
            "there are several shards and no index",
            place=INDEX_FILE,
            expected=f"the index of {len(shards)} shards",
            found="no such file",
            hint=f"fetch {INDEX_FILE}",
        )


def _check_names(subject: Subject) -> Iterator[Finding]:
    names = [*subject.found.shards, *subject.found.broken]
    if bad := [name for name in names if name.startswith("consolidated")]:
        yield file_finding(
            "F1",
            "a weight file has a name that vLLM leaves out",
            place=", ".join(bad[:3]),
            expected="a name that does not begin with 'consolidated'",
            found=listing(bad),
            hint="rename the file, in the index too; a copy of other files can be removed",
        )


def _check_index_files(anatomy: Anatomy) -> Iterator[Finding]:
    """The index names the weight files of the folder, each of them and no other."""
    subject, found = anatomy.subject, anatomy.subject.found
    named = set(found.weight_map.values())
    if not named:
        return
    known = {_file_of(subject, finding.where) for finding in found.findings}
    if missing := sorted(named - found.files.keys() - known):
        yield file_finding(
            "F1",
            "shards of the index are missing",
            place=listing(missing),
            tensors=sorted(name for name, file in found.weight_map.items() if file in missing),
            expected=f"{len(named)} files",
            found=f"{len(missing)} of them not there",
            hint=f"fetch {listing(missing)}",
        )
    for file in (*found.shards, *found.broken):
        if file not in named and not file.startswith("consolidated"):
            yield _stray(anatomy, file)


def _stray(anatomy: Anatomy, file: str) -> Finding:
    subject = anatomy.subject
    names = [ref.name for ref in subject.found.shards.get(file, ())]
    first = anatomy.config.num_hidden_layers if anatomy.config else None
    is_mtp = bool(names) and all(
        first is not None and (layer_of(name) or 0) >= first for name in names
    )
    what = "a weight file is not in the index"
    found = f"{len(names)} tensors that vLLM passes over"
    if file in subject.loaded:
        found = f"{len(names)} tensors: vLLM reads them all the same, beside the indexed ones"
    hint = f"remove {file}, or list its tensors in the index"
    if is_mtp and file not in subject.loaded:
        what = "the file of the MTP layer is not in the index"
        found += ": the draft model stays uninitialised"
        hint = add_mtp(subject, "--replace-mtp")
    return file_finding(
        "F1",
        what,
        place=file,
        tensors=names,
        expected="every *.safetensors of the folder in the index",
        found=found,
        hint=hint,
    )


def _check_copies(anatomy: Anatomy) -> Iterator[Finding]:
    subject = anatomy.subject
    if not anatomy.copies:
        return
    named = set(subject.found.weight_map.values())
    homes: dict[str, list[str]] = {}
    for file in subject.loaded:
        if not named or file in named:  # a stray is named for itself
            for ref in subject.found.shards[file]:
                if ref.name in anatomy.copies:
                    homes.setdefault(ref.name, []).append(file)
    twice = sorted(name for name, files in homes.items() if len(files) > 1)
    if twice:
        yield file_finding(
            "F1",
            "tensors lie in two files",
            place=", ".join(homes[twice[0]]),
            tensors=twice,
            expected="one copy: 0.13 takes whichever the file system lists last",
            found=f"{len(twice)} tensors twice",
            hint="remove the file that does not belong to this checkpoint",
        )
