"""Run a plan: shards in order, their tensors on several threads, the small files last.

Memory is a few blocks a worker, whatever the size of a shard. The bytes do not depend on the number
of workers, on interruptions, or on where a block ends.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from glmquant import __version__
from glmquant.convert import Buffers, Conversion, copy_file
from glmquant.errors import (
    GlmquantError,
    NonFiniteError,
    SourceChangedError,
    StorageError,
    TargetError,
)
from glmquant.journal import FinishedShard, Journal, is_unfinished, load_journal, remove_journal
from glmquant.kernels import fast
from glmquant.manifest import ARITHMETIC, MANIFEST_FILE, TensorRecord, encode_manifest
from glmquant.observer import Observer
from glmquant.ownership import clear_place, clear_target, listed_files, remove_files
from glmquant.plan import Plan, ShardPlan, Step
from glmquant.resume import (
    begin_or_resume,
    confirm_finished,
    digest_of_digests,
    refuse_moved,
)
from glmquant.source import FolderSource, file_stamp, source_changed, was_rewritten
from glmquant.target import TargetState, admit, locked_folder, refuse_overlap
from glmquant.writer import PartFile, remove_parts, write_file

SHARDS_IN_FLIGHT: Final = 2
"""The next shard begins while the last tensors of one are made and its bytes made durable."""

BATCH_NBYTES: Final = 4 << 20
"""Source bytes that a worker takes at a time, or more for a larger tensor."""


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
    beside_nbytes: int = 0,
    observer: Observer | None = None,
) -> Outcome:
    """Write the output of a plan, or go on with it, or see that it is done.

    Args:
        plan: What is to be written.
        source: Where it is read; the one that the plan was made from.
        target_dir: The folder to write; made if need be.
        workers: Threads.
        overwrite: Remove an earlier output of ours first.
        beside_nbytes: What the source takes meanwhile on the target's disk.
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
    refuse_overlap(source.path, target_dir, plan.source_files)
    if not os.path.lexists(target_dir):
        admit(plan, target_dir, overwrite, beside_nbytes)  # before the folder is made
    with locked_folder(target_dir):
        if not overwrite:
            refuse_moved(plan, source, target_dir, observer)
        if admit(plan, target_dir, overwrite, beside_nbytes) is TargetState.FINISHED:
            manifest, records = confirm_finished(plan, source, target_dir, observer)
            remove_journal(target_dir)  # a kill may have come between the two last steps
            return Outcome(True, records, manifest)
        for name in plan.side_files:
            source.require_readable(name)
        if overwrite:
            journal = _begin_over(plan, source, target_dir, observer)
        else:
            journal = begin_or_resume(plan, source, target_dir, observer)
        fast.prepare()
        return _run(plan, source, journal, workers, observer)


def _begin_over(plan: Plan, source: FolderSource, target_dir: Path, observer: Observer) -> Journal:
    """Go on with an interrupted run of this plan if that can be; else remove what we wrote."""
    if is_unfinished(target_dir) and load_journal(target_dir).plan_digest == plan.digest:
        with suppress(SourceChangedError):
            return begin_or_resume(plan, source, target_dir, observer)
    clear_target(target_dir, plan)
    return begin_or_resume(plan, source, target_dir, observer)


@dataclass(slots=True)
class _ShardRun:
    """A shard whose tensors are being made."""

    plan: ShardPlan
    part: PartFile
    futures: list[Future[list[TensorRecord]]] = field(default_factory=list)


def _run(
    plan: Plan, source: FolderSource, journal: Journal, workers: int, observer: Observer
) -> Outcome:
    pending = [shard for shard in plan.shards if shard.file not in journal.finished]
    done_nbytes = plan.source_nbytes - sum(shard.source_nbytes for shard in pending)
    observer.start("quantize", done_nbytes, plan.source_nbytes + sum(plan.side_files.values()))
    try:
        journal.save()
        _make_room(plan, journal.target_dir)
        if pending:  # a shard of a run that had come to its end is gone: nothing may load
            remove_files(journal.target_dir, reversed(plan.small_files))
        source.expect(shard.source_file for shard in pending)
        _write_shards(pending, source, journal, workers, observer)
        return _finish(plan, source, journal, observer)
    except BaseException:
        if is_unfinished(journal.target_dir):  # else it was not begun, or the folder is another
            with suppress(GlmquantError):  # what failed first is what the user has to hear of
                _leave(journal)
        raise


def _make_room(plan: Plan, target_dir: Path) -> None:
    """Remove what an earlier run of ours wrote and this one will not, side files that are gone."""
    planned = set(plan.files)
    remove_files(target_dir, (name for name in listed_files(target_dir) if name not in planned))
    for name in plan.files:
        clear_place(target_dir, name)


def _leave(journal: Journal) -> None:
    """Keep what is whole; where nothing is, nothing is left."""
    remove_parts(journal.target_dir, journal.files)
    if any((journal.target_dir / name).exists() for name in journal.files):
        journal.save()
    else:
        remove_journal(journal.target_dir)


def _write_shards(
    pending: list[ShardPlan],
    source: FolderSource,
    journal: Journal,
    workers: int,
    observer: Observer,
) -> None:
    stop = threading.Event()
    buffers = Buffers()
    running: deque[_ShardRun] = deque()
    with ExitStack() as cleanup:
        pool = ThreadPoolExecutor(max_workers=workers)
        cleanup.callback(_abort, running, pool, stop)
        waiting = {shard.source_file: shard for shard in pending}
        while waiting or running:
            arrived = None
            if waiting and len(running) < SHARDS_IN_FLIGHT:
                arrived = source.arrived(waiting, is_awaited=not running)
            if arrived is None:
                _commit(running, source, journal, observer)
                continue
            shard = waiting.pop(arrived)
            part = PartFile(journal.target_dir / shard.file, shard.nbytes)
            run = _ShardRun(shard, part)
            running.append(run)
            part.write(0, shard.header)
            places = shard.places()
            for steps in _batches(shard.steps):
                conversion = Conversion(
                    steps, places, source, part, buffers, stop, observer.advance
                )
                run.futures.append(_submit(pool, conversion))


def _batches(steps: Iterable[Step]) -> Iterator[list[Step]]:
    """Steps in their order, small tensors together: handing one over takes longer than its work."""
    batch: list[Step] = []
    nbytes = 0
    for step in steps:
        batch.append(step)
        nbytes += step.source.nbytes
        if nbytes >= BATCH_NBYTES:
            yield batch
            batch, nbytes = [], 0
    if batch:
        yield batch


def _submit(pool: ThreadPoolExecutor, conversion: Conversion) -> Future[list[TensorRecord]]:
    try:
        return pool.submit(conversion.run)
    except RuntimeError as error:
        raise StorageError(
            "the system gives no more threads",
            expected="one thread a worker",
            found=str(error),
            hint="run the same command with fewer --workers",
        ) from error


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
    except NonFiniteError as error:
        if source.is_far:
            error.hint = "the hub's weights hold it: tell whoever keeps them; finished shards stay"
        journal.sources[run.plan.source_file] = None  # refused: it may be replaced and tried again
        raise
    now = source.stamp(run.plan.source_file)
    if was_rewritten(run.plan.source_stamp, now):
        raise source_changed(run.plan.source_file, run.plan.source_stamp, now)
    run.part.commit()
    source.release(run.plan.source_file)
    digest_by_source = {record.source: record.source_xxh3 for record in records}
    shard = FinishedShard(
        file_stamp(run.part.path),
        run.plan.source_stamp,
        digest_of_digests(digest_by_source[step.source.name] for step in run.plan.steps),
        tuple(records),
    )
    journal.finish_shard(run.plan.file, shard)
    source.discard(run.plan.source_file)
    running.popleft()
    observer.finish_shard(run.plan.file, run.plan.nbytes)


def _finish(plan: Plan, source: FolderSource, journal: Journal, observer: Observer) -> Outcome:
    """Side files, manifest, description, index and, last of all, config.json."""
    target_dir = journal.target_dir
    side_digests = {
        name: copy_file(source, name, target_dir / name, observer.advance)
        for name in plan.side_files
    }
    _require_unchanged(plan, source, journal)
    records = sorted(
        (record for shard in plan.shards for record in journal.finished[shard.file].records),
        key=lambda record: record.name,
    )
    manifest: dict[str, Any] = {
        "tool": {"name": "glmquant", "version": __version__},
        "plan": plan.digest,
        "settings": plan.settings,
        "rules": [rule.model_dump(mode="json") for rule in plan.recipe.rules],
        "arithmetic": ARITHMETIC,
        "mtp_layers": plan.mtp_count,
        "source": {
            "config_xxh3_128": plan.source_config_xxh3,
            "shards": {
                shard.source_file: {
                    "nbytes": shard.source_stamp.nbytes,
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


def _require_unchanged(plan: Plan, source: FolderSource, journal: Journal) -> None:
    """Before the folder may load: no shard was rewritten behind our back, here or in the source."""
    for shard in plan.shards:
        now = source.stamp(shard.source_file)
        if was_rewritten(shard.source_stamp, now):
            raise source_changed(shard.source_file, shard.source_stamp, now)
        path = journal.target_dir / shard.file
        if was_rewritten(journal.finished[shard.file].output, file_stamp(path)):
            raise TargetError(
                "an output shard was changed while the run went on",
                where=str(path),
                expected="the file that was written",
                found="another length or time",
                hint="run the same command again: that shard is made anew",
            )
