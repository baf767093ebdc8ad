"""What came of one request, judged strictly."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from typing import Final, NamedTuple

import urllib3

from glmquant.hubs.addresses import shown

MAX_WAIT_SECONDS: Final = 3600.0
"""Of what a ``Retry-After`` asks for."""

_EXPIRED: Final = (400, 401, 403, 404, 410)
"""What object stores answer to a signature that is no longer good."""


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


def setback_of(answer: Answer) -> Setback:
    """The setback that an answer of an unexpected status is."""
    return Setback(
        f"{shown(answer.url)} answered HTTP {answer.status}",
        wait_seconds=retry_after(answer),
        is_expired=answer.status in _EXPIRED,
    )
