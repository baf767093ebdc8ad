"""Which folders nothing is grafted into: other formats, broken or rotated ones."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from glmquant.description import DESCRIPTION_FILE
from glmquant.errors import (
    ArchitectureError,
    CheckpointError,
    ConfigError,
    GlmquantError,
    HeaderError,
    IndexFileError,
    RotatedError,
    TargetError,
)
from glmquant.glm4_moe import ARCHITECTURE, CONFIG_FILE
from glmquant.graft.request import Request, command
from glmquant.identify import Identity, identify
from glmquant.index import INDEX_FILE
from glmquant.markings import FLOAT_FORMATS, Format
from glmquant.reconcile import listing
from glmquant.source import FolderSource
from glmquant.storage import reading
from glmquant.survey import Survey, survey

_TAKEN_FORMATS: Final = (
    Format.GLMQUANT,
    Format.MODELSLIM_V0,
    Format.MODELSLIM_V1,
    Format.MODELSLIM_HF,
)
_ROTATED: Final = ("quarot", "global_rotation", "is_rot_used")


def require_format(
    found: Survey, identity: Identity, description: dict[str, Any], request: Request
) -> None:
    """It is a finished ModelSlim checkpoint of GLM-4.x.

    Args:
        found: The folder.
        identity: What it was judged to be.
        description: What says its types, empty if nothing does.
        request: What was asked.

    Raises:
        CheckpointError: Another model or format, or no description.
        TargetError: A run of ``w8a8`` there did not end.
    """
    path = request.folder
    if found.is_unfinished_run:
        raise TargetError(
            "the checkpoint is not finished",
            where=str(path),
            expected="a whole quantized checkpoint",
            found="a run of glmquant w8a8 that did not end",
            hint="run the same w8a8 command again, with --add-mtp if the MTP layer is to stay",
        )
    if not identity.is_glm4_moe and found.config:
        raise ArchitectureError(
            "this is not a GLM-4.5, 4.5-Air, 4.6 or 4.7 checkpoint",
            where=f"{path.name}/{CONFIG_FILE}: architectures",
            expected=f"[{ARCHITECTURE!r}]",
            found=identity.model,
            hint="name the quantized checkpoint of the same model as --from",
        )
    form = identity.marking.format
    if form in _TAKEN_FORMATS and not any("." in key for key in description):
        raise CheckpointError(
            "the checkpoint has no description",
            where=str(path),
            expected=f"{DESCRIPTION_FILE}: by it an engine knows what each tensor is",
            found="no such file that can be read",
            hint="fetch that file again",
        )
    if form in FLOAT_FORMATS:
        other = _format_of(request.source)
        if other in _TAKEN_FORMATS:
            raise CheckpointError(
                "the checkpoint and its source look swapped",
                where=str(path),
                expected="the quantized checkpoint as DIR, the BF16 weights as --from",
                found=f"{form.value} as DIR, {other.value} as --from",
                hint=request.swapped,
            )
        raise CheckpointError(
            "the checkpoint is not quantized",
            where=str(path),
            expected=f"ModelSlim weights with {DESCRIPTION_FILE}, of glmquant or msModelSlim",
            found=identity.text,
            hint=command("w8a8", path, "--add-mtp"),
        )
    if form not in _TAKEN_FORMATS:
        raise CheckpointError(
            "the checkpoint is of another format",
            where=str(path),
            expected=f"ModelSlim weights with {DESCRIPTION_FILE}, of glmquant or msModelSlim",
            found=identity.text,
            hint="an MTP layer can be grafted into ModelSlim checkpoints alone",
        )


def _format_of(folder: Path) -> Format | None:
    with suppress(GlmquantError, OSError):
        return identify(survey(FolderSource(folder))).marking.format
    return None


def require_readable(found: Survey, ours: Collection[str]) -> None:
    """Config, index and every header could be read, and every shard of the index is there.

    Args:
        found: The folder.
        ours: Files that an unfinished graft has put there: they do not count.

    Raises:
        CheckpointError: Not so.
    """
    for name in found.broken:
        if name.endswith(".safetensors") and name not in ours:
            reasons = [each.what for each in found.findings if each.where.split(":")[0] == name]
            raise HeaderError(
                "a shard of the checkpoint is broken",
                where=name,
                expected="a whole safetensors file",
                found="; ".join(reasons) or "a header that cannot be read",
                hint="fetch that file again",
            )
    if CONFIG_FILE not in found.objects:
        raise ConfigError(
            "the checkpoint has no config.json that can be read",
            where=CONFIG_FILE,
            expected="the config.json of the model",
            found="a broken file" if CONFIG_FILE in found.files else "no such file",
            hint="copy config.json, tokenizer and template of the source into the checkpoint",
        )
    if INDEX_FILE in found.files and INDEX_FILE not in found.weight_maps:
        raise IndexFileError(
            "the index of the checkpoint cannot be read",
            where=INDEX_FILE,
            expected="JSON with a weight_map",
            found="something else",
            hint="fetch that file again",
        )
    named = set(found.weight_maps.get(INDEX_FILE, {}).values())
    missing = sorted(named - found.files.keys())
    if missing:
        is_strange = missing == sorted(named) and len(found.shards) > 0
        raise IndexFileError(
            f"{len(missing)} of {len(named)} shards of the index are not there",
            where=f"{INDEX_FILE}: {listing(missing)}",
            expected="every shard that it names",
            found=f"others: {listing(found.shards)}" if is_strange else "no such file",
            hint=f"move {INDEX_FILE} away: it is of other weights, and an engine loads none by it"
            if is_strange
            else "fetch the missing shards",
        )


def refuse_rotated(found: Survey, description: dict[str, Any], request: Request) -> None:
    """A BF16 MTP layer takes hidden states that are not rotated.

    Args:
        found: The folder.
        description: What says its types.
        request: What was asked.

    Raises:
        RotatedError: A name or a key says that the body is rotated.
        StorageError: The folder cannot be read.
    """
    path = request.folder
    names = [ref.name for refs in found.shards.values() for ref in refs]
    marks = [name for name in names if name.endswith(".rot.weight")]
    marks += [name for name in description if name.endswith(".rot.weight")]
    for where, fields in ((DESCRIPTION_FILE, description), (CONFIG_FILE, found.config)):
        marks += [f"{where}: {key}" for key in _rotation_keys(fields)]
    with reading(path):
        marks += sorted(
            str(each.relative_to(path)) for each in path.glob("*/*quarot*") if each.is_file()
        )
    if marks:
        raise RotatedError(
            "the body of the checkpoint is rotated: the source's MTP layer does not fit it",
            where=str(path),
            expected="a body that takes and gives the source's hidden states",
            found=listing(marks),
            hint=f"take a checkpoint made without rotation (QuaRot), or make one: {request.anew}",
        )


def _rotation_keys(value: Any) -> Iterator[str]:
    """Keys at any depth that say that a rotation was done, an empty or false one left out."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if isinstance(value, dict):
        for key, inner in value.items():
            if inner and any(mark in key.lower() for mark in _ROTATED):
                yield key
    for inner in parts:
        if isinstance(inner, (dict, list)):
            yield from _rotation_keys(inner)
