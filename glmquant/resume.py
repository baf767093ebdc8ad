"""Whether a run may go on, or is done: the source and the output are still what they were.

Equal stamps are believed. Where a stamp differs, what is done is read again and compared with its
digests; a source shard that is not done has no digest yet, and rewriting it is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import xxhash

from glmquant.errors import JsonError, SourceChangedError, StorageError, TargetError
from glmquant.journal import (
    FinishedShard,
    Journal,
    is_unfinished,
    load_finished,
    load_journal,
    remove_journal,
)
from glmquant.manifest import MANIFEST_FILE, TensorRecord, record_from_json
from glmquant.observer import Observer
from glmquant.ownership import damaged, manifest_fields
from glmquant.plan import Plan, ShardPlan, Step
from glmquant.reconcile import listing
from glmquant.source import FileStamp, FolderSource, file_stamp, source_changed, was_rewritten

SAMPLED_NBYTES: Final = 32_000_000
"""Larger tensors are left out of the sample that tells one model's weights from another's."""

MOST_FAR_TENSORS: Final = 2
"""Of a shard on a hub so many are read for that, each by a request of its own."""


def begin_or_resume(
    plan: Plan, source: FolderSource, target_dir: Path, observer: Observer
) -> Journal:
    """The journal to go on with: a new one, or the old one with what still holds.

    Args:
        plan: What is to be written.
        source: Where it is read.
        target_dir: A folder that is fresh or holds an unfinished run of the same plan.
        observer: Told of files that are read again.

    Returns:
        The journal, with the shards that are done and need not be made again.

    Raises:
        SourceChangedError: A source shard is not what it was.
    """
    stamps: dict[str, FileStamp | None] = {
        shard.source_file: shard.source_stamp for shard in plan.shards
    }
    if not is_unfinished(target_dir):
        remove_journal(target_dir)  # notes that a kill left behind tell of another run
        return Journal(target_dir, plan.digest, plan.settings, plan.files, stamps, source.origin)
    journal = load_journal(target_dir)
    noted = load_finished(target_dir)
    kept: dict[str, FinishedShard] = {}
    touched_sources: list[ShardPlan] = []
    touched_outputs: list[ShardPlan] = []
    for shard in plan.shards:
        now = shard.source_stamp
        done = noted.get(shard.file)
        if done and _fits(done, shard, target_dir) and not _has_to_come_anew(done.source, now):
            if now.hub_sum and done.source != now:
                raise source_changed(shard.source_file, done.source, now)
            kept[shard.file] = done
            if done.source != now:
                touched_sources.append(shard)
            if done.output != file_stamp(target_dir / shard.file):
                touched_outputs.append(shard)
            continue
        before = journal.sources.get(shard.source_file)
        if before is not None and was_rewritten(before, now):
            raise source_changed(shard.source_file, before, now)
    if touched_sources or touched_outputs:
        nbytes = sum(shard.source_nbytes for shard in touched_sources)
        nbytes += sum(shard.nbytes - len(shard.header) for shard in touched_outputs)
        observer.start("compare", 0, nbytes)
    for shard in touched_sources:
        _require_same_source(shard, kept[shard.file], source, observer)
    for shard in touched_outputs:
        if not output_is_whole(shard, kept[shard.file].records, target_dir, observer):
            del kept[shard.file]  # to be made anew
    journal.finished = kept
    for shard in plan.shards:  # what was read again is believed by its new stamps from now on
        if done := kept.get(shard.file):
            output = file_stamp(target_dir / shard.file)
            renewed = replace(done, output=output, source=shard.source_stamp)
            if renewed != done:
                journal.finish_shard(shard.file, renewed)
    journal.sources = stamps
    journal.origin = source.origin
    journal.files = tuple(dict.fromkeys((*plan.files, *journal.files)))
    return journal


def _has_to_come_anew(done: FileStamp, now: FileStamp) -> bool:
    """Whether a shard was made of a folder's file and its source is on a hub now.

    There is no telling whether they are the same without fetching it.
    """
    return bool(now.hub_sum) and not done.hub_sum


def refuse_moved(plan: Plan, source: FolderSource, target_dir: Path, observer: Observer) -> None:
    """A run that was begun with a hub's model goes on with the same.

    Args:
        plan: What is to be written.
        source: Where it is read.
        target_dir: A folder that may hold an unfinished run.
        observer: Is told where other files moved.

    Raises:
        SourceChangedError: The hub has other weights or another config.json by now.
    """
    if not source.origin or not is_unfinished(target_dir):
        return
    journal = load_journal(target_dir)
    if not journal.origin or journal.settings != plan.settings:
        return  # the plan's digest tells what there is to be told
    stamps = ((journal.sources.get(each.source_file), each.source_stamp) for each in plan.shards)
    if journal.plan_digest != plan.digest or any(b and was_rewritten(b, now) for b, now in stamps):
        raise SourceChangedError(
            "the model on the hub is not what it was when the run began",
            where=str(target_dir),
            expected=journal.origin,
            found=source.origin,
            hint="go on with what it was by --revision, or start over with --overwrite",
        )
    if journal.origin != source.origin:
        observer.warn(f"the run began with {journal.origin}; the weights are the same in "
                      f"{source.origin}, other files may not be")  # fmt: skip


def _fits(done: FinishedShard, shard: ShardPlan, target_dir: Path) -> bool:
    """Whether the note tells of this shard, and a file of its length is there."""
    told = {(record.name, record.source) for record in done.records}
    planned = {(output.name, step.source.name) for step in shard.steps for output in step.outputs}
    path = target_dir / shard.file
    return told == planned and path.is_file() and file_stamp(path).nbytes == shard.nbytes


def _require_same_source(
    shard: ShardPlan, done: FinishedShard, source: FolderSource, observer: Observer
) -> None:
    is_same_length = done.source.nbytes == shard.source_stamp.nbytes
    digests = _source_digests(shard.steps, source, observer)
    if not is_same_length or digest_of_digests(digests) != done.source_xxh3:
        raise source_changed(shard.source_file, done.source, shard.source_stamp)


def output_is_whole(
    shard: ShardPlan, records: Iterable[TensorRecord], target_dir: Path, observer: Observer
) -> bool:
    """Whether an output shard can be read and holds the planned header and recorded tensors."""
    wanted = {record.name: record.xxh3 for record in records}
    output = FolderSource(target_dir)
    try:
        if output.read(shard.file, 0, len(shard.header)) != shard.header:
            return False
        return all(
            _digest_range(output, shard.file, ref.offset, ref.nbytes, observer) == wanted[ref.name]
            for ref in shard.places().values()
        )
    except StorageError:
        return False
    finally:
        output.release(shard.file)


def _source_digests(
    steps: Iterable[Step], source: FolderSource, observer: Observer
) -> Iterator[str]:
    """xxh3-128 of source tensors, read anew."""
    for step in steps:
        ref = step.source
        yield _digest_range(source, ref.file, ref.offset, ref.nbytes, observer)
        source.release(ref.file)


def _digest_range(
    source: FolderSource, file: str, offset: int, nbytes: int, observer: Observer
) -> str:
    digest = xxhash.xxh3_128()
    for block in source.blocks(file, offset, nbytes):
        digest.update(block)
        observer.advance(len(block))
    return digest.hexdigest()


def digest_of_digests(digests: Iterable[str]) -> str:
    """One xxh3-128 over the digests of a shard's tensors, in order of their bytes."""
    whole = xxhash.xxh3_128()
    for digest in digests:
        whole.update(bytes.fromhex(digest))
    return whole.hexdigest()


def confirm_finished(
    plan: Plan, source: FolderSource, target_dir: Path, observer: Observer
) -> tuple[dict[str, Any], tuple[TensorRecord, ...]]:
    """A finished target was made of these weights and side files, and is as it was written.

    Shards that are newer than the manifest, in the source or in the target, are read whole. Of
    older ones the smallest tensor of each role is compared, which tells another model's weights; a
    change that sets the clock back and leaves those alone is not seen.

    Args:
        plan: The plan that the target is finished by.
        source: Where it would be read.
        target_dir: The finished folder.
        observer: Told of what is read again.

    Returns:
        The manifest and its records, sorted by name.

    Raises:
        SourceChangedError: The source holds something else by now.
        TargetError: A shard of the target does, or the manifest cannot be understood.
    """
    path = target_dir / MANIFEST_FILE
    manifest = manifest_fields(target_dir)
    written_ns = file_stamp(path).mtime_ns
    try:
        records = [record_from_json(name, entry) for name, entry in manifest["tensors"].items()]
        side_digests = {name: str(digest) for name, digest in manifest["side_files"].items()}
        source_digests = {record.source: record.source_xxh3 for record in records}
        outputs = {ref.name for shard in plan.shards for s in shard.steps for ref in s.outputs}
        if {record.name for record in records} != outputs:
            raise KeyError("tensors")
    except (AttributeError, JsonError, KeyError, TypeError) as error:
        raise TargetError(
            "the manifest of the target cannot be understood",
            where=str(path),
            expected="what glmquant wrote there",
            found=f"{type(error).__name__}: {error}".splitlines()[0],
            hint="make the target anew with --overwrite",
        ) from error
    to_read: list[tuple[ShardPlan, list[Step]]] = []
    for shard in plan.shards:
        is_newer = _touched_ns(shard.source_stamp) >= written_ns
        sample = _sample(shard, MOST_FAR_TENSORS if source.is_far else None)
        to_read.append((shard, list(shard.steps) if is_newer else sample))
    touched = [
        shard
        for shard in plan.shards
        if _touched_ns(file_stamp(target_dir / shard.file)) > written_ns
    ]
    total = sum(step.source.nbytes for _, steps in to_read for step in steps)
    total += sum(shard.nbytes - len(shard.header) for shard in touched)
    observer.start("compare", 0, total)
    for shard, steps in to_read:
        wanted = [source_digests[step.source.name] for step in steps]
        if list(_source_digests(steps, source, observer)) != wanted:
            raise _made_of_other(shard.source_file)
    for shard in touched:
        if not output_is_whole(shard, records, target_dir, observer):
            raise damaged(target_dir / shard.file, "the bytes that were written", "others")
    _confirm_side_files(plan, source, target_dir, side_digests)
    return manifest, tuple(sorted(records, key=lambda record: record.name))


def _touched_ns(stamp: FileStamp) -> int:
    return max(stamp.mtime_ns, stamp.ctime_ns)


def _sample(shard: ShardPlan, most: int | None) -> list[Step]:
    """The smallest tensor of each role, large ones left out; the smallest of these alone."""
    smallest: dict[str, Step] = {}
    for step in shard.steps:
        held = smallest.get(step.role.value)
        if step.source.nbytes <= SAMPLED_NBYTES and (
            held is None or step.source.nbytes < held.source.nbytes
        ):
            smallest[step.role.value] = step
    return sorted(smallest.values(), key=lambda step: step.source.nbytes)[:most]


def _confirm_side_files(
    plan: Plan, source: FolderSource, target_dir: Path, side_digests: dict[str, str]
) -> None:
    if differing := sorted(side_digests.keys() ^ plan.side_files.keys()):
        raise _made_of_other(listing(differing))
    for name, nbytes in plan.side_files.items():
        if _digest_range(source, name, 0, nbytes, Observer()) != side_digests[name]:
            raise _made_of_other(name)
        source.release(name)
        copy = target_dir / name
        is_there = copy.is_file() and file_stamp(copy).nbytes == nbytes
        copied = FolderSource(target_dir)
        if not is_there or _digest_range(copied, name, 0, nbytes, Observer()) != side_digests[name]:
            raise damaged(copy, "the file that was written", "no such file, or other contents")
        copied.release(name)


def _made_of_other(file: str) -> SourceChangedError:
    return SourceChangedError(
        "the target was made of another source",
        where=file,
        expected="what the target's manifest holds the digest of",
        found="other contents, or a file that only one of them has",
        hint="make the target anew with --overwrite, or name another one",
    )
