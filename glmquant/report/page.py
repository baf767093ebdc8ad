"""Pages that say in a browser what a command found."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, StrictUndefined

_MARK: Final = b'<meta name="generator" content="glmquant">'
"""Stands in every page, near its beginning."""


def is_page(path: Path) -> bool:
    """Whether a file is a page of ours, so that another may take its place.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return _MARK in file.read(500)


def render_page(name: str, fields: dict[str, Any]) -> bytes:
    """A page that needs nothing else: no script, no font, no link to anywhere.

    Args:
        name: The template beside this module, without its suffix.
        fields: What it shows; text is escaped.

    Returns:
        UTF-8 HTML.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = files("glmquant.report").joinpath(f"{name}.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(source).render(fields).encode(errors="backslashreplace")
