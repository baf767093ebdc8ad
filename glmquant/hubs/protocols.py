"""How each hub lists a repository and names a file's address."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final
from urllib.parse import quote

from glmquant.errors import HubError
from glmquant.hubs.addresses import shown
from glmquant.hubs.known import HubName, Reference, elsewhere
from glmquant.hubs.listing import Listing, RemoteFile, checked_files, checked_names
from glmquant.hubs.web import Web
from glmquant.survey import printable

Patient = Callable[[Callable[[], Any]], Any]
"""Tries a request again and again while it meets setbacks; gives what it gives."""

_Found = tuple[Any, list[RemoteFile], list[Any]]
"""Commit, files, and the names of what is neither a file nor a folder: links, mostly."""

_UNLIKE: Final = (KeyError, TypeError, ValueError, AttributeError, IndexError)
_MODELSCOPE_CAP: Final = 3000
"""ModelScope lists no more files at once, and does not say so."""

_MAX_PAGES: Final = 200


class Protocol(ABC):
    """One hub's interface.

    Args:
        web: Connections to it.
        patient: Who repeats what may be repeated.
    """

    default_revision = "main"
    default_endpoint: str
    endpoint_variables: tuple[str, ...]

    def __init__(self, web: Web, patient: Patient) -> None:
        self.web = web
        self._patient = patient

    def listing(self, reference: Reference, revision: str | None) -> Listing:
        """The files of a repository at a revision.

        Args:
            reference: Which.
            revision: A branch, tag or commit; None for the hub's own.

        Raises:
            HubError: There is no such repository or revision, or the list makes no sense.
        """
        wanted = revision or self.default_revision
        try:
            commit, files, others = self._listed(reference.repository, wanted)
        except LookupError as error:
            if type(error) is not LookupError:
                raise self._strange(reference) from error
            raise self._missing(reference, wanted, str(error)) from error
        except (TypeError, ValueError, AttributeError) as error:
            raise self._strange(reference) from error
        commit = commit if isinstance(commit, str) and commit.isalnum() else None
        return Listing(
            reference, wanted, commit, checked_files(files, reference.text), checked_names(others)
        )

    @abstractmethod
    def _listed(self, repository: str, revision: str) -> _Found:
        """As ``_Found``; LookupError where there is none, other errors where it is strange."""

    @abstractmethod
    def url(self, listing: Listing, path: str) -> str:
        """Where a file's bytes are asked for."""

    def _get(self, path: str) -> Any:
        return self._patient(lambda: self.web.json(path))

    def _missing(self, reference: Reference, revision: str, words: str) -> HubError:
        return HubError(
            "the hub does not have this repository or revision",
            where=f"{reference.text}, revision {revision}",
            expected=f"a repository at {shown(self.web.endpoint)}",
            found=f"HTTP 404 {words}",
            hint=elsewhere(reference)
            or "look at the hub's page of the model: --revision names "
            "a branch or a tag; a private repository needs a token",
        )

    def _strange(self, reference: Reference) -> HubError:
        return HubError(
            "the hub's answer cannot be understood",
            where=f"{reference.text} at {shown(self.web.endpoint)}",
            expected="a list of files",
            found="something else",
            hint="check the endpoint; a proxy or a portal may have answered",
        )


class ModelScope(Protocol):
    """``modelscope.cn``."""

    default_revision = "master"
    default_endpoint = "https://modelscope.cn"
    endpoint_variables = ("MODELSCOPE_ENDPOINT", "MODELSCOPE_DOMAIN")

    def _listed(self, repository: str, revision: str) -> _Found:
        base = f"/api/v1/models/{quote(repository)}"
        found = self._get(f"{base}/revisions")["Data"]["RevisionMap"]
        commits = {
            each["Revision"]: each.get("CommitId") or each.get("Id")
            for kind in ("Branches", "Tags")
            for each in found.get(kind) or []
        }
        entries = self._entries(base, revision, "", is_deep=True)
        if len(entries) >= _MODELSCOPE_CAP:
            entries = list(self._walk(base, revision, ""))
        files = [
            RemoteFile(each["Path"], each["Size"], each.get("Sha256"), None)
            for each in entries
            if each["Type"] == "blob"
        ]
        others = [each["Path"] for each in entries if each["Type"] not in ("blob", "tree")]
        return commits.get(revision), files, others

    def _entries(self, base: str, revision: str, root: str, *, is_deep: bool) -> list[Any]:
        path = f"{base}/repo/files?Revision={quote(revision, safe='')}&Recursive={is_deep}"
        path += f"&Root={quote(root, safe='')}" if root else ""
        entries = self._get(path)["Data"]["Files"]
        if not isinstance(entries, list):
            raise TypeError("no list of files")
        return entries

    def _walk(self, base: str, revision: str, root: str, depth: int = 0) -> Iterator[Any]:
        entries = self._entries(base, revision, root, is_deep=False)
        if len(entries) >= _MODELSCOPE_CAP or depth > 16:
            raise HubError(
                "ModelScope does not list all files of a folder",
                where=printable(f"{base}: /{root}"),
                expected=f"fewer than {_MODELSCOPE_CAP} files in a folder, 16 folders deep",
                found=f"{len(entries)}, {depth} deep",
                hint="fetch the model from another hub",
            )
        for each in entries:
            if each["Type"] == "tree":
                yield from self._walk(base, revision, each["Path"], depth + 1)
            else:
                yield each

    def url(self, listing: Listing, path: str) -> str:
        """The revision as it was asked for: whether a commit is taken here is not documented."""
        return (
            f"{self.web.endpoint}/api/v1/models/{quote(listing.reference.repository)}/repo"
            f"?Revision={quote(listing.revision, safe='')}&FilePath={quote(path, safe='')}"
        )


class Modelers(Protocol):
    """``modelers.cn``."""

    default_endpoint = "https://modelers.cn"
    endpoint_variables = ("OPENMIND_HUB_ENDPOINT",)

    def _listed(self, repository: str, revision: str) -> _Found:
        folders, files = [""], []
        seen: set[str] = set()
        commit = None
        while folders:
            folder = folders.pop()
            if folder in seen or len(seen) > 1000 or folder.count("/") > 16:
                raise ValueError("folders without end")
            seen.add(folder)
            data = self._get(
                f"/api/v1/file/{quote(repository)}?ref={quote(revision, safe='')}"
                f"&path={quote(folder, safe='')}"
            )["data"]
            if not folder:
                commit = data["last_commit"]["commit"]["commit_sha"]
            for each in data["tree"] or []:
                if each["type"] == "dir":
                    folders.append(each["path"])
                else:
                    digest, is_lfs = each["etag"], each["is_lfs"]
                    files.append(
                        RemoteFile(
                            each["path"],
                            each["size"],
                            digest if is_lfs else None,
                            None if is_lfs else digest,
                        )
                    )
        return commit, files, []

    def url(self, listing: Listing, path: str) -> str:
        """By the revision that was asked for."""
        return (
            f"{self.web.endpoint}/api/v1/file/{quote(listing.reference.repository)}/"
            f"{quote(listing.revision, safe='')}/media/{quote(path)}"
        )


class HuggingFace(Protocol):
    """``huggingface.co`` and its mirrors."""

    default_endpoint = "https://huggingface.co"
    endpoint_variables = ("HF_ENDPOINT",)

    def _listed(self, repository: str, revision: str) -> _Found:
        base = f"/api/models/{quote(repository)}"
        commit = self._get(f"{base}/revision/{quote(revision, safe='')}")["sha"]
        if not isinstance(commit, str) or not commit.isalnum():
            raise TypeError("no commit")
        entries: list[Any] = []
        path: str | None = f"{base}/tree/{commit}?recursive=true"
        for _ in range(_MAX_PAGES):
            if path is None:
                break
            found, path = self._patient(partial(self.web.page, path))
            if not isinstance(found, list):
                raise TypeError("no list of files")
            entries += found
        if path is not None:
            raise ValueError("pages without end")
        files = [
            RemoteFile(
                each["path"],
                each["lfs"]["size"] if each.get("lfs") else each["size"],
                each["lfs"]["oid"] if each.get("lfs") else None,
                None if each.get("lfs") else each.get("oid"),
            )
            for each in entries
            if each["type"] == "file"
        ]
        others = [each["path"] for each in entries if each["type"] not in ("file", "directory")]
        return commit, files, others

    def url(self, listing: Listing, path: str) -> str:
        """By the commit, which no push can change."""
        return (
            f"{self.web.endpoint}/{quote(listing.reference.repository)}/resolve/"
            f"{listing.commit}/{quote(path)}"
        )


PROTOCOLS: Final[dict[HubName, type[Protocol]]] = {
    HubName.MODELSCOPE: ModelScope,
    HubName.MODELERS: Modelers,
    HubName.HF: HuggingFace,
}


def is_usual_endpoint(hub: str, endpoint: str) -> bool:
    """Whether an address is the one that a hub has by itself.

    Args:
        hub: Its name, as a record has it.
        endpoint: The address.
    """
    known = {each.value: protocol.default_endpoint for each, protocol in PROTOCOLS.items()}
    return known.get(hub, endpoint) == endpoint
