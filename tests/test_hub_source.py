"""``verify --source`` a hub's model: the verdict of a folder, by the bytes that are compared."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from glmquant.header import Header, read_header
from glmquant.tensors import TensorRef
from glmquant.verify.weights.check import FAR_ROWS
from tests.conftest import Ran, run_glmquant
from tests.fetching import build_repo, set_head, set_parts
from tests.hub import Fault, Hub

REPO = "ZhipuAI/GLM-4.6"
HEAD_NBYTES = 4096


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that tests leave as it is, with rows enough for a sample to be one."""
    folder = tmp_path_factory.mktemp("hub") / "GLM-4.6"
    return build_repo(folder, shard_nbytes=150_000, hidden_size=64, moe_intermediate_size=32).folder


@pytest.fixture(scope="module")
def made(repo: Path) -> Path:
    """What w8a8 makes of it."""
    target = repo.with_name("made")
    assert run_glmquant("w8a8", repo, target, "--add-mtp").exit_code == 0
    return target


@pytest.fixture
def checkpoint(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "checkpoint"))


@pytest.fixture(autouse=True)
def hub(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    set_parts(8192, monkeypatch.setattr)
    set_head(HEAD_NBYTES, monkeypatch.setattr)
    monkeypatch.setattr("glmquant.hubs.outline.HEAD_NBYTES", HEAD_NBYTES)
    for name in ("HOME", "XDG_CACHE_HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
        (tmp_path / name.lower()).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmpdir"))
    for name in [each for each in os.environ if each.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with Hub({REPO: repo}) as served:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", served.url)
        yield served


def verify(checkpoint: Path, *words: object, source: object = "glm-4.6") -> Ran:
    return run_glmquant("verify", checkpoint, "--source", source, "--engine", "none", *words)


def report(ran: Ran) -> dict[str, object]:
    """The verdict without what names the source and the sample."""
    told: dict[str, object] = ran.events[-1]
    for key in ("source", "next", "notes", "int8", "roles"):
        told.pop(key, None)
    return told


def headers(folder: Path) -> dict[str, Header]:
    found = {}
    for path in folder.glob("*.safetensors"):
        data = path.read_bytes()
        found[path.name] = read_header(path.name, len(data), lambda at, n: data[at : at + n])  # noqa: B023
    return found


def tensor(folder: Path, name: str) -> TensorRef:
    refs = (ref for header in headers(folder).values() for ref in header.tensors)
    return next(ref for ref in refs if ref.name == name)


def change(folder: Path, name: str, edit: Callable[[bytearray], None]) -> None:
    """Edit a tensor's bytes in place."""
    ref = tensor(folder, name)
    path = folder / ref.file
    data = bytearray(path.read_bytes())
    part = data[ref.offset : ref.offset + ref.nbytes]
    edit(part)
    data[ref.offset : ref.offset + ref.nbytes] = part
    path.write_bytes(data)


def test_a_source_on_a_hub_gives_the_verdict_of_one_here(
    hub: Hub, repo: Path, made: Path, tmp_path: Path
) -> None:
    far, near = verify(made, "--json"), verify(made, "--json", source=repo)
    assert (far.exit_code, near.exit_code) == (0, 0), far.stderr
    assert far.events[-1]["source"] == f"modelscope:{REPO}"
    assert report(far) == report(near)
    assert list((tmp_path / "tmpdir").iterdir()) == []
    people = verify(made)
    assert f"{FAR_ROWS} rows of each int8 weight were held against the source" in people.stdout
    assert "glmquant-outline" not in people.stdout


def test_only_what_is_compared_is_read(hub: Hub, repo: Path, made: Path) -> None:
    assert verify(made).exit_code == 0
    sent = {name: nbytes for name, nbytes in hub.sent.items() if name.endswith(".safetensors")}
    int8 = {
        ref.name for header in headers(made).values() for ref in header.tensors if ref.dtype == "I8"
    }
    for name, header in headers(repo).items():
        heads = max(header.nbytes, min(HEAD_NBYTES, (repo / name).stat().st_size))
        want = sum(
            ref.nbytes // ref.shape[0] * min(FAR_ROWS, ref.shape[0])
            if ref.name in int8
            else ref.nbytes
            for ref in header.tensors
        )
        assert want <= sent[name] <= heads + want
    hub.sent.clear()
    assert verify(made, "--deep").exit_code == 0
    for name, header in headers(repo).items():
        heads = max(header.nbytes, min(HEAD_NBYTES, (repo / name).stat().st_size))
        want = sum(ref.nbytes for ref in header.tensors)
        assert want <= hub.sent[name] <= heads + want


def test_the_sample_tells_two_experts_that_changed_places(checkpoint: Path) -> None:
    (checkpoint / "glmquant_manifest.json").unlink()
    at = "model.layers.2.mlp.experts"
    parts = {}
    for expert in (0, 1):
        for suffix in ("weight", "weight_scale"):
            ref = tensor(checkpoint, f"{at}.{expert}.up_proj.{suffix}")
            data = (checkpoint / ref.file).read_bytes()
            parts[expert, suffix] = data[ref.offset : ref.offset + ref.nbytes]
    for expert, suffix in parts:

        def swap(part: bytearray, other: bytes = parts[1 - expert, suffix]) -> None:
            part[:] = other

        change(checkpoint, f"{at}.{expert}.up_proj.{suffix}", swap)
    ran = verify(checkpoint, "--json")
    assert ran.exit_code == 1
    assert {"N1"} == {each["code"] for each in ran.events[-1]["findings"]}


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("model.layers.4.eh_proj.weight", "M2"),
        ("model.layers.3.mlp.gate.e_score_correction_bias", "M1"),
        ("model.norm.weight", "N1"),
    ],
)
def test_a_bit_of_what_stayed_float_is_seen(name: str, code: str, checkpoint: Path) -> None:
    (checkpoint / "glmquant_manifest.json").unlink()

    def flip(part: bytearray) -> None:
        part[len(part) // 2] ^= 1

    change(checkpoint, name, flip)
    ran = verify(checkpoint, "--json")
    assert ran.exit_code == 1, ran.stdout
    assert code in {each["code"] for each in ran.events[-1]["findings"]}


def test_every_row_is_seen_with_deep(checkpoint: Path) -> None:
    (checkpoint / "glmquant_manifest.json").unlink()
    name = "model.layers.1.self_attn.q_proj.weight"
    rows, columns = tensor(checkpoint, name).shape

    def spoil(part: bytearray) -> None:
        values = np.frombuffer(part, np.int8).reshape(rows, columns)
        for row in range(0, rows, 2):  # whichever rows are sampled, one of two is left
            values[row] = -values[row]

    change(checkpoint, name, spoil)
    assert verify(checkpoint).exit_code == 1
    assert verify(checkpoint, "--deep").exit_code == 1


def test_a_side_file_that_differs_is_told_with_a_command_that_mends_it(
    checkpoint: Path, hub: Hub, repo: Path
) -> None:
    path = checkpoint / "generation_config.json"
    path.write_text('{"eos_token_id": [1]}')
    ran = verify(checkpoint, "--json")
    (found,) = [each for each in ran.events[-1]["findings"] if each["code"] == "S1"]
    fetch, copy = found["next"].split(" && ")
    folder = checkpoint.parent / "GLM-4.6-metadata"
    assert fetch == f"glmquant fetch modelscope:{REPO} {folder} --only metadata"
    assert run_glmquant(*fetch.split()[1:]).exit_code == 0
    _, source, target = copy.split()
    shutil.copy(source, target)
    assert path.read_bytes() == (repo / path.name).read_bytes()


def test_the_faults_of_a_line_are_got_over(hub: Hub, made: Path) -> None:
    hub.faults += [
        Fault("status", "model-00001", 2),
        Fault("cut", "model-00002", 3, at=900),
        Fault("norange", "mtp", 1),
        Fault("wrongrange", "mtp", 1),
        Fault("expire", "model-00001", 1),
    ]
    ran = verify(made)
    assert ran.exit_code == 0, ran.stderr
    assert all(fault.times == 0 for fault in hub.faults)


@pytest.mark.parametrize("kind", ["status", "norange"])
def test_a_hub_that_fails_for_good_is_no_verdict(
    kind: str, hub: Hub, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glmquant.cli.remote.RUN_RETRIES", 3)
    hub.faults.append(Fault(kind, "mtp.safetensors", -1))
    ran = verify(made)
    assert ran.exit_code == 2, ran.stdout
    assert "mtp.safetensors" in ran.stderr and "verdict" not in ran.stdout


def test_a_repository_that_is_not_there_is_no_verdict(made: Path) -> None:
    ran = verify(made, source="modelscope:ZhipuAI/GLM-4.5")
    assert (ran.exit_code, "does not have this repository" in ran.stderr) == (2, True)
