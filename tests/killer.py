"""Kill a run with SIGKILL at its N-th call that changes the disk, for every N.

``python -m tests.killer SOURCE WORK STRIDE`` forks a child for each N: it runs the command
and is killed at the call; the folder it leaves must not load as a model; then another runs the
same command to its end, and the bytes must be those of an undisturbed run. Prints the number of
kills.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from glmquant.cli import main
from tests.conftest import folder_bytes

CALLS = ("open", "pwrite", "ftruncate", "fsync", "replace", "unlink", "mkdir", "rmdir", "write")
ARGUMENTS = ("--add-mtp", "--workers", "2")


def _killing(call: Callable[..., Any], state: dict[str, int]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if call is not _OPEN or (len(args) > 1 and args[1] & (os.O_WRONLY | os.O_RDWR)):
            state["left"] -= 1
            if state["left"] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)

    return wrapped


_OPEN = os.open


def run_child(source: Path, target: Path, kill_at: int | None) -> int:
    """Exit code of a child that runs the command; negative is the signal that killed it."""
    child = os.fork()
    if child == 0:
        if kill_at is not None:
            state = {"left": kill_at}
            for name in CALLS:
                setattr(os, name, _killing(getattr(os, name), state))
        result = CliRunner().invoke(main, ["w8a8", str(source), str(target), *ARGUMENTS])
        os._exit(result.exit_code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def main_loop(source: Path, work: Path, stride: int) -> int:
    """Kill at call 1, 1 + stride, … until a child is not reached; gives the number of kills."""
    whole = work / "whole"
    result = CliRunner().invoke(main, ["w8a8", str(source), str(whole), *ARGUMENTS])
    if result.exit_code:
        sys.exit(f"the undisturbed run failed: {result.output}")
    wanted = folder_bytes(whole)
    target = work / "target"
    kills = 0
    while True:
        number = 1 + kills * stride
        code = run_child(source, target, number)
        if code == 0:
            return kills
        if code != -signal.SIGKILL:
            sys.exit(f"call {number}: exit code {code} in place of a kill")
        left = folder_bytes(target) if target.is_dir() else {}
        whole_files = wanted.keys() - left.keys()
        if "config.json" in left and whole_files:
            sys.exit(f"call {number}: config.json is there, but not {sorted(whole_files)}")
        torn = [name for name in wanted.keys() & left.keys() if left[name] != wanted[name]]
        if torn:
            sys.exit(f"call {number}: not whole under their own names: {torn}")
        code = run_child(source, target, None)
        if code:
            sys.exit(f"call {number}: going on failed with exit code {code}")
        if folder_bytes(target) != wanted:
            sys.exit(f"call {number}: other bytes than those of an undisturbed run")
        shutil.rmtree(target)
        kills += 1


if __name__ == "__main__":
    sys.stdout.write(f"{main_loop(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))}\n")
