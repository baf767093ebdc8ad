"""Hold index, headers and config.json of a checkpoint against each other."""

from __future__ import annotations

from collections.abc import Iterable

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
    expected_tensors,
    mtp_layers,
)
from glmquant.index import INDEX_FILE
from glmquant.tensor_names import contradicted_key, layer_of
from glmquant.tensors import FLOAT_DTYPES, TensorRef

Shards = dict[str, tuple[TensorRef, ...]]
"""Shard name → its tensors in order of their bytes."""


def listing(names: Iterable[str], limit: int = 3) -> str:
    """The first names and how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def require_shards(weight_map: dict[str, str], files: dict[str, int]) -> None:
    """Every shard of the index is in the folder.

    Raises:
        IndexFileError: One is not.
    """
    missing = sorted(set(weight_map.values()) - files.keys())
    if missing:
        shards = len(set(weight_map.values()))
        raise IndexFileError(
            f"{len(missing)} of {shards} shards of the index "
            + ("is missing" if len(missing) == 1 else "are missing"),
            where=listing(missing),
            expected=f"every shard that {INDEX_FILE} names",
            found="no such file",
            hint="fetch the missing shards",
        )


def require_shard_names(names: Iterable[str]) -> None:
    """Every weight file has a name that vLLM reads.

    Raises:
        IndexFileError: One begins with ``consolidated``.
    """
    ignored = [name for name in names if name.startswith("consolidated")]
    if ignored:
        raise IndexFileError(
            "a shard has a name that vLLM leaves out",
            where=ignored[0],
            expected="a name that does not begin with 'consolidated'",
            found=listing(ignored),
            hint="rename the shard, in the index too",
        )


def require_float_dtypes(shards: Shards) -> None:
    """Weights are floats, most of them BF16, as config.json has been found to say.

    Raises:
        AlreadyQuantizedError: A tensor is of another dtype.
        ConfigError: The larger part of the bytes is F32 or F16.
    """
    nbytes = dict.fromkeys(FLOAT_DTYPES, 0)
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
            nbytes[ref.dtype] += ref.nbytes
    most = max(nbytes, key=lambda dtype: nbytes[dtype])
    if most != "BF16":
        raise ConfigError(
            "config.json contradicts the tensors' dtype",
            where=f"{CONFIG_FILE}: torch_dtype or dtype",
            expected="mostly BF16 weights, since config.json says 'bfloat16'",
            found=f"mostly {most}",
            hint="take the BF16 release, or convert the weights to BF16 first",
        )


def require_single_copies(shards: Shards) -> None:
    """No tensor lies in two shards: the engine would take the last that it reads.

    Raises:
        IndexFileError: One does.
    """
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


def reconcile_index(
    config: Glm4MoeConfig, shards: Shards, weight_map: dict[str, str] | None
) -> list[str]:
    """Index and headers name the same tensors, a separate MTP file excepted.

    Args:
        config: The configuration.
        shards: What the headers say.
        weight_map: What the index says, or None where there is no index.

    Returns:
        A note for each separate MTP file.

    Raises:
        IndexFileError: They disagree.
    """
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
            found=f"{len(shards)} shards: {listing(shards)}",
            hint=f"fetch {INDEX_FILE}",
        )
    for name in sorted(shards.keys() - listed):
        layers = {layer_of(ref.name) for ref in shards[name]}
        is_mtp = bool(layers) and all(
            layer is not None and layer >= config.num_hidden_layers for layer in layers
        )
        if not is_mtp:
            raise IndexFileError(
                "a weight file is not in the index",
                where=name,
                expected="only files of the index, or one with nothing but the MTP layer",
                found=listing(ref.name for ref in shards[name]) or "no tensor at all",
                hint="move the file out of the folder, or fetch the index that lists it",
            )
        notes.append(f"{name} is not in the source's index, but holds just the MTP layer: taken")
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
                    f"{text} {listing(names)}"
                    for text, names in (("not in the shard:", absent), ("only there:", extra))
                    if names
                ),
                hint="fetch the index and that shard of the same revision",
            )
    return notes


def count_mtp_layers(config: Glm4MoeConfig, shards: Shards) -> int:
    """How many MTP layers the weights hold; they may hold none where config.json announces some.

    Raises:
        ConfigError: Layers after the last are not those that config.json announces.
    """
    layers = {layer_of(ref.name) for tensors in shards.values() for ref in tensors}
    found = sorted(n for n in layers if n is not None and n >= config.num_hidden_layers)
    announced = config.num_nextn_predict_layers
    is_row = found == list(mtp_layers(config, len(found)))
    if is_row and (not found or announced in (None, len(found))):
        return len(found)
    raise ConfigError(
        "config.json contradicts the tensors",
        where=f"{CONFIG_FILE}: num_hidden_layers, num_nextn_predict_layers",
        expected=f"layers 0 to {config.num_hidden_layers - 1} and {announced or 0} MTP after them",
        found=f"layers after the last: {listing(map(str, found))}",
        hint="fetch config.json of the same release, or correct the two keys",
    )


def reconcile_tensors(
    config: Glm4MoeConfig, shards: Shards, mtp_count: int, *, is_part: bool = False
) -> dict[str, ExpectedTensor]:
    """Every tensor that config.json calls for is there, and no other.

    Args:
        config: The configuration.
        shards: What the headers say.
        mtp_count: MTP layers that are there.
        is_part: Only a part of the model is meant to be there: tensors may be missing.

    Returns:
        Tensor name → role and shape, in the order of the model, only tensors that are there.

    Raises:
        ConfigError: A shape, a dtype or a tensor contradicts a key.
        TensorSetError: A tensor is missing, or unknown.
    """
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
    if missing and not is_part:
        raise TensorSetError(
            f"{len(missing)} expected tensor{'s are' if len(missing) > 1 else ' is'} missing",
            where=listing(missing),
            expected="every tensor that config.json calls for",
            found=f"{len(present)} others",
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


def note_dtypes(shards: Shards, expected: dict[str, ExpectedTensor]) -> list[str]:
    """A note where tensors other than router biases are not BF16."""
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
