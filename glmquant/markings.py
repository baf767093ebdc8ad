"""How each quantization tool marks its output in JSON: the mark read, in words.

Taken from the tools' own code: GPTQModel ``quantization/config.py`` (``meta.quantizer``), AutoGPTQ
0.7.1, AutoAWQ 0.2.9, AutoRound 0.16.1, compressed-tensors 0.20.0, ModelOpt 0.47.0, MLX-LM 0.32.2
and transformers 5.23 ``quantization_config.py``. Every value may be of any type: a folder of
others is read here.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from glmquant.survey import printable


class Format(str, Enum):
    """How the weights of a folder are held, as people call it."""

    BF16 = "BF16"
    F16 = "F16"
    F32 = "F32"
    GLMQUANT = "W8A8"
    UNFINISHED = "an unfinished output"
    MODELSLIM_V0 = "ModelSlim v0"
    MODELSLIM_V1 = "ModelSlim v1"
    MODELSLIM_HF = "ModelSlim under HF names"
    COMPRESSED_TENSORS = "compressed-tensors"
    FP8 = "FP8"
    GPTQ = "GPTQ"
    AWQ = "AWQ"
    BITSANDBYTES = "bitsandbytes"
    NVFP4 = "NVFP4"
    MXFP4 = "MXFP4"
    MODELOPT = "ModelOpt"
    AUTO_ROUND = "AutoRound"
    MLX = "MLX"
    GGUF = "GGUF"
    PYTORCH = "PyTorch"
    OTHER = "another format"
    UNMARKED = "quantized without a mark"
    UNREADABLE = "weights that cannot be read"
    NO_WEIGHTS = "no weights"


FLOAT_FORMATS: Final = (Format.BF16, Format.F16, Format.F32)
MODELSLIM_FORMATS: Final = (Format.MODELSLIM_V0, Format.MODELSLIM_V1, Format.MODELSLIM_HF)

_METHODS: Final = {
    "gptq": Format.GPTQ,
    "awq": Format.AWQ,
    "bitsandbytes": Format.BITSANDBYTES,
    "fp8": Format.FP8,
    "fbgemm_fp8": Format.FP8,
    "mxfp4": Format.MXFP4,
    "nvfp4": Format.NVFP4,
    "auto-round": Format.AUTO_ROUND,
    "intel/auto-round": Format.AUTO_ROUND,
}
"""``quant_method`` → format, where that key says all."""


@dataclass(frozen=True, slots=True)
class Marking:
    """What a mark says.

    Attributes:
        format: The format.
        detail: Bits, groups, scheme; empty where nothing is said.
        tool: The tool and its version, None where that cannot be told.
    """

    format: Format
    detail: str = ""
    tool: str | None = None


def text_of(fields: Any, key: str) -> str | None:
    """The text under a key, fit to be shown; None where there is none."""
    value = fields.get(key) if isinstance(fields, dict) else None
    return printable(value, 80) if isinstance(value, str) and value else None


def whole_number(fields: Any, *keys: str) -> int | None:
    """The first whole number under one of the keys; None where there is none."""
    for key in keys:
        value = fields.get(key) if isinstance(fields, dict) else None
        if type(value) is int and abs(value) < 10**9:
            return value
    return None


def read_marking(mark: Mapping[str, Any], files: Container[str] = ()) -> Marking:
    """What a ``quantization_config`` says.

    Args:
        mark: The object, of whatever keys and types.
        files: Names of the files beside config.json.

    Returns:
        The format; ``OTHER`` where the method is none of those known here.
    """
    method = (text_of(mark, "quant_method") or "").lower().replace("_", "-")
    if method.startswith("modelopt"):
        return read_modelopt(mark)
    if method == "compressed-tensors" or (
        not method and isinstance(mark.get("config_groups"), dict)
    ):
        return _read_compressed_tensors(mark, files)
    is_bitsandbytes = any(mark.get(key) is True for key in ("load_in_4bit", "load_in_8bit"))
    if not method and is_bitsandbytes:
        method = "bitsandbytes"
    if not method and whole_number(mark, "bits") and whole_number(mark, "group_size"):
        return Marking(Format.MLX, _bits_text(mark), "MLX-LM")
    known = _METHODS.get(method) or _METHODS.get(method.replace("-", "_"))
    if known is None:
        named = f"quant_method {method!r}" if method else "a quantization_config without a method"
        return Marking(Format.OTHER, named, _tool(mark))
    detail = _bits_text(mark)
    if known is Format.BITSANDBYTES:
        kind = text_of(mark, "bnb_4bit_quant_type") or "fp4"
        detail = f"4 bits, {kind}" if mark.get("load_in_4bit") else "8 bits"
    elif known is Format.FP8:
        block = mark.get("weight_block_size")
        is_block = isinstance(block, list) and all(type(side) is int for side in block)
        detail = f"blocks of {'x'.join(map(str, block[:2]))}" if block and is_block else ""
    elif known is Format.AUTO_ROUND:
        detail = ", ".join(filter(None, (detail, text_of(mark, "packing_format"))))
    return Marking(known, detail, _tool(mark) or _habitual_tool(known, mark))


def read_modelopt(mark: Mapping[str, Any]) -> Marking:
    """What ``hf_quant_config.json`` of ModelOpt, or its copy in config.json, says."""
    inner = mark.get("quantization")
    algorithm = text_of(inner, "quant_algo") or text_of(mark, "quant_algo") or "no algorithm"
    upper = algorithm.upper()
    form = next((f for f in (Format.NVFP4, Format.MXFP4, Format.FP8) if f.value in upper), None)
    if form is Format.FP8 and upper.startswith("MX"):
        form = None  # MXFP8 has a scale for 32 values, and no name of its own here
    version = text_of(mark.get("producer"), "version")
    tool = f"ModelOpt {version}" if version else "ModelOpt"
    return Marking(form or Format.MODELOPT, algorithm if algorithm != form else "", tool)


def _read_compressed_tensors(mark: Mapping[str, Any], files: Container[str]) -> Marking:
    layout = text_of(mark, "format") or ""
    groups = mark.get("config_groups")
    group = next(iter(groups.values()), None) if isinstance(groups, dict) else None
    weights = group.get("weights") if isinstance(group, dict) else None
    inputs = group.get("input_activations") if isinstance(group, dict) else None
    bits = whole_number(weights, "num_bits")
    scheme = f"W{bits}A{whole_number(inputs, 'num_bits') or 16}" if bits else ""
    form = Format.COMPRESSED_TENSORS
    if "nvfp4" in layout:
        form = Format.NVFP4
    elif "mxfp4" in layout:
        form = Format.MXFP4
    elif layout == "float-quantized" or (text_of(weights, "type") == "float" and bits == 8):
        form = Format.FP8
    container = "" if form is Format.COMPRESSED_TENSORS else "compressed-tensors"
    version = text_of(mark, "version")
    tool = _tool(mark)
    if tool is None and "recipe.yaml" in files:
        tool = "llm-compressor" + f" (compressed-tensors {version})" * (version is not None)
    elif tool is None and version is not None:
        tool = f"compressed-tensors {version}"
    return Marking(form, ", ".join(filter(None, (container, layout, scheme))), tool)


def _bits_text(mark: Mapping[str, Any]) -> str:
    bits = whole_number(mark, "bits", "w_bit")
    group = whole_number(mark, "group_size", "q_group_size")
    parts = []
    if bits is not None:
        parts.append(f"{bits} bits")
    if group is not None:
        parts.append(f"groups of {group}" if group > 0 else "one scale a row")
    return ", ".join(parts)


def _tool(mark: Mapping[str, Any]) -> str | None:
    """The tool that signs by name."""
    version = text_of(mark, "autoround_version")
    if version or text_of(mark, "provider") == "auto-round":
        return f"AutoRound {version}" if version else "AutoRound"
    meta = mark.get("meta")
    signed = meta.get("quantizer") if isinstance(meta, dict) else None
    first = signed[0] if isinstance(signed, list) and signed else signed
    if isinstance(first, str) and first:
        name, _, version = printable(first, 80).partition(":")
        name = {"gptqmodel": "GPTQModel", "autogptq": "AutoGPTQ"}.get(name.lower(), name)
        return f"{name} {version}".rstrip()
    return None


def _habitual_tool(form: Format, mark: Mapping[str, Any]) -> str | None:
    """The tool by keys that it alone is known to write."""
    if form is Format.GPTQ and "model_file_base_name" in mark:
        return "AutoGPTQ"
    if form is Format.AWQ and str(mark.get("version", "")).lower() in ("gemm", "gemv", "gemv_fast"):
        return "AutoAWQ, or a tool that writes the same keys"
    if form is Format.AUTO_ROUND:
        return "AutoRound"
    return None
