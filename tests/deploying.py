"""Checkpoints of real sizes, without weights, to be served; a stand-in that takes down words."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from glmquant.deploy.candidate import Candidate
from glmquant.deploy.choose import choose_version
from glmquant.deploy.data import load_engine, load_profile, load_targets
from glmquant.deploy.nodes import Choices
from glmquant.deploy.setup import Setup, make_setup
from glmquant.glm4_moe import Glm4MoeConfig
from glmquant.sizing import TensorGroup
from tests.builders import LARGE, layout_config
from tests.test_sizing import groups_of

VERSIONS = ("0.13", "0.18", "0.23", "0.26", "0.30")
ON_NPUS = ("a2", "a3", "2xa2", "pd-2p1d")
PROFILES = ("throughput", "latency", "long-context", "agents", "tutorial")

RECORDER = """#!/usr/bin/env python3
import json, os, sys
line = json.dumps({"words": sys.argv, "environment": dict(os.environ)})
with open(os.environ["RECORD"], "a") as file:
    file.write(line + "\\n")
"""


@cache
def _of_size(sizes: str) -> tuple[Glm4MoeConfig, tuple[TensorGroup, ...]]:
    config = layout_config("4.6", **json.loads(sizes))
    return Glm4MoeConfig.model_validate(config), tuple(groups_of(config))


_engine, _profile, _targets = cache(load_engine), cache(load_profile), cache(load_targets)


def candidate_of(
    sizes: Mapping[str, Any] = LARGE, *, has_mtp: bool = True, **changes: Any
) -> Candidate:
    """A W8A8 checkpoint of the recipe w8a8 in the layout of 4.6, by its headers alone."""
    config, groups = _of_size(json.dumps(sizes))
    made = Candidate(
        folder=Path("/weights/GLM-4.6-W8A8-floatmtp"),
        name="GLM-4.6-W8A8-floatmtp",
        config=config,
        groups=groups,
        nbytes=363_000_000_000,
        mtp_count=int(has_mtp),
        announced=1,
        model_context=202_752,
        releases=("4.6",),
        tool_form="lines",
        is_embedded=False,
        verdicts=(),
        link_folders=(),
    )
    return replace(made, **changes)


def setup_of(
    candidate: Candidate,
    target: str = "a3",
    series: str = "0.23",
    profile: str = "throughput",
    engine: str = "vllm-ascend",
    **choices: Any,
) -> Setup:
    """A service of it."""
    data = _engine(engine)
    return make_setup(
        candidate,
        data,
        choose_version(data, series),
        _targets(),
        target,
        _profile(profile),
        Choices(**choices),
    )


def combinations() -> list[tuple[str, str, str]]:
    """Every version, machine and profile that go together."""
    return [
        (series, target, profile)
        for series in VERSIONS
        for profile in PROFILES
        for target in ON_NPUS
        if target in _profile(profile).targets
    ]


def recorded(
    script: Path, folder: Path, program: str = "vllm", **environment: str
) -> list[dict[str, Any]]:
    """What a script's commands were called with, and their environments.

    Args:
        script: It is run by bash.
        folder: For the stand-ins of ``program`` and of ``ip``.
        program: What the script runs.
        environment: More variables.
    """
    folder.mkdir(exist_ok=True)
    (folder / program).write_text(RECORDER)
    (folder / "ip").write_text(
        '#!/bin/sh\ncase "$*" in\n*route*) echo "10.9.9.9 dev eth7 src 10.0.0.2 uid 0";;\n'
        '*) echo "2: eth7    inet 10.0.0.2/24 scope global eth7";;\nesac\n'
    )
    for name in (program, "ip"):
        (folder / name).chmod(0o755)
    record = folder / "record"
    record.unlink(missing_ok=True)
    env = {"PATH": f"{folder}:{os.environ['PATH']}", "RECORD": str(record), **environment}
    ran = subprocess.run(["bash", script], env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in record.read_text().splitlines()]
