"""What the MTP layer drafts along finished sequences, and what of it the target accepts.

A draft depends on the tokens before it alone, so all of a text's are made at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from glmquant.runtime.observed import Drafting
from glmquant.runtime.reference.attention import KeyValues, attend_drafting
from glmquant.runtime.reference.layers import Attention
from glmquant.runtime.reference.model import Batch, Model, attention_to_past
from glmquant.runtime.reference.text import row_chunks


def draft(
    model: Model,
    sequences: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    hidden: Sequence[Tensor],
    max_tokens: int,
    count: int,
) -> Tensor:
    """Drafts after each token that was chosen but the last.

    vLLM 0.30.0 ``v1/spec_decode/llm_base_proposer.py``: the MTP layer gets the target's hidden
    states after ``model.norm`` and the tokens that follow on them. A second draft token has the
    layer's own output for a hidden state, one position further, and so on.

    Args:
        model: It.
        sequences: Prompts with at least ``max_tokens`` chosen tokens.
        prompt_lengths: How many tokens of each are the prompt.
        hidden: ``[tokens, hidden]`` of each.
        max_tokens: How many chosen tokens count.
        count: Tokens of a draft.

    Returns:
        ``[sequences, max_tokens - 1, count]`` int64: what follows on the first chosen token, on
        the second, and so on.
    """
    lengths = [prompt + max_tokens - 2 for prompt in prompt_lengths]
    batch = Batch.of([s[1 : n + 1] for s, n in zip(sequences, lengths, strict=True)])
    past = [KeyValues.empty(model.config, model.weights.dtype) for _ in sequences]
    known = torch.cat([part[:n] for part, n in zip(hidden, lengths, strict=True)])
    state = model.mtp_input(batch.tokens, batch.positions, known)
    attention = attention_to_past(batch, past)
    state = model.run_layer(model.mtp_layer, state, batch.positions, attention)
    # Of each sequence, the places where a draft begins: the last token of the prompt and on.
    branches = [torch.arange(p - 1, n) for p, n in zip(prompt_lengths, lengths, strict=True)]
    starts = [int(end) + 1 - n for end, n in zip(batch.ends, lengths, strict=True)]
    rows = torch.cat([start + each for start, each in zip(starts, branches, strict=True)])
    last, head = state.hidden[rows], model.mtp_head()
    drafted = [_likeliest(head, last, model.config.vocab_size)]
    own: list[KeyValues] = []
    for ahead in range(1, count):
        positions = torch.cat(branches) + ahead
        state = model.mtp_input(drafted[-1], positions, last)
        attention = _attention_to_drafts(past, branches, own)
        last = model.run_layer(model.mtp_layer, state, positions, attention).hidden
        drafted.append(_likeliest(head, last, model.config.vocab_size))
    return torch.stack(drafted, dim=-1).view(len(sequences), max_tokens - 1, count)


def _attention_to_drafts(
    past: Sequence[KeyValues], branches: Sequence[Tensor], own: list[KeyValues]
) -> Attention:
    sizes = list(map(len, branches))

    def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        parts = zip(*(torch.split(part, sizes) for part in (queries, keys, values)), strict=True)
        mixed = []
        for at, (q, k, v) in enumerate(parts):
            k, v = k.unsqueeze(1), v.unsqueeze(1)
            if at == len(own):
                own.append(KeyValues(k, v))
            else:
                own[at].keys = torch.cat((own[at].keys, k), dim=1)
                own[at].values = torch.cat((own[at].values, v), dim=1)
            mixed.append(attend_drafting(q, past[at], branches[at] + 1, own[at]))
        return torch.cat(mixed)

    return attention


def _likeliest(head: Callable[[Tensor], Tensor], hidden: Tensor, vocabulary: int) -> Tensor:
    chunks = row_chunks(len(hidden), vocabulary)
    return torch.cat([head(hidden[part]).argmax(-1) for part in chunks])


def count_accepted(drafts: Tensor, chosen: Sequence[Sequence[int]], max_tokens: int) -> Drafting:
    """What becomes of the drafts where the engine emits ``max_tokens`` tokens.

    The first token comes of the prompt. Each step then drafts, accepts what agrees from the first
    on, and emits that and one token more; the last step counts whole (vLLM 0.30.0
    ``v1/core/sched/scheduler.py``).

    Args:
        drafts: ``[sequences, max_tokens - 1, count]``.
        chosen: At least ``max_tokens - 1 + count`` chosen tokens of each sequence.
        max_tokens: When a sequence ends.
    """
    count = drafts.shape[-1]
    by_position = [0] * count
    steps = 0
    for tokens, of_sequence in zip(chosen, drafts.tolist(), strict=True):
        emitted = 1
        while emitted < max_tokens:
            steps += 1
            proposed = of_sequence[emitted - 1]
            agreed = 0
            while agreed < count and proposed[agreed] == tokens[emitted + agreed]:
                by_position[agreed] += 1
                agreed += 1
            emitted += agreed + 1
    return Drafting(steps, steps * count, sum(by_position), tuple(by_position))
