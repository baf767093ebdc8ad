"""HTTP to a hub and to where it sends us: one attempt at a time, judged strictly.

A request gives what was asked for, or raises: ``Setback`` where the same may go well later,
``HubError`` where it will not. Who calls decides how often to try again. The token goes to the
hub's own origin and to no other.
"""

from __future__ import annotations

import email.utils
import ipaddress
import json
import os
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import (
    HTTPError,
    LocationParseError,
    MaxRetryError,
    ReadTimeoutError,
    SSLError,
)

from glmquant import __version__
from glmquant.errors import HubError, UsageError
from glmquant.hubs.tokens import Token
from glmquant.watch import OverdueError, Watch, watched_pools

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

MAX_WAIT_SECONDS: Final = 3600.0
"""Of what a ``Retry-After`` asks for."""

_CONNECT_SECONDS: Final = 20.0
_EXPIRED: Final = (400, 401, 403, 404, 410)
"""What object stores answer to a signature that is no longer good."""

_NEXT: Final = re.compile(r'<([^>]+)>\s*;[^,]*rel="?next')

_CA_VARIABLES: Final = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Besides SSL_CERT_FILE and SSL_CERT_DIR, which OpenSSL itself reads."""


class Setback(Exception):  # noqa: N818 - no error yet: the same may go well later
    """An attempt failed that may be made again.

    Args:
        text: What happened.
        wait_seconds: How long the server asks to wait; None where it does not say.
        is_expired: A signed address is no longer good: ask the hub for another.
        is_range_trouble: The server gave another range than was asked for, or none.
        is_about_object: What is stored there is not what the hub lists.
    """

    def __init__(
        self,
        text: str,
        *,
        wait_seconds: float | None = None,
        is_expired: bool = False,
        is_range_trouble: bool = False,
        is_about_object: bool = False,
    ) -> None:
        super().__init__(text)
        self.text = text
        self.wait_seconds = wait_seconds
        self.is_expired = is_expired
        self.is_range_trouble = is_range_trouble
        self.is_about_object = is_about_object


class Origin(NamedTuple):
    """Scheme, host and port of an address."""

    scheme: str
    host: str
    port: int | None


class Answer(NamedTuple):
    """What came, its body unread.

    Attributes:
        url: Who gave it, behind all redirects.
        raw: urllib3's.
    """

    url: str
    raw: urllib3.BaseHTTPResponse

    @property
    def status(self) -> int:
        """HTTP's."""
        return self.raw.status

    @property
    def headers(self) -> Mapping[str, str]:
        """Names in any case."""
        return self.raw.headers

    def let_go(self) -> None:
        """Give the connection back where all was read; else close it."""
        if getattr(self.raw, "length_remaining", None) == 0:
            self.raw.drain_conn()  # reads nothing more, and lets http.client see the end
            self.raw.release_conn()
        else:
            self.raw.close()


def origin_of(url: str) -> Origin:
    """Where an address leads; a port that goes without saying is written out."""
    parts = urlsplit(url)
    port = parts.port or {"https": 443, "http": 80}.get(parts.scheme)
    return Origin(parts.scheme, (parts.hostname or "").lower(), port)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by its name alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_endpoint(url: str) -> str:
    """The address of a hub as it was given, without a final slash.

    Raises:
        UsageError: It is no https address; http is taken for this machine alone.
    """
    url = url.strip().rstrip("/")
    try:
        parts, origin = urlsplit(url), origin_of(url)
    except ValueError:  # a port that is no number
        parts, origin = urlsplit(""), Origin("", "", None)
    is_safe = origin.scheme == "https" or (origin.scheme == "http" and is_loopback(origin.host))
    if not is_safe or not origin.host or "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(
            "the address of the hub cannot be used",
            where=parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() or url[:200],
            expected="https://HOST, or http://127.0.0.1:PORT of this machine; no user, no query",
            found=f"{origin.scheme or 'no scheme'}, host {origin.host or 'missing'}",
            hint="glmquant fetch --endpoint https://HOST",
        )
    return url


def shown(url: str) -> str:
    """An address as it may be printed: its query may hold a signature."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{unquote(parts.path)[:160]}"


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
        self._settings: dict[str, Any] = {
            "num_pools": 32,
            "maxsize": connections,
            "retries": False,
            "timeout": urllib3.Timeout(connect=min(_CONNECT_SECONDS, stall_seconds)),
            "ssl_context": _ssl_context(),
        }
        self._watch = Watch(stall_seconds)
        self._direct = self._watched(urllib3.PoolManager(**self._settings))
        self._proxied: dict[str, urllib3.PoolManager] = {}

    def close(self) -> None:
        """Give the connections back."""
        self._watch.close()
        for pool in (self._direct, *self._proxied.values()):
            pool.clear()

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
            raise _setback(answer)
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
            answer = Answer(url, self._request(url, wanted))
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
        url = answer.url
        done, mark, marked_at = 0, 0, time.monotonic()
        size = _LEAST_NBYTES
        while done < nbytes:
            begun_at = time.monotonic()
            count = min(size, nbytes - done)
            with _trouble(url, self.stall_seconds), self._watch.over(answer.raw.shutdown):
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
        raise _setback(answer)

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

    def _request(self, url: str, wanted: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        origin = origin_of(url)
        headers = {
            "User-Agent": f"glmquant/{__version__}",
            "Accept-Encoding": "identity",
            **wanted,
        }
        if self._token and origin == self._origin:
            headers |= self._token.headers
        with _trouble(url, self.stall_seconds):
            return self._pool(origin).request(
                "GET",
                url,
                headers=headers,
                redirect=False,
                preload_content=False,
                decode_content=False,
                timeout=urllib3.Timeout(
                    connect=min(_CONNECT_SECONDS, self.stall_seconds), read=self.stall_seconds
                ),
            )

    def _pool(self, origin: Origin) -> urllib3.PoolManager:
        proxies = getproxies()
        proxy = proxies.get(origin.scheme) or proxies.get("all")
        host = f"{origin.host}:{origin.port}"
        if not proxy or is_loopback(origin.host) or proxy_bypass(host):
            return self._direct
        if proxy not in self._proxied:
            parsed = urllib3.util.parse_url(proxy if "://" in proxy else f"http://{proxy}")
            if parsed.scheme not in ("http", "https") or not parsed.host:
                raise UsageError(
                    "the proxy cannot be used",
                    where=f"{origin.scheme}_proxy",
                    expected="http://HOST:PORT",
                    found=f"the scheme {parsed.scheme}",
                    hint="set https_proxy to an HTTP proxy, or no_proxy to the hub's host",
                )
            login = unquote(parsed.auth) if parsed.auth else None
            self._proxied[proxy] = self._watched(
                urllib3.ProxyManager(
                    parsed._replace(auth=None).url,
                    proxy_headers=urllib3.make_headers(proxy_basic_auth=login) if login else None,
                    **self._settings,
                )
            )
        return self._proxied[proxy]

    def _watched(self, manager: urllib3.PoolManager) -> urllib3.PoolManager:
        manager.pool_classes_by_scheme = watched_pools(self._watch)
        return manager

    def _whole(self, answer: Answer) -> bytes:
        data = bytearray()
        deadline = time.monotonic() + 10 * self.stall_seconds
        with _trouble(answer.url, self.stall_seconds):
            while chunk := answer.raw.read1(_LEAST_NBYTES):
                data += chunk
                if len(data) > MAX_ANSWER_NBYTES or time.monotonic() > deadline:
                    raise Setback(f"{shown(answer.url)} does not end: {len(data)} bytes so far")
        length = answer.headers.get("Content-Length", "")
        if length.isdigit() and int(length) != len(data):
            raise Setback(f"{shown(answer.url)} ended after {len(data)} of {length} bytes")
        return bytes(data)


def exact_range(answer: Answer, begin: int, end: int, total: int) -> None:
    """Whether an answer is that range of a file, and says so.

    Args:
        answer: Of status 206.
        begin: First byte that was asked for.
        end: The byte after the last.
        total: Length of the whole file by the hub's listing.

    Raises:
        Setback: It is another range, or of another file.
    """
    found = answer.headers.get("Content-Range", "")
    length = answer.headers.get("Content-Length")
    packed = answer.headers.get("Content-Encoding", "identity")
    if packed != "identity":
        raise Setback(f"the server packed the body: {packed}", is_range_trouble=True)
    if not found:
        raise Setback(
            "a part came that does not say which: no Content-Range", is_range_trouble=True
        )
    if found.endswith((f"/{total}", "/*")):
        if found.partition("/")[0].lower() != f"bytes {begin}-{end - 1}":
            raise Setback(
                f"bytes {begin}-{end - 1} were asked for, {found} came", is_range_trouble=True
            )
    else:
        raise Setback(
            f"the stored object is not as long as the hub lists: {found}, listed {total}",
            is_expired=True,
            is_about_object=True,
        )
    if length is not None and length != str(end - begin):
        raise Setback(f"a body of {length} bytes for {end - begin} that were asked for")


def retry_after(answer: Answer) -> float | None:
    """How many seconds the server asks to wait, at most an hour; None where it does not."""
    text = answer.headers.get("Retry-After", "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(seconds, 0.0), MAX_WAIT_SECONDS) if seconds == seconds else None  # no NaN


def _setback(answer: Answer) -> Setback:
    return Setback(
        f"{shown(answer.url)} answered HTTP {answer.status}",
        wait_seconds=retry_after(answer),
        is_expired=answer.status in _EXPIRED,
    )


@contextmanager
def _trouble(url: str, stall_seconds: float) -> Iterator[None]:
    """Turn what urllib3 raises into a setback, or into an error where it stays so."""
    try:
        yield
    except (SSLError, MaxRetryError) as error:
        reason = error.reason if isinstance(error, MaxRetryError) else error
        if "CERTIFICATE_VERIFY_FAILED" in str(reason):
            raise HubError(
                "the certificate of the server is not trusted",
                where=shown(url),
                expected="a certificate of an authority that this machine trusts",
                found=str(reason)[:300],
                hint="behind a proxy of your company's: SSL_CERT_FILE=its-authority.pem",
            ) from error
        raise Setback(f"{shown(url)}: {_short(error)}") from error
    except OverdueError as error:
        raise Setback(f"{shown(url)} hardly gave anything for {stall_seconds:g} s") from error
    except ReadTimeoutError as error:
        raise Setback(f"{shown(url)} gave nothing for {stall_seconds:.0f} s") from error
    except LocationParseError as error:
        raise Setback(f"{shown(url)} is no address") from error
    except (HTTPError, OSError) as error:
        raise Setback(f"{shown(url)}: {_short(error)}") from error


def _short(error: Exception) -> str:
    text = str(error.__cause__ or error)
    return f"{type(error).__name__}: {text.rpartition('): ')[2] or text}"[:200]


def _words(data: bytes) -> str:
    text = data[:200].decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()


def _ssl_context() -> ssl.SSLContext:
    for variable in _CA_VARIABLES:
        named = os.environ.get(variable)
        if named and not os.environ.get("SSL_CERT_FILE"):
            path = Path(named)
            try:
                return ssl.create_default_context(
                    cafile=None if path.is_dir() else named, capath=named if path.is_dir() else None
                )
            except OSError as error:
                raise UsageError(
                    "the certificates of the authorities cannot be read",
                    where=variable,
                    expected="a PEM file or a folder",
                    found=f"{named}: {error}",
                    hint=f"unset {variable}, or correct it",
                ) from error
    return ssl.create_default_context()
