"""HTTP to one server: each request within its time, each answer of bounded length."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, NoReturn

import urllib3

from glmquant.survey import printable
from glmquant.watch import OverdueError, Watch, watched_pools

ANSWER_SECONDS: Final = 600.0
"""How long a request may take."""

MAX_ANSWER_NBYTES: Final = 128_000_000
"""256 tokens with 64 log-probabilities each take some 2 MB."""


class Reply(NamedTuple):
    """An answer, whatever its status.

    Attributes:
        status: HTTP's.
        headers: Names in any case.
        data: The body.
    """

    status: int
    headers: Mapping[str, str]
    data: bytes


class OpenReply(NamedTuple):
    """An answer whose body is still coming.

    Attributes:
        status: HTTP's.
        headers: Names in any case.
        chunks: The body, as it comes.
    """

    status: int
    headers: Mapping[str, str]
    chunks: Iterator[bytes]


class Connection:
    """A connection to one server.

    Args:
        url: Its address, with or without ``/v1``.
        fail: Raises what is to be raised when it does not answer as it should; called with what is
            wrong and, as ``found``, what it answered.
        answer_seconds: How long a request may take.
        api_key: Sent with each request.
    """

    def __init__(
        self,
        url: str,
        fail: Callable[..., NoReturn],
        *,
        answer_seconds: float = ANSWER_SECONDS,
        api_key: str | None = None,
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._fail = fail
        key = sendable(api_key)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._pool = urllib3.PoolManager(headers=headers, retries=False)
        self._seconds = answer_seconds
        self._watch = Watch(answer_seconds)
        self._pool.pool_classes_by_scheme = watched_pools(self._watch)

    def close(self) -> None:
        """Give the connections back."""
        self._watch.close()
        self._pool.clear()

    def is_ready(self) -> bool:
        """Whether it answers that it is well."""
        try:
            answer = self._pool.request("GET", f"{self.url}/health", timeout=5.0)
        except urllib3.exceptions.HTTPError:
            return False
        return answer.status == 200

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON that a request is answered with; any other answer is a failure.

        Args:
            method: HTTP's.
            path: From the address on.
            body: Sent as JSON.
        """
        data = self.request(method, path, body)
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            self.strange(path, data.decode("utf-8", "replace"))

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        """The body of a good answer; any other status is a failure.

        Args:
            method: HTTP's.
            path: From the address on.
            body: Sent as JSON.
        """
        reply = self.exchange(method, path, body)
        if reply.status != 200:
            text = printable(reply.data[:500].decode("utf-8", "replace"), 500)
            self._fail(
                "the engine refused a request",
                found=f"{method} {path}: HTTP {reply.status} {text}",
            )
        return reply.data

    def exchange(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Reply:
        """Ask, and take the whole answer, whatever its status.

        Args:
            method: HTTP's.
            path: From the address on.
            body: Sent as JSON.
        """
        with self.opened(method, path, body) as reply:
            return Reply(reply.status, reply.headers, b"".join(reply.chunks))

    @contextmanager
    def opened(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> Iterator[OpenReply]:
        """Ask, and take the answer as it comes; all of it within the time of one request.

        Args:
            method: HTTP's.
            path: From the address on.
            body: Sent as JSON.
        """
        deadline = time.monotonic() + self._seconds
        try:
            answer = self._pool.request(
                method,
                self.url + path,
                body=None if body is None else json.dumps(body).encode(),
                headers=dict(self._pool.headers) | {"Content-Type": "application/json"},
                timeout=urllib3.Timeout(connect=min(10.0, self._seconds), read=self._seconds),
                redirect=False,
                preload_content=False,
                decode_content=False,  # nothing was asked to be packed
            )
            try:
                with self._watch.over(answer.shutdown, max(0.0, deadline - time.monotonic())):
                    chunks = self._chunks(answer, method, path, deadline)
                    yield OpenReply(answer.status, answer.headers, chunks)
            finally:
                answer.close()
        except (OverdueError, urllib3.exceptions.ReadTimeoutError):
            self._late(method, path)
        except urllib3.exceptions.HTTPError as error:
            self._fail("the engine cannot be reached", found=f"{method} {self.url}{path}: {error}")

    def _chunks(
        self, answer: urllib3.BaseHTTPResponse, method: str, path: str, deadline: float
    ) -> Iterator[bytes]:
        nbytes = 0
        while chunk := answer.read1(1 << 20):  # what has come, not so much as that
            nbytes += len(chunk)
            if nbytes > MAX_ANSWER_NBYTES:
                self.strange(path, f"more than {MAX_ANSWER_NBYTES:,} bytes")
            if time.monotonic() > deadline:
                self._late(method, path)
            yield chunk

    def _late(self, method: str, path: str) -> NoReturn:
        self._fail(
            f"the engine did not answer within {self._seconds:.0f} s",
            found=f"no answer to {method} {path}",
        )

    def strange(self, path: str, answer: Any) -> NoReturn:
        """Raise that an answer is not as vLLM's are.

        Args:
            path: What was asked.
            answer: What came.
        """
        text = answer if isinstance(answer, str) else json.dumps(answer, default=str)
        self._fail(
            "the engine's answer is not one that vLLM gives",
            found=f"{path}: {printable(text, 300)}",
        )


def sendable(api_key: str | None) -> str:
    """A key without what a header cannot hold, which belongs to no server's key.

    Args:
        api_key: As the user has it.
    """
    return "".join(letter for letter in api_key or "" if "!" <= letter <= "~")
