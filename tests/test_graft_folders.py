"""Folders that are swapped, linked, taken back and forgotten."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from glmquant.errors import GlmquantError, SourceChangedError
from glmquant.graft import run, swap
from glmquant.graft.plan import _shard_name
from glmquant.observer import Observer
from tests.builders import Recorded
from tests.conftest import Ran
from tests.grafting import (
    DESCRIPTION,
    FORMATS,
    INDEX,
    everything,
    expected,
    load,
    make_base,
    without_state,
)
from tests.test_execute import flip_last_byte
from tests.test_graft import graft, require_contract

Run = Callable[..., Ran]


@pytest.mark.parametrize("form", FORMATS)
def test_an_output_links_the_shards_and_leaves_the_checkpoint_as_it_is(
    nano: Recorded, tmp_path: Path, glmquant: Run, form: str
) -> None:
    base = make_base(nano, tmp_path / "base", form)
    shards = sorted(base.glob("*.safetensors"))
    shards[0].chmod(0o600)
    wanted, before = expected(nano, base), everything(base)
    new = tmp_path / "deep/new"
    graft(glmquant, base, nano, "--output", new)
    assert everything(base) == before
    assert load(new).tensors == wanted
    require_contract(new, nano)
    linked = [path.name for path in shards if (new / path.name).samefile(path)]
    assert linked == [path.name for path in shards[1:]]
    assert {path.stat().st_mode & 0o444 for path in new.glob("*.safetensors")} == {0o444}
    assert not (new / "config.json").samefile(base / "config.json")
    assert not (new / ".glmquant").exists()
    assert [path.name for path in new.parent.iterdir()] == ["new"]
    after = everything(tmp_path)
    assert "nothing is missing" in graft(glmquant, base, nano, "--output", new).stdout
    assert everything(tmp_path) == after
    ran = glmquant("add-mtp", new, "--undo")
    assert (ran.exit_code, "there is nothing to undo" in ran.stderr) == (1, True)


def test_an_output_that_is_there_is_not_written_to(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    base = make_base(nano, tmp_path / "base", "v1")
    (tmp_path / "new").mkdir()
    graft(glmquant, base, nano, "--output", tmp_path / "new")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("mine")
    before = everything(tmp_path)
    ran = glmquant("add-mtp", base, "--from", nano.folder, "--output", tmp_path / "mine")
    assert (ran.exit_code, "the output is there already" in ran.stderr) == (1, True)
    assert everything(tmp_path) == before


def test_an_output_of_a_checkpoint_that_lacks_nothing_is_not_made(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    glmquant("w8a8", nano.folder, tmp_path / "base", "--add-mtp")
    before = everything(tmp_path)
    graft(glmquant, tmp_path / "base", nano, "--output", tmp_path / "new")
    assert everything(tmp_path) == before


def test_a_killed_output_is_cleared_away(nano: Recorded, tmp_path: Path, glmquant: Run) -> None:
    base = make_base(nano, tmp_path / "base", "v1")
    rest = tmp_path / ".new.glmquant-new/.glmquant/graft"
    rest.mkdir(parents=True)
    (rest / "journal.json").write_text("{")
    (tmp_path / ".new.glmquant-new/half.safetensors").write_text("half")
    graft(glmquant, base, nano, "--output", tmp_path / "new")
    require_contract(tmp_path / "new", nano)


@pytest.mark.parametrize("form", ["glmquant", "v1"])
def test_a_link_to_the_checkpoint_is_followed(
    nano: Recorded, tmp_path: Path, glmquant: Run, form: str
) -> None:
    (tmp_path / "store").mkdir()
    make_base(nano, tmp_path / "store/abc", form)
    (tmp_path / "here").mkdir()
    (tmp_path / "here/base").symlink_to("../store/abc")
    before = everything(tmp_path)
    graft(glmquant, tmp_path / "here/base", nano)
    require_contract(tmp_path / "store/abc", nano)
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["base"]
    assert glmquant("add-mtp", tmp_path / "here/base", "--undo").exit_code == 0
    assert everything(tmp_path) == before


@pytest.mark.parametrize("form", ["hf", "v1"])
def test_a_cache_of_links_to_blobs_is_taken(
    nano: Recorded, tmp_path: Path, glmquant: Run, form: str
) -> None:
    make_base(nano, tmp_path / "made", form)
    (tmp_path / "blobs").mkdir()
    base = tmp_path / "snapshots/main"
    base.mkdir(parents=True)
    for number, path in enumerate(sorted((tmp_path / "made").iterdir())):
        if path.is_file():
            path.rename(tmp_path / f"blobs/{number}")
            (base / path.name).symlink_to(f"../../blobs/{number}")
    before = everything(tmp_path)
    graft(glmquant, base, nano)
    require_contract(base, nano)
    assert {k: v for k, v in everything(tmp_path).items() if k.startswith("blobs")} == {
        k: v for k, v in before.items() if k.startswith("blobs")
    }
    assert glmquant("add-mtp", base, "--undo").exit_code == 0
    assert everything(tmp_path) == before
    graft(glmquant, base, nano, "--output", tmp_path / "elsewhere/new")
    assert not [p for p in (tmp_path / "elsewhere/new").iterdir() if p.is_symlink()]
    require_contract(tmp_path / "elsewhere/new", nano)


@pytest.mark.parametrize("form", ["glmquant", "v1"])
def test_forget_drops_what_undo_would_need(
    nano: Recorded, tmp_path: Path, glmquant: Run, form: str
) -> None:
    base = make_base(nano, tmp_path / "base", form)
    graft(glmquant, base, nano)
    made = without_state(base)
    assert glmquant("add-mtp", base, "--forget").exit_code == 0
    assert everything(base) == made
    assert sorted(path.name for path in tmp_path.iterdir()) == ["GLM", "base"]
    for verb in ("undo", "forget"):
        ran = glmquant("add-mtp", base, f"--{verb}")
        assert (ran.exit_code, f"there is nothing to {verb}" in ran.stderr) == (1, True)


@pytest.mark.parametrize("form", ["glmquant", "v1"])
def test_undo_does_not_throw_away_what_was_changed_since(
    nano: Recorded, tmp_path: Path, glmquant: Run, form: str
) -> None:
    base = make_base(nano, tmp_path / "base", form)
    graft(glmquant, base, nano)
    (base / DESCRIPTION).write_text("{}")
    before = everything(tmp_path)
    ran = glmquant("add-mtp", base, "--undo")
    assert (ran.exit_code, DESCRIPTION in ran.stderr, "--forget" in ran.stderr) == (1, True, True)
    assert everything(tmp_path) == before


def test_undo_of_a_swap_does_not_throw_away_files_that_came_since(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    base = make_base(nano, tmp_path / "base", "v1")
    before = everything(tmp_path)
    graft(glmquant, base, nano)
    (base / ".glmquant/verify.json").write_text("of the new folder")
    (base / "results").mkdir()
    (base / "results/run.json").write_text("mine")
    ran = glmquant("add-mtp", base, "--undo")
    assert (ran.exit_code, "results/run.json" in ran.stderr) == (1, True)
    (base / "results/run.json").unlink()
    assert glmquant("add-mtp", base, "--undo").exit_code == 0
    assert everything(tmp_path) == before


@pytest.mark.parametrize("form", ["hf", "v1"])
def test_a_second_graft_waits_for_the_first_to_be_undone_or_forgotten(
    nano: Recorded, tmp_path: Path, glmquant: Run, form: str
) -> None:
    base = make_base(nano, tmp_path / "base", form, mtp="f32")
    graft(glmquant, base, nano)
    before = everything(tmp_path)
    ran = glmquant("add-mtp", base, "--from", nano.folder, "--replace-mtp")
    assert (ran.exit_code, "an earlier graft can still be undone" in ran.stderr) == (1, True)
    assert everything(tmp_path) == before
    assert glmquant("add-mtp", base, "--forget").exit_code == 0
    graft(glmquant, base, nano, "--replace-mtp")
    require_contract(base, nano)


def test_a_backup_that_lies_there_already_is_not_written_over(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    base = make_base(nano, tmp_path / "base", "v1")
    (tmp_path / ".base.glmquant-old").mkdir()
    before = everything(tmp_path)
    ran = glmquant("add-mtp", base, "--from", nano.folder)
    assert (ran.exit_code, "an older backup" in ran.stderr) == (1, True)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("lacking", ["exchange", "links", "reflinks and links"])
@pytest.mark.parametrize("form", ["glmquant", "v1"])
def test_a_file_system_that_can_do_less(
    nano: Recorded,
    tmp_path: Path,
    glmquant: Run,
    monkeypatch: pytest.MonkeyPatch,
    lacking: str,
    form: str,
) -> None:
    def refuse(*args: object, **kwargs: object) -> int:
        raise OSError(errno.EPERM, "Operation not permitted")

    if lacking == "exchange":
        monkeypatch.setattr(swap, "exchange_names", lambda first, second: errno.EINVAL)
    else:
        monkeypatch.setattr(os, "link", refuse)
    if "reflinks" in lacking:
        monkeypatch.setattr(fcntl, "ioctl", refuse)
    base = make_base(nano, tmp_path / "base", form)
    before = everything(tmp_path)
    graft(glmquant, base, nano)
    require_contract(base, nano)
    assert glmquant("add-mtp", base, "--undo").exit_code == 0
    assert everything(tmp_path) == before


@pytest.mark.parametrize("code", [errno.EBUSY, errno.EXDEV])
def test_a_folder_that_cannot_be_renamed_stays_as_it_is(
    nano: Recorded, tmp_path: Path, glmquant: Run, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    base = make_base(nano, tmp_path / "base", "v1")
    before = everything(tmp_path)
    monkeypatch.setattr(swap, "exchange_names", lambda first, second: code)
    ran = glmquant("add-mtp", base, "--from", nano.folder)
    assert (ran.exit_code, "--output" in ran.stderr) == (1, True)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("form", ["glmquant", "v1"])
@pytest.mark.parametrize("whose", ["source", "checkpoint"])
def test_what_is_written_to_meanwhile_is_an_error(
    nano: Recorded, tmp_path: Path, form: str, whose: str
) -> None:
    base = make_base(nano, tmp_path / "base", form)
    victim = nano.folder / "mtp.safetensors"
    if whose == "checkpoint":
        victim = sorted(base.glob("*.safetensors"))[0]

    class Meddler(Observer):
        def start(self, doing: str, done_nbytes: int, total_nbytes: int) -> None:
            if doing == "graft":
                flip_last_byte(victim)

    names = {path.name for path in base.iterdir()}
    with pytest.raises(SourceChangedError):
        run.add_mtp(base, nano.folder, observer=Meddler())
    assert {path.name for path in base.iterdir()} == names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["GLM", "base"]


def test_a_disk_that_gives_back_other_bytes_is_an_error(nano: Recorded, tmp_path: Path) -> None:
    base = make_base(nano, tmp_path / "base", "glmquant")

    class Flipper(Observer):
        def start(self, doing: str, done_nbytes: int, total_nbytes: int) -> None:
            if doing == "check":
                flip_last_byte(base / "mtp.safetensors")

    before = everything(tmp_path)
    with pytest.raises(GlmquantError, match="other bytes than were written"):
        run.add_mtp(base, nano.folder, observer=Flipper())
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields.update(shards=["../outside"]),
        lambda fields: fields.update(files={"/etc/passwd": [None, "0"]}),
        lambda fields: fields.update(modes={"..": [0, 0]}),
        lambda fields: fields.update(state="half"),
        lambda fields: fields.pop("way"),
    ],
)
def test_a_journal_that_was_tampered_with_leads_nowhere(
    nano: Recorded, tmp_path: Path, glmquant: Run, change: Callable[[dict[str, object]], object]
) -> None:
    base = make_base(nano, tmp_path / "base", "glmquant")
    graft(glmquant, base, nano)
    (base / ".glmquant/undo").rename(base / ".glmquant/graft")
    path = base / ".glmquant/graft/journal.json"
    fields = json.loads(path.read_bytes())
    change(fields)
    path.write_text(json.dumps(fields))
    (tmp_path / "outside").write_text("mine")
    before = everything(tmp_path)
    for words in (("--undo",), ("--from", nano.folder)):
        ran = glmquant("add-mtp", base, *words)
        assert (ran.exit_code, "the journal of a graft" in ran.stderr) == (1, True)
    assert everything(tmp_path) == before


def test_a_shard_that_holds_other_tensors_too_is_rewritten_and_the_rest_linked(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    base = make_base(nano, tmp_path / "base", "hf", mtp="f32")
    homes = json.loads((base / INDEX).read_bytes())["weight_map"]
    mtp = {file for name, file in homes.items() if name.startswith(nano.mtp_prefix)}
    body = {file for name, file in homes.items() if not name.startswith(nano.mtp_prefix)}
    assert mtp & body, "the style makes no mixed shard"
    graft(glmquant, base, nano, "--replace-mtp")
    old = tmp_path / ".base.glmquant-old"
    for file in mtp | body:
        assert (base / file).exists() == (file in body)
        if file in body:
            assert (base / file).samefile(old / file) == (file not in mtp)


@pytest.mark.parametrize(
    ("stem", "others", "name"),
    [
        ("mtp", ["model-00001-of-00002.safetensors"], "mtp.safetensors"),
        ("mtp", ["model.safetensors"], "mtp.safetensors"),
        ("router-biases", ["model.safetensors", "mtp.safetensors"], "router-biases.safetensors"),
        ("mtp", ["model.safetensors", "mtp.safetensors"], "mtp_mtp.safetensors"),
        ("mtp", ["quant_weights-00001-of-00001.safetensors"], "quant_weights-mtp.safetensors"),
        ("mtp", ["quant_weight_w8a8.safetensors"], "quant_weight_w8a8_mtp.safetensors"),
        ("mtp", ["zzz.safetensors"], "zzz_mtp.safetensors"),
        ("mtp", ["9.safetensors", "10.safetensors"], "mtp.safetensors"),
    ],
)
def test_the_new_shard_comes_after_all_others(stem: str, others: list[str], name: str) -> None:
    assert _shard_name(stem, others) == name


def test_the_mode_of_a_file_that_is_the_sources_own_is_left_alone(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    base = make_base(nano, tmp_path / "base", "glmquant")
    (nano.folder / "tokenizer.json").chmod(0o600)
    (base / "tokenizer.json").unlink()
    (base / "tokenizer.json").hardlink_to(nano.folder / "tokenizer.json")
    before = everything(nano.folder)
    graft(glmquant, base, nano)
    assert everything(nano.folder) == before
