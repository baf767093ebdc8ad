"""``glmquant demo``: the main job on the model that ships."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from glmquant.demo import MODEL_NAME, model_dir
from tests.conftest import Ran, folder_bytes

Run = Callable[..., Ran]


def test_the_demo_writes_a_checkpoint_and_says_how_good_it_is(
    tmp_path: Path, glmquant: Run
) -> None:
    ran = glmquant("demo", tmp_path / "demo")
    assert ran.exit_code == 0
    out = tmp_path / "demo" / f"{MODEL_NAME}-W8A8-floatmtp"
    assert (out / "config.json").is_file()
    assert all(name in ran.stdout for name in folder_bytes(out))
    assert "dB" in ran.stdout
    assert "verdict: right, no finding\nlevels: files, values, source; next: " in ran.stdout
    assert folder_bytes(tmp_path / "demo" / MODEL_NAME) == folder_bytes(model_dir())
    again = glmquant("demo", tmp_path / "demo")
    assert (again.exit_code, "already done" in again.stdout) == (0, True)


def test_the_trained_model_is_quantized_as_well_as_its_rows_allow(
    tmp_path: Path, glmquant: Run
) -> None:
    events = glmquant("demo", tmp_path, "--json").events
    done = next(event for event in events if event["event"] == "done")
    figures = {row["role"]: row for row in done["roles"]}
    for role in ("routed_expert", "attention_qkv", "attention_out"):
        assert figures[role]["sqnr_db_least"] > 42.5
    assert figures["mtp"]["scheme"] == "FLOAT"
    assert done["mtp_layers"] == 1
    assert (events[-1]["event"], events[-1]["verdict"]) == ("verify", "clean")


def test_the_demo_fails_where_its_output_is_wrong(tmp_path: Path, glmquant: Run) -> None:
    glmquant("demo", tmp_path)
    (tmp_path / f"{MODEL_NAME}-W8A8-floatmtp" / "mtp.safetensors").chmod(0o600)
    ran = glmquant("demo", tmp_path)
    assert (ran.exit_code, "error F2: " in ran.stdout) == (1, True)


def test_the_demo_does_not_write_over_something_else(tmp_path: Path, glmquant: Run) -> None:
    (tmp_path / MODEL_NAME).mkdir()
    (tmp_path / MODEL_NAME / "config.json").write_text("mine")
    ran = glmquant("demo", tmp_path)
    assert (ran.exit_code, "holds something else" in ran.stderr) == (1, True)
    assert folder_bytes(tmp_path) == {f"{MODEL_NAME}/config.json": b"mine"}
