"""``quant_model_description.json``: by it vllm-ascend knows what each tensor is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from glmquant.jsontext import dump_object

DESCRIPTION_FILE: Final = "quant_model_description.json"
DESCRIPTION_PREFIX: Final = "quant_model_description"
"""msModelSlim v0 adds the scheme to the name: ``quant_model_description_w8a8_dynamic.json``."""

GLOBAL_KEYS: Final[dict[str, Any]] = {
    "version": "1.0.0",
    "model_quant_type": "W8A8_DYNAMIC",
    "metadata": {},
    "group_size": 0,
    "optional": {},
}
"""msModelSlim 26.1.0 writes these after the tensors."""


def build_description(types: Mapping[str, str]) -> dict[str, Any]:
    """The description as an object: one key a tensor, then the global keys.

    Args:
        types: Tensor name → ``FLOAT`` or ``W8A8_DYNAMIC``, in the order to be written.

    Returns:
        The object; ``encode_description`` gives its bytes.
    """
    return {**types, **GLOBAL_KEYS}


def encode_description(description: dict[str, Any]) -> bytes:
    """UTF-8 JSON of a description."""
    return dump_object(description)


def embedded_config(description: dict[str, Any]) -> dict[str, Any]:
    """The ``quantization_config`` that does the description's work inside config.json.

    vLLM asks it for ``quant_method``; vllm-ascend then takes the rest as the whole description and
    does not open the file, so that ``--quantization ascend`` may be left out even on 0.13.
    """
    return {"quant_method": "ascend", **description}
