"""A repository as a source: its JSON and headers are here, every other byte is asked for."""

from __future__ import annotations

import os
from typing import Final

import xxhash

from glmquant.errors import HubError
from glmquant.hubs.answers import Setback
from glmquant.hubs.fetch import Session
from glmquant.hubs.listing import Listing, RemoteFile
from glmquant.hubs.outline import Outline
from glmquant.hubs.outputs import key_of
from glmquant.hubs.patience import Stopped
from glmquant.source import FileStamp, FolderSource

_MAX_RANGE_FAULTS: Final = 2


class HubSource(FolderSource):
    """The files of a repository, read by ranges; nothing but the range that is read comes.

    Args:
        session: The hub; open as long as this is used.
        outline: What of the repository is here.
    """

    is_far = True

    def __init__(self, session: Session, outline: Outline) -> None:
        super().__init__(outline.folder)
        self.listing = outline.listing
        self.origin = origin_text(outline.listing)
        self.shown = outline.listing.reference.text
        self._known = outline.known
        self._session = session
        self._objects = session.objects(outline.listing)

    def stamp(self, file: str) -> FileStamp:
        """Length and sum by the hub's list; they cannot change while it is read."""
        remote = self.listing.files[file]
        return FileStamp(remote.nbytes, 0, 0, key_of(remote, self.listing.commit))

    def read_into(self, file: str, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from what is here, or by a range.

        Raises:
            HubError: The hub fails too often, or gives no ranges.
        """
        if offset + len(buffer) <= self._known[file]:
            super().read_into(file, offset, buffer)
        elif buffer:
            self._fetch(self.listing.files[file], offset, buffer)

    def require_readable(self, file: str) -> None:
        """What is listed can be asked for."""

    def _fetch(self, file: RemoteFile, offset: int, buffer: memoryview) -> None:
        done = failures = range_faults = 0
        while done < len(buffer):
            try:
                for chunk in self._objects.read(file, offset + done, offset + len(buffer)):
                    if self._session.stop.is_set():
                        raise Stopped
                    buffer[done : done + len(chunk)] = chunk
                    done += len(chunk)
                    failures = range_faults = 0
            except Setback as setback:  # noqa: PERF203
                failures += 1
                range_faults += setback.is_range_trouble
                if range_faults >= _MAX_RANGE_FAULTS:
                    raise HubError(
                        "the server gives no ranges, so that single tensors cannot be read",
                        where=file.path,
                        expected="HTTP 206 with just the range that was asked for",
                        found=setback.text,
                        hint="fetch the whole model, or try another hub: glmquant models",
                    ) from setback
                self._session.patience.wait(setback, failures)


def origin_text(listing: Listing) -> str:
    """Repository, revision and commit in words; where a hub names no commit, a sum of its sums."""
    text = f"{listing.reference.text}, revision {listing.revision}"
    if listing.commit:
        return text if listing.commit == listing.revision else f"{text}, commit {listing.commit}"
    sums = xxhash.xxh3_64()
    for file in listing.files.values():
        sums.update(os.fsencode(repr(file)))
    return f"{text}, sums {sums.hexdigest()}"
