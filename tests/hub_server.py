"""The servers of the loopback hub: an origin each, with what goes wrong on them."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import select
import socket
import socketserver
import ssl
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.hub_protocols import Asking, File, Page, answer, unauthorized
from tests.hub_repos import Entry
from tests.hub_uploads import answer_post, put_object

if TYPE_CHECKING:
    from tests.hub import Asked, Fault, Hub

BLOCK = 1 << 20
LOGIN = b"<!doctype html><html><title>Sign in</title><body>Please sign in.</body></html>"


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """One origin."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(
        self, hub: Hub, origin: str, host: str, port: int, tls: ssl.SSLContext | None
    ) -> None:
        self.hub = hub
        self.origin = origin
        self.tls = tls
        self.connections: set[socket.socket] = set()
        super().__init__((host, port), Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        if self.tls is not None:  # the handshake is the handler's, so that nobody waits for it
            connection = self.tls.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        with self.hub.lock:
            self.connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        with self.hub.lock:
            self.connections.discard(request)
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)
        self.close_request(request)

    def end_connections(self) -> None:
        with self.hub.lock:
            live = list(self.connections)
        for connection in live:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error here."""


@dataclass
class Body:
    """The part of a file that is sent."""

    status: int
    begin: int
    end: int
    headers: dict[str, str]


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are in the hub's log."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        split = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(split.query, keep_blank_values=True))
        if self.server.origin == "hub":
            self.answer_as_hub(urllib.parse.unquote(split.path), query)
        else:
            self.answer_as_cdn(split.path, query)

    def do_POST(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.origin != "hub":
            self.send_page(Page({"Code": 405}, 405))
        elif self.hub.token is not None and self.token() != self.hub.token:
            self.send_page(unauthorized(path))
        elif fault := self.hub.take(path, "post"):
            self.send_status(fault, path)
        else:
            self.send_page(answer_post(self.hub, path, body), note=path)

    def do_PUT(self) -> None:
        split = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(split.query))
        nbytes = int(self.headers.get("Content-Length") or 0)
        if fault := self.hub.take(split.path, "put-cut"):
            self.rfile.read(min(fault.at, nbytes))
            self.asked(0, "put-cut")
            self.close_connection = True
            return
        body = self.rfile.read(nbytes)
        if fault := self.hub.take(split.path, "put"):
            self.send_status(fault, split.path)
            return
        sha256 = split.path.rpartition("/")[2]
        page = put_object(self.hub, sha256, query.get("Signature", ""), body)
        self.send_page(page, note=f"{nbytes} bytes")

    def answer_as_hub(self, path: str, query: Mapping[str, str]) -> None:
        if self.hub.token is not None and self.token() != self.hub.token:
            self.send_page(unauthorized(path))
            return
        scheme = "http" if self.server.tls is None else "https"
        base_url = f"{scheme}://{self.headers.get('Host', '')}"
        asking = Asking(path, query, base_url, self.hub.repos.listing, self.hub.has_sha256)
        found = answer(asking)
        if isinstance(found, Page):
            self.send_listing(found)
        elif fault := self.take(found.entry.path, "door"):
            self.send_status(fault, found.entry.path)
        elif found.entry.is_lfs and not self.hub.is_direct:
            self.send_redirect(self.hub.sign(found.entry), found.headers, found.entry.path)
        else:
            self.send_file(found)

    def answer_as_cdn(self, path: str, query: Mapping[str, str]) -> None:
        signed = self.hub.signed.get(query.get("Signature", ""))
        if signed is not None and (fault := self.take(signed.entry.path, "expire")):
            self.hub.expire(fault.seconds)
        if signed is None or path != f"/cdn/{signed.entry.sha256}" or signed.ends <= time.time():
            text = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"
            self.send_bytes(403, text, "application/xml", note="no valid signature")
            return
        entry = signed.entry
        if not entry.is_current():
            self.send_bytes(404, b"<Error><Code>NoSuchKey</Code></Error>", "application/xml")
        elif self.take(entry.path, "loop"):
            self.send_redirect(self.path, {}, f"{entry.path}: loop")
        elif self.server.origin == "cdn" and self.take(entry.path, "redirect"):
            self.send_redirect(self.hub.far_url + self.path, {}, f"{entry.path}: redirect")
        else:
            headers = {"ETag": f'"{entry.sha256}"'} if self.hub.has_sha256 else {}
            self.send_file(File(entry, ranges=True, headers=headers))

    # What goes wrong

    def take(self, path: str, *kinds: str) -> Fault | None:
        return None if self.command == "HEAD" else self.hub.take(path, *kinds)

    def token(self) -> str | None:
        if authorization := self.headers.get("Authorization"):
            return authorization.removeprefix("Bearer ")
        found = re.search(r"m_session_id=([^;\s]+)", self.headers.get("Cookie", ""))
        return found[1] if found else None

    # Answers of a whole

    def asked(self, status: int, note: str = "") -> Asked:
        origin = "hub" if self.server.origin == "hub" else "cdn"
        wanted = self.headers.get("Range")
        command, token = self.command, self.token()
        return self.hub.asked(origin, command, self.path, wanted, status, token, note)

    def begin_answer(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def send_bytes(
        self,
        status: int,
        data: bytes,
        kind: str,
        *,
        headers: Mapping[str, str] | None = None,
        note: str = "",
        path: str = "",
    ) -> None:
        asked = self.asked(status, note or path)
        ours = {"Content-Type": kind, "Content-Length": str(len(data))}
        self.begin_answer(status, {**ours, **(headers or {})})
        if self.command != "HEAD":
            self.hub.count(asked, path, len(data))
            self.wfile.write(data)

    def send_page(self, page: Page, note: str = "") -> None:
        data = json.dumps(page.content).encode()
        kind = "application/json; charset=utf-8"
        self.send_bytes(page.status, data, kind, headers=page.headers, note=note)

    def send_listing(self, page: Page) -> None:
        if fault := self.take(self.path, "api"):
            self.send_status(fault, self.path)
        elif self.take(self.path, "api-json"):
            self.send_bytes(200, b"<html>", "text/html", note="api-json")
        elif self.take(self.path, "api-cut"):
            data = json.dumps(page.content).encode()
            asked = self.asked(page.status, "api-cut")
            headers = {"Content-Type": "application/json", "Content-Length": str(len(data))}
            self.begin_answer(page.status, headers)
            self.hub.count(asked, "", len(data) // 2)
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        else:
            self.send_page(page)

    def send_status(self, fault: Fault, path: str) -> None:
        content = {"Code": fault.status, "Message": "a fault of the hub", "Success": False}
        self.send_page(Page(content, fault.status, fault.headers), f"{path}: {fault.kind}")

    def send_redirect(self, to: str, headers: Mapping[str, str], note: str) -> None:
        self.asked(302, note)
        self.begin_answer(302, {"Location": to, "Content-Length": "0", **headers})

    # Answers of a file

    def send_file(self, found: File) -> None:
        entry = found.entry
        path = entry.path
        if fault := self.take(path, "delay"):
            self.hub.stop.wait(fault.seconds)
        if fault := self.take(path, "status"):
            self.send_status(fault, path)
        elif self.take(path, "html"):
            self.send_bytes(200, LOGIN, "text/html; charset=utf-8", note=f"{path}: html")
        elif self.take(path, "gzip"):
            data = gzip.compress(entry.file.read_bytes(), 1)
            headers = {**found.headers, "Content-Encoding": "gzip"}
            kind = "application/octet-stream"
            self.send_bytes(200, data, kind, headers=headers, note=f"{path}: gzip", path=path)
        else:
            self.send_part(found)

    def send_part(self, found: File) -> None:
        entry = found.entry
        notes = [entry.path]
        nbytes = entry.nbytes
        wanted = self.headers.get("Range")
        if fault := self.take(entry.path, "short"):
            nbytes = min(fault.at, nbytes)
            notes.append("short")
        ranges = found.ranges or (entry.is_lfs and self.hub.is_direct)
        if wanted and self.take(entry.path, "norange"):
            ranges = False
            notes.append("norange")
        wants = wanted if ranges and self.is_same(found) else None
        part = part_of(nbytes, wants)
        if part.status == 206 and self.take(entry.path, "wrongrange"):
            part = beside(part, nbytes)
            notes.append("wrongrange")
        if part.status == 206 and self.take(entry.path, "bare"):
            part.headers = {}
            notes.append("bare")
        if part.status == 416:
            self.asked(416, entry.path)
            self.begin_answer(416, {**part.headers, "Content-Length": "0"})
            return
        headers = {"Content-Type": "application/octet-stream", **part.headers, **found.headers}
        if ranges:
            headers["Accept-Ranges"] = "bytes"
        if self.take(entry.path, "empty"):
            part.end = part.begin
            notes.append("empty")
        headers["Content-Length"] = str(part.end - part.begin)
        self.send_body(entry, part, headers, notes)

    def is_same(self, found: File) -> bool:
        """The file is the one that If-Range asks for, if it does."""
        asked_for = self.headers.get("If-Range")
        return asked_for is None or asked_for == found.headers.get("ETag")

    def send_body(
        self, entry: Entry, part: Body, headers: Mapping[str, str], notes: list[str]
    ) -> None:
        end = part.end
        flip = slow = stop = None
        if self.command != "HEAD":
            flip = self.hub.take_at(entry.path, "flip", part.begin, part.end)
            slow = self.take(entry.path, "slow")
            nbytes = part.end - part.begin
            stop = self.hub.take_at(entry.path, "cut", 0, nbytes)
            stop = stop or self.hub.take_at(entry.path, "hang", 0, nbytes)
        if stop is not None:
            end = part.begin + stop.at
        notes += [fault.kind for fault in (flip, slow, stop) if fault]
        asked = self.asked(part.status, ": ".join((notes[0], " ".join(notes[1:]))).rstrip(": "))
        self.begin_answer(part.status, headers)
        if self.command == "HEAD":
            return
        line = self.hub.line
        is_plain = flip is None and slow is None and self.server.tls is None and not line.bps
        try:
            if is_plain:
                self.send_by_kernel(asked, entry, part.begin, end)
            else:
                for block in blocks_of(entry.file, part.begin, end, slow.bps if slow else line.bps):
                    self.send_block(asked, entry, block, flip, slow)
        except (OSError, ValueError):
            self.close_connection = True
            return
        if stop is not None:
            self.close_connection = True
            if stop.kind == "hang":
                self.wait_for_the_client()

    def send_by_kernel(self, asked: Asked, entry: Entry, begin: int, end: int) -> None:
        with entry.file.open("rb") as stream:
            while begin < end:
                count = min(end - begin, BLOCK)
                self.hub.count(asked, entry.path, count)
                sent = 0
                try:
                    sent = os.sendfile(self.connection.fileno(), stream.fileno(), begin, count)
                finally:
                    self.hub.count(asked, entry.path, sent - count)
                if sent == 0:
                    raise ValueError("the file has become shorter")
                begin += sent

    def send_block(
        self,
        asked: Asked,
        entry: Entry,
        block: tuple[int, bytes],
        flip: Fault | None,
        slow: Fault | None,
    ) -> None:
        begin, data = block
        if flip is not None and begin <= flip.at < begin + len(data):
            where = flip.at - begin
            data = data[:where] + bytes([data[where] ^ 0xFF]) + data[where + 1 :]
        if slow is not None and self.hub.stop.wait(len(data) / slow.bps):
            raise ValueError("the hub ends")
        line = self.hub.line
        if line.bps and self.hub.stop.wait(line.wait_seconds(len(data))):
            raise ValueError("the hub ends")
        self.hub.count(asked, entry.path, len(data))
        try:
            self.wfile.write(data)
        except BaseException:
            self.hub.count(asked, entry.path, -len(data))
            raise

    def wait_for_the_client(self) -> None:
        """Until it goes away, or the hub ends."""
        while not self.hub.stop.is_set():
            readable, _, _ = select.select([self.connection], [], [], 0.1)
            if readable:
                with contextlib.suppress(OSError):
                    if self.connection.recv(1024):
                        continue
                return


def blocks_of(file: Path, begin: int, end: int, bps: float) -> Iterator[tuple[int, bytes]]:
    """A part of a file in blocks; of a twentieth of a second where it is to be slow."""
    size = max(1, min(BLOCK, int(bps / 20))) if bps else BLOCK
    with file.open("rb") as stream:
        stream.seek(begin)
        while begin < end and (data := stream.read(min(size, end - begin))):
            yield begin, data
            begin += len(data)


def part_of(nbytes: int, wanted: str | None) -> Body:
    """What a Range asks of an object; of several ranges, as of none, the whole."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", (wanted or "").strip())
    if found is None or found[1] == found[2] == "":
        return Body(200, 0, nbytes, {})
    if found[1] == "":
        begin, end = max(0, nbytes - int(found[2])), nbytes
    else:
        begin, end = int(found[1]), min(int(found[2]) + 1 if found[2] else nbytes, nbytes)
    if begin >= end:
        return Body(416, 0, 0, {"Content-Range": f"bytes */{nbytes}"})
    return Body(206, begin, end, {"Content-Range": f"bytes {begin}-{end - 1}/{nbytes}"})


def beside(part: Body, nbytes: int) -> Body:
    """The range 16 bytes before, or after where there are none before."""
    shift = -16 if part.begin >= 16 else 16
    begin = part.begin + shift
    end = max(begin, min(part.end + shift, nbytes))
    return Body(206, begin, end, {"Content-Range": f"bytes {begin}-{end - 1}/{nbytes}"})
