"""Training: cross-entropy of the next token plus 0.3 of the MTP layer's, resumable."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from nano.network import Nano, NanoConfig, initialize
from nano.windows import CHAT_ROWS, TEXT_ROWS, WINDOW, Batches

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What decides the weights beside text and network."""

    seed: int = 46
    steps: int = 1850
    peak_rate: float = 3e-3
    final_rate: float = 1e-4
    warmup: int = 100
    weight_decay: float = 0.1
    mtp_share: float = 0.3
    balance_rate: float = 1e-3
    checkpoint_every: int = 100

    @property
    def tokens_per_step(self) -> int:
        """Positions that carry a loss in one step."""
        return (TEXT_ROWS + CHAT_ROWS) * WINDOW

    def rate(self, step: int) -> float:
        """Learning rate: linear warm-up, then a cosine down to ``final_rate``."""
        if step < self.warmup:
            return self.peak_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.final_rate + (self.peak_rate - self.final_rate) * (
            0.5 + 0.5 * math.cos(math.pi * done)
        )

    def balances(self, step: int) -> bool:
        """Whether router biases still move: they rest for the last tenth, weights adapt to them."""
        return step < 0.9 * self.steps


def losses(network: Nano, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropies, F32 scalars, of target model and MTP layer on rows ``[rows, 258]``."""
    target, drafted = network(rows[:, :-1])
    return (
        functional.cross_entropy(target.float().flatten(0, 1), rows[:, 1:-1].flatten()),
        functional.cross_entropy(drafted.float().flatten(0, 1), rows[:, 2:].flatten()),
    )


def make_optimizer(network: Nano, plan: TrainingPlan) -> torch.optim.AdamW:
    """AdamW whose weight decay spares embeddings, norms and biases."""
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        matrix = parameter.dim() > 1 and "embed_tokens" not in name
        (decayed if matrix else spared).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": plan.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=plan.peak_rate, betas=(0.9, 0.95), fused=True)


def train(work: Path, batches: Batches, plan: TrainingPlan) -> Nano:
    """Trains, or goes on from ``work/state.pt``, and returns the network in F32.

    Progress goes to ``work/progress.jsonl``, one line every 20 steps.

    Raises:
        ValueError: The state in ``work`` belongs to another plan or text.
    """
    torch.set_flush_denormal(True)
    network = Nano(NanoConfig())
    initialize(network, plan.seed)
    optimizer = make_optimizer(network, plan)
    identity = {**asdict(plan), "tokens": len(batches.text), "chats": len(batches.chats)}
    state_file = work / "state.pt"
    first, seconds = 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        if state["identity"] != identity:
            raise ValueError(f"{state_file} is of another training: {state['identity']}")
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        first, seconds = state["step"], state["seconds"]
        log.info("goes on from step %d", first)
    network.train()
    for step in range(first, plan.steps):
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(step)
        loss, mtp_loss = losses(network, batches.at(step))
        (loss + plan.mtp_share * mtp_loss).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if plan.balances(step):
            for router in network.routers():
                router.rebalance(plan.balance_rate)
        seconds += time.perf_counter() - began
        if step % 20 == 19:
            line = {
                "step": step + 1,
                "loss": round(loss.item(), 4),
                "mtp_loss": round(mtp_loss.item(), 4),
                "uneven": [round(x, 2) for x in unevenness(network)],
                "seconds": round(seconds, 1),
                "tokens_per_second": round(plan.tokens_per_step * (step + 1) / seconds),
            }
            with (work / "progress.jsonl").open("a", encoding="utf-8") as progress:
                progress.write(json.dumps(line) + "\n")
            log.info("%s", line)
        if (step + 1) % plan.checkpoint_every == 0 or step + 1 == plan.steps:
            save_state(
                state_file,
                {
                    "identity": identity,
                    "network": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                    "seconds": seconds,
                },
            )
    return network.eval()


def unevenness(network: Nano) -> Iterator[float]:
    """For each router, the load of the busiest expert over the mean load in the last step."""
    for router in network.routers():
        yield float(router.load.max() / router.load.mean())


def save_state(file: Path, state: dict[str, object]) -> None:
    """Writes beside, then renames: a kill leaves the old state or the new one."""
    part = file.with_suffix(".part")
    torch.save(state, part)
    part.replace(file)
