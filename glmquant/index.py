"""``model.safetensors.index.json``: which shard holds which tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from glmquant.errors import IndexFileError
from glmquant.jsontext import dump_object, parse_object

INDEX_FILE: Final = "model.safetensors.index.json"
"""The only index name that vLLM reads (vLLM 0.11-0.30 ``weight_utils.py``)."""

INDEX_SUFFIX: Final = ".safetensors.index.json"
"""How indexes end, whatever tool wrote them."""

_DIGITS: Final = re.compile(r"(\d+)")


def parse_index(data: bytes, file: str = INDEX_FILE) -> dict[str, str]:
    """The weight map of an index.

    Args:
        data: The file's bytes.
        file: Its name, for the errors.

    Returns:
        Tensor name → shard name.

    Raises:
        JsonError: Not a JSON object.
        IndexFileError: No weight map, or a shard that is not a plain file name.
    """
    weight_map = parse_object(data, file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise IndexFileError(
            "the index has no weight map",
            where=f"{file}: weight_map",
            expected="tensor names and their shards",
            found=type(weight_map).__name__ if not weight_map else repr(weight_map)[:80],
            hint="fetch that file again",
        )
    listed = weight_map.values()
    # By name where each is a text; an object or a list cannot be in a set.
    are_names = all(map(is_shard_name, set(listed) if all(map(_is_text, listed)) else listed))
    for name, shard in () if are_names else weight_map.items():
        if not is_shard_name(shard):
            raise IndexFileError(
                "the index names a shard that is not a file of this folder",
                where=f"{file}: {name}",
                expected="a plain name that ends in .safetensors",
                found=repr(shard)[:120],
                hint="fetch that file again",
            )
    return weight_map


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def is_shard_name(name: object) -> bool:
    """Whether ``name`` is a plain ``*.safetensors`` file name: no folder, nothing hidden."""
    return (
        isinstance(name, str)
        and name.endswith(".safetensors")
        and not name.startswith(".")
        and name.isprintable()
        and not set("/\\") & set(name)
    )


def natural_key(name: str) -> list[int | str]:
    """The key by which ``shard-10`` comes after ``shard-9`` (vLLM 0.18 ``weight_utils.py``)."""
    parts = _DIGITS.split(name)
    return [int(part) if number % 2 else part for number, part in enumerate(parts)]


def build_index(weight_map: Mapping[str, str], total_nbytes: int) -> bytes:
    """The bytes of an index, names sorted.

    Args:
        weight_map: Tensor name → shard name.
        total_nbytes: Bytes of tensor data, headers not counted.

    Returns:
        UTF-8 JSON.
    """
    return dump_object(
        {
            "metadata": {"total_size": total_nbytes},
            "weight_map": {name: weight_map[name] for name in sorted(weight_map)},
        }
    )
