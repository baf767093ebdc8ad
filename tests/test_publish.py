"""``glmquant publish`` without ModelScope's program: what it lists, prints and refuses."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from glmquant.cli import main
from glmquant.errors import SourceChangedError
from glmquant.publish.parcel import pack, require_unchanged
from glmquant.publish.upload import find_modelscope
from tests.builders import Recorded
from tests.conftest import Ran, folder_bytes
from tests.test_execute import ENV

Run = Callable[..., Ran]
TO = ("--to", "modelscope:me/GLM-W8A8")


@pytest.fixture
def output(nano: Recorded, tmp_path: Path, glmquant: Run) -> Path:
    """A W8A8 checkpoint with its MTP layer."""
    target = tmp_path / "GLM-W8A8"
    assert glmquant("w8a8", nano.folder, target, "--add-mtp").exit_code == 0
    return target


@pytest.fixture
def without_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without ModelScope's program."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    if find_modelscope() is not None:
        pytest.skip("this environment has modelscope beside its Python")


def program(folder: Path, script: str) -> dict[str, str]:
    """The environment with a program ``modelscope`` of our own."""
    folder.mkdir()
    path = folder / "modelscope"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return {**ENV, "PATH": f"{folder}:{os.environ['PATH']}"}


def test_a_dry_run_lists_what_would_go_and_leaves_the_rest(output: Path, glmquant: Run) -> None:
    (output / ".glmquant").mkdir()
    (output / ".glmquant" / "notes").write_text("mine")
    (output / "assets" / ".hidden").write_text("mine")
    before = folder_bytes(output)
    (event,) = glmquant("publish", output, *TO, "--dry-run", "--json").events
    assert event["files"] == {
        name: len(data)
        for name, data in before.items()
        if name not in {".glmquant/notes", "assets/.hidden"}
    }
    assert event["nbytes"] == sum(event["files"].values())
    assert event["left_out"] == [".glmquant"]
    assert not event["has_card"]
    text = glmquant("publish", output, *TO, "--dry-run").stdout
    assert text.splitlines()[-1] == "nothing was sent"
    assert f"there is no README.md: glmquant card {output}" in text
    assert folder_bytes(output) == before


@pytest.mark.parametrize("hub", ["modelscope", "modelers", "hf"])
def test_the_commands_for_each_hub_are_printed(hub: str, output: Path, glmquant: Run) -> None:
    ran = glmquant("publish", output, "--to", f"{hub}:me/GLM", "--print", "--license", "mit")
    assert ran.exit_code == 0
    assert ran.stderr.startswith("needs: pip install ")
    words = shlex.split(ran.stdout)
    assert str(output) in ran.stdout
    assert {".*", "*/.*"} <= set(words) or '[".*", "*/.*"]' in ran.stdout
    assert "private" in ran.stdout
    assert "mit" in words or 'license="mit"' in ran.stdout or hub == "hf"
    if hub == "modelscope":
        lines = [shlex.split(line) for line in ran.stdout.splitlines()]
        assert [line[:3] for line in lines] == [
            ["modelscope", "create", "me/GLM"],
            ["modelscope", "upload", "me/GLM"],
        ]
    if hub == "modelers":
        compile(words[words.index("-c") + 1], "command", "exec")


def test_for_other_hubs_the_commands_are_all_there_is(output: Path, glmquant: Run) -> None:
    for hub in ("modelers", "hf"):
        words = ("publish", output, "--to", f"{hub}:me/GLM", "--license", "mit")
        assert glmquant(*words).stdout == glmquant(*words, "--print").stdout != ""


@pytest.mark.parametrize("hub", ["modelers", "hf"])
def test_for_other_hubs_too_nothing_goes_that_verify_finds_wrong(
    hub: str, output: Path, glmquant: Run
) -> None:
    config = json.loads((output / "config.json").read_text())
    (output / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 7}))
    ran = glmquant("publish", output, "--to", f"{hub}:me/GLM", "--license", "mit")
    assert (ran.exit_code, "nothing was sent" in ran.stderr) == (1, True)
    assert "openmind" not in ran.stdout and "hf upload" not in ran.stdout


@pytest.mark.parametrize("name", ["id_rsa", "server.pem", "token.txt", "notes/todo.md"])
def test_what_belongs_to_no_checkpoint_does_not_go(name: str, output: Path, glmquant: Run) -> None:
    (output / name).parent.mkdir(exist_ok=True)
    (output / name).write_text("secret")
    words = ("publish", output, "--to", "modelscope:me/GLM", "--dry-run")
    ran = glmquant(*words)
    assert (ran.exit_code, name in ran.stderr) == (1, True)
    assert "belongs to no checkpoint" in ran.stderr
    assert glmquant(*words, "--include", name).exit_code == 0


def test_a_linked_folder_does_not_go(output: Path, tmp_path: Path, glmquant: Run) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "license.txt").write_text("secret")
    (output / "linked").symlink_to(tmp_path / "private")
    ran = glmquant("publish", output, "--to", "hf:me/GLM", "--print", "--license", "mit")
    assert (ran.exit_code, "linked/license.txt" in ran.stderr) == (1, True)


def test_a_file_that_changes_after_verify_is_seen(output: Path) -> None:
    parcel = pack(output)
    require_unchanged(parcel)
    (output / "config.json").write_text("{}")
    with pytest.raises(SourceChangedError, match="changed after it was verified"):
        require_unchanged(parcel)


def test_no_command_holds_a_token(
    output: Path, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("MODELSCOPE_API_TOKEN", "MODELERS_TOKEN", "HF_TOKEN"):
        monkeypatch.setenv(variable, "hidden-secret")
    for hub in ("modelscope", "modelers", "hf"):
        for more in ("--print", "--dry-run"):
            ran = glmquant("publish", output, "--to", f"{hub}:me/GLM", more)
            assert "hidden-secret" not in ran.stdout + ran.stderr


@pytest.mark.usefixtures("without_program")
def test_without_the_program_the_commands_and_its_install_are_told(
    output: Path, glmquant: Run
) -> None:
    ran = glmquant("publish", output, *TO, "--license", "mit")
    assert ran.exit_code == 1
    assert "pip install 'glmquant[modelscope]'" in ran.stderr
    assert "modelscope upload me/GLM-W8A8" in ran.stderr
    assert ran.stdout == ""


def test_the_licence_is_the_cards_or_has_to_be_said(output: Path, glmquant: Run) -> None:
    ran = glmquant("publish", output, *TO)
    assert ran.exit_code == 2
    assert "no licence is known" in ran.stderr
    assert glmquant("card", output, "--license", "apache-2.0").exit_code == 0
    assert "--license apache-2.0" in glmquant("publish", output, *TO, "--print").stdout
    ran = glmquant("publish", output, *TO, "--print", "--license", "mit")
    assert "--license mit" in ran.stdout
    (output / "README.md").write_text("---\n{: [\n---\n")
    assert glmquant("publish", output, *TO).exit_code == 2


@pytest.mark.usefixtures("without_program")
@pytest.mark.parametrize("change", ["another file", "one less", "a graft"])
def test_a_card_of_other_files_does_not_go(
    change: str, nano: Recorded, output: Path, tmp_path: Path, glmquant: Run
) -> None:
    if change == "a graft":
        output = tmp_path / "bare"
        assert glmquant("w8a8", nano.folder, output).exit_code == 0
    words = ("publish", output, *TO, "--license", "mit")
    assert glmquant("card", output).exit_code == 0
    if change == "a graft":
        assert glmquant("add-mtp", output, "--from", nano.folder).exit_code == 0
    elif change == "one less":
        (output / "LICENSE").unlink()
    else:
        (output / "generation_config.json").write_text("{}")
    ran = glmquant(*words)
    assert ran.exit_code == 1
    assert "the card is not that of these files" in ran.stderr
    assert f"hint:     glmquant card {output}" in ran.stderr
    assert glmquant("card", output).exit_code == 0
    assert "the card is not" not in glmquant(*words).stderr
    (output / "README.md").write_text("# Mine\n")
    assert "the card is not" not in glmquant(*words).stderr


@pytest.mark.parametrize(
    ("to", "hint"),
    [
        ("me/GLM", "modelscope:me/GLM"),
        ("me", "modelscope:OWNER/NAME"),
        ("nowhere:me/GLM", "modelscope:OWNER/NAME"),
        ("modelscope:GLM", "modelscope:OWNER/NAME"),
        ("hf:me/GLM@v1", "hf:OWNER/NAME"),
        ("hf:glm-4.6", "hf:OWNER/NAME"),
        ("modelers:me/../GLM", "modelers:OWNER/NAME"),
        ("modelscope:", "modelscope:OWNER/NAME"),
        ("", "modelscope:OWNER/NAME"),
    ],
)
def test_what_names_no_repository_is_wrong_usage(
    to: str, hint: str, output: Path, glmquant: Run
) -> None:
    ran = glmquant("publish", output, "--to", to, "--print")
    assert ran.exit_code == 2, ran.stdout
    assert "error: that names no repository on a hub" in ran.stderr
    assert "hf:OWNER/NAME, without a revision" in ran.stderr
    assert f"hint:     --to {hint}\n" in ran.stderr
    assert glmquant("publish", output, "--print").exit_code == 2


def test_what_is_not_finished_does_not_go(output: Path, tmp_path: Path, glmquant: Run) -> None:
    (output / "model-00001-of-00003.safetensors.part").touch()
    ran = glmquant("publish", output, *TO, "--dry-run")
    assert ran.exit_code == 1
    assert "model-00001-of-00003.safetensors.part" in ran.stderr
    (tmp_path / "empty").mkdir()
    assert glmquant("publish", tmp_path / "empty", *TO, "--dry-run").exit_code == 1


def test_what_verify_finds_wrong_does_not_go(output: Path, tmp_path: Path) -> None:
    (output / "tokenizer.json").unlink()
    shard = output / "mtp.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    env = program(tmp_path / "bin", f"touch {tmp_path}/called")
    words = [sys.executable, "-m", "glmquant", "publish", str(output), *TO, "--license", "mit"]
    ran = subprocess.run(words, env=env, capture_output=True, text=True)
    assert ran.returncode == 1
    assert "error W1" in ran.stdout
    assert "nothing was sent" in ran.stderr
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_program_is_interrupted_with_us(
    output: Path, tmp_path: Path, number: signal.Signals
) -> None:
    script = (
        f"trap 'touch {tmp_path}/saved; exit 130' INT; touch {tmp_path}/called; sleep 60 & wait"
    )
    env = program(tmp_path / "bin", script)
    words = [sys.executable, "-m", "glmquant", "publish", str(output), *TO, "--license", "mit"]
    running = subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not (tmp_path / "called").exists() and time.monotonic() < end:
        time.sleep(0.05)
    running.send_signal(number)
    _, said = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "the same command goes on where this one stopped" in said
    assert (tmp_path / "saved").exists()


def test_the_last_words_of_a_program_that_fails_are_told(output: Path, tmp_path: Path) -> None:
    env = program(tmp_path / "bin", "echo Preparing; echo 'Error: quota is used up' >&2; exit 1")
    words = [sys.executable, "-m", "glmquant", "publish", str(output), *TO, "--license", "mit"]
    ran = subprocess.run([*words, "--json"], env=env, capture_output=True, text=True)
    assert ran.returncode == 1
    assert "found:    exit code 1: Error: quota is used up" in ran.stderr
    assert '"event": "error"' in ran.stdout.splitlines()[-1]


def test_every_option_of_publish_is_in_its_help(glmquant: Run) -> None:
    text = glmquant("publish", "--help").stdout
    assert all(
        each.opts[0] in text for each in main.commands["publish"].params if each.opts[0][0] == "-"
    )
