"""``w8a8 --stream``: a hub's model is quantized while it comes, a few shards on the disk."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from glmquant.hubs import streaming
from glmquant.hubs.outputs import Output
from glmquant.hubs.streaming import StreamedSource
from glmquant.index import is_shard_name
from tests.builders import Recorded
from tests.conftest import Ran, run_glmquant
from tests.fetching import (
    PART_NBYTES,
    assert_whole,
    build_repo,
    random_faults,
    set_head,
    set_parts,
    shard_of,
    visible,
)
from tests.hub import Fault, Hub

ROOT = Path(__file__).parent.parent
REPO = "ZhipuAI/GLM-4.6"
ENDPOINTS = ("MODELSCOPE_ENDPOINT", "OPENMIND_HUB_ENDPOINT", "HF_ENDPOINT")
OUT = "GLM-4.6-W8A8-floatmtp"
STORE = f".{OUT}.glmquant-stream"
HEAD_NBYTES = 4096
WAIT_SECONDS = 120


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """A model that tests leave as it is."""
    return build_repo(tmp_path_factory.mktemp("hub") / "GLM-4.6")


@pytest.fixture(scope="module")
def wanted(repo: Recorded) -> dict[str, bytes]:
    """What ``w8a8`` makes of it once it is fetched."""
    return made_here(repo.folder, repo.folder.with_name("near"))


def made_here(folder: Path, target: Path, *words: str) -> dict[str, bytes]:
    ran = run_glmquant("w8a8", folder, target, *(words or ("--add-mtp",)))
    assert ran.exit_code == 0, ran.stderr
    return visible(target)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, small parts, short pauses, and nothing of the user's."""
    set_parts(PART_NBYTES, monkeypatch.setattr)
    set_head(HEAD_NBYTES, monkeypatch.setattr)
    for name in ("HOME", "XDG_CACHE_HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
        (tmp_path / name.lower()).mkdir()
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("HF_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmpdir"))
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def hub(repo: Recorded, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(repo.folder, monkeypatch) as served:
        yield served


def serving(folder: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Hub:
    served = Hub({REPO: folder}, **more)
    for variable in ENDPOINTS:
        monkeypatch.setenv(variable, served.url)
    return served


def stream(*words: object, name: str = "glm-4.6", mtp: bool = True) -> Ran:
    return run_glmquant("w8a8", name, "--stream", *(["--add-mtp"] if mtp else []), *words)


def nbytes_on_disk(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):  # it passes over folders that are gone
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(place, name).lstat().st_blocks * 512
    return total


def weights_of(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob("*.safetensors")}


def heads(folder: Path, name: str = "*.safetensors") -> int:
    """What a plan reads of shards at most."""
    total = 0
    for path in folder.glob(name):
        with path.open("rb") as file:
            end = 8 + int.from_bytes(file.read(8), "little")
        total += max(min(HEAD_NBYTES, path.stat().st_size), end)
    return total


# The same bytes


@pytest.mark.parametrize("protocol", ["modelscope", "modelers", "hf"])
def test_a_model_that_is_streamed_has_the_bytes_of_one_that_was_fetched(
    protocol: str, hub: Hub, repo: Recorded, wanted: dict[str, bytes], here: Path
) -> None:
    ran = stream(name=f"{protocol}:{REPO}")
    assert ran.exit_code == 0, ran.stderr
    assert visible(here / OUT) == wanted
    assert sorted(path.name for path in here.iterdir()) == [OUT]
    assert f"next: glmquant verify {OUT} --source {protocol}:{REPO}" in ran.stdout
    assert list((here.parent / "tmpdir").iterdir()) == []
    weights = weights_of(repo.folder)
    assert sum(hub.sent[name] for name in weights) <= sum(weights.values()) + heads(repo.folder)


def test_every_order_of_arrival_gives_the_same_bytes(
    hub: Hub, repo: Recorded, wanted: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = sorted(weights_of(repo.folder))
    came: list[str] = []
    real = StreamedSource.note_arrival

    def note(self: StreamedSource, file: str) -> None:
        came.append(file)
        real(self, file)

    monkeypatch.setattr(StreamedSource, "note_arrival", note)
    orders = list(itertools.permutations(shards))
    assert len(orders) >= 24
    for number, order in enumerate(orders):
        came.clear()

        def turn(_: object, output: Output, order: tuple[str, ...] = order) -> int:
            return order.index(output.name)

        monkeypatch.setattr(StreamedSource, "_turn_of", turn)
        ran = stream(f"out-{number}", "--shards-in-flight", 1)
        assert ran.exit_code == 0, ran.stderr
        assert came == list(order)
        assert visible(Path(f"out-{number}")) == wanted
        shutil.rmtree(f"out-{number}")


def test_without_the_mtp_layer_its_file_does_not_come(hub: Hub, repo: Recorded, here: Path) -> None:
    want = made_here(repo.folder, here.parent / "near", "--recipe", "w8a8-full")
    mtp = "mtp.safetensors"
    ran = stream("--recipe", "w8a8-full", "out", mtp=False)
    assert ran.exit_code == 0, ran.stderr
    assert visible(here / "out") == want
    assert hub.sent[mtp] <= heads(repo.folder, mtp), "its header alone"


def test_the_mtp_layer_comes_first_so_that_a_broken_one_is_seen_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    broken = build_repo(tmp_path / "GLM-4.6", shard_nbytes=600_000, hidden_size=256).folder
    path = broken / "mtp.safetensors"
    data = bytearray(path.read_bytes())
    data[-2:] = b"\xc0\x7f"
    path.write_bytes(data)
    with serving(broken, monkeypatch) as hub:
        hub.faults.append(Fault("slow", "model-", -1, bps=100_000))
        ran = stream("--shards-in-flight", 1)
        assert (ran.exit_code, "a weight is not finite" in ran.stderr) == (1, True), ran.stderr
        assert "mtp.safetensors" in ran.stderr
        others = sum(nbytes for name, nbytes in hub.sent.items() if name.startswith("model-0"))
    assert others <= heads(broken), "headers"
    assert list(here.glob(f"{OUT}/*")) == []


# Room


def test_the_disk_holds_the_output_and_the_shards_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    large = build_repo(tmp_path / "GLM-4.6", shard_nbytes=150_000, hidden_size=256).folder
    weights = weights_of(large)
    assert len(weights) > 4
    for most in (1, 2):
        peak, ended = 0, threading.Event()

        def sample(ended: threading.Event = ended) -> None:
            nonlocal peak
            while not ended.is_set():
                peak = max(peak, nbytes_on_disk(here))
                time.sleep(0.002)

        with serving(large, monkeypatch) as hub:
            hub.faults.append(Fault("slow", "safetensors", -1, bps=10e6))
            thread = threading.Thread(target=sample)
            thread.start()
            ran = stream(f"out-{most}", "--shards-in-flight", most)
            ended.set()
            thread.join()
        assert ran.exit_code == 0, ran.stderr
        final = nbytes_on_disk(here)
        shards = sum(sorted(weights.values(), reverse=True)[:most])
        assert peak <= final + shards + 200_000
        assert peak < final + sum(weights.values()) - max(weights.values())
        shutil.rmtree(here / f"out-{most}")


def test_a_shard_is_dropped_only_when_its_output_is_durable_and_noted(
    hub: Hub, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped = []
    real = StreamedSource.discard

    def discard(self: StreamedSource, file: str) -> None:
        assert (here / STORE / file).is_file()
        assert (here / OUT / file).is_file()
        assert (here / OUT / ".glmquant" / "shards" / f"{file}.json").is_file()
        real(self, file)
        assert not (here / STORE / file).exists()
        dropped.append(file)

    monkeypatch.setattr(StreamedSource, "discard", discard)
    assert stream().exit_code == 0
    assert sorted(dropped) == sorted(weights_of(here / OUT))


def test_a_dry_run_counts_the_shards_in_flight_and_writes_nothing(
    hub: Hub, repo: Recorded, here: Path
) -> None:
    peaks = {}
    for most in (1, 2):
        ran = stream("--shards-in-flight", most, "--dry-run", "--json")
        told = next(each for each in ran.events if each["event"] == "plan")
        assert told["next"].endswith(f"--add-mtp --stream --shards-in-flight {most}")
        peaks[most] = told["disk_nbytes_peak"]
    largest = sorted(weights_of(repo.folder).values(), reverse=True)
    assert peaks[2] - peaks[1] == largest[1]
    assert list(here.iterdir()) == []
    ran = run_glmquant("w8a8", repo.folder, "out", "--add-mtp", "--dry-run", "--json")
    assert peaks[1] - ran.events[-1]["disk_nbytes_peak"] >= largest[0]


def test_too_little_room_is_seen_before_the_first_byte_of_a_weight(
    hub: Hub, small_disk: Callable[[int], Path]
) -> None:
    place = small_disk(1_000_000)
    ran = stream(place / OUT)
    assert (ran.exit_code, "the disk has too little room" in ran.stderr) == (1, True), ran.stderr
    assert list(place.iterdir()) == []


def test_a_disk_that_fills_half_way_loses_nothing(
    hub: Hub,
    wanted: dict[str, bytes],
    small_disk: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = small_disk(20_000_000)
    filler = place / "filler"
    real = StreamedSource.discard

    def discard(self: StreamedSource, file: str) -> None:
        real(self, file)
        if not filler.exists():  # the first shard is done
            with filler.open("wb", buffering=0) as opened, pytest.raises(OSError, match="space"):
                while True:
                    opened.write(b"x" * 65_536)

    with monkeypatch.context() as patched:
        patched.setattr(StreamedSource, "discard", discard)
        ran = stream(place / OUT)
    assert (ran.exit_code, "the disk is full" in ran.stderr) == (1, True), ran.stderr
    kept = set(weights_of(place / OUT))
    assert kept
    assert not (place / OUT / "config.json").exists()
    filler.unlink()
    ran = stream(place / OUT, "--json")
    assert ran.exit_code == 0, ran.stderr
    made = {each["file"] for each in ran.events if each["event"] == "shard"}
    assert not made & kept
    assert visible(place / OUT) == wanted
    assert sorted(path.name for path in place.iterdir()) == [OUT]


# Interruption


def child(*words: object) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "tests.fetching", PART_NBYTES, "w8a8", "glm-4.6", "--stream"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [str(word) for word in [*line, "--add-mtp", *words]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_kills_at_random_moments_with_random_faults_end_in_the_same_bytes(
    seed: int, repo: Recorded, wanted: dict[str, bytes], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(seed)
    kills = 0
    with serving(repo.folder, monkeypatch) as hub:
        for _ in range(8):
            hub.faults[:] = random_faults(draw.randrange(10**6), repo.folder)
            hub.faults.append(Fault("slow", "safetensors", -1, bps=150_000))
            begun, clock = len(hub.log), draw.randrange(1, 60)
            process = child("--shards-in-flight", draw.randint(1, 3))
            deadline = time.monotonic() + 3  # a fault that hangs is killed, too
            while process.poll() is None and len(hub.log) < begun + clock:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.01)
            time.sleep(draw.random() / 5)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += process.returncode == -signal.SIGKILL
            for name, data in visible(here / OUT).items() if (here / OUT).exists() else ():
                assert name.endswith(".part") or wanted[name] == data
        hub.faults.clear()
        process = child()
        text = process.communicate(timeout=WAIT_SECONDS)[0]
    assert process.returncode == 0, text
    assert kills >= 4
    assert visible(here / OUT) == wanted
    assert [path.name for path in here.iterdir()] == [OUT]
    assert not (here / OUT / ".glmquant").exists()


def test_a_hub_that_slows_stops_and_comes_back_is_waited_for(
    repo: Recorded, wanted: dict[str, bytes], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = serving(repo.folder, monkeypatch)
    port = first.servers[0].server_address[1]
    with first as hub:
        hub.faults.append(Fault("slow", "safetensors", -1, bps=300_000))
        process = child("--shards-in-flight", 2)
        deadline = time.monotonic() + WAIT_SECONDS
        while not list(here.glob(f"{OUT}/*.safetensors")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
    done = {path.name for path in here.glob(f"{OUT}/*.safetensors")}
    assert len(done) < len(weights_of(repo.folder))
    time.sleep(0.3)
    with serving(repo.folder, monkeypatch, port=port):
        text = process.communicate(timeout=WAIT_SECONDS)[0]
        if process.returncode:  # twenty failures came first: the same command goes on
            again = child()
            text = again.communicate(timeout=WAIT_SECONDS)[0]
            assert again.returncode == 0, text
    assert visible(here / OUT) == wanted


def test_a_hub_that_never_comes_back_is_an_error_and_nothing_is_lost(
    hub: Hub, wanted: dict[str, bytes], here: Path
) -> None:
    hub.faults.append(Fault("status", "model-00003-of-", -1, status=503))
    hub.faults[-1].times = 0  # headers first
    real = StreamedSource.expect

    def expect(self: StreamedSource, files: Any) -> None:
        hub.faults[-1].times = -1
        real(self, files)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(StreamedSource, "expect", expect)
        ran = stream()
    assert (ran.exit_code, "the hub failed 20 times in a row" in ran.stderr) == (1, True)
    done = weights_of(here / OUT)
    assert done and not (here / OUT / "config.json").exists()
    hub.faults.clear()
    ran = stream("--json")
    assert ran.exit_code == 0, ran.stderr
    assert not {each["file"] for each in ran.events if each["event"] == "shard"} & done.keys()
    assert visible(here / OUT) == wanted


def test_an_interruption_between_the_last_file_and_the_removal_is_made_up_for(
    hub: Hub, wanted: dict[str, bytes], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(StreamedSource, "finish", interrupt)
        assert stream().exit_code == 130
    assert (here / STORE).is_dir()
    (here / STORE / "model-00002-of-00009.safetensors").write_bytes(b"a shard that lay ready")
    ran = stream("--json")
    assert (ran.exit_code, ran.events[-1]["already_done"]) == (0, True), ran.stderr
    assert not (here / STORE).exists()
    assert visible(here / OUT) == wanted


# A model that moves


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Hub, Path]]:
    """A model that a test changes."""
    folder = build_repo(tmp_path / "GLM-4.6").folder
    with serving(folder, monkeypatch) as hub:
        yield hub, folder


def interrupted(hub: Hub, name: str = "glm-4.6") -> None:
    """A run that ends after its first shard."""
    real = StreamedSource.discard

    def discard(self: StreamedSource, file: str) -> None:
        real(self, file)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(StreamedSource, "discard", discard)
        assert stream("--shards-in-flight", 1, name=name).exit_code == 130


@pytest.mark.parametrize("protocol", ["modelscope", "modelers", "hf"])
def test_a_run_does_not_go_on_with_other_weights(
    protocol: str, own: tuple[Hub, Path], here: Path
) -> None:
    hub, folder = own
    name = f"{protocol}:{REPO}"
    interrupted(hub, name)
    before = visible(here / OUT)
    data = bytearray(shard_of(folder).read_bytes())
    data[-1] ^= 1
    shard_of(folder).write_bytes(data)
    ran = stream(name=name)
    assert ran.exit_code == 1
    assert "the model on the hub is not what it was when the run began" in ran.stderr
    assert name in ran.stderr and "--revision" in ran.stderr
    assert visible(here / OUT) == before
    ran = stream("--overwrite", name=name)
    assert ran.exit_code == 0, ran.stderr
    assert visible(here / OUT) == made_here(folder, here.parent / "near")


def test_a_run_does_not_go_on_with_another_config(own: tuple[Hub, Path]) -> None:
    hub, folder = own
    interrupted(hub)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 5}))
    ran = stream()
    assert ran.exit_code == 1
    assert "the model on the hub is not what it was when the run began" in ran.stderr


def test_a_run_goes_on_where_only_the_readme_moved(own: tuple[Hub, Path], here: Path) -> None:
    hub, folder = own
    interrupted(hub)
    (folder / "README.md").write_text("Now with benchmarks.")
    ran = stream()
    assert ran.exit_code == 0, ran.stderr
    assert visible(here / OUT) == made_here(folder, here.parent / "near")


def test_a_run_may_change_between_a_folder_and_the_hub(
    hub: Hub, repo: Recorded, wanted: dict[str, bytes], here: Path
) -> None:
    interrupted(hub)
    ran = run_glmquant("w8a8", repo.folder, OUT, "--add-mtp", "--json")
    assert ran.exit_code == 0, ran.stderr
    shards = sum(each["event"] == "shard" for each in ran.events)
    assert shards == len(weights_of(repo.folder)) - 1, "the first was believed by its digest"
    assert visible(here / OUT) == wanted


# Keeping the source


def test_the_source_is_kept_as_fetch_would_leave_it(
    hub: Hub, repo: Recorded, wanted: dict[str, bytes], here: Path
) -> None:
    ran = stream("--keep-source", "BF16")
    assert ran.exit_code == 0, ran.stderr
    assert_whole(here / "BF16", repo.folder)
    assert visible(here / OUT) == wanted
    assert f"next: glmquant verify {OUT} --source BF16" in ran.stdout
    assert sorted(path.name for path in here.iterdir()) == ["BF16", OUT]
    weights = weights_of(repo.folder)
    sent = sum(hub.sent[name] for name in weights)
    shutil.rmtree(here / OUT)
    assert stream("--keep-source", "BF16").exit_code == 0
    again = sum(hub.sent[name] for name in weights) - sent
    assert again <= heads(repo.folder), "headers alone come again"
    assert visible(here / OUT) == wanted


def test_a_source_that_is_kept_is_whole_without_the_mtp_layer_in_the_output(
    hub: Hub, repo: Recorded, here: Path
) -> None:
    assert stream("out", "--keep-source", "BF16", mtp=False).exit_code == 0
    assert_whole(here / "BF16", repo.folder)


# What is told


def test_both_rates_are_told(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glmquant.cli.progress._Rate.interval_seconds", lambda *_: 0.0)
    ran = stream("--json", "--shards-in-flight", 1)
    told = [each for each in ran.events if each["event"] == "progress"]
    last = told[-1]
    assert last["done_nbytes"] == last["total_nbytes"]
    assert last["fetched_nbytes"] == last["to_fetch_nbytes"]
    assert last["fetched_nbytes_per_second"] > 0 and last["nbytes_per_second"] > 0
    fetched = [each["fetched_nbytes"] for each in told if "fetched_nbytes" in each]
    assert fetched == sorted(fetched) and fetched[0] < fetched[-1]
    shutil.rmtree(OUT)
    monkeypatch.setattr("glmquant.cli.progress._PlainLines.interval_seconds", lambda *_: 0.0)
    lines = [line for line in stream().stderr.splitlines() if line.startswith("quantize: ")]
    assert "; fetched " in lines[-1] and lines[-1].count("/s") == 2


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("GLM-4.6", "--stream"), "--stream takes a model on a hub"),
        (("--stream",), "--stream takes a model on a hub"),
        (("glm-4.6",), "the source is on a hub"),
        (("folder", "--keep-source", "x"), "--keep-source belongs to --stream"),
        (("folder", "--shards-in-flight", "2"), "--shards-in-flight belongs to --stream"),
        (("folder", "--revision", "main"), "--revision belongs to --stream"),
        (
            ("glm-4.6", "--stream", "--keep-source", "x", "--shards-in-flight", "2"),
            "--keep-source keeps all shards",
        ),
        (("glm-4.6", "--stream", "--shards-in-flight", "0"), "shards-in-flight"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_anything_is_asked(
    words: tuple[str, ...], what: str, hub: Hub, here: Path
) -> None:
    (here / "folder").mkdir()
    if words[0] == "GLM-4.6":
        (here / "GLM-4.6").mkdir()
    ran = run_glmquant("w8a8", *words)
    assert (ran.exit_code, what in ran.stderr) == (2, True), ran.stderr
    assert hub.log == []


def test_a_source_that_is_kept_in_the_output_is_refused(hub: Hub, here: Path) -> None:
    ran = stream("out", "--keep-source", "out/BF16")
    assert (ran.exit_code, "overlap" in ran.stderr) == (1, True), ran.stderr
    assert list(here.iterdir()) == []


def test_no_path_of_the_outline_is_shown(own: tuple[Hub, Path]) -> None:
    _, folder = own
    (folder / "quant_model_description.json").write_text("{}")
    ran = stream()
    assert ran.exit_code == 1
    assert "glmquant-outline" not in ran.stderr


def test_usual_number_of_shards_is_three() -> None:
    assert streaming.SHARDS_IN_FLIGHT == 3
    assert is_shard_name("model-00001-of-00002.safetensors")


# What other commands and other people leave


def flip_unseen(path: Path) -> None:
    """Change a bit as a disk does: length and times stay."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def cut_off(hub: Hub) -> None:
    """A run that ends when its first shard has come, before it is quantized."""

    def arrived(self: StreamedSource, files: Any, *, is_awaited: bool) -> str | None:
        real(self, files, is_awaited=True)
        raise KeyboardInterrupt

    real = StreamedSource.arrived
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(StreamedSource, "arrived", arrived)
        assert stream("--shards-in-flight", 1).exit_code == 130


def test_a_shard_that_lay_there_meanwhile_is_read_before_it_is_believed(
    hub: Hub, wanted: dict[str, bytes], here: Path
) -> None:
    cut_off(hub)
    (staged,) = (here / STORE).glob("*.safetensors")
    flip_unseen(staged)
    ran = stream()
    assert ran.exit_code == 0, ran.stderr
    assert "is not what the hub has" in ran.stderr
    assert visible(here / OUT) == wanted


@pytest.mark.parametrize("how", ["kept", "folder", "link"])
def test_the_folder_of_shards_goes_whoever_finishes_the_run(
    how: str, hub: Hub, repo: Recorded, wanted: dict[str, bytes], here: Path
) -> None:
    interrupted(hub)
    assert (here / STORE).is_dir()
    if how == "kept":
        ran = stream("--keep-source", "BF16")
    elif how == "folder":
        ran = run_glmquant("w8a8", repo.folder, OUT, "--add-mtp")
    else:
        (here / "link").symlink_to(OUT)
        ran = stream("link")
    assert ran.exit_code == 0, ran.stderr
    assert not (here / STORE).exists() and not list(here.glob(".link*"))
    assert visible(here / OUT) == wanted


@pytest.mark.parametrize("what", ["file", "folder", "link", "fetched"])
def test_what_is_not_ours_is_neither_used_nor_removed(what: str, hub: Hub, here: Path) -> None:
    store = here / STORE
    if what == "file":
        store.touch()
    elif what == "link":
        (here / "roomy").mkdir()
        store.symlink_to("roomy")
    elif what == "folder":
        store.mkdir()
        (store / "notes.txt").write_text("mine")
    else:
        assert run_glmquant("fetch", f"hf:{REPO}", store, "--only", "metadata").exit_code == 0
    before = sorted(map(str, here.rglob("*")))
    ran = stream()
    assert (ran.exit_code, "in the place of the folder" in ran.stderr) == (1, True), ran.stderr
    assert sorted(map(str, here.rglob("*"))) == before


def test_a_strangers_file_among_the_shards_stays(
    hub: Hub, wanted: dict[str, bytes], here: Path
) -> None:
    interrupted(hub)
    (here / STORE / "notes.txt").write_text("mine")
    assert stream().exit_code == 0
    assert [path.name for path in (here / STORE).iterdir()] == ["notes.txt"]
    assert visible(here / OUT) == wanted


@pytest.mark.parametrize("words", [("glm-4.6",), ("o", "--keep-source", "glm-4.6")])
def test_a_folder_that_would_hide_the_model_is_refused(
    words: tuple[str, ...], hub: Hub, here: Path
) -> None:
    ran = stream(*words)
    assert (ran.exit_code, "would have the model's name" in ran.stderr) == (2, True)
    assert list(here.iterdir()) == []


def test_a_moved_readme_is_told(own: tuple[Hub, Path]) -> None:
    hub, folder = own
    interrupted(hub)
    (folder / "LICENSE").write_text("Another.")
    ran = stream()
    assert ran.exit_code == 0
    assert "the run began with modelscope:ZhipuAI/GLM-4.6, revision master" in ran.stderr


def test_outlines_of_killed_runs_are_removed(hub: Hub, here: Path) -> None:
    left = here.parent / "tmpdir" / "glmquant-outline-killed"
    (left / "GLM-4.6").mkdir(parents=True)
    os.utime(left, (1, 1))
    assert stream("--dry-run").exit_code == 0
    assert not left.exists()


def test_the_line_is_part_of_a_dry_run(hub: Hub) -> None:
    ran = stream("--dry-run")
    assert "have to come over the line: " in ran.stderr
