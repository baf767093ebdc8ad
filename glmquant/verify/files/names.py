"""D1, M1: which tensors there are, and which the model has."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Final

from glmquant.glm4_moe import Role
from glmquant.tensor_names import contradicted_key, layer_of, role_of
from glmquant.verify.files.anatomy import KNOWN_TYPES, Anatomy
from glmquant.verify.files.rotation import tells_of_rotation
from glmquant.verify.findings import Finding, file_finding
from glmquant.verify.remedies import add_mtp, quantize_anew
from glmquant.verify.subject import LINEAR_SUFFIXES

OTHER: Final = "other"
NORM_BIAS: Final = "norm.bias"
"""A key that holds it makes vllm-ascend give every RMSNorm a bias."""


def check_names(anatomy: Anatomy, unknown: Collection[str]) -> Iterator[Finding]:
    """Tensors against the model.

    Args:
        anatomy: The folder.
        unknown: Tensors that no model has.

    Yields:
        Findings with the codes D1 and M1, one for each kind and role.
    """
    yield from _check_missing(anatomy)
    yield from _report_unknown(anatomy, unknown)
    yield from _check_norm_biases(anatomy)


def by_role(anatomy: Anatomy, names: Iterable[str]) -> dict[str, list[str]]:
    """Names by their role in the model, ``other`` for those of none."""
    grouped: dict[str, list[str]] = {}
    for name in names:
        role = role_of(name, anatomy.mtp_layers)
        grouped.setdefault(role.value if role else OTHER, []).append(name)
    return grouped


def is_router_bias(name: str) -> bool:
    """Whether it is a router bias, in an MTP layer too."""
    return name.endswith(".e_score_correction_bias")


def _check_missing(anatomy: Anatomy) -> Iterator[Finding]:
    """Tensors that the model has and the folder has not; MTP layers and parts are others' task."""
    whole = _missing_layers(anatomy)
    if lost := [name for name in anatomy.missing if layer_of(name) in whole]:
        yield file_finding(
            "D1",
            "whole layers are missing",
            tensors=lost,
            expected="every layer that config.json counts",
            found=f"layers {', '.join(map(str, sorted(whole)[:8]))} in no file",
            hint="fetch the shards and the index of one revision, or quantize anew",
        )
    missing = [name for name in anatomy.missing if layer_of(name) not in whole]
    if biases := [name for name in missing if is_router_bias(name)]:
        yield file_finding(
            "M1",
            "router biases are missing",
            tensors=biases,
            expected="F32, one in every MoE layer, the MTP layer included",
            found=f"{len(biases)} of them in no file: an engine takes what the memory holds",
            hint=add_mtp(anatomy.subject),
        )
    rest = [
        name
        for name in missing
        if name in anatomy.expected
        and anatomy.expected[name].role is not Role.MTP
        and not is_router_bias(name)
    ]
    for role, names in by_role(anatomy, rest).items():
        yield file_finding(
            "D1",
            f"tensors of the role {role} are missing",
            tensors=names,
            expected="every tensor that config.json calls for",
            found=f"{len(names)} of them in no file",
            hint="fetch the shards and the index of one revision, or quantize anew",
        )


def _missing_layers(anatomy: Anatomy) -> set[int]:
    """Layers of which no file has anything, MTP layers apart."""
    if not anatomy.missing or anatomy.config is None:
        return set()
    layers = {layer_of(name) for name in anatomy.missing} - {None, *anatomy.mtp_layers}
    layers -= {layer_of(name) for name in anatomy.tensors.keys() | anatomy.elsewhere}
    return {layer for layer in layers if layer is not None}


def unknown_tensors(anatomy: Anatomy) -> Iterator[str]:
    """Tensors that no model of this configuration has.

    Biases of norms, and a rotation's tensors, are others' task; so are the tensors of MTP layers
    where none can be.
    """
    if not anatomy.expected:
        return
    expected, linears = anatomy.expected, anatomy.linears
    misplaced = set(anatomy.misplaced_layers)
    for name in anatomy.tensors.keys() - expected.keys():
        module, _, suffix = name.rpartition(".")
        if module in linears and suffix in LINEAR_SUFFIXES and suffix != "bias":
            continue  # whether its type has such a part is the linears' task
        if NORM_BIAS in name or tells_of_rotation(name):
            continue
        if misplaced and layer_of(name) in misplaced:
            continue
        if module not in linears and _is_quantized(anatomy, f"{module}.weight"):
            continue  # a part of what is described as a linear and is none
        yield name


def _is_quantized(anatomy: Anatomy, weight: str) -> bool:
    kind = anatomy.subject.types.get(weight) if weight in anatomy.expected else None
    return isinstance(kind, str) and kind in KNOWN_TYPES[1:]


def _report_unknown(anatomy: Anatomy, unknown: Collection[str]) -> Iterator[Finding]:
    for role, names in by_role(anatomy, sorted(unknown)).items():
        config = anatomy.config
        is_named = config is not None and names[0].endswith((".weight", ".bias"))
        key = contradicted_key(config, names[0]) if config and is_named else None
        yield file_finding(
            "D1",
            f"tensors of the role {role} are unknown"
            if role != OTHER
            else "there are unknown tensors",
            tensors=names,
            expected=f"no such tensor, since config.json says {key}" if key else "GLM-4 MoE names",
            found=f"{len(names)} others: an engine fails on a name it does not know",
            hint="remove these tensors, or take the checkpoint of the release",
        )


def _check_norm_biases(anatomy: Anatomy) -> Iterator[Finding]:
    subject = anatomy.subject
    keys = [name for name in subject.types if NORM_BIAS in name]
    if keys:
        yield file_finding(
            "D1",
            "the description gives every RMSNorm a bias",
            place=subject.description[0] if subject.description else None,
            tensors=keys,
            expected=f"no key with {NORM_BIAS}",
            found=f"{len(keys)} of them: vllm-ascend then makes a bias for each norm of the model",
            hint=quantize_anew(subject),
        )
        return
    tensors = [name for name in anatomy.tensors if NORM_BIAS in name]
    if tensors:
        yield file_finding(
            "D1",
            "biases of norms are dropped in silence",
            tensors=tensors,
            expected="norms without a bias, as GLM-4 MoE has them",
            found=f"{len(tensors)} biases that the smoothing needs and no engine reads",
            hint=quantize_anew(subject),
        )
