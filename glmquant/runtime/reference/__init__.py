"""Our own model of GLM-4.5, 4.6 and 4.7 in torch: what the engines' answers are held against."""

from __future__ import annotations

from glmquant.runtime.reference.reference import Reference, divergence
from glmquant.runtime.reference.settings import Precision

__all__ = ["Precision", "Reference", "divergence"]
