"""What engines load without a word: at which level of ``verify`` each defect is seen.

The reference model runs GLM-4-nano; ``tests/test_engine.py`` asks the engine itself.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glmquant.runtime.prompts import embedded_material
from tests.conftest import run_glmquant
from tests.defects import (
    MTP,
    Apply,
    assign,
    describe_as,
    double_scales,
    drop,
    drop_all,
    edit,
    floats,
    multiply,
    swap,
    swap_halves,
)
from tests.modelslim import DYNAMIC

pytestmark = pytest.mark.torch
EXPERT = "model.layers.2.mlp.experts.1"
BIAS = "mlp.gate.e_score_correction_bias"


@pytest.fixture(scope="module")
def prompts(demo_source: Path) -> Iterator[Path]:
    """Six prompts and some 1,500 tokens of text: enough for these, in seconds."""
    file = demo_source.with_name("prompts.jsonl")
    material = embedded_material()
    lines: list[dict[str, Any]] = [*material.requests[:6], {"text": material.text[:6000]}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    yield file


def seen_by(
    folder: Path, demo_source: Path, prompts: Path, *words: object
) -> tuple[set[str], set[str], set[str]]:
    """The codes of the findings by level: files, source (with values), reference."""
    ran = run_glmquant(
        *("verify", folder, "--source", demo_source, "--prompts", prompts),
        *("--engine", "reference", "--json", *words),
    )
    report = ran.events[-1]
    assert report["event"] == "verify", report
    assert report["levels"] == ["files", "values", "source", "reference"]
    assert ran.exit_code == (1 if report["verdict"] == "findings" else 0)
    found: dict[str, set[str]] = {"files": set(), "values": set(), "source": set()}
    for each in report["findings"]:
        if each["severity"] == "error":
            found.setdefault(each["level"], set()).add(each["code"])
    return found["files"], found["values"] | found["source"], found.get("reference", set())


CASES: dict[str, tuple[Apply, set[str], set[str], set[str]]] = {
    # by name: what is done, and codes that files, source and reference have to find
    "eh_proj swapped": (edit(swap_halves), set(), {"M2"}, {"E3"}),
    "MTP described as quantized": (describe_as(MTP, DYNAMIC), {"D2"}, set(), {"E1"}),
    "all scales doubled": (edit(double_scales), set(), {"N1"}, {"E4"}),
    "expert scale missing": (drop(f"{EXPERT}.gate_proj.weight_scale"), {"L1"}, set(), {"E1"}),
    "router bias missing": (drop(f"model.layers.2.{BIAS}"), {"M1"}, set(), {"E1"}),
    "draft uninitialised": (drop_all(MTP), {"C2"}, set(), set()),
    "one projection's scales doubled": (
        floats(f"{EXPERT}.down_proj.weight_scale", multiply(slice(None), 2)),
        set(),
        {"N1"},
        {"E4"},
    ),
    "gate and up swapped": (
        swap(f"{EXPERT}.gate_proj", f"{EXPERT}.up_proj"),
        set(),
        {"N1"},
        {"E4"},
    ),
}
UNSEEN: dict[str, tuple[Apply, set[str]]] = {
    # by name: what is done, and the codes of the comparison with the source; no behaviour shows it
    "MTP expert zeroed": (
        floats(f"{MTP}mlp.experts.3.down_proj.weight", assign(slice(None), 0)),
        {"M2"},
    ),
    "MTP router bias lost": (floats(f"{MTP}{BIAS}", assign(slice(None), 0)), {"M1", "M2"}),
    "one row x 4": (
        floats(f"{EXPERT}.up_proj.weight_scale", multiply(3, 4)),
        {"N1"},
    ),
}


def damaged(demo_output: Path, tmp_path: Path, apply: Apply) -> Path:
    folder = tmp_path / "GLM"
    shutil.copytree(demo_output, folder)
    apply(folder)
    return folder


def test_the_right_checkpoint_is_seen_as_right(
    demo_source: Path, demo_output: Path, prompts: Path
) -> None:
    assert seen_by(demo_output, demo_source, prompts) == (set(), set(), set())


@pytest.mark.parametrize("name", CASES)
def test_a_silent_defect_is_seen_at_these_levels(
    name: str, demo_source: Path, demo_output: Path, prompts: Path, tmp_path: Path
) -> None:
    apply, *expected = CASES[name]
    found = seen_by(damaged(demo_output, tmp_path, apply), demo_source, prompts)
    for codes, wanted in zip(found, expected, strict=True):
        assert wanted <= codes


@pytest.mark.parametrize("name", UNSEEN)
def test_what_no_behaviour_shows_is_seen_beside_the_source(
    name: str, demo_source: Path, demo_output: Path, prompts: Path, tmp_path: Path
) -> None:
    apply, expected = UNSEEN[name]
    _, values, reference = seen_by(damaged(demo_output, tmp_path, apply), demo_source, prompts)
    assert expected & values
    assert reference == set()
