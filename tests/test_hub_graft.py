"""``add-mtp --from`` a hub: only the bytes that are needed come, and nothing of them is left."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders import Recorded
from tests.conftest import run_glmquant
from tests.fetching import set_parts
from tests.grafting import FORMATS, expected, load, make_base, small, without_state
from tests.hub import Fault, Hub

ALIAS, NAME = "glm-4.6", "modelscope:ZhipuAI/GLM-4.6"


@pytest.fixture
def source(tmp_path: Path) -> Recorded:
    return small(tmp_path / "GLM-4.6")


@pytest.fixture
def hub(source: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    set_parts(8192, monkeypatch.setattr)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with Hub({"ZhipuAI/GLM-4.6": source.folder}, lfs_min_nbytes=1 << 14) as served:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", served.url)
        yield served


def store_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.glmquant-source")


def weights_sent(hub: Hub) -> int:
    return sum(nbytes for name, nbytes in hub.sent.items() if name.endswith(".safetensors"))


@pytest.mark.parametrize("form", FORMATS)
def test_a_graft_from_a_hub_is_that_from_a_folder(
    form: str, source: Recorded, hub: Hub, tmp_path: Path
) -> None:
    make_base(source, tmp_path / "far", form)
    shutil.copytree(tmp_path / "far", tmp_path / "near")
    want = expected(source, tmp_path / "far")
    ran = run_glmquant("add-mtp", tmp_path / "far", "--from", ALIAS)
    assert ran.exit_code == 0, ran.stderr
    assert load(tmp_path / "far").tensors == want
    assert not store_of(tmp_path / "far").exists()
    assert str(store_of(tmp_path / "far")) not in ran.stdout + ran.stderr
    near = run_glmquant("add-mtp", tmp_path / "near", "--from", source.folder)
    assert near.exit_code == 0, near.stderr
    found, wanted = without_state(tmp_path / "far"), without_state(tmp_path / "near")
    found.pop("glmquant_manifest.json", None), wanted.pop("glmquant_manifest.json", None)
    assert found == wanted
    sent = hub.nbytes_sent()
    again = run_glmquant("add-mtp", tmp_path / "far", "--from", ALIAS)
    assert (again.exit_code, "nothing is missing" in again.stdout) == (0, True)
    assert hub.nbytes_sent() == sent


def test_a_dry_run_tells_every_range_and_no_other_byte_comes(
    source: Recorded, hub: Hub, tmp_path: Path
) -> None:
    base = make_base(source, tmp_path / "far", "v1")
    before = without_state(base)
    ran = run_glmquant("add-mtp", base, "--from", ALIAS, "--dry-run", "--json")
    assert ran.exit_code == 0, ran.stderr
    told = ran.events[-1]
    looked_at = dict(hub.sent)
    assert (without_state(base), store_of(base).exists()) == (before, False)
    assert run_glmquant("add-mtp", base, "--from", ALIAS).exit_code == 0
    planned: dict[str, int] = {}
    for each in told["read"]:
        planned[each["file"]] = planned.get(each["file"], 0) + each["nbytes"]
    came = {name: nbytes - 2 * looked_at.get(name, 0) for name, nbytes in hub.sent.items()}
    assert {name: nbytes for name, nbytes in came.items() if nbytes} == planned
    assert told["source"] == NAME
    people = run_glmquant("add-mtp", base, "--from", ALIAS, "--dry-run", "--replace-mtp")
    assert f"of {NAME}" in people.stdout and "nothing was written" in people.stdout


def test_what_came_before_a_fault_is_kept_for_the_same_command(
    source: Recorded, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base(source, tmp_path / "far", "v1")
    before = without_state(base)
    monkeypatch.setattr("glmquant.cli.remote.RUN_RETRIES", 2)
    at = (source.folder / "mtp.safetensors").stat().st_size - 5
    hub.faults.append(Fault("flip", "mtp.safetensors", -1, at=at))
    ran = run_glmquant("add-mtp", base, "--from", ALIAS)
    assert (ran.exit_code, "mtp.safetensors" in ran.stderr) == (1, True)
    assert without_state(base) == before
    assert store_of(base).is_dir()
    hub.faults.clear()
    assert run_glmquant("add-mtp", base, "--from", ALIAS).exit_code == 0
    assert not store_of(base).exists()


def test_a_graft_that_is_refused_names_the_hub_and_keeps_what_came(
    source: Recorded, hub: Hub, tmp_path: Path
) -> None:
    other = small(tmp_path / "other", seed=5)
    base = make_base(other, tmp_path / "far", "v1")
    before = without_state(base)
    ran = run_glmquant("add-mtp", base, "--from", ALIAS)
    assert ran.exit_code == 1
    assert f"note: what was fetched stays in {store_of(base)}" in ran.stderr
    assert str(store_of(base)) not in ran.stderr.replace(f"stays in {store_of(base)}", "")
    assert without_state(base) == before
    sent = weights_sent(hub)
    assert run_glmquant("add-mtp", base, "--from", ALIAS).exit_code == 1
    heads = sum(path.stat().st_size for path in source.folder.glob("*.safetensors"))
    assert weights_sent(hub) - sent <= heads, "headers alone, and these files are that short"


def test_what_an_interruption_left_is_removed_by_the_same_command(
    source: Recorded, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base(source, tmp_path / "far", "v1")
    want = expected(source, base)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("glmquant.hubs.record.shutil.rmtree", interrupt)
        assert run_glmquant("add-mtp", base, "--from", ALIAS).exit_code != 0
    assert store_of(base).is_dir()
    ran = run_glmquant("add-mtp", base, "--from", ALIAS)
    assert ran.exit_code == 0, ran.stderr
    assert not store_of(base).exists()
    assert load(base).tensors == want


def test_an_output_from_a_hub_leaves_the_checkpoint_alone(
    source: Recorded, hub: Hub, tmp_path: Path
) -> None:
    base = make_base(source, tmp_path / "far", "glmquant")
    before = without_state(base)
    ran = run_glmquant("add-mtp", base, "--from", NAME, "--output", tmp_path / "new", "--json")
    assert ran.exit_code == 0, ran.stderr
    assert without_state(base) == before
    assert load(tmp_path / "new").tensors == expected(source, base)
    assert ran.events[-1]["next"].startswith("glmquant verify ")
    assert not store_of(base).exists()


def test_a_kill_while_the_fetched_part_is_removed_is_made_up_for(
    source: Recorded, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base(source, tmp_path / "far", "v1")
    want = expected(source, base)
    kept = []

    def remove(folder: Path) -> None:
        next(folder.glob("*.safetensors")).unlink()
        kept.append(folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("glmquant.hubs.record.remove_fetched", remove)
        assert run_glmquant("add-mtp", base, "--from", ALIAS).exit_code == 130
    assert kept == [store_of(base)] and store_of(base).is_dir()
    sent = hub.nbytes_sent()
    ran = run_glmquant("add-mtp", base, "--from", ALIAS)
    assert (ran.exit_code, "nothing is missing" in ran.stdout) == (0, True), ran.stderr
    assert f"--source {NAME}" in ran.stdout
    assert not store_of(base).exists()
    assert load(base).tensors == want
    assert hub.nbytes_sent() == sent


def test_nothing_that_a_graft_does_not_read_comes(
    source: Recorded, hub: Hub, tmp_path: Path
) -> None:
    base = make_base(source, tmp_path / "far", "v1")
    (source.folder / "README.md").write_text("long " * 100)
    told = run_glmquant("add-mtp", base, "--from", ALIAS, "--dry-run", "--json").events[-1]
    names = {each["file"] for each in told["read"]}
    assert {name for name in names if not name.endswith(".safetensors")} == {"config.json"}


def test_a_part_that_was_fetched_is_verified_against_its_hub(
    source: Recorded, hub: Hub, tmp_path: Path
) -> None:
    base = make_base(source, tmp_path / "far", "glmquant")
    assert run_glmquant("fetch", ALIAS, tmp_path / "part", "--only", "mtp").exit_code == 0
    ran = run_glmquant("add-mtp", base, "--from", tmp_path / "part")
    assert ran.exit_code == 0, ran.stderr
    (line,) = [each for each in ran.stdout.splitlines() if each.startswith("next: ")]
    step = line.removeprefix("next: ").split()
    assert step[-2:] == ["--source", NAME]
    assert run_glmquant(*step[1:], "--engine", "none").exit_code == 0
