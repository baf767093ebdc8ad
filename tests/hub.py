"""A hub on loopback that speaks the protocols of ModelScope, Modelers and Hugging Face.

    python -m tests.hub --repo owner/name=DIR [--repo ...] [--port N] [--tls CERT KEY] [--token T]
        [--bps B]

LFS files are redirected to a CDN of another origin, by URLs whose signature ends. A test adds
faults while the hub runs, and reads what was asked.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import secrets
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.hub_repos import Entry, Repos
from tests.hub_server import Server
from tests.hub_uploads import Uploads

SIGNED_SECONDS = 3600.0


@dataclass
class Fault:
    """What goes wrong with requests for a file; HEAD is spared.

    Kinds of a file's bytes, wherever they are served:
    ``cut``: the connection ends after ``at`` bytes of the body. ``hang``: so does the sending, and
    the connection stays. ``flip``: the byte at ``at`` of the file is inverted. ``slow``: ``bps``.
    ``delay``: ``seconds`` before the answer. ``status``: an error with ``headers``. ``html``: 200
    with a login page. ``gzip``: 200 with the file gzipped. ``norange``: 200 with all of it.
    ``wrongrange``: 206 with a range 16 bytes beside. ``bare``: 206 without a Content-Range.
    ``empty``: a body of no bytes. ``short``: the stored object has only its first ``at`` bytes. A
    cut, hang or flip waits for a body that reaches ``at``; norange, wrongrange and bare for a
    request with Range.

    Kinds of the CDN only: ``expire``: signatures issued so far end after ``seconds``. ``redirect``:
    302 to a third host, which serves the bytes. ``loop``: 302 to the same URL.

    Kinds of the hub: ``door``: ``status`` where a file's redirect or bytes would be. ``api``,
    ``api-json`` and ``api-cut``: an error, a page of HTML or half the body for a listing.

    Kinds of what is sent: ``post`` and ``put``: ``status`` for a request whose path has ``match``.
    ``put-cut``: the connection ends after ``at`` bytes were taken.
    """

    kind: str
    match: str = ""
    times: int = 1
    at: int = 0
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    bps: float = 0.0
    seconds: float = 0.0


@dataclass
class Asked:
    """A request that was answered."""

    origin: str
    method: str
    path: str
    range: str | None
    status: int
    sent: int
    token: str | None
    note: str


@dataclass
class Signed:
    """A URL of the CDN."""

    entry: Entry
    ends: float


class Line:
    """What all connections share.

    Args:
        bps: Bytes a second of bodies; 0 for no limit.
    """

    def __init__(self, bps: float) -> None:
        self.bps = bps
        self.lock = threading.Lock()
        self.free_at = time.monotonic()

    def wait_seconds(self, nbytes: int) -> float:
        """How long bytes are under way, behind all that were sent before."""
        with self.lock:
            now = time.monotonic()
            self.free_at = max(now, self.free_at) + nbytes / self.bps
            return self.free_at - now


class Hub:
    """Serves folders until its context ends."""

    def __init__(
        self,
        repos: Mapping[str, Path],
        *,
        tls: ssl.SSLContext | None = None,
        token: str | None = None,
        is_direct: bool = False,
        has_sha256: bool = True,
        lfs_min_nbytes: int = 1 << 20,
        port: int = 0,
        line_bps: float = 0.0,
        uploads: Path | None = None,
    ) -> None:
        self.line = Line(line_bps)
        self.uploads = Uploads(uploads) if uploads else None
        self.repos = Repos(repos, lfs_min_nbytes)
        self.token = token
        self.is_direct = is_direct
        self.has_sha256 = has_sha256
        self.faults: list[Fault] = []
        self.log: list[Asked] = []
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.sent: dict[str, int] = {}
        self.signed: dict[str, Signed] = {}
        self.servers = [Server(self, "hub", "127.0.0.1", port, tls)]
        self.servers.append(Server(self, "cdn", "127.0.0.1", 0, tls))
        with contextlib.suppress(OSError):  # macOS has no second loopback address
            self.servers.append(Server(self, "far", "127.0.0.2", 0, tls))
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self.servers[0].server_address[1]}"
        self.cdn_url = f"{scheme}://localhost:{self.servers[1].server_address[1]}"
        far = self.servers[-1]
        host = "127.0.0.2" if far.origin == "far" else "127.0.0.1"
        self.far_url = f"{scheme}://{host}:{far.server_address[1]}"

    def __enter__(self) -> Hub:
        for server in self.servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for server in self.servers:
            server.shutdown()
            server.end_connections()
            server.server_close()

    def nbytes_sent(self, path: str = "") -> int:
        """Bytes of bodies sent for the files whose path in the repository contains ``path``."""
        with self.lock:
            return sum(nbytes for name, nbytes in self.sent.items() if path in name)

    def take(self, path: str, *kinds: str) -> Fault | None:
        """The first fault of these kinds that strikes here; one of its times is used up."""
        with self.lock:
            for fault in self.faults:
                if fault.kind in kinds and fault.match in path and fault.times:
                    fault.times -= fault.times > 0
                    return fault
        return None

    def take_at(self, path: str, kind: str, begin: int, end: int) -> Fault | None:
        """As ``take``, a fault whose ``at`` lies in a range."""
        with self.lock:
            for fault in self.faults:
                if fault.kind != kind or fault.match not in path or not fault.times:
                    continue
                if begin <= fault.at < end:
                    fault.times -= fault.times > 0
                    return fault
        return None

    def sign(self, entry: Entry) -> str:
        """A URL of the CDN that serves a file for a while."""
        signature = secrets.token_hex(16)
        ends = time.time() + SIGNED_SECONDS
        with self.lock:
            self.signed[signature] = Signed(entry, ends)
        return f"{self.cdn_url}/cdn/{entry.sha256}?Expires={int(ends)}&Signature={signature}"

    def expire(self, seconds: float) -> None:
        """End every signature that was issued so far."""
        ends = time.time() + seconds
        with self.lock:
            for signed in self.signed.values():
                signed.ends = min(signed.ends, ends)

    def asked(
        self,
        origin: str,
        method: str,
        path: str,
        wanted: str | None,
        status: int,
        token: str | None,
        note: str,
    ) -> Asked:
        """Log an answer before it goes out: who has it finds it in the log."""
        asked = Asked(origin, method, path, wanted, status, 0, token, note)
        with self.lock:
            self.log.append(asked)
        return asked

    def count(self, asked: Asked, path: str, nbytes: int) -> None:
        """Bytes of a body that go out, or that did not."""
        with self.lock:
            asked.sent += nbytes
            if path:
                self.sent[path] = self.sent.get(path, 0) + nbytes


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repo", action="append", required=True, metavar="OWNER/NAME=DIR")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"))
    parser.add_argument("--token")
    parser.add_argument("--bps", type=float, default=0.0, help="of all connections together")
    options = parser.parse_args()
    tls = None
    if options.tls:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(*options.tls)
    named = (repo.partition("=") for repo in options.repo)
    repos = {name: Path(folder) for name, _, folder in named}
    with Hub(repos, tls=tls, token=options.token, port=options.port, line_bps=options.bps) as hub:
        print(json.dumps({"url": hub.url, "cdn_url": hub.cdn_url}), flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
