"""What the tensors alone say of a model's sizes, and where config.json says otherwise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from glmquant.glm4_moe import Glm4MoeConfig
from glmquant.tensor_names import layer_of
from glmquant.tensors import TensorRef

_MTP_ONLY: Final = frozenset(
    {
        "eh_proj.weight",
        "enorm.weight",
        "hnorm.weight",
        "shared_head.norm.weight",
        "shared_head.head.weight",
        "embed_tokens.weight",
    }
)

_SIZES: Final[dict[str, tuple[tuple[str, int], ...]]] = {
    "hidden_size": (("input_layernorm.weight", 0), ("post_attention_layernorm.weight", 0)),
    "q rows": (("self_attn.q_proj.weight", 0), ("self_attn.o_proj.weight", 1)),
    "kv rows": (("self_attn.k_proj.weight", 0), ("self_attn.v_proj.weight", 0)),
    "head_dim": (("self_attn.q_norm.weight", 0), ("self_attn.k_norm.weight", 0)),
    "intermediate_size": (("mlp.gate_proj.weight", 0), ("mlp.down_proj.weight", 1)),
    "moe_intermediate_size": (
        ("mlp.experts.0.gate_proj.weight", 0),
        ("mlp.experts.0.down_proj.weight", 1),
    ),
    "n_routed_experts": (("mlp.gate.weight", 0),),
    "shared rows": (
        ("mlp.shared_experts.gate_proj.weight", 0),
        ("mlp.shared_experts.down_proj.weight", 1),
    ),
}
"""What a size is called → tensors of a layer, and the axis that shows it."""

_GLOBAL_SIZES: Final[dict[str, tuple[tuple[str, int], ...]]] = {
    "hidden_size": (("model.embed_tokens.weight", 1), ("model.norm.weight", 0)),
    "vocab_size": (("model.embed_tokens.weight", 0), ("lm_head.weight", 0)),
}


class Contradiction(NamedTuple):
    """A key of config.json that the tensors speak against.

    Attributes:
        key: The key.
        said: What config.json says.
        found: What the tensors say.
        tensors: Those that are missing for it, where some are.
    """

    key: str
    said: str
    found: str
    tensors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Census:
    """What there is, by layer.

    Attributes:
        layers: Layer → the names of its tensors without ``model.layers.N.``.
        described: Names that the description has.
        sizes: What a size is called → how many tensors show which.
        globals: Tensors outside the layers.
    """

    layers: dict[int, set[str]]
    described: Collection[str]
    sizes: dict[str, Counter[int]] = field(default_factory=dict)
    globals: frozenset[str] = frozenset()

    def size(self, name: str, said: int) -> int:
        """What most tensors show, or ``said`` where as many agree with it."""
        votes = self.sizes.get(name)
        if not votes:
            return said
        size, count = votes.most_common(1)[0]
        return size if count > votes[said] and 2 * count > votes.total() else said

    def having(self, name: str, layers: Iterable[int]) -> list[int]:
        """Those of the layers that have a tensor of this name."""
        return [layer for layer in layers if name in self.layers[layer]]

    @property
    def mtp(self) -> list[int]:
        """Layers with a tensor that only MTP layers have."""
        return [layer for layer, names in self.layers.items() if not _MTP_ONLY.isdisjoint(names)]


def take_census(
    tensors: Mapping[str, TensorRef], elsewhere: Iterable[str], types: Collection[str]
) -> Census:
    """Count what there is.

    Args:
        tensors: What can be read.
        elsewhere: Names in files that cannot.
        types: Names that the description has.

    Returns:
        The census.
    """
    numbers: dict[str, int | None] = {}
    layers: dict[int, set[str]] = {}
    others = []

    for names in (tensors, elsewhere):
        for name in names:
            if not name.startswith("model.layers."):
                others.append(name)
                continue
            number, _, rest = name[13:].partition(".")
            if number not in numbers:
                numbers[number] = layer_of(f"model.layers.{number}.")
            if (layer := numbers[number]) is not None:
                layers.setdefault(layer, set()).add(rest)
    layers = dict(sorted(layers.items()))
    census = Census(
        layers=layers,
        described=types,
        globals=frozenset(others),
    )
    for size, shown in _GLOBAL_SIZES.items():
        _count(census, size, shown, "", tensors)
    mtp = set(census.mtp)
    for layer in layers:
        if layer not in mtp or len(layers) == len(mtp):
            for size, shown in _SIZES.items():
                _count(census, size, shown, f"model.layers.{layer}.", tensors)
    return census


def _count(
    census: Census,
    size: str,
    shown: Iterable[tuple[str, int]],
    prefix: str,
    tensors: Mapping[str, TensorRef],
) -> None:
    for name, axis in shown:
        ref = tensors.get(prefix + name)
        if ref is not None and axis < len(ref.shape) and ref.shape[axis]:
            census.sizes.setdefault(size, Counter())[ref.shape[axis]] += 1


def correct(
    config: Glm4MoeConfig, census: Census
) -> tuple[Glm4MoeConfig, tuple[Contradiction, ...]]:
    """The configuration that the tensors speak for.

    Only what they say with one voice: a single tensor that is missing, or of another shape, leaves
    the key as it is, and is found for itself.

    Args:
        config: What config.json says.
        census: What there is.

    Returns:
        The configuration, the same where nothing contradicts it, and each contradiction.
    """
    update: dict[str, Any] = {}
    contradictions: list[Contradiction] = []
    for key, value, found in (*_layer_counts(config, census), *_sizes(config, census)):
        said = getattr(config, key)
        if value != said:
            update[key] = value
            contradictions.append(Contradiction(key, str(said), found))
    corrected = config.model_copy(update=update)
    return corrected, tuple(contradictions)


def _row(layers: list[int]) -> str:
    if not layers:
        return "none"
    return str(layers[0]) if len(layers) == 1 else f"{layers[0]} to {layers[-1]}"


def body_count(config: Glm4MoeConfig, census: Census) -> int:
    """How many layers come before the MTP layers, by the tensors."""
    said = config.num_hidden_layers
    layers, mtp = list(census.layers), census.mtp
    body = [layer for layer in layers if layer not in mtp]
    if not layers or said in mtp or (body and body[-1] + 1 == said):
        return said
    if mtp:
        return mtp[0] if not body or body[-1] < mtp[0] else body[-1] + 1
    end = body[-1] + 1
    if end == said + (config.num_nextn_predict_layers or 0):
        return said  # an MTP layer that lacks all that is its own
    if end < said and any(end <= (layer_of(name) or 0) < said for name in census.described):
        return said  # the description knows the layers that are missing
    if end > said and all("input_layernorm.weight" not in census.layers[n] for n in body[-1:]):
        return said  # a stray tensor, no layer
    return end


def _layer_counts(config: Glm4MoeConfig, census: Census) -> Iterator[tuple[str, int | bool, str]]:
    count = body_count(config, census)
    body = [layer for layer in census.layers if layer < count]
    found = f"layers {_row(body)}" + (f", MTP layer {_row(census.mtp)}" if census.mtp else "")
    yield "num_hidden_layers", count, found
    dense = census.having("mlp.gate_proj.weight", body)
    sparse = census.having("mlp.experts.0.gate_proj.weight", body)
    if body and sorted([*dense, *sparse]) == body and dense == body[: len(dense)]:
        border = dense[-1] + 1 if dense else 0
        if border in sparse or not sparse:  # else the layer at the border is missing
            found = f"dense layers {_row(dense)}, layers with experts {_row(sparse)}"
            yield "first_k_dense_replace", border, found
    for key, name in (
        ("use_qk_norm", "self_attn.q_norm.weight"),
        ("attention_bias", "self_attn.q_proj.bias"),
    ):
        having = census.having(name, body)
        if body and len(having) in (0, len(body)):
            is_there = bool(having)
            yield key, is_there, f"{'every' if is_there else 'no'} layer has {name}"
    if "lm_head.weight" in census.globals:
        yield "tie_word_embeddings", False, "lm_head.weight"


def _sizes(config: Glm4MoeConfig, census: Census) -> Iterator[tuple[str, int, str]]:
    for key in ("hidden_size", "vocab_size", "intermediate_size"):
        size = census.size(key, getattr(config, key))
        yield key, size, f"tensors of that size: {size}"
    moe = census.size("moe_intermediate_size", config.moe_intermediate_size)
    yield "moe_intermediate_size", moe, f"experts of {moe}"
    yield from _head_sizes(config, census)
    experts = census.size("n_routed_experts", config.n_routed_experts)
    yield "n_routed_experts", experts, f"routers of {experts} rows"
    shared = census.size("shared rows", config.n_shared_experts * moe)
    sparse = census.having("mlp.experts.0.gate_proj.weight", census.layers)
    if "shared rows" not in census.sizes and config.n_shared_experts and sparse:
        names = ("mlp.shared_experts.up_proj.weight", "mlp.shared_experts.down_proj.weight")
        if not any(census.having(name, sparse) for name in names):
            yield "n_shared_experts", 0, "no shared expert"
    elif moe and shared % moe == 0:
        yield "n_shared_experts", shared // moe, f"shared experts of {shared} rows"


def _head_sizes(config: Glm4MoeConfig, census: Census) -> Iterator[tuple[str, int, str]]:
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    query = census.size("q rows", heads * config.head_dim)
    key_value = census.size("kv rows", kv_heads * config.head_dim)
    dim = census.size("head_dim", config.head_dim)
    if query % heads == 0 and query // heads * kv_heads == key_value:
        dim = query // heads  # both are off by one factor
    yield "head_dim", dim, f"heads of {dim}"
    if dim and query % dim == 0:
        yield "num_attention_heads", query // dim, f"{query} rows of q"
    if dim and key_value % dim == 0:
        yield "num_key_value_heads", key_value // dim, f"{key_value} rows of k and v"
