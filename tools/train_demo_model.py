"""Trains, exports and measures GLM-4-nano, the model in ``glmquant/demo/GLM-4-nano``.

Example:
    python tools/train_demo_model.py train --work ~/nano
    python tools/train_demo_model.py export --work ~/nano
    python tools/train_demo_model.py evaluate
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import click

DEMO = Path(__file__).resolve().parent.parent / "glmquant" / "demo"


@click.group()
@click.option("--threads", default=2, show_default=True, help="CPU threads for torch.")
def main(threads: int) -> None:
    """Make GLM-4-nano, or measure the one that is there."""
    import torch

    torch.set_num_threads(threads)
    logging.basicConfig(level=logging.INFO, format="%(message)s")


@main.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="State and progress.")
@click.option("--seed", type=int, help="Another seed than that of the shipped model.")
@click.option("--steps", type=int, help="Another number of steps.")
def train(work: Path, seed: int | None, steps: int | None) -> None:
    """Train from scratch, or go on where WORK stopped (about 17 minutes on 2 cores)."""
    from dataclasses import replace

    from nano.text import read_stdlib, split_heldout
    from nano.tokenizer import train_tokenizer
    from nano.training import TrainingPlan
    from nano.training import train as train_network
    from nano.windows import make_batches

    plan = TrainingPlan()
    plan = replace(plan, seed=plan.seed if seed is None else seed, steps=steps or plan.steps)
    work.mkdir(parents=True, exist_ok=True)
    modules, _ = split_heldout(read_stdlib())
    tokenizer = train_tokenizer(module.source for module in modules)
    tokenizer.save(str(work / "tokenizer.json"))
    began = time.perf_counter()
    train_network(work, make_batches(tokenizer, modules, plan.seed), plan)
    click.echo(f"trained in {time.perf_counter() - began:.0f} s; next: export --work {work}")


@main.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="As for train.")
@click.option("--target", type=click.Path(path_type=Path), default=DEMO, show_default="the demo")
@click.option("--force", is_flag=True, help="Write no card, but the files, of a weak model.")
def export(work: Path, target: Path, force: bool) -> None:
    """Write model, card and held-out text of a finished training to TARGET.

    The figures are measured on the files as written. A model below the bounds is not written.
    """
    from nano.release import release

    figures = release(work, target, force=force)
    click.echo(json.dumps(figures, indent=2))


@main.command()
@click.option("--model", type=click.Path(path_type=Path), default=DEMO / "GLM-4-nano")
@click.option("--heldout", type=click.Path(path_type=Path), default=DEMO / "heldout")
@click.option("--windows", type=int, help="The first so many windows of 256 tokens only.")
@click.option("--prompt", help="Print a greedy answer to this, too.")
def evaluate(model: Path, heldout: Path, windows: int | None, prompt: str | None) -> None:
    """Measure held-out perplexity and MTP acceptance of the model's files."""
    from dataclasses import asdict

    from nano.evaluate import answer, heldout_windows, score
    from nano.export import read_checkpoint
    from tokenizers import Tokenizer

    network = read_checkpoint(model)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    text = (heldout / "stdlib.txt").read_text(encoding="utf-8")
    rows = heldout_windows(tokenizer, text)[:windows]
    click.echo(json.dumps(asdict(score(network, rows)), indent=2))
    if prompt:
        click.echo(answer(network, tokenizer, prompt))


if __name__ == "__main__":
    main()
