"""Bytes a card, against a second sum and against what holds for any model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmquant.glm4_moe import Glm4MoeConfig
from glmquant.machines import A2, A3, LAYOUTS, Layout, Machine
from glmquant.sizing import Fit, TensorGroup, fit_layout, kv_token_nbytes
from tests.builders import AIR, LARGE, layout_config, tensor_list

GIB = 2**30
ON_A2, ON_A3, ON_A3_EXPERTS = LAYOUTS


def groups_of(config: Mapping[str, Any], *, mtp_copies: bool = False) -> list[TensorGroup]:
    """The output of the recipe w8a8 by names, in the test's own words."""
    mtp = f"model.layers.{config['num_hidden_layers']}."
    counted: Counter[tuple[str, str, tuple[int, ...]]] = Counter()
    for name, dtype, shape in tensor_list(config, mtp_copies):
        kind = re.sub("[0-9]", "", name)
        is_int8 = re.search(r"(self_attn\.._proj|mlp\.experts\..+)\.weight$", name)
        if is_int8 and not name.startswith(mtp):
            counted[kind, "I8", shape] += 1
            for suffix in ("_scale", "_offset"):
                counted[kind + suffix, "F32", (shape[0], 1)] += 1
        else:
            counted[kind, dtype, shape] += 1
    return [TensorGroup(*kind, count) for kind, count in counted.items()]


def fit(
    sizes: Mapping[str, Any], layout: Layout, context: int = 131072, *, mtp_copies: bool = False
) -> Fit:
    config = layout_config("4.6", **sizes)
    groups = groups_of(config, mtp_copies=mtp_copies)
    mtp_count = config["num_nextn_predict_layers"]
    return fit_layout(Glm4MoeConfig.model_validate(config), mtp_count, groups, layout, context)


def weights_gib(sizes: Mapping[str, Any], layout: Layout, *, mtp_copies: bool = False) -> float:
    found = fit(sizes, layout, mtp_copies=mtp_copies).weights_nbytes
    assert found is not None
    return found / GIB


@pytest.mark.parametrize(
    ("layout", "documented", "difference"),
    [(ON_A2, 43.1, 0.1), (ON_A3, 21.5, 0.5), (ON_A3_EXPERTS, 23.0, 0.15)],
)
def test_weights_of_the_355b_a_card_are_near_the_sums_done_on_paper(
    layout: Layout, documented: float, difference: float
) -> None:
    """21.5 is half of 43.1: what lies whole on every card, 0.76 GiB, was halved too."""
    assert weights_gib(LARGE, layout) == pytest.approx(documented, abs=difference)


@pytest.mark.parametrize("sizes", [LARGE, AIR])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_a_card_are_the_sum_over_the_parts_of_the_model(
    sizes: dict[str, Any], layout: Layout
) -> None:
    hidden, expert, tp = sizes["hidden_size"], sizes["moe_intermediate_size"], 8
    tp, cards = layout.tensor_parallel, layout.cards
    query, key_value = 96 * 128, max(1, 8 // tp) * 128
    layers, dense, experts = (
        sizes[key] for key in ("num_hidden_layers", "first_k_dense_replace", "n_routed_experts")
    )
    moe = layers - dense
    attention = hidden * (query // tp + 2 * key_value) + hidden * query // tp
    rows = query // tp + 2 * key_value  # of q, k, v on a card
    each = 3 * hidden * expert  # elements of an expert
    scales = 2 * 2 * (2 * expert + hidden)
    if not layout.is_expert_parallel:
        scales = 2 * 2 * (2 * expert // tp + hidden)
    held = experts // cards if layout.is_expert_parallel else experts
    total = dense * 3 * hidden * sizes["intermediate_size"] * 2 // tp
    total += layers * (attention + 2 * 2 * (rows + hidden)) + attention * 2  # int8; the MTP's float
    total += (layers + 1) * 2 * (rows + 2 * 128 + 2 * hidden)  # biases, norms
    total += moe * (each * experts // cards + scales * held) + each * experts * 2 // cards
    total += (moe + 1) * (each * 2 // tp + experts * (hidden + 1) * 4)  # shared, router
    total += 2 * 151552 * hidden * 2 // tp + 2 * hidden * hidden * 2 + 4 * hidden * 2
    assert fit(sizes, layout).weights_nbytes == total


def test_copies_of_embedding_and_head_in_the_mtp_layer_count() -> None:
    more = weights_gib(LARGE, ON_A2, mtp_copies=True) - weights_gib(LARGE, ON_A2)
    assert more == pytest.approx(2 * 151552 * 5120 * 2 / 8 / GIB)


@pytest.mark.parametrize(("sizes", "nbytes"), [(LARGE, 380_928), (AIR, 192_512)])
def test_kv_cache_a_token_over_all_cards(sizes: dict[str, Any], nbytes: int) -> None:
    config = Glm4MoeConfig.model_validate(layout_config("4.6", **sizes))
    whole = Layout(Machine("one", "one card", 1, 64 * GIB), 1, 1)
    assert kv_token_nbytes(config, 1, whole) == nbytes
    assert kv_token_nbytes(config, 1, ON_A2) == nbytes // 8
    assert kv_token_nbytes(config, 1, ON_A3) == nbytes // 8  # 8 KV heads: 16 cards hold copies
    assert kv_token_nbytes(config, 0, ON_A2) < nbytes // 8


def test_35000_tokens_of_the_355b_take_1_55_gib_a_card() -> None:
    config = Glm4MoeConfig.model_validate(layout_config("4.6", **LARGE))
    assert 35_000 * kv_token_nbytes(config, 1, ON_A2) / GIB == pytest.approx(1.55, abs=0.005)


def test_room_tokens_and_sequences_follow_from_weights_and_context() -> None:
    found = fit(LARGE, ON_A2, 35_000)
    assert found.weights_nbytes and found.room_nbytes and found.kv_token_nbytes and found.tokens
    assert found.room_nbytes == A2.usable_nbytes - found.weights_nbytes
    assert found.tokens == found.room_nbytes // found.kv_token_nbytes
    assert found.sequences == found.tokens // 35_000 == 5
    assert found.fits
    assert not fit(LARGE, ON_A2, 202_752).fits  # all that GLM-4.6 allows is too much for one A2
    assert fit(LARGE, ON_A3, 202_752).fits


def test_weights_too_many_for_the_cards_leave_less_than_no_room() -> None:
    found = fit(LARGE | {"num_hidden_layers": 140}, ON_A2)
    assert found.room_nbytes is not None
    assert found.room_nbytes < 0
    assert (found.tokens, found.sequences, found.fits) == (0, 0, False)


def test_airs_experts_cut_over_16_cards_are_advised_against() -> None:
    (advice,) = fit(AIR, ON_A3).advice
    assert "1408 / 16 = 88 is not a multiple of 32" in advice
    assert "--enable-expert-parallel" in advice
    assert fit(LARGE, ON_A3).advice == ()


def test_shared_experts_on_every_card_are_told_where_there_are_two_ranks() -> None:
    (advice,) = fit(LARGE, ON_A3_EXPERTS).advice
    assert advice == "enable_shared_expert_dp takes 3.5 GiB a card more"


@pytest.mark.parametrize(
    ("changes", "layout", "word"),
    [
        ({"num_attention_heads": 4, "num_key_value_heads": 4}, ON_A2, "num_attention_heads 4"),
        ({"num_attention_heads": 48, "num_key_value_heads": 12}, ON_A2, "num_key_value_heads 12"),
        ({"intermediate_size": 12284}, ON_A2, "intermediate_size 12284"),
        ({"moe_intermediate_size": 1528}, ON_A3, "moe_intermediate_size 1528"),
        ({"n_routed_experts": 100}, ON_A3_EXPERTS, "n_routed_experts 100"),
    ],
)
def test_what_does_not_divide_is_said_and_no_figure_is_given(
    changes: dict[str, Any], layout: Layout, word: str
) -> None:
    found = fit(LARGE | changes, layout)
    assert any(word in obstacle for obstacle in found.obstacles)
    assert found.weights_nbytes is found.tokens is None
    assert not found.fits


def test_a_vocabulary_of_any_size_is_padded() -> None:
    sizes = LARGE | {"vocab_size": 151_500}  # 64 rows a block make 151,552
    assert weights_gib(sizes, ON_A3) == weights_gib(LARGE, ON_A3)


CONFIGURATIONS = st.fixed_dictionaries(
    {
        "num_hidden_layers": st.integers(2, 4),
        "first_k_dense_replace": st.integers(0, 1),
        "n_routed_experts": st.sampled_from([16, 32]),
        "n_shared_experts": st.integers(0, 2),
        "hidden_size": st.integers(1, 300),
        "intermediate_size": st.sampled_from([16, 48, 160]),
        "moe_intermediate_size": st.sampled_from([16, 32, 96]),
        "num_attention_heads": st.sampled_from([16, 32, 96]),
        "num_key_value_heads": st.sampled_from([1, 2, 4, 8, 16]),
        "head_dim": st.integers(1, 64),
        "vocab_size": st.integers(1, 1000),
        "attention_bias": st.booleans(),
        "use_qk_norm": st.booleans(),
        "tie_word_embeddings": st.booleans(),
        "num_nextn_predict_layers": st.integers(0, 2),
    }
)
CUTS = st.sampled_from([(1, 1), (1, 2), (1, 8), (1, 16), (2, 1), (2, 8), (4, 4)])


@given(changes=CONFIGURATIONS, cut=CUTS, is_expert_parallel=st.booleans())
@settings(derandomize=True, deadline=None, max_examples=150)
def test_all_cards_together_hold_each_tensor_at_least_once(
    changes: dict[str, Any], cut: tuple[int, int], is_expert_parallel: bool
) -> None:
    config = Glm4MoeConfig.model_validate(layout_config("4.6", **changes))
    groups = groups_of(layout_config("4.6", **changes), mtp_copies=True)
    layout = Layout(A3, *cut, is_expert_parallel=is_expert_parallel)
    for group in groups:
        on_a_card = group.card_nbytes(config, layout)
        assert on_a_card * layout.cards >= group.held_nbytes
        assert layout.cards > 1 or on_a_card >= group.held_nbytes
        is_vocabulary = group.shape[0] == config.vocab_size and "_proj" not in group.name
        assert is_vocabulary or on_a_card <= group.held_nbytes


@given(changes=CONFIGURATIONS)
@settings(derandomize=True, deadline=None, max_examples=50)
def test_one_card_holds_everything_once(changes: dict[str, Any]) -> None:
    raw = layout_config(
        "4.6",
        **changes,
    ) | {"vocab_size": 128}
    layout = Layout(Machine("one", "one card", 1, 64 * GIB), 1, 1)
    groups = groups_of(raw)
    found = fit_layout(Glm4MoeConfig.model_validate(raw), 0, groups, layout, 1)
    assert found.weights_nbytes == sum(group.held_nbytes for group in groups)


@given(changes=CONFIGURATIONS, cut=CUTS, context=st.integers(1, 10**7))
@settings(derandomize=True, deadline=None, max_examples=100)
def test_longer_sequences_never_fit_more_often(
    changes: dict[str, Any], cut: tuple[int, int], context: int
) -> None:
    raw = layout_config("4.6", **changes)
    config = Glm4MoeConfig.model_validate(raw)
    groups = groups_of(raw)
    layout = Layout(A3, *cut)
    short, long = (
        fit_layout(config, changes["num_nextn_predict_layers"], groups, layout, tokens)
        for tokens in (context, 2 * context)
    )
    assert short.tokens == long.tokens
    assert short.obstacles == long.obstacles
    assert (short.sequences or 0) >= (long.sequences or 0)
    if not short.obstacles:
        assert short.weights_nbytes is not None and short.room_nbytes is not None
        assert short.weights_nbytes + short.room_nbytes == A3.usable_nbytes
