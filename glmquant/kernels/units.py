"""What ``definition``, ``loops`` and their callers agree on; needs no NumPy."""

from __future__ import annotations

from typing import Final

ERROR_BITS: Final = 9
"""Values and errors are counted in 2^-9 of a step."""

ITEM_NBYTES: Final = {"BF16": 2, "F16": 2, "F32": 4}
"""Bytes of an element of each dtype that can be quantized."""

INFINITY: Final = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000}
"""The magnitude from which on a value is not finite."""

MAGNITUDE: Final = {"BF16": 0x7FFF, "F16": 0x7FFF, "F32": 0x7FFFFFFF}
"""The mask that drops the sign."""
