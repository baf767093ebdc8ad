"""A BF16 checkpoint by its headers and JSON alone, checked against itself.

Nothing here looks at a weight. What is wrong with names, shapes, dtypes, files or the index is
found here, before a byte is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from glmquant.description import DESCRIPTION_PREFIX
from glmquant.errors import (
    AlreadyQuantizedError,
    ArchitectureError,
    CheckpointError,
    GlmquantError,
    IndexFileError,
    PartialError,
    TensorSetError,
)
from glmquant.fetched import JOURNAL_FILE, MARKER_FILE, Marker, parse_marker
from glmquant.glm4_moe import (
    CONFIG_FILE,
    ExpectedTensor,
    Glm4MoeConfig,
    Role,
    expected_tensors,
    parse_config,
)
from glmquant.header import read_header
from glmquant.index import INDEX_FILE, is_shard_name, parse_index
from glmquant.jsontext import MAX_JSON_NBYTES
from glmquant.reconcile import (
    Shards,
    count_mtp_layers,
    listing,
    note_dtypes,
    reconcile_index,
    reconcile_tensors,
    require_float_dtypes,
    require_shard_names,
    require_shards,
    require_single_copies,
)
from glmquant.sidefiles import UNFINISHED
from glmquant.source import FileStamp, FolderSource


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A source that holds together.

    Attributes:
        source: Where the bytes are.
        config: The keys of config.json that we use.
        config_data: The bytes of config.json.
        shards: Shard name → its tensors in order of their bytes, shards sorted by name.
        stamps: Shard name → length and times just before its header was read.
        expected: Tensor name → role and shape, in the order of the model, only tensors present.
        mtp_count: MTP layers that are there.
        other_files: Every other file, by name, with its length.
        notes: What a user should know and that is no error, a sentence each.
    """

    source: FolderSource
    config: Glm4MoeConfig
    config_data: bytes
    shards: Shards
    stamps: dict[str, FileStamp]
    expected: dict[str, ExpectedTensor]
    mtp_count: int
    other_files: dict[str, int]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The folder's name, for people."""
        return self.source.path.absolute().name


def open_checkpoint(source: FolderSource, *, takes_part: bool = False) -> Checkpoint:
    """Read and check all that a plan needs: config.json, the index and every header.

    Args:
        source: The folder.
        takes_part: A folder that holds a part of a model, and says so, is taken: ``expected`` then
            lists all tensors that config.json calls for, there or not.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: One of its kinds, for whatever does not hold together.
    """
    files = source.list_files()
    is_part = _is_part(source, files, takes_part)
    _refuse_other_formats(source, files)
    config_data = read_json_file(source, files, CONFIG_FILE)
    with _naming_the_format(source):
        config = parse_config(config_data)
    shard_names = sorted(name for name in files if is_shard_name(name))
    require_shard_names(shard_names)
    notes: list[str] = []
    weight_map = None
    if INDEX_FILE in files:
        weight_map = parse_index(read_json_file(source, files, INDEX_FILE))
        require_shards(weight_map, files)
    if not shard_names:
        raise IndexFileError(
            "the folder holds no weights",
            where=str(source.path),
            expected="*.safetensors beside config.json",
            found=_held(source) or "none",
            hint="fetch the BF16 safetensors of this model",
        )
    shards = {}
    stamps = {}
    for name in shard_names:
        stamps[name] = source.stamp(name)
        header = read_header(name, stamps[name].nbytes, partial(source.read, name))
        source.release(name)
        shards[name] = header.tensors
    with _naming_the_format(source):
        require_float_dtypes(shards)
    require_single_copies(shards)
    notes += reconcile_index(config, shards, weight_map)
    mtp_count = count_mtp_layers(config, shards)
    expected = _expected(config, shards, mtp_count, is_part)
    notes += note_dtypes(shards, expected)
    return Checkpoint(
        source=source,
        config=config,
        config_data=config_data,
        shards=shards,
        stamps=stamps,
        expected=expected,
        mtp_count=mtp_count,
        other_files={name: size for name, size in files.items() if name not in shards},
        notes=tuple(notes),
    )


def _is_part(source: FolderSource, files: dict[str, int], takes_part: bool) -> bool:
    """Whether the folder holds a part of a model; refused where that is not taken."""
    if (source.path / JOURNAL_FILE).is_file():
        raise PartialError(
            "a fetch into this folder has not ended",
            where=str(source.path / JOURNAL_FILE),
            expected="a fetch that is done",
            found="the journal of one that runs, or was interrupted",
            hint="run that glmquant fetch again: it goes on where it stopped",
        )
    if MARKER_FILE not in files:
        return False
    marker = parse_marker(read_json_file(source, files, MARKER_FILE))
    if not takes_part or not marker.tensors:
        raise PartialError(
            "the folder holds only a part of the model",
            where=str(source.path / MARKER_FILE),
            expected="all of the model's weights",
            found=_part_text(marker),
            hint=f"fetch the rest: {marker.complete_with}",
        )
    return True


def _part_text(marker: Marker) -> str:
    count = f"{marker.tensors} of {marker.of_tensors} tensors" if marker.of_tensors else "no weight"
    return f"{count} of {marker.source}, fetched with {marker.selection}"


def _expected(
    config: Glm4MoeConfig, shards: Shards, mtp_count: int, is_part: bool
) -> dict[str, ExpectedTensor]:
    """What config.json calls for, of a whole model held against what is there."""
    if not is_part:
        return reconcile_tensors(config, shards, mtp_count)
    expected = expected_tensors(config, mtp_count)
    there = reconcile_tensors(config, shards, mtp_count, is_part=True)
    lacking = [
        name
        for name, tensor in expected.items()
        if tensor.role in (Role.MTP, Role.ROUTER_BIAS) and tensor.is_required and name not in there
    ]
    if lacking:
        raise TensorSetError(
            "the part of the model that was fetched lacks what grafting needs",
            where=listing(lacking),
            expected="all of the MTP layer, and the router biases of all layers",
            found=f"{len(there)} tensors",
            hint="glmquant fetch MODEL --only mtp, into another folder",
        )
    return {
        name: tensor for name, tensor in expected.items() if tensor.is_required or name in there
    }


def read_json_file(source: FolderSource, files: dict[str, int], name: str) -> bytes:
    """The bytes of a JSON file of the source that has to be there.

    Args:
        source: The folder.
        files: Its files and their lengths.
        name: The file.

    Returns:
        Its bytes.

    Raises:
        CheckpointError: It is missing or too long to be what it says.
    """
    nbytes = files.get(name)
    if nbytes is None or nbytes > MAX_JSON_NBYTES:
        found, hint = f"{nbytes} bytes", "name the folder that holds config.json and the weights"
        if nbytes is None:
            held = _held(source)
            found = f"no such file; the folder holds {held}" if held else "no such file"
            hint = "take the BF16 weights of the same model" if held else hint
        raise CheckpointError(
            "this is not a checkpoint folder" if nbytes is None else "a JSON file is too long",
            where=str(source.path / name),
            expected=f"{name} of at most {MAX_JSON_NBYTES / 1e6:.0f} MB beside the weights",
            found=found,
            hint=hint,
        )
    data = source.read(name, 0, nbytes)
    source.release(name)
    return data


def _refuse_other_formats(source: FolderSource, files: dict[str, int]) -> None:
    descriptions = [name for name in files if name.startswith(DESCRIPTION_PREFIX)]
    if descriptions:
        raise AlreadyQuantizedError(
            "the source is already quantized",
            where=descriptions[0],
            expected="BF16 weights, without a description",
            found=_held(source) or "a ModelSlim checkpoint",
            hint="take the BF16 weights of the same model",
        )
    unfinished = [name for name in files if name.endswith(UNFINISHED)]
    if unfinished:
        raise CheckpointError(
            "a download of the source is unfinished",
            where=listing(unfinished),
            expected="whole files",
            found="the rest of a download",
            hint="let the download end, or remove that file if it is left over",
        )


@contextmanager
def _naming_the_format(source: FolderSource) -> Iterator[None]:
    """Add to a refusal what the folder holds; only then is it looked at once more."""
    try:
        yield
    except (AlreadyQuantizedError, ArchitectureError) as error:
        held = _held(source)
        if held:
            error.found = f"{held} ({error.found})" if error.found else held
        raise


def _held(source: FolderSource) -> str | None:
    """What a folder that is no BF16 source holds, in words; None where that cannot be told."""
    from glmquant.identify import identify  # for refusals alone: a plan is to begin at once
    from glmquant.markings import FLOAT_FORMATS, Format
    from glmquant.survey import survey

    try:
        identity = identify(survey(source))
    except GlmquantError:
        return None
    if identity.marking.format in (*FLOAT_FORMATS, Format.NO_WEIGHTS):
        return None
    return identity.text
