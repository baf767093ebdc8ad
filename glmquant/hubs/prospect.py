"""What a fetch would do: the repository, what is wanted of it, what is there already, and room."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from glmquant.errors import DiskSpaceError, JsonError, TargetError
from glmquant.fetched import (
    JOURNAL_FILE,
    PARTIAL_SHARD,
    RECORD_FILE,
    FetchedFile,
    Record,
    parse_record,
)
from glmquant.glm4_moe import CONFIG_FILE
from glmquant.hubs.caches import cached_copies, cached_folders
from glmquant.hubs.journal import Parts, parse_journal
from glmquant.hubs.listing import Listing, RemoteFile
from glmquant.hubs.outputs import PART_NBYTES, Output, compact_output, whole_output
from glmquant.hubs.remote import Model
from glmquant.hubs.selection import METADATA, Selection, choose_tensors, match_files
from glmquant.index import INDEX_SUFFIX, is_shard_name
from glmquant.reconcile import listing as named
from glmquant.storage import reading
from glmquant.tensors import TensorRef
from glmquant.writer import PART_SUFFIX

WHOLE_SHARE: Final = 0.9
"""Of a file's bytes: where so much is wanted, all of it comes, since a whole file has a sum."""

SPARE_NBYTES: Final = 16_000_000
"""Room for record, journal, index and the file system's own."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be in the folder.

    Attributes:
        outputs: Files to be, by name; small ones first, then weights in the order of their names.
        index: Tensor → file, of a folder that will hold a part of the model; else None.
        tensors: How many tensors there will be.
        of_tensors: How many the model has; 0 where that was not looked at.
        is_partial: Some of the model's weights will be missing.
    """

    outputs: tuple[Output, ...]
    index: dict[str, str] | None
    tensors: int
    of_tensors: int
    is_partial: bool

    @property
    def nbytes(self) -> int:
        """Of all outputs."""
        return sum(output.nbytes for output in self.outputs)


@dataclass(frozen=True, slots=True)
class Local:
    """What is there already.

    Attributes:
        kept: Files that an earlier fetch proved, unchanged since.
        to_check: Files of the right length that have to be read: ours, a stranger's, or a copy in
            a cache; output → the paths to try, in order.
        ours: Names of files that an earlier fetch wrote: they may be replaced.
        begun_nbytes: In parts of files that were begun.
        noted: What a fetch that was cut off noted of files that it had finished: they are read
            before they are believed.
    """

    kept: dict[str, FetchedFile]
    to_check: dict[str, tuple[Path, ...]]
    ours: frozenset[str]
    begun_nbytes: int
    noted: dict[str, FetchedFile]


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """All that is known before the first byte of a weight is asked for.

    Attributes:
        listing: The repository.
        endpoint: The hub's address.
        selection: What was asked for.
        folder: Where it goes.
        wanted: What is to be there.
        local: What is there already.
        model: Headers and config; None where no weight is wanted.
        free_nbytes: Room on the disk; None where it cannot be told.
    """

    listing: Listing
    endpoint: str
    selection: Selection
    folder: Path
    wanted: Wanted
    local: Local
    model: Model | None
    free_nbytes: int | None

    @property
    def missing(self) -> tuple[Output, ...]:
        """Outputs that are not there and have no copy to be looked at."""
        there = self.local.kept.keys() | self.local.to_check.keys()
        return tuple(each for each in self.wanted.outputs if each.name not in there)

    @property
    def missing_nbytes(self) -> int:
        """Bytes to be fetched, parts of begun files left out."""
        return max(0, sum(each.nbytes for each in self.missing) - self.local.begun_nbytes)

    @property
    def to_check_nbytes(self) -> int:
        """Bytes of files that have a copy to be looked at; it may turn out to be none."""
        return sum(each.nbytes for each in self.wanted.outputs if each.name in self.local.to_check)

    @property
    def about(self) -> dict[str, str | None]:
        """Hub, repository, revision, selection: for the journal's first line."""
        return {
            "fetch": self.listing.reference.text,
            "revision": self.listing.revision,
            "commit": self.listing.commit,
            "selection": self.selection.text,
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know."""
        return self.model.notes if self.model else self.listing.notes


def choose_outputs(listing: Listing, model: Model | None, selection: Selection) -> Wanted:
    """The files to be.

    Args:
        listing: The repository.
        model: Its headers; None for ``--only metadata``.
        selection: What is asked for.

    Raises:
        UsageError: A pattern or a layer matches nothing.
        NoMtpError: There is no MTP layer.
    """
    files = listing.files
    shards = [path for path in files if is_shard_name(path)]
    if model is None or selection.only == METADATA:
        rest = [path for path in files if not path.endswith(".safetensors")]
        outputs = [
            whole_output(files[path], None, listing.commit) for path in match_files(rest, selection)
        ]
        return Wanted(tuple(outputs), None, 0, 0, is_partial=bool(shards))
    tensors = model.tensors()
    if not selection.by_tensors:
        paths = match_files(files, selection)
        whole = [path for path in paths if path in model.headers]
        compact: dict[str, TensorRef] = {}
    else:
        chosen = choose_tensors(model, selection)
        whole = [path for path in shards if _share(model, path, chosen) >= WHOLE_SHARE]
        compact = {name: ref for name, ref in chosen.items() if ref.file not in whole}
        beside = (path for path in files if not path.endswith(".safetensors"))
        paths = ((CONFIG_FILE,) if selection.is_for_graft else tuple(beside)) + tuple(whole)
    is_partial = len(whole) < len(model.headers)
    if is_partial:
        paths = tuple(path for path in paths if not path.endswith(INDEX_SUFFIX))
    names = [path for path in paths if path not in model.headers] + sorted(whole)
    outputs = [whole_output(files[path], model.headers.get(path), listing.commit) for path in names]
    index = {ref.name: ref.file for ref in tensors.values() if ref.file in whole}
    if compact:
        outputs.append(compact_output(compact.values(), files, _key(listing, compact)))
        index |= dict.fromkeys(compact, PARTIAL_SHARD)
    return Wanted(
        tuple(outputs), index if is_partial else None, len(index), len(tensors), is_partial
    )


def _share(model: Model, path: str, chosen: dict[str, TensorRef]) -> float:
    refs = model.headers[path].tensors
    total = sum(ref.nbytes for ref in refs)
    return sum(ref.nbytes for ref in refs if ref.name in chosen) / total if total else 0.0


def _key(listing: Listing, tensors: dict[str, TensorRef]) -> str:
    """Names what a compact file is made of: other files on the hub, or others' tensors, another."""
    digest = hashlib.sha256()
    for name, ref in sorted(tensors.items()):
        file = listing.files[ref.file]
        origin = file.sha256 or file.git_sha1 or f"{listing.commit}:{file.nbytes}"
        digest.update(f"{name} {ref} {origin}\n".encode())
    return digest.hexdigest()


def look_around(folder: Path, listing: Listing, wanted: Wanted) -> Local:
    """What of the outputs is there already; nothing is read but the record of an earlier fetch.

    Args:
        folder: Where they are to be.
        listing: The repository.
        wanted: The outputs.

    Raises:
        TargetError: The folder cannot be one, or a stranger's file is in the way.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise TargetError(
            "the folder cannot be made",
            where=str(folder),
            expected="a folder, or nothing",
            found="a file" if folder.exists() else "a dead link",
            hint="name another folder",
        )
    record, parts, finished = _remembered(folder)
    known = (record.files if record else {}) | finished
    _require_growth(folder, known, wanted)
    kept: dict[str, FetchedFile] = {}
    to_check: dict[str, tuple[Path, ...]] = {}
    caches = cached_folders(listing)
    for output in wanted.outputs:
        path = folder / output.name
        candidates = []
        if os.path.lexists(path):
            if path.is_dir() or (not path.is_file()):
                raise _in_the_way(path, "something that is no file")
            nbytes = path.stat().st_size
            seen = known.get(output.name)
            is_recorded = output.name not in finished  # by a fetch that ended, not by one cut off
            if seen and is_recorded and _is_as_recorded(path, seen) and _is_copy(output, seen):
                kept[output.name] = seen
                continue
            is_ours_whole = seen is not None and _is_copy(output, seen)
            if nbytes == output.nbytes and (_has_sum(output.remote) or is_ours_whole):
                candidates.append(path)
            elif seen is None and (
                _has_sum(output.remote) or (output.name, output.key) not in parts
            ):
                raise _in_the_way(path, f"{nbytes} bytes; the hub's file has {output.nbytes}")
        if output.remote is not None:
            candidates += list(cached_copies(caches, output.remote))
        if candidates:
            to_check[output.name] = tuple(dict.fromkeys(candidates))
    begun_nbytes = 0
    for output in wanted.outputs:
        there = parts.get((output.name, output.key))
        part = folder / f"{output.name}{PART_SUFFIX}"
        is_new = output.name not in kept and output.name not in to_check
        if there and is_new and part.is_file() and part.stat().st_size == output.nbytes:
            begun_nbytes += min(output.nbytes, len(there) * PART_NBYTES)
    return Local(kept, to_check, frozenset(known), begun_nbytes, finished)


def _require_growth(folder: Path, known: dict[str, FetchedFile], wanted: Wanted) -> None:
    """Weights that were fetched before are wanted now, too: nothing is to be thrown away."""
    names = {output.name for output in wanted.outputs}
    weights = [name for name in known if is_shard_name(name) and (folder / name).is_file()]
    lost = [name for name in weights if name not in names and name != PARTIAL_SHARD]
    if lost or (wanted.is_partial and PARTIAL_SHARD in set(weights) - names):
        raise TargetError(
            "the folder holds weights of another selection",
            where=str(folder),
            expected="the same selection as before, or all of the model",
            found=named(lost or [PARTIAL_SHARD]),
            hint="fetch into another folder",
        )


def _in_the_way(path: Path, found: str) -> TargetError:
    return TargetError(
        "something that glmquant did not fetch is in the way",
        where=str(path),
        expected="nothing, or a copy of the hub's file",
        found=found,
        hint="move it away, or fetch into another folder",
    )


def _has_sum(file: RemoteFile | None) -> bool:
    return file is not None and bool(file.sha256 or file.git_sha1)


def _is_as_recorded(path: Path, file: FetchedFile) -> bool:
    with reading(path):
        found = path.stat()
    return (found.st_size, found.st_mtime_ns) == (file.nbytes, file.mtime_ns)


def _is_copy(output: Output, file: FetchedFile) -> bool:
    """Whether a recorded file is this output, by what the record says."""
    return (file.nbytes, file.source) == (output.nbytes, output.key)


def _remembered(folder: Path) -> tuple[Record | None, Parts, dict[str, FetchedFile]]:
    """What earlier fetches recorded, and the journal of one that did not end.

    What cannot be understood is passed over: what is there is then held against the hub.
    """
    record, journal = None, b""
    with suppress(OSError, JsonError):
        if (folder / RECORD_FILE).is_file():  # a pipe would wait for ever
            record = parse_record((folder / RECORD_FILE).read_bytes(), RECORD_FILE)
    with suppress(OSError):
        if (folder / JOURNAL_FILE).is_file():
            journal = (folder / JOURNAL_FILE).read_bytes()
    return record, *parse_journal(journal)


def require_room(plan: FetchPlan) -> None:
    """There is room for what is to be fetched.

    Raises:
        DiskSpaceError: There is not.
    """
    needed = plan.missing_nbytes + SPARE_NBYTES
    if plan.free_nbytes is not None and plan.free_nbytes < needed:
        raise DiskSpaceError(
            "the disk has too little room",
            where=str(plan.folder),
            expected=f"{needed / 1e9:,.2f} GB free",
            found=f"{plan.free_nbytes / 1e9:,.2f} GB free",
            hint="make room, name a folder on another disk, or fetch less: --only mtp",
        )
