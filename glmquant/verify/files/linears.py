"""L1: each linear has the tensors, dtypes and shapes that its type calls for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from glmquant.glm4_moe import Role
from glmquant.reconcile import listing
from glmquant.tensor_names import role_of
from glmquant.tensors import TensorRef
from glmquant.verify.files.anatomy import (
    ALLOWED_PARTS,
    FLOAT,
    KNOWN_TYPES,
    Anatomy,
)
from glmquant.verify.files.kinds import is_body, is_plain
from glmquant.verify.files.names import OTHER, is_router_bias
from glmquant.verify.findings import Finding, file_finding
from glmquant.verify.subject import LINEAR_SUFFIXES

_SCALES: Final = ("F32", "BF16")
PART_DTYPES: Final[dict[str, tuple[str, ...]]] = {
    "weight": ("I8",),
    "weight_scale": _SCALES,
    "weight_offset": _SCALES,
    "quant_bias": ("I32",),
    "input_scale": _SCALES,
    "input_offset": (*_SCALES, "I8", "I32"),
    "deq_scale": ("F32",),
}
"""Suffix → the dtypes it may have in a quantized linear of a BF16 model; msModelSlim v0 writes
scales in BF16, and an I64 ``deq_scale`` for FP16 models alone."""

_BODY_DTYPES: Final[dict[str, tuple[str, ...]]] = {"weight": ("BF16",)}
_MTP_DTYPES: Final[dict[str, tuple[str, ...]]] = {"weight": _SCALES}
"""Those of a float linear; D2 tells of an F32 MTP layer."""


def part_shapes(shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Suffix → the shape of a linear's tensor, its weight being ``[out, in]``."""
    rows = shape[:1]
    return {
        "weight": shape,
        "weight_scale": (*rows, 1),
        "weight_offset": (*rows, 1),
        "bias": rows,
        "quant_bias": rows,
        "deq_scale": rows,
        "input_scale": (1,),
        "input_offset": (1,),
    }


def check_linears(anatomy: Anatomy) -> Iterator[Finding]:
    """Parts, dtypes and shapes of all linears, and of the other tensors of the model.

    Args:
        anatomy: The folder.

    Yields:
        Findings with the codes L1 and M1, one for each kind and role.
    """
    yield from _check_mismatches(anatomy)
    yield from _check_parts(anatomy)
    yield from _check_tensors(anatomy)


def _check_mismatches(anatomy: Anatomy) -> Iterator[Finding]:
    found: dict[tuple[str, Any, Any], list[str]] = {}
    for linear in anatomy.linears.values():
        weight = f"{linear.name}.weight"
        if is_body(linear) and linear.is_mismatched and weight not in anatomy.copies:
            key = (linear.role.value, linear.kind, linear.actual)
            found.setdefault(key, []).append(weight)
    for (role, kind, actual), names in found.items():
        yield file_finding(
            "L1",
            f"linears of the role {role} are not of the type that the description says",
            tensors=names,
            expected=f"the tensors of {kind}",
            found=f"those of {actual}",
            hint="fetch the description and the shards of one revision, or quantize anew",
        )


def _check_parts(anatomy: Anatomy) -> Iterator[Finding]:
    """L1: no part missing, none too many."""
    missing: dict[tuple[str, str], list[str]] = {}
    for name in anatomy.missing:
        module, _, suffix = name.rpartition(".")
        if name not in anatomy.expected and is_body(anatomy.linears[module]):
            missing.setdefault((anatomy.linears[module].role.value, suffix), []).append(name)
    for (role, suffix), names in missing.items():
        yield file_finding(
            "L1",
            f"linears of the role {role} lack their {suffix}",
            tensors=names,
            expected=f"all of {', '.join(_parts_of(anatomy, names[0]))}",
            found=f"{len(names)} without it: an engine takes what the memory holds",
            hint="fetch the shards again, or quantize anew",
        )
    extra: dict[tuple[str, str], list[str]] = {}
    for linear in anatomy.linears.values():
        if linear.kind is None or linear.is_mismatched:
            continue
        for suffix in linear.parts:
            name = f"{linear.name}.{suffix}"
            # Unknown suffixes, and biases that no such model has, are D1's.
            is_unknown = suffix not in LINEAR_SUFFIXES or suffix == "bias"
            if suffix not in ALLOWED_PARTS[linear.kind] and not is_unknown:
                extra.setdefault((linear.role.value, linear.kind), []).append(name)
    for (role, kind), names in extra.items():
        yield file_finding(
            "L1",
            f"linears of the role {role} have tensors that their type {kind} does not have",
            tensors=names,
            expected=", ".join(ALLOWED_PARTS[kind]),
            found=listing(sorted({name.rpartition(".")[2] for name in names})),
            hint="remove these tensors, or correct the type in the description",
        )


def _parts_of(anatomy: Anatomy, name: str) -> tuple[str, ...]:
    kind = anatomy.linears[name.rpartition(".")[0]].kind or FLOAT
    return ALLOWED_PARTS[kind][:-1]


def _check_tensors(anatomy: Anatomy) -> Iterator[Finding]:
    """L1: dtype and shape of each tensor of the model and of the parts of its linears."""
    dtypes: dict[tuple[str, str, str, bool], list[TensorRef]] = {}
    shapes: dict[tuple[str, str], list[tuple[TensorRef, tuple[int, ...]]]] = {}
    for ref, shape, allowed in _odd_tensors(anatomy):
        if ref.name in anatomy.copies:
            continue
        is_wrong = ref.dtype not in allowed
        role = role_of(ref.name, anatomy.mtp_layers)
        what = role.value if role else OTHER
        suffix = ref.name.rpartition(".")[2]
        if is_wrong:
            # An engine casts F32 to BF16: nothing is lost but room.
            is_warning = ref.dtype == "F32" and "BF16" in allowed
            dtypes.setdefault((what, suffix, ", ".join(allowed), is_warning), []).append(ref)
        if ref.shape != shape:
            shapes.setdefault((what, suffix), []).append((ref, shape))
    for (what, suffix, expected, is_warning), refs in dtypes.items():
        is_router = is_router_bias(refs[0].name)
        yield file_finding(
            "M1" if is_router else "L1",
            "a router bias is not F32"
            if is_router
            else f"a {suffix} of the role {what} has another dtype",
            tensors=[ref.name for ref in refs],
            expected=expected,
            found=listing(sorted({ref.dtype for ref in refs}))
            + (": bits of the release are lost" if is_router else ""),
            hint="fetch these tensors from the BF16 release, or quantize anew",
            is_warning=is_warning,
        )
    for (what, suffix), wrong in shapes.items():
        ref, shape = wrong[0]
        yield file_finding(
            "M1" if is_router_bias(ref.name) else "L1",
            f"a {suffix} of the role {what} has another shape",
            tensors=[ref.name for ref, _ in wrong],
            expected=str(list(shape)),
            found=str(list(ref.shape)),
            hint="fetch these shards again, or quantize anew",
        )


def _odd_tensors(
    anatomy: Anatomy,
) -> Iterator[tuple[TensorRef, tuple[int, ...], tuple[str, ...]]]:
    """Each tensor of another dtype or shape, the shape and the dtypes that it may have."""
    tensors, types, linears = anatomy.tensors, anatomy.subject.types, anatomy.linears
    for name, tensor in anatomy.expected.items():
        if name.removesuffix(".weight") in linears or (ref := tensors.get(name)) is None:
            continue
        if types.get(name) in KNOWN_TYPES[1:] and is_plain(anatomy, name):
            continue  # D4 and D2 say of these that they cannot be quantized
        allowed: tuple[str, ...] = ("BF16",)
        if is_router_bias(name):
            allowed = ("F32",)
        elif tensor.role is Role.MTP or name.endswith(".bias"):
            allowed = _SCALES
        if ref.dtype not in allowed or ref.shape != tensor.shape:
            yield ref, tensor.shape, allowed
    shapes: dict[tuple[int, ...], dict[str, tuple[int, ...]]] = {}
    for linear in linears.values():
        if linear.kind is None or linear.is_mismatched:
            continue
        if linear.shape not in shapes:
            shapes[linear.shape] = part_shapes(linear.shape)
        by_suffix, dtypes = shapes[linear.shape], PART_DTYPES
        if linear.kind == FLOAT:
            dtypes = _BODY_DTYPES if is_body(linear) else _MTP_DTYPES
        for suffix, ref in linear.parts.items():
            if suffix not in dtypes or suffix not in ALLOWED_PARTS[linear.kind]:
                continue
            if ref.dtype not in dtypes[suffix] or ref.shape != by_suffix[suffix]:
                yield ref, by_suffix[suffix], dtypes[suffix]
