"""Writes the network as GLM-4.6's checkpoint layout, and reads it back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from nano.network import Nano, NanoConfig
from nano.tokenizer import EOS, PAD, token_id, tokenizer_config

MAX_SHARD_NBYTES = 2_500_000
MTP_FILE = "mtp.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# The release whose key names the config follows: `torch_dtype`, `rope_theta` at the top.
TRANSFORMERS_VERSION = "4.54.0"


def checkpoint_tensors(network: Nano) -> dict[str, Tensor]:
    """The network's tensors under the checkpoint's names, in layer order.

    Stacked experts become one tensor a projection and expert. Router correction biases stay F32,
    everything else is rounded to BF16.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        prefix, _, last = name.rpartition(".")
        if last == "gate_up":
            for expert, both in enumerate(tensor):
                gate, up = both.chunk(2)
                tensors[f"{prefix}.{expert}.gate_proj.weight"] = gate
                tensors[f"{prefix}.{expert}.up_proj.weight"] = up
        elif last == "down":
            for expert, down in enumerate(tensor):
                tensors[f"{prefix}.{expert}.down_proj.weight"] = down
        else:
            tensors[name] = tensor
    return {
        name: tensor.to(
            torch.float32 if name.endswith("e_score_correction_bias") else torch.bfloat16
        ).contiguous()
        for name, tensor in tensors.items()
    }


def stacked_state(tensors: Mapping[str, Tensor], config: NanoConfig) -> dict[str, Tensor]:
    """The inverse of ``checkpoint_tensors`` in F32, for ``Nano.load_state_dict``."""
    state = {name: t.float() for name, t in tensors.items() if ".mlp.experts." not in name}
    for layer in range(config.first_k_dense_replace, config.num_hidden_layers + 1):
        prefix = f"model.layers.{layer}.mlp.experts."
        gate, up, down = (
            torch.stack(
                [
                    tensors[f"{prefix}{expert}.{projection}_proj.weight"].float()
                    for expert in range(config.n_routed_experts)
                ]
            )
            for projection in ("gate", "up", "down")
        )
        state[prefix + "gate_up"] = torch.cat([gate, up], dim=1)
        state[prefix + "down"] = down
    return state


def pack(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Numbered shards of at most 2.5 MB each, filled in order, so that layers cross borders."""
    shards: list[dict[str, Tensor]] = [{}]
    nbytes = 0
    for name, tensor in tensors.items():
        if shards[-1] and nbytes + tensor.nbytes > MAX_SHARD_NBYTES:
            shards.append({})
            nbytes = 0
        shards[-1][name] = tensor
        nbytes += tensor.nbytes
    return shards


def config_json(config: NanoConfig, tokenizer: Tokenizer) -> dict[str, object]:
    """``config.json`` with the keys of GLM-4.6's."""
    return {
        "architectures": ["Glm4MoeForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": [token_id(tokenizer, text) for text in EOS],
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "model_type": "glm4_moe",
        "n_group": 1,
        "norm_topk_prob": True,
        "num_nextn_predict_layers": 1,
        "pad_token_id": token_id(tokenizer, PAD),
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "torch_dtype": "bfloat16",
        "transformers_version": TRANSFORMERS_VERSION,
        "use_cache": True,
        "use_qk_norm": True,
    } | asdict(config)


def generation_config_json(tokenizer: Tokenizer) -> dict[str, object]:
    """``generation_config.json`` with GLM-4.6's three end tokens."""
    return {
        "_from_model_config": True,
        "do_sample": True,
        "eos_token_id": [token_id(tokenizer, text) for text in EOS],
        "pad_token_id": token_id(tokenizer, PAD),
        "temperature": 1.0,
        "transformers_version": TRANSFORMERS_VERSION,
    }


def write_checkpoint(network: Nano, tokenizer: Tokenizer, target_dir: Path) -> None:
    """Writes shards, ``mtp.safetensors``, index, configs, tokenizer and chat template.

    The MTP layer is alone in its file and has no copies of embedding and head, as in GLM-4.6.
    """
    target_dir.mkdir(parents=True, exist_ok=True)
    config = network.config
    tensors = checkpoint_tensors(network)
    mtp_prefix = f"model.layers.{config.num_hidden_layers}."
    mtp = {name: tensor for name, tensor in tensors.items() if name.startswith(mtp_prefix)}
    shards = pack({name: tensor for name, tensor in tensors.items() if name not in mtp})
    files = {
        f"model-{number:05d}-of-{len(shards):05d}.safetensors": shard
        for number, shard in enumerate(shards, start=1)
    } | {MTP_FILE: mtp}
    for name, shard in files.items():
        save_file(shard, target_dir / name, metadata={"format": "pt"})
        # safetensors 0.8.0 leaves 0600, unreadable for other users of an installed package.
        (target_dir / name).chmod(0o644)
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
        "weight_map": {
            tensor: file for file, shard in sorted(files.items()) for tensor in sorted(shard)
        },
    }
    write_json(target_dir / INDEX_FILE, index)
    write_json(target_dir / "config.json", config_json(config, tokenizer))
    write_json(target_dir / "generation_config.json", generation_config_json(tokenizer))
    write_json(target_dir / "tokenizer_config.json", tokenizer_config())
    tokenizer.save(str(target_dir / "tokenizer.json"))
    template = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")
    (target_dir / "chat_template.jinja").write_text(template.rstrip("\n"), encoding="utf-8")


def write_json(file: Path, content: dict[str, object]) -> None:
    """Indented JSON with keys sorted and a newline at the end."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")


def read_checkpoint(source: Path) -> Nano:
    """The checkpoint as a network in F32, every tensor of the index used.

    Raises:
        RuntimeError: A tensor is missing, superfluous or of another shape.
    """
    content = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config = NanoConfig(**{field.name: content[field.name] for field in fields(NanoConfig)})
    index = json.loads((source / INDEX_FILE).read_text(encoding="utf-8"))
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(index["weight_map"].values())):
        tensors.update(load_file(source / file))
    network = Nano(config)
    network.load_state_dict(stacked_state(tensors, config))
    return network.eval()
