"""llm-compressor's ``model_free_ptq``, told to leave what the recipe ``w8a8`` leaves.

    python model_free.py SOURCE TARGET WORKERS

The same linears become int8. What is different (llm-compressor 0.14.0.1): scales and levels come of
BF16 arithmetic, scales are stored in BF16 and offsets not at all, the format is that of
compressed-tensors. On a CPU the shards go one after the other whatever the number of workers is.
"""

import json
import sys
from pathlib import Path

from llmcompressor import model_free_ptq  # type: ignore[import-not-found, unused-ignore]

source, target, workers = sys.argv[1:]
layers = json.loads((Path(source) / "config.json").read_text())["num_hidden_layers"]
model_free_ptq(
    source,
    target,
    scheme="W8A8",
    ignore=[
        "lm_head",
        r"re:.*embed_tokens$",
        r"re:.*mlp\.gate$",
        r"re:.*mlp\.(gate|up|down)_proj$",
        r"re:.*mlp\.shared_experts\.",
        rf"re:model\.layers\.{layers}\.",
    ],
    max_workers=int(workers),
)
