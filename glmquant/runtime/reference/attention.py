"""Attention with rotated positions, over the keys and values of a sequence's own past."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from glmquant.runtime.reference.settings import ModelConfig

_SCORES: Final = 1 << 22
"""Attention scores that are held at once, F32."""


@dataclass(slots=True)
class KeyValues:
    """What a layer remembers of one sequence.

    Attributes:
        keys: ``[length, key-value heads, head_dim]``, rotated.
        values: The same shape.
    """

    keys: Tensor
    values: Tensor

    @classmethod
    def empty(cls, config: ModelConfig, dtype: torch.dtype) -> KeyValues:
        """That of a sequence without tokens."""
        nothing = torch.empty(0, config.num_key_value_heads, config.head_dim, dtype=dtype)
        return cls(nothing, nothing)

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Remember more tokens."""
        self.keys = torch.cat((self.keys, keys))
        self.values = torch.cat((self.values, values))


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """``x / sqrt(mean(x²) + epsilon)`` in F32, rounded, times ``weight``, rounded.

    vLLM 0.30.0 ``ir/ops/layernorm.py``.

    Args:
        x: ``[..., n]``; F32 or the model's dtype.
        weight: ``[n]`` of the model's dtype.
        epsilon: Keeps a zero vector finite.

    Returns:
        The shape of ``x``, the dtype of ``weight``.
    """
    x = x.float()
    x = x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + epsilon)
    return x.to(weight.dtype) * weight


def rotate(x: Tensor, positions: Tensor, config: ModelConfig) -> Tensor:
    """Rotate the first ``rotary_dim`` elements of each head by its position.

    The cosines are held in the model's dtype, the products in F32 (vLLM 0.30.0
    ``rotary_embedding/base.py``, ``csrc/cpu/pos_encoding.cpp``).

    Args:
        x: ``[tokens, heads, head_dim]`` of the model's dtype.
        positions: ``[tokens]`` int64.
        config: The model's.
    """
    dim = config.rotary_dim
    steps = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    angles = positions.float().unsqueeze(-1) * (1.0 / config.rope_theta**steps)
    cosines = angles.cos().to(x.dtype).float().unsqueeze(1)
    sines = angles.sin().to(x.dtype).float().unsqueeze(1)
    first, second = x[..., :dim].float().chunk(2, dim=-1)
    turned = (first * cosines - second * sines, second * cosines + first * sines)
    return torch.cat((*(part.to(x.dtype) for part in turned), x[..., dim:]), dim=-1)


def attend(queries: Tensor, past: KeyValues) -> Tensor:
    """Attention of a sequence's last tokens to it up to themselves, in F32.

    torch's own operator sums up in blocks as the engine does: of 178,176 elements none differed,
    of a plain softmax one in 10,000 (vLLM 0.30.0, AVX512).

    Args:
        queries: ``[tokens, heads, head_dim]`` of the model's dtype.
        past: The sequence's keys and values, those of the tokens last.

    Returns:
        ``[tokens, heads * head_dim]`` of the dtype of ``queries``.
    """
    count, length = queries.shape[0], past.keys.shape[0]
    mask = None
    if 1 < count < length:
        mask = torch.ones(count, length, dtype=torch.bool).tril(length - count)
    asked, keys, values = (
        part.float().transpose(0, 1)[None] for part in (queries, past.keys, past.values)
    )
    mixed = functional.scaled_dot_product_attention(
        asked, keys, values, attn_mask=mask, is_causal=count == length, enable_gqa=True
    )
    return mixed[0].transpose(0, 1).reshape(count, -1).to(queries.dtype)


def attend_drafting(queries: Tensor, past: KeyValues, visible: Tensor, own: KeyValues) -> Tensor:
    """Attention of drafts, each to the sequence up to where it branches off and to its own tokens.

    Args:
        queries: ``[drafts, heads, head_dim]``.
        past: The sequence's keys and values.
        visible: ``[drafts]`` int64: how many of them each draft sees.
        own: ``[drafts, drafted tokens, key-value heads, head_dim]``: keys and values of its own.

    Returns:
        ``[drafts, heads * head_dim]`` of the dtype of ``queries``.
    """
    block = max(1, _SCORES // (queries.shape[1] * max(1, past.keys.shape[0])))
    keys = past.keys.float().permute(1, 2, 0)
    values = past.values.float().transpose(0, 1)
    parts = []
    for at in range(0, queries.shape[0], block):
        some = slice(at, at + block)
        asked, own_keys, own_values = queries[some], own.keys[some], own.values[some]
        count, heads, size = asked.shape
        grouped = asked.float().view(count, own_keys.shape[2], -1, size)
        own_scores = torch.einsum("nkgd,njkd->kgnj", grouped, own_keys.float()) * size**-0.5
        hidden = torch.arange(keys.shape[-1]) >= visible[some].unsqueeze(-1)
        scores = _scores(asked, keys).masked_fill(hidden, float("-inf"))
        weights = torch.cat((scores, own_scores.reshape(heads, count, -1)), dim=-1).softmax(-1)
        shared, drafted = torch.split(weights, [keys.shape[-1], own_keys.shape[1]], dim=-1)
        drafted = drafted.view(own_keys.shape[2], -1, count, own_keys.shape[1])
        mixed = torch.einsum("kgnj,njkd->nkgd", drafted, own_values.float())
        parts.append(_mix(shared, values) + mixed.reshape(count, -1))
    return torch.cat(parts).to(queries.dtype)


def _scores(queries: Tensor, keys: Tensor) -> Tensor:
    """``[heads, tokens, keys]`` F32: heads of one group share keys ``[groups, head_dim, keys]``."""
    count, heads, size = queries.shape
    grouped = queries.float().view(count, keys.shape[0], -1, size).permute(1, 2, 0, 3)
    products = grouped.reshape(keys.shape[0], -1, size) @ keys
    scores: Tensor = products.view(heads, count, -1) * float(size**-0.5)
    return scores


def _mix(weights: Tensor, values: Tensor) -> Tensor:
    """``[tokens, heads * head_dim]`` F32 of ``[heads, tokens, keys]`` and the values of groups."""
    heads, count, keys = weights.shape
    mixed = weights.reshape(values.shape[0], -1, keys) @ values
    return mixed.view(heads, count, -1).transpose(0, 1).reshape(count, -1)
