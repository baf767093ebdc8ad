"""Copies that the hubs' own tools have fetched before: where they lie, found by name.

Layouts as in modelscope-hub 0.5.1 (and the older SDK up to 1.37), huggingface_hub 2.4.0 and
openmind-hub 1.3.0. Nothing here is believed: a copy is read and held against the hub's sum before
it is taken.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from glmquant.hubs.known import MODELS
from glmquant.hubs.listing import Listing, RemoteFile
from glmquant.hubs.tokens import hf_file


def cached_folders(listing: Listing) -> list[Path]:
    """Folders of the hubs' tools that may hold files of a repository, those that are there.

    The same model is looked for under its names on all hubs.
    """
    names = {(listing.reference.hub, listing.reference.repository)}
    known = listing.reference.known
    if known in MODELS and known is not None:
        names |= set(known.repositories.items())
    found: dict[Path, None] = {}
    with suppress(RuntimeError):  # the user has no home
        for _, repository in sorted(names):
            for folder in _candidates(repository):
                with suppress(OSError):
                    if folder.is_dir():
                        found[folder] = None
    return list(found)


def cached_copies(folders: list[Path], file: RemoteFile) -> Iterator[Path]:
    """Files that may be a copy: by the name of a blob or of a file, of the right length.

    Args:
        folders: As ``cached_folders`` found them.
        file: What is wanted; without a sum of the hub's nothing is a copy.
    """
    digest = file.sha256 or file.git_sha1
    if digest is None:
        return
    for folder in folders:
        for path in (folder.parent.parent / "blobs" / digest, folder / file.path):
            with suppress(OSError):
                if path.is_file() and path.stat().st_size == file.nbytes:
                    yield path.resolve()


def _candidates(repository: str) -> Iterator[Path]:
    owner, _, name = repository.partition("/")
    home = Path.home()
    roots = [home / ".cache" / "modelscope"]
    if named := os.environ.get("MODELSCOPE_CACHE"):
        roots.insert(0, Path(named).expanduser())
    for root in roots:
        yield from _snapshots(root / "models" / f"{owner}--{name}")
        for inner in (root / "models", root / "hub" / "models", root / "hub", root):
            yield inner / owner / name.replace(".", "___")
    cache = os.environ.get("XDG_CACHE_HOME")
    hubs = [
        hf_file("HF_HUB_CACHE", "hub"),
        hf_file("HUGGINGFACE_HUB_CACHE", "hub"),
        (Path(cache) if cache else home / ".cache") / "openmind" / "hub",
    ]
    for hub in hubs:
        if hub is not None:
            yield from _snapshots(hub / f"models--{owner}--{name}")


def _snapshots(repository: Path) -> Iterator[Path]:
    with suppress(OSError):
        yield from sorted((repository / "snapshots").iterdir())
