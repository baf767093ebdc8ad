"""Kill add-mtp with SIGKILL at its N-th call that changes the disk, for every N.

``python -m tests.graft_killer WORK SCENARIO STEP`` makes a source and a quantized folder, and forks
a child for each N, or each STEP-th, that runs the command and is killed at the call. The folder
must then load as the old checkpoint or as the new one, and the same command, or ``--undo``, must
come to the same end as an undisturbed run. Prints the number of kills.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from glmquant.cli import folders, main
from glmquant.graft import run, swap
from glmquant.kernels import fast
from tests.grafting import Loaded, everything, load, make_base, small, without_state
from tests.killer import killing

PRELOADED = (folders, run)
"""What a command loads when it begins; a child then has it."""

CALLS = (
    "chmod",
    "fchmod",
    "fsync",
    "ftruncate",
    "link",
    "mkdir",
    "open",
    "pwrite",
    "rename",
    "replace",
    "rmdir",
    "symlink",
    "unlink",
    "utime",
)

SCENARIOS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "in-place": ("glmquant", {}, []),
    "swap": ("v1", {}, []),
    "renames": ("v1", {}, []),
    "replace": ("hf", {"mtp": "f32"}, ["--replace-mtp"]),
    "output": ("v1", {}, ["--output"]),
    "undo-in-place": ("glmquant", {}, []),
    "undo-swap": ("v1", {}, []),
    "undo-renames": ("v1", {}, []),
    "forget-in-place": ("glmquant", {}, []),
    "forget-swap": ("v1", {}, []),
}
"""Name → format and style of the folder, and options."""


def run_child(words: list[str], kill_at: int | None, has_exchange: bool) -> int:
    """Exit code of a child that runs the command; negative is the signal that killed it."""
    child = os.fork()
    if child == 0:
        state = {"left": kill_at or 0}
        exchange = swap.exchange_names if has_exchange else no_exchange
        if kill_at is not None:
            for name in CALLS:
                setattr(os, name, killing(getattr(os, name), state))
            exchange = killing(exchange, state)
        swap.exchange_names = exchange
        os._exit(CliRunner().invoke(main, words).exit_code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def no_exchange(first: Path, second: Path) -> int:
    """A file system that knows no exchange."""
    return errno.EINVAL


class Scenario:
    """A folder, a command, and what has to hold whenever it is killed.

    Args:
        work: Where everything lies.
        name: One of SCENARIOS.
    """

    def __init__(self, work: Path, name: str) -> None:
        form, style, flags = SCENARIOS[name]
        self.name = name
        self.has_exchange = "renames" not in name
        source = small(work / "GLM")
        self.pristine = make_base(source, work / "pristine", form, **style)
        for path in self.pristine.glob("*00001*.safetensors"):
            path.chmod(0o600)
        self.here = work / "here"
        self.base = self.here / "base"
        self.result = self.here / "out" if "--output" in flags else self.base
        graft = ["add-mtp", str(self.base), "--from", str(source.folder), *flags]
        graft += [str(self.result)] * ("--output" in flags)
        self.graft = graft
        self.old = load(self.pristine)
        self.set_up(is_grafted=False)
        self.run(graft)
        self.new = load(self.result)
        self.made = without_state(self.result)
        ends = {"undo": ["add-mtp", str(self.base), "--undo"]}
        ends["forget"] = ["add-mtp", str(self.base), "--forget"]
        self.words = ends.get(name.split("-")[0], graft)

    def set_up(self, *, is_grafted: bool) -> None:
        """Everything as it is before the command that is killed."""
        shutil.rmtree(self.here, ignore_errors=True)
        self.here.mkdir()
        shutil.copytree(self.pristine, self.base)
        if is_grafted:
            self.run(self.graft)

    def run(self, words: list[str]) -> None:
        """A command that has to succeed."""
        code = run_child(words, None, self.has_exchange)
        if code:
            sys.exit(f"{self.name}: {' '.join(words)}: exit code {code}")

    def require_loadable(self, kill: int) -> None:
        """The folder loads as the old checkpoint or as the new one, at every moment."""
        if "--output" in self.graft:
            if without_state(self.base) != without_state(self.pristine):
                sys.exit(f"{self.name}, call {kill}: the checkpoint was changed")
            if self.result.exists() and load(self.result) != self.new:
                sys.exit(f"{self.name}, call {kill}: half an output")
            return
        if not self.has_exchange and not self.base.exists():
            return
        if not self.loaded().loads_as(self.old, self.new):
            sys.exit(f"{self.name}, call {kill}: neither the old checkpoint nor the new one")

    def loaded(self) -> Loaded:
        """What an engine would see now."""
        return load(self.base)

    def require_end(self, kill: int) -> None:
        """The same command comes to its end, and the end is that of an undisturbed run."""
        if not (self.is_end and self.is_over()):  # then there is nothing to undo or forget
            self.run(self.words)
        if not self.is_over():
            names = {path.name for path in self.here.iterdir()}
            sys.exit(f"{self.name}, call {kill}: another end, or left over: {names}")

    @property
    def is_end(self) -> bool:
        """The command undoes or forgets."""
        return self.name.startswith(("undo", "forget"))

    def is_over(self) -> bool:
        """Whether the end is reached and nothing is left over."""
        wanted = without_state(self.pristine) if self.name.startswith("undo") else self.made
        has_old = not self.is_end and not self.name.startswith(("in-place", "output"))
        names = {"base", *([".base.glmquant-old"] * has_old)}
        names |= {"out"} if self.name == "output" else set()
        return (
            self.base.exists()
            and without_state(self.result) == wanted
            and not (self.is_end and (self.base / ".glmquant").exists())
            and {path.name for path in self.here.iterdir()} == names
        )

    def require_undo(self, kill: int) -> None:
        """Killed anywhere and then undone, all is as it was."""
        words = ["add-mtp", str(self.base), "--undo"]
        run_child(words, None, self.has_exchange)  # fails where nothing had been begun
        if everything(self.base) != everything(self.pristine):
            sys.exit(f"{self.name}, call {kill}: not undone")
        if [path.name for path in self.here.iterdir()] != ["base"]:
            sys.exit(f"{self.name}, call {kill}: left over after undo")


def kill_everywhere(work: Path, name: str, step: int) -> int:
    """Kill at call 1, 1 + step, … until a child is not reached; gives the number of kills."""
    fast.prepare()  # once, and not in each child
    scenario = Scenario(work, name)
    is_end = scenario.is_end
    for kills, call in enumerate(itertools.count(1, step)):
        scenario.set_up(is_grafted=is_end)
        code = run_child(scenario.words, call, scenario.has_exchange)
        if code == 0:
            return kills
        if code != -signal.SIGKILL:
            sys.exit(f"{name}, call {call}: exit code {code} in place of a kill")
        scenario.require_loadable(call)
        if not is_end and "--output" not in scenario.graft and kills % 2:
            scenario.require_undo(call)
        else:
            scenario.require_end(call)
    raise AssertionError


if __name__ == "__main__":
    sys.stdout.write(f"{kill_everywhere(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))}\n")
