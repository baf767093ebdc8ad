"""The compiled kernels and where they are kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import xxhash

from glmquant.kernels import fast, machine_code
from glmquant.usercache import cache_dir, read_cached, write_cached
from tests.test_execute import ENV


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The machine code of this machine; the cache is an empty folder from then on."""
    fast.prepare()
    kept = read_cached(machine_code._cache_name())
    code = kept[16:] if kept else machine_code._compile()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return code


def prepare(monkeypatch: pytest.MonkeyPatch, packed: bytes) -> int:
    """Load the kernels as a fresh process would; gives how often they were compiled."""
    compiled = []

    def compile_now() -> bytes:
        compiled.append(1)
        return packed

    monkeypatch.setattr(machine_code, "_compile", compile_now)
    monkeypatch.setattr(machine_code, "_compile_elsewhere", machine_code.keep)
    kernels = machine_code.kernels.__wrapped__()
    assert set(kernels.quantize) == set(kernels.magnitude) == {16, 32}
    return len(compiled)


def test_what_was_compiled_once_is_loaded_from_the_cache(
    packed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prepare(monkeypatch, packed) == 1
    assert prepare(monkeypatch, packed) == 0


@pytest.mark.parametrize(
    "damage", [b"", b"x", b"x" * 16, b"x" * 5000, xxhash.xxh3_128(b"").digest()]
)
def test_a_torn_cache_is_compiled_anew(
    packed: bytes, damage: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(monkeypatch, packed)
    (kept,) = cache_dir().iterdir()
    kept.write_bytes(damage)
    assert prepare(monkeypatch, packed) == 1
    assert kept.read_bytes()[16:] == packed


def test_another_processor_has_its_own_code(packed: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    name = machine_code._cache_name()
    monkeypatch.setattr(machine_code, "_processor", lambda: ("triple", "other", "+nothing"))
    assert machine_code._cache_name() != name


def test_a_cache_that_cannot_be_written_costs_only_time(
    packed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "glmquant").write_text("a file where the folder should be")
    assert prepare(monkeypatch, packed) == 2
    assert prepare(monkeypatch, packed) == 2


@pytest.mark.slow
def test_where_nothing_can_be_kept_each_process_compiles(tmp_path: Path) -> None:
    (tmp_path / "glmquant").write_text("a file where the folder should be")
    script = (
        "import sys; import numpy as np; from tests.rows import quantize_rows\n"
        "rows = quantize_rows(np.array([[0x3F80, 0xBF00]], '<u2'), 'BF16')\n"
        "print(rows.weight.tolist(), 'numba' in sys.modules)"
    )
    env = {**ENV, "XDG_CACHE_HOME": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert ran.stdout == "[[127, -64]] True\n"


@pytest.mark.slow
def test_no_process_that_quantizes_imports_numba(tmp_path: Path) -> None:
    script = (
        "import sys; import numpy as np; from tests.rows import quantize_rows\n"
        "rows = quantize_rows(np.array([[0x3F80, 0xBF00]], '<u2'), 'BF16')\n"
        "print(rows.weight.tolist(), 'numba' in sys.modules)"
    )
    env = {**ENV, "XDG_CACHE_HOME": str(tmp_path)}
    words = [sys.executable, "-c", script]
    said = [subprocess.run(words, env=env, capture_output=True, text=True) for _ in range(2)]
    assert [ran.stdout for ran in said] == ["[[127, -64]] False\n"] * 2
    assert len(list((tmp_path / "glmquant").iterdir())) == 1


def test_the_cache_follows_the_users_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "glmquant"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache/glmquant"


def test_what_is_cached_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert read_cached("a") is None
    write_cached("a", b"one")
    write_cached("a", b"two")
    assert read_cached("a") == b"two"
    assert [path.name for path in cache_dir().iterdir()] == ["a"]


def test_a_file_that_others_may_write_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    write_cached("a", b"one")
    (cache_dir() / "a").chmod(0o666)
    assert read_cached("a") is None


def test_a_pipe_in_the_cache_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache_dir().mkdir()
    os.mkfifo(cache_dir() / "a", 0o600)
    assert read_cached("a") is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    write_cached("a", b"one")
    os.chown(cache_dir() / "a", 12345, -1)
    assert read_cached("a") is None
