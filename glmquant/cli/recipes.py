"""``glmquant recipes``: what becomes int8."""

from __future__ import annotations

import click


@click.command(
    short_help="List the recipes, or show one.", epilog="Example: glmquant recipes w8a8-full"
)
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a recipe on stdout.")
@click.pass_context
def recipes(ctx: click.Context, name: str | None, as_json: bool) -> None:
    """List the recipes, or show the one called NAME; NAME may be the path of your own."""
    ctx.meta["glmquant.json"] = as_json
    from glmquant.cli.progress import emit
    from glmquant.recipe import DEFAULT_RECIPE, list_recipes, load_recipe, recipe_path

    shown = list_recipes() if name is None else [load_recipe(name)]
    if as_json:
        for recipe in shown:
            emit("recipe", **recipe.model_dump(mode="json"))
    elif name is None:
        for recipe in shown:
            default = " (default)" if recipe.name == DEFAULT_RECIPE else ""
            click.echo(f"{recipe.name:<12}{recipe.summary}{default}")
    else:
        click.echo(recipe_path(name).read_text(encoding="utf-8"), nl=False)
