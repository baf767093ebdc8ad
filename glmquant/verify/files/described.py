"""D1: the description is where engines look for it, and names the tensors that there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from glmquant.description import DESCRIPTION_FILE, DESCRIPTION_PREFIX
from glmquant.glm4_moe import CONFIG_FILE, Role, optional_mtp_weights
from glmquant.tensor_names import layer_of
from glmquant.verify.files.anatomy import Anatomy, absent_mtp_layers
from glmquant.verify.files.names import NORM_BIAS, by_role
from glmquant.verify.files.rotation import tells_of_rotation
from glmquant.verify.findings import Finding, file_finding
from glmquant.verify.remedies import add_mtp, quantize_anew
from glmquant.verify.subject import Subject

_LOOKED_UP: Final = ("_proj.weight", "embed_tokens.weight", "lm_head.weight", "head.weight")


def check_description(anatomy: Anatomy, unknown: Iterable[str]) -> Iterator[Finding]:
    """The description, and its entries against the tensors, both ways.

    Args:
        anatomy: The folder.
        unknown: Tensors that no model has: said already.

    Yields:
        Findings with the code D1, one for each kind and role.
    """
    yield from _check_file(anatomy.subject)
    if anatomy.subject.description is not None:
        yield from _check_entries(anatomy, set(unknown))


def _check_file(subject: Subject) -> Iterator[Finding]:
    files = [name for name in subject.found.files if name.startswith(DESCRIPTION_PREFIX)]
    for finding in subject.found.findings:
        if finding.where.startswith(DESCRIPTION_PREFIX):
            yield file_finding(
                "D1",
                "the description cannot be read",
                place=finding.where,
                expected="a JSON object, tensor name → type",
                found=finding.what,
                hint="fetch that file again",
            )
    if subject.description is None:
        if not files:
            yield file_finding(
                "D1",
                "there is no description",
                place=DESCRIPTION_FILE,
                expected="the type of every tensor: by this file vllm-ascend knows the format",
                found="no such file",
                hint=f"fetch {DESCRIPTION_FILE}, or {quantize_anew(subject)}",
            )
    elif DESCRIPTION_FILE not in files:
        is_embedded = subject.description[0].startswith(CONFIG_FILE)
        yield file_finding(
            "D1",
            "the description is where vllm-ascend does not look for it"
            if not is_embedded
            else "the description stands in config.json alone",
            place=subject.description[0],
            expected=DESCRIPTION_FILE,
            found="no such file",
            hint=f"write it as {DESCRIPTION_FILE}, too",
            is_warning=is_embedded,
        )
    else:
        first = subject.found.objects.get(DESCRIPTION_FILE)
        for name in files:
            other = subject.found.objects.get(name)
            if first is not None and other is not None and _types(first) != _types(other):
                yield file_finding(
                    "D1",
                    "two descriptions say different things",
                    place=name,
                    expected=f"what {DESCRIPTION_FILE} says: vllm-ascend reads that one",
                    found="other entries",
                    hint=f"remove {name}",
                    is_warning=True,
                )


def _types(description: dict[str, Any]) -> dict[str, Any]:
    return {name: kind for name, kind in description.items() if "." in name}


def _check_entries(anatomy: Anatomy, unknown: set[str]) -> Iterator[Finding]:
    """Every tensor has an entry in the description, and every entry a tensor."""
    subject, types = anatomy.subject, anatomy.subject.types
    place = subject.description[0] if subject.description else DESCRIPTION_FILE
    without = [
        name
        for name in anatomy.tensors
        if name not in types and name not in unknown and not tells_of_rotation(name)
    ]
    for role, names in by_role(anatomy, without).items():
        is_asked = any(name.endswith(_LOOKED_UP) for name in names)
        yield file_finding(
            "D1",
            f"tensors of the role {role} have no entry in the description",
            place=place,
            tensors=names,
            expected="an entry for each tensor",
            found=f"{len(names)} without one" + ("" if is_asked else ", which no engine looks up"),
            hint=add_mtp(subject, "--replace-mtp")
            if role == Role.MTP.value
            else "fetch the description again, or quantize anew",
            is_warning=not is_asked,
        )
    optional = set(anatomy.optional_names)
    for layer in subject.mtp_layers:  # where there is no config.json, or it is elsewhere
        optional.update(optional_mtp_weights(layer))
    missing = set(anatomy.missing)
    absent = absent_mtp_layers(anatomy)  # C2 says that they are
    for role, names in by_role(anatomy, types.keys() - anatomy.tensors.keys()).items():
        left = sorted(
            name
            for name in names
            if name not in optional
            and name not in missing
            and name not in anatomy.elsewhere
            and NORM_BIAS not in name
            and not tells_of_rotation(name)
            and (layer_of(name) or 0) not in absent
        )
        if left:
            yield file_finding(
                "D1",
                f"the description names tensors of the role {role} that are in no file",
                place=place,
                tensors=left,
                expected="an entry for each tensor, and no others",
                found=f"{len(left)} more",
                hint="fetch the description and the shards of one revision",
            )
