"""``glmquant models``: which models have a name, and where they are."""

from __future__ import annotations

import click

from glmquant.cli.options import json_option


@click.command(
    short_help="List the models that have a name, and where they are.",
    epilog="Example: glmquant models",
)
@json_option
@click.pass_context
def models(ctx: click.Context, as_json: bool) -> None:
    """List the models that `glmquant fetch` knows by name, with sizes and hubs.

    Sizes are about: fetch --dry-run asks the hub. Other repositories are named hub:owner/name.
    """
    ctx.meta["glmquant.json"] = as_json
    from glmquant.cli.progress import emit, nbytes_text
    from glmquant.cli.summary import echo_table
    from glmquant.hubs.known import MODELS

    if as_json:
        for model in MODELS:
            emit(
                "model",
                alias=model.alias,
                form=model.form,
                nbytes=model.nbytes,
                mtp_nbytes=model.mtp_nbytes,
                repositories={hub.value: name for hub, name in model.repositories.items()},
                note=model.note,
            )
        return
    rows = [["name", "weights", "where", "about", "MTP in it"]]
    for model in MODELS:
        for number, (hub, name) in enumerate(model.repositories.items()):
            sizes = [nbytes_text(model.nbytes), nbytes_text(model.mtp_nbytes)]
            first = [model.alias, model.form] if not number else ["", ""]
            rows.append([*first, f"{hub.value}:{name}", *(sizes if not number else ["", ""])])
    echo_table(rows, left=3)
    for model in MODELS:
        if model.note:
            click.echo(f"{model.alias}: {model.note}")
