"""A BF16 checkpoint by its headers and JSON alone, checked against itself.

Nothing here looks at a weight. What is wrong with names, shapes, dtypes, files or the index is
found here, before a byte is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

from glmquant.description import DESCRIPTION_PREFIX
from glmquant.errors import (
    AlreadyQuantizedError,
    CheckpointError,
    ConfigError,
    IndexFileError,
    TensorSetError,
)
from glmquant.glm4_moe import (
    CONFIG_FILE,
    ExpectedTensor,
    Glm4MoeConfig,
    contradicted_key,
    expected_tensors,
    layer_of,
    mtp_layers,
    parse_config,
)
from glmquant.header import read_header
from glmquant.index import INDEX_FILE, is_shard_name, parse_index
from glmquant.source import FolderSource
from glmquant.tensors import FLOAT_DTYPES, TensorRef

MAX_JSON_NBYTES: Final = 64_000_000
"""The index of GLM-4.6 is about 4 MB."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A source that holds together.

    Attributes:
        source: Where the bytes are.
        config: The keys of config.json that we use.
        config_data: The bytes of config.json.
        shards: Shard name → its tensors in order of their bytes, shards sorted by name.
        shard_nbytes: Shard name → length of the file.
        expected: Tensor name → role and shape, in the order of the model, only tensors present.
        mtp_count: MTP layers that are there.
        other_files: Every other file, by name, with its length.
        notes: What a user should know and that is no error, a sentence each.
    """

    source: FolderSource
    config: Glm4MoeConfig
    config_data: bytes
    shards: dict[str, tuple[TensorRef, ...]]
    shard_nbytes: dict[str, int]
    expected: dict[str, ExpectedTensor]
    mtp_count: int
    other_files: dict[str, int]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The folder's name, for people."""
        return self.source.path.resolve().name


def open_checkpoint(source: FolderSource) -> Checkpoint:
    """Read and check all that a plan needs: config.json, the index and every header.

    Args:
        source: The folder.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: One of its kinds, for whatever does not hold together.
    """
    files = source.list_files()
    _refuse_other_formats(files)
    config_data = read_json_file(source, files, CONFIG_FILE)
    config = parse_config(config_data)
    shard_names = sorted(name for name in files if is_shard_name(name))
    notes: list[str] = []
    weight_map = None
    if INDEX_FILE in files:
        weight_map = parse_index(read_json_file(source, files, INDEX_FILE))
        _require_shards(weight_map, files)
    if not shard_names:
        raise IndexFileError(
            "the folder holds no weights",
            where=str(source.path),
            expected="*.safetensors beside config.json",
            found="none",
            hint="fetch the weights of this model",
        )
    shards = {}
    for name in shard_names:
        header = read_header(name, files[name], partial(source.read, name))
        source.release(name)
        shards[name] = header.tensors
    _refuse_dtypes(shards)
    _require_single_copies(shards)
    notes += _reconcile_index(config, shards, weight_map)
    mtp_count = _count_mtp_layers(config, shards, notes)
    expected = _reconcile_tensors(config, shards, mtp_count)
    notes += _note_dtypes(shards, expected)
    return Checkpoint(
        source=source,
        config=config,
        config_data=config_data,
        shards=shards,
        shard_nbytes={name: files[name] for name in shard_names},
        expected=expected,
        mtp_count=mtp_count,
        other_files={name: size for name, size in files.items() if name not in shards},
        notes=tuple(notes),
    )


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
        raise CheckpointError(
            "this is not a checkpoint folder" if nbytes is None else "a JSON file is too long",
            where=str(source.path / name),
            expected=f"a file of at most {MAX_JSON_NBYTES} bytes",
            found="no such file" if nbytes is None else f"{nbytes} bytes",
            hint="name the folder that holds config.json and the weights",
        )
    data = source.read(name, 0, nbytes)
    source.release(name)
    return data


def _listing(names: Iterable[str], limit: int = 3) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _refuse_other_formats(files: dict[str, int]) -> None:
    descriptions = [name for name in files if name.startswith(DESCRIPTION_PREFIX)]
    if descriptions:
        raise AlreadyQuantizedError(
            "the source is already quantized",
            where=descriptions[0],
            expected="BF16 weights, without a description",
            found="a ModelSlim checkpoint",
            hint="take the BF16 weights of the same model",
        )
    unfinished = [name for name in files if name.endswith((".part", ".incomplete", ".aria2"))]
    if unfinished:
        raise CheckpointError(
            "a download of the source is unfinished",
            where=_listing(unfinished),
            expected="whole files",
            found="the rest of a download",
            hint="let the download end, or remove that file if it is left over",
        )


def _require_shards(weight_map: dict[str, str], files: dict[str, int]) -> None:
    missing = sorted(set(weight_map.values()) - files.keys())
    if missing:
        shards = len(set(weight_map.values()))
        raise IndexFileError(
            f"{len(missing)} of {shards} shards of the index "
            + ("is missing" if len(missing) == 1 else "are missing"),
            where=_listing(missing),
            expected=f"every shard that {INDEX_FILE} names",
            found="no such file",
            hint="fetch the missing shards",
        )
    ignored = [name for name in weight_map.values() if name.startswith("consolidated")]
    if ignored:
        raise IndexFileError(
            "a shard has a name that vLLM leaves out",
            where=ignored[0],
            expected="a name that does not begin with 'consolidated'",
            found=ignored[0],
            hint="rename the shard, in the index too",
        )


def _refuse_dtypes(shards: dict[str, tuple[TensorRef, ...]]) -> None:
    for tensors in shards.values():
        for ref in tensors:
            if ref.dtype not in FLOAT_DTYPES:
                raise AlreadyQuantizedError(
                    "the source is already quantized, or not a GLM-4.x release",
                    where=f"{ref.file}: {ref.name}",
                    expected="BF16",
                    found=ref.dtype,
                    hint="take the BF16 weights of the same model",
                )


def _require_single_copies(shards: dict[str, tuple[TensorRef, ...]]) -> None:
    home: dict[str, str] = {}
    for name, tensors in shards.items():
        for ref in tensors:
            if ref.name in home:
                raise IndexFileError(
                    "a tensor is there twice",
                    where=ref.name,
                    expected="one copy",
                    found=f"in {home[ref.name]} and in {name}",
                    hint="remove the shard that does not belong to this release",
                )
            home[ref.name] = name


def _reconcile_index(
    config: Glm4MoeConfig,
    shards: dict[str, tuple[TensorRef, ...]],
    weight_map: dict[str, str] | None,
) -> list[str]:
    """Index and headers name the same tensors, a separate MTP file excepted."""
    notes = []
    listed: set[str]
    if weight_map is not None:
        listed = set(weight_map.values())
    elif "model.safetensors" in shards or len(shards) == 1:
        listed = {"model.safetensors"} if "model.safetensors" in shards else set(shards)
    else:
        raise IndexFileError(
            "several shards and no index",
            where=INDEX_FILE,
            expected="an index, or model.safetensors alone",
            found=f"{len(shards)} shards: {_listing(shards)}",
            hint=f"fetch {INDEX_FILE}",
        )
    for name in shards.keys() - listed:
        layers = {layer_of(ref.name) for ref in shards[name]}
        is_mtp = bool(layers) and all(
            layer is not None and layer >= config.num_hidden_layers for layer in layers
        )
        if not is_mtp:
            raise IndexFileError(
                "a weight file is not in the index",
                where=name,
                expected="only files of the index, or one with nothing but the MTP layer",
                found=_listing(ref.name for ref in shards[name]) or "no tensor at all",
                hint="move the file out of the folder, or fetch the index that lists it",
            )
        notes.append(f"{name} is not in the source's index; it holds the MTP layer and is used")
    if weight_map is None:
        return notes
    claims: dict[str, set[str]] = {name: set() for name in listed}
    for tensor, shard in weight_map.items():
        claims[shard].add(tensor)
    for name, claimed in sorted(claims.items()):
        held = {ref.name for ref in shards[name]}
        if held != claimed:
            absent, extra = sorted(claimed - held), sorted(held - claimed)
            raise IndexFileError(
                "the index and a shard disagree",
                where=f"{INDEX_FILE}: {name}",
                expected="the same tensors in both",
                found="; ".join(
                    f"{text} {_listing(names)}"
                    for text, names in (("not in the shard:", absent), ("only there:", extra))
                    if names
                ),
                hint="fetch the index and that shard of the same revision",
            )
    return notes


def _count_mtp_layers(
    config: Glm4MoeConfig, shards: dict[str, tuple[TensorRef, ...]], notes: list[str]
) -> int:
    layers = {layer_of(ref.name) for tensors in shards.values() for ref in tensors}
    found = sorted(n for n in layers if n is not None and n >= config.num_hidden_layers)
    announced = config.num_nextn_predict_layers
    if found == list(mtp_layers(config, len(found))):
        if announced == len(found):
            return announced
        if announced is None:
            if found:
                notes.append("config.json does not say how many MTP layers there are; found 1")
            return len(found)
        if not found:
            notes.append(
                f"config.json announces {announced} MTP layer{'s' * (announced > 1)}, "
                "but the weights hold none"
            )
            return 0
    raise ConfigError(
        "config.json contradicts the tensors",
        where=f"{CONFIG_FILE}: num_hidden_layers, num_nextn_predict_layers",
        expected=f"layers 0 to {config.num_hidden_layers - 1} and {announced or 0} MTP after them",
        found=f"layers after the last: {_listing(map(str, found))}",
        hint="fetch config.json of the same release, or correct the two keys",
    )


def _reconcile_tensors(
    config: Glm4MoeConfig, shards: dict[str, tuple[TensorRef, ...]], mtp_count: int
) -> dict[str, ExpectedTensor]:
    expected = expected_tensors(config, mtp_count)
    present = set()
    for tensors in shards.values():
        for ref in tensors:
            tensor = expected.get(ref.name)
            if tensor is None:
                raise _unexpected(config, ref)
            if ref.shape != tensor.shape:
                raise ConfigError(
                    "config.json contradicts a tensor's shape",
                    where=f"{ref.file}: {ref.name}",
                    expected=f"{list(tensor.shape)} by config.json",
                    found=str(list(ref.shape)),
                    hint="fetch config.json and the shards of the same release",
                )
            if tensor.is_router_bias and ref.dtype != "F32":
                raise ConfigError(
                    "a router bias is not F32",
                    where=f"{ref.file}: {ref.name}",
                    expected="F32, as in the releases and in the engine",
                    found=ref.dtype,
                    hint="take the shard of the release; a cast has lost bits of the bias",
                )
            present.add(ref.name)
    missing = [name for name, t in expected.items() if t.is_required and name not in present]
    if missing:
        raise TensorSetError(
            f"{len(missing)} expected tensor{'s are' if len(missing) > 1 else ' is'} missing",
            where=_listing(missing),
            expected=f"{len(expected)} tensors by config.json",
            found=f"{len(present)} tensors",
            hint="fetch the shards and the index again, of one revision",
        )
    return {name: tensor for name, tensor in expected.items() if name in present}


def _unexpected(config: Glm4MoeConfig, ref: TensorRef) -> CheckpointError:
    key = contradicted_key(config, ref.name)
    if key is None:
        return TensorSetError(
            "a tensor has no rule",
            where=f"{ref.file}: {ref.name}",
            expected="a tensor of GLM-4 MoE",
            found=f"an unknown name, {ref.dtype} {list(ref.shape)}",
            hint="nothing is dropped in silence: remove the tensor, or report its release",
        )
    return ConfigError(
        "config.json contradicts the tensors",
        where=f"{ref.file}: {ref.name}",
        expected=f"no such tensor, since config.json says {key}",
        found=f"{ref.dtype} {list(ref.shape)}",
        hint="fetch config.json and the shards of the same release",
    )


def _note_dtypes(
    shards: dict[str, tuple[TensorRef, ...]], expected: dict[str, ExpectedTensor]
) -> list[str]:
    wide = [
        ref
        for tensors in shards.values()
        for ref in tensors
        if ref.dtype != "BF16" and not expected[ref.name].is_router_bias
    ]
    if not wide:
        return []
    return [
        f"{len(wide)} tensors are not BF16 in the source (first: {wide[0].name}, {wide[0].dtype}); "
        "those that stay float keep that dtype"
    ]
