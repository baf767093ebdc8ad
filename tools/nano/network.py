"""GLM-4-MoE with its MTP layer, small and plain, named as the checkpoint names its tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class NanoConfig:
    """Sizes under the names of ``config.json``."""

    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 512
    moe_intermediate_size: int = 96
    num_hidden_layers: int = 4
    first_k_dense_replace: int = 1
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    n_routed_experts: int = 8
    n_shared_experts: int = 1
    num_experts_per_tok: int = 2
    routed_scaling_factor: float = 2.5
    partial_rotary_factor: float = 0.5
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 1024


class RMSNorm(nn.Module):
    """Root-mean-square norm in F32."""

    def __init__(self, size: int, eps: float) -> None:
        """A norm over the last axis of that size, weights one."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """``[..., size]`` of any float dtype to the same shape in F32."""
        return functional.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps)


class Rotary(nn.Module):
    """Rotates the first half of every head: GLM's ``partial_rotary_factor``."""

    def __init__(self, config: NanoConfig) -> None:
        """Tables for all positions, F32, derived and not stored in checkpoints."""
        super().__init__()
        self.width = int(config.head_dim * config.partial_rotary_factor)
        exponents = torch.arange(0, self.width, 2).float() / self.width
        angles = torch.outer(
            torch.arange(config.max_position_embeddings).float(), config.rope_theta**-exponents
        )
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, positions, heads, head_dim]`` to the same shape and dtype."""
        positions = x.shape[1]
        cos, sin = self.cos[:positions, None, :], self.sin[:positions, None, :]
        left, right = x[..., : self.width].float().chunk(2, dim=-1)
        turned = torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)
        return torch.cat([turned.to(x.dtype), x[..., self.width :]], dim=-1)


class Attention(nn.Module):
    """Causal grouped-query attention with biases on q, k, v and norms on q and k."""

    def __init__(self, config: NanoConfig) -> None:
        """Projections under the checkpoint's names."""
        super().__init__()
        hidden, dim = config.hidden_size, config.head_dim
        self.head_dim = dim
        self.q_proj = nn.Linear(hidden, config.num_attention_heads * dim)
        self.k_proj = nn.Linear(hidden, config.num_key_value_heads * dim)
        self.v_proj = nn.Linear(hidden, config.num_key_value_heads * dim)
        self.o_proj = nn.Linear(config.num_attention_heads * dim, hidden, bias=False)
        self.q_norm = RMSNorm(dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(dim, config.rms_norm_eps)
        self.groups = config.num_attention_heads // config.num_key_value_heads

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        """``[batch, positions, hidden]`` to the same shape."""
        batch, positions, _ = x.shape
        shape = (batch, positions, -1, self.head_dim)
        v = self.v_proj(x).view(shape)
        q = rotary(self.q_norm(self.q_proj(x).view(shape))).to(v.dtype)
        k = rotary(self.k_norm(self.k_proj(x).view(shape))).to(v.dtype)
        k, v = (t.repeat_interleave(self.groups, dim=2) for t in (k, v))
        mixed = functional.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
        )
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, positions, -1))
        return out


class MLP(nn.Module):
    """SwiGLU, for the dense layer and the shared expert."""

    def __init__(self, hidden: int, inner: int) -> None:
        """Projections under the checkpoint's names."""
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., hidden]`` to the same shape."""
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Router(nn.Module):
    """Sigmoid router; the correction bias takes part in the choice and not in the weights."""

    def __init__(self, config: NanoConfig) -> None:
        """A router whose bias is a buffer: it learns by counting, not by gradient."""
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.scaling = config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.e_score_correction_bias: Tensor
        self.load: Tensor
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts))
        self.register_buffer("load", torch.zeros(config.n_routed_experts), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[tokens, hidden]`` to weights F32 and expert ids int64, both ``[tokens, top_k]``."""
        scores = functional.linear(x.float(), self.weight.float()).sigmoid()
        chosen = (scores.detach() + self.e_score_correction_bias).topk(self.top_k).indices
        if self.training:
            self.load = torch.bincount(chosen.flatten(), minlength=len(self.load)).float()
        weights = scores.gather(1, chosen)
        return weights / weights.sum(-1, keepdim=True) * self.scaling, chosen

    @torch.no_grad()
    def rebalance(self, rate: float) -> None:
        """Moves each expert's bias by ``rate`` towards an even load (auxiliary-loss-free)."""
        self.e_score_correction_bias += rate * torch.sign(self.load.mean() - self.load)


class Experts(nn.Module):
    """The routed experts, stacked; ``export`` splits them into the checkpoint's tensors."""

    def __init__(self, config: NanoConfig) -> None:
        """Weights ``[experts, out, in]``."""
        super().__init__()
        count, inner, hidden = (
            config.n_routed_experts,
            config.moe_intermediate_size,
            config.hidden_size,
        )
        self.gate_up = nn.Parameter(torch.empty(count, 2 * inner, hidden))
        self.down = nn.Parameter(torch.empty(count, hidden, inner))

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """``[tokens, hidden]`` to the weighted sum of the chosen experts, F32."""
        top_k = chosen.shape[1]
        order = chosen.flatten().argsort(stable=True)
        rows = order // top_k
        loads = torch.bincount(chosen.flatten(), minlength=len(self.down)).tolist()
        gate_up, down = self.gate_up.unbind(), self.down.unbind()
        outputs = []
        for expert, part in enumerate(torch.split_with_sizes(x[rows], loads)):
            gate, up = functional.linear(part, gate_up[expert]).chunk(2, dim=-1)
            outputs.append(functional.linear(functional.silu(gate) * up, down[expert]))
        scaled = torch.cat(outputs) * weights.flatten()[order, None]
        return torch.zeros_like(x).index_add(0, rows, scaled)


class MoE(nn.Module):
    """Routed experts and one shared expert, added."""

    def __init__(self, config: NanoConfig) -> None:
        """Parts under the checkpoint's names."""
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        self.shared_experts = MLP(
            config.hidden_size, config.moe_intermediate_size * config.n_shared_experts
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, positions, hidden]`` to the same shape."""
        flat = x.reshape(-1, x.shape[-1])
        routed: Tensor = self.experts(flat, *self.gate(flat))
        shared: Tensor = self.shared_experts(x)
        return routed.view_as(x) + shared


class Layer(nn.Module):
    """A decoder layer; the residual stream stays F32."""

    def __init__(self, config: NanoConfig, dense: bool) -> None:
        """A dense layer or an MoE layer."""
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size) if dense else MoE(config)

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        """``[batch, positions, hidden]`` to the same shape."""
        x = x + self.self_attn(self.input_layernorm(x), rotary)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class MTPLayer(Layer):
    """An MoE decoder layer that predicts one token further from a hidden state and a token."""

    def __init__(self, config: NanoConfig) -> None:
        """The layer and its four own tensors."""
        super().__init__(config, dense=False)
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.enorm = RMSNorm(hidden, eps)
        self.hnorm = RMSNorm(hidden, eps)
        self.eh_proj = nn.Linear(2 * hidden, hidden, bias=False)
        self.shared_head = nn.ModuleDict({"norm": RMSNorm(hidden, eps)})

    def predict(self, hidden: Tensor, embedded: Tensor, rotary: Rotary) -> Tensor:
        """The state that ``lm_head`` reads, ``[batch, positions, hidden]`` F32.

        Args:
            hidden: ``[batch, positions, hidden]``, the target model's output after ``model.norm``.
            embedded: The same shape: embeddings of the token after each position.
            rotary: The target model's tables; positions are those of the hidden states.
        """
        # Engines zero the embedding at position 0 (vLLM `glm4_moe_mtp.py`).
        embedded = torch.cat([torch.zeros_like(embedded[:, :1]), embedded[:, 1:]], dim=1)
        joined = torch.cat([self.enorm(embedded), self.hnorm(hidden)], dim=-1)
        out: Tensor = self.shared_head["norm"](self(self.eh_proj(joined).float(), rotary))
        return out


class Decoder(nn.Module):
    """Embedding, layers (the last one is the MTP layer) and final norm."""

    def __init__(self, config: NanoConfig) -> None:
        """Parts under the checkpoint's names."""
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        layers: list[nn.Module] = [
            Layer(config, dense=index < config.first_k_dense_replace)
            for index in range(config.num_hidden_layers)
        ]
        self.layers = nn.ModuleList([*layers, MTPLayer(config)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = Rotary(config)


class Nano(nn.Module):
    """GLM-4-nano: target model and MTP layer."""

    def __init__(self, config: NanoConfig) -> None:
        """A network with undefined weights: ``initialize`` or ``load_state_dict`` comes next."""
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the target model and of the MTP layer.

        Args:
            ids: ``[batch, positions + 1]`` int64; the last token is read by the MTP layer alone.

        Returns:
            Two tensors ``[batch, positions, vocab]``. Row ``i`` of the first predicts token
            ``i + 1``, row ``i`` of the second token ``i + 2``.
        """
        embedded = self.model.embed_tokens(ids)
        *layers, mtp = self.model.layers
        x = embedded[:, :-1]
        for layer in layers:
            x = layer(x, self.model.rotary)
        hidden = self.model.norm(x)
        if not isinstance(mtp, MTPLayer):
            raise TypeError("the last layer is not the MTP layer")
        drafted = mtp.predict(hidden, embedded[:, 1:], self.model.rotary)
        return self.lm_head(hidden), self.lm_head(drafted)

    def routers(self) -> list[Router]:
        """The routers in layer order, the MTP layer's last."""
        return [module for module in self.modules() if isinstance(module, Router)]


@torch.no_grad()
def initialize(network: Nano, seed: int) -> None:
    """Seeded start: matrices normal with 0.04, those that write the residual stream smaller."""
    generator = torch.Generator().manual_seed(seed)
    depth = (2.0 * (network.config.num_hidden_layers + 1)) ** -0.5
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            writes = name.endswith(("o_proj.weight", "down_proj.weight", "experts.down"))
            parameter.normal_(0.0, 0.04 * (depth if writes else 1.0), generator=generator)
        elif name.endswith("bias"):
            parameter.zero_()
