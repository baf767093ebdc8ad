"""The command ``glmquant``: one module a verb, each a thin shell over a function below."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from typing import Any, NoReturn

import click

from glmquant import __version__
from glmquant.cli.add_mtp import add_mtp
from glmquant.cli.bench import bench
from glmquant.cli.card import card
from glmquant.cli.compare import compare
from glmquant.cli.demo import demo
from glmquant.cli.doctor import doctor
from glmquant.cli.engine import engine
from glmquant.cli.eval import evaluate
from glmquant.cli.fetch import fetch
from glmquant.cli.inspect import inspect
from glmquant.cli.models import models
from glmquant.cli.plan import plan
from glmquant.cli.progress import emit
from glmquant.cli.publish import publish
from glmquant.cli.recipes import recipes
from glmquant.cli.serve import serve
from glmquant.cli.smoke import smoke
from glmquant.cli.suites import suites
from glmquant.cli.verify import verify
from glmquant.cli.w8a8 import w8a8
from glmquant.errors import GlmquantError, StorageError


class _Commands(click.Group):
    """Turns errors into a message and an exit code: 1 failure, 2 usage, 130 interrupted."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except GlmquantError as error:
            _fail(ctx, error)
        except KeyboardInterrupt:
            starts_anew = ctx.meta.get("glmquant.starts_anew")
            then = "starts anew" if starts_anew else "goes on where this one stopped"
            click.echo(f"interrupted: the same command {then}", err=True)
            if ctx.meta.get("glmquant.json"):
                emit("interrupted")
            ctx.exit(130)
        except MemoryError as error:
            failure = StorageError("there is too little memory", hint="use fewer --workers")
            failure.__cause__ = error
            _fail(ctx, failure)
        except BrokenPipeError:
            raise
        except OSError as error:
            failure = StorageError(
                "the operating system refused a file",
                where=str(error.filename) if error.filename else "the standard output, perhaps",
                found=error.strerror or str(error),
                hint="check the file and its mode; GLMQUANT_DEBUG=1 shows where it happened",
            )
            failure.__cause__ = error
            _fail(ctx, failure)


def _fail(ctx: click.Context, failure: GlmquantError) -> NoReturn:
    if os.environ.get("GLMQUANT_DEBUG") == "1":
        traceback.print_exception(failure, file=sys.stderr)
    click.echo(f"error: {failure}", err=True)
    if ctx.meta.get("glmquant.json"):
        with suppress(OSError):  # stdout may be what failed
            emit("error", error=type(failure).__name__, **failure.fields())
    ctx.exit(failure.exit_code)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 96},
    epilog="Exit codes: 0 done, 1 failure, 2 wrong usage, 130 interrupted. "
    "GLMQUANT_DEBUG=1 adds the traceback.",
)
@click.version_option(__version__, message="glmquant %(version)s")
def main() -> None:
    """Prepare GLM-4.5, 4.5-Air, 4.6 and 4.7 weights for Ascend NPUs."""


for _command in (
    *(doctor, models, fetch, inspect, plan, w8a8, add_mtp, verify),
    *(serve, smoke, bench, evaluate, compare, card, publish, recipes, demo, engine, suites),
):
    main.add_command(_command)
