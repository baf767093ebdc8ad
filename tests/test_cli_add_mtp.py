"""The command line of add-mtp: what it prints, refuses as usage, and foresees."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders import Recorded
from tests.conftest import Ran
from tests.grafting import DESCRIPTION, INDEX, everything, expected, load, make_base
from tests.test_graft_moved import hint_of, type_in

Run = Callable[..., Ran]


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--undo", "--from", "x"),
        ("--undo", "--forget"),
        ("--undo", "--output", "x"),
        ("--forget", "--dry-run"),
        ("--forget", "--replace-mtp"),
        ("--from", "nothing-there"),
        ("--source", "nothing-there"),
        ("--from", "x", "--source", "x"),
    ],
)
def test_options_that_do_not_fit_are_wrong_usage(
    nano: Recorded, tmp_path: Path, glmquant: Run, words: tuple[str, ...]
) -> None:
    base = make_base(nano, tmp_path / "base", "v1")
    before = everything(tmp_path)
    ran = glmquant("add-mtp", base, *words)
    assert (ran.exit_code, "hint:" in ran.stderr) == (2, True)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("words", [("nothing-there", "--undo"), ("nothing-there", "--from", "x")])
def test_a_checkpoint_that_is_not_there(glmquant: Run, words: tuple[str, ...]) -> None:
    assert glmquant("add-mtp", *words).exit_code == 2


def test_the_only_checkpoint_here_need_not_be_named(
    nano: Recorded, tmp_path: Path, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_base(nano, tmp_path / "base", "v1")
    monkeypatch.chdir(tmp_path)
    assert glmquant("add-mtp", "--from", "GLM").exit_code == 0
    ran = glmquant("add-mtp", "--from", "GLM")  # the backup beside it is no second choice
    assert (ran.exit_code, ran.stdout.splitlines()[0]) == (0, "base: nothing is missing")


def test_a_dry_run_says_every_byte_and_writes_none(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    base = make_base(nano, tmp_path / "base", "v1", shard_mode=0o600)
    before = everything(tmp_path)
    ran = glmquant("add-mtp", base, "--from", nano.folder, "--dry-run")
    assert ran.exit_code == 0
    for text in (
        "32 tensors of MTP layer 4 and 2 router biases",
        "in a folder of links that is swapped in",
        "quant_model_weights-mtp.safetensors",
        "num_nextn_predict_layers: 0 -> 1",
        "0600 -> 0644",
        "disk: at most",
    ):
        assert text in ran.stdout, ran.stdout
    assert everything(tmp_path) == before
    planned = glmquant("add-mtp", base, "--from", nano.folder, "--dry-run", "--json").events
    assert [event["event"] for event in planned] == ["plan"]
    done = glmquant("add-mtp", base, "--from", nano.folder, "--json").events
    assert done[0] == planned[0]
    assert [event["event"] for event in done if event["event"] != "progress"] == [
        "plan",
        "start",
        "start",
        "shard",
        "done",
    ]
    assert [event["doing"] for event in done if event["event"] == "start"] == ["graft", "check"]
    for file, nbytes in {**done[0]["write"], **done[0]["change"]}.items():
        assert (base / file).stat().st_size == nbytes
    assert done[-1]["next"] == f"glmquant verify {base} --source {nano.folder}"
    ran = glmquant("add-mtp", base, "--from", nano.folder, "--dry-run")
    assert "nothing is missing, nothing would be written" in ran.stdout
    undone = glmquant("add-mtp", base, "--undo", "--json").events
    step = f"glmquant verify {base}"
    assert undone == [
        {"event": "done", "folder": str(base), "done": "undone", "notes": [], "next": step}
    ]
    assert everything(tmp_path) == before


def test_a_dry_run_of_an_interrupted_graft_leaves_it_alone(
    nano: Recorded, tmp_path: Path, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base(nano, tmp_path / "base", "glmquant")
    assert glmquant("add-mtp", base, "--from", nano.folder).exit_code == 0
    (base / ".glmquant/undo").rename(base / ".glmquant/graft")
    before = everything(tmp_path)
    ran = glmquant("add-mtp", base, "--from", nano.folder, "--dry-run")
    assert ran.exit_code == 0
    assert everything(tmp_path) == before
    ran = glmquant("add-mtp", base, "--from", nano.folder)
    assert "the interrupted graft is finished; nothing is missing" in ran.stdout
    assert not (base / ".glmquant/graft").exists()


def test_an_error_is_an_event_too(nano: Recorded, tmp_path: Path, glmquant: Run) -> None:
    base = make_base(nano, tmp_path / "base", "v1", mtp="int8")
    ran = glmquant("add-mtp", base, "--from", nano.folder, "--json")
    assert (ran.exit_code, ran.events[-1]["error"]) == (1, "MismatchError")


def test_a_swap_under_the_working_directory_is_told(
    nano: Recorded, tmp_path: Path, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base(nano, tmp_path / "base", "v1")
    before = everything(tmp_path)
    monkeypatch.chdir(base)
    ran = glmquant("add-mtp", ".", "--from", "../GLM")
    assert (ran.exit_code, f"cd {base}" in ran.stderr) == (0, True)
    assert f"undo: glmquant add-mtp {base} --undo" in ran.stdout
    monkeypatch.chdir(base)
    assert glmquant("add-mtp", ".", "--undo").exit_code == 0
    monkeypatch.chdir(base)
    assert everything(tmp_path) == before


def test_hints_from_inside_a_folder_that_is_swapped_work_as_they_are(
    nano: Recorded, tmp_path: Path, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base(nano, tmp_path / "base", "v1", mtp="f32")
    wanted = expected(nano, base)
    monkeypatch.chdir(base)
    ran = glmquant("add-mtp", ".", "--from", "../GLM")
    assert ran.exit_code == 0
    command = f"glmquant add-mtp {base} --undo && "
    command += f"glmquant add-mtp {base} --from {nano.folder} --replace-mtp"
    assert f"bit for bit as in the source: {command}" in ran.stdout
    monkeypatch.chdir(base)
    ran = glmquant("add-mtp", ".", "--from", "../GLM", "--replace-mtp")
    assert (ran.exit_code, hint_of(ran)) == (1, command)
    monkeypatch.chdir(tmp_path)
    type_in(f"cd base && {command}", tmp_path)
    assert load(base).tensors == wanted


def test_the_hint_where_no_folder_was_named_has_all_that_was_typed(
    nano: Recorded, tmp_path: Path, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a base", "b"):
        make_base(nano, tmp_path / name, "v1")
    monkeypatch.chdir(tmp_path)
    ran = glmquant("add-mtp", "--from", "GLM", "--dry-run")
    assert (ran.exit_code, hint_of(ran)) == (
        2,
        "glmquant add-mtp 'a base' --from GLM --dry-run",
    )
    type_in(hint_of(ran), tmp_path)
    ran = glmquant("add-mtp", "a base")
    assert (ran.exit_code, hint_of(ran)) == (2, "glmquant add-mtp 'a base' --from SOURCE")


def test_folders_in_each_others_place_are_seen(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    base = make_base(nano, tmp_path / "base", "v1")
    ran = glmquant("add-mtp", nano.folder, "--from", base)
    assert (ran.exit_code, "look swapped" in ran.stderr) == (1, True)
    assert hint_of(ran) == f"glmquant add-mtp {base} --from {nano.folder}"
    type_in(hint_of(ran), tmp_path)


def test_overlapping_folders_are_told_in_the_words_of_the_command(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    base = make_base(nano, tmp_path / "base", "v1")
    ran = glmquant("add-mtp", base, "--from", nano.folder, "--output", base / "new")
    assert "DIR and --output overlap" in ran.stderr
    assert hint_of(ran) == f"glmquant add-mtp {base} --from {nano.folder} --output {base}-mtp"
    ran = glmquant("add-mtp", base, "--from", nano.folder, "--output", base)
    assert "DIR and --output overlap" in ran.stderr
    assert hint_of(ran) == f"glmquant add-mtp {base} --from {nano.folder}"
    type_in(hint_of(ran), tmp_path)
    assert "DIR and --from overlap" in glmquant("add-mtp", base, "--from", base).stderr


def test_a_source_may_be_named_as_verify_names_it(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    base = make_base(nano, tmp_path / "base", "v1")
    assert glmquant("add-mtp", base, "--source", nano.folder).exit_code == 0
    assert "--source" not in glmquant("add-mtp", "--help").stdout
    ran = glmquant("add-mtp", base, "--from", "nosuch")
    assert (ran.exit_code, "there is no such source" in ran.stderr) == (2, True)


def test_what_was_mended_though_no_tensor_was_missing_is_told(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    base = tmp_path / "base"
    assert glmquant("w8a8", nano.folder, base, "--add-mtp").exit_code == 0
    config = json.loads((base / "config.json").read_bytes())
    (base / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": 0}))
    described = json.loads((base / DESCRIPTION).read_bytes())
    gone = [name for name in described if name.startswith(nano.mtp_prefix)][:3]
    (base / DESCRIPTION).write_text(
        json.dumps({name: kind for name, kind in described.items() if name not in gone})
    )
    index = json.loads((base / INDEX).read_bytes())
    lost = [name for name in index["weight_map"] if name.startswith(nano.mtp_prefix)]
    for name in lost:
        del index["weight_map"][name]
    (base / INDEX).write_text(json.dumps(index))
    out = glmquant("add-mtp", base, "--from", nano.folder).stdout.splitlines()
    assert out[0] == f"{base}: mended, no tensor was missing"
    assert out[1] == (
        "changed: config.json: num_nextn_predict_layers: 0 -> 1; description: 3 entries; "
        f"index: {len(lost)} tensors"
    )
    out = glmquant("add-mtp", base, "--undo").stdout.splitlines()
    assert out == [f"{base}: the graft is undone", f"next: glmquant verify {base}"]


def test_wide_tensors_are_counted_as_verify_counts_them(
    nano: Recorded, tmp_path: Path, glmquant: Run
) -> None:
    base = make_base(nano, tmp_path / "base", "v1", mtp="f32")
    note = glmquant("add-mtp", base, "--from", nano.folder).stderr
    wide = [
        finding
        for event in glmquant("verify", base, "--json").events
        for finding in event.get("findings", ())
        if "is F32" in finding["what"]
    ]
    count = note.split("twice the bytes: ")[1].split()[0]
    assert wide[0]["found"].startswith(f"{count} tensors")
