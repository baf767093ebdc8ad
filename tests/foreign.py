"""Folders as other tools leave them: each format's marks on a tiny GLM-4 MoE.

The marks stand here in the tools' words once more; sources in ``glmquant/markings.py``. Quantized
tensors are zeros: nobody reads them here.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.builders import Recorded, build_checkpoint, write_shard

INDEX: Final = "model.safetensors.index.json"
NBITS: Final = {"BF16": 16, "F32": 32, "I8": 8, "U8": 8, "I32": 32, "U32": 32, "F8_E4M3": 8}

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]
"""Suffix → dtype and shape, of what stands in place of one weight."""


@dataclass(frozen=True)
class Foreign:
    """A format and how it is told.

    Attributes:
        text: What ``inspect`` says: format, detail, tool.
        evidence: By what it was told.
        build: Makes the folder.
    """

    text: str
    evidence: str
    build: Callable[[Path], Recorded]


def edit_config(folder: Path, **changes: Any) -> None:
    """Change keys of config.json; None removes one."""
    path = folder / "config.json"
    fields = json.loads(path.read_bytes()) | changes
    path.write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))


def is_linear(name: str) -> bool:
    """Whether a tool would quantize this weight."""
    return name.endswith("_proj.weight") and "eh_proj" not in name


def replace_linears(source: Recorded, parts: Callable[[int, int], Tensors]) -> None:
    """Write the shards and the index anew with other tensors in place of each linear weight."""
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    shard_of: dict[str, str] = {}
    for name, (dtype, shape, data) in source.tensors.items():
        file = source.shard_of[name]
        if not is_linear(name):
            tensors[name], shard_of[name] = (dtype, shape, data), file
            continue
        for suffix, (part_dtype, part_shape) in parts(*shape).items():
            nbytes = NBITS[part_dtype] // 8
            for size in part_shape:
                nbytes *= size
            part = name.removesuffix("weight") + suffix
            tensors[part], shard_of[part] = (part_dtype, part_shape, bytes(nbytes)), file
    source.tensors, source.shard_of = tensors, shard_of
    write_shards(source)


def write_shards(source: Recorded, index: str = INDEX) -> None:
    """The shards and the index of what is recorded, and no others."""
    for path in [*source.folder.glob("*.safetensors"), *source.folder.glob("*.index.json")]:
        path.unlink()
    for file in sorted(set(source.shard_of.values())):
        names = [name for name, home in source.shard_of.items() if home == file]
        write_shard(source.folder / file, {name: source.tensors[name] for name in names})
    (source.folder / index).write_text(json.dumps({"metadata": {}, "weight_map": source.shard_of}))


def packed_int4(rows: int, columns: int) -> Tensors:
    """GPTQ: eight values of the input dimension in an I32."""
    return {
        "qweight": ("I32", (columns // 8, rows)),
        "qzeros": ("I32", (1, max(rows // 8, 1))),
        "scales": ("BF16", (1, rows)),
        "g_idx": ("I32", (columns,)),
    }


def awq_int4(rows: int, columns: int) -> Tensors:
    """AWQ: eight values of the output dimension in an I32, no group index."""
    parts = dict(packed_int4(rows, columns))
    del parts["g_idx"]
    return parts | {"qweight": ("I32", (columns, max(rows // 8, 1)))}


def int8_rows(rows: int, columns: int) -> Tensors:
    """compressed-tensors: int8 and a scale a row."""
    return {"weight": ("I8", (rows, columns)), "weight_scale": ("BF16", (rows, 1))}


def ascend_int8(rows: int, columns: int) -> Tensors:
    """ModelSlim: int8, scale and offset a row."""
    scale = ("F32", (rows, 1))
    return {"weight": ("I8", (rows, columns)), "weight_scale": scale, "weight_offset": scale}


def fp8_blocks(rows: int, columns: int) -> Tensors:
    """FP8 with a scale a block."""
    return {"weight": ("F8_E4M3", (rows, columns)), "weight_scale_inv": ("F32", (1, 1))}


def fp4_pairs(rows: int, columns: int) -> Tensors:
    """NVFP4: two values a byte, an FP8 scale for 16 of them."""
    return {
        "weight": ("U8", (rows, columns // 2)),
        "weight_scale": ("F8_E4M3", (rows, max(columns // 16, 1))),
        "weight_scale_2": ("F32", ()),
    }


def nf4(rows: int, columns: int) -> Tensors:
    """bitsandbytes: two values a byte and the state beside them."""
    return {
        "weight": ("U8", (rows * columns // 2, 1)),
        "weight.absmax": ("U8", (max(rows * columns // 64, 1),)),
        "weight.quant_state.bitsandbytes__nf4": ("U8", (16,)),
    }


def mlx_int4(rows: int, columns: int) -> Tensors:
    """MLX: eight values in a U32."""
    group = ("BF16", (rows, 1))
    return {"weight": ("U32", (rows, columns // 8)), "scales": group, "biases": group}


def quantized(
    parts: Callable[[int, int], Tensors],
    mark: Mapping[str, Any] | None = None,
    files: Mapping[str, Any] | None = None,
    **config: Any,
) -> Callable[[Path], Recorded]:
    """A builder of a folder with these tensors, marks and files."""

    def build(folder: Path) -> Recorded:
        source = build_checkpoint(folder)
        replace_linears(source, parts)
        edit_config(folder, quantization_config=mark, **config)
        for name, content in (files or {}).items():
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / name).write_text(text)
        return source

    return build


def modelslim(version: str, *, has_description: bool = True) -> Callable[[Path], Recorded]:
    """A builder of a ModelSlim folder under the names of ``v0``, ``v1`` or ``hf``."""

    def build(folder: Path) -> Recorded:
        source = build_checkpoint(folder)
        replace_linears(source, ascend_int8)
        kinds = {
            name: "W8A8_DYNAMIC" if "_proj." in name and "eh_proj" not in name else "FLOAT"
            for name in source.tensors
        }
        description: dict[str, Any] = {"model_quant_type": "W8A8_DYNAMIC", **kinds}
        index, described = INDEX, "quant_model_description.json"
        if version != "hf":
            stem = "quant_model_weights" if version == "v1" else "quant_model_weight_w8a8_dynamic"
            index = f"{stem}.safetensors.index.json"
            names = {
                file: f"{stem}-{number:05d}-of-00004.safetensors"
                for number, file in enumerate(sorted(set(source.shard_of.values())), start=1)
            }
            source.shard_of = {name: names[file] for name, file in source.shard_of.items()}
        if version == "v0":
            described = "quant_model_description_w8a8_dynamic.json"
        else:
            description["version"] = "1.0.0"
        write_shards(source, index)
        if has_description:
            (folder / described).write_text(json.dumps(description))
        return source

    return build


def gguf_bytes(
    fields: Mapping[str, str | int], *, version: int = 3, order: str = "<", tensor_count: int = 7
) -> bytes:
    """A GGUF head: strings and 32-bit numbers, then a vocabulary, as llama.cpp writes it."""

    def text(value: str) -> bytes:
        return struct.pack(order + "Q", len(value.encode())) + value.encode()

    data = b"GGUF" + struct.pack(order + "IQQ", version, tensor_count, len(fields) + 2)
    for key, value in fields.items():
        data += text(key)
        if isinstance(value, str):
            data += struct.pack(order + "I", 8) + text(value)
        else:
            data += struct.pack(order + "II", 4, value)
    words = [f"word{number}" for number in range(50)]
    data += text("tokenizer.ggml.tokens") + struct.pack(order + "IIQ", 9, 8, len(words))
    data += b"".join(map(text, words))
    data += text("tokenizer.ggml.types") + struct.pack(order + "IIQ", 9, 5, 3) + bytes(12)
    return data + bytes(64)


GGUF_FIELDS: Final[dict[str, str | int]] = {
    "general.architecture": "glm4moe",
    "general.name": "GLM 4.6",
    "general.file_type": 15,
    "general.quantized_by": "Somebody",
}


def build_gguf(folder: Path) -> Recorded:
    """Two GGUF files and nothing else."""
    folder.mkdir(parents=True)
    for number in (1, 2):
        name = f"GLM-4.6-Q4_K_M-0000{number}-of-00002.gguf"
        (folder / name).write_bytes(gguf_bytes(GGUF_FIELDS))
    return Recorded(folder, {})


def build_pytorch(folder: Path) -> Recorded:
    """The weights as pickles."""
    source = build_checkpoint(folder)
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        path.unlink()
    (folder / "pytorch_model-00001-of-00001.bin").write_bytes(b"PK\x03\x04" + bytes(96))
    (folder / "training_args.bin").write_bytes(b"PK\x03\x04")
    return source


def groups(bits: int, kind: str, layout: str, **more: Any) -> dict[str, Any]:
    """A quantization_config of compressed-tensors."""
    scheme = {"num_bits": bits, "type": kind, "symmetric": True}
    group = {"targets": ["Linear"], "weights": scheme, "input_activations": scheme}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "version": "0.12.2",
        "config_groups": {"group_0": group},
        **more,
    }


CONFIG: Final = "config.json: quantization_config"
GPTQ: Final = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
AWQ: Final = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
MLX: Final = {"group_size": 64, "bits": 4, "mode": "affine"}
NVFP4_FILE: Final = {
    "producer": {"name": "modelopt", "version": "0.29.0"},
    "quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16},
}

FOREIGN: Final[dict[str, Foreign]] = {
    "gptqmodel": Foreign(
        "GPTQ, 4 bits, groups of 128, by GPTQModel 2.2.0",
        CONFIG,
        quantized(packed_int4, GPTQ | {"meta": {"quantizer": ["gptqmodel:2.2.0"]}}),
    ),
    "autogptq": Foreign(
        "GPTQ, 4 bits, groups of 128, by AutoGPTQ",
        CONFIG,
        quantized(packed_int4, GPTQ | {"model_file_base_name": "model"}),
    ),
    "gptq of autoround": Foreign(
        "GPTQ, 4 bits, one scale a row, by AutoRound 0.6.0",
        CONFIG,
        quantized(
            packed_int4,
            GPTQ | {"provider": "auto-round", "autoround_version": "0.6.0", "group_size": -1},
        ),
    ),
    "gptq by its own file": Foreign(
        "GPTQ, 4 bits, groups of 32",
        "quantize_config.json",
        quantized(packed_int4, files={"quantize_config.json": {"bits": 4, "group_size": 32}}),
    ),
    "gptq by its tensors": Foreign(
        "GPTQ, no quantization_config",
        "the dtypes in the shards' headers",
        quantized(packed_int4),
    ),
    "autoawq": Foreign(
        "AWQ, 4 bits, groups of 128, by AutoAWQ, or a tool that writes the same keys",
        CONFIG,
        quantized(awq_int4, AWQ | {"version": "gemm", "modules_to_not_convert": None}),
    ),
    "awq by its tensors": Foreign(
        "AWQ, no quantization_config", "the dtypes in the shards' headers", quantized(awq_int4)
    ),
    "bitsandbytes": Foreign(
        "bitsandbytes, 4 bits, nf4",
        CONFIG,
        quantized(
            nf4,
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        ),
    ),
    "bitsandbytes by its tensors": Foreign(
        "bitsandbytes, no quantization_config", "the dtypes in the shards' headers", quantized(nf4)
    ),
    "llm-compressor": Foreign(
        "compressed-tensors, int-quantized, W8A8, by llm-compressor (compressed-tensors 0.12.2)",
        CONFIG,
        quantized(int8_rows, groups(8, "int", "int-quantized"), {"recipe.yaml": "stages: {}\n"}),
    ),
    "fp8 release": Foreign(
        "FP8, compressed-tensors, float-quantized, W8A8, by compressed-tensors 0.12.2",
        CONFIG,
        quantized(fp8_blocks, groups(8, "float", "float-quantized")),
    ),
    "fp8": Foreign(
        "FP8, blocks of 128x128",
        CONFIG,
        quantized(fp8_blocks, {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    ),
    "fp8 by its tensors": Foreign(
        "FP8, no quantization_config", "the dtypes in the shards' headers", quantized(fp8_blocks)
    ),
    "nvfp4 of modelopt": Foreign(
        "NVFP4, by ModelOpt 0.29.0",
        "hf_quant_config.json",
        quantized(fp4_pairs, files={"hf_quant_config.json": NVFP4_FILE}),
    ),
    "fp8 of modelopt": Foreign(
        "FP8, by ModelOpt 0.33.1",
        CONFIG,
        quantized(
            fp8_blocks,
            {
                "quant_method": "modelopt",
                "quant_algo": "FP8",
                "producer": {"name": "modelopt", "version": "0.33.1"},
            },
        ),
    ),
    "nvfp4 of llm-compressor": Foreign(
        "NVFP4, compressed-tensors, nvfp4-pack-quantized, W4A4, by compressed-tensors 0.12.2",
        CONFIG,
        quantized(fp4_pairs, groups(4, "float", "nvfp4-pack-quantized")),
    ),
    "mxfp4 of autoround": Foreign(
        "MXFP4, compressed-tensors, mxfp4-pack-quantized, W4A4, by AutoRound",
        CONFIG,
        quantized(fp4_pairs, groups(4, "float", "mxfp4-pack-quantized", provider="auto-round")),
    ),
    "mxfp4": Foreign("MXFP4", CONFIG, quantized(fp4_pairs, {"quant_method": "mxfp4"})),
    "autoround": Foreign(
        "AutoRound, 4 bits, groups of 128, auto_round:auto_gptq, by AutoRound 0.12.3",
        CONFIG,
        quantized(
            packed_int4,
            {
                "quant_method": "auto-round",
                "packing_format": "auto_round:auto_gptq",
                "bits": 4,
                "group_size": 128,
                "autoround_version": "0.12.3",
            },
        ),
    ),
    "mlx": Foreign(
        "MLX, 4 bits, groups of 64, by MLX-LM", CONFIG, quantized(mlx_int4, MLX, quantization=MLX)
    ),
    "mlx by one key": Foreign(
        "MLX, 4 bits, groups of 64, by MLX-LM",
        "config.json: quantization",
        quantized(mlx_int4, quantization=MLX),
    ),
    "hqq": Foreign(
        "another format, quant_method 'hqq'", CONFIG, quantized(nf4, {"quant_method": "hqq"})
    ),
    "mindie": Foreign(
        "another format, w8a8_dynamic for MindIE",
        "config.json: quantize",
        quantized(int8_rows, quantize="w8a8_dynamic"),
    ),
    "int8 without a mark": Foreign(
        "quantized without a mark, I8", "the dtypes in the shards' headers", quantized(int8_rows)
    ),
    "modelslim v0": Foreign(
        "ModelSlim v0, W8A8_DYNAMIC, by msModelSlim",
        "quant_model_description_w8a8_dynamic.json",
        modelslim("v0"),
    ),
    "modelslim v1": Foreign(
        "ModelSlim v1, W8A8_DYNAMIC, by msModelSlim",
        "quant_model_description.json",
        modelslim("v1"),
    ),
    "modelslim v1 without its description": Foreign(
        "ModelSlim v1, without its description, by msModelSlim",
        "the names of the shards",
        modelslim("v1", has_description=False),
    ),
    "modelslim under HF names": Foreign(
        "ModelSlim under HF names, W8A8_DYNAMIC", "quant_model_description.json", modelslim("hf")
    ),
    "modelslim under HF names without its description": Foreign(
        "ModelSlim under HF names, without its description",
        "the dtypes in the shards' headers",
        modelslim("hf", has_description=False),
    ),
    "gguf": Foreign("GGUF, Q4_K_M, by Somebody", "the heads of *.gguf", build_gguf),
    "pytorch": Foreign("PyTorch", "pytorch_model-00001-of-00001.bin", build_pytorch),
}
