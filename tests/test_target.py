"""Target folders: what may be written to, what is replaced, and disks that are full."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from glmquant.execute import execute
from tests.builders import Recorded, build_checkpoint
from tests.conftest import Ran, folder_bytes
from tests.test_execute import ENV, interrupted, plan_for

Run = Callable[..., Ran]


def test_a_folder_of_somebody_else_is_left_alone(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    for flags in ((), ("--overwrite",)):
        ran = glmquant("w8a8", nano.folder, out, *flags)
        assert (ran.exit_code, "thesis.txt" in ran.stderr) == (1, True)
        assert folder_bytes(out) == {"thesis.txt": b"mine"}


def test_overwrite_removes_what_we_wrote_and_nothing_else(tmp_path: Path, glmquant: Run) -> None:
    source = build_checkpoint(tmp_path / "GLM", "4.5")
    out = tmp_path / "out"
    glmquant("w8a8", source.folder, out, "--add-mtp")
    (out / "notes.txt").write_text("mine")
    ran = glmquant("w8a8", source.folder, out)
    assert ran.exit_code == 1
    assert "the output of another plan" in ran.stderr
    assert glmquant("w8a8", source.folder, out, "--overwrite").exit_code == 0
    glmquant("w8a8", source.folder, tmp_path / "fresh")
    assert folder_bytes(out) == folder_bytes(tmp_path / "fresh") | {"notes.txt": b"mine"}


def test_overwrite_starts_an_unfinished_run_over(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    out = tmp_path / "out"
    interrupted(nano.folder, out)
    inodes = {path.name: path.stat().st_ino for path in out.glob("*.safetensors")}
    other = glmquant("w8a8", nano.folder, out)
    assert (other.exit_code, "unfinished run of another plan" in other.stderr) == (1, True)
    assert {path.name: path.stat().st_ino for path in out.glob("*.safetensors")} == inodes
    assert glmquant("w8a8", nano.folder, out, "--overwrite").exit_code == 0
    glmquant("w8a8", nano.folder, tmp_path / "fresh")
    assert folder_bytes(out) == folder_bytes(tmp_path / "fresh")


def test_overwrite_of_nothing_is_no_error(nano: Recorded, tmp_path: Path, glmquant: Run) -> None:
    assert glmquant("w8a8", nano.folder, tmp_path / "out", "--overwrite").exit_code == 0


def test_a_bad_source_does_not_cost_the_old_output(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    out = tmp_path / "out"
    glmquant("w8a8", nano.folder, out)
    before = folder_bytes(out)
    (nano.folder / "model-00002-of-00003.safetensors").unlink()
    assert glmquant("w8a8", nano.folder, out, "--overwrite").exit_code == 1
    assert folder_bytes(out) == before


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/outside.txt", "a/../../outside.txt"])
def test_a_manifest_that_lists_files_elsewhere_removes_nothing(
    nano: Recorded, tmp_path: Path, glmquant: Run, name: str
) -> None:
    out = tmp_path / "out"
    glmquant("w8a8", nano.folder, out)
    (tmp_path / "outside.txt").write_text("mine")
    manifest = json.loads((out / "glmquant_manifest.json").read_bytes())
    manifest["files"].append(name)
    (out / "glmquant_manifest.json").write_text(json.dumps(manifest))
    before = folder_bytes(tmp_path)
    ran = glmquant("w8a8", nano.folder, out, "--overwrite")
    assert (ran.exit_code, "a file outside itself" in ran.stderr) == (1, True)
    assert folder_bytes(tmp_path) == before


def test_weights_of_others_in_the_way(nano: Recorded, tmp_path: Path, glmquant: Run) -> None:
    out = tmp_path / "out"
    glmquant("w8a8", nano.folder, out)
    (out / "stray.safetensors").write_bytes(b"")
    before = folder_bytes(out)
    for flags in ((), ("--overwrite",)):
        ran = glmquant("w8a8", nano.folder, out, *flags)
        assert (ran.exit_code, "stray.safetensors" in ran.stderr) == (1, True)
        assert folder_bytes(out) == before


@pytest.mark.parametrize("name", ["model-00001-of-00003.safetensors", "config.json", "LICENSE"])
def test_a_finished_target_that_was_damaged_is_not_called_done(
    nano: Recorded, tmp_path: Path, glmquant: Run, name: str
) -> None:
    out = tmp_path / "out"
    glmquant("w8a8", nano.folder, out)
    whole = folder_bytes(out)
    (out / name).unlink()
    ran = glmquant("w8a8", nano.folder, out)
    assert (ran.exit_code, name in ran.stderr) == (1, True)
    assert glmquant("w8a8", nano.folder, out, "--overwrite").exit_code == 0
    assert folder_bytes(out) == whole


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b'{"plan": 1, "files": {}, "sources": []}'])
def test_a_journal_that_cannot_be_understood(
    nano: Recorded, tmp_path: Path, glmquant: Run, text: bytes
) -> None:
    out = tmp_path / "out"
    interrupted(nano.folder, out)
    (out / ".glmquant/journal.json").write_bytes(text)
    before = folder_bytes(out)
    for flags in ((), ("--overwrite",)):
        ran = glmquant("w8a8", nano.folder, out, *flags)
        assert (ran.exit_code, "journal" in ran.stderr) == (1, True)
        assert folder_bytes(out) == before


def test_target_and_source_must_not_overlap(
    nano: Recorded, tmp_path: Path, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = folder_bytes(nano.folder)
    link = tmp_path / "link"
    link.symlink_to(nano.folder)
    for target in (nano.folder, nano.folder / "out", tmp_path, link, link / "out"):
        ran = glmquant("w8a8", nano.folder, target)
        assert (ran.exit_code, "overlap" in ran.stderr) == (1, True)
    monkeypatch.chdir(nano.folder)
    assert glmquant("w8a8", ".", ".").exit_code == 1
    assert folder_bytes(nano.folder) == before


def test_a_target_that_is_a_file(nano: Recorded, tmp_path: Path, glmquant: Run) -> None:
    (tmp_path / "out").write_text("mine")
    ran = glmquant("w8a8", nano.folder, tmp_path / "out")
    assert (ran.exit_code, "not a folder" in ran.stderr) == (1, True)
    ran = glmquant("w8a8", nano.folder, tmp_path / "out" / "deeper")
    assert ran.exit_code == 1
    assert (tmp_path / "out").read_text() == "mine"


def test_two_runs_do_not_write_to_one_target(nano: Recorded, tmp_path: Path, glmquant: Run) -> None:
    (tmp_path / "out").mkdir()
    descriptor = os.open(tmp_path / "out", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        ran = glmquant("w8a8", nano.folder, tmp_path / "out")
    finally:
        os.close(descriptor)
    assert (ran.exit_code, "another run is writing" in ran.stderr) == (1, True)
    assert glmquant("w8a8", nano.folder, tmp_path / "out").exit_code == 0


def test_too_little_disk_is_seen_before_the_first_byte(
    nano: Recorded, glmquant: Run, small_disk: Callable[[int], Path]
) -> None:
    disk = small_disk(100_000)
    ran = glmquant("w8a8", nano.folder, disk / "out")
    assert (ran.exit_code, "the disk has too little room" in ran.stderr) == (1, True)
    assert folder_bytes(disk) == {}
    assert not (disk / "out").exists()


def test_a_disk_that_fills_up_on_the_way_loses_nothing(
    tmp_path: Path, glmquant: Run, small_disk: Callable[[int], Path]
) -> None:
    source = build_checkpoint(
        tmp_path / "GLM", keep=False, hidden_size=256, n_routed_experts=64, shard_nbytes=500_000
    )
    whole = tmp_path / "whole"
    glmquant("w8a8", source.folder, whole)
    disk = small_disk(12_000_000)
    filler = disk / "filler"
    script = (
        "import sys; from glmquant import execute; from glmquant.cli import main\n"
        # Another program takes the room after it was checked.
        "begin = execute.begin_or_resume\n"
        "def late(*args):\n"
        f"    open({str(filler)!r}, 'wb').write(bytes(10_500_000))\n"
        "    return begin(*args)\n"
        "execute.begin_or_resume = late\n"
        f"sys.argv = ['glmquant', 'w8a8', {str(source.folder)!r}, {str(disk / 'out')!r}]\n"
        "main()"
    )
    (disk / "out").mkdir()
    ran = subprocess.run(
        [sys.executable, "-c", script], env=ENV, capture_output=True, text=True, timeout=100
    )
    assert (ran.returncode, "the disk is full" in ran.stderr) == (1, True), ran.stderr
    assert "Traceback" not in ran.stderr
    assert not list((disk / "out").rglob("*.part"))
    kept = sorted(path.name for path in (disk / "out").glob("*.safetensors"))
    assert kept
    filler.unlink()
    assert glmquant("w8a8", source.folder, disk / "out").exit_code == 0
    assert folder_bytes(disk / "out") == folder_bytes(whole)


def test_a_target_that_cannot_be_written(nano: Recorded, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    (tmp_path / "locked").mkdir(mode=0o500)
    from click.testing import CliRunner

    from glmquant.cli import main

    result = CliRunner().invoke(main, ["w8a8", str(nano.folder), str(tmp_path / "locked/out")])
    assert result.exit_code == 1


def test_overwrite_does_not_follow_links_or_take_nested_files_of_others(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    out = tmp_path / "out"
    glmquant("w8a8", nano.folder, out)
    (out / "assets/notes.txt").write_text("mine")
    (nano.folder / "assets/notes.txt").write_text("theirs")
    ran = glmquant("w8a8", nano.folder, out, "--add-mtp", "--overwrite")
    assert (ran.exit_code, "assets/notes.txt" in ran.stderr) == (1, True)
    assert (out / "assets/notes.txt").read_text() == "mine"
    (out / "assets").rename(tmp_path / "elsewhere")
    (out / "assets").symlink_to(tmp_path / "elsewhere")
    before = folder_bytes(tmp_path / "elsewhere")
    ran = glmquant("w8a8", nano.folder, out, "--add-mtp", "--overwrite")
    assert (ran.exit_code, "behind a link" in ran.stderr) == (1, True)
    assert folder_bytes(tmp_path / "elsewhere") == before


def test_part_files_and_state_of_others_stay(nano: Recorded, tmp_path: Path, glmquant: Run) -> None:
    out = tmp_path / "out"
    glmquant("w8a8", nano.folder, out)
    (out / "tokenizer.json.part").write_text("mine")
    (out / ".glmquant/shards").mkdir(parents=True)
    (out / ".glmquant/shards/precious").write_text("mine")
    before = folder_bytes(out)
    ran = glmquant("w8a8", nano.folder, out, "--add-mtp", "--overwrite")
    assert (ran.exit_code, "tokenizer.json.part" in ran.stderr) == (1, True)
    assert folder_bytes(out) == before
    (out / "tokenizer.json.part").unlink()
    assert glmquant("w8a8", nano.folder, out, "--add-mtp", "--overwrite").exit_code == 0
    assert (out / ".glmquant/shards/precious").read_text() == "mine"


def test_folders_made_for_a_run_that_fails_are_removed(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    path = nano.folder / "model-00001-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-2] + b"\x80\x7f")
    assert glmquant("w8a8", nano.folder, tmp_path / "a/b/c").exit_code == 1
    assert not (tmp_path / "a").exists()


def test_dry_run_says_that_the_run_would_fail(
    nano: Recorded, tmp_path: Path, glmquant: Run, small_disk: Callable[[int], Path]
) -> None:
    disk = small_disk(100_000)
    ran = glmquant("w8a8", nano.folder, disk / "out", "--dry-run")
    assert ran.exit_code == 0
    assert "warning: the run would fail: the disk has too little room" in ran.stderr
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("mine")
    ran = glmquant("w8a8", nano.folder, tmp_path / "full", "--dry-run")
    assert "the target is not empty" in ran.stderr


def test_a_link_as_source_puts_the_target_beside_the_link(tmp_path: Path, glmquant: Run) -> None:
    build_checkpoint(tmp_path / "store/abc")
    (tmp_path / "here").mkdir()
    (tmp_path / "here/GLM-4.6").symlink_to(tmp_path / "store/abc")
    assert glmquant("w8a8", tmp_path / "here/GLM-4.6").exit_code == 0
    assert (tmp_path / "here/GLM-4.6-W8A8/config.json").is_file()
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["abc"]


def finishing(nano: Recorded, out: Path) -> None:
    """A run that was killed before its manifest was written."""
    plan, folder = plan_for(nano.folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("glmquant.execute.encode_manifest", stop_here)
        with pytest.raises(KeyboardInterrupt):
            execute(plan, folder, out)


def stop_here(*args: object) -> bytes:
    raise KeyboardInterrupt


def test_going_on_removes_nothing_behind_a_link_or_outside(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    out = tmp_path / "out"
    finishing(nano, out)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/figure.svg").write_text("mine")
    for folder in (nano.folder, out):
        (folder / "assets/figure.svg").unlink()
        (folder / "assets").rmdir()
    (out / "assets").symlink_to(tmp_path / "foreign")
    ran = glmquant("w8a8", nano.folder, out, "--add-mtp")
    assert (ran.exit_code, "behind a link" in ran.stderr) == (1, True)
    assert (tmp_path / "foreign/figure.svg").read_text() == "mine"
    (out / "assets").unlink()
    (tmp_path / "victim").write_text("mine")
    journal = json.loads((out / ".glmquant/journal.json").read_bytes())
    journal["files"].append("../victim")
    (out / ".glmquant/journal.json").write_text(json.dumps(journal))
    assert glmquant("w8a8", nano.folder, out, "--add-mtp").exit_code == 1
    assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.parametrize("flags", [("--add-mtp",), ("--add-mtp", "--overwrite")])
def test_nothing_is_written_through_a_link_or_over_a_strangers_file(
    nano: Recorded, tmp_path: Path, glmquant: Run, flags: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    finishing(nano, out)
    (tmp_path / "foreign").mkdir()
    (nano.folder / "new").mkdir()
    (nano.folder / "new/x").write_text("theirs")
    (out / "new").symlink_to(tmp_path / "foreign")
    ran = glmquant("w8a8", nano.folder, out, *flags)
    assert (ran.exit_code, "in the way" in ran.stderr) == (1, True)
    assert not list((tmp_path / "foreign").iterdir())
    (out / "new").unlink()
    (out / "new").write_text("mine")
    assert glmquant("w8a8", nano.folder, out, *flags).exit_code == 1
    assert (out / "new").read_text() == "mine"
    (out / "new").unlink()
    (out / "new").mkdir()
    (out / "new/x").write_text("mine")
    assert glmquant("w8a8", nano.folder, out, *flags).exit_code == 1
    assert (out / "new/x").read_text() == "mine"


@pytest.mark.parametrize("becomes_folder", [True, False])
def test_a_side_file_may_become_a_folder_and_a_folder_a_file(
    nano: Recorded, tmp_path: Path, glmquant: Run, becomes_folder: bool
) -> None:
    as_file, as_folder = nano.folder / "extra", nano.folder / "extra/x"

    def put(is_folder: bool) -> None:
        if as_folder.exists():
            as_folder.unlink()
            as_file.rmdir()
        as_file.unlink(missing_ok=True)
        if is_folder:
            as_file.mkdir()
        (as_folder if is_folder else as_file).write_text("text")

    out = tmp_path / "out"
    put(not becomes_folder)
    finishing(nano, out)
    put(becomes_folder)
    finishing(nano, out)
    assert glmquant("w8a8", nano.folder, out, "--add-mtp").exit_code == 0
    glmquant("w8a8", nano.folder, tmp_path / "whole", "--add-mtp")
    assert folder_bytes(out) == folder_bytes(tmp_path / "whole")


def test_a_source_that_links_into_the_target_is_an_overlap(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    out = tmp_path / "out"
    glmquant("w8a8", nano.folder, out)
    before = folder_bytes(out)
    (nano.folder / "ref.txt").symlink_to(out / "config.json")
    ran = glmquant("w8a8", nano.folder, out, "--overwrite")
    assert (ran.exit_code, "ref.txt of the source is a link" in ran.stderr) == (1, True)
    assert folder_bytes(out) == before


def test_a_state_folder_that_is_a_link_is_not_used(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    (tmp_path / "foreign/shards").mkdir(parents=True)
    (tmp_path / "foreign/shards/mine.json").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.glmquant").symlink_to(tmp_path / "foreign")
    assert glmquant("w8a8", nano.folder, tmp_path / "out").exit_code == 1
    assert (tmp_path / "foreign/shards/mine.json").read_text() == "mine"


@pytest.mark.parametrize("place", ["file/out", "dead", "x" * 300])
def test_a_target_that_cannot_be_made_is_foreseen(
    nano: Recorded, tmp_path: Path, glmquant: Run, place: str
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dead").symlink_to(tmp_path / "gone")
    dry = glmquant("w8a8", nano.folder, tmp_path / place, "--dry-run", "--json")
    assert dry.exit_code == 0
    assert [event["event"] for event in dry.events] == ["plan", "warning"]
    assert glmquant("w8a8", nano.folder, tmp_path / place).exit_code == 1


def test_the_side_files_of_an_interrupted_end_are_still_ours(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    out = tmp_path / "out"
    finishing(nano, out)
    for path in out.glob("*.safetensors"):
        path.unlink()
    plan, folder = plan_for(nano.folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("glmquant.execute._write_shards", stop_here)
        with pytest.raises(KeyboardInterrupt):
            execute(plan, folder, out)
    assert glmquant("w8a8", nano.folder, out, "--add-mtp").exit_code == 0


def test_a_loop_of_links_as_target(nano: Recorded, tmp_path: Path, glmquant: Run) -> None:
    (tmp_path / "loop").symlink_to("loop")
    ran = glmquant("w8a8", nano.folder, tmp_path / "loop")
    assert (ran.exit_code, "loop" in ran.stderr) == (1, True)
