"""Random GLM-4 MoE checkpoints of any size, in the layout of each release.

The shards are written by the safetensors library, the tensor list stands here once more in its own
words: a mistake in the package's list is not repeated by its tests.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

TORCH_DTYPES = {
    "BF16": "bfloat16",
    "F32": "float32",
    "F16": "float16",
    "F64": "float64",
    "I64": "int64",
    "I8": "int8",
    "U8": "uint8",
    "I32": "int32",
    "U32": "uint32",
    "F8_E4M3": "float8_e4m3fn",
}

TINY: dict[str, Any] = {
    "architectures": ["Glm4MoeForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": [0, 5, 7],
    "pad_token_id": 0,
    "head_dim": 8,
    "hidden_act": "silu",
    "hidden_size": 16,
    "partial_rotary_factor": 0.5,
    "initializer_range": 0.02,
    "intermediate_size": 24,
    "max_position_embeddings": 131072,
    "model_type": "glm4_moe",
    "moe_intermediate_size": 12,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "n_group": 1,
    "topk_group": 1,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "routed_scaling_factor": 2.5,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 2,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "num_nextn_predict_layers": 1,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.54.0",
    "use_cache": True,
    "use_qk_norm": True,
    "vocab_size": 64,
}

LARGE: dict[str, Any] = {
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "num_hidden_layers": 92,
    "first_k_dense_replace": 3,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "n_routed_experts": 160,
    "vocab_size": 151552,
}
"""The size of GLM-4.5, 4.6 and 4.7."""

AIR = LARGE | {
    "hidden_size": 4096,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 46,
    "first_k_dense_replace": 1,
    "n_routed_experts": 128,
}
"""The size of GLM-4.5-Air."""

LAYOUTS = ("4.5", "4.5-air", "4.6", "4.7")


@dataclass
class Recorded:
    """A checkpoint as it was built: what a test may compare the output with."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = field(default_factory=dict)
    shard_of: dict[str, str] = field(default_factory=dict)

    @property
    def mtp_prefix(self) -> str:
        return f"model.layers.{self.config['num_hidden_layers']}."


def layout_config(layout: str, **changes: Any) -> dict[str, Any]:
    """config.json of a release, at the size of TINY unless changed."""
    config = dict(TINY)
    if layout == "4.5-air":
        config |= {"use_qk_norm": False, "first_k_dense_replace": 1, "routed_scaling_factor": 1.0}
    if layout == "4.7":
        config["dtype"] = config.pop("torch_dtype")
    return config | changes


def tensor_list(
    config: Mapping[str, Any], mtp_copies: bool
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """``(name, dtype, shape)`` of every tensor, layer by layer."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    heads = config["num_attention_heads"] * config["head_dim"]
    kv_heads = config["num_key_value_heads"] * config["head_dim"]
    last = config["num_hidden_layers"] - 1
    yield "model.embed_tokens.weight", "BF16", (vocab, hidden)
    for layer in range(last + 1 + (config["num_nextn_predict_layers"] or 0)):
        at = f"model.layers.{layer}"
        if layer > last:
            if mtp_copies:
                yield f"{at}.embed_tokens.weight", "BF16", (vocab, hidden)
                yield f"{at}.shared_head.head.weight", "BF16", (vocab, hidden)
            yield f"{at}.enorm.weight", "BF16", (hidden,)
            yield f"{at}.hnorm.weight", "BF16", (hidden,)
            yield f"{at}.eh_proj.weight", "BF16", (hidden, 2 * hidden)
            yield f"{at}.shared_head.norm.weight", "BF16", (hidden,)
        yield f"{at}.input_layernorm.weight", "BF16", (hidden,)
        yield f"{at}.post_attention_layernorm.weight", "BF16", (hidden,)
        for letter, rows in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            yield f"{at}.self_attn.{letter}_proj.weight", "BF16", (rows, hidden)
            if config["attention_bias"]:
                yield f"{at}.self_attn.{letter}_proj.bias", "BF16", (rows,)
        yield f"{at}.self_attn.o_proj.weight", "BF16", (hidden, heads)
        if config["use_qk_norm"]:
            yield f"{at}.self_attn.q_norm.weight", "BF16", (config["head_dim"],)
            yield f"{at}.self_attn.k_norm.weight", "BF16", (config["head_dim"],)
        mlps = {}
        if layer < config["first_k_dense_replace"]:
            mlps["mlp"] = config["intermediate_size"]
        else:
            for expert in range(config["n_routed_experts"]):
                mlps[f"mlp.experts.{expert}"] = config["moe_intermediate_size"]
            if config["n_shared_experts"]:
                mlps["mlp.shared_experts"] = (
                    config["moe_intermediate_size"] * config["n_shared_experts"]
                )
            yield f"{at}.mlp.gate.weight", "BF16", (config["n_routed_experts"], hidden)
            yield f"{at}.mlp.gate.e_score_correction_bias", "F32", (config["n_routed_experts"],)
        for name, inner in mlps.items():
            yield f"{at}.{name}.gate_proj.weight", "BF16", (inner, hidden)
            yield f"{at}.{name}.up_proj.weight", "BF16", (inner, hidden)
            yield f"{at}.{name}.down_proj.weight", "BF16", (hidden, inner)
    yield "model.norm.weight", "BF16", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", "BF16", (vocab, hidden)


def random_tensor(name: str, dtype: str, shape: tuple[int, ...], seed: int) -> bytes:
    """Gaussian values whose bytes depend on the seed and the name alone."""
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    values = generator.standard_normal(shape, np.float32)
    values *= np.float32(0.02) if len(shape) == 2 else np.float32(0.1)
    if name.endswith("norm.weight"):
        values += 1
    return encode(values, dtype)


def encode(values: NDArray[np.float32], dtype: str) -> bytes:
    """F32 values as the bytes of a dtype; BF16 by truncation."""
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return values.astype({"F32": np.float32, "F16": np.float16}[dtype]).tobytes()


def write_shard(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    """A shard written by the safetensors library."""
    held = {name: np.frombuffer(data, np.uint8) for name, (_, _, data) in tensors.items()}
    safetensors.serialize_file(
        {
            name: safetensors.TensorSpec(
                dtype=TORCH_DTYPES[dtype],
                shape=list(shape),
                data_ptr=held[name].ctypes.data,
                data_len=held[name].nbytes,
            )
            for name, (dtype, shape, _) in tensors.items()
        },
        str(path),
        {"format": "pt"},
    )
    path.chmod(0o644)


def build_checkpoint(
    folder: Path,
    layout: str = "4.6",
    *,
    seed: int = 0,
    shard_nbytes: int = 12_000,
    keep: bool = True,
    dtypes: Mapping[str, str] | None = None,
    values: Callable[[str, str, tuple[int, ...], int], bytes] = random_tensor,
    **changes: Any,
) -> Recorded:
    """A random checkpoint in the layout of a release.

    4.5 and 4.5-air have the MTP layer with copies of embedding and head in the last numbered shard,
    4.6 has it in ``mtp.safetensors`` without copies, 4.7 the same but not in the index.

    Args:
        folder: Made for it.
        layout: One of LAYOUTS.
        seed: Decides the values.
        shard_nbytes: A shard is closed before it gets longer than that.
        keep: Remember the bytes; leave it out for large ones.
        dtypes: Tensor name → another dtype than the release's.
        values: Gives the bytes of a tensor from its name, dtype, shape and the seed.
        changes: Keys of config.json that differ.
    """
    folder.mkdir(parents=True)
    config = layout_config(layout, **changes)
    recorded = Recorded(folder, config)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_side_files(folder, config)
    has_mtp_file = layout in ("4.6", "4.7")
    shards: list[list[tuple[str, str, tuple[int, ...]]]] = [[]]
    mtp: list[tuple[str, str, tuple[int, ...]]] = []
    filled = 0
    body: list[tuple[str, str, tuple[int, ...]]] = []
    tail: list[tuple[str, str, tuple[int, ...]]] = []
    for name, dtype, shape in tensor_list(config, mtp_copies=not has_mtp_file):
        entry = (name, (dtypes or {}).get(name, dtype), shape)
        (tail if name.startswith(recorded.mtp_prefix) else body).append(entry)
    for entry in body:
        nbytes = int(np.prod(entry[2])) * (4 if entry[1] == "F32" else 2)
        if shards[-1] and filled + nbytes > shard_nbytes:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += nbytes
    if has_mtp_file:
        mtp = tail
    elif tail:
        shards.append(tail)
    files = {
        f"model-{number:05d}-of-{len(shards):05d}.safetensors": entries
        for number, entries in enumerate(shards, start=1)
    }
    if mtp:
        files["mtp.safetensors"] = mtp
    total = 0
    for file, entries in files.items():
        tensors = {
            name: (dtype, shape, values(name, dtype, shape, seed)) for name, dtype, shape in entries
        }
        write_shard(folder / file, tensors)
        total += sum(len(data) for _, _, data in tensors.values())
        recorded.shard_of |= dict.fromkeys(tensors, file)
        if keep:
            recorded.tensors |= tensors
    listed = {
        name: file
        for name, file in recorded.shard_of.items()
        if layout != "4.7" or file != "mtp.safetensors"
    }
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(listed.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return recorded


def write_side_files(folder: Path, config: Mapping[str, Any]) -> None:
    """Tokenizer, template and the rest, and what must not go along."""
    for name, text in {
        "tokenizer.json": '{"version": "1.0"}\n',
        "tokenizer_config.json": "{}\n",
        "chat_template.jinja": "[gMASK]<sop>{{ messages[0].content }}",
        "generation_config.json": json.dumps({"eos_token_id": config["eos_token_id"]}),
        "LICENSE": "MIT\n",
        "README.md": "# BF16 weights\n",
        ".gitattributes": "*.safetensors filter=lfs\n",
        "SHA256SUMS": "00  model-00001-of-00002.safetensors\n",
    }.items():
        (folder / name).write_text(text)
    (folder / "assets").mkdir()
    (folder / "assets" / "figure.svg").write_text("<svg/>\n")


def read_shards(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Every tensor of a folder's safetensors files, read by the safetensors library."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, entry in safetensors.deserialize(path.read_bytes()):  # type: ignore[no-untyped-call]
            assert name not in tensors, name
            tensors[name] = (entry["dtype"], list(entry["shape"]), bytes(entry["data"]))
    return tensors
