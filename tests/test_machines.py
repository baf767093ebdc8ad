"""The machines and layouts are those of vllm-ascend's tutorial."""

from __future__ import annotations

from glmquant.machines import A2, A3, LAYOUTS, MACHINES

GIB = 2**30


def test_an_a2_has_8_cards_and_an_a3_16_of_64_gib() -> None:
    assert [(m.key, m.cards, m.card_nbytes) for m in MACHINES.values()] == [
        ("a2", 8, 64 * GIB),
        ("a3", 16, 64 * GIB),
    ]


def test_nine_tenths_of_a_card_less_6_gib_are_for_weights_and_kv_cache() -> None:
    assert A2.usable_nbytes == A3.usable_nbytes == int(57.6 * GIB) - 6 * GIB


def test_every_layout_uses_all_cards_of_its_machine() -> None:
    assert [(layout.machine.key, layout.name) for layout in LAYOUTS] == [
        ("a2", "dp1 tp8"),
        ("a3", "dp1 tp16"),
        ("a3", "dp2 tp8 ep16"),
    ]
    assert all(layout.cards == layout.machine.cards for layout in LAYOUTS)
