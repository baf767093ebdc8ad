"""The unmodified loaders of several versions of vLLM and vllm-ascend, on the CPU.

``pairs`` says which versions, ``environment`` builds a Python for each, on that of the CPU engine;
``loads`` runs the programs of ``inside/`` in it, which import nothing of ours.
"""

from glmquant.runtime.matrix.environment import (
    find_pair,
    install_pair,
    pair_standing,
    plan_pair,
    remove_pairs,
)
from glmquant.runtime.matrix.loads import WAYS, Case, Load, Model, Unfilled, Way, run_cases
from glmquant.runtime.matrix.machine import remedy_of
from glmquant.runtime.matrix.pairs import PAIRS, Pair, choose_pairs

__all__ = [
    "PAIRS",
    "WAYS",
    "Case",
    "Load",
    "Model",
    "Pair",
    "Unfilled",
    "Way",
    "choose_pairs",
    "find_pair",
    "install_pair",
    "pair_standing",
    "plan_pair",
    "remedy_of",
    "remove_pairs",
    "run_cases",
]
