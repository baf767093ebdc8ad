"""Environments of their own for what has other needs than we: first of all the CPU engine.

The engine is vLLM and vllm-ascend's Python part; whoever needs another one brings its pins and its
kind. ``pins`` says what an environment holds, ``kind`` how it is called and where it belongs,
``layout`` where it lies and whether it is complete, ``host`` whether it may be here, ``prospect``
what is to do; ``building`` does it, with ``lock`` and ``child``; ``standing`` tells and removes.
"""

from glmquant.runtime.environment.building import InstallObserver, build, install
from glmquant.runtime.environment.layout import Built, Engine, find_built, find_engine
from glmquant.runtime.environment.prospect import InstallPlan, plan_install
from glmquant.runtime.environment.standing import (
    Removed,
    Standing,
    remove,
    standing_of,
    status,
)

__all__ = [
    "Built",
    "Engine",
    "InstallObserver",
    "InstallPlan",
    "Removed",
    "Standing",
    "build",
    "find_built",
    "find_engine",
    "install",
    "plan_install",
    "remove",
    "standing_of",
    "status",
]
