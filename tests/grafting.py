"""What an engine loads of a folder, and quantized folders that lack something.

The engine's rules stand here once more, in the words of ``vllm`` and ``vllm-ascend``: with
``model.safetensors.index.json`` all tensors of the files it names, else every ``*.safetensors``.
"""

from __future__ import annotations

import json
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from click.testing import CliRunner

from glmquant.cli import main
from tests import modelslim
from tests.builders import Recorded, build_checkpoint

INDEX = "model.safetensors.index.json"
DESCRIPTION = "quant_model_description.json"
FORMATS = ("glmquant", "hf", "v1", "v0")

SMALL: dict[str, Any] = {
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "n_routed_experts": 2,
    "shard_nbytes": 15_000,
}
"""The fewest tensors that have every kind."""


@dataclass(frozen=True)
class Loaded:
    """What an engine sees.

    Attributes:
        tensors: Name → dtype, shape, bytes.
        types: The description's entries for tensors.
        config: config.json.
    """

    tensors: dict[str, tuple[str, list[int], bytes]]
    types: dict[str, Any]
    config: dict[str, Any]

    def loads_as(self, old: Loaded, new: Loaded) -> bool:
        """Whether it is the old checkpoint, whose description may say more, or the new one."""
        if self.tensors == new.tensors:
            return self == new
        is_old = self.tensors == old.tensors and old.types.items() <= self.types.items()
        return is_old and self.config in (old.config, new.config)


def load(folder: Path) -> Loaded:
    """What an engine loads; a file that is named and not there is an error, as it is there."""
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    if (folder / INDEX).exists():
        files = sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
    tensors = {}
    for file in files:
        entries = safetensors.deserialize((folder / file).read_bytes())  # type: ignore[no-untyped-call]
        for name, entry in entries:
            assert name not in tensors, f"{name} is there twice"
            tensors[name] = (entry["dtype"], list(entry["shape"]), bytes(entry["data"]))
    described = sorted(folder.glob("quant_model_description*.json"))[0]
    description = json.loads(described.read_bytes())
    return Loaded(
        tensors,
        {key: kind for key, kind in description.items() if "." in key},
        json.loads((folder / "config.json").read_bytes()),
    )


def everything(folder: Path) -> dict[str, tuple[int, str | bytes]]:
    """Every name below a folder with its permissions and its bytes, a link's target, or nothing."""
    found: dict[str, tuple[int, str | bytes]] = {}
    for path in sorted(folder.rglob("*")):
        mode = stat.S_IMODE(path.lstat().st_mode)
        held: str | bytes = ""
        if path.is_symlink():
            held = str(path.readlink())
        elif path.is_file():
            held = path.read_bytes()
        found[str(path.relative_to(folder))] = (mode, held)
    return found


def without_state(folder: Path) -> dict[str, tuple[int, str | bytes]]:
    """The same without what a graft notes in ``.glmquant``."""
    return {
        name: held for name, held in everything(folder).items() if not name.startswith(".glmquant")
    }


def run(*words: object) -> int:
    """The exit code of a command."""
    return CliRunner().invoke(main, [str(word) for word in words]).exit_code


def make_base(source: Recorded, folder: Path, form: str, **style: Any) -> Path:
    """A quantized folder without the MTP layer; of msModelSlim, without router biases too."""
    if form == "glmquant":
        assert run("w8a8", source.folder, folder) == 0
    else:
        style = {"mtp": None, "router_biases": False, **style}
        modelslim.make(source, folder, layout=form, **style)
    return folder


def expected(source: Recorded, base: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """What has to be there after a graft: the base, and all of MTP and router biases."""
    last = source.config["num_hidden_layers"] - 1
    grafted = {
        name: (dtype, list(shape), data)
        for name, (dtype, shape, data) in source.tensors.items()
        if name.endswith("e_score_correction_bias")
        or (name.startswith("model.layers.") and int(name.split(".")[2]) > last)
    }
    body = {
        name: held
        for name, held in load(base).tensors.items()
        if not (name.startswith("model.layers.") and int(name.split(".")[2]) > last)
    }
    return body | grafted


def small(folder: Path, layout: str = "4.6", **changes: Any) -> Recorded:
    """The smallest source."""
    return build_checkpoint(folder, layout, **{**SMALL, **changes})
