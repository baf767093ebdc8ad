"""HTTP to a hub and to where it sends us: one attempt at a time, judged strictly.

A request gives what was asked for, or raises: ``Setback`` where the same may go well later,
``HubError`` where it will not. Who calls decides how often to try again. The token goes to the
hub's own origin and to no other.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn
from urllib.parse import urljoin, urlsplit

from glmquant import __version__
from glmquant.errors import HubError
from glmquant.hubs.addresses import is_loopback, origin_of, shown
from glmquant.hubs.answers import Answer, Setback, setback_of
from glmquant.hubs.connections import Connections
from glmquant.hubs.tokens import Token

_LEAST_NBYTES: Final = 1 << 14
_MOST_NBYTES: Final = 1 << 19
"""So much is taken from a connection at once: little from a slow one, since a cut loses it; much
from a fast one, since eight threads that take a TLS record each wait for each other."""

_FAST_SECONDS: Final = 0.05
_SLOW_SECONDS: Final = 0.5
"""A piece that comes faster is followed by one twice as long, one that comes slower by half."""

MAX_REDIRECTS: Final = 5
MAX_ANSWER_NBYTES: Final = 64_000_000
"""Of a listing; 3,000 files take about 2 MB."""

_NEXT: Final = re.compile(r'<([^>]+)>\s*;[^,]*rel="?next')


class Web:
    """Connections to a hub and to the object stores behind it; used from several threads.

    Args:
        endpoint: The hub's address, checked.
        token: Sent to that origin alone.
        token_variable: Where a user sets one.
        connections: How many there may be to one host.
        stall_seconds: How long a connection may give nothing, or next to nothing.

    Raises:
        UsageError: A file with certificates that is named cannot be read.
    """

    def __init__(
        self,
        endpoint: str,
        token: Token | None,
        *,
        token_variable: str,
        connections: int,
        stall_seconds: float,
    ) -> None:
        self.endpoint = endpoint
        self._variable = token_variable
        self._origin = origin_of(endpoint)
        self._token = token
        self.stall_seconds = stall_seconds
        self._connections = Connections(connections, stall_seconds)

    def close(self) -> None:
        """Give the connections back."""
        self._connections.close()

    def json(self, path: str) -> Any:
        """What an address of the hub's interface answers, as JSON.

        Args:
            path: With its query, from the endpoint on.

        Raises:
            Setback: No answer, or a server in trouble.
            HubError: The hub refuses.
            LookupError: It answers 404: there is no such thing; holds its words.
        """
        return self.page(path)[0]

    def page(self, path: str) -> tuple[Any, str | None]:
        """As ``json``, and where a long answer goes on: a path of this hub's, or None."""
        url = self.endpoint + path
        with self.open(url) as answer:
            data = self._whole(answer)
        if answer.status == 404:
            raise LookupError(_words(data))
        if answer.status in (401, 403):
            raise self.refused(url, f"HTTP {answer.status} {_words(data)}")
        if answer.status != 200:
            raise setback_of(answer)
        more = _NEXT.search(answer.headers.get("Link", ""))
        further = urljoin(url, more[1]) if more else None
        if further and origin_of(further) != self._origin:
            raise Setback(f"{shown(url)} goes on at another host: {shown(further)}")
        try:
            parsed = json.loads(data)
        except (ValueError, RecursionError):
            raise Setback(f"{shown(url)} answered with no JSON: {_words(data)}") from None
        return parsed, further and further[further.index("/", 8) :].removeprefix(
            urlsplit(self.endpoint).path
        )

    def small(self, url: str) -> bytes:
        """All that an address gives, which is to be short.

        Raises:
            Setback: It does not give all of it.
            HubError: It refuses.
        """
        with self.open(url) as answer:
            if answer.status != 200:
                self.judge(answer)
            return self._whole(answer)

    @contextmanager
    def open(self, url: str, begin: int | None = None, end: int | None = None) -> Iterator[Answer]:
        """One answer, its body unread; redirects are followed where it is safe.

        Args:
            url: What is asked for.
            begin: First byte, where a range is asked for.
            end: The byte after the last.

        Raises:
            Setback: No answer came.
            HubError: It leads where we do not go.
        """
        wanted = {} if begin is None or end is None else {"Range": f"bytes={begin}-{end - 1}"}
        for _ in range(MAX_REDIRECTS + 1):
            answer = Answer(url, self._connections.request(url, wanted | self._headers(url)))
            try:
                location = answer.headers.get("Location")
                if answer.status not in (301, 302, 303, 307, 308) or not location:
                    yield answer
                    return
                url = self._next(url, location)
            finally:
                answer.let_go()
        raise Setback(f"{shown(url)} sends us round in circles", is_expired=True)

    def body(self, answer: Answer, nbytes: int) -> Iterator[bytes]:
        """The bytes of a body that is to be so long, as they come.

        Raises:
            Setback: The body ends early, is longer, or hardly comes.
        """
        url, connections = answer.url, self._connections
        done, mark, marked_at = 0, 0, time.monotonic()
        size = _LEAST_NBYTES
        while done < nbytes:
            begun_at = time.monotonic()
            count = min(size, nbytes - done)
            with connections.trouble(url), connections.watch.over(answer.raw.shutdown):
                chunk = answer.raw.read1(count) if size == _LEAST_NBYTES else answer.raw.read(count)
            if not chunk:
                raise Setback(f"{shown(url)} ended after {done} of {nbytes} bytes")
            took = time.monotonic() - begun_at
            if took > _SLOW_SECONDS:
                size = max(size // 2, _LEAST_NBYTES)
            elif took < _FAST_SECONDS and len(chunk) == count:
                size = min(size * 2, _MOST_NBYTES)
            done += len(chunk)
            yield chunk
            now = time.monotonic()
            if now - marked_at > self.stall_seconds:
                if done - mark < 64 * (now - marked_at):
                    raise Setback(f"{shown(url)} stalled: {done - mark} bytes in the last "
                                  f"{now - marked_at:.0f} s")  # fmt: skip
                mark, marked_at = done, now

    def judge(self, answer: Answer) -> NoReturn:
        """Raise what a refusal of an object means.

        Raises:
            Setback: It may go well later, or at another address.
            HubError: It will not.
        """
        is_ours = origin_of(answer.url) == self._origin
        if answer.status == 404 and is_ours:
            raise HubError(
                "the hub lists a file that it does not have",
                where=shown(answer.url),
                expected="the file",
                found="HTTP 404",
                hint="run the command again: the repository may have changed meanwhile",
            )
        if answer.status == 401 and is_ours:
            raise self.refused(answer.url, "HTTP 401")
        raise setback_of(answer)

    def refused(self, url: str, text: str) -> HubError:
        """The error for a hub that wants a token, or another one."""
        had = f"sent the token of {self._token.origin}" if self._token else "sent no token"
        return HubError(
            "the hub refuses",
            where=shown(url),
            expected="leave to read the repository",
            found=f"{text}; {had}",
            hint=f"ask for access on the hub's page, and set {self._variable} to your token there",
        )

    def _next(self, url: str, location: str) -> str:
        try:
            target = urljoin(url, location)
            origin = origin_of(target)
        except ValueError:
            raise Setback(f"{shown(url)} leads to no address") from None
        is_local = is_loopback(origin.host) and is_loopback(self._origin.host)
        is_safe = origin.scheme == "https" or (origin.scheme == "http" and is_local)
        if not is_safe or not origin.host:
            raise HubError(
                "the hub leads to an address that is not safe",
                where=shown(url),
                expected="https",
                found=shown(target),
                hint="a proxy or a portal may be in between: ask who runs the network",
            )
        return target

    def _headers(self, url: str) -> dict[str, str]:
        headers = {"User-Agent": f"glmquant/{__version__}", "Accept-Encoding": "identity"}
        if self._token and origin_of(url) == self._origin:
            headers |= self._token.headers
        return headers

    def _whole(self, answer: Answer) -> bytes:
        data = bytearray()
        deadline = time.monotonic() + 10 * self.stall_seconds
        with self._connections.trouble(answer.url):
            while chunk := answer.raw.read1(_LEAST_NBYTES):
                data += chunk
                if len(data) > MAX_ANSWER_NBYTES or time.monotonic() > deadline:
                    raise Setback(f"{shown(answer.url)} does not end: {len(data)} bytes so far")
        length = answer.headers.get("Content-Length", "")
        if length.isdigit() and int(length) != len(data):
            raise Setback(f"{shown(answer.url)} ended after {len(data)} of {length} bytes")
        return bytes(data)


def _words(data: bytes) -> str:
    text = data[:200].decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()
