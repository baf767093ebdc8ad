"""Which release of GLM-4.5, 4.5-Air, 4.6 and 4.7 the facts of a folder fit.

Facts: the vllm-ascend tutorial ``GLM4.x.md`` (182b75e) and the releases' config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_LARGE: Final = {
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "num_hidden_layers": 92,
    "first_k_dense_replace": 3,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "n_routed_experts": 160,
    "n_shared_experts": 1,
    "vocab_size": 151552,
}
_AIR: Final = _LARGE | {
    "hidden_size": 4096,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 46,
    "first_k_dense_replace": 1,
    "n_routed_experts": 128,
}


@dataclass(frozen=True, slots=True)
class Release:
    """What tells a release from the others.

    Attributes:
        name: Without ``GLM-``.
        size: Keys of config.json that decide the shapes.
        max_position_embeddings: The longest context.
        dtype_key: The key of config.json that holds the dtype.
        has_mtp_file: The MTP layer has a file of its own, not the last numbered shard.
    """

    name: str
    size: dict[str, int]
    max_position_embeddings: int
    dtype_key: str
    has_mtp_file: bool


RELEASES: Final = (
    Release("4.5", _LARGE, 131072, "torch_dtype", has_mtp_file=False),
    Release("4.5-Air", _AIR, 131072, "torch_dtype", has_mtp_file=False),
    Release("4.6", _LARGE, 202752, "torch_dtype", has_mtp_file=True),
    Release("4.7", _LARGE, 202752, "dtype", has_mtp_file=True),
)


def fitting_releases(
    config: Mapping[str, Any], *, is_as_released: bool, has_mtp_file: bool | None
) -> tuple[str, ...]:
    """The releases that the facts do not speak against.

    A fact that speaks against every release left tells nothing and is passed over: the folder then
    was changed by somebody.

    Args:
        config: The fields of config.json, of any types.
        is_as_released: The dtype key and the files are still the release's; tools that write
            config.json anew change the key.
        has_mtp_file: Whether the MTP layer has a file of its own; None where there is none.

    Returns:
        Names without ``GLM-``; none where the size is another.
    """
    left = [
        release
        for release in RELEASES
        if all(
            type(config.get(key)) is int and config[key] == value
            for key, value in release.size.items()
        )
    ]
    longest = config.get("max_position_embeddings")
    left = [r for r in left if r.max_position_embeddings == longest] or left
    if is_as_released:
        key = next((key for key in ("torch_dtype", "dtype") if config.get(key)), None)
        left = [r for r in left if r.dtype_key == key] or left
        left = [r for r in left if has_mtp_file in (None, r.has_mtp_file)] or left
    return tuple(release.name for release in left)
