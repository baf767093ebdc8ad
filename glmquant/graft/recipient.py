"""The quantized checkpoint that lacks something: what an engine loads of it, and as what."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from glmquant.description import DESCRIPTION_FILE, DESCRIPTION_PREFIX, embedded_config
from glmquant.graft.admission import refuse_rotated, require_format, require_readable
from glmquant.graft.request import Request
from glmquant.identify import Identity, identify
from glmquant.index import INDEX_FILE, INDEX_SUFFIX
from glmquant.manifest import MANIFEST_FILE
from glmquant.reconcile import Shards, require_shard_names, require_single_copies
from glmquant.source import FileStamp, FolderSource, file_stamp
from glmquant.storage import reading
from glmquant.survey import Survey, survey
from glmquant.tensors import TensorRef


class Embedding(Enum):
    """What ``quantization_config`` of config.json is."""

    ABSENT = "absent"
    WHOLE = "whole"
    PARTIAL = "partial"


@dataclass(frozen=True, slots=True)
class Recipient:
    """A ModelSlim checkpoint.

    Attributes:
        source: Its folder, links resolved.
        identity: Format and tool.
        files: Name → length of each file at its top.
        config: config.json.
        description: The description that an engine goes by.
        embedding: What ``quantization_config`` is.
        loaded: The shards that an engine loads, with all that is in them.
        unlisted: Other ``*.safetensors``, which it does not: an index does not name them.
        weight_map: Of the index that an engine reads; None where it reads none.
        renamed: Indexes and descriptions under names that an engine does not read.
        manifest: What our own outputs have.
        modes: Name → permission bits of each file at its top, those of the file behind a link.
        links: The names among them that are links.
        stamps: Length and times of all shards.
    """

    source: FolderSource
    identity: Identity
    files: dict[str, int]
    config: dict[str, Any]
    description: dict[str, Any]
    embedding: Embedding
    loaded: Shards
    unlisted: Shards
    weight_map: dict[str, str] | None
    renamed: tuple[str, ...]
    manifest: dict[str, Any] | None
    modes: dict[str, int]
    links: frozenset[str]
    stamps: dict[str, FileStamp]

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.source.path

    @property
    def name(self) -> str:
        """For people."""
        return self.path.name

    def tensors(self) -> dict[str, TensorRef]:
        """What an engine loads, by name."""
        return {ref.name: ref for refs in self.loaded.values() for ref in refs}

    def read(self, ref: TensorRef, begin: int, nbytes: int) -> bytes:
        """A range of a tensor's bytes.

        Raises:
            StorageError: It cannot be read.
        """
        return self.source.read(ref.file, ref.offset + begin, nbytes)

    def data(self, name: str) -> bytes | None:
        """The bytes of a small file, None where there is none.

        Raises:
            StorageError: It cannot be read.
        """
        if name not in self.files:
            return None
        try:
            return self.source.read(name, 0, self.files[name])
        finally:
            self.source.release(name)


def open_recipient(path: Path, request: Request, ours: Collection[str] = ()) -> Recipient:
    """Read headers and JSON of a quantized checkpoint, and refuse what cannot be grafted into.

    Args:
        path: Its folder, links resolved.
        request: What was asked, for the hints.
        ours: Files that an unfinished graft has put there: they do not count.

    Returns:
        The recipient.

    Raises:
        CheckpointError: No ModelSlim checkpoint of GLM-4.x, or a broken one.
        RotatedError: Its body is rotated.
        TargetError: A run of ``w8a8`` there did not end.
        StorageError: It cannot be read.
    """
    source = FolderSource(path)
    found = survey(source)
    identity = identify(found)
    description, embedding = _description(found)
    require_format(found, identity, description, request)
    require_readable(found, ours)
    config = found.config
    refuse_rotated(found, description, request)
    shards = {name: refs for name, refs in found.shards.items() if name not in ours}
    loaded = {name: refs for name, refs in found.engine_shards.items() if name in shards}
    require_shard_names(loaded)
    require_single_copies(loaded)
    modes, links = _modes(path, ours)
    return Recipient(
        source=source,
        identity=identity,
        files=found.files,
        config=config,
        description=description,
        embedding=embedding,
        loaded=loaded,
        unlisted={name: refs for name, refs in shards.items() if name not in loaded},
        weight_map=found.weight_maps.get(INDEX_FILE),
        renamed=tuple(_renamed(found)),
        manifest=found.objects.get(MANIFEST_FILE),
        modes=modes,
        links=links,
        stamps={name: file_stamp(path / name) for name in shards},
    )


def _description(found: Survey) -> tuple[dict[str, Any], Embedding]:
    embedded = found.config.get("quantization_config")
    if not isinstance(embedded, dict):
        embedded = {} if "quantization_config" in found.config else None
    held = dict(embedded or {})
    held.pop("quant_method", None)
    if found.description is None:
        return held, Embedding.WHOLE
    description = found.description[1]
    if embedded is None:
        return description, Embedding.ABSENT
    is_whole = embedded in (description, embedded_config(description))
    return description, Embedding.WHOLE if is_whole else Embedding.PARTIAL


def _renamed(found: Survey) -> Iterator[str]:
    for name in found.files:
        is_index = name.endswith(INDEX_SUFFIX) and name != INDEX_FILE
        is_description = name.startswith(DESCRIPTION_PREFIX) and name.endswith(".json")
        if is_index or (is_description and name != DESCRIPTION_FILE):
            yield name


def _modes(path: Path, ours: Collection[str]) -> tuple[dict[str, int], frozenset[str]]:
    """Permissions of the files at the top, and which of them are links."""
    modes, links = {}, set()
    with reading(path):
        for entry in sorted(os.scandir(path), key=lambda each: each.name):
            if not entry.name.startswith(".") and entry.name not in ours and entry.is_file():
                modes[entry.name] = stat.S_IMODE(entry.stat().st_mode)
                if entry.is_symlink():
                    links.add(entry.name)
    return modes, frozenset(links)
