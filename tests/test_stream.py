"""What is written is what was given, past the page cache or through it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glmquant.errors import StorageError
from glmquant.memory import PAGE_NBYTES, Memory
from glmquant.stream import STREAM_NBYTES, PageStream
from glmquant.writer import DIRECT_NBYTES, PartFile

WAYS = ("direct", "cached", "refused", "short")
"""Past the page cache; where that cannot be opened; where it is opened and refused; half done."""

LENGTHS = st.sampled_from(
    (0, 1, 8, 4095, 4096, 4097, 70_000, STREAM_NBYTES - 1, STREAM_NBYTES, 3_000_001)
)


def set_way(way: str, part: PartFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make direct writes of this file behave in a way."""
    direct = part._direct
    if way == "cached" and direct is not None:
        os.close(direct)
        part._direct = None
    pwrite = os.pwrite

    def changed(descriptor: int, data: Any, offset: int) -> int:
        if descriptor != direct:
            return pwrite(descriptor, data, offset)
        assert offset % PAGE_NBYTES == len(data) % PAGE_NBYTES == 0
        if way == "refused":
            raise OSError(errno.EINVAL, "invalid")
        return pwrite(descriptor, data[: len(data) // 2 // PAGE_NBYTES * PAGE_NBYTES], offset)

    if way in ("refused", "short"):
        monkeypatch.setattr(os, "pwrite", changed)


@pytest.mark.parametrize("way", WAYS)
@settings(
    derandomize=True,
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    pieces=st.lists(st.tuples(st.integers(0, 9000), st.lists(LENGTHS, max_size=3)), max_size=4),
    seed=st.integers(0, 255),
)
def test_pieces_anywhere_become_the_bytes_of_the_file(
    way: str,
    pieces: list[tuple[int, list[int]]],
    seed: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = bytearray()
    placed = []
    for gap, blocks in pieces:
        expected += bytes(gap)
        data = [bytes((seed + len(expected) + at) % 251 for at in range(7)) for _ in blocks]
        placed.append(
            (len(expected), [d * (n // 7) + d[: n % 7] for d, n in zip(data, blocks, strict=True)])
        )
        expected += b"".join(placed[-1][1])
    expected += bytes(max(0, DIRECT_NBYTES - len(expected)))
    path = tmp_path / "a.safetensors"
    with monkeypatch.context() as patch, PartFile(path, len(expected)) as part:
        set_way(way, part, patch)
        stream = PageStream(part, Memory())
        for offset, parts in placed:
            stream.move_to(offset, max(map(len, parts), default=0))
            for each in parts:
                stream.room(len(each))[:] = each
                stream.put(len(each))
        stream.finish()
        part.commit()
    assert path.read_bytes() == expected


def test_whole_pages_of_a_large_file_go_past_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PartFile(tmp_path / "a", 8 << 20) as part:
        direct = part._direct
        if direct is None:
            pytest.skip("the file system of the temporary folder knows no direct writes")
        written: dict[int, int] = {}
        pwrite = os.pwrite

        def counted(descriptor: int, data: Any, offset: int) -> int:
            written[descriptor] = written.get(descriptor, 0) + len(data)
            return pwrite(descriptor, data, offset)

        monkeypatch.setattr(os, "pwrite", counted)
        stream = PageStream(part, Memory())
        stream.move_to(100, 1 << 20)
        for _ in range(7):
            stream.room(1 << 20)[:] = bytes(1 << 20)
            stream.put(1 << 20)
        stream.finish()
        assert written == {direct: (7 << 20) - PAGE_NBYTES}
        part.commit()
    del written[direct]
    assert sum(written.values()) == PAGE_NBYTES  # both ends, once nothing is under way


def test_pieces_that_adjoin_are_written_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    with PartFile(tmp_path / "a", 8 << 20) as part:
        pwrite = os.pwrite

        def counted(descriptor: int, data: Any, offset: int) -> int:
            calls.append(offset)
            return pwrite(descriptor, data, offset)

        monkeypatch.setattr(os, "pwrite", counted)
        stream = PageStream(part, Memory())
        for number in range(64):
            stream.move_to(number * 10_000, 10_000)
            stream.put(10_000)
        stream.finish()
        part.commit()
    assert len(calls) == 2


def test_a_disk_that_fails_while_writing_directly_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*call: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with PartFile(tmp_path / "a", DIRECT_NBYTES) as part:
        monkeypatch.setattr(os, "pwrite", failing)
        stream = PageStream(part, Memory())
        stream.move_to(0, PAGE_NBYTES)
        stream.put(PAGE_NBYTES)
        with pytest.raises(StorageError, match="cannot be written"):
            stream.finish()
