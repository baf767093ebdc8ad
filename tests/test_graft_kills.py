"""add-mtp killed, or refused by the operating system, at each call that changes the disk."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import Ran
from tests.grafting import everything, load, make_base, run, small, without_state
from tests.test_execute import ENV, ROOT

Run = Callable[..., Ran]

NAMING = (
    "chmod",
    "fchmodat",
    "link",
    "linkat",
    "rename",
    "renameat",
    "renameat2",
    "rmdir",
    "symlink",
    "symlinkat",
    "unlinkat",
)
"""What changes names and modes: between two of them only files change that nobody reads yet."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scenario", "step"),
    [
        ("in-place", 1),
        ("swap", 2),
        ("renames", 5),
        ("replace", 5),
        ("output", 5),
        ("undo-in-place", 1),
        ("undo-swap", 1),
        ("undo-renames", 2),
        ("forget-in-place", 1),
        ("forget-swap", 1),
    ],
)
def test_a_kill_at_any_call_that_changes_the_disk_is_made_good(
    tmp_path: Path, scenario: str, step: int
) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.graft_killer", tmp_path, scenario, str(step)],
        cwd=ROOT,
        env=ENV,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) >= 8


def traced(words: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    """A command under strace."""
    command = ["strace", "-f", "-qq", *options, sys.executable, "-m", "glmquant", *words]
    environment = {**ENV, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)


def kills(log: str) -> Iterator[tuple[str, int]]:
    """Each changing call of a run, by its name and its number among those of its name."""
    counts: Counter[str] = Counter()
    for line in log.splitlines():
        match = re.match(r"\d+ +(\w+)\(", line)
        if match:
            counts[match[1]] += 1
            yield match[1], counts[match[1]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "style", "flags"),
    [("glmquant", {}, []), ("v1", {"mtp": "f32"}, ["--replace-mtp"])],
    ids=["in-place", "swap"],
)
def test_a_kill_at_a_system_call_leaves_the_old_checkpoint_or_the_new_one(
    tmp_path: Path, form: str, style: dict[str, str], flags: list[str]
) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    source = small(tmp_path / "GLM")
    pristine = make_base(source, tmp_path / "pristine", form, **style)

    def words(number: int) -> list[str]:
        base = tmp_path / str(number) / "base"
        base.parent.mkdir()
        shutil.copytree(pristine, base)
        return ["add-mtp", str(base), "--from", str(source.folder), *flags]

    log = tmp_path / "log"
    whole = traced(words(0), "-o", str(log), "-e", f"trace={','.join((*NAMING, 'pwrite64'))}")
    assert whole.returncode == 0, whole.stderr
    new, made = load(tmp_path / "0/base"), without_state(tmp_path / "0/base")
    old = load(pristine)
    calls = [
        (name, when)
        for name, when in kills(log.read_text())
        if name in NAMING or (form == "glmquant" and when % 2)
    ]
    assert ("renameat2" if form == "v1" else "rename") in {name for name, _ in calls}

    def kill(number: int) -> int:
        name, when = calls[number - 1]
        inject = f"inject={name}:signal=SIGKILL:when={when}"
        ran = traced(words(number), "-o", "/dev/null", "-e", f"trace={name}", "-e", inject)
        return ran.returncode

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        codes = list(pool.map(kill, range(1, len(calls) + 1)))
    assert set(codes) == {-signal.SIGKILL}
    for number, call in enumerate(calls, start=1):
        base = tmp_path / str(number) / "base"
        assert load(base).loads_as(old, new), call
        if number % 2:
            assert run("add-mtp", base, "--from", source.folder, *flags) == 0, call
            assert without_state(base) == made, call
        else:
            run("add-mtp", base, "--undo")
            assert everything(base) == everything(pristine), call
            assert [path.name for path in base.parent.iterdir()] == ["base"], call


@pytest.mark.parametrize("form", ["glmquant", "v1"])
@pytest.mark.parametrize(
    "fault",
    [
        "ftruncate:error=ENOSPC:when=2",
        "pwrite64:error=EIO:when=3",
        "rename:error=EIO:when=2",
        "fsync:error=EIO:when=5",
        "fsync:signal=SIGINT:when=6",
        "rename:signal=SIGINT:when=5",
    ],
)
def test_a_fault_of_the_disk_is_told_and_loses_nothing(
    tmp_path: Path, glmquant: Run, form: str, fault: str
) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    source = small(tmp_path / "GLM")
    base = make_base(source, tmp_path / "base", form)
    old = load(base)
    words = ["add-mtp", str(base), "--from", str(source.folder)]
    shutil.copytree(base, tmp_path / "copy")
    assert glmquant("add-mtp", tmp_path / "copy", "--from", source.folder).exit_code == 0
    new = load(tmp_path / "copy")
    call = fault.split(":")[0]
    ran = traced(words, "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={fault}")
    assert ran.returncode in (1, 130), ran.stderr
    assert "Traceback" not in ran.stderr
    assert not list(tmp_path.rglob("*.part"))
    assert load(base).loads_as(old, new)
    assert glmquant(*words).exit_code == 0
    assert without_state(base) == without_state(tmp_path / "copy")
