"""The instrument that whole processes are measured with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

from glmquant.checkpoint import open_checkpoint
from glmquant.source import FolderSource
from tests.builders import read_shards

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))

from benchmark import contestants, downloads, figures, report, streams  # noqa: E402
from benchmark.checkpoints import KINDS, design, expected_int8  # noqa: E402
from benchmark.command import bench, command_line  # noqa: E402
from benchmark.measure import CommandError, Usage, is_running, measure  # noqa: E402
from benchmark.rounds import rotated  # noqa: E402

TINY = ("--checkpoints", "tiny", "--sizes", "0.0001", "--workers", "2")


def run_bench(folder: Path, *words: str) -> Result:
    """The tool in this process, on a tiny checkpoint."""
    return CliRunner().invoke(bench, [*TINY, "--folder", str(folder), *words])


def replace_command(monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> None:
    """Let a contestant run a shell script with SRC and OUT as $0 and $1."""
    entry = replace(
        contestants.CONTESTANTS[name],
        command=lambda source, target, _: ["sh", "-c", script, source, target],
    )
    monkeypatch.setitem(contestants.CONTESTANTS, name, entry)


def test_a_built_checkpoint_is_what_was_designed_and_can_be_opened(tmp_path: Path) -> None:
    made = design("tiny", 0.0001)
    made.build(tmp_path / "GLM")
    tensors = read_shards(tmp_path / "GLM")
    assert (len(tensors), sum(len(data) for _, _, data in tensors.values())) == (
        made.tensors,
        made.nbytes,
    )
    assert abs(made.nbytes - 100_000) < 5_000
    open_checkpoint(FolderSource(tmp_path / "GLM"))
    assert {name for name in expected_int8(tmp_path / "GLM") if "layers.4." in name} == set()


@pytest.mark.parametrize(("kind", "least_share"), [("many-experts", 0.75), ("wide-rows", 0.5)])
def test_the_large_checkpoints_have_their_size_and_their_rows(
    kind: str, least_share: float
) -> None:
    sizes = {gigabytes: design(kind, gigabytes).nbytes / 1e9 for gigabytes in (0.8, 1.6, 2.4)}
    assert sizes == pytest.approx({size: size for size in sizes}, rel=0.07)
    assert design(kind, 2.4).changes["hidden_size"] == KINDS[kind].fixed["hidden_size"]


def test_a_size_that_a_kind_cannot_have_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        bench, ["--checkpoints", "wide-rows", "--sizes", "0.1", "--folder", str(tmp_path)]
    )
    assert result.exit_code == 1
    assert "wide-rows cannot be as small as 0.1 GB" in result.stderr


@pytest.mark.slow
def test_the_descendants_of_a_command_are_measured_with_it(tmp_path: Path) -> None:
    work = (
        "import time; held = bytearray(200_000_000)\n"
        "while time.process_time() < 0.5: held[::4096] = bytes(len(held[::4096]))"
    )
    usage = measure(
        ["sh", "-c", '"$0" -c "$1"; cat "$2" > /dev/null', sys.executable, work, __file__],
        tmp_path / "log",
    )
    assert usage.user_seconds + usage.system_seconds >= 0.45
    assert usage.wall_seconds >= 0.45
    assert 200_000_000 < usage.peak_rss_nbytes < 300_000_000
    assert usage.read_nbytes == -1 or usage.read_nbytes >= Path(__file__).stat().st_size


def test_the_memory_of_this_process_is_not_taken_for_that_of_a_command(tmp_path: Path) -> None:
    held = b"x" * 100_000_000
    usage = measure(["true"], tmp_path / "log")
    assert len(held) == 100_000_000
    assert usage.peak_rss_nbytes < 20_000_000


def test_a_command_that_fails_or_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="exit code 3:\nno such luck"):
        measure(["sh", "-c", "echo no such luck >&2; exit 3"], tmp_path / "log")
    with pytest.raises(CommandError, match="exit code -9"):
        measure(["sh", "-c", "kill -9 $$"], tmp_path / "log")
    with pytest.raises(CommandError, match="no-such-program could not be run"):
        measure(["no-such-program"], tmp_path / "log")


def test_a_contestant_that_fails_stops_the_bench_and_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_command(monkeypatch, "cp", "mkdir $1; echo the disk is on fire >&2; exit 5")
    result = run_bench(tmp_path, "--contestants", "cp")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "cp on tiny-0.0001: sh ended with exit code 5:\nthe disk is on fire" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_contestant_that_does_another_job_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_command(monkeypatch, "glmquant", "cp -r $0 $1")
    result = run_bench(tmp_path, "--contestants", "glmquant")
    assert result.exit_code == 1
    assert "glmquant on tiny-0.0001: other int8 weights than the recipe's" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_too_little_disk_is_refused_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    result = run_bench(tmp_path, "--contestants", "cp")
    assert result.exit_code == 1
    assert "0.20 GB are needed and 0.00 GB are free" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_is_wrong_usage(tmp_path: Path) -> None:
    result = run_bench(tmp_path, "--contestants", "cp,rsync")
    assert result.exit_code == 2
    assert "no such name: rsync" in result.stderr


@pytest.mark.slow
def test_the_whole_bench_prints_a_row_for_each_contestant_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    work, rounds = tmp_path / "work", tmp_path / "rounds.json"
    work.mkdir()
    words = ("--contestants", "cp,cp+sync,glmquant", "--rounds", "2", "--json", str(rounds))
    result = run_bench(work, *words)
    assert (result.exit_code, list(work.iterdir())) == (0, []), result.stderr
    rows = [line.split("|")[1].strip() for line in result.stdout.splitlines() if line[:1] == "|"]
    assert rows == ["contestant", "---", "cp", "cp+sync", "glmquant"]
    assert str(tmp_path) not in result.stdout
    content = json.loads(rounds.read_text())
    assert [(run["round"], run["contestant"]) for run in content["runs"]] == [
        (1, "cp+sync"),
        (1, "glmquant"),
        (1, "cp"),
        (2, "glmquant"),
        (2, "cp"),
        (2, "cp+sync"),
    ]
    assert all(run["usage"]["wall_seconds"] > 0 for run in content["runs"])
    assert content["summaries"][0]["ratios"] == [1.0, 1.0]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_bench_leaves_neither_files_nor_processes(
    tmp_path: Path, number: signal.Signals
) -> None:
    work, programs = tmp_path / "work", tmp_path / "programs"
    work.mkdir()
    programs.mkdir()
    (programs / "cp").write_text(
        '#!/bin/sh\ntest "$1" = --version && exit\n'
        f'mkdir "$3"; echo x > "$3/x"; echo $PPID > {tmp_path}/new\n'
        f"mv {tmp_path}/new {tmp_path}/group; sleep 60; true\n"
    )
    (programs / "cp").chmod(0o755)
    env = os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tools'}",
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
    }
    words = ["-m", "benchmark.command", *TINY, "--contestants", "cp", "--folder", str(work)]
    process = subprocess.Popen(
        [sys.executable, *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for _ in range(3000):
        if (tmp_path / "group").exists() or process.poll() is not None:
            break
        time.sleep(0.01)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout, stderr.splitlines()[-1]) == (130, "", "interrupted")
    assert list(work.iterdir()) == []
    assert not is_running(int((tmp_path / "group").read_text()))


def test_the_checkpoints_stay_if_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_command(monkeypatch, "cp", "cp -r $0 $1")
    result = run_bench(tmp_path, "--contestants", "cp", "--rounds", "1", "--keep")
    assert result.exit_code == 0, result.stderr
    (kept,) = tmp_path.iterdir()
    assert (kept / "tiny-0.0001" / "config.json").is_file()


def usage(wall: float, cpu: float) -> Usage:
    """A usage of those seconds."""
    return Usage(wall, cpu, 0.5, 50_000_000, 1_000, 1_000, 0, 0.25)


def test_ratios_are_those_of_the_same_round() -> None:
    runs = [
        figures.Run(number, "GLM", name, usage(wall, 1.0), 1)
        for number, walls in enumerate([(2.0, 3.0), (4.0, 4.0), (1.0, 4.0)], start=1)
        for name, wall in zip(("cp", "glmquant"), walls, strict=True)
    ]
    summary = figures.summarize(runs, "GLM", "glmquant", 2.0)
    assert summary.ratios == (1.5, 1.0, 4.0)
    assert (summary.wall_seconds, summary.cpu_seconds) == (4.0, 1.5)


def test_the_fit_is_exact_on_exact_data_and_tells_what_is_off() -> None:
    exact = figures.fit_line([(1.0, 2.75), (2.0, 5.25), (3.0, 7.75)])
    assert exact == figures.Fit(2.5, 0.25, 0.0, 1.0)
    assert figures.fit_line([(1.0, 3.0), (2.0, 3.0), (3.0, 3.0)]) == figures.Fit(0.0, 3.0, 0.0, 1.0)
    bent = figures.fit_line([(0.0, 0.0), (1.0, 3.0), (2.0, 0.0)])
    assert bent == figures.Fit(0.0, 1.0, 2.0, 0.0)
    with pytest.raises(ValueError, match="two different x"):
        figures.fit_line([(1.0, 1.0), (1.0, 2.0)])


def test_three_sizes_give_a_line_for_each_contestant() -> None:
    designs = [design("tiny", size) for size in (0.0001, 0.0002, 0.0003)]
    runs = [
        figures.Run(1, made.name, name, usage(3 * made.nbytes, 2 * made.nbytes), 1)
        for made in designs
        for name in ("cp", "glmquant")
    ]
    made = report.Report(
        designs=designs,
        contestants=("cp", "glmquant"),
        rounds=1,
        workers=2,
        torch_threads=1,
        machine={"CPU": "fast"},
        versions={"Python": "3"},
        date="today",
        command="bench",
        runs=runs,
    )
    fits = made.fits()
    assert {key: fit["wall"].slope for key, fit in fits.items()} == pytest.approx(
        {("tiny", "cp"): 3e9, ("tiny", "glmquant"): 3e9}
    )
    lines = made.markdown().splitlines()
    assert [sum(line.startswith(f"| {name} |") for line in lines) for name in made.contestants] == [
        len(designs) + 2,
        len(designs) + 2,
    ]
    assert len(json.loads(made.json())["fits"]) == 4


def test_turns_are_taken() -> None:
    assert [rotated("abc", number) for number in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]


def test_the_command_is_shown_without_the_names_of_folders() -> None:
    words = ["--folder", "/data/mine", "--rounds", "2", "--json=/data/rounds.json"]
    assert command_line(words) == "python tools/bench.py --folder … --rounds 2 --json=…"


@pytest.mark.hubs
def test_downloads_are_measured_against_the_sdk_and_curl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = os.environ.get("GLMQUANT_HUBS_PYTHON")
    if python is None or shutil.which("curl") is None:
        pytest.skip("`tools/check hubs` makes the environment of the SDK; curl is the system's")
    monkeypatch.setattr(downloads, "hubs_python", lambda: Path(python))
    words = ("--kind", "tiny", "--size", "0.0001", "--rounds", "1", "--folder", str(tmp_path))
    result = CliRunner().invoke(downloads.bench_fetch, words)
    assert result.exit_code == 0, result.output
    rows = [line.split("|")[1].strip() for line in result.stdout.splitlines() if "MB |" in line]
    assert rows == 2 * list(downloads.DOWNLOADERS)
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_is_not_the_source_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    liar = downloads.Downloader(
        "liar",
        lambda of, target, _: ["sh", "-c", 'cp -r "$0" "$1"; echo >> "$1/config.json"', of.folder,
                               target],
        lambda: "1",
    )  # fmt: skip
    monkeypatch.setattr(downloads, "DOWNLOADERS", {"liar": liar})
    monkeypatch.setattr(downloads, "hubs_python", lambda: Path(sys.executable))
    words = ("--kind", "tiny", "--size", "0.0001", "--rounds", "1", "--folder", str(tmp_path))
    result = CliRunner().invoke(downloads.bench_fetch, words)
    assert (result.exit_code, "other bytes than the hub's" in result.output) == (1, True)
    assert "config.json" in result.output


def test_streaming_is_measured_against_the_slower_of_its_two_parts(tmp_path: Path) -> None:
    words = ("--kind", "tiny", "--size", "0.0001", "--rounds", "2", "--rate", "5", "--plain")
    result = CliRunner().invoke(streams.bench_stream, [*words, "--folder", str(tmp_path)])
    assert result.exit_code == 0, result.output
    rows = [line.split("|")[1].strip() for line in result.stdout.splitlines() if "MB |" in line]
    assert rows == list(streams.CONTESTANTS)
    assert "by round: median " in result.stdout and "plain, 5 MB/s" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_ratio_of_streaming_is_taken_round_by_round() -> None:
    walls = {"stream": (3.0, 5.0), "fetch": (2.0, 4.0), "w8a8": (1.0, 5.0)}
    runs = [
        figures.Run(number, "line", name, Usage(wall, 0, 0, 0, 0, 0, 0, 0), 1)
        for name, each in walls.items()
        for number, wall in enumerate(each, 1)
    ]
    assert streams.ratios_of(runs) == [1.5, 1.0]
