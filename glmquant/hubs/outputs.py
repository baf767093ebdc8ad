"""What is to be written into a folder, and from where on the hub each of its bytes comes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from glmquant.fetched import PARTIAL_SHARD
from glmquant.header import Header, build_header, read_header
from glmquant.hubs.listing import RemoteFile
from glmquant.tensors import TensorRef

PART_NBYTES: Final = 32 << 20
"""So much is asked for at once, noted in the journal, and lost by a kill at most."""


class Part(NamedTuple):
    """A range that is asked for at once.

    Attributes:
        file: Where it is on the hub.
        begin: First byte there.
        offset: First byte in the output.
        nbytes: Its length.
    """

    file: RemoteFile
    begin: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Output:
    """A file to be.

    Attributes:
        name: In the folder.
        nbytes: Its length.
        key: What it is a copy of: another key means other bytes.
        remote: The file that it is a whole copy of; None for tensors taken out of several.
        header: What it has to begin with where it is a safetensors file.
        preamble: Bytes of our own that it begins with.
        ranges: Of a compact file: ``(file, begin, offset, nbytes)``, of any length.
    """

    name: str
    nbytes: int
    key: str
    remote: RemoteFile | None
    header: Header | None
    preamble: bytes = b""
    ranges: tuple[Part, ...] = ()

    def parts(self) -> Iterator[Part]:
        """All of it behind the preamble, in order, cut to ``PART_NBYTES``."""
        whole = (Part(self.remote, 0, 0, self.nbytes),) if self.remote else self.ranges
        for part in whole:
            for done in range(0, part.nbytes, PART_NBYTES):
                yield Part(
                    part.file,
                    part.begin + done,
                    part.offset + done,
                    min(PART_NBYTES, part.nbytes - done),
                )


def whole_output(file: RemoteFile, header: Header | None, commit: str | None) -> Output:
    """A whole copy of a file.

    Args:
        file: On the hub.
        header: As it was read there, of a safetensors file.
        commit: Of the listing: without a sum, another commit's file may have other bytes.
    """
    return Output(file.path, file.nbytes, key_of(file, commit), file, header)


def key_of(file: RemoteFile, commit: str | None) -> str:
    """What tells a file's bytes from others: the hub's sum, or else its length and the commit."""
    return file.sha256 or file.git_sha1 or f"{file.nbytes} bytes of {commit}"


def compact_output(
    tensors: Iterable[TensorRef], files: Mapping[str, RemoteFile], key: str
) -> Output:
    """A safetensors file of tensors out of several files.

    Args:
        tensors: As they lie on the hub.
        files: Path → file, for each that a tensor lies in.
        key: Names revision and selection.
    """
    by_name = {ref.name: ref for ref in tensors}
    preamble, data_nbytes = build_header(
        (ref.name, ref.dtype, ref.shape) for ref in by_name.values()
    )
    nbytes = len(preamble) + data_nbytes
    header = read_header(
        PARTIAL_SHARD, nbytes, lambda offset, length: preamble[offset : offset + length]
    )
    ranges: list[Part] = []
    for ref in header.tensors:
        there = by_name[ref.name]
        part = Part(files[there.file], there.offset, ref.offset, ref.nbytes)
        last = ranges[-1] if ranges else None
        if last and last.file == part.file and last.begin + last.nbytes == part.begin:
            ranges[-1] = last._replace(nbytes=last.nbytes + part.nbytes)
        else:
            ranges.append(part)
    kept = tuple(part for part in ranges if part.nbytes)
    return Output(PARTIAL_SHARD, nbytes, key, None, header, preamble, kept)
