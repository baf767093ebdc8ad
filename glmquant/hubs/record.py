"""What a folder says of itself once it is fetched."""

from __future__ import annotations

import hashlib
import shlex
import shutil
from pathlib import Path

from glmquant.fetched import (
    MARKER_FILE,
    PARTIAL_SHARD,
    RECORD_FILE,
    FetchedFile,
    Marker,
    Proof,
    Record,
    build_marker,
    build_record,
)
from glmquant.hubs.journal import Journal
from glmquant.hubs.prospect import FetchPlan
from glmquant.hubs.protocols import is_usual_endpoint
from glmquant.index import INDEX_FILE, build_index
from glmquant.source import file_stamp
from glmquant.storage import STATE_DIR, writing
from glmquant.writer import PART_SUFFIX, write_file


def record_what_came(plan: FetchPlan, files: dict[str, FetchedFile], journal: Journal) -> Record:
    """Marker and index of a part, or none of them; then the record; parts of others are removed.

    Args:
        plan: What was wanted.
        files: What is there, by name.
        journal: Knows what was begun.

    Raises:
        StorageError: The disk refuses.
    """
    folder, wanted = plan.folder, plan.wanted
    made: dict[str, bytes] = {}
    if wanted.is_partial:
        made[MARKER_FILE] = build_marker(
            Marker(
                source=plan.listing.reference.text,
                selection=plan.selection.text,
                tensors=wanted.tensors,
                of_tensors=wanted.of_tensors,
                complete_with=_command(plan),
            )
        )
    if wanted.index and plan.model is not None:
        tensors = plan.model.tensors()
        nbytes = sum(tensors[name].nbytes for name in wanted.index)
        made[INDEX_FILE] = build_index(wanted.index, nbytes)
    for name, data in made.items():
        write_file(folder / name, data)
        stamp = file_stamp(folder / name)
        digest = hashlib.sha256(data).hexdigest()
        files[name] = FetchedFile(len(data), digest, Proof.MADE, stamp.mtime_ns, "")
    for name in (MARKER_FILE, PARTIAL_SHARD):
        if name not in files:
            with writing(folder / name):
                (folder / name).unlink(missing_ok=True)
    record = Record(
        hub=plan.listing.reference.hub.value,
        endpoint=plan.endpoint,
        repository=plan.listing.reference.repository,
        revision=plan.listing.revision,
        commit=plan.listing.commit,
        selection=plan.selection.text,
        files=dict(sorted(files.items())),
    )
    write_file(folder / RECORD_FILE, build_record(record))
    for name in journal.begun() - record.files.keys():  # of another selection or commit
        part = folder / f"{name}{PART_SUFFIX}"
        with writing(part):
            part.unlink(missing_ok=True)
    return record


def remove_fetched(folder: Path) -> None:
    """Remove a folder that only what was fetched is in; what says so goes last.

    A run that is interrupted here finds a folder of ours, whatever is left of it.

    Raises:
        StorageError: The disk refuses.
    """
    with writing(folder):
        for path in sorted(folder.iterdir()):
            if path.name == STATE_DIR:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        shutil.rmtree(folder / STATE_DIR, ignore_errors=True)
        folder.rmdir()


def _command(plan: FetchPlan) -> str:
    """The command that fetches the rest."""
    words = ["glmquant", "fetch", plan.listing.reference.text, str(plan.folder.absolute())]
    if not is_usual_endpoint(plan.listing.reference.hub.value, plan.endpoint):
        words += ["--endpoint", plan.endpoint]
    return shlex.join(words)
