"""What is judged in one piece: an int8 linear with its scales, or a tensor by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from glmquant.glm4_moe import Role
from glmquant.tensor_names import role_of
from glmquant.tensors import TensorRef
from glmquant.verify.subject import LINEAR_SUFFIXES, Part, Subject
from glmquant.verify.weights.flaws import OTHER_ROLE

_SCALES: Final = ("weight_scale", "deq_scale")


class Unit(NamedTuple):
    """Tensors that are judged together.

    Attributes:
        name: The linear's, or the tensor's.
        role: What it does.
        main: The int8 weight, or the tensor.
        parts: Suffix → the linear's other tensors; empty for a tensor by itself.
    """

    name: str
    role: str
    main: TensorRef
    parts: dict[str, TensorRef]

    @property
    def refs(self) -> tuple[TensorRef, ...]:
        """All of its tensors."""
        return (self.main, *self.parts.values())

    @property
    def is_int8(self) -> bool:
        """It is an int8 linear with a scale."""
        return bool(self.parts)


def bias_of(unit: Unit) -> tuple[Unit, ...]:
    """The float bias of an int8 linear as a unit of its own, where it has one."""
    bias = unit.parts.get("bias")
    if bias is None:
        return ()
    is_attention = unit.role == Role.ATTENTION_QKV.value
    role = Role.ATTENTION_BIAS.value if is_attention else unit.role
    return (Unit(bias.name, role, bias, {}),)


def units_of(subject: Subject) -> dict[str, list[Unit]]:
    """Shard → its units in the order of their bytes; every tensor that is loaded is in one.

    Args:
        subject: The checkpoint.
    """
    linears: dict[str, dict[str, TensorRef]] = {}
    for name, ref in subject.tensors.items():
        linear, suffix = Part.of(name)
        if suffix in LINEAR_SUFFIXES:
            linears.setdefault(linear, {})[suffix] = ref
    units: dict[str, list[Unit]] = {file: [] for file in subject.loaded}
    for unit in _units(subject, linears):
        units[unit.main.file].append(unit)
    for found in units.values():
        found.sort(key=lambda unit: unit.main.offset)
    return {file: found for file, found in units.items() if found}


def _units(subject: Subject, linears: dict[str, dict[str, TensorRef]]) -> Iterator[Unit]:
    for name, ref in subject.tensors.items():
        linear, suffix = Part.of(name)
        tensors = linears.get(linear, {}) if suffix in LINEAR_SUFFIXES else {}
        weight = tensors.get("weight")
        is_int8 = (
            weight is not None
            and weight.dtype == "I8"
            and len(weight.shape) == 2
            and any(scale in tensors for scale in _SCALES)
        )
        role = role_of(name, subject.mtp_layers)
        text = role.value if role else OTHER_ROLE
        if not is_int8:
            yield Unit(name, text, ref, {})
        elif suffix == "weight":
            parts = {key: part for key, part in tensors.items() if key != "weight"}
            yield Unit(linear, text, ref, parts)
