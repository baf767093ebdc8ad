"""What a run believes of what it finds: sources and outputs that changed in between."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from glmquant.errors import DiskSpaceError, GlmquantError, SourceChangedError, StorageError
from glmquant.execute import execute
from glmquant.observer import Observer
from glmquant.writer import PartFile
from tests.builders import Recorded, build_checkpoint, write_shard
from tests.conftest import Ran, folder_bytes
from tests.test_execute import ENV, StopAfter, flip_last_byte, interrupted, plan_for

Run = Callable[..., Ran]
FIRST, LAST = "model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"


def test_done_is_not_said_of_other_weights_that_are_older_than_the_target(
    tmp_path: Path, glmquant: Run
) -> None:
    other = build_checkpoint(tmp_path / "B", seed=1)
    mine = build_checkpoint(tmp_path / "A", seed=0)
    out = tmp_path / "out"
    glmquant("w8a8", mine.folder, out, "--add-mtp")
    ran = glmquant("w8a8", other.folder, out, "--add-mtp")
    assert ran.exit_code == 1
    assert "the target was made of another source" in ran.stderr
    mine.folder.rename(tmp_path / "old")
    other.folder.rename(tmp_path / "A")
    assert glmquant("w8a8", tmp_path / "A", out, "--add-mtp").exit_code == 1
    assert glmquant("w8a8", tmp_path / "old", out, "--add-mtp").exit_code == 0


def test_a_shard_that_is_rewritten_before_its_turn_is_an_error(
    nano: Recorded, tmp_path: Path
) -> None:
    plan, folder = plan_for(nano.folder)
    names = [name for name in nano.tensors if nano.shard_of[name] == LAST]

    class Rewriter(Observer):
        def finish_shard(self, file: str, nbytes: int) -> None:
            if file == FIRST:  # the same tensors under a longer header
                tensors = {name: nano.tensors[name] for name in names}
                write_shard(nano.folder / LAST, tensors)
                data = (nano.folder / LAST).read_bytes()
                length = int.from_bytes(data[:8], "little")
                longer = (length + 64).to_bytes(8, "little") + data[8 : 8 + length] + b" " * 64
                (nano.folder / LAST).write_bytes(longer + data[8 + length :])

    with pytest.raises(SourceChangedError, match="changed since the run began"):
        execute(plan, folder, tmp_path / "out", observer=Rewriter())
    assert not (tmp_path / "out/config.json").exists()
    assert not list((tmp_path / "out").glob("*.part"))


def corrupt(path: Path, keep_time: bool) -> None:
    """Change bytes of an output shard, not its length."""
    stamp = path.stat()
    flip_last_byte(path)
    if keep_time:
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


@pytest.mark.parametrize("keep_time", [True, False])
def test_a_finished_shard_that_was_altered_is_made_again(
    nano: Recorded, tmp_path: Path, keep_time: bool
) -> None:
    out = tmp_path / "out"
    interrupted(nano.folder, out)
    corrupt(out / FIRST, keep_time)
    plan, folder = plan_for(nano.folder)
    execute(plan, folder, out)
    execute(plan, folder, tmp_path / "whole")
    assert folder_bytes(out) == folder_bytes(tmp_path / "whole")


@pytest.mark.parametrize("keep_time", [True, False])
def test_a_finished_target_that_was_altered_is_not_called_done(
    nano: Recorded, tmp_path: Path, glmquant: Run, keep_time: bool
) -> None:
    out = tmp_path / "out"
    glmquant("w8a8", nano.folder, out)
    corrupt(out / FIRST, keep_time)
    ran = glmquant("w8a8", nano.folder, out)
    assert (ran.exit_code, "the finished target is damaged" in ran.stderr) == (1, True)
    assert FIRST in ran.stderr


def test_a_copy_of_a_finished_target_is_read_and_believed(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    glmquant("w8a8", nano.folder, tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    ran = glmquant("w8a8", nano.folder, tmp_path / "copy", "--json")
    assert ran.exit_code == 0
    starts = [event for event in ran.events if event["event"] == "start"]
    assert [start["doing"] for start in starts] == ["compare"]


def test_a_side_file_that_comes_or_goes_does_not_cost_an_unfinished_run(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    out = tmp_path / "out"
    interrupted(nano.folder, out)
    inode = (out / FIRST).stat().st_ino
    (nano.folder / "nohup.out").write_text("a line\n")
    (nano.folder / "LICENSE").unlink()
    (nano.folder / "tokenizer.json").write_text("{}")
    assert glmquant("w8a8", nano.folder, out, "--add-mtp").exit_code == 0
    assert (out / FIRST).stat().st_ino == inode
    glmquant("w8a8", nano.folder, tmp_path / "whole", "--add-mtp")
    assert folder_bytes(out) == folder_bytes(tmp_path / "whole")


def test_a_side_file_that_grows_while_it_is_copied_is_an_error(
    nano: Recorded, tmp_path: Path
) -> None:
    plan, folder = plan_for(nano.folder)

    class Grower(Observer):
        def advance(self, nbytes: int) -> None:
            if nbytes == len("MIT\n"):
                with (nano.folder / "LICENSE").open("a") as file:
                    file.write("more")

    with pytest.raises(SourceChangedError):
        execute(plan, folder, tmp_path / "out", observer=Grower())
    assert not (tmp_path / "out/config.json").exists()


def test_two_plans_are_told_apart_in_words(nano: Recorded, tmp_path: Path, glmquant: Run) -> None:
    out = tmp_path / "out"
    interrupted(nano.folder, out)
    ran = glmquant("w8a8", nano.folder, out)
    assert "expected: add_mtp False" in ran.stderr
    assert "found:    add_mtp True" in ran.stderr
    glmquant("w8a8", nano.folder, tmp_path / "done")
    ran = glmquant("w8a8", nano.folder, tmp_path / "done", "--recipe", "w8a8-full")
    assert "expected: recipe w8a8-full, recipe_sha256" in ran.stderr


@pytest.mark.parametrize(
    "fault",
    [
        "ftruncate:error=ENOSPC:when=4",
        "rename:error=EIO:when=2",
        "fsync:error=EIO:when=4",
        "rename:signal=SIGINT:when=2",
        "fsync:signal=SIGINT:when=4",
        "rename:error=EIO:when=5",
    ],
)
def test_a_fault_around_the_first_shard_does_not_lock_the_target(
    nano: Recorded, tmp_path: Path, glmquant: Run, fault: str
) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    out = tmp_path / "out"
    call = fault.split(":")[0]
    words = [
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        f"trace={call}",
        "-e",
        f"inject={fault}",
    ]
    words += [sys.executable, "-m", "glmquant", "w8a8", str(nano.folder), str(out), "--add-mtp"]
    ran = subprocess.run(words, env=ENV, capture_output=True, text=True)
    assert ran.returncode in (1, 130), ran.stderr
    assert "Traceback" not in ran.stderr
    assert not list(tmp_path.rglob("*.part"))
    assert glmquant("w8a8", nano.folder, out, "--add-mtp").exit_code == 0
    glmquant("w8a8", nano.folder, tmp_path / "whole", "--add-mtp")
    assert folder_bytes(out) == folder_bytes(tmp_path / "whole")


def test_a_shard_lost_at_the_very_end_takes_config_json_with_it(
    nano: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, folder = plan_for(nano.folder)
    out = tmp_path / "out"
    monkeypatch.setattr("glmquant.execute.remove_journal", lambda target_dir: None)
    execute(plan, folder, out)  # as if killed before the journal went
    (out / LAST).unlink()
    with pytest.raises(KeyboardInterrupt):
        execute(plan, folder, out, observer=StopAfter(1))
    assert not (out / "config.json").exists()
    assert not (out / "model.safetensors.index.json").exists()


def test_overwrite_goes_on_with_its_own_interrupted_run(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    out = tmp_path / "out"
    glmquant("w8a8", nano.folder, out)
    plan, folder = plan_for(nano.folder)
    with pytest.raises(KeyboardInterrupt):
        execute(plan, folder, out, overwrite=True, observer=StopAfter(2))
    inode = (out / FIRST).stat().st_ino
    assert glmquant("w8a8", nano.folder, out, "--add-mtp", "--overwrite").exit_code == 0
    assert (out / FIRST).stat().st_ino == inode


@pytest.mark.parametrize(
    "change",
    [
        lambda note: note.update(tensors=[]),
        lambda note: note["tensors"].popitem(),
        lambda note: note.update(source_xxh3_128=3),
        lambda note: note.update(output=None),
        lambda note: next(iter(note["tensors"].values())).update(sources=[]),
        lambda note: next(iter(note["tensors"].values())).update(sqnr_db="x"),
    ],
)
def test_a_note_that_was_tampered_with_is_not_believed(
    nano: Recorded, tmp_path: Path, glmquant: Run, change: Callable[[dict[str, object]], object]
) -> None:
    out = tmp_path / "out"
    interrupted(nano.folder, out)
    path = out / ".glmquant" / "shards" / f"{FIRST}.json"
    note = json.loads(path.read_bytes())
    change(note)
    path.write_text(json.dumps(note))
    assert glmquant("w8a8", nano.folder, out, "--add-mtp").exit_code == 0
    glmquant("w8a8", nano.folder, tmp_path / "whole", "--add-mtp")
    assert folder_bytes(out) == folder_bytes(tmp_path / "whole")


def test_a_part_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "a.part").symlink_to(tmp_path / "precious")
    with PartFile(tmp_path / "a", 2) as part:
        part.write(0, b"ab")
        part.commit()
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (tmp_path / "a").is_symlink()


def test_side_files_are_not_held_in_memory(nano: Recorded, tmp_path: Path) -> None:
    with (nano.folder / "video.mp4").open("wb") as file:
        file.truncate(600_000_000)
    script = (
        "import sys; from glmquant.cli import main\n"
        f"sys.argv = ['glmquant', 'w8a8', {str(nano.folder)!r}, {str(tmp_path / 'out')!r}]\n"
        "try: main()\n"
        "finally: print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], env=ENV, capture_output=True, text=True, check=True
    )
    assert int(ran.stdout.splitlines()[-1]) * 1024 < 300_000_000


def test_an_error_keeps_its_words_when_the_journal_cannot_be_saved(
    nano: Recorded, tmp_path: Path
) -> None:
    plan, folder = plan_for(nano.folder)

    class Failing(Observer):
        def finish_shard(self, file: str, nbytes: int) -> None:
            (tmp_path / "out/.glmquant/journal.json").unlink()
            (tmp_path / "out/.glmquant/journal.json").mkdir()
            raise DiskSpaceError("what failed first")

    with pytest.raises(DiskSpaceError, match="what failed first"):
        execute(plan, folder, tmp_path / "out", observer=Failing())


def test_notes_without_a_journal_are_not_believed(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    other = build_checkpoint(tmp_path / "B", seed=1)
    out = tmp_path / "out"
    interrupted(other.folder, out)
    (out / ".glmquant/journal.json").unlink()  # killed while the journal was being removed
    for path in out.glob("*.safetensors"):
        path.unlink()
    interrupted(nano.folder, out)
    assert glmquant("w8a8", nano.folder, out, "--add-mtp").exit_code == 0
    glmquant("w8a8", nano.folder, tmp_path / "whole", "--add-mtp")
    assert folder_bytes(out) == folder_bytes(tmp_path / "whole")


@pytest.mark.parametrize("place", ["source", "output"])
def test_a_shard_that_is_altered_after_it_was_done_is_an_error_before_the_folder_may_load(
    nano: Recorded, tmp_path: Path, glmquant: Run, place: str
) -> None:
    plan, folder = plan_for(nano.folder)
    out = tmp_path / "out"

    class Meddler(Observer):
        def finish_shard(self, file: str, nbytes: int) -> None:
            if file == LAST:
                flip_last_byte((nano.folder if place == "source" else out) / FIRST)

    with pytest.raises(GlmquantError, match="changed"):
        execute(plan, folder, out, observer=Meddler())
    assert not (out / "config.json").exists()
    ran = glmquant("w8a8", nano.folder, out, "--add-mtp")
    assert ran.exit_code == (1 if place == "source" else 0)
    assert glmquant("w8a8", nano.folder, out, "--add-mtp", "--overwrite").exit_code == 0
    glmquant("w8a8", nano.folder, tmp_path / "whole", "--add-mtp")
    assert folder_bytes(out) == folder_bytes(tmp_path / "whole")


def test_a_side_file_of_the_target_that_was_edited_is_damage(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    out = tmp_path / "out"
    glmquant("w8a8", nano.folder, out)
    (out / "LICENSE").write_text("mit\n")
    ran = glmquant("w8a8", nano.folder, out)
    assert (ran.exit_code, "LICENSE" in ran.stderr) == (1, True)


def test_times_beyond_the_calendar_are_told_in_numbers(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    out = tmp_path / "out"
    interrupted(nano.folder, out)
    path = out / ".glmquant/journal.json"
    journal = json.loads(path.read_bytes())
    journal["sources"][LAST]["mtime_ns"] = 10**22
    path.write_text(json.dumps(journal))
    ran = glmquant("w8a8", nano.folder, out, "--add-mtp")
    assert (ran.exit_code, f"{10**22} ns after 1970" in ran.stderr) == (1, True)
    journal["sources"][LAST]["mtime_ns"] = "x"
    path.write_text(json.dumps(journal))
    ran = glmquant("w8a8", nano.folder, out, "--add-mtp")
    assert (ran.exit_code, "journal" in ran.stderr) == (1, True)


def test_an_unfinished_target_that_was_copied_or_touched_goes_on(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    interrupted(nano.folder, tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "copy", copy_function=shutil.copyfile)
    for path in (tmp_path / "out").glob("*.safetensors"):
        os.utime(path, (1, 1))
    glmquant("w8a8", nano.folder, tmp_path / "whole", "--add-mtp")
    for name in ("out", "copy"):
        inode = (tmp_path / name / FIRST).stat().st_ino
        assert glmquant("w8a8", nano.folder, tmp_path / name, "--add-mtp").exit_code == 0
        assert (tmp_path / name / FIRST).stat().st_ino == inode
        assert folder_bytes(tmp_path / name) == folder_bytes(tmp_path / "whole")


@pytest.mark.parametrize("name", [FIRST, "config.json", "LICENSE"])
@pytest.mark.parametrize("flags", [(), ("--overwrite",)])
def test_an_empty_folder_in_the_place_of_a_file_gives_way(
    nano: Recorded, tmp_path: Path, glmquant: Run, name: str, flags: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    interrupted(nano.folder, out)
    (out / name).unlink(missing_ok=True)
    (out / name).mkdir()
    assert glmquant("w8a8", nano.folder, out, "--add-mtp", *flags).exit_code == 0
    glmquant("w8a8", nano.folder, tmp_path / "whole", "--add-mtp")
    assert folder_bytes(out) == folder_bytes(tmp_path / "whole")


def test_overwrite_keeps_finished_shards_where_the_source_cannot_be_read(
    nano: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    interrupted(nano.folder, out)
    os.utime(nano.folder / FIRST, (1, 1))
    plan, folder = plan_for(nano.folder)
    kept = sorted(path.name for path in out.glob("*.safetensors"))

    def broken(*args: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(StorageError):
        execute(plan, folder, out, overwrite=True)
    assert sorted(path.name for path in out.glob("*.safetensors")) == kept
