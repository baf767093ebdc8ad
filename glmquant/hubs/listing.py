"""What a repository holds, as a hub lists it: checked before anything is done with a name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final, NamedTuple

from glmquant.errors import HubError
from glmquant.fetched import MARKER_FILE, PARTIAL_SHARD
from glmquant.hubs.known import Reference
from glmquant.reconcile import listing as named
from glmquant.survey import printable
from glmquant.writer import PART_SUFFIX

MAX_FILES: Final = 20_000
MAX_NBYTES: Final = 1 << 50

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_SHA1: Final = re.compile(r"[0-9a-f]{40}")
_RESERVED: Final = (MARKER_FILE, PARTIAL_SHARD)


class RemoteFile(NamedTuple):
    """A file on a hub.

    Attributes:
        path: In the repository, parts divided by ``/``.
        nbytes: Its length.
        sha256: Of its bytes, in hex; None where the hub does not say.
        git_sha1: Of its git blob; None where the hub does not say, or says it of a pointer.
    """

    path: str
    nbytes: int
    sha256: str | None
    git_sha1: str | None

    def fault(self, data: bytes) -> tuple[str, str] | None:
        """The hub's sum and that of the bytes where they differ; None where there is no sum."""
        if self.sha256:
            expected, digest = self.sha256, hashlib.sha256(data)
        elif self.git_sha1:
            blob = b"blob %d\0" % len(data) + data
            expected, digest = self.git_sha1, hashlib.sha1(blob, usedforsecurity=False)
        else:
            return None
        return None if digest.hexdigest() == expected else (expected, digest.hexdigest())


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one revision.

    Attributes:
        reference: Which.
        revision: The branch, tag or commit that was asked for.
        commit: What it stands for; None where the hub does not say.
        files: By path, sorted; hidden files are left out.
        others: Names of what is neither a file nor a folder, for people; links, mostly.
    """

    reference: Reference
    revision: str
    commit: str | None
    files: dict[str, RemoteFile]
    others: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know."""
        if not self.others:
            return ()
        return (
            "links, or whatever else is neither a file nor a folder on the hub, are left there: "
            f"{named(self.others)}",
        )


def checked_files(found: Iterable[RemoteFile], where: str) -> dict[str, RemoteFile]:
    """The files of a listing, by path.

    Args:
        found: As the hub gave them; lengths and digests may be of any kind.
        where: The repository, for errors.

    Returns:
        Those that are not hidden, sorted.

    Raises:
        HubError: A name that leads elsewhere, cannot be a file's, or is there twice.
    """
    files: dict[str, RemoteFile] = {}
    for file in found:
        _check_path(file.path, where)
        if _is_hidden(file.path):
            continue
        if type(file.nbytes) is not int or not 0 <= file.nbytes <= MAX_NBYTES:
            raise _bad(where, f"{printable(file.path)}: a length", printable(repr(file.nbytes)))
        if file.path in files:
            raise _bad(where, "each file once", f"{printable(file.path)} twice")
        files[file.path] = file._replace(
            sha256=_digest(file.sha256, _SHA256), git_sha1=_digest(file.git_sha1, _SHA1)
        )
        if len(files) > MAX_FILES:
            raise _bad(where, f"at most {MAX_FILES:,} files", "more")
    for path in files:
        for folder in PurePosixPath(path).parents:
            if str(folder) in files:
                raise _bad(where, "a file or a folder", f"{printable(str(folder))} as both")
    if not files:
        raise _bad(where, "files", "none")
    return dict(sorted(files.items()))


def checked_names(found: Iterable[object]) -> tuple[str, ...]:
    """Names for people to read, those of hidden files left out, sorted."""
    names = {name if isinstance(name, str) else repr(name) for name in found}
    return tuple(printable(name) for name in sorted(names) if not _is_hidden(name))


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(path).parts)


def _digest(found: object, form: re.Pattern[str]) -> str | None:
    lower = found.lower() if isinstance(found, str) else ""
    return lower if form.fullmatch(lower) else None


def _check_path(path: object, where: str) -> None:
    is_plain = (
        isinstance(path, str)
        and 0 < len(path.encode("utf-8", "surrogatepass")) <= 1000
        and path.isprintable()
        and "\\" not in path
        and not path.startswith("/")
        and all(
            part not in ("", ".", "..") and len(part.encode()) < 240 for part in path.split("/")
        )
    )
    if not is_plain:
        raise _bad(where, "names of files inside the repository", printable(repr(path)))
    if str(path) in _RESERVED or str(path).endswith(PART_SUFFIX):
        raise _bad(where, "no name that glmquant uses itself", printable(str(path)))


def _bad(where: str, expected: str, found: str) -> HubError:
    return HubError(
        "the hub's list of files cannot be believed",
        where=where,
        expected=expected,
        found=found,
        hint="nothing was written; tell whoever keeps the repository",
    )
