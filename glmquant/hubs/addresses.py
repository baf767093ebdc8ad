"""Where an address leads, whether it is safe to go there, and how it may be shown."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from glmquant.errors import UsageError


class Origin(NamedTuple):
    """Scheme, host and port of an address."""

    scheme: str
    host: str
    port: int | None


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
