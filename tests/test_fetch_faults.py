"""``glmquant fetch`` against a hub, a line and a disk that fail: the same bytes, or an error."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from glmquant.fetched import MARKER_FILE
from glmquant.hubs import fetch as fetch_module
from glmquant.hubs import prospect
from tests import hub_protocols, hub_repos, hub_server
from tests.certificates import make_certificates
from tests.conftest import Ran, folder_bytes, run_glmquant
from tests.fetching import (
    NAME,
    PART_NBYTES,
    PROTOCOLS,
    SHARD,
    TOKENS,
    assert_nothing_wrong,
    assert_whole,
    build_repo,
    finished,
    random_faults,
    set_head,
    set_parts,
    shard_of,
    visible,
    words,
)
from tests.hub import Fault, Hub
from tests.hub_protocols import Asking, File, Page

ROOT = Path(__file__).parent.parent
SECRET = "secret-of-the-hub-7731"


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small parts, short pauses, and none of the user's caches, tokens and proxies."""
    set_parts(PART_NBYTES, monkeypatch.setattr)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    for name in list(os.environ):
        if name in TOKENS.values() or name.lower().endswith("_proxy") or name.startswith("HF_"):
            monkeypatch.delenv(name)
    for name in ("MODELSCOPE_CACHE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that tests leave as it is."""
    return build_repo(tmp_path_factory.mktemp("hub") / "repo").folder


@pytest.fixture
def own_repo(tmp_path: Path) -> Path:
    """A repository that a test may change."""
    return build_repo(tmp_path / "repo").folder


@pytest.fixture
def hub(repo: Path) -> Iterator[Hub]:
    with Hub({NAME: repo}) as hub:
        yield hub


@pytest.fixture
def when_planned(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """Has something done once between the plan and the first byte of a file."""

    def arrange(act: Callable[[], Any]) -> None:
        real = prospect.require_room
        left = [act]

        def require_room(plan: Any) -> None:
            real(plan)
            if left:
                left.pop()()

        monkeypatch.setattr(fetch_module, "require_room", require_room)

    return arrange


WhenPlanned = Callable[[Callable[[], Any]], None]


def fetch(
    hub: Hub, folder: Path, *more: object, protocol: str = "modelscope", stall: float = 2
) -> Ran:
    return run_glmquant(*words(hub, folder, protocol, "--retries", 6, "--stall", stall, *more))


def child(part_nbytes: int, line: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.fetching", str(part_nbytes), *line],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(is_so: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Until something is so, or the process has ended."""
    while process.poll() is None and not is_so():
        time.sleep(0.002)


def flip(path: Path, at: int, *, keep_time: bool = False) -> None:
    """Invert a byte."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 0xFF]))
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


# Faults of the hub and of the line, one kind at a time

AT = 3 * PART_NBYTES + 100

PASSING = [
    Fault("cut", SHARD, 3, at=0),
    Fault("cut", SHARD, 3, at=5000),
    Fault("cut", "config.json", 3, at=50),
    Fault("flip", SHARD, 1, at=AT),
    Fault("flip", SHARD, 1, at=20),
    Fault("flip", "vocabulary.txt", 1, at=9000),
    Fault("flip", "config.json", 1, at=40),
    Fault("flip", "index.json", 1, at=400),
    *(Fault(kind, SHARD, times) for kind in ("norange", "wrongrange", "bare") for times in (1, 3)),
    *(Fault("status", SHARD, 3, status=status) for status in (401, 403, 404, 410, 500, 502, 503)),
    Fault("status", SHARD, 2, status=429, headers={"Retry-After": "0.1"}),
    Fault("status", SHARD, 2, status=503, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    *(Fault("door", SHARD, 3, status=status) for status in (403, 410, 429, 500, 502, 503)),
    Fault("status", "config.json", 3, status=503),
    Fault("short", SHARD, 3, at=AT),
    Fault("short", "vocabulary.txt", 3, at=100),
    Fault("empty", SHARD, 3),
    Fault("empty", "vocabulary.txt", 3),
    Fault("html", SHARD, 3),
    Fault("html", "vocabulary.txt", 3),
    Fault("gzip", SHARD, 3),
    Fault("gzip", "vocabulary.txt", 3),
    Fault("hang", SHARD, 2, at=0),
    Fault("hang", SHARD, 2, at=3000),
    Fault("slow", SHARD, 3, bps=100_000),
    Fault("delay", SHARD, 3, seconds=0.1),
    Fault("delay", SHARD, 1, seconds=0.8),
    Fault("expire", SHARD, 3, seconds=0),
    Fault("redirect", SHARD, 3),
    Fault("loop", SHARD, 3),
]


def name_of(value: object) -> str | None:
    if not isinstance(value, Fault):
        return None
    status = str(value.status) if value.kind in ("status", "door", "api") else ""
    place = "" if value.match == SHARD else value.match
    parts = [value.kind, status, f"at{value.at}" if value.at else "", place, f"x{value.times}"]
    return "-".join(part for part in parts if part)


@pytest.mark.parametrize(
    ("fault", "phase"),
    [(each, "transfer") for each in PASSING]
    + [(each, "plan") for each in PASSING if each.kind == "flip"]
    + [(each, "plan") for each in PASSING[::3] if each.kind != "flip"],
    ids=name_of,
)
def test_a_fault_that_passes_is_got_over(
    hub: Hub, repo: Path, tmp_path: Path, when_planned: WhenPlanned, fault: Fault, phase: str
) -> None:
    fault = dataclasses.replace(fault)
    if phase == "plan":
        hub.faults.append(fault)
    else:
        when_planned(lambda: hub.faults.append(fault))
    protocol = PROTOCOLS[PASSING.index(fault) % 3] if fault in PASSING else "modelscope"
    ran = fetch(hub, tmp_path / "out", protocol=protocol, stall=0.5)
    assert ran.exit_code == 0, ran.stderr
    assert_whole(tmp_path / "out", repo)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", ["api", "api-json", "api-cut"])
def test_a_listing_that_fails_for_a_while_is_asked_for_again(
    hub: Hub, repo: Path, tmp_path: Path, protocol: str, kind: str
) -> None:
    hub.faults.append(Fault(kind, times=3, status=502))
    assert fetch(hub, tmp_path / "out", protocol=protocol).exit_code == 0
    assert_whole(tmp_path / "out", repo)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "fault",
    [
        Fault("cut", SHARD, -1, at=5000),
        Fault("norange", SHARD, -1),
        Fault("wrongrange", SHARD, -1),
        Fault("norange", "", -1),
        Fault("slow", SHARD, -1, bps=500_000),
        Fault("delay", SHARD, -1, seconds=0.02),
        Fault("redirect", "", -1),
        Fault("expire", SHARD, 12, seconds=0),
    ],
    ids=name_of,
)
def test_a_fault_that_stays_and_can_be_lived_with_costs_no_byte(
    hub: Hub, repo: Path, tmp_path: Path, when_planned: WhenPlanned, fault: Fault, protocol: str
) -> None:
    when_planned(lambda: hub.faults.append(dataclasses.replace(fault)))
    ran = fetch(hub, tmp_path / "out", "--retries", 20, protocol=protocol)
    assert ran.exit_code == 0, ran.stderr
    assert_whole(tmp_path / "out", repo)


STAYING = [
    (Fault("cut", SHARD, at=0), "failed 3 times in a row"),
    (Fault("hang", SHARD, at=0), "failed 3 times in a row"),
    (Fault("flip", SHARD, at=AT), "does not have the sum that the hub lists"),
    (Fault("flip", "vocabulary.txt", at=9000), "does not have the sum that the hub lists"),
    (Fault("status", SHARD, status=401), "HTTP 401"),
    (Fault("status", SHARD, status=403), "HTTP 403"),
    (Fault("status", SHARD, status=404), "HTTP 404"),
    (Fault("status", SHARD, status=410), "HTTP 410"),
    (Fault("status", SHARD, status=429, headers={"Retry-After": "0"}), "HTTP 429"),
    (Fault("status", SHARD, status=500), "HTTP 500"),
    (Fault("status", SHARD, status=503), "HTTP 503"),
    (Fault("door", SHARD, status=401), "the hub refuses"),
    (Fault("door", SHARD, status=403), "HTTP 403"),
    (Fault("door", SHARD, status=404), "the hub lists a file that it does not have"),
    (Fault("door", SHARD, status=410), "HTTP 410"),
    (Fault("door", SHARD, status=429), "HTTP 429"),
    (Fault("door", SHARD, status=500), "HTTP 500"),
    (Fault("short", SHARD, at=AT), "not as long as the hub lists"),
    (Fault("empty", SHARD), "failed 3 times in a row"),
    (Fault("html", SHARD), "failed 3 times in a row"),
    (Fault("gzip", SHARD), "the server packed the body"),
    (Fault("delay", SHARD, seconds=1.5), "gave nothing"),
    (Fault("expire", SHARD, seconds=-1), "HTTP 403"),
    (Fault("loop", SHARD), "in circles"),
]


@pytest.mark.parametrize(
    ("fault", "text", "phase"),
    [(*each, "transfer") for each in STAYING]
    + [(*each, "plan") for each in STAYING[::3] if each[0].kind != "flip"],
    ids=name_of,
)
def test_a_fault_that_stays_ends_the_run_with_its_name(
    hub: Hub,
    repo: Path,
    tmp_path: Path,
    when_planned: WhenPlanned,
    fault: Fault,
    text: str,
    phase: str,
) -> None:
    fault = dataclasses.replace(fault, times=-1)
    if phase == "plan":
        hub.faults.append(fault)
    else:
        when_planned(lambda: hub.faults.append(fault))
    protocol = PROTOCOLS[len(name_of(fault) or "") % 3]
    ran = fetch(hub, tmp_path / "out", "--retries", 3, protocol=protocol, stall=0.3)
    message = " ".join(ran.stderr.split())
    assert ran.exit_code == 1, ran.stderr
    assert text in message and "Traceback" not in message
    assert fault.match in message
    assert_nothing_wrong(tmp_path / "out", repo)
    assert not any(fault.match in name for name in finished(tmp_path / "out"))
    hub.faults.clear()
    assert fetch(hub, tmp_path / "out", protocol=protocol).exit_code == 0
    assert_whole(tmp_path / "out", repo)


# A server that gives no ranges while others of a file's parts are under way


def test_parts_under_way_do_not_disturb_a_file_that_comes_in_one_stream(
    hub: Hub, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real, is_late = shard_of(repo), hub_server.part_of, threading.Event()

    def part_of(nbytes: int, wanted: str | None) -> hub_server.Body:
        if nbytes == path.stat().st_size and wanted:
            if wanted == f"bytes=0-{PART_NBYTES - 1}":
                return hub_server.Body(200, 0, nbytes, {})
            if wanted.startswith(f"bytes={2 * PART_NBYTES}-") and not is_late.is_set():
                is_late.set()
                time.sleep(0.7)  # all of the file has come meanwhile, if nobody waits
        return real(nbytes, wanted)

    assert fetch(hub, tmp_path / "out").exit_code == 0
    (tmp_path / "out" / path.name).unlink()  # so that all connections are at this file
    monkeypatch.setattr(hub_server, "part_of", part_of)
    ran = fetch(hub, tmp_path / "out")
    assert is_late.is_set() and "gives no ranges" in ran.stderr
    assert ran.exit_code == 0, ran.stderr
    assert_whole(tmp_path / "out", repo)


# Tensors taken out of files


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_ranges_that_no_sum_covers_are_compared_where_asked_for(
    hub: Hub, repo: Path, tmp_path: Path, when_planned: WhenPlanned, protocol: str
) -> None:
    more = ("--only", "layers=1,3", "--verify-ranges")
    assert fetch(hub, tmp_path / "good", *more, protocol=protocol).exit_code == 0
    data = finished(tmp_path / "good")["glmquant-partial.safetensors"]
    sample = data[-3000:-2900]
    at = next(
        (path.name, found)
        for path in sorted(repo.glob("*.safetensors"))
        if (found := path.read_bytes().find(sample)) >= 0
    )
    when_planned(lambda: hub.faults.append(Fault("flip", at[0], 1, at=at[1])))
    ran = fetch(hub, tmp_path / "out", *more, protocol=protocol)
    assert (ran.exit_code, "other bytes the second time" in ran.stderr) == (1, True), ran.stderr
    assert "glmquant-partial.safetensors" not in finished(tmp_path / "out")
    assert fetch(hub, tmp_path / "out", *more, protocol=protocol).exit_code == 0
    assert finished(tmp_path / "out")["glmquant-partial.safetensors"] == data


def test_tensors_are_not_taken_from_a_server_without_ranges(
    hub: Hub, tmp_path: Path, when_planned: WhenPlanned
) -> None:
    when_planned(lambda: hub.faults.append(Fault("norange", "safetensors", -1)))
    ran = fetch(hub, tmp_path / "out", "--only", "layers=1")
    assert (ran.exit_code, "gives no ranges" in ran.stderr) == (1, True)
    assert not list((tmp_path / "out").glob("*.safetensors"))


# The disk changes bytes


@pytest.fixture
def begun(
    hub: Hub, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when_planned: WhenPlanned
) -> Path:
    """A folder in which a shard lacks its last part, and all that comes after it."""
    path, real = shard_of(repo), hub_server.part_of
    last = (path.stat().st_size - 1) // PART_NBYTES * PART_NBYTES

    def part_of(nbytes: int, wanted: str | None) -> hub_server.Body:
        if nbytes == path.stat().st_size and wanted and f"bytes={last}-" in wanted:
            return hub_server.Body(416, 0, 0, {"Content-Range": f"bytes */{nbytes}"})
        return real(nbytes, wanted)

    with monkeypatch.context() as patch:
        patch.setattr(hub_server, "part_of", part_of)
        ran = fetch(hub, tmp_path / "out", "--workers", 1, "--retries", 2)
    assert (ran.exit_code, "HTTP 416" in ran.stderr) == (1, True), ran.stderr
    part = tmp_path / "out" / f"{path.name}.part"
    assert part.read_bytes()[:last] == path.read_bytes()[:last]
    hub.sent.clear()
    return tmp_path / "out"


def test_what_came_before_is_not_asked_for_again(hub: Hub, repo: Path, begun: Path) -> None:
    path = shard_of(repo)
    last = path.stat().st_size % PART_NBYTES or PART_NBYTES
    assert fetch(hub, begun).exit_code == 0
    assert_whole(begun, repo)
    assert hub.nbytes_sent(path.name) == path.stat().st_size + last  # all of it for its header


@pytest.mark.parametrize("keep_time", [True, False])
def test_a_byte_that_the_disk_changed_in_a_part_is_fetched_again(
    hub: Hub, repo: Path, begun: Path, keep_time: bool
) -> None:
    path = shard_of(repo)
    flip(begun / f"{path.name}.part", AT, keep_time=keep_time)
    assert fetch(hub, begun).exit_code == 0
    assert_whole(begun, repo)
    again = hub.nbytes_sent(path.name) - path.stat().st_size
    assert again == PART_NBYTES + (path.stat().st_size % PART_NBYTES or PART_NBYTES)


def test_a_part_file_that_is_gone_or_cut_off_is_begun_anew(
    hub: Hub, repo: Path, begun: Path
) -> None:
    part = begun / f"{shard_of(repo).name}.part"
    os.truncate(part, PART_NBYTES)
    assert fetch(hub, begun).exit_code == 0
    assert_whole(begun, repo)


def test_a_part_file_that_is_gone_is_not_counted(hub: Hub, repo: Path, begun: Path) -> None:
    def to_fetch() -> Any:
        return fetch(hub, begun, "--dry-run", "--json").events[-1]["to_fetch_nbytes"]

    before = to_fetch()
    (begun / f"{shard_of(repo).name}.part").unlink()
    assert to_fetch() > before
    assert fetch(hub, begun).exit_code == 0
    assert_whole(begun, repo)


def test_a_journal_that_makes_no_sense_costs_bytes_and_no_more(
    hub: Hub, repo: Path, begun: Path
) -> None:
    journal = begun / ".glmquant" / "fetch.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    draw = random.Random(5)
    for _ in range(40):
        lines.insert(draw.randrange(len(lines)), draw.randbytes(draw.randrange(60)) + b"\n")
    lines += [b'{"part": -1, "of": 7, "key": [], "xxh3": null}\n', b"[]\n", b'{"done": "a"}\n']
    lines += [line.replace(b'"part": 1,', b'"part": 99999,') for line in lines]
    journal.write_bytes(b"".join(lines) + b'{"part": 3, "of"')
    assert fetch(hub, begun).exit_code == 0
    assert_whole(begun, repo)


@pytest.mark.parametrize("keep_time", [True, False])
def test_a_byte_that_the_disk_changed_in_a_whole_file_is_found_by_check(
    hub: Hub, repo: Path, tmp_path: Path, keep_time: bool
) -> None:
    out = tmp_path / "out"
    assert fetch(hub, out).exit_code == 0
    assert run_glmquant("fetch", "--check", out).exit_code == 0
    name = shard_of(repo).name
    flip(out / name, AT, keep_time=keep_time)
    ran = run_glmquant("fetch", "--check", out, "--json")
    assert ran.exit_code == 1
    assert [fault["file"] for fault in ran.events[-1]["faults"]] == [name]
    hub.sent.clear()
    ran = fetch(hub, out)
    assert ran.exit_code == 0
    if keep_time:  # nothing tells it
        assert run_glmquant("fetch", "--check", out).exit_code == 1
        return
    assert_whole(out, repo)
    assert hub.nbytes_sent("assets") == 0
    assert run_glmquant("fetch", "--check", out).exit_code == 0


# Several faults at once


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("seed", range(8))
def test_faults_at_random_end_in_the_same_bytes_or_an_error(
    hub: Hub,
    repo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    when_planned: WhenPlanned,
    seed: int,
    protocol: str,
) -> None:
    set_head(2000, monkeypatch.setattr)
    faults = random_faults(100 * PROTOCOLS.index(protocol) + seed, repo)
    told = str(faults)
    if seed % 2:
        when_planned(lambda: hub.faults.extend(faults))
    else:
        hub.faults.extend(faults)
    out = tmp_path / "out"
    ran = fetch(hub, out, protocol=protocol, stall=0.5)
    if ran.exit_code == 0:
        assert_whole(out, repo)
    else:
        assert (ran.exit_code, "Traceback" in ran.stderr) == (1, False)
        assert "hint:" in ran.stderr, told
        assert_nothing_wrong(out, repo)
    hub.faults.clear()
    ran = fetch(hub, out, protocol=protocol)
    assert ran.exit_code == 0, ran.stderr
    assert_whole(out, repo)


# Kills


def plan_nbytes(hub: Hub, folder: Path) -> int:
    """What the hub sends for a plan."""
    before = hub.nbytes_sent()
    assert fetch(hub, folder, "--dry-run").exit_code == 0
    return hub.nbytes_sent() - before


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_goes_on_where_it_was(tmp_path: Path) -> None:
    part_nbytes, workers, kills = 1 << 16, 4, 12
    repo = build_repo(
        tmp_path / "repo", shard_nbytes=1_500_000, hidden_size=256, moe_intermediate_size=200
    ).folder
    out = tmp_path / "out"
    total = sum(map(len, visible(repo).values()))
    draw = random.Random(8)
    with Hub({NAME: repo}) as hub:
        once = plan_nbytes(hub, out)
        hub.sent.clear()
        hub.faults.append(Fault("slow", "safetensors", -1, bps=1.5e6))
        line = words(hub, out, "modelscope", "--retries", 5)
        for number in range(kills):
            begin = hub.nbytes_sent()
            share = (total - total * number // (kills + 2)) // (kills + 2)
            end = begin + (draw.randrange(once) if number % 5 == 4 else once + share)
            process = child(part_nbytes, line)
            wait_until(lambda: hub.nbytes_sent() >= end, process)  # noqa: B023
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            process.communicate()
            assert_nothing_wrong(out, repo)
        hub.faults.clear()
        process = child(part_nbytes, line)
        text = process.communicate(timeout=60)
        assert process.returncode == 0, text
        sent = hub.nbytes_sent()
    assert_whole(out, repo)
    assert sent <= total + (kills + 1) * (once + workers * part_nbytes)
    assert sent - (kills + 1) * once < 2 * total


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_end_says_how_it_goes_on(
    hub: Hub, repo: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    hub.faults.append(Fault("slow", "safetensors", -1, bps=1e4))
    line = [sys.executable, "-m", "glmquant", *words(hub, out)]
    process = subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: bool(out.is_dir() and list(out.rglob("*.part"))), process)
    process.send_signal(number)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 130, stderr
    assert "interrupted: the same command goes on where this one stopped" in stderr
    assert "Traceback" not in stderr
    hub.faults.clear()
    assert fetch(hub, out).exit_code == 0
    assert_whole(out, repo)


@pytest.mark.parametrize("is_gone", [False, True], ids=["full", "gone"])
def test_a_run_whose_progress_nobody_can_read_goes_on(
    hub: Hub, repo: Path, tmp_path: Path, is_gone: bool
) -> None:
    out = tmp_path / "out"
    hub.faults.append(Fault("status", "safetensors", 2, status=500))
    line = [sys.executable, "-m", "glmquant", *words(hub, out)]
    reader, stderr = os.pipe()
    if not is_gone:
        os.close(stderr)
        stderr = os.open("/dev/full", os.O_WRONLY)
    os.close(reader)
    ran = subprocess.run(
        line, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True, check=False, timeout=60
    )
    refused = subprocess.run([*line, "--stall", "x"], cwd=ROOT, stderr=stderr, check=False)
    os.close(stderr)
    assert (ran.returncode, refused.returncode) == (0, 2)
    assert ran.stdout.startswith("fetched: ")
    assert_whole(out, repo)


def test_two_fetches_into_one_folder_do_not_meet(
    hub: Hub, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "out", hub_server.part_of
    is_begun, may_go_on = threading.Event(), threading.Event()

    def part_of(nbytes: int, wanted: str | None) -> hub_server.Body:
        if wanted and wanted != f"bytes=0-{nbytes - 1}":  # no header: the plan is made
            is_begun.set()
            may_go_on.wait(60)
        return real(nbytes, wanted)

    monkeypatch.setattr(hub_server, "part_of", part_of)
    first = child(PART_NBYTES, words(hub, out, "hf"))
    wait_until(is_begun.is_set, first)
    second = fetch(hub, out, protocol="hf")
    assert not visible(out).keys() & {path.name for path in repo.glob("*.safetensors")}
    may_go_on.set()
    text = first.communicate(timeout=60)
    assert first.returncode == 0, text
    assert (second.exit_code, "another fetch writes into this folder" in second.stderr) == (1, True)
    assert_whole(out, repo)


# Tokens


def token_log(hub: Hub) -> set[tuple[str, str | None]]:
    return {(asked.origin, asked.token) for asked in hub.log}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "faults",
    [
        [],
        [Fault("redirect", "", -1)],
        [Fault("loop", SHARD, 2), Fault("redirect", SHARD, 2), Fault("expire", SHARD, 3)],
        [Fault("door", SHARD, -1, status=403)],
        [Fault("door", SHARD, -1, status=401)],
        [Fault("status", SHARD, -1, status=401)],
        [Fault("api", "", -1, status=500)],
        [Fault("api", "", -1, status=403)],
        [Fault("api-json", "", -1)],
    ],
    ids=lambda faults: "+".join(f"{fault.kind}" for fault in faults) or "none",
)
def test_a_token_reaches_the_hub_alone_and_is_written_nowhere(
    repo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    faults: list[Fault],
    protocol: str,
) -> None:
    for variable in TOKENS.values():
        monkeypatch.setenv(variable, "another-hubs-token")
    monkeypatch.setenv(TOKENS[protocol], SECRET)
    monkeypatch.setenv("GLMQUANT_DEBUG", "1")
    out = tmp_path / "out"
    with Hub({NAME: repo}, token=SECRET) as hub:
        hub.faults += [dataclasses.replace(fault) for fault in faults]
        ran = fetch(hub, out, "--retries", 9, protocol=protocol)
        may_fail = any(fault.times == -1 and fault.kind != "redirect" for fault in faults)
        assert ran.exit_code == may_fail, ran.stderr
        cdn = {(asked.origin, asked.token) for asked in hub.log if asked.origin != "hub"}
        assert {token for origin, token in token_log(hub) if origin == "hub"} == {SECRET}
        assert cdn <= {("cdn", None)}
        assert cdn or "api" in faults[0].kind or faults[0].kind == "door"
    everything = b"".join(folder_bytes(tmp_path).values()) if tmp_path.is_dir() else b""
    told = ran.stdout.encode() + ran.stderr.encode()
    for secret in (SECRET.encode(), b"another-hubs-token"):
        assert secret not in everything
        assert secret not in told


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_token_that_the_hub_does_not_take_is_named_by_its_variable(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    monkeypatch.setenv(TOKENS[protocol], "an-old-token")
    with Hub({NAME: repo}, token=SECRET) as hub:
        ran = fetch(hub, tmp_path / "out", protocol=protocol)
    assert (ran.exit_code, "the hub refuses" in ran.stderr) == (1, True)
    assert TOKENS[protocol] in ran.stderr and "an-old-token" not in ran.stderr


# Room


def test_too_little_room_is_seen_before_the_first_byte_of_a_weight(
    hub: Hub, small_disk: Callable[[int], Path]
) -> None:
    place = small_disk(4_000_000)
    ran = fetch(hub, place / "out")
    assert (ran.exit_code, "the disk has too little room" in ran.stderr) == (1, True)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("left_nbytes", [0, 120_000])
def test_a_disk_that_fills_on_the_way_loses_nothing(
    hub: Hub,
    repo: Path,
    small_disk: Callable[[int], Path],
    when_planned: WhenPlanned,
    left_nbytes: int,
) -> None:
    place = small_disk(20_000_000)
    total = sum(map(len, visible(repo).values()))
    assert total > 200_000
    filler = place / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as file:
            file.write(b"x" * (shutil.disk_usage(place).free))
            file.truncate(max(0, file.tell() - left_nbytes))

    when_planned(fill)
    ran = fetch(hub, place / "out", protocol="hf")
    assert (ran.exit_code, "the disk is full" in ran.stderr) == (1, True), ran.stderr
    assert_nothing_wrong(place / "out", repo)
    filler.unlink()
    headers = plan_nbytes(hub, place / "out")
    hub.sent.clear()
    assert fetch(hub, place / "out", protocol="hf").exit_code == 0
    assert_whole(place / "out", repo)
    assert hub.nbytes_sent() - headers <= total - left_nbytes // 2


# A hub that moves on


@pytest.mark.parametrize(
    ("protocol", "has_sha256"),
    [*((each, True) for each in PROTOCOLS), ("modelscope", False), ("modelers", False)],
)
@pytest.mark.parametrize("is_whole", [True, False])
def test_a_repository_that_changed_between_two_runs_leaves_no_mixture(
    own_repo: Path, tmp_path: Path, protocol: str, is_whole: bool, has_sha256: bool
) -> None:
    out = tmp_path / "out"
    with Hub({NAME: own_repo}, has_sha256=has_sha256) as hub:
        if not is_whole:
            last = max(own_repo.glob("model-*.safetensors")).name
            hub.faults.append(Fault("door", last, -1, status=500))
            real = prospect.require_room
            hub.faults[0].times = 0

            def require_room(plan: Any) -> None:
                real(plan)
                hub.faults[0].times = -1
                hub.signed.clear()

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(fetch_module, "require_room", require_room)
                ran = fetch(hub, out, "--retries", 2, "--workers", 1, protocol=protocol)
            assert ran.exit_code == 1
            hub.faults.clear()
        else:
            assert fetch(hub, out, protocol=protocol).exit_code == 0
        for shard in sorted(own_repo.glob("model-*.safetensors")):
            flip(shard, shard.stat().st_size - 100)
            flip(shard, shard.stat().st_size // 2)
        (own_repo / "chat_template.jinja").write_text("[gMASK]<sop>{{ messages[1].content }}")
        (own_repo / "assets" / "empty.txt").write_text("no longer")
        ran = fetch(hub, out, protocol=protocol)
        assert ran.exit_code == 0, ran.stderr
    assert_whole(out, own_repo)


@pytest.mark.parametrize("has_sha256", [True, False])
def test_a_file_that_somebody_else_put_there_is_not_overwritten(
    repo: Path, tmp_path: Path, has_sha256: bool
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    theirs = out / "README.md"
    theirs.write_bytes((repo / "README.md").read_bytes()[::-1])
    with Hub({NAME: repo}, has_sha256=has_sha256) as hub:
        ran = fetch(hub, out)
    assert (ran.exit_code, str(theirs) in ran.stderr) == (1, True), ran.stderr
    assert theirs.read_bytes() == (repo / "README.md").read_bytes()[::-1]


def test_parts_of_a_file_that_the_repository_no_longer_has_are_removed(
    own_repo: Path, tmp_path: Path, when_planned: WhenPlanned
) -> None:
    out, name = tmp_path / "out", "assets/vocabulary.txt"
    with Hub({NAME: own_repo}) as hub:
        when_planned(lambda: hub.faults.append(Fault("short", name, -1, at=PART_NBYTES + 10)))
        ran = fetch(hub, out, "--retries", 2, "--workers", 1, protocol="hf")
        assert ran.exit_code == 1 and (out / f"{name}.part").exists()
        hub.faults.clear()
        (own_repo / name).unlink()
        assert fetch(hub, out, protocol="hf").exit_code == 0
    assert_whole(out, own_repo)


def test_a_repository_that_changes_during_a_run_is_noticed(
    own_repo: Path, tmp_path: Path, when_planned: WhenPlanned
) -> None:
    out = tmp_path / "out"
    with Hub({NAME: own_repo}) as hub:

        def move_on() -> None:
            for shard in own_repo.glob("model-*.safetensors"):
                flip(shard, shard.stat().st_size - 100)

        when_planned(move_on)
        ran = fetch(hub, out, "--retries", 3)
        assert ran.exit_code == 1, ran.stderr
        assert_nothing_wrong(out, own_repo)
        assert fetch(hub, out).exit_code == 0
    assert_whole(out, own_repo)


# The network in between


def test_a_proxy_is_not_asked_for_this_machine(
    hub: Hub, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetch(hub, tmp_path / "out").exit_code == 0
    assert_whole(tmp_path / "out", repo)


@pytest.mark.parametrize("target", ["http://cdn.example.org", "ftp://127.0.0.1", "http://10.0.0.1"])
def test_a_redirect_to_an_address_without_tls_is_not_followed(
    hub: Hub, tmp_path: Path, when_planned: WhenPlanned, target: str
) -> None:
    hub.far_url = target
    when_planned(lambda: hub.faults.append(Fault("redirect", SHARD, -1)))
    ran = fetch(hub, tmp_path / "out")
    assert (ran.exit_code, "an address that is not safe" in ran.stderr) == (1, True)
    assert not any(SHARD in name for name in finished(tmp_path / "out"))


@pytest.mark.parametrize(
    "url", ["http://hub.example.org", "http://10.1.2.3:80", "ftp://127.0.0.1", "https://u:p@h.org"]
)
def test_an_endpoint_without_tls_is_refused(tmp_path: Path, url: str) -> None:
    ran = run_glmquant("fetch", f"hf:{NAME}", tmp_path / "out", "--endpoint", url)
    assert (ran.exit_code, "cannot be used" in ran.stderr) == (2, True)
    assert not (tmp_path / "out").exists() and "u:p" not in ran.stderr


def test_a_certificate_has_to_be_trusted(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates = make_certificates(tmp_path / "certificates")
    with Hub({NAME: repo}, tls=certificates.server_context()) as hub:
        ran = fetch(hub, tmp_path / "out")
        assert (ran.exit_code, "SSL_CERT_FILE" in ran.stderr) == (1, True)
        assert not (tmp_path / "out").exists() and hub.log == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
        hub.faults += [Fault("cut", SHARD, 2, at=1000), Fault("flip", SHARD, 1, at=AT)]
        assert fetch(hub, tmp_path / "out").exit_code == 0
    assert_whole(tmp_path / "out", repo)


# A hostile hub


def entry(protocol: str, path: Any, nbytes: Any) -> dict[str, Any]:
    """A file as a hub lists it."""
    digest = hashlib.sha256(b"").hexdigest()
    return {
        "modelscope": {"Path": path, "Name": "x", "Type": "blob", "Size": nbytes, "Sha256": digest},
        "modelers": {"path": path, "type": "file", "size": nbytes, "etag": digest, "is_lfs": True},
        "hf": {"path": path, "type": "file", "size": nbytes, "oid": "0" * 40},
    }[protocol]


def spoil(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[str, list[dict[str, Any]]], None]
) -> None:
    """Let something change each list of files that the hub answers."""
    real = hub_protocols.answer

    def answer(asking: Asking) -> Page | File:
        page = real(asking)
        if isinstance(page, Page) and page.status == 200:
            if isinstance(page.content, list):
                change("hf", page.content)
            elif isinstance(data := page.content.get("Data") or page.content.get("data"), dict):
                if "Files" in data:
                    change("modelscope", data["Files"])
                elif "tree" in data and not asking.query.get("path"):
                    change("modelers", data["tree"])
        return page

    monkeypatch.setattr(hub_server, "answer", answer)


HOSTILE: list[tuple[Any, Any]] = [
    ("../outside.json", 0),
    ("a/../../outside.json", 0),
    ("/outside.json", 0),
    ("//outside.json", 0),
    ("a//b.json", 0),
    ("./a.json", 0),
    ("..", 0),
    (".", 0),
    ("", 0),
    ("a\\..\\b.json", 0),
    ("a\0b.json", 0),
    ("a\nb.json", 0),
    ("a\x1b[31mb.json", 0),
    ("a\u202eb.json", 0),
    ("a\ud800.json", 0),
    ("x" * 250, 0),
    ("a/" * 600 + "b", 0),
    ("config.json/inner.json", 0),
    ("assets", 0),
    ("config.json", 0),
    ("glmquant-partial.json", 0),
    ("glmquant-partial.safetensors", 0),
    ("x.part", 0),
    ("config.json.part", 0),
    (7, 0),
    (None, 0),
    (["a"], 0),
    ("a.json", -1),
    ("a.json", 1 << 60),
    ("a.json", "7"),
    ("a.json", 1.5),
    ("a.json", None),
    ("a.json", True),
    ("a.json", float("nan")),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("path", "nbytes"), HOSTILE, ids=lambda value: ascii(value)[:30])
def test_a_list_of_files_that_lies_is_refused_before_anything_is_written(
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: Any,
    nbytes: Any,
    protocol: str,
) -> None:
    spoil(monkeypatch, lambda name, files: files.append(entry(name, path, nbytes)))
    ran = fetch(hub, tmp_path / "out", protocol=protocol)
    assert ran.exit_code == 1, ran.stderr
    assert "hub's" in ran.stderr and "Traceback" not in ran.stderr
    assert not set(ran.stderr) & {"\0", "\x1b", "\u202e"}
    assert not (tmp_path / "out").exists() and not list(tmp_path.rglob("outside*"))


def test_hidden_files_of_a_repository_are_left_there(
    hub: Hub, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add(protocol: str, files: list[dict[str, Any]]) -> None:
        files.append(entry(protocol, ".glmquant/fetch.json", 0))
        files.append(entry(protocol, "assets/.ssh/authorized_keys", 0))

    spoil(monkeypatch, add)
    assert fetch(hub, tmp_path / "out").exit_code == 0
    assert_whole(tmp_path / "out", repo)


@pytest.mark.parametrize("only", [(), ("--only", "metadata")])
@pytest.mark.parametrize(("protocol", "kind"), [("modelscope", "Type"), ("hf", "type")])
def test_links_of_a_repository_are_named_and_left_there(
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    protocol: str,
    kind: str,
    only: tuple[str, ...],
) -> None:
    def add(name: str, files: list[dict[str, Any]]) -> None:
        paths = ("tokenizer.json\x1b[31m", ".hidden", "assets/vocabulary")
        files.extend({**entry(name, path, 7), kind: "symlink"} for path in paths)

    spoil(monkeypatch, add)
    note = "are left there: assets/vocabulary, tokenizer.json\\x1b[31m"
    ran = fetch(hub, tmp_path / "out", *only, protocol=protocol)
    assert ran.exit_code == 0, ran.stderr
    assert ran.stdout.count(note) == 1
    planned = fetch(hub, tmp_path / "out", *only, "--dry-run", protocol=protocol)
    assert planned.stdout.count(note) == 1
    assert not list(tmp_path.rglob("*vocabulary"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("protocol", "folders"), [("modelscope", 1), ("modelscope", 2), ("modelers", 2), ("hf", 1)]
)
def test_a_repository_of_more_files_than_a_hub_lists_at_once(
    own_repo: Path, tmp_path: Path, protocol: str, folders: int
) -> None:
    for number in range(3200):
        place = own_repo / "many" / str(number % folders)
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.txt").touch()
    with Hub({NAME: own_repo}) as hub:
        ran = fetch(hub, tmp_path / "out", "--dry-run", "--json", protocol=protocol, stall=30)
    if protocol == "modelscope" and folders == 1:
        assert (ran.exit_code, "does not list all files" in ran.stderr + ran.stdout) == (1, True)
        return
    assert ran.exit_code == 0, ran.stderr
    assert {each["file"] for each in ran.events[-1]["files"]} == visible(own_repo).keys()


@pytest.mark.parametrize("is_cached", [False, True])
def test_a_link_in_place_of_a_folder_is_not_followed(
    hub: Hub, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_cached: bool
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    out = tmp_path / "out"
    out.mkdir()
    (out / "assets").symlink_to(elsewhere)
    if is_cached:
        cache = tmp_path / "cache"
        (cache / "owner").mkdir(parents=True)
        (cache / "owner" / "GLM-4___6").symlink_to(repo)
        monkeypatch.setenv("MODELSCOPE_CACHE", str(cache))
    ran = fetch(hub, out)
    assert (ran.exit_code, "a folder is a link" in ran.stderr) == (1, True), ran.stderr
    assert list(elsewhere.iterdir()) == []


# What is there already is read before it is believed


def flip_unseen(path: Path) -> None:
    """Change a bit as a disk does: length and times stay."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("only", [(), ("--only", "mtp")])
def test_a_file_that_a_cut_off_run_had_finished_is_read_again(
    protocol: str, only: tuple[str, ...], hub: Hub, repo: Path, tmp_path: Path
) -> None:
    out, want = tmp_path / "out", tmp_path / "want"
    assert fetch(hub, want, *only, protocol=protocol).exit_code == 0
    last = "glmquant-partial.safetensors" if only else "model-00003-of-00003.safetensors"
    hub.faults.append(
        Fault("flip", "mtp.safetensors", -1, at=(repo / "mtp.safetensors").stat().st_size - 1)
    )
    ran = fetch(hub, out, "--workers", 1, *only, protocol=protocol)
    assert ran.exit_code == 1, ran.stdout
    hub.faults.clear()
    done = [path for path in out.glob("*.safetensors") if path.name != "mtp.safetensors"]
    for path in done:
        flip_unseen(path)
    assert done or only
    ran = fetch(hub, out, *only, protocol=protocol)
    assert ran.exit_code == 0, ran.stderr
    have, wanted = finished(out), finished(want)
    have.pop(MARKER_FILE, None), wanted.pop(MARKER_FILE, None)  # they name the folders
    assert have == wanted
    assert (out / last).is_file()


def test_what_a_finished_fetch_recorded_is_said_to_be_believed_unread(
    hub: Hub, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert "as recorded" not in fetch(hub, out).stdout
    assert "as recorded, by length and time: 16; glmquant fetch --check" in fetch(hub, out).stdout


# Odd answers and odd words


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_empty_file_with_another_sum_is_an_error(
    protocol: str, own_repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_repo / "NOTICE").write_bytes(b"not empty")
    with Hub({NAME: own_repo}) as hub:
        real = hub_repos.Repos.hashed

        def hashed(self: hub_repos.Repos, path: str, file: Path) -> hub_repos.Entry:
            found = real(self, path, file)
            return dataclasses.replace(found, nbytes=0) if path == "NOTICE" else found

        monkeypatch.setattr(hub_repos.Repos, "hashed", hashed)
        monkeypatch.setattr(hub_repos.Entry, "is_current", lambda _: True)
        ran = fetch(hub, tmp_path / "out", protocol=protocol)
    assert (ran.exit_code, "NOTICE" in ran.stderr) == (1, True)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_a_server_says_before_its_answer_is_passed_over(
    hub: Hub, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    real = hub_server.Handler.begin_answer
    early = b"HTTP/1.1 102 Processing\r\n\r\n"
    early += b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\nContent-Length: 7\r\n\r\n"

    def begin_answer(self: hub_server.Handler, *answer: Any) -> None:
        self.wfile.write(early)
        real(self, *answer)

    monkeypatch.setattr(hub_server.Handler, "begin_answer", begin_answer)
    ran = fetch(hub, tmp_path / "out", protocol=protocol)
    assert (ran.exit_code, "answered HTTP" in ran.stderr) == (0, False), ran.stderr
    assert_whole(tmp_path / "out", repo)


def test_a_location_that_is_no_address_is_a_setback(
    hub: Hub, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hub, "sign", lambda *_: "http://[::1/x")
    ran = fetch(hub, tmp_path / "out", "--retries", 2)
    assert (ran.exit_code, "leads to no address" in ran.stderr) == (1, True), ran.stderr


def test_a_system_without_threads_is_an_error(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr("glmquant.watch.threading.Thread.start", start)
        ran = fetch(hub, tmp_path / "out")
    assert (ran.exit_code, "the system gives no more threads" in ran.stderr) == (1, True)


def test_words_that_mean_nothing_are_refused(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run_glmquant("fetch", f"hf:{NAME}", "", "--endpoint", hub.url)
    assert (ran.exit_code, "no folder is named" in ran.stderr) == (2, True)
    ran = fetch(hub, tmp_path / "out", "--stall", "nan")
    assert (ran.exit_code, "that is no time" in ran.stderr) == (2, True)
    ran = run_glmquant("fetch", "glm-4.6", "glm-4.6")
    assert (ran.exit_code, "would have the model's name" in ran.stderr) == (2, True)
    assert "hint:     glmquant fetch modelscope:ZhipuAI/GLM-4.6 glm-4.6" in ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_part_says_which_endpoint_completes_it(hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert fetch(hub, out, "--only", "mtp").exit_code == 0
    ran = run_glmquant("w8a8", out)
    assert f"--endpoint {hub.url}" in ran.stderr
    seen = run_glmquant("verify", out, "--engine", "none")
    assert (seen.exit_code, f"--endpoint {hub.url}" in seen.stderr) == (2, True)
    assert "glmquant w8a8" not in seen.stderr
