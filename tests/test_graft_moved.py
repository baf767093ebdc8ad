"""A grafted folder that was moved, copied, or has lost its old self; what may follow a graft."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from glmquant.graft.backup import backup_of
from tests import modelslim
from tests.builders import Recorded
from tests.conftest import Ran
from tests.grafting import everything, expected, load, make_base
from tests.test_graft import graft, require_contract
from tests.test_graft_refusals import change

Run = Callable[..., Ran]

BIAS = "model.layers.2.mlp.gate.e_score_correction_bias"


def hint_of(ran: Ran) -> str:
    """The command of an error, with nothing before or behind it."""
    return ran.stderr.split("  hint:", 1)[1].strip().splitlines()[0]


def type_in(line: str, cwd: Path) -> None:
    """A shell takes the line as it is."""
    shim = cwd / ".bin"
    shim.mkdir(exist_ok=True)
    (shim / "glmquant").write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c "from glmquant.cli import main; main()"'
        ' "$@"\n'
    )
    (shim / "glmquant").chmod(0o755)
    path = {"PATH": f"{shim}:{os.environ['PATH']}", "PYTHONPATH": str(Path(__file__).parents[1])}
    ran = subprocess.run(
        ["sh", "-c", line], cwd=cwd, env={**os.environ, **path}, capture_output=True, text=True
    )
    shutil.rmtree(shim)
    assert ran.returncode == 0, f"{line}\n{ran.stderr}"


@pytest.fixture
def grafted(nano: Recorded, tmp_path: Path, glmquant: Run) -> Path:
    (tmp_path / "m s").mkdir()
    base = make_base(nano, tmp_path / "m s/base", "v1")
    graft(glmquant, base, nano)
    return base


@pytest.mark.parametrize("how", ["moved", "copied", "lost", "replaced"])
def test_an_undo_without_the_old_folder_is_an_error_that_changes_nothing(
    grafted: Path, tmp_path: Path, glmquant: Run, how: str
) -> None:
    (tmp_path / "moved").mkdir()
    at, old = tmp_path / "moved/base", grafted.with_name(".base.glmquant-old")
    if how == "moved":
        grafted.rename(at)
    elif how == "copied":
        subprocess.run(["cp", "-a", grafted, at], check=True)
    else:
        shutil.rmtree(old)
        at = grafted
    if how == "replaced":
        shutil.copytree(at, old)
    before = everything(tmp_path)
    for _ in range(2):
        ran = glmquant("add-mtp", at, "--undo")
        assert ran.exit_code == 1
        assert "the folder that an undo would put back is not there" in ran.stderr
        assert str(at.with_name(".base.glmquant-old")) in ran.stderr
        assert everything(tmp_path) == before
    if how == "moved":
        assert str(old) in ran.stderr
    type_in(hint_of(ran), tmp_path)
    assert load(at)
    again = glmquant("add-mtp", at, "--undo")
    assert (again.exit_code, "there is nothing to undo" in again.stderr) == (1, True)


def test_a_moved_folder_is_undone_by_the_hint_of_the_error(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    base = make_base(nano, tmp_path / "base", "v1")
    before = everything(base)
    graft(glmquant, base, nano)
    (tmp_path / "moved").mkdir()
    base.rename(tmp_path / "moved/base")
    type_in(hint_of(glmquant("add-mtp", tmp_path / "moved/base", "--undo")), tmp_path)
    assert everything(tmp_path / "moved/base") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["GLM", "moved"]
    assert [path.name for path in (tmp_path / "moved").iterdir()] == ["base"]


def test_the_copy_of_a_grafted_folder_leaves_the_backup_to_the_original(
    grafted: Path, tmp_path: Path, glmquant: Run
) -> None:
    subprocess.run(["cp", "-a", grafted, tmp_path / "copy"], check=True)
    ran = glmquant("add-mtp", tmp_path / "copy", "--undo")
    assert hint_of(ran) == f"glmquant add-mtp {tmp_path / 'copy'} --forget"
    assert glmquant("add-mtp", grafted, "--undo").exit_code == 0


def test_forgetting_after_a_move_ends_and_says_what_it_did_not_find(
    grafted: Path, tmp_path: Path, glmquant: Run
) -> None:
    moved = tmp_path / "moved"
    grafted.rename(moved)
    ran = glmquant("add-mtp", moved, "--forget")
    assert (ran.exit_code, "the graft is forgotten" in ran.stdout) == (0, True)
    assert f"it is not at {tmp_path / '.moved.glmquant-old'}" in ran.stderr
    assert f"it is still at {grafted.with_name('.base.glmquant-old')}" in ran.stderr
    assert not (moved / ".glmquant").exists()
    assert f"next: glmquant verify {moved}" in ran.stdout


def test_forgetting_leaves_the_backup_of_another_checkpoint_alone(
    grafted: Path, tmp_path: Path, glmquant: Run
) -> None:
    old = grafted.with_name(".base.glmquant-old")
    (old / "config.json").write_text("{}")
    ran = glmquant("add-mtp", grafted, "--forget")
    assert (ran.exit_code, f"another one lies at {old}" in ran.stderr) == (0, True)
    assert old.exists()


def test_an_orphaned_backup_is_moved_out_of_the_way_by_the_hint(
    grafted: Path, nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    grafted.rename(tmp_path / "moved")
    make_base(nano, grafted, "v1")
    before = everything(tmp_path)
    ran = glmquant("add-mtp", grafted, "--from", nano.folder)
    assert (ran.exit_code, str(grafted.with_name(".base.glmquant-old")) in ran.stderr) == (1, True)
    assert everything(tmp_path) == before
    type_in(hint_of(ran), tmp_path)
    require_contract(grafted, nano)
    assert glmquant("add-mtp", grafted, "--undo").exit_code == 0
    assert (grafted.parent / "base-before-graft").is_dir()


def test_a_killed_forget_is_no_undo(grafted: Path, glmquant: Run) -> None:
    from glmquant.graft.journal import State, load_graft

    journal = load_graft(grafted)
    assert journal is not None
    journal.state = State.FORGETTING
    journal.save(grafted)
    ran = glmquant("add-mtp", grafted, "--undo")
    assert (ran.exit_code, "there is nothing to undo" in ran.stderr) == (1, True)
    assert sorted(path.name for path in grafted.parent.iterdir()) == ["base"]
    assert not (grafted / ".glmquant").exists()


@pytest.mark.parametrize("form", ["hf", "v1"])
@pytest.mark.parametrize("is_lost", [False, True])
def test_the_hint_of_a_second_graft_works_as_it_is(
    nano: Recorded, tmp_path: Path, glmquant: Run, form: str, is_lost: bool
) -> None:
    base = make_base(nano, tmp_path / "my base", form, mtp="f32")
    wanted = expected(nano, base)
    ran = graft(glmquant, base, nano)
    (step,) = [line for line in ran.stdout.splitlines() if line.startswith("bit for bit as in")]
    if is_lost and form == "v1":
        shutil.rmtree(tmp_path / ".my base.glmquant-old")
    ran = glmquant("add-mtp", base, "--from", nano.folder, "--replace-mtp")
    hint = hint_of(ran)
    if not (is_lost and form == "v1"):
        assert step == f"bit for bit as in the source: {hint}"
        assert hint == (
            f"glmquant add-mtp '{base}' --undo && "
            f"glmquant add-mtp '{base}' --from {nano.folder} --replace-mtp"
        )
    type_in(hint, tmp_path)
    assert load(base).tensors == wanted


@pytest.mark.parametrize("form", ["glmquant", "hf", "v1", "v0"])
@pytest.mark.parametrize("kind", ["zero", "BF16", "other"])
def test_wrong_router_biases_are_replaced_on_request(
    nano: Recorded, tmp_path: Path, glmquant: Run, form: str, kind: str
) -> None:
    style = {} if form == "glmquant" else {"router_biases": True}
    base = make_base(nano, tmp_path / "base", form, **style)
    wanted = expected(nano, base)
    dtype, shape, data = nano.tensors[BIAS]
    change(
        base,
        BIAS,
        {
            "zero": (dtype, shape, bytes(len(data))),
            "BF16": modelslim.stored(modelslim.to_f32(nano.tensors[BIAS]), "BF16"),
            "other": (dtype, shape, data[::-1]),
        }[kind],
    )
    before = everything(tmp_path)
    ran = glmquant("add-mtp", base, "--from", nano.folder)
    command = f"glmquant add-mtp {base} --from {nano.folder} --replace-mtp"
    if kind == "BF16":
        assert (ran.exit_code, "router biases rounded to BF16" in ran.stderr) == (0, True)
        command = f"glmquant add-mtp {base} --undo && {command}"
        assert f"bit for bit as in the source: {command}" in ran.stdout
        assert glmquant("add-mtp", base, "--undo").exit_code == 0
    else:
        assert (ran.exit_code, hint_of(ran)) == (1, command)
        assert BIAS in ran.stderr
    assert everything(tmp_path) == before
    ran = glmquant("add-mtp", base, "--from", nano.folder, "--replace-mtp", "--dry-run")
    assert ("take out:" in ran.stdout, everything(tmp_path) == before) == (True, True)
    graft(glmquant, base, nano, "--replace-mtp")
    assert load(base).tensors == wanted
    require_contract(base, nano)
    assert glmquant("verify", base, "--deep", "--source", nano.folder).exit_code == 0
    assert "nothing is missing" in graft(glmquant, base, nano, "--replace-mtp").stdout
    assert glmquant("add-mtp", base, "--undo").exit_code == 0
    assert everything(tmp_path) == before


@pytest.mark.parametrize("form", ["hf", "v1"])
@pytest.mark.parametrize("blob_mode", [0o644, 0o600])
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_modes_of_linked_files_count_by_what_they_lead_to(
    nano: Recorded, tmp_path: Path, glmquant: Run, form: str, blob_mode: int, umask: int
) -> None:
    make_base(nano, tmp_path / "made", form)
    (tmp_path / "blobs").mkdir()
    base = tmp_path / "snapshots/main"
    base.mkdir(parents=True)
    for number, path in enumerate(sorted(p for p in (tmp_path / "made").iterdir() if p.is_file())):
        is_first = path.name.endswith("00001.safetensors") or "00001-of" in path.name
        path.chmod(0o600 if is_first else blob_mode)
        path.rename(tmp_path / f"blobs/{number}")
        (base / path.name).symlink_to(f"../../blobs/{number}")
    before = everything(tmp_path)
    previous = os.umask(umask)
    try:
        graft(glmquant, base, nano)
        new = [path for path in base.iterdir() if path.is_file() and not path.is_symlink()]
        assert {path.stat().st_mode & 0o777 for path in new} == {blob_mode}
        assert {k: v for k, v in everything(tmp_path).items() if k.startswith("blobs")} == {
            k: v for k, v in before.items() if k.startswith("blobs")
        }
        assert glmquant("add-mtp", base, "--undo").exit_code == 0
        assert everything(tmp_path) == before
        graft(glmquant, base, nano, "--output", tmp_path / "new")
    finally:
        os.umask(previous)
    weights = (tmp_path / "new").glob("*.safetensors")
    assert {path.stat().st_mode & 0o777 for path in weights} == {blob_mode}


@pytest.mark.parametrize("form", ["hf", "v1"])
def test_after_a_graft_it_is_said_what_an_undo_needs_and_what_that_takes(
    nano: Recorded, tmp_path: Path, glmquant: Run, form: str
) -> None:
    base = make_base(nano, tmp_path / "base", form)
    out = graft(glmquant, base, nano).stdout
    backup = backup_of(base)
    assert backup is not None
    old = tmp_path / ".base.glmquant-old" if form == "v1" else base / ".glmquant/undo"
    assert backup.path == old
    alone = [p.lstat() for p in old.rglob("*") if p.lstat().st_nlink == 1]
    assert backup.nbytes == sum(512 * each.st_blocks for each in alone)
    assert 0 < backup.nbytes < 200_000
    assert f"in {old}, which --undo needs" in out
    assert out.splitlines()[-1].endswith(f"to free them: glmquant add-mtp {base} --forget")
