"""What does not fit together: a checkpoint, a machine, a version and a length."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import NamedTuple

from glmquant.deploy.candidate import Candidate
from glmquant.deploy.data import Version
from glmquant.errors import DeployError
from glmquant.machines import GPU_MEMORY_UTILIZATION, Layout
from glmquant.sizing import Fit, fit_layout
from glmquant.verify.engines.rules import Fate


class Problem(NamedTuple):
    """Something that does not fit, or will fail; its parts are those of an error.

    Attributes:
        what: What is wrong.
        where: The option or the key.
        expected: What would do.
        found: What is there.
        hint: What to do.
    """

    what: str
    where: str
    expected: str
    found: str
    hint: str

    @property
    def text(self) -> str:
        """All of it in a line."""
        return f"{self.what} ({self.where}): {self.found}; expected {self.expected}; {self.hint}"

    def fields(self) -> dict[str, str]:
        """All of it for JSON."""
        return self._asdict()


def refuse(problems: tuple[Problem, ...]) -> None:
    """Raise the first problem, where there is one, with the others named.

    Raises:
        DeployError: There is one.
    """
    if not problems:
        return
    first, *others = problems
    found = "; ".join([first.found, *(f"{each.what}: {each.found}" for each in others)])
    raise DeployError(
        first.what, where=first.where, expected=first.expected, found=found, hint=first.hint
    )


def config_problems(candidate: Candidate) -> Iterator[Problem]:
    """What of config.json cannot be gone by: room and lengths are then not looked at.

    Args:
        candidate: The checkpoint.
    """
    for key, expected, found in candidate.config_faults:
        yield Problem(
            "config.json has a wrong value",
            where=key,
            expected=expected,
            found=found,
            hint="fetch config.json of the same release again",
        )


def room(
    candidate: Candidate, layout: Layout, context: int, *, shared_experts_whole: bool
) -> Iterator[Problem]:
    """Whether the model can be cut so, and whether weights and one sequence find room.

    Args:
        candidate: The checkpoint.
        layout: How it is spread.
        context: Tokens of a sequence.
        shared_experts_whole: Each card holds the shared experts whole.

    Yields:
        One problem at most.
    """
    if candidate.config is None:
        return
    fit = fit_layout(candidate.config, candidate.mtp_count, candidate.groups, layout, context)
    if fit.obstacles:
        yield Problem(
            f"the model does not divide by {layout.name}",
            where="config.json",
            expected="sizes that divide: vLLM refuses others",
            found="; ".join(fit.obstacles),
            hint="another --machine or --profile has another layout",
        )
        return
    more_nbytes = 0
    if shared_experts_whole:
        shared = [group for group in candidate.groups if group.is_shared_expert]
        more_nbytes = sum(
            group.held_nbytes - group.card_nbytes(candidate.config, layout) for group in shared
        )
    tokens = tokens_with_room(fit, more_nbytes)
    if tokens >= context:
        return
    weights = ((fit.weights_nbytes or 0) + more_nbytes) / 2**30
    card = layout.machine.card_nbytes / 2**30
    yield Problem(
        f"{layout.name} has no room for a sequence of {context:,} tokens",
        where=f"{layout.machine.name}, {GPU_MEMORY_UTILIZATION} of {card:.0f} GiB a card",
        expected=f"room for {context:,} tokens beside {weights:.1f} GiB of weights a card",
        found=f"room for {tokens:,}" if tokens else "less room than the weights take",
        hint=f"--context {tokens // 1024 * 1024}" if tokens >= 1024 else "take a larger machine",
    )


def tokens_with_room(fit: Fit, more_nbytes: int) -> int:
    """Tokens whose KV cache finds room once other things have taken some more of a card."""
    if not fit.kv_token_nbytes or fit.room_nbytes is None:
        return 0
    return max(0, (fit.room_nbytes - more_nbytes) // fit.kv_token_nbytes)


def verdict_problems(
    candidate: Candidate, version: Version, *, has_flag: bool, drafts: bool
) -> Iterator[Problem]:
    """What this version of vllm-ascend would stumble over in the folder.

    Args:
        candidate: The checkpoint.
        version: Which version.
        has_flag: It is told ``--quantization ascend``.
        drafts: It drafts with the MTP layer.

    Yields:
        A problem for the model, or for its MTP layer.
    """
    verdict = candidate.verdict(version.series)
    if verdict is None:
        return
    run = verdict.with_flag if has_flag else verdict.without_flag
    hint = f"{shlex.join(['glmquant', 'verify', str(candidate.folder)])} says more"
    if run.target.fate is not Fate.LOADS:
        yield Problem(
            f"vllm-ascend {version.exact} would not load the checkpoint rightly",
            where=str(candidate.folder),
            expected="a checkpoint that loads",
            found=run.target.text,
            hint=hint,
        )
    elif drafts and run.draft is not None and run.draft.fate is not Fate.LOADS:
        yield Problem(
            f"vllm-ascend {version.exact} would not load the MTP layer rightly",
            where=str(candidate.folder),
            expected="an MTP layer that loads",
            found=run.draft.text,
            hint=hint,
        )
