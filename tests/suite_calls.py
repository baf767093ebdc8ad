"""Runs the command of a suite, as bench and eval do."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from glmquant.suites.task import Call


def run_call(call: Call, log: Path) -> int:
    """Its exit code; what it said goes into a file."""
    env = {**os.environ, **call.env, **call.secrets}
    ran = subprocess.run(
        call.words,
        env={name: value for name, value in env.items() if value is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    log.write_text(ran.stdout)
    return ran.returncode
