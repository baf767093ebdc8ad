"""A small copy of a checkpoint, for what does not fit into memory: its names, types and layers.

It is made of headers, config.json and the description; no weight is read, all its values are
zeros. Widths are small, and of the experts of a layer the first few are there. A tensor of a right
shape has a right one in the copy, a wrong shape is a wrong one still.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from glmquant.glm4_moe import CONFIG_FILE, Glm4MoeConfig, expected_tensors
from glmquant.header import build_header
from glmquant.index import INDEX_SUFFIX, is_shard_name
from glmquant.manifest import MANIFEST_FILE
from glmquant.storage import reading, writing
from glmquant.survey import is_read_whole
from glmquant.tensors import TensorRef, tensor_nbytes
from glmquant.verify.engines.reading import read_laxly
from glmquant.verify.files.linears import part_shapes
from glmquant.verify.subject import LINEAR_SUFFIXES, Part, Subject, begins_with_mark

EXPERTS: Final = 4
"""So many are left of a layer: an engine looks up expert 0 alone, and two ranks take two each."""

WIDTHS: Final = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 48,
    "vocab_size": 256,
    "head_dim": 16,
    "n_routed_experts": EXPERTS,
}
"""Each of another product, so that no transposed shape is right by accident. What does not divide
by two in the checkpoint does not in the copy: see ``_less``."""

KEY_VALUE_HEADS: Final = 2
QUERIES: Final = 4
"""Heads of queries for one of keys and values, at most."""

_EXPERT: Final = re.compile(r"\.mlp\.experts\.(\d+)\.")


def reduction_text(subject: Subject) -> str:
    """What is reduced in a copy, in words.

    Args:
        subject: The checkpoint; ``can_be_reduced``.
    """
    there = subject.config.n_routed_experts if subject.config else 0
    left = _less(EXPERTS, there)
    return (
        "the checkpoint does not fit into memory; loaded was a copy of small widths, made from its "
        "headers, config.json and description: the same names, types and layers, "
        f"{left} of {there} experts of a layer; what is wrong in the others alone is for the "
        "checks of the files"
    )


def can_be_reduced(subject: Subject) -> bool:
    """Whether headers and config.json are there to make a copy from.

    Args:
        subject: The checkpoint.
    """
    return subject.config is not None and not subject.found.broken and bool(subject.tensors)


def reduce_checkpoint(subject: Subject, folder: Path) -> None:
    """Write a small copy into an empty folder.

    Args:
        subject: The checkpoint; ``can_be_reduced``.
        folder: Where; it exists.

    Raises:
        StorageError: It cannot be written; DiskSpaceError where the disk is full.
    """
    config = subject.config
    assert config is not None  # noqa: S101 - can_be_reduced
    changes = _changes(config)
    experts = changes["n_routed_experts"]
    shapes = _Shapes(config, config.model_copy(update=changes))
    for file, refs in subject.found.shards.items():
        kept = [ref for ref in refs if _is_kept(ref.name, experts)]
        _write_shard(folder / file, [(ref.name, ref.dtype, shapes.of(ref)) for ref in kept])
    for name in subject.found.files.keys() - {CONFIG_FILE, MANIFEST_FILE}:
        if is_read_whole(name):
            _copy_json(subject, name, folder / name, experts)
    _imitate_odd_weights(subject, folder)
    told = dict(subject.found.config)
    told |= {key: value for key, value in changes.items() if key in told}
    chosen = told.get("num_experts_per_tok")
    if isinstance(chosen, int) and chosen > experts:
        told["num_experts_per_tok"] = experts
    embedded = told.get("quantization_config")
    if isinstance(embedded, dict):
        told["quantization_config"] = _thinned(embedded, experts)
    marked = begins_with_mark(subject, CONFIG_FILE)
    _write_json(folder / CONFIG_FILE, told, "utf-8-sig" if marked else "utf-8")


def _changes(config: Glm4MoeConfig) -> dict[str, int]:
    """The numbers of config.json that are others in the copy."""
    changes = {key: _less(width, getattr(config, key)) for key, width in WIDTHS.items()}
    heads, keys = config.num_attention_heads, config.num_key_value_heads
    changes["num_key_value_heads"] = _less(KEY_VALUE_HEADS, keys)
    if heads % keys:  # no model of ours, and no small one either
        changes["num_attention_heads"] = _less(KEY_VALUE_HEADS * QUERIES, heads)
    else:
        queries = heads // keys
        queries = min(queries, QUERIES - queries % 2)
        changes["num_attention_heads"] = changes["num_key_value_heads"] * queries
    return changes


def _less(width: int, there: int) -> int:
    """A small width in place of a large one, odd where that is: two ranks share it or do not."""
    return min(there, width + there % 2)


class _Shapes:
    """The small shape of each tensor."""

    def __init__(self, config: Glm4MoeConfig, small: Glm4MoeConfig) -> None:
        count = config.num_nextn_predict_layers or 0
        # One more layer, for MTP tensors that config.json does not announce.
        self._wide = expected_tensors(config, count + 1)
        self._small = expected_tensors(small, count + 1)
        self._widths = {
            wide: low
            for name, tensor in self._small.items()
            for wide, low in zip(self._wide[name].shape, tensor.shape, strict=True)
        }

    def of(self, ref: TensorRef) -> tuple[int, ...]:
        linear, suffix = Part.of(ref.name)
        name = f"{linear}.weight" if suffix in LINEAR_SUFFIXES and suffix != "bias" else ref.name
        if suffix == "bias" and ref.name not in self._wide:
            name = f"{linear}.weight"
        wide, small = self._wide.get(name), self._small.get(name)
        if wide is None or small is None:  # nobody has a place for it
            return tuple(self._widths.get(count, min(count, 8)) for count in ref.shape)
        right, low = wide.shape, small.shape
        if name != ref.name:
            right = part_shapes(right).get(suffix, right)
            low = part_shapes(low).get(suffix, low)
        if ref.shape == right:
            return low
        guessed = tuple(self._widths.get(count, min(count, 8)) for count in ref.shape)
        return guessed if guessed != low else (*guessed[:-1], guessed[-1] + 2)


def _is_kept(name: str, experts: int) -> bool:
    found = _EXPERT.search(name)
    return found is None or int(found[1]) < experts


def _copy_json(subject: Subject, name: str, path: Path, experts: int) -> None:
    """A JSON file without the experts that are not there: as the engine reads it, not as we do.

    What no reader of JSON takes is copied as it is.
    """
    content = read_laxly(subject, name)
    if content is None:
        with reading(subject.path / name), writing(path):
            shutil.copyfile(subject.path / name, path)
        return
    weights = content.get("weight_map")
    if name.endswith(INDEX_SUFFIX) and isinstance(weights, dict):
        content["weight_map"] = _thinned(weights, experts)
    _write_json(path, _thinned(content, experts))


def _imitate_odd_weights(subject: Subject, folder: Path) -> None:
    """What has the name of weights and is no file is the same in the copy, without its contents."""
    with reading(subject.path):
        odd = [path for path in subject.path.iterdir() if is_shard_name(path.name)]
    for path in odd:
        with writing(folder / path.name):
            if path.is_dir():
                (folder / path.name).mkdir()
            elif path.is_symlink() and not path.exists():
                (folder / path.name).symlink_to(folder / "nothing")


def _thinned(content: Mapping[str, Any], experts: int) -> dict[str, Any]:
    """A description without the experts that are not there."""
    return {name: value for name, value in content.items() if _is_kept(name, experts)}


def _write_shard(path: Path, tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> None:
    entries = list(tensors)
    header, _ = build_header(entries)
    nbytes = len(header) + sum(tensor_nbytes(dtype, shape) for _, dtype, shape in entries)
    with writing(path), path.open("wb") as file:
        file.write(header)
        # Zeros that have their room: a full disk is told of here, not by a signal to a loader.
        os.posix_fallocate(file.fileno(), 0, nbytes)


def _write_json(path: Path, content: Mapping[str, Any], encoding: str = "utf-8") -> None:
    with writing(path):
        path.write_text(json.dumps(content), encoding=encoding)
