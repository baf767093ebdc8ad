"""An HTTPS proxy on loopback that leads every name to loopback."""

from __future__ import annotations

import contextlib
import select
import socket
import socketserver
import threading


class Proxy(socketserver.ThreadingTCPServer):
    """Answers CONNECT; the host's name is kept in ``names``, its port is that of 127.0.0.1."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Tunnel)
        self.names: set[str] = set()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class Tunnel(socketserver.StreamRequestHandler):
    """A connection through the proxy."""

    server: Proxy

    def handle(self) -> None:
        method, address, _ = self.rfile.readline().decode().split()
        while self.rfile.readline().strip():
            pass
        host, _, port = address.rpartition(":")
        self.server.names.add(host)
        if method != "CONNECT":
            self.wfile.write(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
            return
        with socket.create_connection(("127.0.0.1", int(port))) as there:
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            with contextlib.suppress(OSError):
                self.carry(there)

    def carry(self, there: socket.socket) -> None:
        """Bytes both ways until one side ends."""
        other = {self.connection: there, there: self.connection}
        while True:
            readable, _, _ = select.select(list(other), [], [])
            for side in readable:
                data = side.recv(1 << 16)
                if not data:
                    return
                other[side].sendall(data)
