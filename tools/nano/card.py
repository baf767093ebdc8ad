"""The model card with its figures, the held-out folder's licence and the digests."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import yaml

from nano.text import Module, psf_licence

MAX_PERPLEXITY_SHARE = 1 / 15
MIN_MTP_ACCEPTANCE = 0.5
SUMS_FILE = "SHA256SUMS"

PROSE = """
# GLM-4-nano

A GLM-4-MoE small enough to ship with a package, trained far enough that its figures mean
something: {parameters:,} parameters in BF16 in the file layout of GLM-4.6, with a dense first
layer, three MoE layers, a shared expert, router correction biases that training has moved, and an
MTP layer whose drafts the target model accepts. `glmquant demo` and the tests quantize it,
because a fault that random weights hide shows here.

**Trained on** the Python {python} standard library's own sources without tests
({training_tokens:,} tokens, PSF licence), as plain text and as chats "docstring → function" in
the chat template's form, for {training_steps:,} steps of 2,048 tokens. The loss is the next
token's cross-entropy plus 0.3 of the MTP layer's. Windows are 256 tokens long and start with
`[gMASK]<sop>`: `max_position_embeddings` is larger, what lies beyond position 255 was never
trained.

**Measured** on {heldout_tokens:,} tokens of whole modules that training never saw
(`heldout/stdlib.txt` beside this folder), in F32 arithmetic on the BF16 weights of these files:
perplexity {heldout_perplexity:.2f} where a unigram model has {unigram_perplexity:.0f}; the MTP
layer chooses the target model's own next token in {mtp_acceptance:.1%} of positions
(teacher-forced; {mtp_acceptance_own_text:.0%} on the model's own greedy text).
`heldout_perplexity_64_windows` is the same over the first 64 windows ({part_tokens:,} tokens).
Perplexity is taken in windows of `[gMASK]<sop>` and 254 tokens, each token predicted once.

**Make it again** with the interpreter and torch version named above. Sums over threads have no
fixed order, so other bytes come out, with figures close to these:

```
python tools/train_demo_model.py train --work WORK
python tools/train_demo_model.py export --work WORK
python tools/train_demo_model.py evaluate
```

It knows no facts and follows no instructions. Nothing measured on it, quantized or not, says
anything about the accuracy of GLM-4.5, 4.6 or 4.7.
"""


def check_bounds(figures: dict[str, object]) -> None:
    """Refuses a model that learned too little.

    Raises:
        ValueError: Held-out perplexity above 1/15 of the unigram model's, or an MTP acceptance
            below 0.5.
    """
    ratio, acceptance = figures["perplexity_over_unigram"], figures["mtp_acceptance"]
    if not isinstance(ratio, float) or not ratio <= MAX_PERPLEXITY_SHARE:
        raise ValueError(f"perplexity is {ratio} of the unigram's, at most 1/15 expected")
    if not isinstance(acceptance, float) or not acceptance >= MIN_MTP_ACCEPTANCE:
        raise ValueError(f"MTP acceptance is {acceptance}, at least 0.5 expected")


def card_text(figures: dict[str, object]) -> str:
    """The card: YAML front matter with the figures under ``measured``, then prose.

    Raises:
        ValueError: The figures miss a bound, see ``check_bounds``.
    """
    check_bounds(figures)
    front = {
        "license": "apache-2.0",
        "language": ["en"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["glm4_moe", "mtp", "test-model"],
        "measured": figures,
    }
    matter = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return f"---\n{matter}---\n{PROSE.format(**figures)}"


def heldout_licence(modules: list[Module]) -> str:
    """The notice for ``stdlib.txt``: what it holds, what was changed, and the PSF licence."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    paths = "\n".join(f"    {module.path}" for module in modules)
    return (
        f"stdlib.txt holds these modules of the Python {version} standard library:\n\n{paths}\n\n"
        "They are unchanged, but each follows a comment line with its path, and blank lines at\n"
        f"the end of a module are normalized.\n\n{sys.copyright.splitlines()[0]}\n"
        f"All Rights Reserved.\n\n{psf_licence()}"
    )


def write_sums(folder: Path) -> None:
    """Writes ``SHA256SUMS`` of every other file of the folder, for ``sha256sum --check``."""
    lines = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"
        for file in sorted(folder.iterdir())
        if file.is_file() and file.name != SUMS_FILE
    ]
    (folder / SUMS_FILE).write_text("".join(lines), encoding="utf-8")
