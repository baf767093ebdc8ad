"""What the manifest says of the checkpoint, as far as it can be believed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from glmquant.manifest import ARITHMETIC, MANIFEST_FILE, MANIFEST_FORMAT
from glmquant.tensor_names import role_of
from glmquant.verify.companions import ENGINE_FILES
from glmquant.verify.subject import Subject
from glmquant.verify.weights.flaws import OTHER_ROLE, Flaw
from glmquant.verify.weights.rows import Rule

_INT8 = "W8A8_DYNAMIC"


class Trust(NamedTuple):
    """What the manifest promises; nothing without one.

    Attributes:
        digests: Tensor → xxh3-128 of its bytes, hexadecimal.
        is_whole: It lists every tensor of the checkpoint.
        exact: int8 weights that it says were made by a formula that is known here.
        searched_roles: Roles whose scales were searched.
        side_files: Side file → xxh3-128 of its bytes.
        broken: Why it cannot be understood, where it cannot.
    """

    digests: dict[str, str]
    is_whole: bool
    exact: frozenset[str]
    searched_roles: frozenset[str]
    side_files: dict[str, str]
    broken: str | None = None

    def rule(self, tensor: str, role: str) -> Rule:
        """How strictly an int8 weight is judged."""
        return Rule(tensor in self.exact, tensor in self.exact and role in self.searched_roles)


def read_trust(subject: Subject) -> Trust:
    """What the manifest of a checkpoint promises.

    Args:
        subject: The checkpoint.
    """
    manifest = subject.found.objects.get(MANIFEST_FILE)
    nothing = Trust({}, False, frozenset(), frozenset(), {})
    if manifest is None:
        is_there = MANIFEST_FILE in subject.found.files
        return nothing._replace(broken="it cannot be read" if is_there else None)
    try:
        return _parse(manifest)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return nothing._replace(broken=f"{type(error).__name__}: {error}")


def _parse(manifest: dict[str, Any]) -> Trust:
    if manifest["format"] != MANIFEST_FORMAT:
        raise ValueError(f"format {manifest['format']!r}, not {MANIFEST_FORMAT}")
    tensors = manifest["tensors"]
    digests = {}
    for name, entry in tensors.items():
        digests[name] = str(entry["xxh3_128"])
    arithmetic = manifest.get("arithmetic", {})
    searched = {
        str(role)
        for rule in manifest.get("rules", [])
        if rule.get("scale") == "mse"
        for role in rule["roles"]
    }
    known = arithmetic.get(_INT8) == ARITHMETIC[_INT8]
    if searched and arithmetic.get(f"{_INT8}, scale mse") != ARITHMETIC[f"{_INT8}, scale mse"]:
        known = False
    exact = {name for name, entry in tensors.items() if known and entry["scheme"] == _INT8}
    side_files = {str(name): str(digest) for name, digest in manifest.get("side_files", {}).items()}
    # A run lists its plan and every tensor; what is added to other people's lists its own alone.
    is_whole = "plan" in manifest
    return Trust(digests, is_whole, frozenset(exact), frozenset(searched), side_files)


def check_manifest(subject: Subject, trust: Trust) -> Iterator[Flaw]:
    """B1 for all but the bytes of tensors.

    Args:
        subject: The checkpoint.
        trust: What its manifest says.

    Yields:
        What is wrong.

    Raises:
        StorageError: A side file cannot be read.
    """
    yield from _check_listing(subject, trust)
    yield from _check_side_files(subject, trust)


def in_lost_files(subject: Subject) -> set[str]:
    """Tensors that the index puts into files that are missing or broken, as is told elsewhere."""
    weight_map = subject.found.weight_map
    return {name for name, file in weight_map.items() if file not in subject.found.shards}


def _check_listing(subject: Subject, trust: Trust) -> Iterator[Flaw]:
    """The manifest and the checkpoint name the same tensors."""
    if trust.broken is not None:
        yield Flaw(
            "B1",
            "the manifest cannot be understood",
            OTHER_ROLE,
            MANIFEST_FILE,
            f"a digest for each tensor, format {MANIFEST_FORMAT}",
            trust.broken,
        )
        return
    gone = subject.tensors.keys() | in_lost_files(subject)
    for name in sorted(trust.digests.keys() - gone):
        yield _listing_flaw(subject, name, "a tensor of the manifest is missing", "no such tensor")
    if trust.is_whole:
        for name in sorted(subject.tensors.keys() - trust.digests.keys()):
            what = "a tensor is not in the manifest"
            yield _listing_flaw(subject, name, what, "no entry")


def _check_side_files(subject: Subject, trust: Trust) -> Iterator[Flaw]:
    """Side files have the digests of the manifest."""
    for name, digest in trust.side_files.items():
        found = _digest(subject, name)
        if found is not None and found != digest:
            yield Flaw(
                "B1",
                "bytes are not those that the manifest has a digest of",
                OTHER_ROLE,
                name,
                f"xxh3-128 {digest}",
                found,
                is_warning=not name.startswith(ENGINE_FILES),
            )


def _digest(subject: Subject, name: str) -> str | None:
    """xxh3-128 of a file of the checkpoint; None where it is not there, which S1 tells."""
    path = subject.path / name
    if Path(name).is_absolute() or ".." in Path(name).parts or not path.is_file():
        return None
    digest = xxhash.xxh3_128()
    try:
        for block in subject.source.blocks(name, 0, subject.source.stamp(name).nbytes):
            digest.update(block)
    finally:
        subject.source.release(name)
    return digest.hexdigest()


def _listing_flaw(subject: Subject, name: str, what: str, found: str) -> Flaw:
    role = role_of(name, subject.mtp_layers)
    text = role.value if role else OTHER_ROLE
    return Flaw("B1", what, text, name, "the tensors that were written", found)
