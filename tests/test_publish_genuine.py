"""``glmquant publish`` with ModelScope's genuine program, to the hub on loopback."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.builders import Recorded
from tests.conftest import Ran, folder_bytes, run_glmquant
from tests.hub import Fault, Hub
from tests.test_execute import ENV

pytestmark = pytest.mark.hubs

TOKEN = "ms-hidden-token"
NAME = "me/GLM-W8A8"
TO = f"modelscope:{NAME}"


@dataclass(frozen=True)
class Sender:
    """A user with a checkpoint, a token and the program."""

    hub: Hub
    folder: Path
    home: Path
    env: dict[str, str]

    def publish(self, *words: str, **more: str) -> Ran:
        ran = subprocess.run(
            [sys.executable, "-m", "glmquant", "publish", self.folder, "--to", TO, *words],
            env={**self.env, **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert TOKEN not in ran.stdout + ran.stderr
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    @property
    def sent(self) -> dict[str, bytes]:
        """What the hub has of the repository."""
        folder = self.hub.repos.folders.get(NAME)
        return folder_bytes(folder) if folder else {}

    @property
    def wanted(self) -> dict[str, bytes]:
        """What it is to have."""
        return {
            name: data
            for name, data in folder_bytes(self.folder).items()
            if not any(part.startswith(".") for part in Path(name).parts)
        }


@pytest.fixture
def sender(nano: Recorded, tmp_path: Path) -> Iterator[Sender]:
    python = os.environ.get("GLMQUANT_HUBS_PYTHON")
    if python is None:
        pytest.skip("no GLMQUANT_HUBS_PYTHON: `tools/check hubs` makes the environment")
    folder = tmp_path / "GLM-W8A8"
    assert run_glmquant("w8a8", nano.folder, folder, "--add-mtp").exit_code == 0
    assert run_glmquant("card", folder, "--license", "mit").exit_code == 0
    state = folder / ".glmquant" / "results"
    state.mkdir(parents=True)
    (state / "gsm8k.json").write_text('{"dataset": "gsm8k", "metric": "accuracy", "value": 95}')
    (folder / "assets" / ".hidden").write_text("mine")
    home = tmp_path / "home"
    home.mkdir()
    with Hub({}, token=TOKEN, uploads=tmp_path / "hub") as hub:
        env = {
            name: text for name, text in ENV.items() if not name.startswith(("MODELSCOPE", "HF_"))
        }
        env |= {
            "PATH": f"{Path(python).parent}:{os.environ['PATH']}",
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home / "cache"),
            "MODELSCOPE_ENDPOINT": hub.url,
            "MODELSCOPE_HOME": str(home),
            "MODELSCOPE_API_TOKEN": TOKEN,
            "MODELSCOPE_UPLOAD_BLOB_MAX_ATTEMPTS": "1",
            "MODELSCOPE_UPLOAD_COMMIT_MAX_ATTEMPTS": "1",
            "MODELSCOPE_UPLOAD_FAILED_FILE_MAX_RETRY_ROUNDS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        yield Sender(hub, folder, home, env)


def test_every_byte_arrives_and_nothing_hidden(sender: Sender) -> None:
    ran = sender.publish()
    assert ran.exit_code == 0, ran.stderr
    assert sender.sent == sender.wanted
    assert "README.md" in sender.sent
    count = len(sender.wanted)
    assert f"the hub lists all {count} files with their lengths" in ran.stdout
    assert ran.stdout.splitlines()[-1] == f"next: glmquant inspect {TO}"
    assert sender.hub.uploads
    (created,) = sender.hub.uploads.created
    assert (created["Visibility"], created["License"]) == (1, "mit")
    held = [
        data for folder in (sender.folder, sender.home) for data in folder_bytes(folder).values()
    ]
    assert not any(TOKEN.encode() in data for data in held)


def test_the_same_command_again_sends_nothing_twice(sender: Sender) -> None:
    assert sender.publish("--visibility", "public").exit_code == 0
    assert sender.hub.uploads
    assert sender.hub.uploads.created[0]["Visibility"] == 5
    puts = [asked for asked in sender.hub.log if asked.method == "PUT"]
    assert sender.publish().exit_code == 0
    assert [asked for asked in sender.hub.log if asked.method == "PUT"] == puts
    assert len(sender.hub.uploads.created) == 1
    assert sender.sent == sender.wanted
    assert run_glmquant("verify", sender.folder, "--deep", "--engine", "none").exit_code == 0


@pytest.mark.parametrize(
    "fault",
    [
        Fault("put", match="/upload/", status=500, times=-1),
        Fault("put-cut", match="/upload/", at=1000, times=-1),
        Fault("post", match="/commit/", status=500, times=-1),
        Fault("post", match="/commit/", status=403, times=-1),
    ],
    ids=["500 for a blob", "a cut in a blob", "500 for the commit", "403 for the commit"],
)
def test_a_failed_upload_is_told_and_the_same_command_completes_it(
    fault: Fault, sender: Sender
) -> None:
    sender.hub.faults.append(fault)
    ran = sender.publish()
    assert ran.exit_code == 1, ran.stdout
    assert "error: the checkpoint was not sent, or not all of it" in ran.stderr
    assert "hint:     run the same command again" in ran.stderr
    assert sender.sent != sender.wanted
    sender.hub.faults.clear()
    ran = sender.publish()
    assert ran.exit_code == 0, ran.stderr
    assert sender.sent == sender.wanted


def test_a_wrong_token_sends_nothing_and_names_the_login(sender: Sender) -> None:
    sender.hub.token = "another"
    ran = sender.publish()
    assert ran.exit_code == 1
    assert "error: the repository is not there and could not be made" in ran.stderr
    assert "hint:     modelscope login, or MODELSCOPE_API_TOKEN" in ran.stderr
    assert sender.hub.uploads
    assert sender.hub.uploads.created == []


def test_a_checkpoint_that_is_not_right_goes_nowhere(sender: Sender) -> None:
    shard = sender.folder / "mtp.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.chmod(stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IROTH)
    shard.write_bytes(data)
    (sender.folder / "README.md").unlink()  # it lists another sum, which is told first
    ran = sender.publish("--license", "mit")
    assert ran.exit_code == 1
    assert "error B1" in ran.stdout
    assert "nothing was sent: verify found errors" in ran.stderr
    assert sender.hub.log == []
