"""Which elements of a model's parameters no tensor of the checkpoint was put into.

While a model is made, ``torch.empty`` and its like give memory that is filled with a pattern that
no weight has. Then every parameter gets the pattern, the engine's own ``load_weights`` runs, and
what still shows it gets back what it had: memory as it was, or a default, as the ones of a norm.
Nothing is changed that the engine decides by.
"""

import torch
from torch.overrides import TorchFunctionMode

_EMPTY = frozenset({torch.empty, torch.empty_like, torch.Tensor.new_empty, torch.empty_strided})

_PATTERNS = {
    1: (torch.int8, -128),  # no int8 weight has it: they are within -127 and 127
    2: (torch.int16, 0x7FE5),  # a NaN of its own in BF16, and in F16
    4: (torch.int32, 0x7FE5A5A5),  # the same in F32
    8: (torch.int64, 0x7FF5A5A5A5A5A5A5),
}


class Marking(TorchFunctionMode):
    """Fills with the pattern what is made without values."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if func in _EMPTY and (bits := _bits(made)) is not None:
            bits[0].fill_(bits[1])
        return made


class Watch:
    """What the parameters of a model had before its weights are loaded."""

    def __init__(self, model):
        self._before = {}
        for name, parameter in model.named_parameters():
            if (bits := _bits(parameter.detach())) is not None:
                self._before[name] = bits[0].clone()
                bits[0].fill_(bits[1])

    def unfilled(self, model):
        """Name → elements without a value, and whether they have a default.

        What a default was is in its place again afterwards.
        """
        found = {}
        for name, parameter in model.named_parameters():
            before, bits = self._before.get(name), _bits(parameter.detach())
            if before is None or bits is None or before.shape != bits[0].shape:
                continue
            marks = bits[0] == bits[1]
            # One int8 of somebody else's may have that value by right; a lost tensor is rows.
            if not marks.any() or (bits[0].dtype is torch.int8 and not _has_row(marks)):
                continue
            bits[0][marks] = before[marks]
            memory = before[marks] == bits[1]
            if parameter.dtype.is_floating_point:  # a NaN that was cast has other bits
                memory |= before.view(parameter.dtype)[marks].isnan()
            is_default = not bool(memory.any())
            found[name] = [int(marks.sum()), is_default]
        return found


def _bits(tensor):
    """A tensor's memory as integers, and their pattern; None where it has none here."""
    if tensor.device.type != "cpu" or tensor.dtype is torch.bool or not tensor.is_contiguous():
        return None
    kind, pattern = _PATTERNS.get(tensor.element_size(), (None, None))
    if kind is None or tensor.is_complex():
        return None
    return tensor.detach().view(kind), pattern


def _has_row(marks):
    return bool(marks.reshape(-1, marks.shape[-1]).all(-1).any()) if marks.dim() else bool(marks)
