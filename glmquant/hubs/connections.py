"""HTTP connections: through a proxy or not, by which certificates, with a limit for each read."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import (
    HTTPError,
    LocationParseError,
    MaxRetryError,
    ReadTimeoutError,
    SSLError,
)

from glmquant.errors import HubError, UsageError
from glmquant.hubs.addresses import Origin, is_loopback, origin_of, shown
from glmquant.hubs.answers import Setback
from glmquant.watch import OverdueError, Watch, watched_pools

_CONNECT_SECONDS: Final = 20.0

_CA_VARIABLES: Final = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Besides SSL_CERT_FILE and SSL_CERT_DIR, which OpenSSL itself reads."""


class Connections:
    """Pools of connections to whatever host; used from several threads.

    Args:
        count: How many there may be to one host.
        stall_seconds: How long a connection may give nothing, or next to nothing.

    Attributes:
        watch: Ends a read that lasts longer.

    Raises:
        UsageError: A file with certificates that is named cannot be read.
    """

    def __init__(self, count: int, stall_seconds: float) -> None:
        self._stall_seconds = stall_seconds
        self._settings: dict[str, Any] = {
            "num_pools": 32,
            "maxsize": count,
            "retries": False,
            "timeout": urllib3.Timeout(connect=min(_CONNECT_SECONDS, stall_seconds)),
            "ssl_context": _ssl_context(),
        }
        self.watch = Watch(stall_seconds)
        self._direct = self._watched(urllib3.PoolManager(**self._settings))
        self._proxied: dict[str, urllib3.PoolManager] = {}

    def close(self) -> None:
        """Give the connections back."""
        self.watch.close()
        for pool in (self._direct, *self._proxied.values()):
            pool.clear()

    def request(self, url: str, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        """The answer to a GET, its body unread, no redirect followed.

        Args:
            url: What is asked for.
            headers: All but those that HTTP itself needs.

        Raises:
            Setback: No answer came.
            HubError: The server's certificate is not trusted.
            UsageError: The proxy cannot be used.
        """
        with self.trouble(url):
            return self._pool(origin_of(url)).request(
                "GET",
                url,
                headers=headers,
                redirect=False,
                preload_content=False,
                decode_content=False,
                timeout=urllib3.Timeout(
                    connect=min(_CONNECT_SECONDS, self._stall_seconds), read=self._stall_seconds
                ),
            )

    @contextmanager
    def trouble(self, url: str) -> Iterator[None]:
        """Turn what urllib3 raises into a setback, or into an error where it stays so.

        Args:
            url: What is asked or read.

        Raises:
            Setback: It failed, or gave nothing in time.
            HubError: The server's certificate is not trusted.
        """
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
            text = f"{shown(url)} hardly gave anything for {self._stall_seconds:g} s"
            raise Setback(text) from error
        except ReadTimeoutError as error:
            raise Setback(f"{shown(url)} gave nothing for {self._stall_seconds:.0f} s") from error
        except LocationParseError as error:
            raise Setback(f"{shown(url)} is no address") from error
        except (HTTPError, OSError) as error:
            raise Setback(f"{shown(url)}: {_short(error)}") from error

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
        manager.pool_classes_by_scheme = watched_pools(self.watch)
        return manager


def _short(error: Exception) -> str:
    text = str(error.__cause__ or error)
    return f"{type(error).__name__}: {text.rpartition('): ')[2] or text}"[:200]


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
