"""The genuine msmodelslim: its outputs are named for what they lack, mended, and then right."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Ran
from tests.test_demo_model import MODEL, ROOT

pytestmark = pytest.mark.msmodelslim

ROUTER_BIASES = {f"model.layers.{layer}.mlp.gate.e_score_correction_bias" for layer in range(1, 5)}


@pytest.fixture(scope="session", params=["plain", "smooth", "static"])
def output(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What msmodelslim leaves of GLM-4-nano."""
    python = os.environ.get("GLMQUANT_MSMODELSLIM_PYTHON")
    if python is None:
        pytest.skip("no environment with msmodelslim: tools/check msmodelslim makes it")
    target = tmp_path_factory.mktemp("msmodelslim") / str(request.param)
    recipe = ROOT / "tools" / "modelslim" / f"{request.param}.yaml"
    ran = subprocess.run(
        [python, ROOT / "tools/modelslim/run.py", MODEL, target, "--recipe", recipe],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return target


def test_what_it_loses_is_named_and_mended(output: Path, glmquant: Callable[..., Ran]) -> None:
    before = glmquant("verify", output, "--deep", "--source", MODEL, "--json")
    assert before.exit_code == 1
    report = before.events[-1]
    found = {finding["code"]: finding for finding in report["findings"]}
    assert set(found["M1"]["tensors"]) == ROUTER_BIASES
    # F32 where BF16 would do; files that only their owner can read, beside others'.
    assert {finding["code"] for finding in report["findings"]} == {"M1", "D2", "F2"}
    assert found["D2"]["severity"] == "warning"
    assert (before.exit_code, report["layout"]) == (1, "ModelSlim v1")

    mended = glmquant("add-mtp", output, "--from", MODEL, "--replace-mtp")
    assert mended.exit_code == 0, mended.stderr

    after = glmquant("verify", output, "--deep", "--source", MODEL, "--json")
    assert after.events[-1]["findings"] == []
    assert (after.exit_code, after.events[-1]["verdict"]) == (0, "clean")
    assert after.events[-1]["levels"] == ["files", "values", "source"]

    undone = glmquant("add-mtp", output, "--undo")
    assert undone.exit_code == 0, undone.stderr
    again = glmquant("verify", output, "--deep", "--source", MODEL, "--json")
    assert again.events[-1]["findings"] == report["findings"]
