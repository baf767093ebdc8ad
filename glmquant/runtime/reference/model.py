"""The model: target layers and MTP layer, passed over one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glmquant.runtime.reference.attention import KeyValues, attend, rms_norm
from glmquant.runtime.reference.layers import Attention, DecoderLayer, State
from glmquant.runtime.reference.linears import Linear
from glmquant.runtime.reference.settings import ModelConfig
from glmquant.runtime.reference.weights import Weights

EMBEDDING = "model.embed_tokens"


@dataclass(frozen=True, slots=True)
class Batch:
    """Tokens of several sequences, one sequence after the other.

    Attributes:
        tokens: ``[tokens]`` int64.
        positions: ``[tokens]`` int64: the place of each in its sequence.
        lengths: How many there are of each sequence.
    """

    tokens: Tensor
    positions: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], begin: Sequence[int] | None = None) -> Batch:
        """Sequences, or what comes of them after ``begin`` tokens."""
        firsts = begin or [0] * len(sequences)
        return cls(
            torch.tensor([token for each in sequences for token in each], dtype=torch.int64),
            torch.cat([torch.arange(len(s)) + at for s, at in zip(sequences, firsts, strict=True)]),
            tuple(map(len, sequences)),
        )

    @property
    def ends(self) -> Tensor:
        """``[sequences]`` int64: the last token of each."""
        return torch.tensor(self.lengths).cumsum(0) - 1


def attention_to_past(batch: Batch, past: Sequence[KeyValues]) -> Attention:
    """Attention of a batch's tokens to the past of their sequences, which they join."""

    def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        parts = []
        split = (torch.split(part, list(batch.lengths)) for part in (queries, keys, values))
        for held, q, k, v in zip(past, *split, strict=True):
            held.append(k, v)
            parts.append(attend(q, held))
        return torch.cat(parts)

    return attention


class Model:
    """The arithmetic of a checkpoint; what it reads it drops at once.

    Args:
        weights: The checkpoint's.
        config: Its configuration.
    """

    def __init__(self, weights: Weights, config: ModelConfig) -> None:
        self.weights = weights
        self.config = config

    @property
    def mtp_layer(self) -> int:
        """The layer that drafts: vLLM uses the first MTP layer for every draft token."""
        return self.config.num_hidden_layers

    @property
    def pass_nbytes(self) -> int:
        """Bytes of the weights that a pass over the target's layers and the head goes through."""
        layers = range(self.config.num_hidden_layers)
        return sum(map(self.weights.layer_nbytes, layers)) + self.head_nbytes

    @property
    def head_nbytes(self) -> int:
        """Bytes of the head."""
        return self.weights.nbytes(f"{self._head_name}.weight")

    def draft_nbytes(self, count: int) -> int:
        """Bytes of the weights that are gone through to draft so many tokens at once."""
        passes = count * self.weights.layer_nbytes(self.mtp_layer)
        return passes + self.weights.nbytes(f"{self._mtp_head_name}.weight")

    def empty_past(self, sequences: int) -> list[list[KeyValues]]:
        """Layer by layer, what is remembered of so many sequences: nothing."""
        return [
            [KeyValues.empty(self.config, self.weights.dtype) for _ in range(sequences)]
            for _ in range(self.config.num_hidden_layers)
        ]

    def embed(self, tokens: Tensor) -> Tensor:
        """``[tokens, hidden]`` of the model's dtype."""
        return self._embed(EMBEDDING, tokens)

    def _embed(self, name: str, tokens: Tensor) -> Tensor:
        shape = (self.config.vocab_size, self.config.hidden_size)
        return self.weights.read_rows(f"{name}.weight", shape, tokens)

    def run_layer(self, layer: int, state: State, positions: Tensor, attention: Attention) -> State:
        """The state after a layer of the target or the MTP layer."""
        self.weights.begin(self.weights.layer_nbytes(layer))
        state = DecoderLayer(self.weights, self.config, layer)(state, positions, attention)
        self.weights.settle()
        return state

    def run(self, batch: Batch, past: Sequence[Sequence[KeyValues]]) -> Tensor:
        """Pass over the target's layers once.

        Args:
            batch: Tokens that follow on the past.
            past: Layer by layer, what is remembered of each sequence; the tokens join it.

        Returns:
            ``[tokens, hidden]``: the hidden states after ``model.norm``.
        """
        state = State(self.embed(batch.tokens), None)
        for layer in range(self.config.num_hidden_layers):
            state = self.run_layer(
                layer, state, batch.positions, attention_to_past(batch, past[layer])
            )
        return self.final_norm(state)

    def final_norm(self, state: State) -> Tensor:
        """The hidden states after ``model.norm``."""
        weight = self.weights.vector("model.norm.weight", self.config.hidden_size)
        return state.normed(weight, self.config.rms_norm_eps)[0]

    @property
    def _head_name(self) -> str:
        return EMBEDDING if self.config.tie_word_embeddings else "lm_head"

    def head(self) -> Linear:
        """The target's head: hidden states after ``model.norm`` to logits, rounded to the dtype."""
        return self._head(self._head_name)

    def _head(self, name: str) -> Linear:
        self.weights.begin(self.weights.nbytes(f"{name}.weight"))
        head = self.weights.linear(name, self.config.hidden_size, self.config.vocab_size)
        self.weights.settle()
        return head

    def mtp_input(self, tokens: Tensor, positions: Tensor, hidden: Tensor) -> State:
        """What enters the MTP layer's decoder.

        Args:
            tokens: ``[n]``: each the one after its position.
            positions: ``[n]``.
            hidden: ``[n, hidden]``: the target's after ``model.norm``, or the MTP layer's own.
        """
        at, size = f"model.layers.{self.mtp_layer}", self.config.hidden_size
        own = f"{at}.embed_tokens"
        embedded = self._embed(own if f"{own}.weight" in self.weights else EMBEDDING, tokens)
        embedded = embedded.masked_fill((positions == 0).unsqueeze(-1), 0)
        parts = [
            rms_norm(part, self.weights.vector(f"{at}.{name}.weight", size), self._epsilon)
            for name, part in (("enorm", embedded), ("hnorm", hidden))
        ]
        merge = self.weights.linear(f"{at}.eh_proj", 2 * size, size)
        return State(merge(torch.cat(parts, dim=-1)), None)

    def mtp_head(self) -> Callable[[Tensor], Tensor]:
        """The MTP layer's head: its hidden states to logits."""
        at = f"model.layers.{self.mtp_layer}.shared_head"
        norm = self.weights.vector(f"{at}.norm.weight", self.config.hidden_size)
        head = self._head(self._mtp_head_name)
        return lambda hidden: head(rms_norm(hidden, norm, self._epsilon))

    @property
    def _mtp_head_name(self) -> str:
        own = f"model.layers.{self.mtp_layer}.shared_head.head"
        return own if f"{own}.weight" in self.weights else self._head_name

    @property
    def _epsilon(self) -> float:
        return self.config.rms_norm_eps
