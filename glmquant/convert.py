"""One source tensor becomes its output tensors: here its bytes are made.

Read a block of rows, refuse what is not finite, quantize or keep, write at the planned offset.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from glmquant.errors import NonFiniteError
from glmquant.kernels import definition, fast
from glmquant.manifest import TensorRecord
from glmquant.plan import Step
from glmquant.schemes import ScaleChoice, Scheme
from glmquant.source import BLOCK_NBYTES, FolderSource, source_changed, was_rewritten
from glmquant.storage import writing
from glmquant.tensors import TensorRef
from glmquant.writer import PartFile


class Stopped(Exception):  # noqa: N818 - no error: another worker failed, or the user stopped us
    """The conversion was told to stop."""


class Buffers(threading.local):
    """Memory of one worker, used for block after block: fresh pages cost more than the arithmetic.

    A thread sees its own.
    """

    def __init__(self) -> None:
        self._block = bytearray()
        self.rows = fast.RowBuffers()

    def block(self, nbytes: int) -> memoryview:
        """Bytes to read into; they hold what was last read."""
        if len(self._block) < nbytes:
            self._block = bytearray(nbytes)
        return memoryview(self._block)[:nbytes]


@dataclass(frozen=True, slots=True)
class Conversion:
    """One source tensor on its way.

    Attributes:
        step: What it is and what becomes of it.
        source: Where it is read.
        part: The shard it is written to.
        buffers: The memory for it.
        stop: Set when the work is to be given up.
        advance: Told how many source bytes were read.
    """

    step: Step
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
            NonFiniteError: The tensor holds NaN or Inf.
            StorageError: The disk refuses.
            Stopped: ``stop`` was set.
        """
        if self.step.scheme is Scheme.FLOAT:
            return [self._copy()]
        return self._quantize()

    def _blocks(self, rows: int, columns: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """First row and ``[rows, columns]`` bits of each block; the next overwrites them.

        A row longer than a block is read whole, since its scale needs all of it.
        """
        ref = self.step.source
        dtype = definition.bits_dtype(ref.dtype)
        row_nbytes = columns * dtype.itemsize
        per_block = min(rows, max(1, BLOCK_NBYTES // row_nbytes))
        buffer = self.buffers.block(per_block * row_nbytes)
        for row in range(0, rows, per_block):
            if self.stop.is_set():
                raise Stopped
            count = min(per_block, rows - row)
            view = buffer[: count * row_nbytes]
            self.source.read_into(ref.file, ref.offset + row * row_nbytes, view)
            yield row, np.frombuffer(view, dtype).reshape(count, columns)
            self.advance(len(view))

    def _copy(self) -> TensorRecord:
        ref, (output,) = self.step.source, self.step.outputs
        digest = xxhash.xxh3_128()
        offset = output.offset
        columns = ref.shape[-1] if ref.shape else 1
        for row, bits in self._blocks(prod(ref.shape) // columns, columns):
            if not fast.is_finite(bits, ref.dtype):
                raise _non_finite(ref, bits, row)
            data = bits.data.cast("B")
            digest.update(data)
            self.part.write(offset, data)
            offset += len(data)
        same = digest.hexdigest()
        return TensorRecord(ref.name, self.step.scheme.value, ref.name, same, same)

    def _quantize(self) -> list[TensorRecord]:
        ref = self.step.source
        weight, scale, offset = self.step.outputs
        rows, columns = ref.shape
        scales = np.empty(rows, np.float32)
        sums = definition.no_sums()
        is_searched = self.step.scale is ScaleChoice.MSE
        read, written = xxhash.xxh3_128(), xxhash.xxh3_128()
        for row, bits in self._blocks(rows, columns):
            block = fast.quantize_rows(
                bits, ref.dtype, is_searched=is_searched, sums=sums, buffers=self.buffers.rows
            )
            if block is None:
                raise _non_finite(ref, bits, row)
            read.update(bits.data.cast("B"))
            data = block.weight.data.cast("B")
            written.update(data)
            self.part.write(weight.offset + row * columns, data)
            scales[row : row + len(bits)] = block.scale
        scale_data = scales.astype("<f4").tobytes()
        self.part.write(scale.offset, scale_data)
        sqnr_db, max_error = _figures(sums)
        kind, made_of, read_digest = self.step.scheme.value, ref.name, read.hexdigest()
        zeros = bytes(offset.nbytes)  # not written: a part file is zero where nothing is written
        return [
            TensorRecord(
                weight.name, kind, made_of, read_digest, written.hexdigest(), sqnr_db, max_error
            ),
            *(
                TensorRecord(name, kind, made_of, read_digest, xxhash.xxh3_128(data).hexdigest())
                for name, data in ((scale.name, scale_data), (offset.name, zeros))
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


def _figures(sums: NDArray[np.float64]) -> tuple[float | None, float]:
    """SQNR in dB, None where nothing was lost, and the largest absolute error."""
    signal, noise, worst = sums.tolist()
    sqnr = round(10 * math.log10(signal / noise), 3) if noise and signal else None
    return sqnr, float(f"{worst * 2.0**-definition.ERROR_BITS:.6g}")


def _non_finite(ref: TensorRef, bits: NDArray[Any], first_row: int) -> NonFiniteError:
    position = definition.first_non_finite(bits, ref.dtype)
    row, column = divmod(position or 0, bits.shape[1])
    value = definition.to_f32(bits, ref.dtype)[row, column]
    place = f"row {first_row + row}, column {column}" if len(ref.shape) > 1 else f"element {column}"
    return NonFiniteError(
        "a weight is not finite",
        where=f"{ref.file}: {ref.name}, {place}",
        expected="finite numbers",
        found=str(value),
        hint="fetch that shard again and run the same command: finished shards are kept",
    )
