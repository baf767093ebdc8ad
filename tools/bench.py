"""Starts the bench in the environment that ``tools/check`` tests in."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from environments import ROOT, environment

TOOLS = Path(__file__).resolve().parent

with contextlib.redirect_stdout(sys.stderr):
    python = environment("dev") / "python"
os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{TOOLS}"
words = sys.argv[1:]
module = "benchmark.downloads" if words[:1] == ["fetch"] else "benchmark.command"
os.execv(python, [str(python), "-m", module, *words[module == "benchmark.downloads" :]])
