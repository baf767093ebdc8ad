"""Bytes of a GLM-4.x a card: weights, KV cache, and what fits. Arithmetic only, no NPU was asked.

How vLLM spreads the tensors (vllm ``models/glm4_moe.py`` 002d607, ``glm4_moe_mtp.py`` 028aedf;
vllm-ascend ``quantization/methods/w8a8_dynamic.py`` 0079d61):

======================  ===========================================================================
rows over the cards     embedding and heads (rows padded to 64), q, k, v, gate, up: weight, bias, …
columns over the cards  the weights of o and down; their scales and offsets lie whole on every card
k and v                 one head at least a card: more cards than KV heads hold copies
routed experts          as gate, up, down; expert parallel: whole ones, an equal number a card
whole on every card     norms, router, router bias, ``eh_proj``
======================  ===========================================================================

An element takes what the engine holds, not what the file has: int8 weights 1 byte, the router 4,
all else 2, scales too. Copies of embedding and head in an MTP layer are counted where the source
has them, though newer versions share the target model's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Final

from glmquant.glm4_moe import Glm4MoeConfig
from glmquant.machines import Layout

VOCABULARY_PADDING: Final = 64
"""Rows of embedding and head come in such blocks (vLLM ``vocab_parallel_embedding.py``)."""

EXPERT_COLUMNS: Final = 32
"""Columns of an int8 block of the NPU's fractal format, by which a card's experts should divide."""

KV_ITEM_NBYTES: Final = 2
"""The KV cache is BF16."""

_VOCABULARY: Final = ("embed_tokens.weight", "lm_head.weight", "shared_head.head.weight")


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """Tensors of the output that differ by the numbers in their names alone.

    Attributes:
        name: Their name without its digits: ``model.layers..mlp.experts..up_proj.weight_scale``.
        dtype: Their dtype on disk.
        shape: The shape of each.
        count: How many there are.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    count: int

    @property
    def is_shared_expert(self) -> bool:
        """Of an expert that every token passes."""
        return ".mlp.shared_experts." in self.name

    @property
    def held_nbytes(self) -> int:
        """Bytes of all of them as an engine holds them, on one card."""
        return self.count * prod(self.shape) * self._item_nbytes

    @property
    def _item_nbytes(self) -> int:
        if ".mlp.gate." in self.name:
            return 4
        return 1 if self.dtype == "I8" else 2

    def card_nbytes(self, config: Glm4MoeConfig, layout: Layout) -> int:
        """Bytes on one card of a layout by which all divides that has to."""
        if self.name.endswith(_VOCABULARY):
            rows, hidden = self.shape
            rows = _padded(rows) // layout.tensor_parallel
            return self.count * rows * hidden * self._item_nbytes
        return self.held_nbytes // self._parts(config, layout)

    def _parts(self, config: Glm4MoeConfig, layout: Layout) -> int:
        """Over how many cards each tensor is cut, or the experts are dealt out."""
        if ".mlp.experts." in self.name and layout.is_expert_parallel:
            return layout.cards
        *_, module, kind = self.name.split(".")
        is_whole = kind in ("weight_scale", "weight_offset") and module in ("o_proj", "down_proj")
        if is_whole or not module.endswith("_proj") or module == "eh_proj":
            return 1
        if module in ("k_proj", "v_proj"):
            return min(layout.tensor_parallel, config.num_key_value_heads)
        return layout.cards if ".mlp.experts." in self.name else layout.tensor_parallel


@dataclass(frozen=True, slots=True)
class Fit:
    """What a layout has room for. Figures are None where the model cannot be cut that way.

    Attributes:
        layout: The layout.
        context: Tokens of a sequence.
        obstacles: What does not divide, a clause each.
        advice: What to do about what divides badly or takes more, a sentence each.
        weights_nbytes: Weights on a card.
        kv_token_nbytes: KV cache of a token on a card, the MTP layers included.
        room_nbytes: Bytes of a card left for KV cache; below zero where the weights are too many.
        tokens: Tokens whose KV cache fits, in each data-parallel rank.
        sequences: Sequences of ``context`` tokens at once, in each data-parallel rank.
    """

    layout: Layout
    context: int
    obstacles: tuple[str, ...]
    advice: tuple[str, ...] = ()
    weights_nbytes: int | None = None
    kv_token_nbytes: int | None = None
    room_nbytes: int | None = None
    tokens: int | None = None
    sequences: int | None = None

    @property
    def fits(self) -> bool:
        """There is room for the weights and one sequence."""
        return bool(self.sequences)


def fit_layout(
    config: Glm4MoeConfig,
    mtp_count: int,
    groups: Iterable[TensorGroup],
    layout: Layout,
    context: int,
) -> Fit:
    """Bytes a card, and the KV cache there is room for.

    Args:
        config: The model.
        mtp_count: MTP layers in the checkpoint; each has a KV cache.
        groups: All tensors of the checkpoint.
        layout: How the engine spreads them.
        context: Tokens of a sequence.

    Returns:
        What fits.
    """
    refused = tuple(obstacles(config, layout))
    if refused:
        return Fit(layout, context, refused)
    groups = tuple(groups)
    weights_nbytes = sum(group.card_nbytes(config, layout) for group in groups)
    token_nbytes = kv_token_nbytes(config, mtp_count, layout)
    room_nbytes = layout.machine.usable_nbytes - weights_nbytes
    tokens = max(0, room_nbytes // token_nbytes)
    return Fit(
        layout,
        context,
        refused,
        tuple(advice(config, groups, layout)),
        weights_nbytes,
        token_nbytes,
        room_nbytes,
        tokens,
        tokens // context,
    )


def kv_token_nbytes(config: Glm4MoeConfig, mtp_count: int, layout: Layout) -> int:
    """KV cache of one token on one card: keys and values of every layer, MTP layers included.

    Args:
        config: The model.
        mtp_count: MTP layers.
        layout: Cards hold ``kv heads / tensor_parallel`` heads, one at least.

    Returns:
        Bytes: 2 x layers x heads x head_dim x 2.
    """
    heads = max(1, config.num_key_value_heads // layout.tensor_parallel)
    layers = config.num_hidden_layers + mtp_count
    return 2 * layers * heads * config.head_dim * KV_ITEM_NBYTES


def _padded(rows: int) -> int:
    return -(-rows // VOCABULARY_PADDING) * VOCABULARY_PADDING


def obstacles(config: Glm4MoeConfig, layout: Layout) -> Iterator[str]:
    """What an engine refuses to cut, or this arithmetic cannot.

    Args:
        config: The model.
        layout: How the engine spreads it.

    Yields:
        A clause each, which begins with the key of config.json.
    """
    tensor_parallel, kv_heads = layout.tensor_parallel, config.num_key_value_heads
    cut = {"num_attention_heads": config.num_attention_heads}
    if config.first_k_dense_replace:
        cut["intermediate_size"] = config.intermediate_size
    if config.n_shared_experts:
        cut["n_shared_experts x moe_intermediate_size"] = (
            config.n_shared_experts * config.moe_intermediate_size
        )
    for key, size in cut.items():
        if size % tensor_parallel:
            yield f"{key} {size} is not a multiple of tp {tensor_parallel}"
    if max(kv_heads, tensor_parallel) % min(kv_heads, tensor_parallel):
        yield f"num_key_value_heads {kv_heads} and tp {tensor_parallel} do not divide"
    if _padded(config.vocab_size) % tensor_parallel:
        rows = _padded(config.vocab_size)
        yield f"vocab_size {rows}, padded, is not a multiple of tp {tensor_parallel}"
    experts = ("moe_intermediate_size", config.moe_intermediate_size)
    if layout.is_expert_parallel:
        experts = ("n_routed_experts", config.n_routed_experts)
    if experts[1] % layout.cards:
        yield f"{experts[0]} {experts[1]} is not a multiple of {layout.cards} cards"


def advice(config: Glm4MoeConfig, groups: tuple[TensorGroup, ...], layout: Layout) -> Iterator[str]:
    """What to do about what divides badly or takes more.

    Args:
        config: The model.
        groups: Tensors of the checkpoint.
        layout: How the engine spreads them, without obstacles.

    Yields:
        A sentence each.
    """
    columns = config.moe_intermediate_size // layout.cards
    if not layout.is_expert_parallel and columns % EXPERT_COLUMNS:
        yield (
            f"moe_intermediate_size {config.moe_intermediate_size} / {layout.cards} = {columns} "
            f"is not a multiple of {EXPERT_COLUMNS}: use --enable-expert-parallel"
        )
    shared = [group for group in groups if group.is_shared_expert]
    if layout.data_parallel > 1 and shared:
        more = sum(group.held_nbytes - group.card_nbytes(config, layout) for group in shared)
        yield f"enable_shared_expert_dp takes {more / 2**30:.1f} GiB a card more"
