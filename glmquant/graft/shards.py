"""The weights of a graft: copied a block at a time, then read again and compared."""

from __future__ import annotations

import threading
from pathlib import Path

import xxhash

from glmquant.convert import Buffers, Conversion
from glmquant.errors import StorageError
from glmquant.glm4_moe import Role
from glmquant.graft.donor import Donor
from glmquant.graft.plan import GraftPlan, NewShard
from glmquant.graft.recipient import Recipient
from glmquant.kernels import fast
from glmquant.manifest import TensorRecord
from glmquant.observer import Observer
from glmquant.plan import Step
from glmquant.schemes import ScaleChoice, Scheme, output_tensors
from glmquant.source import FolderSource, file_stamp, source_changed, was_rewritten
from glmquant.writer import PartFile


def write_shards(
    plan: GraftPlan, donor: Donor, recipient: Recipient, folder: Path, observer: Observer
) -> tuple[TensorRecord, ...]:
    """Write the weights of a plan into a folder, each file whole or not at all.

    Args:
        plan: What is to be written.
        donor: Where grafted tensors are read.
        recipient: Where the tensors are read that stay in a file which loses others.
        folder: Where the files go.
        observer: Told of the progress.

    Returns:
        A record of each grafted tensor.

    Raises:
        NonFiniteError: The source holds NaN or Inf.
        SourceChangedError: The source was written to while it was read.
        StorageError: The disk refuses, or gives other bytes than it was given.
    """
    if not plan.shards:
        return ()
    fast.prepare()
    records: list[TensorRecord] = []
    for shard in plan.shards:
        observer.start("graft", 0, shard.nbytes - len(shard.header))
        with PartFile(folder / shard.file, shard.nbytes, plan.mode) as part:
            part.write(0, shard.header)
            if shard.is_grafted:
                made = _graft(shard, donor, part, observer)
                records += made
                digests = {record.name: record.xxh3 for record in made}
            else:
                digests = _copy(shard, recipient.source, part, observer)
            part.commit()
        require_as_written(shard, digests, folder, observer)
        observer.finish_shard(shard.file, shard.nbytes)
    return tuple(records)


def _graft(shard: NewShard, donor: Donor, part: PartFile, observer: Observer) -> list[TensorRecord]:
    steps = [
        Step(
            piece.ref,
            Role.MTP,
            Scheme.FLOAT,
            ScaleChoice.ABSMAX,
            output_tensors(Scheme.FLOAT, piece.ref.name, piece.ref.dtype, piece.ref.shape),
        )
        for piece in shard.pieces
    ]
    places = {piece.place.name: piece.place for piece in shard.pieces}
    conversion = Conversion(
        steps, places, donor.source, part, Buffers(), threading.Event(), observer.advance
    )
    records = conversion.run()
    for file in {piece.ref.file for piece in shard.pieces}:
        before, now = donor.checkpoint.stamps[file], donor.source.stamp(file)
        if was_rewritten(before, now):
            raise source_changed(file, before, now)
        donor.source.release(file)
    return records


def _copy(
    shard: NewShard, source: FolderSource, part: PartFile, observer: Observer
) -> dict[str, str]:
    digests = {}
    for ref, place in shard.pieces:
        digest, offset = xxhash.xxh3_128(), place.offset
        for block in source.blocks(ref.file, ref.offset, ref.nbytes):
            digest.update(block)
            part.write(offset, block)
            offset += len(block)
            observer.advance(len(block))
        digests[ref.name] = digest.hexdigest()
    source.release(shard.file)
    return digests


def require_as_written(
    shard: NewShard, digests: dict[str, str], folder: Path, observer: Observer
) -> None:
    """A file on the disk holds what was put there.

    Args:
        shard: The file.
        digests: Tensor → xxh3-128 of the bytes that were put there.
        folder: Where it is.
        observer: Told of the progress.

    Raises:
        StorageError: It does not, or cannot be read.
    """
    written = FolderSource(folder)
    observer.start("check", 0, shard.nbytes - len(shard.header))
    try:
        wrong = None
        if written.read(shard.file, 0, len(shard.header)) != shard.header:
            wrong = "the header"
        for _, place in shard.pieces:
            digest = xxhash.xxh3_128()
            for block in written.blocks(shard.file, place.offset, place.nbytes):
                digest.update(block)
                observer.advance(len(block))
            if digest.hexdigest() != digests[place.name]:
                wrong = place.name
                break
    finally:
        written.release(shard.file)
    if wrong is not None:
        raise StorageError(
            "the disk gives back other bytes than were written",
            where=f"{folder / shard.file}: {wrong}",
            expected="the bytes of the source",
            found="others",
            hint="check the disk and the memory, then run the same command again",
        )


def require_base_unchanged(recipient: Recipient) -> None:
    """No shard of the checkpoint was written to since its header was read.

    Raises:
        SourceChangedError: One was.
    """
    for file, before in recipient.stamps.items():
        now = file_stamp(recipient.path / file)
        if was_rewritten(before, now):
            raise source_changed(file, before, now)
