"""``glmquant demo``: the whole job on a small trained model."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click


def _program() -> str:
    """The program as the user has to type it: by its path where it is not on the PATH."""
    called = sys.argv[0]
    is_ours = Path(called).name == "glmquant"
    return called if is_ours and shutil.which("glmquant") is None else "glmquant"


@click.command(
    short_help="Run the main job on a small trained model that comes along.",
    epilog="Example: glmquant demo /tmp/glmquant-demo",
)
@click.argument("folder", metavar="[DIR]", default="glmquant-demo", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="JSON lines on stdout.")
@click.pass_context
def demo(ctx: click.Context, folder: Path, as_json: bool) -> None:
    """Unpack GLM-4-nano into DIR, quantize it with its MTP layer, and verify what was written.

    GLM-4-nano is a trained GLM-4 MoE of 10 MB with every kind of tensor that the large ones have.
    DIR is ./glmquant-demo if left out.
    """
    ctx.meta["glmquant.json"] = as_json
    from glmquant.cli.progress import nbytes_text
    from glmquant.cli.summary import echo_table
    from glmquant.cli.verify import verify
    from glmquant.cli.w8a8 import w8a8
    from glmquant.demo import unpack_model

    source = unpack_model(folder)
    if not as_json:
        click.echo(f"$ glmquant w8a8 {source} --add-mtp")
    ctx.invoke(w8a8, source=str(source), add_mtp=True, as_json=as_json)
    target = source.with_name(f"{source.name}-W8A8-floatmtp")
    if not as_json:
        click.echo("written:")
        rows = [(path.name, nbytes_text(path.stat().st_size)) for path in sorted(target.iterdir())]
        echo_table(rows, left=1)
        click.echo(f"more to try: {_program()} w8a8 {source} --add-mtp --recipe w8a8-full")
        click.echo(f"$ glmquant verify {target} --source {source}")
    ctx.invoke(verify, folder=str(target), source=str(source), as_json=as_json)
