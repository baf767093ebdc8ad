"""Ranges of a repository's files, wherever the hub sends us for them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from glmquant.errors import HubError
from glmquant.hubs.addresses import origin_of
from glmquant.hubs.answers import Answer, Setback, exact_range
from glmquant.hubs.listing import Listing, RemoteFile
from glmquant.hubs.protocols import Protocol
from glmquant.hubs.web import Web


class Objects:
    """The bytes of a repository; used from several threads.

    A signed address is kept and used for further ranges of its file until it expires.

    Args:
        web: Connections.
        protocol: Names a file's address.
        listing: The repository.
    """

    def __init__(self, web: Web, protocol: Protocol, listing: Listing) -> None:
        self._web = web
        self._protocol = protocol
        self._listing = listing
        self._addresses: dict[str, str] = {}
        self._lock = threading.Lock()

    def read(self, file: RemoteFile, begin: int, end: int) -> Iterator[bytes]:
        """A range of a file, in pieces as they come; one attempt.

        Args:
            file: Of the listing.
            begin: First byte.
            end: The byte after the last.

        Raises:
            Setback: It did not come whole; what was given up to then is right.
            HubError: It will not come.
        """
        is_whole = begin == 0 and end == file.nbytes
        wanted = (None, None) if is_whole else (begin, end)
        with self._open(file, *wanted) as answer:
            if answer.status == 206:
                exact_range(answer, begin, end, file.nbytes)
            elif is_whole:
                _exact_whole(answer, file)
            else:
                raise Setback(
                    "the server ignores ranges: it sent the whole file", is_range_trouble=True
                )
            yield from self._web.body(answer, end - begin)

    def head(self, file: RemoteFile, nbytes: int) -> bytes:
        """The first bytes of a file, also from a server that ignores ranges; one attempt.

        Raises:
            Setback: They did not come.
            HubError: They will not.
        """
        nbytes = min(nbytes, file.nbytes)
        with self._open(file, 0, nbytes) as answer:
            if answer.status == 206:
                exact_range(answer, 0, nbytes, file.nbytes)
            else:
                _exact_whole(answer, file)
            return b"".join(self._web.body(answer, nbytes))

    @contextmanager
    def _open(self, file: RemoteFile, begin: int | None, end: int | None) -> Iterator[Answer]:
        with self._lock:
            kept = self._addresses.get(file.path)
        try:
            url = kept or self._protocol.url(self._listing, file.path)
            with self._web.open(url, begin, end) as answer:
                if answer.status not in (200, 206):
                    self._web.judge(answer)
                if origin_of(answer.url) != origin_of(self._web.endpoint):
                    with self._lock:
                        self._addresses[file.path] = answer.url
                yield answer
        except Setback as setback:
            if kept is not None:
                with self._lock:
                    if self._addresses.get(file.path) == kept:
                        del self._addresses[file.path]
                if setback.is_expired and setback.wait_seconds is None:
                    setback.wait_seconds = 0.0
            setback.text = f"{file.path}: {setback.text}"  # an address need not show the name
            raise
        except HubError as error:
            error.where = f"{file.path} at {error.where}"
            raise


def _exact_whole(answer: Answer, file: RemoteFile) -> None:
    length = answer.headers.get("Content-Length", "")
    packed = answer.headers.get("Content-Encoding", "identity")
    if packed != "identity":
        raise Setback(f"the server packed the body: {packed}")
    if length.isdigit() and int(length) != file.nbytes:
        raise Setback(
            f"the stored object is not as long as the hub lists: {length}, listed {file.nbytes}",
            is_expired=True,
            is_about_object=True,
        )
