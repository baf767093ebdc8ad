"""The head of a GGUF file: which model it says it holds, and in which type.

Little or big endian, versions 2 and 3, as in gguf-py 0.19.0 ``constants.py``, ``gguf_reader.py``.
Nothing behind the first mebibyte is read: the ``general.*`` keys stand before the vocabulary.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from glmquant.errors import HeaderError

HEAD_NBYTES: Final = 1 << 20
"""Bytes looked at."""

_MAGIC: Final = b"GGUF"
_MAX_KEY_NBYTES: Final = 65_535
_SCALARS: Final = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_STRING: Final = 8
_ARRAY: Final = 9

FILE_TYPES: Final = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S",
    17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M",
    30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4", 39: "NVFP4",
}  # fmt: skip
"""``general.file_type``: the type of most tensors (``LlamaFileType``)."""


@dataclass(frozen=True, slots=True)
class GgufHead:
    """What a GGUF file says of itself.

    Attributes:
        version: Of the format.
        tensor_count: How many tensors it announces.
        architecture: ``general.architecture``, for example ``glm4moe``.
        name: ``general.name``.
        file_type: ``general.file_type`` in words.
        quantized_by: ``general.quantized_by``.
    """

    version: int
    tensor_count: int
    architecture: str | None
    name: str | None
    file_type: str | None
    quantized_by: str | None


class _EndOfHeadError(Exception):
    """The bytes looked at end here, the file does not."""


class _Cursor:
    def __init__(self, file: str, file_nbytes: int, data: bytes) -> None:
        self.file = file
        self.file_nbytes = file_nbytes
        self.data = data
        self.position = 0
        self.order = "<"

    def take(self, nbytes: int) -> bytes:
        end = self.position + nbytes
        if end > self.file_nbytes:
            raise _broken(self.file, f"a file of at least {end} bytes", f"{self.file_nbytes} bytes")
        if end > len(self.data):
            raise _EndOfHeadError
        self.position = end
        return self.data[end - nbytes : end]

    def number(self, code: str) -> int | float | bool:
        (value,) = struct.unpack(self.order + code, self.take(struct.calcsize("<" + code)))
        return value  # type: ignore[no-any-return]

    def count(self, code: str = "Q") -> int:
        return int(self.number(code))

    def text(self) -> str:
        return self.take(self.count()).decode(errors="replace")

    def value(self, kind: int) -> str | int | float | bool | None:
        """A scalar or a string; None for an array, which is passed over."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise _broken(self.file, "a type of GGUF 3, 0 to 12", f"type {kind}")
        item, count = self.count("I"), self.count()
        if item in _SCALARS:
            self.take(count * struct.calcsize("<" + _SCALARS[item]))
        elif item == _STRING:
            for _ in range(count):
                self.take(self.count())
        else:
            raise _broken(self.file, "an array of numbers or strings", f"items of type {item}")
        return None


def read_gguf(file: str, file_nbytes: int, read: Callable[[int, int], bytes]) -> GgufHead:
    """What the head of a GGUF file says.

    Args:
        file: Name for the errors.
        file_nbytes: Length of the whole file.
        read: ``read(offset, nbytes)`` gives that range of the file.

    Returns:
        The head; what stands behind the first mebibyte is None.

    Raises:
        HeaderError: Not GGUF, or a length in it leads out of the file.
    """
    cursor = _Cursor(file, file_nbytes, read(0, min(file_nbytes, HEAD_NBYTES)))
    magic = cursor.take(4)
    if magic != _MAGIC:
        raise _broken(file, repr(_MAGIC), repr(magic))
    version = cursor.count("I")
    if version & 0xFFFF == 0:
        cursor.order = ">"
        version = int.from_bytes(version.to_bytes(4, "little"), "big")
    if version not in (2, 3):
        raise _broken(file, "version 2 or 3", f"version {version}")
    tensor_count, key_count = cursor.count(), cursor.count()
    found: dict[str, str | int | float | bool | None] = {}
    try:
        for _ in range(key_count):
            key_nbytes = cursor.count()
            if key_nbytes > _MAX_KEY_NBYTES:
                raise _broken(file, f"a key of at most {_MAX_KEY_NBYTES} bytes", f"{key_nbytes}")
            key = cursor.take(key_nbytes).decode(errors="replace")
            value = cursor.value(cursor.count("I"))
            if key.startswith("general."):
                found[key] = value
    except _EndOfHeadError:
        pass  # the vocabulary goes on behind the bytes looked at

    def text(key: str) -> str | None:
        value = found.get(f"general.{key}")
        return value if isinstance(value, str) else None

    kind = found.get("general.file_type")
    return GgufHead(
        version,
        tensor_count,
        text("architecture"),
        text("name"),
        FILE_TYPES.get(int(kind), f"type {int(kind)}") if type(kind) is int else None,
        text("quantized_by"),
    )


def _broken(file: str, expected: str, found: str) -> HeaderError:
    return HeaderError(
        "a GGUF file is broken",
        where=file,
        expected=expected,
        found=found,
        hint="fetch that file again: it is truncated or damaged",
    )
