"""D2: the MTP layer is whole and float, and described so that every engine version finds it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from glmquant.description import DESCRIPTION_FILE
from glmquant.glm4_moe import Role, optional_mtp_weights
from glmquant.reconcile import listing
from glmquant.tensor_names import layer_of
from glmquant.verify.files.anatomy import FLOAT, KNOWN_TYPES, Anatomy, Linear
from glmquant.verify.files.kinds import fused_groups, is_body, is_plain, odd_ones
from glmquant.verify.files.names import is_router_bias
from glmquant.verify.findings import Finding, file_finding
from glmquant.verify.remedies import add_mtp

HEAD_VERSIONS: Final = "0.14 to 0.22 and 0.24 to 0.26"
"""Versions that look up the entry of ``shared_head.head`` (measured on 0.18.0 and 0.26.0rc1)."""


def check_mtp(anatomy: Anatomy) -> Iterator[Finding]:
    """Each MTP layer that has tensors.

    Args:
        anatomy: The folder.

    Yields:
        Findings with the code D2, one for each kind.
    """
    if not anatomy.mtp_layers:
        return
    yield from _check_missing(anatomy)
    yield from _check_entries(anatomy)
    quantized = list(_check_types(anatomy))
    yield from quantized or _check_width(anatomy)  # either is mended by another layer in its place


def _check_missing(anatomy: Anatomy) -> Iterator[Finding]:
    names = [
        name
        for name in anatomy.missing
        if layer_of(name) in anatomy.mtp_layers and not is_router_bias(name)
    ]
    if names:
        yield file_finding(
            "D2",
            "the MTP layer is not whole",
            tensors=names,
            expected="a whole MoE decoder block with eh_proj, enorm, hnorm and shared_head.norm",
            found=f"{len(names)} tensors in no file: the draft model keeps what the memory held",
            hint=add_mtp(anatomy.subject, "--replace-mtp"),
        )


def _check_entries(anatomy: Anatomy) -> Iterator[Finding]:
    """Names that vllm-ascend looks up whether the tensors are there or not."""
    subject = anatomy.subject
    if subject.description is None:
        return
    absent = []
    for layer in anatomy.mtp_layers:
        prefix = f"model.layers.{layer}."
        if any(name.startswith(prefix) for name in subject.types):  # else D1 says it of all
            absent += [
                name
                for name in optional_mtp_weights(layer)
                if name not in subject.types and name not in anatomy.tensors
            ]
    if absent:
        has_head = any(name.endswith("head.weight") for name in absent)
        yield file_finding(
            "D2",
            "the description lacks names that engines look up for the MTP layer",
            place=subject.description[0],
            tensors=absent,
            expected=f"{FLOAT} for each, whether the tensor is there or not",
            found=f"no entry: KeyError in vllm-ascend {HEAD_VERSIONS}"
            if has_head
            else "no entry; 0.11 to 0.30 agree on complete descriptions alone",
            hint=add_mtp(subject, "--replace-mtp"),
        )


def _check_types(anatomy: Anatomy) -> Iterator[Finding]:
    subject = anatomy.subject
    place = subject.description[0] if subject.description else DESCRIPTION_FILE
    linears = [linear for linear in anatomy.linears.values() if not is_body(linear)]
    wrong = dict(_wrong(anatomy, linears))
    if wrong:
        yield file_finding(
            "D2",
            "the MTP layer contradicts itself",
            place=place,
            tensors=wrong,
            expected=f"{FLOAT}, in the description and on disk",
            found=listing(sorted(set(wrong.values()))),
            hint=add_mtp(subject, "--replace-mtp"),
        )
    int8 = [f"{linear.name}.weight" for linear in linears if linear.kind in KNOWN_TYPES[1:]]
    if int8 and not wrong:
        yield file_finding(
            "D2",
            "the MTP layer is quantized",
            place=place,
            tensors=int8,
            expected=f"{FLOAT}, bit for bit the release's",
            found=f"{len(int8)} int8 linears, in agreement with the description",
            hint=add_mtp(subject, "--replace-mtp"),
            is_warning=True,
        )


def _wrong(anatomy: Anatomy, linears: list[Linear]) -> Iterator[tuple[str, str]]:
    """Weights and what is wrong with their types."""
    types = anatomy.subject.types
    for linear in linears:
        weight = f"{linear.name}.weight"
        if linear.name.endswith(".eh_proj") and {linear.kind, linear.actual} - {FLOAT, None}:
            yield weight, "eh_proj quantized, which no engine looks up"
        elif linear.is_mismatched and weight not in anatomy.copies:
            yield weight, f"described as {linear.kind}, {linear.actual} on disk"
    for group in fused_groups(linears).values():
        for linear in odd_ones(group):
            yield f"{linear.name}.weight", "several types in a fused group"
    for name, tensor in anatomy.expected.items():
        is_mtp = tensor.role is Role.MTP and is_plain(anatomy, name)
        if is_mtp and types.get(name) in KNOWN_TYPES[1:]:
            yield name, f"{types[name]} for a tensor that cannot be quantized"


def _check_width(anatomy: Anatomy) -> Iterator[Finding]:
    """F32, as msModelSlim leaves it: twice the bytes, and rounded when it is loaded."""
    prefixes = tuple(f"model.layers.{layer}." for layer in anatomy.mtp_layers)
    wide = [
        ref.name
        for ref in anatomy.tensors.values()
        if ref.dtype == "F32" and ref.name.startswith(prefixes) and ref.name.endswith(".weight")
    ]
    if wide:
        yield file_finding(
            "D2",
            "the MTP layer is F32",
            tensors=wide,
            expected="BF16, as in the release",
            found=f"{len(wide)} tensors in F32: twice the bytes on disk and in loading",
            hint=add_mtp(anatomy.subject, "--replace-mtp"),
            is_warning=True,
        )
