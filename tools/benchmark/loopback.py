"""The tests' hub as a process of its own, plain or over TLS."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from environments import ROOT

from tests.certificates import make_certificates

REPOSITORY: Final = "owner/model"


@dataclass(frozen=True, slots=True)
class Served:
    """A folder that can be downloaded.

    Attributes:
        folder: What is served.
        url: The hub's endpoint.
        authority: The certificate that a client has to trust; None without TLS.
    """

    folder: Path
    url: str
    authority: Path | None

    @property
    def names(self) -> list[str]:
        """The files, by their paths in the repository; those of git are nobody's weights."""
        files = (path for path in self.folder.rglob("[!.]*") if path.is_file())
        return sorted(str(path.relative_to(self.folder)) for path in files)

    def file_url(self, name: str) -> str:
        """Where a file is found, behind a redirect."""
        return f"{self.url}/{REPOSITORY}/resolve/main/{name}"


@contextmanager
def served(folder: Path, work: Path, *, has_tls: bool, bps: float = 0.0) -> Iterator[Served]:
    """Serve a folder until the context ends.

    Args:
        folder: The repository.
        work: Where certificates are written.
        has_tls: https in place of http.
        bps: Bytes a second of all connections together; 0 for no limit.
    """
    command = [sys.executable, "-m", "tests.hub", "--repo", f"{REPOSITORY}={folder}"]
    command += ["--bps", str(bps)]
    authority = None
    if has_tls:
        made = make_certificates(work / "certificates")
        authority = made.authority
        command += ["--tls", str(made.certificate), str(made.key)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        yield Served(folder, json.loads(process.stdout.readline())["url"], authority)
    finally:
        process.kill()
        process.communicate()
