"""The linears of a checkpoint as the engine calculates them: float, W8A8 dynamic and static."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor
from torch.nn import functional

EXACT_INPUTS: Final = 1024
"""Inputs of which int8 products sum up exactly in F32: 1024 * 128 * 128 is 2**24."""

_LEAST_ROWS: Final = 16

_LEAST_SCALE: Final = 1e-12
"""In place of the scale of a token that is all zero."""


class Linear(Protocol):
    """A linear: ``[tokens, in]`` of the model's dtype becomes ``[tokens, out]`` of the same."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """The product, the bias added."""

    def to_f32(self, x: Tensor, /) -> Tensor:
        """The same as the engine's expert kernels hand it on: F32, not rounded where float."""


@dataclass(frozen=True, slots=True)
class FloatLinear:
    """``x @ weight.T + bias``, summed up in F32 and rounded once.

    Attributes:
        weight: ``[out, in]`` BF16 or F32.
        bias: ``[out]`` of the same dtype.
    """

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor, /) -> Tensor:
        """The product in the dtype of ``x``."""
        if self.weight.dtype is x.dtype:
            return functional.linear(x, self.weight, self.bias)
        return self.to_f32(x).to(x.dtype)

    def to_f32(self, x: Tensor, /) -> Tensor:
        """The product in F32."""
        # The whole weight in F32 would take twice its room on disk: some rows at a time do.
        rows = max(1, EXACT_INPUTS * EXACT_INPUTS // self.weight.shape[1])
        count = len(x)
        # With a few rows the BLAS sums up in another order than with many, and than the engine.
        x = functional.pad(x.float(), (0, 0, 0, max(0, _LEAST_ROWS - count)))
        parts = [
            functional.linear(x, part.float())[:count] for part in torch.split(self.weight, rows)
        ]
        product = torch.cat(parts, dim=-1)
        return product if self.bias is None else product + self.bias.float()


@dataclass(frozen=True, slots=True)
class DynamicLinear:
    """W8A8_DYNAMIC (vllm-ascend 0.30.0rc2 ``quantization/methods/w8a8/w8a8_dynamic.py``).

    Attributes:
        weight: ``[out, in]`` int8.
        scale: ``[out]`` F32, of values that BF16 can hold.
        bias: ``[out]`` BF16.
        has_int_mm: torch's own int8 product is exact on this machine.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None
    has_int_mm: bool

    def __call__(self, x: Tensor, /) -> Tensor:
        """``(q_x · q_w) * scale * s + bias`` in F32, rounded once."""
        quantized, token_scale = quantize_tokens(x)
        y = int_sums(quantized, self.weight, self.has_int_mm).float() * self.scale * token_scale
        if self.bias is not None:
            y = y + self.bias.float()
        return y.to(x.dtype)

    def to_f32(self, x: Tensor, /) -> Tensor:
        """The rounded product, in F32."""
        return self(x).float()


@dataclass(frozen=True, slots=True)
class StaticLinear:
    """W8A8 (vllm-ascend 0.30.0rc2 ``quantization/methods/w8a8/w8a8_static.py``).

    Attributes:
        weight: ``[out, in]`` int8.
        input_scale: ``[1]`` BF16.
        input_offset: ``[1]`` F32, whole numbers.
        quant_bias: ``[out]`` int32.
        deq_scale: ``[out]`` F32.
        has_int_mm: torch's own int8 product is exact on this machine.
    """

    weight: Tensor
    input_scale: Tensor
    input_offset: Tensor
    quant_bias: Tensor
    deq_scale: Tensor
    has_int_mm: bool

    def __call__(self, x: Tensor, /) -> Tensor:
        """``(q_x · q_w + quant_bias) * deq_scale``; the engine multiplies by a BF16 reciprocal."""
        reciprocal = (1 / self.input_scale).float()
        quantized = torch.round(x.float() * reciprocal + self.input_offset).clamp(-128, 127)
        total = int_sums(quantized.to(torch.int8), self.weight, self.has_int_mm) + self.quant_bias
        return (total.float() * self.deq_scale).to(x.dtype)

    def to_f32(self, x: Tensor, /) -> Tensor:
        """The rounded product, in F32."""
        return self(x).float()


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize activations token by token: ``s = max|x| / 127``, round half to even.

    Args:
        x: ``[tokens, in]`` float.

    Returns:
        ``[tokens, in]`` int8 and ``[tokens, 1]`` F32 scales.
    """
    x = x.float()
    scale = x.abs().amax(-1, keepdim=True) / 127.0
    return torch.round(x / scale.clamp_min(_LEAST_SCALE)).clamp(-128, 127).to(torch.int8), scale


def int_sums(x: Tensor, weight: Tensor, has_int_mm: bool) -> Tensor:
    """``x @ weight.T`` of int8 as int32, exact up to 131,071 inputs.

    Args:
        x: ``[tokens, in]`` int8.
        weight: ``[out, in]`` int8.
        has_int_mm: What ``int_mm_is_exact`` has found.

    Returns:
        ``[tokens, out]`` int32.
    """
    if has_int_mm:
        return torch._int_mm(x, weight.t())
    total = torch.zeros(x.shape[0], weight.shape[0], dtype=torch.int32)
    for at in range(0, weight.shape[1], EXACT_INPUTS):
        part = slice(at, at + EXACT_INPUTS)
        total += (x[:, part].float() @ weight[:, part].float().t()).to(torch.int32)
    return total


def int_mm_is_exact() -> bool:
    """Whether torch's int8 product sums up the largest numbers exactly on this machine.

    x86 without VNNI adds pairs of products in 16 bits that can overflow; with it, and on ARM, the
    sums have 32 bits.
    """
    low = torch.full((32, 4 * EXACT_INPUTS), -128, dtype=torch.int8)
    for tokens in (1, 32):
        for other, product in ((-128, 16384), (127, -16256)):
            weight = torch.full((16, 4 * EXACT_INPUTS), other, dtype=torch.int8)
            try:
                sums = torch._int_mm(low[:tokens], weight.t())
            except RuntimeError:  # a build of torch without it
                return False
            if not bool((sums == product * 4 * EXACT_INPUTS).all()):
                return False
    return True
