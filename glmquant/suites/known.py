"""The suites that are known, by the name that ``--suite`` gives them."""

from __future__ import annotations

from typing import Final

from glmquant.suites.aisbench import AISBENCH
from glmquant.suites.lm_eval import LM_EVAL
from glmquant.suites.task import Suite
from glmquant.suites.vllm_bench import VLLM

SUITES: Final[dict[str, Suite]] = {suite.name: suite for suite in (AISBENCH, LM_EVAL, VLLM)}
