"""The journal of an unfinished run, in ``TARGET/.glmquant/``.

``journal.json`` holds the plan's digest and the stamp of every source shard as it was when the run
began; ``shards/NAME.json`` appears after the output shard NAME is whole and durable, with the
source shard's stamp and digest and the records of its tensors. Each file is renamed into place, so
none is ever torn.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from glmquant.errors import JsonError, StorageError, TargetError
from glmquant.jsontext import dump_object, parse_object
from glmquant.manifest import TensorRecord, record_from_json, write_records
from glmquant.source import FileStamp
from glmquant.storage import STATE_DIR, reading, writing
from glmquant.writer import PART_SUFFIX, write_file

_JOURNAL: Final = "journal.json"
_SHARDS: Final = "shards"


@dataclass(frozen=True, slots=True)
class FinishedShard:
    """What the journal says of an output shard that is done.

    Attributes:
        output: Its own stamp once it was in place.
        source: Stamp of the source shard when it was read.
        source_xxh3: xxh3-128 over the digests of the source tensors that were read.
        records: Its tensors.
    """

    output: FileStamp
    source: FileStamp
    source_xxh3: str
    records: tuple[TensorRecord, ...]


@dataclass(slots=True)
class Journal:
    """A run that has begun.

    Attributes:
        target_dir: The folder being written.
        plan_digest: Digest of its plan.
        settings: What was asked for.
        files: Every file that the run writes, for ``--overwrite``.
        sources: Source shard → its stamp, or None where a shard was refused and may be replaced.
        origin: The repository and revision that the source was; empty for a folder.
        finished: Output shard → what is known of it.
    """

    target_dir: Path
    plan_digest: str
    settings: dict[str, Any]
    files: tuple[str, ...]
    sources: dict[str, FileStamp | None]
    origin: str = ""
    finished: dict[str, FinishedShard] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """``TARGET/.glmquant``."""
        return self.target_dir / STATE_DIR

    def save(self) -> None:
        """Write ``journal.json``; what was there before is replaced.

        Raises:
            DiskSpaceError: No room.
            StorageError: The disk refuses.
        """
        with writing(self.folder):
            (self.folder / _SHARDS).mkdir(parents=True, exist_ok=True)
        fields: dict[str, Any] = {
            "plan": self.plan_digest,
            "settings": self.settings,
            "files": list(self.files),
            "sources": {file: stamp and stamp._asdict() for file, stamp in self.sources.items()},
            "origin": self.origin,
        }
        write_file(self.folder / _JOURNAL, dump_object(fields))

    def finish_shard(self, file: str, shard: FinishedShard) -> None:
        """Note that an output shard is whole and durable.

        Raises:
            DiskSpaceError: No room.
            StorageError: The disk refuses.
        """
        fields = {
            "output": shard.output._asdict(),
            "source": shard.source._asdict(),
            "source_xxh3_128": shard.source_xxh3,
        }
        note = BytesIO()
        note.write(json.dumps(fields).removesuffix("}").encode() + b', "tensors": ')
        write_records(note, shard.records)
        note.write(b"}\n")
        write_file(self.folder / _SHARDS / f"{file}.json", note.getvalue())
        self.finished[file] = shard


def remove_journal(target_dir: Path) -> None:
    """The work is done or undone: the journal goes, and its folder if nothing else is in it.

    Raises:
        StorageError: The disk refuses.
    """
    folder = target_dir / STATE_DIR
    with writing(folder):
        (folder / _JOURNAL).unlink(missing_ok=True)
        (folder / f"{_JOURNAL}{PART_SUFFIX}").unlink(missing_ok=True)
        for pattern in ("*.json", f"*.json{PART_SUFFIX}"):
            for note in (folder / _SHARDS).glob(pattern):
                note.unlink(missing_ok=True)
    for emptied in (folder / _SHARDS, folder):
        with suppress(OSError):
            emptied.rmdir()


def is_unfinished(target_dir: Path) -> bool:
    """Whether a folder holds a journal."""
    return (target_dir / STATE_DIR / _JOURNAL).is_file()


def load_journal(target_dir: Path) -> Journal:
    """The journal of an unfinished run, without its notes: those are tens of MB.

    Args:
        target_dir: A folder for which ``is_unfinished`` holds.

    Returns:
        The journal, no shard finished; ``load_finished`` has them.

    Raises:
        TargetError: The journal cannot be understood.
        StorageError: It cannot be read.
    """
    folder = target_dir / STATE_DIR
    try:
        with reading(folder):
            fields = parse_object((folder / _JOURNAL).read_bytes(), _JOURNAL)
        journal = Journal(
            target_dir,
            _checked(fields["plan"], str),
            _checked(fields["settings"], dict),
            tuple(_checked(name, str) for name in _checked(fields["files"], list)),
            {
                file: None if stamp is None else _stamp(stamp)
                for file, stamp in _checked(fields["sources"], dict).items()
            },
            _checked(fields.get("origin", ""), str),
        )
    except (AttributeError, JsonError, KeyError, TypeError, ValueError) as error:
        raise TargetError(
            "the journal of an unfinished run cannot be understood",
            where=str(folder / _JOURNAL),
            expected="what glmquant wrote there",
            found=str(error).splitlines()[0],
            hint=f"remove {target_dir} and start again",
        ) from error
    return journal


def load_finished(target_dir: Path) -> dict[str, FinishedShard]:
    """The finished shards of an unfinished run, by name; a note that cannot be read does not count.

    Args:
        target_dir: A folder for which ``is_unfinished`` holds.
    """
    finished = {}
    for path in sorted((target_dir / STATE_DIR / _SHARDS).glob("*.json")):
        with suppress(AttributeError, JsonError, KeyError, TypeError, ValueError, StorageError):
            finished[path.name.removesuffix(".json")] = _load_shard(path)
    return finished


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{kind.__name__} expected, {type(value).__name__} found")
    return value


def _load_shard(path: Path) -> FinishedShard:
    with reading(path):
        fields = parse_object(path.read_bytes(), path.name)
    return FinishedShard(
        _stamp(fields["output"]),
        _stamp(fields["source"]),
        _checked(fields["source_xxh3_128"], str),
        tuple(record_from_json(name, entry) for name, entry in fields["tensors"].items()),
    )


def _stamp(fields: Any) -> FileStamp:
    nbytes, mtime_ns, ctime_ns = (
        _checked(fields[name], int) for name in ("nbytes", "mtime_ns", "ctime_ns")
    )
    return FileStamp(nbytes, mtime_ns, ctime_ns, _checked(fields.get("hub_sum", ""), str))
