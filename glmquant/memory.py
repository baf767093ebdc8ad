"""Memory that the kernels and the disk are given by address."""

from __future__ import annotations

import ctypes
import mmap
from typing import Final

PAGE_NBYTES: Final = 4096
"""What direct writes have to be aligned to: a multiple of every disk's blocks."""


class Memory:
    """Bytes at an address that is a multiple of a page; they grow, and then lose what they held.

    Attributes:
        view: The bytes.
        address: Where they begin.
    """

    def __init__(self) -> None:
        self.view = memoryview(b"")
        self.address = 0

    def fit(self, nbytes: int) -> None:
        """Have room for so many bytes."""
        if len(self.view) < nbytes:
            pages = mmap.mmap(-1, -(-nbytes // PAGE_NBYTES) * PAGE_NBYTES)
            self.view = memoryview(pages)
            self.address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
