"""Whether a run may go on, or is done: the source is still the one it began with.

Equal stamps are believed. Where a stamp differs, a shard that is done is read again and its digest
compared; a shard that is not done has no digest yet, and a change of it is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import xxhash

from glmquant.convert import BLOCK_NBYTES
from glmquant.errors import JsonError, SourceChangedError, TargetError
from glmquant.journal import FinishedShard, Journal, is_unfinished, load_journal
from glmquant.manifest import MANIFEST_FILE, TensorRecord, parse_manifest, record_from_json
from glmquant.plan import Plan, ShardPlan
from glmquant.source import FileStamp, FolderSource
from glmquant.writer import storage_errors


def begin_or_resume(plan: Plan, source: FolderSource, target_dir: Path) -> Journal:
    """The journal to go on with: a new one, or the old one, whose source is checked.

    Args:
        plan: What is to be written.
        source: Where it is read.
        target_dir: A folder that is fresh or holds an unfinished run of the same plan.

    Returns:
        The journal, with the shards that are done and need not be made again.

    Raises:
        SourceChangedError: A source shard is not what it was.
    """
    stamps: dict[str, FileStamp | None] = {
        shard.source_file: source.stamp(shard.source_file) for shard in plan.shards
    }
    if not is_unfinished(target_dir):
        return Journal(target_dir, plan.digest, plan.files, stamps)
    journal = load_journal(target_dir)
    for shard in plan.shards:
        done = journal.finished.get(shard.file)
        path = target_dir / shard.file
        if done and not (path.is_file() and path.stat().st_size == done.nbytes == shard.nbytes):
            del journal.finished[shard.file]
            done = None
        _require_same_source(shard, source, journal.sources.get(shard.source_file), done)
    journal.sources = stamps
    return journal


def _require_same_source(
    shard: ShardPlan, source: FolderSource, recorded: FileStamp | None, done: FinishedShard | None
) -> None:
    now = source.stamp(shard.source_file)
    before = done.source if done else recorded
    if before is None or before == now:
        return
    if done is not None and before.nbytes == now.nbytes:
        if digest_of_digests(_source_digests(shard, source)) == done.source_xxh3:
            return
    elif not was_rewritten(before, now):
        return
    raise source_changed(shard.source_file, before, now)


def was_rewritten(before: FileStamp, now: FileStamp) -> bool:
    """Whether length or modification time differ; a chmod or a new hard link is no rewrite."""
    return (before.nbytes, before.mtime_ns) != (now.nbytes, now.mtime_ns)


def source_changed(file: str, before: FileStamp, now: FileStamp) -> SourceChangedError:
    """The error for a source shard that is not what it was."""
    return SourceChangedError(
        "the source changed since the run began",
        where=file,
        expected=f"{before.nbytes} bytes, written at {before.mtime_ns} ns",
        found=f"{now.nbytes} bytes, written at {now.mtime_ns} ns"
        if was_rewritten(before, now)
        else "other contents",
        hint="start over with --overwrite",
    )


def _source_digests(shard: ShardPlan, source: FolderSource) -> Iterator[str]:
    """xxh3-128 of each source tensor of a shard, read anew."""
    buffer = memoryview(bytearray(BLOCK_NBYTES))
    for step in shard.steps:
        digest = xxhash.xxh3_128()
        for offset in range(0, step.source.nbytes, BLOCK_NBYTES):
            view = buffer[: min(BLOCK_NBYTES, step.source.nbytes - offset)]
            source.read_into(shard.source_file, step.source.offset + offset, view)
            digest.update(view)
        yield digest.hexdigest()
    source.release(shard.source_file)


def digest_of_digests(digests: Iterable[str]) -> str:
    """One xxh3-128 over the digests of a shard's tensors, in order of their bytes."""
    whole = xxhash.xxh3_128()
    for digest in digests:
        whole.update(bytes.fromhex(digest))
    return whole.hexdigest()


def confirm_finished(
    plan: Plan, source: FolderSource, target_dir: Path
) -> tuple[dict[str, Any], tuple[TensorRecord, ...]]:
    """A finished target was made of these weights and side files.

    Source shards older than the manifest are believed; newer ones are read and compared.

    Args:
        plan: The plan that the target is finished by.
        source: Where it would be read.
        target_dir: The finished folder.

    Returns:
        The manifest and its records, sorted by name.

    Raises:
        SourceChangedError: A shard or a side file holds something else by now.
        TargetError: The manifest cannot be understood.
    """
    path = target_dir / MANIFEST_FILE
    with storage_errors(path):
        manifest = parse_manifest(path.read_bytes())
        written_ns = path.stat().st_mtime_ns
    try:
        records = [record_from_json(name, entry) for name, entry in manifest["tensors"].items()]
        digest_by_source = {record.source: record.source_xxh3 for record in records}
        for shard in plan.shards:
            stamp = source.stamp(shard.source_file)
            if max(stamp.mtime_ns, stamp.ctime_ns) < written_ns:
                continue
            wanted = [digest_by_source[step.source.name] for step in shard.steps]
            if list(_source_digests(shard, source)) != wanted:
                raise _made_of_other(shard.source_file)
        side_digests: dict[str, str] = manifest["side_files"]
        for name, nbytes in plan.side_files.items():
            if xxhash.xxh3_128(source.read(name, 0, nbytes)).hexdigest() != side_digests[name]:
                raise _made_of_other(name)
            source.release(name)
    except (AttributeError, JsonError, KeyError, TypeError) as error:
        raise TargetError(
            "the manifest of the target cannot be understood",
            where=str(path),
            expected="what glmquant wrote there",
            found=f"{type(error).__name__}: {error}",
            hint="make the target anew with --overwrite",
        ) from error
    return manifest, tuple(sorted(records, key=lambda record: record.name))


def _made_of_other(file: str) -> SourceChangedError:
    return SourceChangedError(
        "the source changed after the target was made",
        where=file,
        expected="what the target's manifest holds the digest of",
        found="other contents",
        hint="make the target anew with --overwrite, or name another one",
    )
