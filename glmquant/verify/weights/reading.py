"""One pass over a checkpoint and its source: every unit judged once, finished shards kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import xxhash

from glmquant.observer import Observer
from glmquant.source import FolderSource
from glmquant.verify.weights.crew import work_through
from glmquant.verify.weights.judge import Judge
from glmquant.verify.weights.saved import Results, Saved
from glmquant.verify.weights.units import Unit


def read_through(
    judge: Judge,
    units: dict[str, list[Unit]],
    saved: Saved,
    observer: Observer,
    workers: int,
) -> Results:
    """Judge all units.

    Args:
        judge: Says what is wrong with one.
        units: Shard → its units, in order.
        saved: Holds what an interrupted run has done, and takes up what this one does.
        observer: Is told of every block.
        workers: Threads.

    Returns:
        All results, in the order of the units whatever thread had them.

    Raises:
        StorageError: A file cannot be read, or became shorter meanwhile.
        SourceChangedError: A file was rewritten meanwhile.
    """
    signatures = {shard: _signature(judge, found) for shard, found in units.items()}
    done: dict[str, Results] = {}
    for shard, signature in signatures.items():
        held = saved.load(shard, signature)
        if held is not None:
            done[shard] = held
    lengths = {shard: sum(_nbytes(judge, unit) for unit in found) for shard, found in units.items()}
    observer.start("verify", sum(lengths[shard] for shard in done), sum(lengths.values()))
    rest = {shard: found for shard, found in units.items() if shard not in done}
    files = _OpenFiles(judge, rest)
    stamps = {
        shard: saved.stamps(file for unit in found for file in files_of(judge, unit))
        for shard, found in rest.items()
    }
    parts: dict[str, dict[str, Results]] = {shard: {} for shard in rest}
    try:
        everything = [unit for found in rest.values() for unit in found]
        for unit, result in work_through(everything, judge.judge, workers, observer):
            shard = unit.main.file
            parts[shard][unit.main.name] = result
            files.done_with(unit)
            if len(parts[shard]) == len(rest[shard]):
                each = parts.pop(shard)
                done[shard] = _total(each[unit.main.name] for unit in rest[shard])
                saved.require_same(stamps[shard])
                saved.save(shard, signatures[shard], stamps[shard], done[shard])
    finally:
        files.close()
    return _total(done[shard] for shard in units)


def files_of(judge: Judge, unit: Unit) -> Iterator[tuple[str, str]]:
    """The files that are read for a unit: ``checkpoint`` or ``source``, and the name."""
    for ref in unit.refs:
        yield "checkpoint", ref.file
    for ref in judge.reads(unit):
        yield "source", ref.file


def _total(results: Iterable[Results]) -> Results:
    total = Results()
    for each in results:
        total.add(each)
    return total


def _nbytes(judge: Judge, unit: Unit) -> int:
    return sum(ref.nbytes for ref in unit.refs) + judge.source_nbytes(unit)


def _signature(judge: Judge, units: list[Unit]) -> str:
    """What is to be done with a shard, in short: another manifest or neighbour changes it."""
    text = xxhash.xxh3_128(b"%d" % judge.sampled_rows)
    for unit in units:
        smoothed = [judge.factors.get(name) for name in (unit.name, f"{unit.name}.bias")]
        for ref in (*unit.refs, *sorted(judge.reads(unit))):
            text.update(f"{ref!r} {judge.trust.digests.get(ref.name)}\n".encode())
        rule = judge.trust.rule(unit.main.name, unit.role)
        text.update(f"{rule} {unit.name in judge.norms}\n".encode())
        for factors in filter(None, smoothed):
            for numbers in (factors.columns, factors.rows):
                text.update(b"-" if numbers is None else numbers.tobytes())
            text.update(b"%d" % factors.in_bf16)
    return text.hexdigest()


class _OpenFiles:
    """Closes a file when the last unit that needs it is done: each shard is open for a while.

    Args:
        judge: Knows the folders.
        units: What is to be read.
    """

    def __init__(self, judge: Judge, units: dict[str, list[Unit]]) -> None:
        self._judge = judge
        self._sides = {"checkpoint": judge.mine}
        if judge.checkpoint is not None:
            self._sides["source"] = judge.checkpoint.source
        self._users: Counter[tuple[str, str]] = Counter()
        for found in units.values():
            for unit in found:
                self._users.update(set(files_of(judge, unit)))

    def done_with(self, unit: Unit) -> None:
        """Close what nobody needs any more."""
        for key in set(files_of(self._judge, unit)):
            self._users[key] -= 1
            if not self._users[key]:
                self._release(key)

    def close(self) -> None:
        """Close all."""
        for key in self._users:
            self._release(key)

    def _release(self, key: tuple[str, str]) -> None:
        side, file = key
        source: FolderSource = self._sides[side]
        source.release(file)
