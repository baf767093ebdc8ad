"""What a user types, sees and may leave out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from glmquant.cli import main
from glmquant.runs import write_run
from tests.builders import Recorded, build_checkpoint
from tests.conftest import Ran, folder_bytes
from tests.hub import Hub
from tests.runs import a_run
from tests.services import a_service
from tests.test_execute import ENV

Run = Callable[..., Ran]


@pytest.mark.parametrize("verb", sorted(main.commands))
def test_the_example_at_the_end_of_each_help_works(
    verb: str, tmp_path: Path, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_checkpoint(tmp_path / "GLM-4.6")
    monkeypatch.chdir(tmp_path)
    last = glmquant(verb, "--help").stdout.rstrip().splitlines()[-1]
    match = re.fullmatch(r"  Example: glmquant (.+)", last)
    assert match, last
    words = match[1].replace("/tmp/", f"{tmp_path}/").split()
    made = {"GLM-4.6-W8A8": [], "GLM-4.6-W8A8-floatmtp": ["--add-mtp"]}
    for name in made.keys() & set(words):
        assert glmquant("w8a8", "GLM-4.6", *made[name]).exit_code == 0
    if verb == "compare":
        for name in words[1:]:
            write_run(tmp_path / name, a_run(right=9, of=10))
    has_dry_run = any(option.name == "dry_run" for option in main.commands[verb].params)
    if verb == "fetch":
        monkeypatch.chdir(tmp_path / "GLM-4.6" / "assets")  # where no such folder is
    with Hub({"ZhipuAI/GLM-4.6": tmp_path / "GLM-4.6"}) as hub, a_service() as service:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.url)
        words = [word.replace("http://127.0.0.1:8000", service.url) for word in words]
        ran = glmquant(*words, *["--dry-run"][: int(has_dry_run)])
    assert ran.exit_code == 0, ran.stderr
    assert ran.stdout


def test_help_does_not_import_what_it_does_not_need() -> None:
    script = (
        "import sys; from glmquant.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numba', 'numpy', 'pydantic', 'rich', 'yaml', 'xxhash', 'torch'}\n"
        "sys.exit(str(sorted(heavy & sys.modules.keys())) if heavy & sys.modules.keys() else 0)"
    )
    subprocess.run([sys.executable, "-c", script], env=ENV, check=True, capture_output=True)


def test_the_only_bf16_folder_here_is_meant(
    tmp_path: Path, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_checkpoint(tmp_path / "GLM-4.6")
    (tmp_path / "notes").mkdir()
    monkeypatch.chdir(tmp_path)
    assert glmquant("w8a8", "--add-mtp").exit_code == 0
    assert (tmp_path / "GLM-4.6-W8A8-floatmtp/config.json").is_file()
    assert glmquant("w8a8").exit_code == 0  # the output beside it is no second choice
    assert (tmp_path / "GLM-4.6-W8A8/config.json").is_file()
    monkeypatch.chdir(tmp_path / "GLM-4.6")
    assert "already done" in glmquant("w8a8").stdout


def test_two_bf16_folders_are_listed_and_neither_is_taken(
    tmp_path: Path, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_checkpoint(tmp_path / "GLM-4.5", "4.5")
    build_checkpoint(tmp_path / "GLM-4.6")
    monkeypatch.chdir(tmp_path)
    before = folder_bytes(tmp_path)
    ran = glmquant("w8a8")
    assert ran.exit_code == 2
    assert "GLM-4.5, GLM-4.6" in ran.stderr
    assert folder_bytes(tmp_path) == before


@pytest.mark.parametrize(
    "words",
    [
        ["w8a8", "nowhere"],
        ["w8a8"],
        ["w8a8", "GLM", "--recipe", "nothing"],
        ["w8a8", "GLM", "--workers", "0"],
        ["w8a8", "GLM", "--workers", "many"],
        ["w8a8", "GLM", "out", "more"],
        ["w8a8", "GLM", "--no-such-flag"],
        ["w8a8", "GLM/config.json"],
        ["recipes", "nothing"],
        ["quantise"],
    ],
)
def test_wrong_usage_ends_with_2_and_writes_nothing(
    words: list[str], tmp_path: Path, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_checkpoint(tmp_path / "there/GLM")
    monkeypatch.chdir(tmp_path / "there" if words != ["w8a8"] else tmp_path)
    before = folder_bytes(tmp_path)
    ran = glmquant(*words)
    assert ran.exit_code == 2
    assert ran.stderr
    assert folder_bytes(tmp_path) == before


def test_a_target_that_starts_with_the_sources_name_is_no_overlap(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    assert glmquant("w8a8", f"{nano.folder}/", f"{nano.folder}2/").exit_code == 0
    assert (tmp_path / "GLM2/config.json").is_file()


def test_dry_run_prints_the_plan_and_writes_nothing(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    before = folder_bytes(tmp_path)
    ran = glmquant("w8a8", nano.folder, "--add-mtp", "--dry-run")
    assert ran.exit_code == 0
    assert "nothing was written" in ran.stdout
    assert "mtp.safetensors" in ran.stdout
    assert folder_bytes(tmp_path) == before
    (plan,) = glmquant("w8a8", nano.folder, "--add-mtp", "--dry-run", "--json").events
    glmquant("w8a8", nano.folder, tmp_path / "out", "--add-mtp")
    written = {name: len(data) for name, data in folder_bytes(tmp_path / "out").items()}
    manifest = written.pop("glmquant_manifest.json")
    assert {file["file"]: file["nbytes"] for file in plan["files"]} == written
    assert manifest <= plan["manifest_nbytes_bound"] < 3 * manifest


def test_json_lines_tell_the_whole_run(nano: Recorded, tmp_path: Path, glmquant: Run) -> None:
    ran = glmquant("w8a8", nano.folder, tmp_path / "out", "--add-mtp", "--json")
    kinds = [event["event"] for event in ran.events]
    assert kinds == ["plan", "start", "shard", "shard", "shard", "shard", "done"]
    done = ran.events[-1]
    assert done["output_nbytes"] == sum(map(len, folder_bytes(tmp_path / "out").values()))
    assert done["mtp_layers"] == 1
    rows = {row["role"]: row for row in done["roles"]}
    assert rows["routed_expert"]["sqnr_db_least"] > 40
    assert sum(row["source_nbytes"] for row in done["roles"]) == done["source_nbytes"]
    assert ran.stderr == ""


def test_an_error_is_json_too_where_json_was_asked_for(tmp_path: Path, glmquant: Run) -> None:
    ran = glmquant("w8a8", tmp_path / "nowhere", "--json")
    assert ran.exit_code == 2
    (event,) = ran.events
    assert (event["event"], event["error"]) == ("error", "UsageError")
    assert {"what", "where", "expected", "found", "hint"} <= event.keys()


def test_the_recipes_are_listed_and_shown(glmquant: Run, tmp_path: Path) -> None:
    listed = glmquant("recipes").stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["w8a8", "w8a8-full", "w8a8-mse"]
    assert "(default)" in listed[0]
    shown = glmquant("recipes", "w8a8-full").stdout
    (tmp_path / "mine.yaml").write_text(shown)
    assert glmquant("recipes", tmp_path / "mine.yaml").stdout == shown
    objects = glmquant("recipes", "--json").events
    assert [recipe["name"] for recipe in objects] == ["w8a8", "w8a8-full", "w8a8-mse"]


def test_a_recipe_of_ones_own_names_the_target(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    text = glmquant("recipes", "w8a8").stdout.replace("name: w8a8", "name: mine")
    (tmp_path / "mine.yaml").write_text(text)
    assert glmquant("w8a8", nano.folder, "--recipe", tmp_path / "mine.yaml").exit_code == 0
    assert (tmp_path / "GLM-mine/config.json").is_file()


def test_debug_adds_the_traceback(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "glmquant", "w8a8", str(tmp_path)]
    plain = subprocess.run(words, env=ENV, capture_output=True, text=True)
    debug = subprocess.run(
        words, env={**ENV, "GLMQUANT_DEBUG": "1"}, capture_output=True, text=True
    )
    assert (plain.returncode, debug.returncode) == (1, 1)
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr
    assert debug.stderr.endswith(plain.stderr)


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(
    nano: Recorded, tmp_path: Path
) -> None:
    import pty

    words = [sys.executable, "-m", "glmquant", "w8a8", str(nano.folder)]
    ours, theirs = pty.openpty()
    ran = subprocess.run(
        [*words, str(tmp_path / "a")],
        env={**ENV, "TERM": "xterm"},
        stderr=theirs,
        check=True,
        stdout=subprocess.PIPE,
    )
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert re.search(r"\d+(\.\d+)?/\d+(\.\d+)? kB", shown)
    assert b"\x1b" not in ran.stdout
    plain = subprocess.run(
        [*words, str(tmp_path / "b")], env=ENV, check=True, capture_output=True, text=True
    )
    assert "\x1b" not in plain.stderr + plain.stdout


def test_plain_progress_lines_say_how_far_how_fast_and_how_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from glmquant.cli import progress

    clock = iter([0.0, 0.0, 5.0, 10.0, 20.0, 200.0, 240.0, 261.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with progress.progress(as_json=False) as observer:
        observer.start("quantize", 1_000_000, 9_000_000)
        for _ in range(6):
            observer.advance(1_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "quantize: 33 %, 3.00 MB of 9.00 MB, 200.00 kB/s, 0:00:30 left",
        "quantize: 44 %, 4.00 MB of 9.00 MB, 150.00 kB/s, 0:00:33 left",
        "quantize: 56 %, 5.00 MB of 9.00 MB, 20.00 kB/s, 0:03:20 left",
        "quantize: 78 %, 7.00 MB of 9.00 MB, 22.99 kB/s, 0:01:27 left",
    ]


def test_the_manifest_is_json_for_anybody(nano: Recorded, tmp_path: Path, glmquant: Run) -> None:
    glmquant("w8a8", nano.folder, tmp_path / "out")
    text = (tmp_path / "out/glmquant_manifest.json").read_text()
    assert list(json.loads(text)["tensors"]) == sorted(json.loads(text)["tensors"])
    assert str(tmp_path) not in text


def test_a_forecast_needs_no_arithmetic(nano: Recorded) -> None:
    script = (
        "import sys; from glmquant.cli import main\n"
        "try: main(['plan', sys.argv[1]])\n"
        "except SystemExit: pass\n"
        "heavy = {'llvmlite', 'numba', 'numpy', 'torch'} & sys.modules.keys()\n"
        "sys.exit(str(sorted(heavy)) if heavy else 0)"
    )
    words = [sys.executable, "-c", script, str(nano.folder)]
    subprocess.run(words, env=ENV, check=True, capture_output=True)


def test_no_package_is_searched_for_plugins(nano: Recorded) -> None:
    script = (
        "import importlib.metadata, sys; from glmquant.__main__ import start\n"
        "importlib.metadata.distributions = lambda *a, **k: sys.exit('searched')\n"
        "start()"
    )
    words = [sys.executable, "-c", script, "plan", str(nano.folder)]
    subprocess.run(words, env=ENV, check=True, capture_output=True)
