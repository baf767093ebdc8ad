"""Commands that read headers take a model on a hub, and read nothing else of it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from glmquant.hubs.remote import HEAD_NBYTES
from tests.builders import build_checkpoint
from tests.conftest import run_glmquant
from tests.hub import Fault, Hub

NAMES = {"modelscope": "ZhipuAI/GLM-4.6", "hf": "owner/GLM-4.6", "modelers": "park/GLM-4.6"}
IDS = ("glm-4.6", "hf:owner/GLM-4.6", "modelers:park/GLM-4.6")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A model of a few megabytes under three names; the working directory is empty."""
    build_checkpoint(tmp_path / "GLM-4.6", shard_nbytes=600_000, hidden_size=512)
    (tmp_path / "here").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with Hub(dict.fromkeys(NAMES.values(), tmp_path / "GLM-4.6")) as served:
        for variable in ("MODELSCOPE_ENDPOINT", "OPENMIND_HUB_ENDPOINT", "HF_ENDPOINT"):
            monkeypatch.setenv(variable, served.url)
        yield served


def assert_nothing_left(folder: Path) -> None:
    assert list((folder / "here").iterdir()) == []
    assert list((folder / "temporary").iterdir()) == []


@pytest.mark.parametrize("name", IDS)
def test_a_hub_model_is_planned_as_it_would_be_here(name: str, hub: Hub, tmp_path: Path) -> None:
    ran = run_glmquant("plan", name, "--add-mtp", "--files")
    assert ran.exit_code == 0, ran.stderr
    here = run_glmquant("plan", tmp_path / "GLM-4.6", "--add-mtp", "--files")
    assert ran.stdout.splitlines()[1:-1] == here.stdout.splitlines()[1:-1]
    source = "modelscope:ZhipuAI/GLM-4.6" if name == "glm-4.6" else name
    command = f"glmquant fetch {source} && glmquant w8a8 GLM-4.6 --add-mtp"
    assert ran.stdout.splitlines()[-1] == f"nothing was written; to run it: {command}"
    shards = list((tmp_path / "GLM-4.6").glob("*.safetensors"))
    sent = {name: nbytes for name, nbytes in hub.sent.items() if name.endswith(".safetensors")}
    assert len(sent) == len(shards) and max(sent.values()) <= HEAD_NBYTES
    assert sum(path.stat().st_size for path in shards) > 3 * HEAD_NBYTES * len(shards)
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize("name", IDS)
def test_a_hub_model_is_inspected_as_it_would_be_here(name: str, hub: Hub, tmp_path: Path) -> None:
    ran = run_glmquant("inspect", name, "--json")
    assert ran.exit_code == 0, ran.stderr
    here = run_glmquant("inspect", tmp_path / "GLM-4.6", "--json")
    told, known = ran.events[-1], here.events[-1]
    assert told.pop("next") == f"glmquant fetch {told['folder']}"
    known.pop("next")
    assert told.pop("folder") == ("modelscope:ZhipuAI/GLM-4.6" if name == "glm-4.6" else name)
    known.pop("folder")
    assert told == known
    assert_nothing_left(tmp_path)


def test_a_quantized_hub_model_is_inspected(hub: Hub, tmp_path: Path) -> None:
    assert run_glmquant("w8a8", tmp_path / "GLM-4.6", tmp_path / "out").exit_code == 0
    hub.repos.folders["park/w8a8"] = tmp_path / "out"
    ran = run_glmquant("inspect", "modelers:park/w8a8", "--json")
    assert ran.events[-1]["format"]["tool"].startswith("glmquant"), ran.stderr
    refused = run_glmquant("plan", "modelers:park/w8a8")
    assert (refused.exit_code, "already quantized" in refused.stderr) == (1, True)
    assert_nothing_left(tmp_path)


def test_a_broken_shard_on_a_hub_is_told_and_the_rest_too(hub: Hub, tmp_path: Path) -> None:
    path = next((tmp_path / "GLM-4.6").glob("model-00002-*.safetensors"))
    path.write_bytes(b"\xff" * 5000)
    ran = run_glmquant("inspect", "glm-4.6")
    assert ran.exit_code == 0
    assert path.name in ran.stdout and "unreadable" in ran.stdout
    refused = run_glmquant("plan", "glm-4.6")
    assert (refused.exit_code, path.name in refused.stderr) == (1, True)
    assert_nothing_left(tmp_path)


def test_the_faults_of_a_line_are_got_over(hub: Hub, tmp_path: Path) -> None:
    hub.faults += [Fault("status", "model-00002", 2), Fault("cut", "config.json", 1, at=20)]
    assert run_glmquant("plan", "glm-4.6").exit_code == 0
    assert_nothing_left(tmp_path)


def test_a_header_longer_than_a_read_comes_whole(hub: Hub, tmp_path: Path) -> None:
    path = next((tmp_path / "GLM-4.6").glob("model-00001-*.safetensors"))
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end]) | {"__metadata__": {"format": "pt", "note": "x" * 300_000}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
    ran = run_glmquant("plan", "glm-4.6")
    assert ran.exit_code == 0, ran.stderr


def test_a_folder_of_that_name_is_meant_where_there_is_one(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "GLM-4.6").rename("glm-4.6")
    ran = run_glmquant("plan", "glm-4.6")
    assert ran.exit_code == 0, ran.stderr
    assert ran.stdout.splitlines()[-1].endswith("glmquant w8a8 glm-4.6")
    assert hub.log == []


def test_what_is_neither_here_nor_known_is_refused(hub: Hub) -> None:
    ran = run_glmquant("plan", "GLM-9")
    assert (ran.exit_code, "no such source" in ran.stderr) == (2, True)
    ran = run_glmquant("inspect", "hf:GLM-9")
    assert (ran.exit_code, "hf:OWNER/NAME" in ran.stderr) == (2, True)
    ran = run_glmquant("plan", "glm-4.7-flash")
    assert ran.exit_code == 2
    assert hub.log == []
