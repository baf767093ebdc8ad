"""The house rules that no linter knows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TRACKED = subprocess.run(
    ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True
).stdout.splitlines()


@pytest.mark.skipif(not TRACKED, reason="not a git checkout")
def test_no_file_holds_a_path_of_a_machine_or_an_index() -> None:
    home = re.compile(rb"/(?:work|root|home/\w+)/|pypi\.org|files\.pythonhosted|extra-index-url")
    found = [
        name
        for name in TRACKED
        if name != "tests/test_house.py" and home.search((ROOT / name).read_bytes())
    ]
    assert found == []


def test_the_main_path_runs_without_torch() -> None:
    script = (
        "import sys; import glmquant.cli, glmquant.execute, glmquant.cli.summary\n"
        "sys.exit(int(bool({'torch', 'transformers'} & sys.modules.keys())))"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_the_steps_of_the_check_are_listed() -> None:
    ran = subprocess.run(
        [sys.executable, "tools/check", "--list"], cwd=ROOT, capture_output=True, text=True
    )
    names = [line.split()[0] for line in ran.stdout.splitlines()]
    assert names == [
        "lint",
        "contracts",
        "readme",
        "types",
        "tests",
        "numpy1",
        "reference",
        "engine",
        "matrix",
        "msmodelslim",
        "hubs",
        "wheel",
        "aisbench",
        "lmeval",
        "matrix_all",
    ]
    long = [line.split()[0] for line in ran.stdout.splitlines() if "Only with --all" in line]
    assert long == ["aisbench", "lmeval", "matrix_all"]
