"""From a finished training to the folder that ships: export, measure, card, digests."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer

from nano.card import card_text, heldout_licence, write_sums
from nano.evaluate import (
    PART_WINDOWS,
    heldout_windows,
    own_text_acceptance,
    score,
    unigram_perplexity,
)
from nano.export import read_checkpoint, write_checkpoint
from nano.network import Nano, NanoConfig
from nano.text import heldout_text, read_stdlib, split_heldout
from nano.windows import encode_modules

MODEL_NAME = "GLM-4-nano"
MODEL_MAX_NBYTES = 12_000_000


def release(work: Path, target: Path, force: bool = False) -> dict[str, object]:
    """Writes ``target/GLM-4-nano`` and ``target/heldout`` and returns the measured figures.

    Everything is made in ``work/release`` and copied when it has passed.

    Args:
        work: Folder of a training, with ``state.pt`` and ``tokenizer.json``.
        target: Folder that gets the two folders.
        force: Leave out the card and its bounds, to try the export on a barely trained model.

    Raises:
        ValueError: The figures miss a bound, or the folder is larger than 12 MB.
    """
    staged = work / "release"
    shutil.rmtree(staged, ignore_errors=True)
    model, heldout = staged / MODEL_NAME, staged / "heldout"
    heldout.mkdir(parents=True)
    state = torch.load(work / "state.pt", weights_only=True)
    network = Nano(NanoConfig())
    network.load_state_dict(state["network"])
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    write_checkpoint(network, tokenizer, model)

    training, held = split_heldout(read_stdlib())
    text = heldout_text(held)
    (heldout / "stdlib.txt").write_text(text, encoding="utf-8")
    (heldout / "LICENSE.txt").write_text(heldout_licence(held), encoding="utf-8")

    figures = measure(model, text, encode_modules(tokenizer, training), state)
    if not force:
        (model / "README.md").write_text(card_text(figures), encoding="utf-8")
    write_sums(model)
    nbytes = sum(file.stat().st_size for file in model.iterdir())
    if nbytes > MODEL_MAX_NBYTES:
        raise ValueError(f"{model} has {nbytes} bytes, at most {MODEL_MAX_NBYTES} expected")
    for folder in (model, heldout):
        shutil.rmtree(target / folder.name, ignore_errors=True)
        shutil.copytree(folder, target / folder.name)
    return figures


def measure(
    model: Path, text: str, training: torch.Tensor, state: dict[str, object]
) -> dict[str, object]:
    """The card's figures, from the files in ``model``.

    Args:
        model: The exported checkpoint.
        text: The held-out text.
        training: ``[tokens]`` int64, for the unigram baseline.
        state: The training's last state, for seed, steps and seconds.
    """
    network = read_checkpoint(model)
    windows = heldout_windows(Tokenizer.from_file(str(model / "tokenizer.json")), text)
    whole, part = score(network, windows), score(network, windows[:PART_WINDOWS])
    unigram = unigram_perplexity(training, windows)
    identity = state["identity"]
    if not isinstance(identity, dict):
        raise ValueError("the training's state has no identity")
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "heldout_tokens": whole.tokens,
        "heldout_perplexity": round(whole.perplexity, 4),
        "unigram_perplexity": round(unigram, 2),
        "perplexity_over_unigram": round(whole.perplexity / unigram, 5),
        "mtp_acceptance": round(whole.mtp_acceptance, 4),
        "mtp_acceptance_own_text": round(own_text_acceptance(network, windows), 4),
        "part_tokens": part.tokens,
        "heldout_perplexity_64_windows": round(part.perplexity, 4),
        "mtp_acceptance_64_windows": round(part.mtp_acceptance, 4),
        "training_tokens": len(training),
        "training_seed": identity["seed"],
        "training_steps": state["step"],
        "training_seconds": round(float(str(state["seconds"]))),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
