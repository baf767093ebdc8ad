"""S1 and C3 against the source: what has to be the same bytes, and what the same values."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from glmquant.checkpoint import open_checkpoint
from glmquant.source import FolderSource
from glmquant.verify.companions import check_companions
from glmquant.verify.findings import Finding
from glmquant.verify.subject import open_subject
from tests.builders import Recorded, build_checkpoint
from tests.foreign import edit_config


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Recorded, Path]:
    """A source and a copy of it."""
    source = build_checkpoint(tmp_path / "GLM")
    (source.folder / "vocab.bin").write_bytes(b"0" * 3_000_000)
    shutil.copytree(source.folder, tmp_path / "copy")
    return source, tmp_path / "copy"


def findings(source: Path, folder: Path) -> list[Finding]:
    """What is found."""
    subject = open_subject(FolderSource(folder))
    return list(check_companions(subject, open_checkpoint(FolderSource(source))))


def test_a_copy_is_right(pair: tuple[Recorded, Path]) -> None:
    source, copy = pair
    (copy / "README.md").unlink()
    (copy / "more.txt").write_text("harmless")
    assert findings(source.folder, copy) == []


@pytest.mark.parametrize(
    ("file", "change", "severity", "found"),
    [
        ("tokenizer.json", b'{"version": "2.0"}\n', "error", "as long, but byte 13 differs"),
        ("tokenizer.json", b'{"version":"1.0"}', "warning", "17 bytes, but the same JSON"),
        ("tokenizer.json", None, "error", "no such file"),
        ("chat_template.jinja", b"other", "error", "5 bytes"),
        ("generation_config.json", b"{}", "error", "2 bytes"),
        ("tokenizer_config.json", b"not JSON", "error", "8 bytes"),
        ("LICENSE", b"BSD\n", "warning", "as long, but byte 0 differs"),
    ],
)
def test_a_changed_file_is_found(
    pair: tuple[Recorded, Path], file: str, change: bytes | None, severity: str, found: str
) -> None:
    source, copy = pair
    if change is None:
        (copy / file).unlink()
    else:
        (copy / file).write_bytes(change)
    (finding,) = findings(source.folder, copy)
    assert (finding.code, finding.where, finding.severity.value) == ("S1", file, severity)
    assert finding.found == found
    assert finding.hint == f"cp {source.folder / file} {copy / file}"


def test_what_engines_do_not_read_may_be_missing(pair: tuple[Recorded, Path]) -> None:
    source, copy = pair
    (copy / "LICENSE").unlink()
    shutil.rmtree(copy / "assets")
    assert findings(source.folder, copy) == []


def test_a_config_written_by_another_version_is_right(pair: tuple[Recorded, Path]) -> None:
    source, copy = pair
    edit_config(copy, torch_dtype=None, dtype="bfloat16", transformers_version="5.0.0")
    edit_config(copy, num_nextn_predict_layers=0, quantize="w8a8_dynamic", rope_scaling=None)
    assert findings(source.folder, copy) == []


@pytest.mark.parametrize(
    ("changes", "severity", "where"),
    [
        ({"rope_theta": 10_000}, "error", "config.json: rope_theta"),
        ({"rms_norm_eps": None}, "error", "config.json: rms_norm_eps"),
        ({"torch_dtype": "float16"}, "error", "config.json: dtype"),
        ({"n_group": 2, "topk_group": 2}, "error", "config.json: n_group, topk_group"),
        ({"attention_dropout": 0.1}, "warning", "config.json: attention_dropout"),
        ({"invented": 1}, "warning", "config.json: invented"),
    ],
)
def test_a_changed_key_is_found(
    pair: tuple[Recorded, Path], changes: dict[str, Any], severity: str, where: str
) -> None:
    source, copy = pair
    edit_config(copy, **changes)
    (finding,) = findings(source.folder, copy)
    assert (finding.code, finding.severity.value, finding.where) == ("C3", severity, where)


def test_a_file_that_vanishes_is_no_crash(pair: tuple[Recorded, Path]) -> None:
    source, copy = pair
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer.json").symlink_to("nowhere")
    (copy / "config.json").write_text(json.dumps([]))
    assert [each.where for each in findings(source.folder, copy)] == ["tokenizer.json"]
