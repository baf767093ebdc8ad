"""``glmquant fetch`` against the loopback hub: what comes, what is linked, what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from glmquant.cli.progress import nbytes_text
from glmquant.hubs import outputs
from tests.builders import Recorded, build_checkpoint, read_shards
from tests.conftest import Ran, folder_bytes, run_glmquant
from tests.grafting import SMALL
from tests.hub import Hub

MODELSCOPE, MODELERS, HF = "modelscope:ZhipuAI/GLM-4.6", "modelers:Park/GLM-4.6", "hf:zai/GLM-4.6"
REFERENCES = (MODELSCOPE, MODELERS, HF)
NAMES = tuple(each.partition(":")[2] for each in REFERENCES)
MARKER, SHARD = "glmquant-partial.json", "glmquant-partial.safetensors"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without tokens, caches or settings of the hubs' own tools."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for variable in list(os.environ):
        if variable.startswith(("HF_", "HUGGING", "MODELSCOPE_", "MODELERS_", "OPENMIND_")):
            monkeypatch.delenv(variable)


@pytest.fixture
def hub(nano: Recorded) -> Iterator[Hub]:
    with Hub(dict.fromkeys(NAMES, nano.folder)) as served:
        yield served


Fetch = Callable[..., Ran]


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def fetch(hub: Hub) -> Fetch:
    return lambda *words: run_glmquant("fetch", *words, "--endpoint", hub.url, "--retries", 2)


def plain_files(folder: Path) -> dict[str, bytes]:
    """Every file but the hidden ones."""
    return {
        name: data
        for name, data in folder_bytes(folder).items()
        if not any(part.startswith(".") for part in Path(name).parts)
    }


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_model_comes_byte_for_byte_from_each_hub(
    reference: str, fetch: Fetch, nano: Recorded, tmp_path: Path
) -> None:
    ran = fetch(reference, tmp_path / "to")
    assert ran.exit_code == 0, ran.stderr
    assert plain_files(tmp_path / "to") == plain_files(nano.folder)
    assert names_in(tmp_path / "to" / ".glmquant") == {"fetch.json"}
    assert ran.stdout.splitlines()[-1] == f"next: glmquant w8a8 {tmp_path / 'to'} --add-mtp"
    assert run_glmquant("w8a8", tmp_path / "to", "--add-mtp").exit_code == 0


def test_what_is_there_is_not_fetched_again(fetch: Fetch, hub: Hub, tmp_path: Path) -> None:
    assert fetch(MODELSCOPE, tmp_path / "to").exit_code == 0
    sent = hub.nbytes_sent("model-00001")
    ran = fetch(MODELSCOPE, tmp_path / "to", "--json")
    assert ran.events[-1]["fetched_nbytes"] == 0
    head = (tmp_path / "to" / "model-00001-of-00003.safetensors").stat().st_size
    assert hub.nbytes_sent("model-00001") - sent <= head  # its header alone; it is that short
    assert ran.events[-1]["event"] == "fetched"


def test_a_file_that_the_disk_has_changed_is_found_and_fetched_again(
    fetch: Fetch, nano: Recorded, tmp_path: Path
) -> None:
    folder = tmp_path / "to"
    assert fetch(MODELSCOPE, folder).exit_code == 0
    assert run_glmquant("fetch", "--check", folder).exit_code == 0
    shard = folder / "mtp.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    ran = run_glmquant("fetch", "--check", folder)
    assert ran.exit_code == 1
    assert "error: mtp.safetensors: the file has another SHA-256" in ran.stdout
    assert f"next: rm -- {shard} && glmquant fetch {MODELSCOPE} {folder}" in ran.stdout
    assert fetch(MODELSCOPE, folder).exit_code == 0
    assert plain_files(folder) == plain_files(nano.folder)
    (folder / "LICENSE").unlink()
    found = run_glmquant("fetch", "--check", folder, "--json").events[-1]
    assert found["verdict"] == "findings"
    assert [each["file"] for each in found["faults"]] == ["LICENSE"]


def test_a_check_names_weights_that_were_not_fetched(fetch: Fetch, tmp_path: Path) -> None:
    folder = tmp_path / "to"
    fetch(MODELSCOPE, folder)
    (folder / "more.safetensors").write_bytes(b"")
    ran = run_glmquant("fetch", "--check", folder)
    assert ran.exit_code == 0
    assert "note: more.safetensors was not fetched" in ran.stdout
    ran = run_glmquant("fetch", "--check", folder, "--only", "mtp")
    assert ran.exit_code == 2
    assert run_glmquant("fetch", "--check", tmp_path / "no").exit_code == 2
    assert run_glmquant("fetch", "--check", tmp_path).exit_code == 2


def test_a_dry_run_tells_all_and_writes_nothing(
    fetch: Fetch, hub: Hub, nano: Recorded, tmp_path: Path
) -> None:
    ran = fetch(MODELSCOPE, tmp_path / "to", "--dry-run")
    assert ran.exit_code == 0
    assert not (tmp_path / "to").exists()
    assert "tensors:  119 of 119" in ran.stdout
    assert "mtp.safetensors" in ran.stdout
    assert ran.stdout.splitlines()[-1] == (
        f"nothing was written; to run it: glmquant fetch {MODELSCOPE} {tmp_path / 'to'} "
        f"--endpoint {hub.url} --retries 2"
    )
    plan = fetch(MODELSCOPE, tmp_path / "to", "--dry-run", "--json").events[-1]
    total = sum(len(data) for data in plain_files(nano.folder).values())
    assert plan["nbytes"] == plan["to_fetch_nbytes"] == total
    assert {each["file"] for each in plan["files"]} == set(plain_files(nano.folder))


def test_a_plan_says_what_may_have_to_come_again(fetch: Fetch, tmp_path: Path) -> None:
    folder = tmp_path / "to"
    fetch(MODELSCOPE, folder)
    shard = folder / "mtp.safetensors"
    may_be = "where what is there turns out not to be the hub's"
    assert may_be not in fetch(MODELSCOPE, folder, "--dry-run").stdout
    nbytes = shard.stat().st_size
    shard.write_bytes(bytes(nbytes))
    plan = fetch(MODELSCOPE, folder, "--dry-run", "--json").events[-1]
    assert (plan["to_fetch_nbytes"], plan["to_check_nbytes"]) == (0, nbytes)
    text = f"0 B to fetch, up to {nbytes_text(nbytes)} more {may_be}"
    assert text in fetch(MODELSCOPE, folder, "--dry-run").stdout
    ran = fetch(MODELSCOPE, folder)
    assert text in ran.stderr
    assert f"; {nbytes_text(nbytes)} came over the line" in ran.stdout


@pytest.mark.parametrize("layout", ["4.5", "4.6", "4.7"])
@pytest.mark.parametrize("reference", REFERENCES)
def test_the_part_for_mtp_grafts_as_the_whole_source_does(
    layout: str, reference: str, tmp_path: Path
) -> None:
    source = build_checkpoint(tmp_path / "GLM", layout, **SMALL)
    assert run_glmquant("w8a8", source.folder, tmp_path / "one").exit_code == 0
    assert run_glmquant("w8a8", source.folder, tmp_path / "two").exit_code == 0
    with Hub(dict.fromkeys(NAMES, source.folder)) as hub:
        ran = run_glmquant(
            "fetch", reference, tmp_path / "part", "--only", "mtp", "--endpoint", hub.url
        )
        assert ran.exit_code == 0, ran.stderr
    held = read_shards(tmp_path / "part")
    prefix = source.mtp_prefix
    biases = {name for name in source.tensors if name.endswith("e_score_correction_bias")}
    mtp = {name for name in source.tensors if name.startswith(prefix)}
    assert biases | mtp <= held.keys()
    body = {name for name in held if ".experts." in name and not name.startswith(prefix)}
    assert not body
    for name, (dtype, shape, data) in held.items():
        assert (dtype, tuple(shape), data) == source.tensors[name]
    for target, donor in (("one", source.folder), ("two", tmp_path / "part")):
        ran = run_glmquant("add-mtp", tmp_path / target, "--from", donor)
        assert ran.exit_code == 0, ran.stderr
    assert read_shards(tmp_path / "one") == read_shards(tmp_path / "two")
    assert run_glmquant("verify", tmp_path / "two", "--engine", "none").exit_code == 0


def test_a_part_of_another_model_is_not_grafted(tmp_path: Path) -> None:
    source = build_checkpoint(tmp_path / "GLM", **SMALL)
    other = build_checkpoint(tmp_path / "other", seed=1, **SMALL)
    run_glmquant("w8a8", source.folder, tmp_path / "to")
    with Hub(dict.fromkeys(NAMES, other.folder)) as hub:
        run_glmquant("fetch", MODELSCOPE, tmp_path / "part", "--only", "mtp", "--endpoint", hub.url)
    ran = run_glmquant("add-mtp", tmp_path / "to", "--from", tmp_path / "part")
    assert ran.exit_code == 1
    assert "not of the same model" in ran.stderr


def test_a_part_is_refused_by_name_where_all_is_wanted(fetch: Fetch, tmp_path: Path) -> None:
    part = tmp_path / "part"
    assert fetch(HF, part, "--only", "mtp").exit_code == 0
    marker = json.loads((part / MARKER).read_text())
    assert (marker["tensors"], marker["of_tensors"]) == (len(read_shards(part)), 119)
    for verb in ("w8a8", "plan"):
        ran = run_glmquant(verb, part)
        assert ran.exit_code == 1
        assert "the folder holds only a part of the model" in ran.stderr
        assert marker["complete_with"] in ran.stderr
    assert "holds only a part of the model" in run_glmquant("inspect", part).stdout
    assert run_glmquant("fetch", "--check", part).exit_code == 0


def test_a_part_becomes_the_whole(fetch: Fetch, nano: Recorded, tmp_path: Path) -> None:
    assert fetch(HF, tmp_path / "to", "--only", "mtp").exit_code == 0
    assert fetch(HF, tmp_path / "to").exit_code == 0
    assert plain_files(tmp_path / "to") == plain_files(nano.folder)


def test_the_whole_does_not_become_a_part(fetch: Fetch, nano: Recorded, tmp_path: Path) -> None:
    assert fetch(HF, tmp_path / "to").exit_code == 0
    before = folder_bytes(tmp_path / "to")
    ran = fetch(HF, tmp_path / "to", "--only", "mtp")
    assert ran.exit_code == 1
    assert "the folder holds weights of another selection" in ran.stderr
    assert folder_bytes(tmp_path / "to") == before


def test_layers_are_chosen_by_the_names_of_their_tensors(
    fetch: Fetch, nano: Recorded, tmp_path: Path
) -> None:
    assert fetch(MODELERS, tmp_path / "to", "--only", "layers=0,2-3").exit_code == 0
    held = read_shards(tmp_path / "to")
    wanted = {
        name
        for name in nano.tensors
        if name.startswith(("model.layers.0.", "model.layers.2.", "model.layers.3."))
    }
    assert wanted <= held.keys()
    assert "mtp.safetensors" not in names_in(tmp_path / "to")
    index = json.loads((tmp_path / "to" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == held.keys()
    for words, code in (
        (("--only", "layers=9"), 2),
        (("--only", "layers=3-1"), 2),
        (("--only", "layers="), 2),
        (("--only", "heads"), 2),
        (("--only", "mtp", "--include", "*.json"), 2),
    ):
        assert fetch(MODELERS, tmp_path / "no", *words).exit_code == code
        assert not (tmp_path / "no").exists()


def test_ranges_are_read_twice_where_that_is_asked(fetch: Fetch, hub: Hub, tmp_path: Path) -> None:
    ran = fetch(HF, tmp_path / "once", "--only", "mtp", "--json")
    assert ran.events[-1]["files"][SHARD]["proof"] == "structure only"
    before = hub.nbytes_sent("model-00003")
    ran = fetch(HF, tmp_path / "twice", "--only", "mtp", "--verify-ranges", "--json")
    assert ran.events[-1]["files"][SHARD]["proof"] == "read twice"
    assert ran.events[-1]["files"]["mtp.safetensors"]["proof"] == "sha256"
    assert hub.nbytes_sent("model-00003") > before
    assert (tmp_path / "once" / SHARD).read_bytes() == (tmp_path / "twice" / SHARD).read_bytes()


def test_metadata_alone_asks_for_no_weight(
    fetch: Fetch, hub: Hub, nano: Recorded, tmp_path: Path
) -> None:
    assert fetch(MODELSCOPE, tmp_path / "to", "--only", "metadata").exit_code == 0
    assert hub.nbytes_sent(".safetensors") == hub.nbytes_sent("model.safetensors.index.json")
    assert {*plain_files(tmp_path / "to")} == {
        MARKER,
        *(name for name in plain_files(nano.folder) if not name.endswith(".safetensors")),
    }
    assert "only a part" in run_glmquant("w8a8", tmp_path / "to").stderr


def test_patterns_choose_files_and_one_that_matches_nothing_is_an_error(
    fetch: Fetch, tmp_path: Path
) -> None:
    without = ("--exclude", "README*", "--exclude", "assets/")
    assert fetch(MODELSCOPE, tmp_path / "to", *without).exit_code == 0
    assert not {"README.md", "assets", MARKER} & names_in(tmp_path / "to")
    ran = fetch(MODELSCOPE, tmp_path / "one", "--include", "*.json", "--include", "mtp*")
    assert ran.exit_code == 0
    assert {MARKER, "mtp.safetensors"} <= names_in(tmp_path / "one")
    for words in (("--include", "*.bin"), ("--exclude", "nothing*"), ("--exclude", "*")):
        ran = fetch(MODELSCOPE, tmp_path / "no", *words)
        assert ran.exit_code == 2
        assert not (tmp_path / "no").exists()


def cache_layouts(home: Path, name: str, commit: str = "a" * 40) -> dict[str, Path]:
    """Where the hubs' tools keep the files of a repository."""
    owner, _, short = name.partition("/")
    cache = home / ".cache"
    flat = f"{owner}--{short}"
    return {
        "modelscope": cache / "modelscope" / "models" / flat / "snapshots" / "master",
        "modelscope, older": cache / "modelscope/hub/models" / owner / short.replace(".", "___"),
        "hf": cache / "huggingface" / "hub" / f"models--{flat}" / "snapshots" / commit,
        "openmind": cache / "openmind" / "hub" / f"models--{flat}" / "snapshots" / commit,
    }


@pytest.mark.parametrize("tool", ["modelscope", "modelscope, older", "hf", "openmind"])
def test_copies_of_the_hubs_tools_are_proved_and_linked(
    tool: str, fetch: Fetch, nano: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / ".cache"))
    cached = cache_layouts(tmp_path / "home", "ZhipuAI/GLM-4.6")[tool]
    cached.mkdir(parents=True)
    for number, path in enumerate(sorted(nano.folder.glob("*.safetensors"))):
        data = bytearray(path.read_bytes())
        data[-1] ^= number == 0  # one of them is damaged
        if tool in ("hf", "openmind"):
            blob = cached.parent.parent / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
            blob.parent.mkdir(exist_ok=True)
            blob.write_bytes(data)
            (cached / path.name).symlink_to(os.path.relpath(blob, cached))
        else:
            (cached / path.name).write_bytes(data)
    found = fetch(MODELSCOPE, tmp_path / "to", "--json").events[-1]
    assert plain_files(tmp_path / "to") == plain_files(nano.folder)
    assert found["linked"] == [
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "mtp.safetensors",
    ]
    shard = tmp_path / "to" / "mtp.safetensors"
    assert not shard.is_symlink()
    assert shard.samefile(cached / "mtp.safetensors")


def test_a_strangers_file_is_taken_where_it_is_right_and_never_overwritten(
    fetch: Fetch, hub: Hub, nano: Recorded, tmp_path: Path
) -> None:
    folder = tmp_path / "to"
    folder.mkdir()
    shard = nano.folder / "mtp.safetensors"
    (folder / shard.name).write_bytes(shard.read_bytes())
    assert fetch(MODELSCOPE, folder).exit_code == 0
    for change in (shard.read_bytes()[:-1], b"\0" * shard.stat().st_size):
        other = tmp_path / f"other-{len(change)}"
        other.mkdir()
        (other / shard.name).write_bytes(change)
        ran = fetch(MODELSCOPE, other)
        assert ran.exit_code == 1
        assert "glmquant did not fetch" in ran.stderr
        assert (other / shard.name).read_bytes() == change
    (tmp_path / "file").write_text("")
    assert fetch(MODELSCOPE, tmp_path / "file").exit_code == 1


def test_a_fetch_that_has_not_ended_is_no_source(fetch: Fetch, tmp_path: Path) -> None:
    fetch(MODELSCOPE, tmp_path / "to")
    (tmp_path / "to" / ".glmquant" / "fetch.jsonl").write_text("")
    ran = run_glmquant("w8a8", tmp_path / "to")
    assert ran.exit_code == 1
    assert "a fetch into this folder has not ended" in ran.stderr
    assert run_glmquant("fetch", "--check", tmp_path / "to").exit_code == 1
    assert fetch(MODELSCOPE, tmp_path / "to").exit_code == 0
    assert run_glmquant("w8a8", tmp_path / "to", "--dry-run").exit_code == 0


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("damage", ["index", "header", "config", "other model", "no config"])
def test_a_repository_that_does_not_hold_together_is_refused_before_a_byte_is_written(
    damage: str, fetch: Fetch, nano: Recorded, tmp_path: Path
) -> None:
    if damage == "index":
        (nano.folder / "model-00002-of-00003.safetensors").unlink()
    elif damage == "header":
        path = nano.folder / "model-00002-of-00003.safetensors"
        path.write_bytes(bytes(64) + path.read_bytes()[64:])
    elif damage == "config":
        change_config(nano.folder, n_routed_experts=5)
    elif damage == "other model":
        change_config(nano.folder, architectures=["Glm4MoeLiteForCausalLM"])
    else:
        (nano.folder / "config.json").unlink()
    ran = fetch(MODELSCOPE, tmp_path / "to")
    assert ran.exit_code == 1
    assert MODELSCOPE in ran.stderr or "model-00002" in ran.stderr
    assert not (tmp_path / "to").exists()
    if damage == "other model":
        assert "GLM-4.7-Flash" in ran.stderr


def test_a_quantized_repository_is_fetched_for_verify(nano: Recorded, tmp_path: Path) -> None:
    assert run_glmquant("w8a8", nano.folder, tmp_path / "w8a8", "--add-mtp").exit_code == 0
    with Hub({"Park/GLM-4.6-w8a8": tmp_path / "w8a8"}) as hub:
        reference = "modelers:Park/GLM-4.6-w8a8"
        ran = run_glmquant("fetch", reference, tmp_path / "to", "--endpoint", hub.url)
        assert ran.exit_code == 0, ran.stderr
        assert plain_files(tmp_path / "to") == plain_files(tmp_path / "w8a8")
        assert ran.stdout.splitlines()[-1] == f"next: glmquant verify {tmp_path / 'to'}"


def test_a_hub_that_lacks_the_model_says_where_it_is(fetch: Fetch, tmp_path: Path) -> None:
    ran = fetch("modelers:ZhipuAI/GLM-4.5", tmp_path / "to")
    assert ran.exit_code == 1
    assert "hint:     glmquant fetch modelscope:ZhipuAI/GLM-4.5" in ran.stderr
    ran = fetch(MODELSCOPE, tmp_path / "to", "--revision", "v9")
    assert ran.exit_code == 1
    assert "revision v9" in ran.stderr
    ran = run_glmquant("fetch", "glm-4.6", "--hub", "modelers")
    assert ran.exit_code == 2
    assert "glmquant fetch glm-4.6 --hub modelscope" in ran.stderr


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("glm-4.7-flash", "Glm4MoeLite"),
        ("glm-4.5v", "pictures"),
        ("glm-4.6v", "pictures"),
        ("glm-4.6-fp8", "FP8"),
        ("modelscope:ZhipuAI/GLM-4.5-Air-FP8", "FP8"),
        ("hf:zai-org/GLM-5", "GLM-5"),
    ],
)
def test_look_alikes_are_refused_by_name(name: str, word: str) -> None:
    ran = run_glmquant("fetch", name)
    assert ran.exit_code == 1
    assert word in ran.stderr


def test_a_paths_name_is_never_taken_for_an_alias(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "glm-4.6").mkdir()
    ran = run_glmquant("fetch", "glm-4.6")
    assert ran.exit_code == 2
    assert "hint:     glmquant fetch modelscope:ZhipuAI/GLM-4.6\n" in ran.stderr
    ran = run_glmquant("fetch", "glm-4.6", "into")
    assert "hint:     glmquant fetch modelscope:ZhipuAI/GLM-4.6 into\n" in ran.stderr
    for words in (("glm-9",), ("zai-org/GLM-4.6",), ("github:a/b",), ("hf:glm",), ("hf:../x",)):
        assert run_glmquant("fetch", *words).exit_code == 2
    assert run_glmquant("fetch", "hf:a/b", "--hub", "modelers").exit_code == 2
    ran = run_glmquant("fetch", "hf:me/GLM@v1")
    assert "expected: hf:OWNER/NAME" in ran.stderr
    assert "hint:     glmquant fetch hf:me/GLM --revision v1\n" in ran.stderr
    assert "expected: hf:OWNER/NAME" in run_glmquant("fetch", "hf:glm").stderr
    assert run_glmquant("fetch", "hf:a/b", "--endpoint", "http://example.org").exit_code == 2


def test_an_alias_finds_its_hub_and_its_folder(
    nano: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with Hub({"ZhipuAI/GLM-4.6": nano.folder, "zai-org/GLM-4.6": nano.folder}) as hub:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert run_glmquant("fetch", "glm-4.6").exit_code == 0
        assert run_glmquant("fetch", "glm-4.6", "other", "--hub", "hf").exit_code == 0
    assert names_in(tmp_path / "here") == {"GLM-4.6", "other"}
    assert run_glmquant("w8a8", "GLM-4.6", "--add-mtp").exit_code == 0


def test_models_lists_what_has_a_name() -> None:
    ran = run_glmquant("models")
    assert ran.exit_code == 0
    for words in ("glm-4.5-air", "modelers:Modelers_Park/GLM-4.6-w8a8", "hf:zai-org/GLM-4.7"):
        assert words in ran.stdout
    events = run_glmquant("models", "--json").events
    assert [each["alias"] for each in events][:2] == ["glm-4.5", "glm-4.5-air"]


def test_files_of_many_parts_come_whole(
    hub: Hub, fetch: Fetch, nano: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "PART_NBYTES", 1000)
    assert fetch(MODELSCOPE, tmp_path / "to").exit_code == 0
    assert plain_files(tmp_path / "to") == plain_files(nano.folder)
    assert len([each for each in hub.log if each.range and each.status == 206]) > 40
    assert fetch(HF, tmp_path / "part", "--only", "mtp").exit_code == 0
    assert (
        read_shards(tmp_path / "part").items()
        <= {
            name: (dtype, list(shape), data) for name, (dtype, shape, data) in nano.tensors.items()
        }.items()
    )


def test_what_the_disk_flipped_comes_again_by_the_command_that_check_tells(
    fetch: Fetch, nano: Recorded, tmp_path: Path
) -> None:
    folder = tmp_path / "to"
    assert fetch(MODELSCOPE, folder, "--exclude", "LICENSE*").exit_code == 0
    path = next(folder.glob("model-00002*.safetensors"))
    stamp, data = path.stat(), bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    told = run_glmquant("fetch", "--check", folder, "--json").events[-1]["next"]
    assert run_glmquant("fetch", "--check", folder).stdout.splitlines()[-1] == f"next: {told}"
    remove, again = (shlex.split(each) for each in told.split(" && "))
    assert remove == ["rm", "--", str(path)]
    assert again[:2] == ["glmquant", "fetch"] and "--revision" not in again
    path.unlink()
    assert fetch(*again[2:]).exit_code == 0
    assert path.read_bytes() == (nano.folder / path.name).read_bytes()
    assert run_glmquant("fetch", "--check", folder).exit_code == 0


def test_a_state_that_is_no_state_of_ours_is_refused(fetch: Fetch, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / ".glmquant").symlink_to(tmp_path / "elsewhere")
    ran = fetch(MODELSCOPE, tmp_path / "linked")
    assert (ran.exit_code, "a folder is a link" in ran.stderr) == (1, True)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    (tmp_path / "piped" / ".glmquant").mkdir(parents=True)
    os.mkfifo(tmp_path / "piped" / ".glmquant" / "fetch.jsonl")
    ran = fetch(MODELSCOPE, tmp_path / "piped")
    assert (ran.exit_code, "in the way of the fetch's journal" in ran.stderr) == (1, True)
