"""One decoder layer, read from disk piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from glmquant.runtime.reference.attention import rms_norm, rotate
from glmquant.runtime.reference.settings import ModelConfig
from glmquant.runtime.reference.weights import Weights

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values ``[tokens, heads, head_dim]`` to ``[tokens, heads * head_dim]``."""


class State(NamedTuple):
    """What one layer hands to the next; the sum of both is the hidden state.

    The engine adds them in F32 where the next norm is taken, and keeps the sum rounded.

    Attributes:
        output: ``[tokens, hidden]`` of the model's dtype: what the last layer or embedding gave.
        residual: The same shape: all before it; None after the embedding.
    """

    output: Tensor
    residual: Tensor | None

    def normed(self, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        """The norm of the sum, and the sum rounded (vLLM 0.30.0 ``fused_add_rms_norm``)."""
        if self.residual is None:
            return rms_norm(self.output, weight, epsilon), self.output
        total = self.output.float() + self.residual.float()
        return rms_norm(total, weight, epsilon), total.to(weight.dtype)

    @property
    def hidden(self) -> Tensor:
        """The sum, rounded."""
        return self.output if self.residual is None else self.output + self.residual


class DecoderLayer:
    """A layer: it holds no weights, and reads each when it is needed.

    Args:
        weights: The checkpoint's.
        config: Its configuration.
        layer: Its index.
    """

    def __init__(self, weights: Weights, config: ModelConfig, layer: int) -> None:
        self._weights = weights
        self._config = config
        self._layer = layer
        self._at = f"model.layers.{layer}"

    def __call__(self, state: State, positions: Tensor, attention: Attention) -> State:
        """The state after the layer.

        Args:
            state: That before it.
            positions: ``[tokens]`` int64: the place of each token in its sequence.
            attention: Has the keys and values of the sequences.

        Raises:
            TensorSetError: A tensor is missing, or has another shape or dtype.
        """
        config, weights = self._config, self._weights
        norms = [
            weights.vector(f"{self._at}.{name}_layernorm.weight", config.hidden_size)
            for name in ("input", "post_attention")
        ]
        x, residual = state.normed(norms[0], config.rms_norm_eps)
        mixed = self._attend(x, positions, attention)
        x, residual = State(mixed, residual).normed(norms[1], config.rms_norm_eps)
        if self._layer < config.first_k_dense_replace:
            output = self._mlp("mlp", config.intermediate_size, x)
        else:
            output = self._mixture(x)
        return State(output, residual)

    def _attend(self, x: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        config, at = self._config, f"{self._at}.self_attn"
        inner = config.num_attention_heads * config.head_dim
        made = []
        for letter, heads in (
            ("q", config.num_attention_heads),
            ("k", config.num_key_value_heads),
            ("v", config.num_key_value_heads),
        ):
            linear = self._weights.linear(
                f"{at}.{letter}_proj",
                config.hidden_size,
                heads * config.head_dim,
                config.attention_bias,
            )
            part = linear(x).view(-1, heads, config.head_dim)
            if config.use_qk_norm and letter != "v":
                norm = self._weights.vector(f"{at}.{letter}_norm.weight", config.head_dim)
                part = rms_norm(part, norm, config.rms_norm_eps)
            made.append(part if letter == "v" else rotate(part, positions, config))
        mixed = attention(*made)
        return self._weights.linear(f"{at}.o_proj", inner, config.hidden_size)(mixed)

    def _mlp(self, name: str, inner: int, x: Tensor) -> Tensor:
        """``down(silu(gate(x)) * up(x))``, each step rounded."""
        at, hidden = f"{self._at}.{name}", self._config.hidden_size
        gate = functional.silu(self._weights.linear(f"{at}.gate_proj", hidden, inner)(x))
        product = gate * self._weights.linear(f"{at}.up_proj", hidden, inner)(x)
        return self._weights.linear(f"{at}.down_proj", inner, hidden)(product)

    def _mixture(self, x: Tensor) -> Tensor:
        """The shared experts, and the routed ones times ``routed_scaling_factor``."""
        config = self._config
        chosen, shares = self._route(x)
        total = torch.zeros(x.shape, dtype=torch.float32)
        for expert in sorted(set(chosen.flatten().tolist())):
            rows, slots = torch.where(chosen == expert)
            y = self._expert(expert, x[rows])
            total.index_add_(0, rows, y * shares[rows, slots].unsqueeze(-1))
        routed = total.to(x.dtype) * config.routed_scaling_factor
        if not config.n_shared_experts:
            return routed
        inner = config.moe_intermediate_size * config.n_shared_experts
        return self._mlp("mlp.shared_experts", inner, x) + routed

    def _route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The experts of each token and their shares, in F32 (vLLM 0.30.0 ``cpu_router.py``).

        Returns:
            ``[tokens, num_experts_per_tok]``: int64 indices and F32 shares.
        """
        config, at = self._config, f"{self._at}.mlp.gate"
        experts, groups = config.n_routed_experts, config.n_group
        weight = self._weights.read(f"{at}.weight", (experts, config.hidden_size)).float()
        bias = self._weights.read(f"{at}.e_score_correction_bias", (experts,)).float()
        scores = functional.linear(x.float(), weight).sigmoid()
        biased = scores + bias
        of_groups = biased.view(len(x), groups, -1).topk(2, dim=-1).values.sum(dim=-1)
        best = of_groups.topk(config.topk_group, dim=-1, sorted=False).indices
        is_open = torch.zeros_like(of_groups, dtype=torch.bool).scatter_(1, best, True)
        closed = ~is_open.repeat_interleave(experts // groups, dim=1)
        candidates = biased.masked_fill(closed, float("-inf"))
        chosen = candidates.topk(config.num_experts_per_tok, dim=-1, sorted=False).indices
        shares = scores.gather(1, chosen)
        if config.norm_topk_prob:
            shares = shares / shares.sum(dim=-1, keepdim=True)
        return chosen, shares

    def _expert(self, expert: int, x: Tensor) -> Tensor:
        """``[tokens, hidden]`` F32 of the tokens that are routed to an expert.

        Only what enters the down projection is rounded of a float expert (vLLM 0.30.0
        ``csrc/cpu/cpu_fused_moe.cpp``); a W8A8 one rounds each product.
        """
        at = f"{self._at}.mlp.experts.{expert}"
        hidden, inner = self._config.hidden_size, self._config.moe_intermediate_size
        gate = self._weights.linear(f"{at}.gate_proj", hidden, inner).to_f32(x)
        up = self._weights.linear(f"{at}.up_proj", hidden, inner).to_f32(x)
        product = (functional.silu(gate) * up).to(x.dtype)
        return self._weights.linear(f"{at}.down_proj", inner, hidden).to_f32(product)
