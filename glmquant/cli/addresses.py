"""The address of a server, as a user types it."""

from __future__ import annotations

from typing import NoReturn

DEFAULT_URL = "http://127.0.0.1:8000"
"""Where ``glmquant serve`` lets a server listen."""


def checked_url(url: str, verb: str) -> str:
    """An address that can be asked.

    Args:
        url: As typed.
        verb: Who asks, for the hint.

    Raises:
        UsageError: It is none, or has a password in it.
    """
    from urllib.parse import urlsplit

    from glmquant.errors import UsageError
    from glmquant.survey import printable

    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        _refuse(printable(url), verb)
    if "@" in parts.netloc:
        raise UsageError(
            "the address holds a user or a password",
            where="URL",
            expected="an address without them",
            found="one with @ in it",
            hint="set VLLM_API_KEY to the server's key",
        )
    if not is_good or parts.query or parts.fragment or not url.isprintable() or " " in url:
        _refuse(printable(url), verb)
    return url


def _refuse(found: str, verb: str) -> NoReturn:
    from glmquant.errors import UsageError

    meant = DEFAULT_URL if "://" in found else f"http://{found}"
    raise UsageError(
        "that is no address of a server",
        where="URL",
        expected=f"as {DEFAULT_URL}",
        found=found,
        hint=f"glmquant {verb} {meant}",
    )
