"""The arithmetic of the NPU operators that vllm-ascend's W8A8 code calls, in plain torch.

Signatures are those of the call sites in vllm-ascend 0.30.0rc2 (``quantization/methods/w8a8``) and
of the operators' pages in the Ascend Extension for PyTorch. Products of int8 are summed exactly;
what the NPU's own kernels round otherwise is not known here.
"""

import torch
from torch.nn.functional import silu

_EXACT_TERMS = 1024
"""So many products of two int8 numbers stay below 2^24 in magnitude, where F32 is exact."""


def npu_dynamic_quant(x, *, smooth_scales=None, dst_type=torch.int8):
    """Each token over its own scale: ``[..., n]`` int8 and ``[...]`` F32, absmax / 127."""
    if dst_type not in (torch.int8, None):
        raise NotImplementedError(f"npu_dynamic_quant to {dst_type} is not emulated")
    values = x.float()
    if smooth_scales is not None:
        values = values * smooth_scales.float()
    scale = values.abs().amax(-1) / 127.0
    divisor = torch.where(scale > 0, scale, torch.ones_like(scale))
    return _int8(values / divisor.unsqueeze(-1)), scale


def npu_quantize(x, scales, zero_points=None, dtype=torch.qint8, axis=-1, div_mode=True):
    """By fixed scales: ``rint(x / scale + zero)``, or ``x * scale`` without ``div_mode``."""
    values = x.float() / scales.float() if div_mode else x.float() * scales.float()
    if zero_points is not None:
        values = values + zero_points.float()
    return _int8(values)


def npu_quant_matmul(
    x1, x2, scale, *, offset=None, pertoken_scale=None, bias=None, output_dtype=None
):
    """``[tokens, n]`` int8 by ``[n, m]`` int8, scaled by column and token.

    An int32 bias is added to the sums, a float one to the scaled result.
    """
    if offset is not None:
        raise NotImplementedError("npu_quant_matmul with an offset is not emulated")
    sums = exact_product(x1, x2)
    if bias is not None and bias.dtype == torch.int32:
        sums = sums + bias
    if scale.dtype == torch.int64:  # F32 bits in the low half
        scale = scale.to(torch.int32).view(torch.float32)
    y = sums.float() * scale.float().reshape(-1)
    if pertoken_scale is not None:
        y = y * pertoken_scale.float().unsqueeze(-1)
    if bias is not None and bias.dtype != torch.int32:
        y = y + bias.float()
    return y.to(output_dtype or torch.float16)


def npu_grouped_matmul(
    x,
    weight,
    *,
    bias=None,
    scale=None,
    per_token_scale=None,
    group_list=None,
    split_item=0,
    group_type=-1,
    group_list_type=0,
    output_dtype=None,
):
    """Rows of one tensor, sorted by expert, each group by its expert's ``[n, m]`` int8 matrix."""
    if len(x) != 1 or bias is not None or group_type != 0 or scale is None:
        raise NotImplementedError("npu_grouped_matmul is emulated for int8 rows in groups alone")
    rows = x[0]
    weights = [expert for part in weight for expert in (part if part.dim() == 3 else [part])]
    scales = [expert for part in scale for expert in (part if part.dim() == 2 else [part])]
    ends = group_list.long().cumsum(0) if group_list_type == 1 else group_list.long()
    out = torch.zeros(rows.shape[0], weights[0].shape[-1], dtype=torch.float32)
    begin = 0
    for expert, end in enumerate(ends.tolist()):
        if end > begin:
            y = exact_product(rows[begin:end], weights[expert]).float()
            y = y * scales[expert].float().reshape(-1)
            if per_token_scale is not None:
                y = y * per_token_scale[0][begin:end].float().unsqueeze(-1)
            out[begin:end] = y
        begin = max(begin, end)
    return [out.to(output_dtype or torch.float16)]


def npu_swiglu(x, dim=-1):
    """``silu`` of the first half times the second, in F32."""
    gate, up = x.float().chunk(2, dim)
    return (silu(gate) * up).to(x.dtype)


def npu_format_cast(x, acl_format, *args, **kwargs):
    """The same values: the NPU's formats are memory layouts."""
    return x


def exact_product(a, b):
    """``[i, n]`` int8 by ``[n, j]`` int8 as ``[i, j]`` int32, without rounding."""
    out = torch.zeros(a.shape[0], b.shape[1], dtype=torch.int32)
    for first in range(0, a.shape[1], _EXACT_TERMS):
        part = slice(first, first + _EXACT_TERMS)
        out += (a[:, part].float() @ b[part].float()).to(torch.int32)
    return out


def _int8(values):
    return torch.round(values).clamp(-128, 127).to(torch.int8)
