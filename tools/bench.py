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
modules = {"fetch": "benchmark.downloads", "stream": "benchmark.streams"}
module = modules.get(words[0] if words else "")
os.execv(python, [str(python), "-m", module or "benchmark.command", *words[bool(module) :]])
