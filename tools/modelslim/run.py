"""Quantizes a GLM-4 MoE with msmodelslim itself, on the CPU and without a question asked.

    python tools/modelslim/run.py SOURCE TARGET [--recipe YAML] [--calibration-lines 256]

Runs in the environment of ``tools/requirements/msmodelslim.txt``. What TARGET then holds is what
msmodelslim 26.1.0 left there, its own copy of the recipe included. Two things are not as on an
NPU: the adapter of GLM-4 MoE moves the MTP layer to ``npu`` whatever the device is, here that is
the CPU; and the recipe's ``{mtp}`` becomes the index of SOURCE's MTP layer.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

HERE = Path(__file__).resolve().parent
RECIPE = HERE / "plain.yaml"
TEXT = HERE.parent.parent / "glmquant" / "demo" / "heldout" / "stdlib.txt"
SAMPLE_LINES = 16
CALIBRATION = "calibration.jsonl"


def on_cpu(move: Callable[..., Any]) -> Callable[..., Any]:
    """The ``to`` of a tensor or module, which takes ``npu`` for the CPU."""

    def to(self: Any, *where: Any, **options: Any) -> Any:
        named = ("cpu" if isinstance(place, str) and place == "npu" else place for place in where)
        return move(self, *named, **options)

    return to


def write_recipe(recipe: Path, source: Path, target: Path) -> None:
    """The recipe with the index of SOURCE's MTP layer filled in."""
    layers = json.loads((source / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    text = recipe.read_text(encoding="utf-8").replace("{mtp}", str(layers))
    target.write_text(text, encoding="utf-8")


def write_calibration(lines: int, target: Path) -> None:
    """The first lines of the held-out text of GLM-4-nano, as samples of 16 lines."""
    with TEXT.open(encoding="utf-8") as stream, target.open("w", encoding="utf-8") as samples:
        text = list(islice(stream, lines))
        for start in range(0, len(text), SAMPLE_LINES):
            sample = {"inputs_pretokenized": "".join(text[start : start + SAMPLE_LINES])}
            samples.write(json.dumps(sample) + "\n")


def main() -> None:
    """Hand SOURCE, TARGET and the recipe to msmodelslim's own command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="default: %(default)s")
    parser.add_argument(
        "--calibration-lines", type=int, default=256, help="of text; default: %(default)s"
    )
    options = parser.parse_args()
    source, target, recipe = (p.resolve() for p in (options.source, options.target, options.recipe))

    import torch
    from msmodelslim.cli.__main__ import main as quantize  # type: ignore[import, unused-ignore]

    with tempfile.TemporaryDirectory() as folder:
        # Recipes name their dataset without a folder: TARGET's copy then holds no path from here.
        os.chdir(folder)
        write_recipe(recipe, source, Path("recipe.yaml"))
        write_calibration(options.calibration_lines, Path(CALIBRATION))
        # The type chooses the adapter; that of 4.7 is that of 4.5 and 4.6.
        command = ["quant", "--model_type", "GLM-4.7", "--device", "cpu"]
        command += ["--model_path", str(source), "--save_path", str(target)]
        command += ["--config_path", str(Path("recipe.yaml").resolve())]
        with (
            mock.patch.object(torch.Tensor, "to", on_cpu(torch.Tensor.to)),
            mock.patch.object(torch.nn.Module, "to", on_cpu(torch.nn.Module.to)),
            mock.patch.object(sys, "argv", ["msmodelslim", *command]),
        ):
            quantize()


if __name__ == "__main__":
    main()
