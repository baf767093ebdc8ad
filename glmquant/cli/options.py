"""The arguments that ``plan`` and ``w8a8`` have in common, each in one place."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import click


def default_workers() -> int:
    """Two threads for each core that this process may use, 16 at most.

    A thread that writes waits for the disk, and another then has the core.
    """
    return min(16, 2 * len(os.sched_getaffinity(0)))


source_argument = click.argument("source", required=False)
add_mtp_option = click.option(
    "--add-mtp", is_flag=True, help="Keep the MTP layer, in float, for speculative decoding."
)
recipe_option = click.option(
    "--recipe",
    "recipe_name",
    metavar="NAME|PATH",
    help="What becomes int8: a name that `glmquant recipes` lists, or a YAML file.  "
    "[default: w8a8]",
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=default_workers,
    help="Threads. The bytes are the same for any number.  [default: twice the cores, 16 at most]",
)
embed_option = click.option(
    "--embed-quant-config",
    is_flag=True,
    help="Put the description into config.json too, so that vllm-ascend 0.13 needs no flag.",
)
also_option = click.option(
    "--also",
    multiple=True,
    type=click.Choice(["mindie"]),
    help="Another engine that is to take the output, too. mindie: the key quantize goes into "
    "config.json, which no other engine reads.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="JSON lines on stdout.")


def w8a8_command(ctx: click.Context, source: Path) -> str:
    """The command that runs what was planned, with the options that were typed.

    Args:
        ctx: The verb's; ``--dry-run`` and what belongs to ``plan`` alone are left out.
        source: The folder that was meant, or the model on a hub.
    """
    typed = ctx.params
    words = ["glmquant", "w8a8", str(source)]
    if typed.get("target"):
        words.append(str(typed["target"]))
    words += ["--add-mtp"] * typed["add_mtp"]
    if typed["recipe_name"]:
        words += ["--recipe", typed["recipe_name"]]
    if ctx.get_parameter_source("workers") is click.core.ParameterSource.COMMANDLINE:
        words += ["--workers", str(typed["workers"])]
    words += ["--overwrite"] * typed.get("overwrite", False)
    words += ["--embed-quant-config"] * typed["embed_quant_config"]
    for engine in dict.fromkeys(typed["also"]):
        words += ["--also", engine]
    words += ["--stream"] * typed.get("stream", False)
    for option in ("keep_source", "shards_in_flight", "revision"):
        if typed.get(option) is not None:
            words += [f"--{option.replace('_', '-')}", str(typed[option])]
    return shlex.join(words)
