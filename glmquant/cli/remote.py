"""A model that is named on the command line: a folder here, or a repository on a hub."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from glmquant.errors import GlmquantError

if TYPE_CHECKING:
    from glmquant.hubs.known import Reference
    from glmquant.hubs.source import HubSource
    from glmquant.observer import Observer

WORKERS = 8
RETRIES = 6
STALL_SECONDS = 60.0

RUN_RETRIES = 20
"""Of a command that brings weights, and is to last for hours."""


class Named(NamedTuple):
    """What was named.

    Attributes:
        folder: Where its headers and JSON can be read.
        shown: What a user calls that folder: where it would be fetched to, for a hub's.
        reference: The repository; None for a folder here.
    """

    folder: Path
    shown: Path
    reference: Reference | None

    @property
    def fetch_command(self) -> str:
        """What brings a hub's model here."""
        return shlex.join(["glmquant", "fetch", self.reference.text]) if self.reference else ""


@contextmanager
def headers_of(
    named: str | None, choose: Callable[[str | None], Path], *, as_json: bool
) -> Iterator[Named]:
    """A folder with the headers and JSON of what was named; of a hub's model they alone are read.

    Args:
        named: A path, an alias, ``hub:owner/name``, or None.
        choose: Gives the folder for a path or None.
        as_json: Progress goes to stdout as events.

    Raises:
        HubError: The hub cannot be asked.
        UsageError: What ``choose`` raises, or the name of a model that is not known.
    """
    reference = hub_reference(named)
    if reference is None:
        folder = choose(named)
        yield Named(folder, folder, None)
        return
    from glmquant.cli.progress import progress
    from glmquant.hubs.fetch import Manner, opened
    from glmquant.hubs.outline import outlined

    manner = Manner(WORKERS, RETRIES, STALL_SECONDS)
    with (
        progress(as_json) as observer,
        opened(reference, manner, observer) as session,
        outlined(session) as outline,
    ):
        yield Named(outline.folder, Path(reference.folder), reference)


def part_of(folder: Path) -> str | None:
    """The hub's model that a folder holds a part of, as one types it; None of other folders."""
    from glmquant.fetched import MARKER_FILE, parse_marker

    with suppress(OSError, GlmquantError):
        return parse_marker((folder / MARKER_FILE).read_bytes()).source
    return None


@contextmanager
def far_source(reference: Reference, observer: Observer) -> Iterator[HubSource]:
    """A hub's model as a source that is read by ranges; its side files come whole.

    Raises:
        HubError: The hub cannot be asked.
        GlmquantError: What is raised within, in words of the hub.
    """
    from glmquant.hubs.fetch import Manner, opened
    from glmquant.hubs.outline import outlined
    from glmquant.hubs.source import HubSource

    manner = Manner(WORKERS, RUN_RETRIES, STALL_SECONDS)
    with (
        opened(reference, manner, observer) as session,
        outlined(session, with_side_files=True) as outline,
        told_of(reference.text, outline.folder),
    ):
        yield HubSource(session, outline)


@contextmanager
def told_of(name: str, folder: Path) -> Iterator[None]:
    """Name a hub's model in errors, in place of the folder that stands for it here.

    Raises:
        GlmquantError: What is raised within, in other words.
    """
    try:
        yield
    except GlmquantError as error:
        for part in ("where", "found", "hint"):
            if text := getattr(error, part):
                setattr(error, part, text.replace(str(folder), name))
        raise


def hub_reference(named: str | None) -> Reference | None:
    """The repository that is meant; None where it is no alias and no ``hub:owner/name``."""
    if named is None or os.path.lexists(named):
        return None
    from glmquant.hubs.known import MODELS, find_model

    is_alias = named.lower() in {each.alias for each in MODELS}
    return find_model(named) if is_alias or ":" in named else None
