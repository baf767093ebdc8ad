"""A hub's model that is quantized while it comes: what was typed, and what is opened for it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from glmquant.errors import UsageError

if TYPE_CHECKING:
    from glmquant.hubs.known import Reference
    from glmquant.hubs.streaming import StreamedSource
    from glmquant.observer import Observer
    from glmquant.plan import Plan


class StreamRequest(NamedTuple):
    """What is to be streamed, and how.

    Attributes:
        named: The model, as it was typed.
        reference: The repository.
        kept: Where its weights stay; None where each shard is dropped.
        shards_in_flight: BF16 shards on the disk at once; None for the usual.
        revision: A branch, tag or commit; None for the hub's own.
    """

    named: str
    reference: Reference
    kept: Path | None
    shards_in_flight: int | None
    revision: str | None


class Streaming(NamedTuple):
    """A model that can come.

    Attributes:
        source: Gives its shards.
        name: What a user calls it.
        kept: Where its weights stay, or None.
    """

    source: StreamedSource
    name: str
    kept: Path | None

    def room_beside(self, target_dir: Path, plan: Plan) -> int:
        """Bytes that the shards take on the output's disk."""
        files = [shard.source_file for shard in plan.shards]
        return self.source.room_beside(target_dir, files)

    def line_text(self, plan: Plan) -> str:
        """What has to come over the line, and how long that takes."""
        from glmquant.cli.fetch_report import time_text
        from glmquant.cli.progress import nbytes_text
        from glmquant.hubs.pace import load_pace

        listing = self.source.listing
        nbytes = sum(listing.files[shard.source_file].nbytes for shard in plan.shards)
        pace = load_pace(listing.reference.hub.value)
        return f"{nbytes_text(nbytes)} have to come over the line: {time_text(nbytes, pace)}"


def require_stream(
    named: str | None,
    *,
    stream: bool,
    keep_source: Path | None,
    shards_in_flight: int | None,
    revision: str | None,
) -> StreamRequest | None:
    """What ``--stream`` and its options mean; None without it.

    Raises:
        UsageError: They do not fit together, or to what was named.
    """
    from glmquant.cli.remote import hub_reference

    reference = hub_reference(named)
    if not stream:
        options = {
            "--keep-source": keep_source,
            "--shards-in-flight": shards_in_flight,
            "--revision": revision,
        }
        given = [option for option, value in options.items() if value is not None]
        if given or reference is not None:
            what = f"{given[0]} belongs to --stream" if given else "the source is on a hub"
            name = named or "glm-4.6"
            raise UsageError(
                what,
                where=given[0] if given else name,
                expected="--stream with it, or a folder with BF16 weights",
                found="no --stream",
                hint=shlex.join(["glmquant", "w8a8", name, "--stream"])
                + (f", or glmquant fetch {shlex.quote(name)}" if reference else ""),
            )
        return None
    if reference is None:
        is_here = named is not None and os.path.lexists(named)
        raise UsageError(
            "--stream takes a model on a hub",
            where=named or "SOURCE",
            expected="a name that `glmquant models` lists, or hub:owner/name",
            found="a folder or file of that name" if is_here else "no such name",
            hint=f"glmquant w8a8 {shlex.quote(str(named))}" if is_here else "glmquant models",
        )
    if keep_source is not None and shards_in_flight is not None:
        raise UsageError(
            "--keep-source keeps all shards",
            where=f"--shards-in-flight {shards_in_flight}",
            expected="one of the two",
            found="both",
            hint="leave --shards-in-flight out",
        )
    return StreamRequest(str(named), reference, keep_source, shards_in_flight, revision)


def _require_repeatable(request: StreamRequest, target_dir: Path) -> None:
    """The same command has to go on after a kill: no folder of it takes the model's name.

    Raises:
        UsageError: One would.
    """
    for option, folder in (("TARGET", target_dir), ("--keep-source", request.kept)):
        if ":" in request.named or folder is None:
            continue
        if Path(request.named).absolute() == folder.absolute():
            raise UsageError(
                "a folder would have the model's name, and a path is never taken for that",
                where=f"{option} {folder}",
                expected="another folder, or the model as hub:owner/name",
                found="the same name for both",
                hint=shlex.join(["glmquant", "w8a8", request.reference.text, "--stream"]),
            )


@contextmanager
def streaming(
    request: StreamRequest, target_dir: Path, *, as_json: bool
) -> Iterator[tuple[Streaming, Observer]]:
    """A hub's model, planned and ready to come, and who is told of it.

    Args:
        request: What was typed.
        target_dir: The output; shards come to a folder beside it where they are not kept.
        as_json: Progress goes to stdout as events.

    Raises:
        CheckpointError: The repository does not hold together.
        HubError: The hub cannot be asked.
        TargetError: The folders overlap, or one cannot be used.
    """
    from glmquant.cli import remote
    from glmquant.cli.progress import progress
    from glmquant.hubs.fetch import Manner, opened, plan_fetch
    from glmquant.hubs.outline import outlined
    from glmquant.hubs.selection import Selection
    from glmquant.hubs.store import require_store, store_of
    from glmquant.hubs.streaming import SHARDS_IN_FLIGHT, StreamedSource
    from glmquant.target import refuse_overlap

    _require_repeatable(request, target_dir)
    folder = request.kept or store_of(target_dir)
    refuse_overlap(folder, target_dir)
    if request.kept is None:
        require_store(folder)
    name = request.reference.text
    manner = Manner(
        remote.WORKERS, remote.RUN_RETRIES, remote.STALL_SECONDS, revision=request.revision
    )
    with progress(as_json) as observer, opened(request.reference, manner, observer) as session:
        plan = plan_fetch(session, Selection(), folder)
        with (
            outlined(session, plan.listing, plan.model, with_side_files=True) as outline,
            remote.told_of(name, outline.folder),
            StreamedSource(
                session,
                outline,
                plan,
                keeps=request.kept is not None,
                shards_in_flight=request.shards_in_flight or SHARDS_IN_FLIGHT,
            ) as source,
        ):
            yield Streaming(source, name, request.kept), observer
