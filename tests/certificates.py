"""Certificates of the loopback hub, made when a test needs them."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme

NAMES = ("127.0.0.1", "127.0.0.2", "localhost", "fake.modelers.cn", "cdn.modelers.cn")


@dataclass(frozen=True, slots=True)
class Certificates:
    """A certificate for every name of the hub, and the authority that clients have to trust."""

    authority: Path
    certificate: Path
    key: Path

    def server_context(self) -> ssl.SSLContext:
        """What ``Hub(tls=...)`` takes."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context


def make_certificates(folder: Path) -> Certificates:
    """Write an authority, a certificate and its key into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Certificates(folder / "ca.pem", folder / "hub.pem", folder / "hub.key")
    authority = trustme.CA()
    issued = authority.issue_cert(*NAMES)
    authority.cert_pem.write_to_path(made.authority)
    made.key.write_bytes(issued.private_key_pem.bytes())
    made.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    return made
