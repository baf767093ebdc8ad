"""Kill a run with SIGKILL at its N-th call that changes the disk, for every N.

``python -m tests.killer SOURCE WORK fresh|overwrite`` forks a child for each N: it runs the command
and is killed at the call. A folder with config.json must then be whole, and no file may be torn
under its own name. Another child runs the same command to its end, and the bytes must be those of
an undisturbed run. With ``overwrite`` the target holds another plan's output to begin with. Prints
the number of kills.
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


def killing(call: Callable[..., Any], state: dict[str, int]) -> Callable[..., Any]:
    """A call that kills the process when its turn has come."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if call is not _OPEN or (len(args) > 1 and args[1] & (os.O_WRONLY | os.O_RDWR)):
            state["left"] -= 1
            if state["left"] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)

    return wrapped


_OPEN = os.open


def run_child(words: list[str], kill_at: int | None) -> int:
    """Exit code of a child that runs the command; negative is the signal that killed it."""
    child = os.fork()
    if child == 0:
        if kill_at is not None:
            state = {"left": kill_at}
            for name in CALLS:
                setattr(os, name, killing(getattr(os, name), state))
        os._exit(CliRunner().invoke(main, words).exit_code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def kill_everywhere(source: Path, work: Path, begin: str) -> int:
    """Kill at call 1, 2, … until a child is not reached; gives the number of kills."""
    for name, flags in (("new", ["--add-mtp"]), ("old", [])):
        if CliRunner().invoke(main, ["w8a8", str(source), str(work / name), *flags]).exit_code:
            sys.exit("the undisturbed run failed")
    new, old = folder_bytes(work / "new"), folder_bytes(work / "old")
    target = work / "target"
    words = ["w8a8", str(source), str(target), "--add-mtp", "--workers", "2"]
    if begin == "overwrite":
        words.append("--overwrite")
    kills = 0
    while True:
        if begin == "overwrite":
            shutil.copytree(work / "old", target)
        code = run_child(words, kills + 1)
        if code == 0:
            return kills
        kills += 1
        if code != -signal.SIGKILL:
            sys.exit(f"call {kills}: exit code {code} in place of a kill")
        left = folder_bytes(target) if target.is_dir() else {}
        if "config.json" in left and not (
            new.items() <= left.items() or old.items() <= left.items()
        ):
            sys.exit(f"call {kills}: config.json is there and the folder is not whole")
        torn = [
            name
            for name in new.keys() & left.keys()
            if left[name] not in (new[name], old.get(name))
        ]
        if torn:
            sys.exit(f"call {kills}: not whole under their own names: {torn}")
        code = run_child(words, None)
        if code:
            sys.exit(f"call {kills}: going on failed with exit code {code}")
        if folder_bytes(target) != new:
            sys.exit(f"call {kills}: other bytes than those of an undisturbed run")
        shutil.rmtree(target)


if __name__ == "__main__":
    sys.stdout.write(f"{kill_everywhere(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])}\n")
