"""Runs the reference model in a process of its own: killed in the midst, or measured."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path

import torch

from glmquant.observer import Observer
from glmquant.runtime.observed import Prompt
from glmquant.runtime.reference import Reference, divergence


class Killer(Observer):
    """Ends the process like a power cut after so many bytes; 0 lets it live."""

    def __init__(self, nbytes: int) -> None:
        self.left = nbytes
        self.done = -1
        self.total = -1
        self.told = 0

    def start(self, doing: str, done_nbytes: int, total_nbytes: int) -> None:
        assert doing == "reference"
        self.done, self.total = done_nbytes, total_nbytes

    def advance(self, nbytes: int) -> None:
        self.told += nbytes
        if self.left and self.told >= self.left:
            os.kill(os.getpid(), signal.SIGKILL)


def peak_nbytes() -> int:
    """The most resident memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """``WHAT FOLDER OTHER NBYTES``: prints the results and the peak as JSON."""
    what, folder, other, nbytes = sys.argv[1:]
    torch.set_num_threads(2)
    before = peak_nbytes()
    killer = Killer(int(nbytes))
    reference = Reference(Path(folder))
    tokens = [[(7 * at + n) % 60 for at in range(11 + n)] for n in range(3)]
    found: object
    if what == "greedy":
        prompts = [Prompt("", tuple(each)) for each in tokens]
        found = reference.continue_greedily(prompts, 8, 2, killer)
    elif what == "text":
        found = [each.tolist() for each in reference.prompt_logprobs(tokens, killer)]
    else:
        figures = divergence(reference, Reference(Path(other)), tokens, killer)
        found = [each.tolist() for each in figures]
    sys.stdout.write(
        json.dumps(
            {
                "found": found,
                "done": killer.done,
                "told": killer.told,
                "total": killer.total,
                "above": peak_nbytes() - before,
            }
        )
    )


if __name__ == "__main__":
    main()
