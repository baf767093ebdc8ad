"""``glmquant bench``: how fast a checkpoint is served, or runs by itself."""

from __future__ import annotations

from pathlib import Path

import click

from glmquant.cli.measuring_options import Measuring, measuring_options


@click.command(
    short_help="Have a suite measure how fast a server answers, or an engine runs.",
    epilog="Example: glmquant bench http://127.0.0.1:8000 --suite vllm",
)
@click.argument("target", metavar="URL|DIR")
@click.option(
    "--suite",
    "suite_name",
    type=click.Choice(["vllm", "aisbench"]),
    default="vllm",
    show_default=True,
    help="What measures.",
)
@click.option(
    "--mode",
    type=click.Choice(["serve", "latency", "throughput"]),
    help="serve: a server at URL under load. latency, throughput: vLLM loads DIR and runs by "
    "itself.  [default: serve for a URL, throughput for a folder]",
)
@click.option(
    "--dataset",
    metavar="random|prefix_repetition|tutorial|gsm8k|PATH",
    default="random",
    show_default=True,
    help="What is asked. vllm: made-up prompts, such with a beginning that they share, or the one "
    "of 32,000 tokens of vllm-ascend's tutorial. aisbench: made-up prompts, or questions.",
)
@click.option(
    "--requests", type=click.IntRange(1), default=64, show_default=True, help="How many are sent."
)
@click.option(
    "--input-len",
    type=click.IntRange(1),
    default=1024,
    show_default=True,
    help="Tokens of a made-up prompt.",
)
@click.option(
    "--output-len",
    type=click.IntRange(1),
    default=1024,
    show_default=True,
    help="Tokens of its answer.",
)
@measuring_options
@click.pass_context
def bench(
    ctx: click.Context,
    /,
    target: str,
    suite_name: str,
    mode: str | None,
    dataset: str,
    requests: int,
    input_len: int,
    output_len: int,
    options: Measuring,
) -> None:
    """Measure the speed of a server at URL, or of an engine that loads the checkpoint DIR.

    Times to the first token and between tokens, throughput, and what became of the drafts; requests
    that failed are counted. Results are kept in DIR/.glmquant/results, from where they go into the
    card. A key that the server asks for is taken from VLLM_API_KEY.

    glmquant compare holds two runs against each other.
    """
    from glmquant.cli.addresses import checked_url
    from glmquant.cli.measuring import run_suite
    from glmquant.errors import UsageError
    from glmquant.suites.task import Task

    is_url = "://" in target
    chosen = mode or ("serve" if is_url else "throughput")
    if is_url != (chosen == "serve"):
        raise UsageError(
            f"--mode {chosen} wants " + ("a server" if chosen == "serve" else "a folder"),
            where="--mode",
            expected="a server's URL" if chosen == "serve" else "a checkpoint's folder",
            found=target,
            hint="serve wants http://HOST:PORT, latency and throughput want DIR",
        )
    if not is_url and options.checkpoint is not None:
        raise UsageError("--checkpoint is DIR itself here", found=str(options.checkpoint))
    is_file = Path(dataset).exists()
    task = Task(
        mode=chosen,  # type: ignore[arg-type]
        dataset=Path(dataset).stem if is_file else dataset,
        data=Path(dataset) if is_file else None,
        url=checked_url(target, "bench") if is_url else None,
        requests=requests,
        input_len=input_len,
        output_len=output_len,
    )
    run_suite(ctx, suite_name, task, options.checkpoint if is_url else Path(target), options)
