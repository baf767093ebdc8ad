"""Interruptions, numbers of workers, and the source that changes under a run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glmquant import convert
from glmquant.checkpoint import open_checkpoint
from glmquant.execute import execute
from glmquant.observer import Observer
from glmquant.plan import Plan, make_plan
from glmquant.recipe import load_recipe
from glmquant.source import FolderSource
from tests.builders import Recorded, build_checkpoint
from tests.conftest import Ran, folder_bytes

Run = Callable[..., Ran]
ROOT = Path(__file__).parent.parent


class StopAfter(Observer):
    """Interrupts the run when a number of shards is done."""

    def __init__(self, shards: int) -> None:
        self.left = shards

    def finish_shard(self, file: str, nbytes: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def plan_for(source: Path, **options: Any) -> tuple[Plan, FolderSource]:
    folder = FolderSource(source)
    return make_plan(open_checkpoint(folder), load_recipe("w8a8"), add_mtp=True, **options), folder


def interrupted(source: Path, target: Path, shards: int = 2) -> None:
    """A run that was stopped when some shards were done."""
    plan, folder = plan_for(source)
    with pytest.raises(KeyboardInterrupt):
        execute(plan, folder, target, observer=StopAfter(shards))


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "glmquant", *map(str, words)]


ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


def test_one_two_and_eight_workers_write_the_same_bytes(nano: Recorded, tmp_path: Path) -> None:
    plan, folder = plan_for(nano.folder)
    for workers in (1, 2, 8):
        execute(plan, folder, tmp_path / str(workers), workers=workers)
    outputs = [folder_bytes(tmp_path / name) for name in ("1", "2", "8")]
    assert outputs[0] == outputs[1] == outputs[2]


@pytest.mark.parametrize("block_nbytes", [1, 33, 100, 1000])
def test_the_block_size_leaves_no_trace(
    nano: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_nbytes: int
) -> None:
    plan, folder = plan_for(nano.folder)
    execute(plan, folder, tmp_path / "whole")
    monkeypatch.setattr(convert, "BLOCK_NBYTES", block_nbytes)
    execute(plan, folder, tmp_path / "blocks")
    assert folder_bytes(tmp_path / "blocks") == folder_bytes(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("begin", ["fresh", "overwrite"])
def test_a_kill_at_any_call_that_changes_the_disk_is_made_good(tmp_path: Path, begin: str) -> None:
    source = build_checkpoint(
        tmp_path / "GLM",
        num_hidden_layers=2,
        first_k_dense_replace=1,
        n_routed_experts=2,
        shard_nbytes=15_000,
    )
    (tmp_path / "work").mkdir()
    ran = subprocess.run(
        [sys.executable, "-m", "tests.killer", source.folder, tmp_path / "work", begin],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr[-2000:] or ran.stdout
    assert int(ran.stdout) > 150


@pytest.mark.slow
def test_kill_9_of_the_command_at_random_moments_is_made_good(tmp_path: Path) -> None:
    source = build_checkpoint(
        tmp_path / "GLM",
        keep=False,
        hidden_size=512,
        moe_intermediate_size=512,
        n_routed_experts=16,
        shard_nbytes=2_000_000,
    )
    subprocess.run(command("w8a8", source.folder, tmp_path / "whole"), env=ENV, check=True)
    seeded = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen(
            command("w8a8", source.folder, tmp_path / "target", "--json"),
            env=ENV,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        for _ in range(seeded.randrange(2, 9)):  # the plan, the start, then a line for each shard
            process.stdout.readline()
        time.sleep(seeded.random() / 50)
        process.kill()
        process.wait()
        process.stdout.close()
    assert not (tmp_path / "target/config.json").exists()
    assert list((tmp_path / "target").glob("*.safetensors"))
    subprocess.run(command("w8a8", source.folder, tmp_path / "target"), env=ENV, check=True)
    assert folder_bytes(tmp_path / "target") == folder_bytes(tmp_path / "whole")


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_leaves_what_can_be_gone_on_with(tmp_path: Path) -> None:
    source = build_checkpoint(
        tmp_path / "GLM",
        keep=False,
        hidden_size=1024,
        moe_intermediate_size=512,
        n_routed_experts=32,
        shard_nbytes=4_000_000,
    )
    target = tmp_path / "target"
    words = command("w8a8", source.folder, target, "--json", "--workers", "1")
    with subprocess.Popen(
        words, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        while json.loads(process.stdout.readline())["event"] != "shard":
            pass
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        messages = process.stderr.read()
        assert process.wait() == 130
    assert "the same command goes on" in messages
    assert "Traceback" not in messages
    assert not list(target.glob("*.part"))
    assert not (target / "config.json").exists()
    assert len(list(target.glob("*.safetensors"))) >= 1
    subprocess.run(command("w8a8", source.folder, target), env=ENV, check=True)
    subprocess.run(command("w8a8", source.folder, tmp_path / "whole"), env=ENV, check=True)
    assert folder_bytes(target) == folder_bytes(tmp_path / "whole")


def test_going_on_makes_only_what_is_missing(nano: Recorded, tmp_path: Path) -> None:
    target = tmp_path / "out"
    interrupted(nano.folder, target)
    kept = {path.name: path.stat().st_ino for path in target.glob("*.safetensors")}
    assert len(kept) == 2
    plan, folder = plan_for(nano.folder)
    execute(plan, folder, target)
    assert {name: (target / name).stat().st_ino for name in kept} == kept
    assert not (target / ".glmquant").exists()


def test_a_finished_shard_that_was_cut_is_made_again(nano: Recorded, tmp_path: Path) -> None:
    target = tmp_path / "out"
    interrupted(nano.folder, target)
    os.truncate(target / "model-00001-of-00003.safetensors", 100)
    plan, folder = plan_for(nano.folder)
    execute(plan, folder, target)
    execute(plan, folder, tmp_path / "whole")
    assert folder_bytes(target) == folder_bytes(tmp_path / "whole")


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("shard", [1, 3])
@pytest.mark.parametrize("keeps_time", [True, False])
def test_a_source_that_changed_between_runs_is_an_error(
    nano: Recorded, tmp_path: Path, glmquant: Run, shard: int, keeps_time: bool
) -> None:
    target = tmp_path / "out"
    interrupted(nano.folder, target, shards=1)
    before = folder_bytes(target)
    path = nano.folder / f"model-{shard:05d}-of-00003.safetensors"
    stamp = path.stat()
    flip_last_byte(path)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + (not keeps_time)))
    if shard == 3 and keeps_time:
        return  # not read yet, and nothing tells: the output is made of what is there now
    ran = glmquant("w8a8", nano.folder, target, "--add-mtp")
    assert ran.exit_code == 1
    assert "the source changed since the run began" in ran.stderr
    assert path.name in ran.stderr
    assert folder_bytes(target) == before
    assert glmquant("w8a8", nano.folder, target, "--add-mtp", "--overwrite").exit_code == 0


def test_a_source_that_was_only_touched_is_read_again_and_believed(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    target = tmp_path / "out"
    interrupted(nano.folder, target, shards=1)
    os.utime(nano.folder / "model-00001-of-00003.safetensors", (1, 1))
    (nano.folder / "model-00002-of-00003.safetensors").chmod(0o640)
    assert glmquant("w8a8", nano.folder, target, "--add-mtp").exit_code == 0


def test_a_source_that_changes_during_the_run_is_an_error(nano: Recorded, tmp_path: Path) -> None:
    from glmquant.errors import SourceChangedError

    plan, folder = plan_for(nano.folder)

    class Meddler(Observer):
        done = False

        def advance(self, nbytes: int) -> None:
            if not self.done:
                self.done = True
                os.utime(nano.folder / "model-00001-of-00003.safetensors", (1, 1))

    with pytest.raises(SourceChangedError, match="changed since the run began"):
        execute(plan, folder, tmp_path / "out", observer=Meddler())
    assert not (tmp_path / "out").exists()


def test_done_is_said_once_more_and_nothing_is_written(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    target = tmp_path / "out"
    glmquant("w8a8", nano.folder, target)
    stamps = {path: path.stat().st_mtime_ns for path in target.rglob("*")}
    ran = glmquant("w8a8", nano.folder, target)
    assert (ran.exit_code, "already done" in ran.stdout) == (0, True)
    assert {path: path.stat().st_mtime_ns for path in target.rglob("*")} == stamps
    assert glmquant("w8a8", nano.folder, target, "--json").events[-1]["already_done"] is True


@pytest.mark.parametrize("name", ["model-00002-of-00003.safetensors", "tokenizer.json"])
def test_done_is_not_said_of_a_target_made_of_other_files(
    nano: Recorded, tmp_path: Path, glmquant: Run, name: str
) -> None:
    target = tmp_path / "out"
    glmquant("w8a8", nano.folder, target)
    flip_last_byte(nano.folder / name)
    ran = glmquant("w8a8", nano.folder, target)
    assert ran.exit_code == 1
    assert name in ran.stderr and "other contents" in ran.stderr
    assert glmquant("w8a8", nano.folder, target, "--overwrite").exit_code == 0


@pytest.mark.slow
def test_memory_does_not_grow_with_the_shard(tmp_path: Path) -> None:
    peaks = []
    for number, experts in enumerate((8, 128)):
        source = build_checkpoint(
            tmp_path / f"GLM{number}",
            keep=False,
            hidden_size=1024,
            moe_intermediate_size=512,
            n_routed_experts=experts,
            num_hidden_layers=2,
            first_k_dense_replace=1,
            num_nextn_predict_layers=0,
            shard_nbytes=10**10,
        )
        script = (
            "import sys; from glmquant.cli import main\n"
            f"sys.argv = ['glmquant', 'w8a8', {str(source.folder)!r}, '--workers', '2']\n"
            "try: main()\n"
            "finally: print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
        )
        ran = subprocess.run(
            [sys.executable, "-c", script], env=ENV, capture_output=True, text=True, check=True
        )
        peaks.append(int(ran.stdout.splitlines()[-1]) * 1024)
    sizes = [
        (tmp_path / f"GLM{number}/model-00001-of-00001.safetensors").stat().st_size
        for number in (0, 1)
    ]
    assert sizes[1] - sizes[0] > 350_000_000
    assert peaks[1] - peaks[0] < 30_000_000
    assert peaks[1] < 300_000_000
