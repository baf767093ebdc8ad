"""GLM-4.x MoE weights for Ascend NPUs: W8A8 in the ModelSlim format, with a float MTP layer."""

__version__ = "0.1.0"
