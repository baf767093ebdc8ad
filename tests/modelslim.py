"""Quantized folders as msModelSlim and its users leave them, made of a BF16 checkpoint.

The arithmetic stands here once more, in NumPy and in BF16 where the tool's is: what judges a folder
is not judged by its own formulas. ``make`` writes a right checkpoint unless an option says what the
tool leaves out or widens.
"""

from __future__ import annotations

import json
import re
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import safetensors
from numpy.typing import NDArray

from tests.builders import TORCH_DTYPES, Recorded

Tensor = tuple[str, tuple[int, ...], bytes]
Floats = NDArray[np.float32]

SHARD_STEMS: Final = {
    "v0": "quant_model_weight_w8a8_dynamic",
    "v1": "quant_model_weights",
    "hf": "model",
}
DYNAMIC: Final = "W8A8_DYNAMIC"
QUANTIZED: Final = re.compile(r"\.(self_attn\.[qkvo]_proj|mlp\.experts\.\d+\.\w+_proj)\.weight$")
STATIC: Final = re.compile(r"\.self_attn\.[qkvo]_proj\.weight$")
EVERY_LINEAR: Final = re.compile(r"(_proj|shared_head\.head)\.weight$")


@dataclass(frozen=True)
class Style:
    """How a folder was made.

    Attributes:
        layout: Names of shards, index and description.
        mtp: The MTP layer: left out, as in the source, widened to F32 with copies of embedding and
            head, int8 in attention and experts, as the one of 4.5-Air becomes, or in all linears.
        router_biases: Whether they are there; the tool drops them all.
        widen: The biases of quantized linears in F32, as v1 writes them.
        arithmetic: Of scale and quotient. The tool divides BF16 by BF16.
        smooth: Factors between ``input_layernorm`` and q, k, v.
        static: Attention as W8A8 with an input scale, in place of W8A8_DYNAMIC.
        smooth_vo: Factors between the rows of v and the columns of o, as static recipes have.
        descriptions: Which description files; empty for the layout's own.
        quantize_key: ``quantize`` in config.json and three nulls in the description, as the
            example scripts around v0 leave them.
        shard_mode: Mode of the shards.
        json_mode: Mode of the description, config.json and the side files.
        umask077: The whole folder for its owner alone.
        announce: ``num_nextn_predict_layers``; None is the number of MTP layers that are there.
        seed: Decides the smoothing factors.
    """

    layout: Literal["v0", "v1", "hf"] = "v1"
    mtp: Literal["bf16", "f32", "int8", "int8 with eh_proj"] | None = "bf16"
    router_biases: bool = True
    widen: bool = True
    arithmetic: Literal["f32", "bf16"] = "bf16"
    smooth: bool = False
    static: bool = False
    smooth_vo: bool = False
    descriptions: tuple[str, ...] = ()
    quantize_key: bool = False
    shard_mode: int = 0o644
    json_mode: int = 0o644
    umask077: bool = False
    announce: int | None = None
    seed: int = 0


VENDOR: Final = Style(
    mtp="f32", router_biases=False, smooth=True, shard_mode=0o600, json_mode=0o600, announce=1
)
"""As v1 leaves it: no router biases, an F32 MTP layer, and an index that all may read beside shards
that nobody else may."""

VENDOR_V0: Final = Style(
    layout="v0", mtp=None, router_biases=False, shard_mode=0o400, json_mode=0o600, announce=1
)
"""As v0 leaves it: no MTP layer, which config.json still announces."""


def bf16(values: NDArray[Any]) -> Floats:
    """F32 rounded to the nearest BF16, half to even, still as F32."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(
        0xFFFF0000
    )
    floats: Floats = rounded.astype(np.uint32).view(np.float32)
    return floats


def to_f32(tensor: Tensor) -> Floats:
    """The values of a float tensor."""
    dtype, shape, data = tensor
    if dtype == "BF16":
        bits = np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)
        values: Floats = bits.astype(np.uint32).view(np.float32)
    else:
        values = np.frombuffer(data, "<f4").astype(np.float32)
    return values.reshape(shape)


def stored(values: NDArray[Any], dtype: str) -> Tensor:
    """Values as a tensor; to BF16 by rounding."""
    values = np.ascontiguousarray(values)
    if dtype == "BF16":
        data = (bf16(values).view(np.uint32) >> np.uint32(16)).astype("<u2").tobytes()
    else:
        kind = {"F32": "<f4", "I8": "i1", "I32": "<i4"}[dtype]
        data = values.astype(kind).tobytes()
    return dtype, values.shape, data


def round_to_nearest(
    weight: Floats, arithmetic: str, scale_dtype: str
) -> tuple[NDArray[np.int8], Floats]:
    """int8 ``[out, in]`` and scales ``[out, 1]``, as the tool rounds them: v0 never to -128."""
    absmax = np.abs(weight).max(axis=1, keepdims=True)
    scale = absmax / np.float32(127)
    if arithmetic == "bf16" or scale_dtype == "BF16":
        scale = bf16(scale)
    scale = np.where(scale == 0, np.float32(1), scale)
    quotient = weight / scale
    if arithmetic == "bf16":
        quotient = bf16(quotient)
    least = -127 if scale_dtype == "BF16" else -128
    return np.clip(np.rint(quotient), least, 127).astype(np.int8), scale


def dynamic_linear(weight: Floats, arithmetic: str, scale_dtype: str) -> dict[str, Tensor]:
    """The tensors of a W8A8_DYNAMIC linear by suffix."""
    rows, scale = round_to_nearest(weight, arithmetic, scale_dtype)
    return {
        "weight": stored(rows, "I8"),
        "weight_scale": stored(scale, scale_dtype),
        "weight_offset": stored(np.zeros_like(scale), scale_dtype),
    }


def static_linear(
    weight: Floats,
    bias: Floats | None,
    arithmetic: str,
    *,
    input_scale: float = 0.0478515625,
    input_offset: int = -3,
    keep_scale: bool = False,
) -> dict[str, Tensor]:
    """The tensors of a W8A8 linear by suffix; ``y = (q_x q_w + quant_bias) deq_scale``.

    ``deq_scale`` is rounded to BF16 once more, and v1 (``keep_scale`` off) rounds the bias's
    quotient too, as measured on real outputs.
    """
    rows, scale = round_to_nearest(weight, arithmetic, "BF16" if keep_scale else "F32")
    deq_scale = bf16(np.float32(input_scale) * bf16(scale)[:, 0])
    quant_bias = np.zeros(len(rows), np.int64) - input_offset * rows.astype(np.int64).sum(axis=1)
    if bias is not None and keep_scale:
        quant_bias = np.rint(bias / deq_scale).astype(np.int64) + quant_bias
    elif bias is not None:
        quant_bias = np.rint(bf16(bias / deq_scale) + quant_bias.astype(np.float32))
    dtype = "BF16" if keep_scale else "F32"
    tensors = {
        "weight": stored(rows, "I8"),
        "quant_bias": stored(quant_bias, "I32"),
        "input_scale": stored(np.array([input_scale], np.float32), dtype),
        "input_offset": stored(np.array([input_offset], np.float32), dtype),
        "deq_scale": stored(deq_scale, "F32"),
    }
    if keep_scale:
        tensors["weight_scale"] = stored(scale, "BF16")
        tensors["weight_offset"] = stored(np.zeros_like(scale), "BF16")
    return tensors


@dataclass
class _Making:
    """One folder on its way."""

    source: Recorded
    style: Style
    made: Recorded
    kinds: dict[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Tensor]:
        """The float tensors of the body, smoothed."""
        tensors = {
            name: tensor
            for name, tensor in self.source.tensors.items()
            if not name.startswith(self.source.mtp_prefix)
        }
        for layer in range(self.source.config["num_hidden_layers"]):
            at = f"model.layers.{layer}"
            if self.style.smooth_vo:
                self._smooth_values(tensors, at)
            if self.style.smooth:
                self._smooth_norm(tensors, at)
        return tensors

    def _factors(self, name: str, count: int) -> Floats:
        """Smoothing factors as found from activations: 0.7 to 5.7, as measured on GLM-4-nano."""
        generator = np.random.default_rng([self.style.seed, zlib.crc32(name.encode())])
        return bf16(np.exp2(generator.uniform(-0.5, 2.5, count)))

    def _smooth_norm(self, tensors: dict[str, Tensor], at: str) -> None:
        norm = to_f32(tensors[f"{at}.input_layernorm.weight"])
        factors = self._factors(f"{at}.input_layernorm", len(norm))
        inverse = bf16(np.float32(1) / factors)
        tensors[f"{at}.input_layernorm.weight"] = stored(norm * inverse, "BF16")
        for letter in "qkv":
            name = f"{at}.self_attn.{letter}_proj.weight"
            tensors[name] = stored(to_f32(tensors[name]) * factors, "BF16")

    def _smooth_values(self, tensors: dict[str, Tensor], at: str) -> None:
        config = self.source.config
        rows = config["num_key_value_heads"] * config["head_dim"]
        factors = self._factors(f"{at}.self_attn.v_proj", rows)
        weight, bias = (f"{at}.self_attn.v_proj.{suffix}" for suffix in ("weight", "bias"))
        inverse = bf16(np.float32(1) / factors)
        tensors[weight] = stored(to_f32(tensors[weight]) * inverse[:, None], "BF16")
        if bias in tensors:
            tensors[bias] = stored(to_f32(tensors[bias]) * inverse, "BF16")
        group = config["num_attention_heads"] // config["num_key_value_heads"]
        columns = np.repeat(factors.reshape(-1, config["head_dim"]), group, axis=0).reshape(-1)
        output = f"{at}.self_attn.o_proj.weight"
        tensors[output] = stored(to_f32(tensors[output]) * columns, "BF16")

    def add(self, name: str, tensor: Tensor, kind: str) -> None:
        self.made.tensors[name] = tensor
        self.kinds[name] = kind

    def add_linear(self, name: str, tensors: dict[str, Tensor], kind: str) -> None:
        for suffix, tensor in tensors.items():
            self.add(name.removesuffix("weight") + suffix, tensor, kind)

    def add_body(self) -> None:
        style = self.style
        scale_dtype = "BF16" if style.layout == "v0" else "F32"
        body = self.body()
        for name, tensor in body.items():
            bias = f"{name.removesuffix('weight')}bias"
            if style.static and STATIC.search(name):
                values = to_f32(body[bias]) if bias in body else None
                linear = static_linear(
                    to_f32(tensor), values, style.arithmetic, keep_scale=style.layout == "v0"
                )
                self.add_linear(name, linear, "W8A8")
            elif QUANTIZED.search(name):
                self.add_linear(
                    name, dynamic_linear(to_f32(tensor), style.arithmetic, scale_dtype), DYNAMIC
                )
            else:
                self.add_float(name, tensor)

    def add_float(self, name: str, tensor: Tensor) -> None:
        if name.endswith("e_score_correction_bias") and not self.style.router_biases:
            return
        is_wide = self.style.widen and self.style.layout != "v0" and name.endswith("_proj.bias")
        self.add(name, stored(to_f32(tensor), "F32") if is_wide else tensor, "FLOAT")

    def add_mtp(self) -> None:
        style, prefix = self.style, self.source.mtp_prefix
        if style.mtp is None:
            return
        layer = {k: v for k, v in self.source.tensors.items() if k.startswith(prefix)}
        if style.mtp != "bf16":
            copies = {
                "embed_tokens.weight": "model.embed_tokens.weight",
                "shared_head.head.weight": "lm_head.weight",
            }
            for copy, original in copies.items():
                if original in self.source.tensors:
                    layer[prefix + copy] = self.source.tensors[original]
            layer = {name: stored(to_f32(tensor), "F32") for name, tensor in layer.items()}
        quantized = {"int8": QUANTIZED, "int8 with eh_proj": EVERY_LINEAR}.get(style.mtp)
        for name, tensor in layer.items():
            if quantized and quantized.search(name):
                linear = dynamic_linear(to_f32(tensor), "f32", "F32")
                self.add_linear(name, linear, DYNAMIC)
            elif style.router_biases or not name.endswith("e_score_correction_bias"):
                self.add(name, tensor, "FLOAT")
        for optional in ("embed_tokens.weight", "shared_head.head.weight"):
            self.kinds.setdefault(prefix + optional, "FLOAT")


def make(source: Recorded, folder: Path, style: Style | None = None, **changes: Any) -> Recorded:
    """A quantized folder made of a BF16 one.

    Args:
        source: What it is made of, with its bytes.
        folder: Made for it.
        style: How; a right checkpoint in the layout v1 if left out.
        changes: Fields of Style that differ.

    Returns:
        The folder as it was written; ``shard_of`` is the index's weight map.
    """
    style = replace(style or Style(), **changes)
    mtp_count = int(style.mtp is not None)
    announced = mtp_count if style.announce is None else style.announce
    config = source.config | {"num_nextn_predict_layers": announced}
    if style.quantize_key:
        config["quantize"] = "w8a8_dynamic"
    making = _Making(source, style, Recorded(folder, config))
    making.add_body()
    making.add_mtp()
    folder.mkdir(parents=True)
    _write_weights(making.made, style)
    _write_json(making, config)
    for path in sorted(source.folder.rglob("*")):
        if path.is_file() and _goes_along(path):
            copy = folder / path.relative_to(source.folder)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
            copy.chmod(style.json_mode)
    if style.layout == "v1":
        (folder / "GLM-4.7_best_practice.yaml").write_text("apiversion: modelslim_v1\n")
    if style.umask077:
        for path in folder.rglob("*"):
            path.chmod(0o700 if path.is_dir() else 0o600)
        folder.chmod(0o700)
    return making.made


def _goes_along(path: Path) -> bool:
    is_weight = path.suffix == ".safetensors" or path.name.endswith(".index.json")
    return not is_weight and path.name not in ("config.json", "README.md", "SHA256SUMS")


def _shards(made: Recorded) -> Iterator[dict[str, Tensor]]:
    """The tensors in the order they were made, in three shards or so."""
    nbytes = sum(len(data) for _, _, data in made.tensors.values()) // 3
    shard: dict[str, Tensor] = {}
    filled = 0
    for name, tensor in made.tensors.items():
        if shard and filled + len(tensor[2]) > nbytes:
            yield shard
            shard, filled = {}, 0
        shard[name] = tensor
        filled += len(tensor[2])
    yield shard


def _write_weights(made: Recorded, style: Style) -> None:
    shards = list(_shards(made))
    stem = SHARD_STEMS[style.layout]
    for number, shard in enumerate(shards, start=1):
        file = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_bare(made.folder / file, shard)
        (made.folder / file).chmod(style.shard_mode)
        made.shard_of |= dict.fromkeys(shard, file)
    total = sum(len(data) for _, _, data in made.tensors.values())
    index = made.folder / f"{stem}.safetensors.index.json"
    index.write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": made.shard_of}, indent=2)
    )
    index.chmod(0o644)


def _write_bare(path: Path, tensors: dict[str, Tensor]) -> None:
    """A shard without ``__metadata__``, as the tool calls the library."""
    held = {name: np.frombuffer(data, np.uint8) for name, (_, _, data) in tensors.items()}
    specs = {
        name: safetensors.TensorSpec(
            dtype=TORCH_DTYPES[dtype],
            shape=list(shape),
            data_ptr=held[name].ctypes.data,
            data_len=held[name].nbytes,
        )
        for name, (dtype, shape, _) in tensors.items()
    }
    safetensors.serialize_file(specs, str(path), None)


def _write_json(making: _Making, config: dict[str, Any]) -> None:
    style, folder = making.style, making.made.folder
    strongest = "W8A8" if style.static else DYNAMIC
    head: dict[str, Any] = {"version": "1.0.0", "model_quant_type": strongest}
    tail: dict[str, Any] = {}
    if style.layout != "v0":
        tail = head | {"metadata": {}, "group_size": 0, "optional": {}}
        head = {}
    elif style.quantize_key:
        tail = {"kv_quant_type": None, "fa_quant_type": None, "group_size": 0}
    description = {**head, **making.kinds, **tail}
    for name in style.descriptions or ("quant_model_description.json",):
        (folder / name).write_text(json.dumps(description, indent=2 if head else 4))
        (folder / name).chmod(style.json_mode)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "config.json").chmod(style.json_mode)
