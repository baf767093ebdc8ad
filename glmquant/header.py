"""The safetensors header: parsed without trust, built in the format's canonical order.

A file is 8 bytes of little-endian header length, that many bytes of JSON, then the data, every
byte of which belongs to exactly one tensor (safetensors 0.8.0, ``tensor.rs``).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from json.encoder import encode_basestring as _quoted
from math import prod
from operator import itemgetter
from typing import Any, Final

from glmquant.errors import HeaderError, JsonError
from glmquant.jsontext import parse_object
from glmquant.tensors import DTYPE_NBITS, TensorRef, tensor_nbytes

MAX_DIMENSIONS: Final = 8
"""More than any model has; bounds the arithmetic on a hostile header."""

LFS_POINTER: Final = b"version https://git-lfs.github.com/spec/"
"""What lies in place of a file that git-lfs has not fetched."""

MAX_HEADER_NBYTES: Final = 100_000_000
"""safetensors 0.8.0 refuses longer headers (``MAX_HEADER_SIZE``)."""

_ENTRY_KEYS: Final = {"dtype", "shape", "data_offsets"}
_DTYPE_RANK: Final = {dtype: rank for rank, dtype in enumerate(DTYPE_NBITS)}


@dataclass(frozen=True, slots=True)
class Header:
    """What the first bytes of a shard say.

    Attributes:
        tensors: In order of their bytes.
        nbytes: Length of the header with its 8-byte prefix: the data begin here.
    """

    tensors: tuple[TensorRef, ...]
    nbytes: int


def read_header(file: str, file_nbytes: int, read: Callable[[int, int], bytes]) -> Header:
    """The checked header of a safetensors file.

    Args:
        file: Name for the refs and the errors.
        file_nbytes: Length of the whole file.
        read: ``read(offset, nbytes)`` gives that range of the file.

    Returns:
        The tensors, their offsets counted from the start of the file.

    Raises:
        HeaderError: Truncated, overlapping, gapped or absurd.
    """
    if file_nbytes < 8:
        raise _broken(file, "at least 8 bytes", f"{file_nbytes} bytes")
    first = read(0, 8)
    if first == LFS_POINTER[:8]:
        error = _broken(file, "a safetensors file", "a Git LFS pointer to one")
        error.hint = "git lfs pull"
        raise error
    (length,) = struct.unpack("<Q", first)
    if not 2 <= length <= MAX_HEADER_NBYTES:
        raise _broken(file, f"a header of 2 to {MAX_HEADER_NBYTES} bytes", f"{length} bytes")
    if 8 + length > file_nbytes:
        raise _broken(file, f"a file of at least {8 + length} bytes", f"{file_nbytes} bytes")
    raw = read(8, length)
    try:
        fields = parse_object(raw, file)
    except JsonError as error:
        raise _broken(file, "a JSON header", error.found or error.what) from error
    metadata = fields.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _broken(f"{file}: __metadata__", "texts under names", json.dumps(metadata)[:200])
    begin = 8 + length
    tensors = sorted(
        (_parse_entry(file, name, entry, begin) for name, entry in fields.items()),
        key=itemgetter(4, 5),  # offset, nbytes
    )
    position = begin
    for ref in tensors:
        if ref.offset != position:
            kind = "overlap" if ref.offset < position else "a gap"
            raise _broken(
                f"{file}: {ref.name}",
                f"data that begin at byte {position}",
                f"{kind}: they begin at byte {ref.offset}",
            )
        position += ref.nbytes
    if position != file_nbytes:
        raise _broken(file, f"a file of {position} bytes", f"{file_nbytes} bytes")
    return Header(tuple(tensors), begin)


def _broken(where: str, expected: str, found: str) -> HeaderError:
    return HeaderError(
        "a safetensors file is broken",
        where=where,
        expected=expected,
        found=found,
        hint="fetch that file again: it is truncated or damaged",
    )


def _are_counts(values: Iterable[Any]) -> bool:
    for value in values:  # noqa: SIM110 - a loop is faster than all(): there are 44,689 shapes
        if type(value) is not int or not 0 <= value < 2**63:
            return False
    return True


def _parse_entry(file: str, name: str, entry: Any, begin: int) -> TensorRef:
    where = f"{file}: {name}"
    if not isinstance(entry, dict) or entry.keys() != _ENTRY_KEYS:
        raise _broken(where, "dtype, shape and data_offsets", json.dumps(entry)[:200])
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_NBITS:
        raise _broken(where, "a safetensors dtype", json.dumps(dtype)[:200])
    is_shape = isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS
    if not is_shape or not _are_counts(shape):
        raise _broken(where, f"at most {MAX_DIMENSIONS} whole numbers", json.dumps(shape)[:200])
    if not (isinstance(offsets, list) and len(offsets) == 2 and _are_counts(offsets)):
        raise _broken(where, "data_offsets [begin, end]", json.dumps(offsets)[:200])
    offset, end = offsets
    if prod(shape) * DTYPE_NBITS[dtype] != (end - offset) * 8:
        raise _broken(
            where,
            f"{tensor_nbytes(dtype, tuple(shape))} bytes for {dtype} {shape}",
            f"{end - offset} bytes",
        )
    return TensorRef(name, dtype, tuple(shape), file, begin + offset, end - offset)


def build_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> tuple[bytes, int]:
    """The header of a shard to be written.

    Wide dtypes come first and names break ties, as in ``safetensors.serialize_file``: every tensor
    is then aligned to its element size, which a zero-copy ``view`` of torch needs.

    Args:
        tensors: ``(name, dtype, shape)``.

    Returns:
        The header's bytes with their length prefix, padded with spaces to a multiple of 8, and
        the length of the data behind it; ``read_header`` says where each tensor lies.
    """
    by_dtype: dict[str, list[tuple[str, str, tuple[int, ...]]]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor[1], []).append(tensor)
    ordered = [
        tensor
        for dtype in sorted(by_dtype, key=_DTYPE_RANK.__getitem__, reverse=True)
        for tensor in sorted(by_dtype[dtype], key=itemgetter(0))
    ]
    entries = ['{"__metadata__":{"format":"pt"}']
    end = 0
    known: dict[tuple[str, tuple[int, ...]], tuple[int, str]] = {}
    for name, dtype, shape in ordered:
        if (kind := (dtype, shape)) not in known:
            text = f':{{"dtype":"{dtype}","shape":[{",".join(map(str, shape))}],"data_offsets":['
            known[kind] = tensor_nbytes(dtype, shape), text
        nbytes, text = known[kind]
        begin = end
        end += nbytes
        entries.append(f"{_quoted(name)}{text}{begin},{end}]}}")
    data = ",".join(entries).encode() + b"}"
    data += b" " * (-len(data) % 8)
    return struct.pack("<Q", len(data)) + data, end
