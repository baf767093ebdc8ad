"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from glmquant.errors import DiskSpaceError
from glmquant.writer import DIRECT_NBYTES, PartFile


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_file_that_cannot_be_allocated_is_a_full_disk_and_leaves_nothing(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, nbytes: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("glmquant.writer._allocate", full)
    with pytest.raises(DiskSpaceError):
        PartFile(tmp_path / "a", DIRECT_NBYTES)
    assert list(tmp_path.iterdir()) == []


def test_a_small_file_is_neither_allocated_nor_opened_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glmquant.writer._allocate", lambda *call: pytest.fail(str(call)))
    with PartFile(tmp_path / "a", DIRECT_NBYTES - 1) as part:
        assert part._direct is None
