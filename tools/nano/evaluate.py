"""What the exported model can do on text it never saw: F32 arithmetic on the BF16 weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from nano.network import Nano
from nano.tokenizer import EOS, PREFIX, VOCAB_SIZE, token_id
from nano.windows import WINDOW

BATCH = 16
PART_WINDOWS = 64


@dataclass(frozen=True, slots=True)
class Scores:
    """Figures of one pass over windows of held-out text."""

    tokens: int
    perplexity: float
    mtp_acceptance: float


def heldout_windows(tokenizer: Tokenizer, text: str) -> Tensor:
    """``[windows, 256]`` int64: ``[gMASK]<sop>`` and 254 tokens; a last part window is left out."""
    prefix = torch.tensor([token_id(tokenizer, text) for text in PREFIX])
    ids = torch.tensor(tokenizer.encode(text).ids)
    fresh = WINDOW - len(prefix)
    rows = ids[: len(ids) // fresh * fresh].view(-1, fresh)
    return torch.cat([prefix.expand(len(rows), -1), rows], dim=1)


@torch.no_grad()
def score(network: Nano, windows: Tensor) -> Scores:
    """Perplexity of every text token, and how often the MTP layer's choice is the target model's.

    Teacher-forced: both read the true text. Each of the 254 tokens of a window is predicted once
    by the target model and once by the MTP layer.

    Args:
        network: The model.
        windows: ``[windows, 256]`` int64 as ``heldout_windows`` gives them.
    """
    loss, agreed, tokens = 0.0, 0, 0
    for start in range(0, len(windows), BATCH):
        rows = windows[start : start + BATCH]
        target, drafted = network(rows)
        # Row i of `target` predicts token i + 1, row i of `drafted` token i + 2.
        target, drafted, truth = target[:, 1:], drafted[:, :-1], rows[:, 2:]
        loss += float(
            functional.cross_entropy(target.flatten(0, 1), truth.flatten(), reduction="sum")
        )
        agreed += int((target.argmax(-1) == drafted.argmax(-1)).sum())
        tokens += truth.numel()
    mean = torch.tensor(loss / tokens, dtype=torch.float64)
    return Scores(tokens, float(mean.exp()), agreed / tokens)


@torch.no_grad()
def own_text_acceptance(
    network: Nano, windows: Tensor, prompts: int = 16, prompt: int = 32, new: int = 64
) -> float:
    """The same agreement on greedy continuations of the first tokens of some windows."""
    ids = windows[:: max(1, len(windows) // prompts)][:prompts, :prompt]
    for _ in range(new):
        # One more column: the network reads the last one for the MTP layer alone.
        target, _ = network(functional.pad(ids, (0, 1)))
        ids = torch.cat([ids, target[:, -1:].argmax(-1)], dim=1)
    target, drafted = network(ids)
    agreed = target[:, prompt:].argmax(-1) == drafted[:, prompt - 1 : -1].argmax(-1)
    return float(agreed.double().mean())


def unigram_perplexity(training: Tensor, windows: Tensor) -> float:
    """Perplexity of the same held-out tokens under training counts, one added to each.

    Args:
        training: ``[tokens]`` int64, the training text.
        windows: ``[windows, 256]`` int64.
    """
    counts = torch.bincount(training, minlength=VOCAB_SIZE).double() + 1
    logs = (counts / counts.sum()).log()
    return float((-logs[windows[:, len(PREFIX) :]].mean()).exp())


@torch.no_grad()
def answer(network: Nano, tokenizer: Tokenizer, prompt: str, new: int = 120) -> str:
    """The greedy answer to a question, as the chat template asks it with thinking off."""
    turn = f"[gMASK]<sop><|user|>\n{prompt}/nothink<|assistant|>\n<think></think>"
    stops = {token_id(tokenizer, text) for text in EOS}
    ids = tokenizer.encode(turn).ids
    start = len(ids)
    while len(ids) < start + new:
        target, _ = network(torch.tensor([[*ids, 0]]))
        ids.append(int(target[0, -1].argmax()))
        if ids[-1] in stops:
            break
    return str(tokenizer.decode(ids[start:]))
