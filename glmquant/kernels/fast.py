"""The arithmetic of ``definition`` at the speed of memory, the interpreter's lock given away.

Memory is given by address, and NumPy is not imported: it takes as long as a third of a gigabyte.
"""

from __future__ import annotations

import ctypes

from glmquant.kernels.machine_code import kernels
from glmquant.kernels.units import ERROR_BITS, INFINITY, ITEM_NBYTES, MAGNITUDE
from glmquant.memory import Memory

_ROW_NBYTES = 8 + 8 + 4
"""Signal, noise and worst error of a row."""
_SCRATCH_NBYTES = 8 + 4 + 2
"""An F64, an F32 and an int16 for each column."""


def prepare() -> None:
    """Compile, or load what was compiled before, before threads need it."""
    kernels()


class Sums:
    """Error figures of a weight, as ``definition.add_rows`` has them; the rows come in order."""

    def __init__(self) -> None:
        self._sums = (ctypes.c_double * 3)()
        self.address = ctypes.addressof(self._sums)

    @property
    def signal(self) -> float:
        """Σ w², in units of 2^-18."""
        return self._sums[0]

    @property
    def noise(self) -> float:
        """Σ (w - q scale)², in units of 2^-18."""
        return self._sums[1]

    @property
    def worst(self) -> float:
        """The largest |w - q scale|, in the units of the weight."""
        return self._sums[2] / (1 << ERROR_BITS)


class RowQuantizer:
    """Quantizes blocks of rows; owns the memory for what is not kept of them."""

    def __init__(self) -> None:
        self._rows = Memory()
        self._scratch = Memory()
        self._widened = Memory()

    def quantize(
        self,
        source: int,
        dtype: str,
        shape: tuple[int, int],
        *,
        weight: int,
        scale: int,
        sums: Sums,
        is_searched: bool = False,
    ) -> bool:
        """``definition.quantize_rows``, bit for bit, on memory.

        Args:
            source: Address of the elements of ``shape``.
            dtype: ``BF16``, ``F16`` or ``F32``.
            shape: ``(rows, in)``.
            weight: Address for ``rows * in`` int8.
            scale: Address for ``rows`` F32.
            sums: The rows are added to it.
            is_searched: Take the best of the neighbouring scales.

        Returns:
            Whether all elements are finite; if not, what was written means nothing.
        """
        rows, columns = shape
        self._rows.fit(rows * _ROW_NBYTES)
        self._scratch.fit(columns * _SCRATCH_NBYTES)
        size = 8 * ITEM_NBYTES[dtype]
        if dtype == "F16":
            source, size = self._widen(source, rows * columns), 32
        figures = self._rows.address
        failed_row = kernels().quantize[size](
            source,
            rows,
            columns,
            is_searched,
            weight,
            scale,
            figures,
            figures + 8 * rows,
            figures + 16 * rows,
            sums.address,
            self._scratch.address,
        )
        return failed_row < 0

    def figures(self, rows: int) -> memoryview:
        """What the last block left: signal and noise of its rows in int64, then worst in int32."""
        return self._rows.view[: rows * _ROW_NBYTES]

    def _widen(self, source: int, count: int) -> int:
        """F16 elements as F32; no release has any, so NumPy may take its time."""
        import numpy as np

        self._widened.fit(4 * count)
        halves = memoryview((ctypes.c_uint16 * count).from_address(source)).cast("B")
        wide = np.frombuffer(self._widened.view, np.float32, count)
        wide[:] = np.frombuffer(halves, np.float16)
        return self._widened.address


def is_finite(source: int, dtype: str, count: int) -> bool:
    """Whether there is no NaN and no Inf.

    Args:
        source: Address of the elements.
        dtype: ``BF16``, ``F16`` or ``F32``.
        count: How many.
    """
    largest = kernels().magnitude[8 * ITEM_NBYTES[dtype]](source, count, MAGNITUDE[dtype])
    return largest < INFINITY[dtype]
