"""D3, D4: types that engines take, where they take them, and one type a fused group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from glmquant.description import DESCRIPTION_FILE
from glmquant.glm4_moe import Role
from glmquant.reconcile import listing
from glmquant.tensor_names import role_of
from glmquant.verify.files.anatomy import DYNAMIC, FLOAT, KNOWN_TYPES, STATIC, Anatomy, Linear
from glmquant.verify.files.names import OTHER
from glmquant.verify.findings import Finding, file_finding
from glmquant.verify.remedies import quantize_anew
from glmquant.verify.subject import LINEAR_SUFFIXES

CACHE_TYPES: Final = ("fa_quant_type", "kv_quant_type", "kv_cache_type")
"""Global keys of msModelSlim by which vllm-ascend takes another attention (``AscendKVCacheMethod``,
read)."""


def check_kinds(anatomy: Anatomy) -> Iterator[Finding]:
    """The types that the description says.

    Args:
        anatomy: The folder.

    Yields:
        Findings with the codes D3 and D4, one for each kind and role.
    """
    yield from _check_types(anatomy)
    yield from _check_cache_types(anatomy)
    yield from _check_static(anatomy)
    yield from _check_groups(anatomy)


def is_body(linear: Linear) -> bool:
    """Not of an MTP layer."""
    return linear.role is not Role.MTP


def _place(anatomy: Anatomy) -> str:
    description = anatomy.subject.description
    return description[0] if description else DESCRIPTION_FILE


def _check_cache_types(anatomy: Anatomy) -> Iterator[Finding]:
    """D4: no int8 KV cache or attention is asked for; older msModelSlim writes nulls there."""
    description = anatomy.subject.description
    for key in CACHE_TYPES:
        value = description[1].get(key) if description else None
        if value is not None:
            yield file_finding(
                "D4",
                "the description asks for a quantized KV cache or attention",
                place=f"{_place(anatomy)}: {key}",
                expected="no such key, or null: a GLM-4.x checkpoint has no tensors for it",
                found=repr(value)[:80],
                hint=quantize_anew(anatomy.subject),
            )


def _check_types(anatomy: Anatomy) -> Iterator[Finding]:
    """D4: the values of the description, over all of its entries."""
    types, place = anatomy.subject.types, _place(anatomy)
    odd: dict[str, list[str]] = {}
    plain: dict[str, list[str]] = {}
    mixed: list[str] = []
    for name, kind in types.items():
        if not isinstance(kind, str) or kind not in KNOWN_TYPES:
            odd.setdefault(repr(kind)[:60], []).append(name)
        elif kind != FLOAT and is_plain(anatomy, name):
            role = role_of(name, anatomy.mtp_layers)
            if role is not Role.MTP:  # D2 says more of it
                plain.setdefault(role.value if role else OTHER, []).append(name)
        elif not name.endswith(".weight"):
            module, _, suffix = name.rpartition(".")
            weight = types.get(f"{module}.weight", kind)
            is_part = suffix in LINEAR_SUFFIXES and suffix != "bias"
            if is_part and weight != kind and weight in KNOWN_TYPES:
                mixed.append(name)
    for value, names in odd.items():
        yield file_finding(
            "D4",
            "a type that no vllm-ascend takes for a GLM-4.x",
            place=place,
            tensors=names,
            expected=", ".join(KNOWN_TYPES),
            found=value,
            hint=quantize_anew(anatomy.subject),
        )
    for what, names in plain.items():
        yield file_finding(
            "D4",
            f"a tensor of the role {what} is described as a quantized linear",
            place=place,
            tensors=names,
            expected=FLOAT,
            found=listing(sorted({types[name] for name in names})),
            hint=f"set it to {FLOAT} where the tensor is float, else quantize anew",
        )
    if mixed:
        yield file_finding(
            "D4",
            "a scale has another type than its weight",
            place=place,
            tensors=mixed,
            expected="the type of the weight for all its tensors",
            found=f"{len(mixed)} entries of another type, which no engine looks up",
            hint="correct these entries",
            is_warning=True,
        )


def is_plain(anatomy: Anatomy, name: str) -> bool:
    """Whether it is a tensor of the model that cannot be quantized: a norm, router, head, bias."""
    if name in anatomy.expected:
        return name.removesuffix(".weight") not in anatomy.linears
    module, _, suffix = name.rpartition(".")
    return suffix == "bias" and module in anatomy.linears


def _check_static(anatomy: Anatomy) -> Iterator[Finding]:
    """D4: static activations, where no engine has them."""
    static: dict[str, list[str]] = {}
    for linear in anatomy.linears.values():
        if linear.described == STATIC and ".self_attn." not in linear.name:
            kind = "experts" if ".experts." in linear.name else "shared experts"
            if ".mlp.shared_experts." not in linear.name and kind != "experts":
                kind = "others"
            static.setdefault(kind, []).append(f"{linear.name}.weight")
    reasons = {
        "experts": "experts with static activations: no version has them",
        "shared experts": "static shared experts: from 0.23 on they fail at the first token",
        "others": "static activations outside attention: poor under tensor parallelism, each card "
        "rounds its own part",
    }
    for kind, names in static.items():
        yield file_finding(
            "D4",
            "a linear has static activations where it should not",
            place=_place(anatomy),
            tensors=names,
            expected=f"{DYNAMIC} or {FLOAT}; {STATIC} in attention alone",
            found=reasons[kind],
            hint=quantize_anew(anatomy.subject),
            is_warning=kind == "others",
        )


def fused_groups(linears: Iterable[Linear]) -> dict[str, list[Linear]]:
    """Linears that an engine takes together: q, k, v; gate, up; all experts of a layer."""
    groups: dict[str, list[Linear]] = {}
    for linear in linears:
        module, _, part = linear.name.rpartition(".")
        if part in ("q_proj", "k_proj", "v_proj"):
            groups.setdefault(f"{module}.qkv_proj", []).append(linear)
        elif ".mlp.experts." in module:
            groups.setdefault(module[: module.index(".experts.") + 8], []).append(linear)
        elif part in ("gate_proj", "up_proj"):
            groups.setdefault(f"{module}.gate_up_proj", []).append(linear)
    return groups


def odd_ones(group: Iterable[Linear]) -> list[Linear]:
    """Those of a group whose known type is not that of most; all of them where it is a tie."""
    typed = [linear for linear in group if linear.kind is not None]
    kinds = Counter(linear.kind for linear in typed)
    if len(kinds) < 2:
        return []
    (usual, most), (_, next_most) = kinds.most_common(2)
    return [linear for linear in typed if linear.kind != usual or most == next_most]


def _check_groups(anatomy: Anatomy) -> Iterator[Finding]:
    found: dict[str, tuple[list[str], Counter[str]]] = {}
    for group in fused_groups(filter(is_body, anatomy.linears.values())).values():
        if odd := odd_ones(group):
            names, kinds = found.setdefault(odd[0].role.value, ([], Counter()))
            names += [f"{linear.name}.weight" for linear in odd]
            kinds.update(str(linear.kind) for linear in group if linear.kind is not None)
    for role, (names, kinds) in found.items():
        experts = role == Role.ROUTED_EXPERT.value
        yield file_finding(
            "D3",
            "a fused group has several types",
            place=_place(anatomy),
            tensors=names,
            expected="one type for "
            + ("all experts of a layer" if experts else "q, k and v; for gate and up"),
            found=listing([f"{count} {kind}" for kind, count in kinds.most_common()])
            + (": an engine asks for expert 0 alone" if experts else ": an engine refuses them"),
            hint=quantize_anew(anatomy.subject),
        )
