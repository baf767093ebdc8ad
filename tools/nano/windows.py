"""Token windows: every row starts with ``[gMASK]<sop>`` and is a function of seed and step."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from nano.text import Module, chat_pairs
from nano.tokenizer import PREFIX, token_id

WINDOW = 256
TEXT_ROWS = 7
CHAT_ROWS = 1
# The MTP layer at position i predicts token i + 2, so a training row is two longer than a window.
ROW = WINDOW + 2
FRESH = ROW - len(PREFIX)


def encode_modules(tokenizer: Tokenizer, modules: Iterable[Module]) -> Tensor:
    """``[tokens]`` int64: the modules one after another, each closed by ``<|endoftext|>``."""
    end = token_id(tokenizer, "<|endoftext|>")
    ids: list[int] = []
    for module in modules:
        ids.extend(tokenizer.encode(module.source).ids)
        ids.append(end)
    return torch.tensor(ids, dtype=torch.int64)


def encode_chats(tokenizer: Tokenizer, modules: list[Module], seed: int) -> Tensor:
    """``[rows, 258]`` int64: conversations as ``chat_template.jinja`` renders finished ones.

    Each row starts with a whole question; turns follow until the row is full. Every second
    question ends with ``/nothink``, so both modes of the template end in an answer.
    """
    pairs = list(chat_pairs(modules))
    random.Random(seed).shuffle(pairs)
    prefix = [token_id(tokenizer, text) for text in PREFIX]
    rows: list[list[int]] = []
    row = list(prefix)
    for number, (question, answer) in enumerate(pairs):
        switch = "/nothink" if number % 2 else ""
        turn = f"<|user|>\n{question}{switch}<|assistant|>\n<think></think>\n{answer}"
        row.extend(tokenizer.encode(turn).ids)
        if len(row) >= ROW:
            rows.append(row[:ROW])
            row = list(prefix)
    return torch.tensor(rows, dtype=torch.int64)


@dataclass(frozen=True)
class Batches:
    """Training rows by step, so that a resumed run sees what an uninterrupted one would."""

    text: Tensor
    chats: Tensor
    prefix: Tensor
    seed: int

    def at(self, step: int) -> Tensor:
        """``[8, 258]`` int64: seven rows of source text and one of chat.

        Text rows walk through a seeded permutation of all windows, epoch after epoch; each epoch
        cuts the text at another phase.
        """
        per_epoch = (len(self.text) - FRESH) // FRESH
        rows = []
        for ordinal in range(step * TEXT_ROWS, (step + 1) * TEXT_ROWS):
            epoch, place = divmod(ordinal, per_epoch)
            generator = torch.Generator().manual_seed(self.seed * 1_000 + epoch)
            phase = int(torch.randint(FRESH, (1,), generator=generator))
            window = int(torch.randperm(per_epoch, generator=generator)[place])
            start = phase + window * FRESH
            rows.append(torch.cat([self.prefix, self.text[start : start + FRESH]]))
        chats = range(step * CHAT_ROWS, (step + 1) * CHAT_ROWS)
        rows.extend(self.chats[ordinal % len(self.chats)] for ordinal in chats)
        return torch.stack(rows)


def make_batches(tokenizer: Tokenizer, modules: list[Module], seed: int) -> Batches:
    """Batches over the training modules."""
    prefix = torch.tensor([token_id(tokenizer, text) for text in PREFIX])
    text = encode_modules(tokenizer, modules)
    return Batches(text, encode_chats(tokenizer, modules, seed), prefix, seed)
