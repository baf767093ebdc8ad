"""What of a fetch is there already: files of an earlier one, and copies in the hubs' own caches."""

from __future__ import annotations

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from glmquant.errors import TargetError
from glmquant.fetched import FetchedFile
from glmquant.hubs.arrival import Sums, proof_of
from glmquant.hubs.journal import Journal
from glmquant.hubs.outputs import Output
from glmquant.hubs.patience import Stopped
from glmquant.hubs.prospect import FetchPlan
from glmquant.observer import Observer
from glmquant.source import file_stamp
from glmquant.storage import make_folder, reading, writing
from glmquant.writer import PART_SUFFIX, sync_folder

_READ_NBYTES: Final = 1 << 20


def take_what_is_there(
    plan: FetchPlan, journal: Journal, workers: int, stop: threading.Event, observer: Observer
) -> tuple[dict[str, FetchedFile], tuple[str, ...]]:
    """The files that need not be fetched: kept, found to be whole, or linked from a cache.

    Args:
        plan: What is wanted, and what there is.
        journal: Takes note of what is found.
        workers: Threads.
        stop: Set where the run ends.
        observer: Is told of what is read.

    Returns:
        The files by name, and the names of those that were linked.

    Raises:
        TargetError: A stranger's file is in the way.
        StorageError: The disk refuses.
        Stopped: The run ends.
    """
    there = dict(plan.local.kept)
    linked = []
    by_name = {each.name: each for each in plan.wanted.outputs}
    to_check = plan.local.to_check
    if to_check:
        nbytes = sum(by_name[name].nbytes * len(paths) for name, paths in to_check.items())
        observer.start("check", 0, nbytes)

    def check(name: str) -> tuple[str, Path, str] | None:
        for path in to_check[name]:
            try:
                sha256 = _matching_sum(path, by_name[name], stop, observer)
            except Stopped:
                return None
            noted = plan.local.noted.get(name) if path == plan.folder / name else None
            if sha256 and (noted is None or noted.sha256 == sha256 or by_name[name].remote):
                return name, path, sha256
            if path == plan.folder / name and name not in plan.local.ours:
                raise TargetError(
                    "a file that glmquant did not fetch is not the hub's",
                    where=str(path),
                    expected=f"the sum {by_name[name].key}",
                    found="another",
                    hint="move it away: it is damaged, or of another revision",
                )
            observer.warn(f"{path} is not what the hub has: fetched instead")
        return None

    with ThreadPoolExecutor(min(4, workers)) as pool:
        try:
            for found in pool.map(check, to_check):
                if found is None:
                    continue
                name, path, sha256 = found
                target = plan.folder / name
                if path != target:
                    make_folder(plan.folder, name)
                    _link(path, target)
                    linked.append(name)
                stamp = file_stamp(target)
                output = by_name[name]
                noted = plan.local.noted.get(name) if path == target else None
                proof = noted.proof if noted and noted.source == output.key else proof_of(output)
                file = FetchedFile(stamp.nbytes, sha256, proof, stamp.mtime_ns, output.key)
                journal.note_file(name, file)
                there[name] = file
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return there, tuple(linked)


def _matching_sum(
    path: Path, output: Output, stop: threading.Event, observer: Observer
) -> str | None:
    """The SHA-256 of a file that is a copy of an output's; None of another."""
    sums = Sums(output)
    nbytes = 0
    buffer = memoryview(bytearray(_READ_NBYTES))
    with reading(path), path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            if stop.is_set():
                raise Stopped
            sums.update(buffer[:count])
            nbytes += count
            observer.advance(count)
    return sums.sha256 if nbytes == output.nbytes and sums.judge(output) is None else None


def _link(path: Path, target: Path) -> None:
    """Make a cache's file appear here: by a hard link, or a copy where it is on another disk."""
    part = target.with_name(target.name + PART_SUFFIX)
    with writing(target):
        part.unlink(missing_ok=True)
        try:
            part.hardlink_to(path)
        except OSError:
            shutil.copyfile(path, part)
            with part.open("rb+") as file:
                os.fsync(file.fileno())
        part.replace(target)
    sync_folder(target.parent)
