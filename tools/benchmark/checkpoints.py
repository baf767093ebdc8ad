"""Random checkpoints of a wanted size, quickly made."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from glmquant.checkpoint import open_checkpoint
from glmquant.header import read_header
from glmquant.plan import make_plan
from glmquant.recipe import load_recipe
from glmquant.source import FolderSource
from tests.builders import build_checkpoint, encode, layout_config, random_tensor, tensor_list

LAYOUT: Final = "4.6"
"""Its MTP layer is a file of its own that the index lists; all contestants read that."""

MOST_EXPERTS: Final = 10_000
"""What glmquant believes of a config.json."""

LARGEST_SHARD: Final = 0.52
"""Of the checkpoint's bytes: more than 1 GB of 2.4 GB, and not all in one."""

POOL_VALUES: Final = (1 << 24) + 43
"""Gaussian values that the weights are cut from; a prime, so that no row comes twice."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A family of checkpoints that differ in size alone.

    Attributes:
        fixed: Keys of config.json that all of them have.
        scaled: Key → its value at 2.4 GB and the number that it is a multiple of; it grows with
            the size. The number of experts takes up the rest.
    """

    fixed: Mapping[str, int]
    scaled: Mapping[str, tuple[int, int]]


KINDS: Final = {
    # 2,251 tensors at 2.4 GB, rows of 1,024 and 512; 83 % of the bytes become int8.
    "many-experts": Kind(
        {
            "hidden_size": 1024,
            "num_hidden_layers": 10,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 512,
            "intermediate_size": 2048,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "head_dim": 64,
        },
        {"vocab_size": (32768, 64)},
    ),
    # Attention, experts, eh_proj and norms as in GLM-4.6, at 2.4 GB with all of its 96 heads;
    # fewer layers and experts, a smaller vocabulary and dense MLP. 60 % of the bytes become int8.
    "wide-rows": Kind(
        {
            "hidden_size": 5120,
            "num_hidden_layers": 3,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 1536,
            "num_key_value_heads": 8,
            "head_dim": 128,
        },
        {
            "num_attention_heads": (96, 8),
            "intermediate_size": (3072, 64),
            "vocab_size": (2048, 64),
        },
    ),
    # To try the bench itself.
    "tiny": Kind({}, {}),
}


@dataclass(frozen=True, slots=True)
class Design:
    """A checkpoint that is still to be built.

    Attributes:
        kind: A name of KINDS.
        name: Kind and wanted size in GB.
        changes: Keys of config.json that differ from the tiny one's.
        tensors: How many it has.
        nbytes: The bytes of all of them.
    """

    kind: str
    name: str
    changes: Mapping[str, Any]
    tensors: int
    nbytes: int

    def build(self, folder: Path) -> None:
        """Write it to a new folder."""
        build_checkpoint(
            folder,
            LAYOUT,
            shard_nbytes=int(self.nbytes * LARGEST_SHARD),
            keep=False,
            values=Pool().tensor,
            **self.changes,
        )


def design(kind: str, gigabytes: float) -> Design:
    """The checkpoint of a kind that comes closest to a size.

    Args:
        kind: A name of KINDS.
        gigabytes: Wanted bytes of tensors in GB.

    Raises:
        ValueError: No checkpoint of that kind is so small.
    """
    share = gigabytes / 2.4
    changes = dict(KINDS[kind].fixed) | {
        key: max(1, round(value * share / step)) * step
        for key, (value, step) in KINDS[kind].scaled.items()
    }
    (_, one), (_, two) = (tensors_of(changes | {"n_routed_experts": count}) for count in (1, 2))
    experts = max(1, round((gigabytes * 1e9 - one) / (two - one)) + 1)
    if experts > MOST_EXPERTS:
        raise ValueError(f"{kind} cannot be as large as {gigabytes:g} GB: {experts} experts")
    changes |= {"n_routed_experts": experts, "num_experts_per_tok": min(2, experts)}
    tensors, nbytes = tensors_of(changes)
    if nbytes > 1.2 * gigabytes * 1e9:
        raise ValueError(
            f"{kind} cannot be as small as {gigabytes:g} GB: the least is {nbytes / 1e9:.2f} GB"
        )
    return Design(kind, f"{kind}-{gigabytes:g}", changes, tensors, nbytes)


def tensors_of(changes: Mapping[str, Any]) -> tuple[int, int]:
    """Number and bytes of the tensors of a checkpoint."""
    listed = tensor_list(layout_config(LAYOUT, **changes), mtp_copies=False)
    lengths = [prod(shape) * (4 if dtype == "F32" else 2) for _, dtype, shape in listed]
    return len(lengths), sum(lengths)


class Pool:
    """Gaussian values × 0.02 in BF16, made once; every weight is a cut of them."""

    def __init__(self) -> None:
        values = np.random.default_rng(0).standard_normal(POOL_VALUES, np.float32)
        self._values: NDArray[np.uint16] = np.frombuffer(
            encode(values * np.float32(0.02), "BF16"), np.uint16
        )

    def tensor(self, name: str, dtype: str, shape: tuple[int, ...], seed: int) -> bytes:
        """The bytes of a tensor: a cut whose place depends on the name, or Gaussian of its own."""
        if dtype != "BF16" or len(shape) != 2:
            return random_tensor(name, dtype, shape, seed)
        start = zlib.crc32(name.encode()) % POOL_VALUES
        count = prod(shape)
        pieces = [self._values[start : start + count]]
        while missing := count - sum(map(len, pieces)):
            pieces.append(self._values[:missing])
        return b"".join(piece.tobytes() for piece in pieces)


def expected_int8(folder: Path) -> set[str]:
    """The weights that the recipe ``w8a8`` makes int8."""
    plan = make_plan(open_checkpoint(FolderSource(folder)), load_recipe("w8a8"), add_mtp=True)
    return {
        output.name
        for shard in plan.shards
        for step in shard.steps
        for output in step.outputs
        if output.dtype == "I8"
    }


def int8_tensors(folder: Path) -> set[str]:
    """The int8 tensors in a folder's shards."""
    names = set()
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:

            def read(offset: int, nbytes: int, file: Any = file) -> bytes:
                file.seek(offset)
                return bytes(file.read(nbytes))

            header = read_header(path.name, path.stat().st_size, read)
        names |= {ref.name for ref in header.tensors if ref.dtype == "I8"}
    return names
