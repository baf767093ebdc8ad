"""The checkpoint to be judged: what an engine would load of a folder, and as what."""

from __future__ import annotations

from codecs import BOM_UTF8
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from glmquant.errors import GlmquantError
from glmquant.glm4_moe import CONFIG_FILE, Glm4MoeConfig, first_fault
from glmquant.identify import Identity, identify
from glmquant.index import INDEX_FILE, natural_key
from glmquant.inventory import find_mtp
from glmquant.source import FolderSource
from glmquant.survey import Survey, survey
from glmquant.tensors import TensorRef

LINEAR_SUFFIXES: Final = (
    "weight",
    "weight_scale",
    "weight_offset",
    "bias",
    "quant_bias",
    "input_scale",
    "input_offset",
    "deq_scale",
)
"""What the tensors of a linear are called, after its name and a dot."""


class Part(NamedTuple):
    """The name of a tensor, taken apart.

    Attributes:
        linear: The module: ``model.layers.0.self_attn.q_proj``.
        suffix: The rest: ``weight_scale``.
    """

    linear: str
    suffix: str

    @classmethod
    def of(cls, name: str) -> Part:
        """The two parts of a name."""
        linear, _, suffix = name.rpartition(".")
        return cls(linear, suffix)


@dataclass(frozen=True, slots=True)
class Subject:
    """A quantized checkpoint as an engine sees it, however damaged.

    Attributes:
        source: Its folder.
        found: All that could be read of it.
        identity: Model, format and tool.
        config: The keys of config.json that decide names and shapes; None where one is wrong.
        config_error: The first wrong key and why, where there is one.
        loaded: The files that an engine reads, in the order of 0.18 and later: natural.
        tensors: Name → tensor that an engine loads; the last copy wins.
        description: Name and content of the description that is believed, also where it stands in
            config.json alone; None without one.
        types: Its entries for tensors: name → type, of whatever Python type.
        mtp_layers: Layers after the last that have tensors in any readable file.
    """

    source: FolderSource
    found: Survey
    identity: Identity
    config: Glm4MoeConfig | None
    config_error: tuple[str, str] | None
    loaded: tuple[str, ...]
    tensors: dict[str, TensorRef]
    description: tuple[str, dict[str, Any]] | None
    types: dict[str, Any]
    mtp_layers: tuple[int, ...]

    @property
    def path(self) -> Path:
        """The folder."""
        return self.source.path

    @property
    def has_index(self) -> bool:
        """An engine goes by the index, not by the names of the files."""
        return INDEX_FILE in self.found.files


def begins_with_mark(subject: Subject, name: str) -> bool:
    """Whether a file begins with a byte order mark, which we pass over and an engine does not.

    Args:
        subject: The folder.
        name: A file of it; one that cannot be read begins with nothing.
    """
    if subject.found.files[name] < len(BOM_UTF8):
        return False
    try:
        return subject.source.read(name, 0, len(BOM_UTF8)) == BOM_UTF8
    except GlmquantError:
        return False  # told elsewhere
    finally:
        subject.source.release(name)


def open_subject(source: FolderSource) -> Subject:
    """Read what an engine would: headers and JSON alone.

    Args:
        source: The folder.

    Returns:
        The subject; what is wrong with it is for the checks to say.

    Raises:
        CheckpointError: Nothing in the folder tells of a model.
        StorageError: The folder cannot be read.
    """
    return subject_of(source, survey(source))


def subject_of(source: FolderSource, found: Survey) -> Subject:
    """The subject of what was read of a folder.

    Args:
        source: The folder.
        found: What was read of it.

    Raises:
        CheckpointError: Nothing in it tells of a model.
    """
    identity = identify(found)
    config, config_error = _read_config(found)
    shards = found.engine_shards
    loaded = tuple(sorted(shards, key=natural_key))
    tensors = {ref.name: ref for file in loaded for ref in shards[file]}
    description = found.description or found.embedded_description
    types = description[1] if description else {}
    return Subject(
        source=source,
        found=found,
        identity=identity,
        config=config,
        config_error=config_error,
        loaded=loaded,
        tensors=tensors,
        description=description,
        types={name: kind for name, kind in types.items() if "." in name and name != "version"},
        mtp_layers=find_mtp(found).layers,
    )


def _read_config(found: Survey) -> tuple[Glm4MoeConfig | None, tuple[str, str] | None]:
    try:
        return Glm4MoeConfig.model_validate(found.config), None
    except ValidationError as error:
        key, message = first_fault(error)
        return None, (f"{CONFIG_FILE}: {key}", message)
