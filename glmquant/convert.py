"""One source tensor becomes its output tensors: here its bytes are made.

Read a block of rows, refuse what is not finite, quantize or keep, write at the planned offset.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import xxhash

from glmquant.errors import NonFiniteError
from glmquant.kernels import fast
from glmquant.kernels.units import ITEM_NBYTES
from glmquant.manifest import TensorRecord
from glmquant.memory import Memory
from glmquant.plan import Step
from glmquant.schemes import ScaleChoice, Scheme
from glmquant.source import BLOCK_NBYTES, FolderSource, source_changed, was_rewritten
from glmquant.storage import writing
from glmquant.stream import PageStream
from glmquant.tensors import TensorRef
from glmquant.writer import PartFile


class Stopped(Exception):  # noqa: N818 - no error: another worker failed, or the user stopped us
    """The conversion was told to stop."""


class Buffers(threading.local):
    """Memory of one worker, used for block after block: fresh pages cost more than the arithmetic.

    A thread sees its own.
    """

    def __init__(self) -> None:
        self.read = Memory()
        self.write = Memory()
        self.scales = Memory()
        self.quantizer = fast.RowQuantizer()


@dataclass(frozen=True, slots=True)
class Conversion:
    """Source tensors on their way.

    Attributes:
        steps: What they are and what becomes of them; all of one shard.
        places: Where each output lies in it.
        source: Where they are read.
        part: The shard they are written to.
        buffers: The memory for it.
        stop: Set when the work is to be given up.
        advance: Told how many source bytes were read.
    """

    steps: Sequence[Step]
    places: Mapping[str, TensorRef]
    source: FolderSource
    part: PartFile
    buffers: Buffers
    stop: threading.Event
    advance: Callable[[int], None]

    def run(self) -> list[TensorRecord]:
        """Read, check, quantize, write.

        Returns:
            One record for each output.

        Raises:
            NonFiniteError: A tensor holds NaN or Inf.
            StorageError: The disk refuses.
            Stopped: ``stop`` was set.
        """
        records = []
        stream = PageStream(self.part, self.buffers.write)
        for step in self.steps:
            make = self._copy if step.scheme is Scheme.FLOAT else self._quantize
            records += make(step, stream)
        stream.finish()
        return records

    def _blocks(self, ref: TensorRef) -> Iterator[tuple[int, int, int]]:
        """First row, rows and bytes of each block.

        A row longer than a block is read whole, since its scale needs all of it.
        """
        rows, row_nbytes = prod(ref.shape[:-1]), _row_nbytes(ref)
        per_block = min(rows, max(1, BLOCK_NBYTES // row_nbytes))
        for row in range(0, rows, per_block):
            if self.stop.is_set():
                raise Stopped
            count = min(per_block, rows - row)
            yield row, count, count * row_nbytes
            self.advance(count * row_nbytes)

    def _copy(self, step: Step, stream: PageStream) -> list[TensorRecord]:
        ref, output = step.source, self.places[step.outputs[0].name]
        digest = xxhash.xxh3_128()
        offset, item_nbytes = ref.offset, ITEM_NBYTES[ref.dtype]
        stream.move_to(output.offset, max(BLOCK_NBYTES, _row_nbytes(ref)))
        for row, _, nbytes in self._blocks(ref):
            room = stream.room(nbytes)
            self.source.read_into(ref.file, offset, room)
            if not fast.is_finite(stream.address, ref.dtype, nbytes // item_nbytes):
                raise _non_finite(ref, room, row)
            digest.update(room)
            stream.put(nbytes)
            offset += nbytes
        same = digest.hexdigest()
        return [TensorRecord(ref.name, step.scheme.value, ref.name, same, same)]

    def _quantize(self, step: Step, stream: PageStream) -> list[TensorRecord]:
        ref, buffers = step.source, self.buffers
        weight, scale, offset = (self.places[output.name] for output in step.outputs)
        columns, row_nbytes = ref.shape[1], _row_nbytes(ref)
        buffers.read.fit(max(BLOCK_NBYTES, row_nbytes))
        buffers.scales.fit(scale.nbytes)
        sums = fast.Sums()
        read, written = xxhash.xxh3_128(), xxhash.xxh3_128()
        stream.move_to(weight.offset, max(BLOCK_NBYTES // 2, columns))
        for row, count, nbytes in self._blocks(ref):
            block = buffers.read.view[:nbytes]
            self.source.read_into(ref.file, ref.offset + row * row_nbytes, block)
            if not buffers.quantizer.quantize(
                buffers.read.address,
                ref.dtype,
                (count, columns),
                weight=stream.address,
                scale=buffers.scales.address + 4 * row,
                sums=sums,
                is_searched=step.scale is ScaleChoice.MSE,
            ):
                raise _non_finite(ref, block, row)
            read.update(block)
            written.update(stream.room(count * columns))
            stream.put(count * columns)
        scales = buffers.scales.view[: scale.nbytes]
        self.part.write_edge(scale.offset, scales)
        sqnr_db, max_error = _figures(sums)
        kind, made_of, read_digest = step.scheme.value, ref.name, read.hexdigest()
        zeros = bytes(offset.nbytes)  # not written: a part file is zero where nothing is written
        return [
            TensorRecord(
                weight.name, kind, made_of, read_digest, written.hexdigest(), sqnr_db, max_error
            ),
            *(
                TensorRecord(name, kind, made_of, read_digest, xxhash.xxh3_128(data).hexdigest())
                for name, data in ((scale.name, scales), (offset.name, zeros))
            ),
        ]


def copy_file(source: FolderSource, name: str, path: Path, advance: Callable[[int], None]) -> str:
    """Copy a side file, whole or not at all.

    Args:
        source: Where it is read.
        name: Its name there.
        path: Where it goes; the folder is made if need be.
        advance: Told how many bytes were read.

    Returns:
        xxh3-128 of its bytes, hexadecimal.

    Raises:
        SourceChangedError: It was written to while it was copied.
        StorageError: The disk refuses.
    """
    digest = xxhash.xxh3_128()
    offset = 0
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    before = source.stamp(name)
    with PartFile(path, before.nbytes) as part:
        for block in source.blocks(name, 0, before.nbytes):
            digest.update(block)
            part.write(offset, block)
            offset += len(block)
            advance(len(block))
        source.release(name)
        now = source.stamp(name)
        if was_rewritten(before, now):
            raise source_changed(name, before, now)
        part.commit()
    return digest.hexdigest()


def _row_nbytes(ref: TensorRef) -> int:
    """Bytes of what lies along the last dimension; a scalar is a row of one."""
    return (ref.shape[-1] if ref.shape else 1) * ITEM_NBYTES[ref.dtype]


def _figures(sums: fast.Sums) -> tuple[float | None, float]:
    """SQNR in dB, None where nothing was lost, and the largest absolute error."""
    has_noise = sums.noise and sums.signal
    sqnr_db = round(10 * math.log10(sums.signal / sums.noise), 3) if has_noise else None
    return sqnr_db, float(f"{sums.worst:.6g}")


def _non_finite(ref: TensorRef, block: memoryview, first_row: int) -> NonFiniteError:
    import numpy as np

    from glmquant.kernels import definition

    bits = np.frombuffer(block, definition.bits_dtype(ref.dtype))
    columns = ref.shape[-1] if ref.shape else 1
    position = definition.first_non_finite(bits, ref.dtype) or 0
    row, column = divmod(position, columns)
    value = definition.to_f32(bits[position : position + 1], ref.dtype)[0]
    place = f"row {first_row + row}, column {column}" if len(ref.shape) > 1 else f"element {column}"
    return NonFiniteError(
        "a weight is not finite",
        where=f"{ref.file}: {ref.name}, {place}",
        expected="finite numbers",
        found=str(value),
        hint="fetch that shard again and run the same command: finished shards are kept",
    )
