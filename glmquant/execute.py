"""Run a plan: shards in order, their tensors on several threads, the small files last.

Memory is a few blocks a worker, whatever the size of a shard. The bytes do not depend on the number
of workers, on interruptions, or on where a block ends.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import xxhash

from glmquant import __version__
from glmquant.convert import Conversion
from glmquant.errors import NonFiniteError
from glmquant.glm4_moe import CONFIG_FILE
from glmquant.journal import FinishedShard, Journal, remove_journal
from glmquant.manifest import ARITHMETIC, MANIFEST_FILE, TensorRecord, encode_manifest
from glmquant.plan import Plan, ShardPlan
from glmquant.resume import (
    begin_or_resume,
    confirm_finished,
    digest_of_digests,
    source_changed,
    was_rewritten,
)
from glmquant.source import FileStamp, FolderSource
from glmquant.target import (
    TargetState,
    clear_target,
    examine_target,
    listed_files,
    locked_folder,
    refuse_overlap,
    require_room,
)
from glmquant.writer import PartFile, storage_errors, write_file

SHARDS_IN_FLIGHT: Final = 2
"""The next shard begins while the last tensors of one are made and its bytes made durable."""


class Observer:
    """Told of a run's progress. Does nothing; a user interface overrides what it shows."""

    def start(self, done_nbytes: int, total_nbytes: int) -> None:
        """A run begins, or goes on: source bytes done before, and in all."""

    def advance(self, nbytes: int) -> None:
        """More source bytes were read. Called from several threads."""

    def finish_shard(self, file: str, nbytes: int) -> None:
        """An output shard is whole and durable."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run did.

    Attributes:
        was_done: The same plan had been finished there before; nothing was written.
        records: Every tensor of the output, sorted by name.
        manifest: The manifest's fields.
    """

    was_done: bool
    records: tuple[TensorRecord, ...]
    manifest: dict[str, Any]


def execute(
    plan: Plan,
    source: FolderSource,
    target_dir: Path,
    *,
    workers: int = 1,
    overwrite: bool = False,
    observer: Observer | None = None,
) -> Outcome:
    """Write the output of a plan, or go on with it, or see that it is done.

    Args:
        plan: What is to be written.
        source: Where it is read; the one that the plan was made from.
        target_dir: The folder to write; made if need be.
        workers: Threads.
        overwrite: Remove an earlier output of ours first.
        observer: Told of the progress.

    Returns:
        The records of all tensors.

    Raises:
        NonFiniteError: A weight holds NaN or Inf.
        SourceChangedError: The source is not what it was when the run began.
        TargetError: The folder is in use, holds something else, or the disk is too small.
        StorageError: The disk refuses.
    """
    observer = observer or Observer()
    refuse_overlap(source.path, target_dir)
    if not target_dir.exists():
        require_room(target_dir, plan, (), set())
    with locked_folder(target_dir):
        if overwrite:
            require_room(target_dir, plan, (), set(listed_files(target_dir)))
            clear_target(target_dir, plan)
        elif examine_target(target_dir, plan) is TargetState.FINISHED:
            manifest, records = confirm_finished(plan, source, target_dir)
            remove_journal(target_dir)  # a kill may have come between the two last steps
            return Outcome(True, records, manifest)
        journal = begin_or_resume(plan, source, target_dir)
        require_room(target_dir, plan, journal.finished, set())
        return _run(plan, source, journal, workers, observer)


@dataclass(slots=True)
class _ShardRun:
    """A shard whose tensors are being made."""

    plan: ShardPlan
    stamp: FileStamp
    part: PartFile
    futures: list[Future[list[TensorRecord]]] = field(default_factory=list)


def _run(
    plan: Plan, source: FolderSource, journal: Journal, workers: int, observer: Observer
) -> Outcome:
    pending = [shard for shard in plan.shards if shard.file not in journal.finished]
    done_nbytes = plan.source_nbytes - sum(shard.source_nbytes for shard in pending)
    observer.start(done_nbytes, plan.source_nbytes)
    journal.save()
    try:
        _write_shards(pending, source, journal, workers, observer)
        return _finish(plan, source, journal)
    except BaseException:
        if journal.finished:
            journal.save()
        else:
            remove_journal(journal.target_dir)
        raise


def _write_shards(
    pending: list[ShardPlan],
    source: FolderSource,
    journal: Journal,
    workers: int,
    observer: Observer,
) -> None:
    stop = threading.Event()
    running: deque[_ShardRun] = deque()
    with ExitStack() as cleanup:
        pool = ThreadPoolExecutor(max_workers=workers)
        cleanup.callback(_abort, running, pool, stop)
        for shard in pending:
            if len(running) == SHARDS_IN_FLIGHT:
                _commit(running, source, journal, observer)
            part = PartFile(journal.target_dir / shard.file, shard.nbytes)
            run = _ShardRun(shard, source.stamp(shard.source_file), part)
            running.append(run)
            part.write(0, shard.header)
            for step in shard.steps:
                conversion = Conversion(step, source, part, stop, observer.advance)
                run.futures.append(pool.submit(conversion.run))
        while running:
            _commit(running, source, journal, observer)


def _abort(running: deque[_ShardRun], pool: ThreadPoolExecutor, stop: threading.Event) -> None:
    stop.set()
    pool.shutdown(wait=True, cancel_futures=True)
    for run in running:
        run.part.abort()


def _commit(
    running: deque[_ShardRun], source: FolderSource, journal: Journal, observer: Observer
) -> None:
    """Wait for the oldest shard, make it visible and note it.

    Results are taken in the order of the plan, so that of several bad tensors the same one is
    named for any number of workers.
    """
    run = running[0]
    try:
        records = [record for future in run.futures for record in future.result()]
    except NonFiniteError:
        journal.sources[run.plan.source_file] = None  # refused: it may be replaced and tried again
        raise
    now = source.stamp(run.plan.source_file)
    if was_rewritten(run.stamp, now):
        raise source_changed(run.plan.source_file, run.stamp, now)
    run.part.commit()
    source.release(run.plan.source_file)
    digest_by_source = {record.source: record.source_xxh3 for record in records}
    digest = digest_of_digests(digest_by_source[step.source.name] for step in run.plan.steps)
    shard = FinishedShard(run.plan.nbytes, now, digest, tuple(records))
    journal.finish_shard(run.plan.file, shard)
    running.popleft()
    observer.finish_shard(run.plan.file, run.plan.nbytes)


def _finish(plan: Plan, source: FolderSource, journal: Journal) -> Outcome:
    """Side files, manifest, description, index and, last of all, config.json."""
    target_dir = journal.target_dir
    side_digests = {}
    for name, nbytes in plan.side_files.items():
        data = source.read(name, 0, nbytes)
        source.release(name)
        with storage_errors(target_dir / name):
            (target_dir / name).parent.mkdir(parents=True, exist_ok=True)
        write_file(target_dir / name, data)
        side_digests[name] = xxhash.xxh3_128(data).hexdigest()
    records = sorted(
        (record for shard in plan.shards for record in journal.finished[shard.file].records),
        key=lambda record: record.name,
    )
    manifest: dict[str, Any] = {
        "tool": {"name": "glmquant", "version": __version__},
        "plan": plan.digest,
        "recipe": {
            "name": plan.recipe.name,
            "sha256": plan.recipe.digest(),
            "rules": [rule.model_dump(mode="json") for rule in plan.recipe.rules],
        },
        "arithmetic": ARITHMETIC,
        "mtp_layers": plan.mtp_count,
        "source": {
            "config_xxh3_128": xxhash.xxh3_128(
                source.read(CONFIG_FILE, 0, source.stamp(CONFIG_FILE).nbytes)
            ).hexdigest(),
            "shards": {
                shard.source_file: {
                    "nbytes": journal.finished[shard.file].source.nbytes,
                    "xxh3_128": journal.finished[shard.file].source_xxh3,
                }
                for shard in plan.shards
            },
        },
        "files": list(plan.files),
        "side_files": side_digests,
    }
    write_file(target_dir / MANIFEST_FILE, encode_manifest(manifest, records))
    for name, data in plan.small_files.items():
        write_file(target_dir / name, data)
    remove_journal(target_dir)
    return Outcome(False, tuple(records), manifest)
