"""The measured rate: kept where it says something, believed where it makes sense."""

from __future__ import annotations

import json
import platform
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from glmquant.observer import Observer
from glmquant.rates import (
    LEAST_NBYTES,
    RATE_FILES,
    REFERENCES,
    Rate,
    RateMeter,
    load_rate,
    store_rate,
)

OURS = Rate(1_900_000_000, 8, platform.node(), 714_000_000_000, "2026-11-20")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own: the file of the rate in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache/glmquant").mkdir(parents=True)
    return tmp_path / "cache/glmquant" / RATE_FILES[False]


def test_a_stored_rate_is_loaded_again() -> None:
    assert load_rate() is None
    store_rate(OURS)
    assert load_rate() == OURS
    store_rate(replace(OURS, workers=2))
    assert load_rate() == replace(OURS, workers=2)


def test_the_rate_of_a_search_is_kept_apart() -> None:
    store_rate(OURS)
    assert load_rate(is_searched=True) is None
    slower = replace(OURS, nbytes_per_second=300_000_000, is_searched=True)
    store_rate(slower)
    assert (load_rate(), load_rate(is_searched=True)) == (OURS, slower)


@pytest.mark.parametrize(
    "change",
    [
        {"nbytes_per_second": 0},
        {"nbytes_per_second": -1},
        {"nbytes_per_second": 1e9},
        {"nbytes_per_second": 10**30},
        {"nbytes_per_second": True},
        {"nbytes_per_second": "fast"},
        {"workers": 0},
        {"workers": None},
        {"nbytes": "many"},
        {"nbytes": -5},
        {"day": "yesterday"},
        {"day": 20261120},
        {"day": "\x1b[31m2026-11-20"},
        {"machine": "another host"},
        {"machine": None},
        {"more": 1},
        {"is_searched": True},
        {"is_searched": 0},
    ],
)
def test_a_rate_that_makes_no_sense_is_ignored(change: dict[str, object], cache: Path) -> None:
    cache.write_text(json.dumps(asdict(OURS) | change))
    assert load_rate() is None


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"workers": 1e999}']
)
def test_a_corrupt_cache_is_ignored(data: bytes, cache: Path) -> None:
    cache.write_bytes(data)
    assert load_rate() is None


def test_a_cache_that_others_may_write_to_is_ignored(cache: Path) -> None:
    store_rate(OURS)
    cache.chmod(0o666)
    assert load_rate() is None


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    store_rate(OURS)
    assert load_rate() is None


def test_a_meter_measures_what_was_quantized_and_passes_everything_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[object] = []

    class Listener(Observer):
        def start(self, doing: str, done_nbytes: int, total_nbytes: int) -> None:
            heard.append((doing, done_nbytes, total_nbytes))

        def advance(self, nbytes: int) -> None:
            heard.append(nbytes)

        def finish_shard(self, file: str, nbytes: int) -> None:
            heard.append((file, nbytes))

    clock = iter([100.0, 104.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    meter = RateMeter(Listener())
    meter.start("compare", 0, 10**9)
    meter.advance(10**9)
    meter.start("quantize", 5, 2 * LEAST_NBYTES)
    meter.advance(LEAST_NBYTES)
    meter.advance(LEAST_NBYTES)
    meter.finish_shard("a", 7)
    rate = meter.measured(3)
    assert rate is not None
    assert (rate.nbytes_per_second, rate.workers, rate.nbytes) == (
        2 * LEAST_NBYTES // 4,
        3,
        2 * LEAST_NBYTES,
    )
    assert heard == [
        ("compare", 0, 10**9),
        10**9,
        ("quantize", 5, 2 * LEAST_NBYTES),
        LEAST_NBYTES,
        LEAST_NBYTES,
        ("a", 7),
    ]


def test_too_little_work_and_comparing_give_no_rate() -> None:
    meter = RateMeter(Observer())
    assert meter.measured(1) is None
    meter.start("quantize", 0, LEAST_NBYTES)
    meter.advance(LEAST_NBYTES - 1)
    assert meter.measured(1) is None
    meter.start("compare", 0, LEAST_NBYTES)
    meter.advance(LEAST_NBYTES)
    assert meter.measured(1) is None


def test_a_meter_counts_on_many_threads() -> None:
    meter = RateMeter(Observer())
    meter.start("quantize", 0, 8 * LEAST_NBYTES)

    def advance() -> None:
        for _ in range(1000):
            meter.advance(LEAST_NBYTES // 1000)

    threads = [threading.Thread(target=advance) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = meter.measured(8)
    assert rate is not None
    assert rate.nbytes == 8 * LEAST_NBYTES


def test_the_reference_names_its_machine() -> None:
    assert all("Xeon" in rate.machine for rate in REFERENCES.values())
    assert REFERENCES[False].nbytes_per_second > REFERENCES[True].nbytes_per_second > 0
