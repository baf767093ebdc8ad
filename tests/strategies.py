"""Hypothesis strategies: weights with every kind of row, and configurations of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.builders import LAYOUTS

EXPONENT_BITS: Final = {"BF16": 8, "F16": 5, "F32": 8}
MANTISSA_BITS: Final = {"BF16": 7, "F16": 10, "F32": 23}
DTYPES: Final = tuple(MANTISSA_BITS)

ROW_KINDS: Final = (
    "any",
    "gaussian",
    "heavy",
    "zero",
    "negative zero",
    "subnormal",
    "underflowing",
    "huge",
    "constant",
    "one outlier",
)


@dataclass(frozen=True)
class Weight:
    """Bits ``[rows, columns]`` of finite values, and their dtype."""

    dtype: str
    bits: NDArray[Any]


def word(dtype: str) -> np.dtype[Any]:
    """The unsigned little-endian integers that hold a float dtype."""
    return np.dtype("<u4" if dtype == "F32" else "<u2")


def sign_bit(dtype: str) -> int:
    """The bits of -0."""
    return 1 << (EXPONENT_BITS[dtype] + MANTISSA_BITS[dtype])


def infinity(dtype: str) -> int:
    """The bits of +Inf: one less is the largest finite number, one more a NaN."""
    return ((1 << EXPONENT_BITS[dtype]) - 1) << MANTISSA_BITS[dtype]


def to_bits(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Values as bits, BF16 by truncation, clipped to what the dtype holds."""
    if dtype == "F16":
        return values.clip(-65504, 65504).astype("<f2").view("<u2")
    bits = values.astype("<f4").view("<u4")
    return bits if dtype == "F32" else (bits >> 16).astype("<u2")


def row_of_kind(kind: str, dtype: str, columns: int, seed: int) -> NDArray[Any]:
    """One row of bits of a kind; the same arguments give the same row."""
    generator = np.random.default_rng(seed)
    signs = generator.integers(0, 2, columns) * sign_bit(dtype)
    one = 1 << MANTISSA_BITS[dtype]  # the smallest normal number
    magnitudes: NDArray[Any]
    if kind in ("gaussian", "heavy", "one outlier"):
        values = generator.standard_normal(columns) * 0.02
        if kind == "heavy":
            values = generator.standard_t(2, columns) * 0.02
        elif kind == "one outlier":
            values[generator.integers(columns)] *= 1000
        return to_bits(values, dtype)
    if kind == "zero":
        return np.zeros(columns, word(dtype))
    if kind == "negative zero":
        magnitudes = np.zeros(columns, np.int64)
    elif kind == "subnormal":
        magnitudes = generator.integers(0, one, columns)
    elif kind == "underflowing":  # F32 and BF16: the largest / 127 rounds to zero in BF16
        magnitudes = generator.integers(0, max(2, one // 4), columns)
    elif kind == "huge":
        magnitudes = generator.integers(infinity(dtype) - 3 * one, infinity(dtype), columns)
    elif kind == "constant":
        magnitudes = np.full(columns, generator.integers(0, infinity(dtype)))
    else:
        magnitudes = generator.integers(0, infinity(dtype), columns)
    return (magnitudes | signs).astype(word(dtype))


@st.composite
def weights(draw: st.DrawFn, max_rows: int = 6, max_columns: int = 67) -> Weight:
    """Weights whose rows are of any kinds, one-element rows and odd lengths among them."""
    dtype = draw(st.sampled_from(DTYPES))
    columns = draw(st.integers(1, max_columns))
    kinds = draw(st.lists(st.sampled_from(ROW_KINDS), min_size=1, max_size=max_rows))
    seed = draw(st.integers(0, 2**32 - 1))
    rows = [row_of_kind(kind, dtype, columns, seed + row) for row, kind in enumerate(kinds)]
    return Weight(dtype, np.stack(rows))


@st.composite
def bit_patterns(draw: st.DrawFn) -> Weight:
    """One short row, each element drawn by itself, so that a failure shrinks to few bits."""
    dtype = draw(st.sampled_from(DTYPES))
    magnitude = st.integers(0, infinity(dtype) - 1)
    element = st.builds(
        lambda is_negative, bits: bits | sign_bit(dtype) * is_negative, st.booleans(), magnitude
    )
    row = draw(st.lists(element, min_size=1, max_size=9))
    return Weight(dtype, np.array([row], word(dtype)))


@st.composite
def config_changes(draw: st.DrawFn) -> dict[str, Any]:
    """Keys of config.json for ``builders.build_checkpoint``: any model that makes sense."""
    layers = draw(st.integers(1, 4))
    kv_heads = draw(st.integers(1, 2))
    return {
        "num_hidden_layers": layers,
        "first_k_dense_replace": draw(st.integers(0, layers - 1)),
        "n_routed_experts": draw(st.integers(1, 4)),
        "n_shared_experts": draw(st.integers(0, 2)),
        "num_nextn_predict_layers": draw(st.sampled_from((None, 0, 1, 2))),
        "use_qk_norm": draw(st.booleans()),
        "attention_bias": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
        "vocab_size": draw(st.integers(1, 70)),
        "hidden_size": draw(st.integers(1, 20)),
        "intermediate_size": draw(st.integers(1, 25)),
        "moe_intermediate_size": draw(st.integers(1, 13)),
        "head_dim": draw(st.integers(1, 9)),
        "num_key_value_heads": kv_heads,
        "num_attention_heads": kv_heads * draw(st.integers(1, 3)),
    }


def layouts() -> st.SearchStrategy[str]:
    """How a release lays out its files."""
    return st.sampled_from(LAYOUTS)


def shard_limits() -> st.SearchStrategy[int]:
    """Bytes after which a shard is closed: from a shard for each tensor to one for all."""
    return st.sampled_from((1, 1_000, 12_000, 10**9))


def tensor_names() -> st.SearchStrategy[str]:
    """Names that a header may hold: quotes, control characters and every script."""
    return st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
        lambda name: name != "__metadata__"
    )


@st.composite
def tensor_lists(draw: st.DrawFn) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Name → dtype, shape and bytes, for ``builders.write_shard``."""
    shape = st.lists(st.integers(1, 4), max_size=3).map(tuple)
    kind = st.tuples(st.sampled_from(("I8", "BF16", "F16", "F32")), shape)
    listed = draw(st.dictionaries(tensor_names(), kind, min_size=1, max_size=6))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    itemsize = {"I8": 1, "BF16": 2, "F16": 2, "F32": 4}
    return {
        name: (dtype, sizes, generator.bytes(int(np.prod(sizes)) * itemsize[dtype]))
        for name, (dtype, sizes) in listed.items()
    }
