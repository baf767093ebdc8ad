"""M3: is the body rotated, so that no MTP layer of the BF16 release fits it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from glmquant.glm4_moe import CONFIG_FILE
from glmquant.verify.files.anatomy import Anatomy
from glmquant.verify.findings import Finding, file_finding
from glmquant.verify.remedies import quantize_anew
from glmquant.verify.subject import Subject

_ROTATION_WORDS: Final = (".rot.weight", "global_rotation", "is_rot_used", "quarot")
_MAX_DEPTH: Final = 8


def check_rotation(anatomy: Anatomy) -> Iterator[Finding]:
    """M3: a float MTP layer does not fit a rotated body.

    Args:
        anatomy: The folder.

    Yields:
        One finding for the tensors, and one for each key.
    """
    subject = anatomy.subject
    expected = "a body that is not rotated: the MTP layer of the BF16 release fits no other"
    if names := sorted(rotation_names(anatomy.tensors)):
        yield file_finding(
            "M3",
            "the body is rotated",
            tensors=names,
            expected=expected,
            found=f"{len(names)} tensors of a rotation",
            hint=quantize_anew(subject),
        )
    for place in rotation_keys(subject):
        if place.partition(": ")[2] in anatomy.tensors:
            continue
        yield file_finding(
            "M3",
            "the body is rotated",
            place=place,
            expected=expected,
            found="a key that tells of a rotation",
            hint=quantize_anew(subject),
        )


def rotation_names(names: Iterable[str]) -> set[str]:
    """Those of the names that tell of a rotation: searched as one text, there are 130,000."""
    text = "\n".join(names).lower()
    if not any(word in text for word in _ROTATION_WORDS):
        return set()
    return {name for name in names if tells_of_rotation(name)}


def tells_of_rotation(name: str) -> bool:
    """Whether a tensor or a key is there for a rotation of the body alone."""
    return any(word in name.lower() for word in _ROTATION_WORDS)


def rotation_keys(subject: Subject) -> list[str]:
    """Where description and config.json tell of a rotation."""
    objects = [(CONFIG_FILE, subject.found.config)]
    if subject.description is not None and not subject.description[0].startswith(CONFIG_FILE):
        objects.append(subject.description)
    return [
        f"{name}: {path}" for name, fields in objects for path in _rotations(fields, "", _MAX_DEPTH)
    ]


def _rotations(fields: Any, prefix: str, depth: int) -> Iterator[str]:
    """Keys that tell of a rotation, and are not false, empty or null."""
    if isinstance(fields, dict) and depth:
        named = rotation_names(fields)
        for key, value in fields.items():
            if key in named:
                if value:
                    yield prefix + key
            elif isinstance(value, dict):
                yield from _rotations(value, f"{prefix}{key}.", depth - 1)
