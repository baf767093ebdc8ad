"""The options that bench and eval have in common, and what they say together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from glmquant.cli.options import json_option

if TYPE_CHECKING:
    from glmquant.suites.task import Task

_OPTIONS = (
    click.option(
        "--checkpoint",
        metavar="DIR",
        type=click.Path(path_type=Path),
        help="The checkpoint on this machine: results go into its .glmquant/results, and its "
        "tokenizer is used where a suite needs one.  [default: what the server says it serves, if "
        "it is on this machine; else results go into the working directory]",
    ),
    click.option(
        "--concurrency",
        type=click.IntRange(1, 4096),
        default=16,
        show_default=True,
        help="Requests at once.",
    ),
    click.option("--seed", type=click.IntRange(0), default=1024, show_default=True, help="Of all."),
    click.option(
        "--machine", metavar="TEXT", default="", help="Where it is served, for the record."
    ),
    click.option(
        "--set",
        "settings",
        metavar="NAME=VALUE",
        multiple=True,
        help="An option of the suite's own; a wrong name lists them.",
    ),
    click.option(
        "--python",
        metavar="PATH",
        type=click.Path(path_type=Path),
        help="The Python that has the suite.  [default: its own environment, else the one found]",
    ),
    click.option("--install", is_flag=True, help="Install the suite first, where it is not."),
    click.option(
        "--torch-index",
        metavar="URL",
        envvar="GLMQUANT_TORCH_INDEX",
        show_envvar=True,
        help="With --install: the package index that torch alone is taken from.",
    ),
    click.option("--dry-run", is_flag=True, help="Print what would be run, and ask nobody."),
    json_option,
)


@dataclass(frozen=True, slots=True)
class Measuring:
    """What the options said.

    Attributes:
        checkpoint: The folder that was named, or None.
        concurrency: Requests at once.
        seed: Of all.
        machine: Where it is served.
        settings: ``NAME=VALUE`` each.
        python: The interpreter that has the suite.
        install: Install the suite first, where it is not.
        torch_index: For that.
        dry_run: Only say what would be done.
        as_json: JSON lines on stdout.
    """

    checkpoint: Path | None
    concurrency: int
    seed: int
    machine: str
    settings: tuple[str, ...]
    python: Path | None
    install: bool
    torch_index: str | None
    dry_run: bool
    as_json: bool

    def complete(self, task: Task) -> Task:
        """A task with what is asked of each alike, and the key of the server.

        Args:
            task: What the verb itself says of it.

        Raises:
            UsageError: A setting is none.
        """
        from glmquant.runtime.launch import key_here

        return replace(
            task,
            concurrency=self.concurrency,
            seed=self.seed,
            settings=_parse_settings(self.settings),
            api_key=key_here(),
        )


def measuring_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of both verbs, in the order of their help; the verb gets them as ``options``.

    Args:
        command: The function of a verb.
    """

    @wraps(command)
    def gathered(**given: Any) -> None:
        options = Measuring(**{each.name: given.pop(each.name) for each in fields(Measuring)})
        click.get_current_context().meta["glmquant.json"] = options.as_json
        command(options=options, **given)

    for option in reversed(_OPTIONS):
        gathered = option(gathered)
    return gathered


def _parse_settings(given: Iterable[str]) -> dict[str, str]:
    """``NAME=VALUE`` each.

    Raises:
        UsageError: One is not, or a name is there twice.
    """
    from glmquant.errors import UsageError

    found: dict[str, str] = {}
    for text in given:
        name, is_there, value = text.partition("=")
        if not is_there or not name or name in found:
            raise UsageError(
                "--set wants each option once",
                expected="NAME=VALUE",
                found=text,
                hint="as in --set temperature=0.6",
            )
        found[name] = value
    return found
