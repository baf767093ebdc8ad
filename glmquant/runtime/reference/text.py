"""Passes over given texts: what the model thinks of each of their tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glmquant.runtime.observed import Divergence
from glmquant.runtime.reference.attention import KeyValues
from glmquant.runtime.reference.greedy import require_finite
from glmquant.runtime.reference.layers import State
from glmquant.runtime.reference.linears import Linear
from glmquant.runtime.reference.model import Batch, Model, attention_to_past
from glmquant.runtime.reference.saved import Log

_LOGITS: Final = 1 << 20
"""Logits that are held at once: four times as many left the C library's heap with 500 MB of holes
beside a vocabulary of 32,768."""

_LEAST_ROWS: Final = 32
"""Each chunk goes through the whole head, of 1.5 GB in GLM-4.6."""


def row_chunks(rows: int, vocabulary: int) -> Iterator[slice]:
    """Slices of rows whose logits may be held at once."""
    size = max(_LEAST_ROWS, _LOGITS // vocabulary)
    return (slice(at, at + size) for at in range(0, rows, size))


class TextPass:
    """One pass over texts, each on its own, that goes on where an interrupted one has stopped.

    Args:
        model: It.
        windows: Token ids of each text.
        logs: Hold the states after the last two finished layers: one is whole at any moment.
    """

    def __init__(
        self, model: Model, windows: Sequence[Sequence[int]], logs: tuple[Log, Log]
    ) -> None:
        self._model = model
        self._batch = Batch.of(windows)
        self._logs = logs
        self._state, self._done = self._recall()

    def _recall(self) -> tuple[State | None, int]:
        shape = (len(self._batch.tokens), self._model.config.hidden_size)
        best: tuple[State | None, int] = (None, 0)
        for log in self._logs:
            done = torch.zeros(1, dtype=torch.int64)
            state = [torch.empty(shape, dtype=self._model.weights.dtype) for _ in State._fields]
            if log.recall([done, *state]) and int(done) > best[1]:
                best = (State(*state), int(done))
        return best

    @property
    def done_nbytes(self) -> int:
        """Bytes of the weights that an interrupted pass went through."""
        return sum(map(self._model.weights.layer_nbytes, range(self._done)))

    def run(self) -> Tensor:
        """``[tokens, hidden]``: the hidden states after ``model.norm``, one text after the other.

        Raises:
            NonFiniteError: They are no numbers.
        """
        model, batch = self._model, self._batch
        state = self._state or State(model.embed(batch.tokens), None)
        self._state = None
        for layer in range(self._done, model.config.num_hidden_layers):
            past = [KeyValues.empty(model.config, model.weights.dtype) for _ in batch.lengths]
            attention = attention_to_past(batch, past)
            state = model.run_layer(layer, state, batch.positions, attention)
            self._save(layer + 1, state)
        hidden = model.final_norm(state)
        require_finite(hidden)
        return hidden

    def _save(self, done: int, state: State) -> None:
        log = self._logs[done % 2]
        log.rewind()
        log.keep([torch.tensor([done]), *(part for part in state if part is not None)])

    def forget(self) -> None:
        """Nothing of the pass is needed any more."""
        for log in self._logs:
            log.remove()


def predicting_rows(windows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """The rows of a pass that predict a token of their text, and those tokens; both int64."""
    lengths = list(map(len, windows))
    starts = [sum(lengths[:at]) for at in range(len(lengths))]
    rows = [torch.arange(at, at + n - 1) for at, n in zip(starts, lengths, strict=True)]
    tokens = [token for window in windows for token in window[1:]]
    return torch.cat(rows), torch.tensor(tokens, dtype=torch.int64)


def text_logprobs(head: Linear, hidden: Tensor, tokens: Tensor, vocabulary: int) -> Tensor:
    """``[n]`` F32: the log-probability of each token by the hidden state before it."""
    parts = []
    for part in row_chunks(len(tokens), vocabulary):
        logits = head(hidden[part]).float()
        parts.append(logits.log_softmax(-1).gather(1, tokens[part].unsqueeze(1))[:, 0])
    return torch.cat(parts)


def diverge(
    heads: tuple[Linear, Linear], hidden: tuple[Tensor, Tensor], tokens: Tensor, vocabulary: int
) -> Divergence:
    """How far the second model's distributions are from the first's, over the whole vocabulary.

    Args:
        heads: Of both models.
        hidden: ``[n, hidden]`` of both, after ``model.norm``.
        tokens: ``[n]`` int64: what follows in the text.
        vocabulary: Size of both.
    """
    kl, same_top, base_nll, nll = [], [], [], []
    for part in row_chunks(len(tokens), vocabulary):
        p, q = (
            head(states[part]).double().log_softmax(-1)
            for head, states in zip(heads, hidden, strict=True)
        )
        said = tokens[part].unsqueeze(1)
        base_nll.append(-p.gather(1, said)[:, 0])
        nll.append(-q.gather(1, said)[:, 0])
        same_top.append(p.argmax(-1) == q.argmax(-1))
        kl.append((p.exp() * q.neg_().add_(p)).sum(-1))
    return Divergence(
        _array(kl), np.asarray(torch.cat(same_top).numpy(), np.bool_), _array(base_nll), _array(nll)
    )


def _array(parts: Sequence[Tensor]) -> NDArray[np.float64]:
    return np.asarray(torch.cat(list(parts)).numpy(), np.float64)
