"""``glmquant eval``: how many questions a served model answers rightly."""

from __future__ import annotations

from pathlib import Path

import click

from glmquant.cli.measuring_options import Measuring, measuring_options


@click.command(
    "eval",
    short_help="Have a suite measure how many questions a server answers rightly.",
    epilog="Example: glmquant eval http://127.0.0.1:8000 --suite lm-eval --dataset gsm8k",
)
@click.argument("url", metavar="URL")
@click.option(
    "--suite",
    "suite_name",
    type=click.Choice(["aisbench", "lm-eval"]),
    default="aisbench",
    show_default=True,
    help="What asks and scores.",
)
@click.option(
    "--dataset",
    metavar="gsm8k|gpqa|math500|PATH",
    default="gsm8k",
    show_default=True,
    help="On what. PATH: a file, or a folder with one, in the form of one of the three.",
)
@click.option(
    "--limit", type=click.IntRange(1), help="The first so many questions.  [default: all]"
)
@click.option(
    "--max-out-len",
    type=click.IntRange(1),
    default=32_768,
    show_default=True,
    help="Most tokens of an answer, thoughts included.",
)
@measuring_options
@click.pass_context
def evaluate(
    ctx: click.Context,
    /,
    url: str,
    suite_name: str,
    dataset: str,
    limit: int | None,
    max_out_len: int,
    options: Measuring,
) -> None:
    """Ask a server at URL the questions of a data set, and count the right answers.

    The suite asks and scores; glmquant writes its configuration, reads its results and keeps them
    in DIR/.glmquant/results, from where they go into the card. Each figure has its number of items
    and a 95 % interval, and stands beside what others have published: one question in 1,319 is no
    progress. Counters of speculative decoding are read before and after. A key that the server asks
    for is taken from VLLM_API_KEY.

    glmquant compare holds two runs against each other.
    """
    from glmquant.cli.addresses import checked_url
    from glmquant.cli.measuring import run_suite
    from glmquant.errors import UsageError
    from glmquant.suites.datafiles import FORMS, read_data
    from glmquant.suites.task import Task

    is_known = dataset in FORMS
    if not is_known and not (dataset and Path(dataset).exists()):
        raise UsageError(
            "there is no such data set and no such file",
            where="--dataset",
            expected=f"{', '.join(FORMS)}, or a file",
            found=dataset or "nothing",
            hint="--dataset FILE.jsonl, in the form of one of the three",
        )
    task = Task(
        mode="accuracy",
        dataset=dataset if is_known else read_data(Path(dataset), dataset).dataset,
        data=None if is_known else Path(dataset),
        url=checked_url(url, "eval"),
        limit=limit,
        max_out_len=max_out_len,
    )
    run_suite(ctx, suite_name, task, options.checkpoint, options)
