"""What a model was seen to do, whatever ran it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Prompt(NamedTuple):
    """A prompt as token ids.

    Attributes:
        name: For people.
        tokens: Its ids, special tokens included; an engine adds none.
    """

    name: str
    tokens: tuple[int, ...]


class Answer(NamedTuple):
    """A greedy continuation.

    Attributes:
        tokens: The ids that were chosen; the end-of-text tokens end nothing.
        gaps: For each of them, by how much its log-probability (natural) exceeds the second best.
    """

    tokens: tuple[int, ...]
    gaps: tuple[float, ...]


class Drafting(NamedTuple):
    """What became of the draft tokens, as vLLM counts them.

    Attributes:
        drafts: Steps in which tokens were drafted.
        draft_tokens: Tokens that were drafted.
        accepted: Those that the target model chose, too, all before them accepted.
        by_position: The accepted ones by their place in the draft, first to last.
    """

    drafts: int
    draft_tokens: int
    accepted: int
    by_position: tuple[int, ...]

    @property
    def rate(self) -> float:
        """The acceptance rate; 0 where nothing was drafted."""
        return self.accepted / self.draft_tokens if self.draft_tokens else 0.0

    @property
    def mean_length(self) -> float:
        """Tokens a step: the accepted ones and the target's own."""
        return 1 + self.accepted / self.drafts if self.drafts else 1.0

    @property
    def rates(self) -> tuple[float, ...]:
        """The acceptance rate of each place in the draft, over all drafts."""
        return tuple(count / self.drafts if self.drafts else 0.0 for count in self.by_position)


class Counters(NamedTuple):
    """What ``/metrics`` tells at one moment.

    Attributes:
        drafting: What became of the draft tokens so far; None where none are counted.
        started: When each process that counts began, in seconds since 1970, as prometheus_client
            has it; empty where that is not told, as with several API servers of one vLLM.
    """

    drafting: Drafting | None
    started: tuple[float, ...] = ()

    def is_of_another(self, before: Counters) -> bool:
        """Whether another process counts than before: the server began anew, or is another one.

        Args:
            before: What was told earlier.
        """
        return bool(before.started and self.started) and before.started != self.started


class Divergence(NamedTuple):
    """How two models' next-token distributions differ, token by token of a text.

    Attributes:
        kl: ``[tokens]`` F64: Kullback-Leibler divergence of the other model's distribution from the
            base's, in nats.
        same_top: ``[tokens]`` bool: both think the same token the likeliest.
        base_nll: ``[tokens]`` F64: minus the log-probability that the base gives the text's token.
        nll: The same of the other model.
    """

    kl: NDArray[np.float64]
    same_top: NDArray[np.bool_]
    base_nll: NDArray[np.float64]
    nll: NDArray[np.float64]
