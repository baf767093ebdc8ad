"""What one writes without thinking of memory: load a shard, quantize its linears, save it.

    python torch_loop.py SOURCE TARGET

The tensors and the arithmetic are those of the recipe ``w8a8``; index, description and the other
files are left out.
"""

import json
import re
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

source, target = map(Path, sys.argv[1:])
layers = json.loads((source / "config.json").read_text())["num_hidden_layers"]
int8 = re.compile(
    r"model\.layers\.(\d+)\.(self_attn\.[qkvo]|mlp\.experts\.\d+\.(gate|up|down))_proj\.weight"
)
target.mkdir()
for file in sorted(source.glob("*.safetensors")):
    tensors = load_file(file)
    for name, weight in list(tensors.items()):
        found = int8.fullmatch(name)
        if found and int(found[1]) < layers:
            scale = (weight.abs().amax(1, keepdim=True).float() / 127).bfloat16().float()
            scale[scale == 0] = 1
            levels = (weight.float() / scale).round().clamp(-127, 127)
            tensors[name] = levels.to(torch.int8)
            tensors[f"{name}_scale"] = scale
            tensors[f"{name}_offset"] = torch.zeros_like(scale)
    save_file(tensors, target / file.name)
