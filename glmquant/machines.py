"""The Ascend machines, and how vllm-ascend lays a GLM-4.x out on them.

Cards, memory and layouts: vllm-ascend's tutorial ``GLM4.x.md`` (182b75e). Nothing of it was run
here on an NPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

GPU_MEMORY_UTILIZATION: Final = 0.9
"""The share of a card that the engine may take: ``--gpu-memory-utilization`` of the tutorial."""

RESERVE_NBYTES: Final = 6 * 2**30
"""Bytes of a card for activations, graphs and HCCL buffers: assumed, not measured."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A server with NPUs.

    Attributes:
        key: What a user types.
        name: What it is called.
        cards: NPU devices.
        card_nbytes: Memory of one, bytes.
    """

    key: str
    name: str
    cards: int
    card_nbytes: int

    @property
    def usable_nbytes(self) -> int:
        """Bytes of a card for weights and KV cache: the engine's share less the reserve."""
        return int(self.card_nbytes * GPU_MEMORY_UTILIZATION) - RESERVE_NBYTES


A2: Final = Machine("a2", "Atlas 800 A2", 8, 64 * 2**30)
A3: Final = Machine("a3", "Atlas 800 A3", 16, 64 * 2**30)
MACHINES: Final = {machine.key: machine for machine in (A2, A3)}


@dataclass(frozen=True, slots=True)
class Layout:
    """How an engine spreads a model over the cards of a machine.

    Attributes:
        machine: The machine; all its cards are used.
        data_parallel: Engines side by side, each with its own requests and KV cache.
        tensor_parallel: Cards of one engine; each holds a part of every matrix.
        is_expert_parallel: Whole experts lie on single cards, spread over all of the machine.
    """

    machine: Machine
    data_parallel: int
    tensor_parallel: int
    is_expert_parallel: bool = False

    @property
    def cards(self) -> int:
        """Cards in use."""
        return self.data_parallel * self.tensor_parallel

    @property
    def name(self) -> str:
        """``dp2 tp8 ep16``."""
        experts = f" ep{self.cards}" if self.is_expert_parallel else ""
        return f"dp{self.data_parallel} tp{self.tensor_parallel}{experts}"


LAYOUTS: Final = (
    Layout(A2, 1, 8),
    Layout(A3, 1, 16),  # long prompts of few users
    Layout(A3, 2, 8, is_expert_parallel=True),
)
"""The layouts worth a look: those of the tutorial, and one A2, which is sized on paper only."""
