"""The environment of the CPU engine: vLLM and vllm-ascend's Python part, apart from our own.

``pins`` says what it holds, ``layout`` where it lies and whether it is complete, ``host`` whether
it may be here, ``prospect`` what is to do; ``building`` does it, with ``lock`` and ``child``;
``standing`` tells and removes.
"""

from glmquant.runtime.environment.building import InstallObserver, install
from glmquant.runtime.environment.layout import Engine, find_engine
from glmquant.runtime.environment.prospect import InstallPlan, plan_install
from glmquant.runtime.environment.standing import Removed, Status, remove, status

__all__ = [
    "Engine",
    "InstallObserver",
    "InstallPlan",
    "Removed",
    "Status",
    "find_engine",
    "install",
    "plan_install",
    "remove",
    "status",
]
