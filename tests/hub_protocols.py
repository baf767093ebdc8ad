"""What the loopback hub answers in the protocols of ModelScope, Modelers and Hugging Face.

The routes are those that modelscope 1.40.2, openmind-hub 1.3.0 and huggingface_hub 2.4.0 ask for;
``tests/test_hub_is_faithful.py`` lets them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from tests.hub_repos import Entry, Listing

MODELSCOPE_MAX_ENTRIES = 3000
HF_PAGE_ENTRIES = 1000
REPO = r"([^/]+/[^/]+)"


@dataclass(frozen=True, slots=True)
class Page:
    """An answer in JSON."""

    content: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class File:
    """A file's content; an LFS file is found at the CDN."""

    entry: Entry
    ranges: bool
    """The hub itself honours Range where it serves the file."""
    headers: Mapping[str, str] = field(default_factory=dict)


Listings = Callable[[str], Listing | None]


@dataclass(frozen=True, slots=True)
class Asking:
    """A request, taken apart."""

    path: str
    query: Mapping[str, str]
    base_url: str
    listings: Listings
    has_sha256: bool


def answer(asking: Asking) -> Page | File:
    """The answer to a GET of the hub."""
    for pattern, route in ROUTES:
        if found := re.fullmatch(pattern, asking.path):
            return route(asking, *(part or "" for part in found.groups()))
    return Page({"Code": 404, "Message": "no route", "Success": False}, 404)


def unauthorized(path: str) -> Page:
    """Each hub's 401."""
    if path.startswith(("/api/v1/models/", "/api/v1/repos/")):
        return Page({"Code": 10010101001, "Message": "token is invalid", "Success": False}, 401)
    if path.startswith("/api/v1/"):
        return Page({"code": "unauthorized", "msg": "unauthorized", "data": None}, 401)
    message = "Access to this model is restricted."
    return Page({"error": message}, 401, {"X-Error-Code": "GatedRepo", "X-Error-Message": message})


# ModelScope


def modelscope_missing(message: str) -> Page:
    return Page({"Code": 10010205001, "Message": message, "Success": False}, 404)


def modelscope_data(data: Any) -> Page:
    content = {"Code": 200, "Data": data, "Message": "success", "RequestId": "1", "Success": True}
    return Page(content)


def modelscope_acceleration(asking: Asking) -> Page:
    return modelscope_data({"InternalRegionQueryAddress": ""})


def modelscope(asking: Asking, name: str, what: str) -> Page | File:
    listing = asking.listings(name)
    if listing is None:
        return modelscope_missing("record not found")
    owner, _, short_name = name.partition("/")
    if what == "":
        about = {"Id": 1, "Name": short_name, "Path": owner, "Revision": "master", "Visibility": 5}
        return modelscope_data(about)
    if what == "/revisions":
        branch = {"Revision": "master", "CommitId": listing.commit, "CreatedAt": 1700000000}
        return modelscope_data({"RevisionMap": {"Branches": [branch], "Tags": []}})
    if asking.query.get("Revision", "master") not in {"master", listing.commit}:
        return modelscope_missing("revision not found")
    if what == "/repo/files":
        return modelscope_files(asking, listing)
    if what == "/repo":
        entry = listing.files.get(asking.query.get("FilePath", ""))
        return File(entry, ranges=False) if entry else modelscope_missing("file not found")
    return modelscope_missing("no route")


def modelscope_files(asking: Asking, listing: Listing) -> Page:
    root = asking.query.get("Root", "").strip("/")
    is_recursive = asking.query.get("Recursive", "False").lower() == "true"
    folders = listing.folders()
    if root and root not in folders:
        return modelscope_missing("path not found")
    found: list[dict[str, Any]] = []
    for path, entry in below(listing.files, root, is_recursive).items():
        found.append(
            {
                "Id": entry.git_sha1,
                "Name": PurePosixPath(path).name,
                "Path": path,
                "Type": "blob",
                "Mode": "33188",
                "Size": entry.nbytes,
                "Sha256": entry.sha256 if asking.has_sha256 else None,
                "Revision": listing.commit,
                "CommitId": listing.commit,
                "CommitMessage": "upload",
                "CommittedDate": 1700000000,
                "CommitterName": "hub",
                "IsLFS": entry.is_lfs,
                "InCheck": False,
            }
        )
    found += [
        {
            "Id": "",
            "Name": PurePosixPath(path).name,
            "Path": path,
            "Type": "tree",
            "Mode": "16384",
            "Size": 0,
            "Sha256": "",
            "Revision": listing.commit,
        }
        for path in below(dict.fromkeys(folders), root, is_recursive)
    ]
    files = found[:MODELSCOPE_MAX_ENTRIES]
    return modelscope_data({"Files": files, "IsVisual": 0, "LatestCommitter": {}})


# Modelers


def modelers_missing(code: str) -> Page:
    return Page({"code": code, "msg": "not found", "data": None}, 404)


def modelers_data(data: Any) -> Page:
    return Page({"code": "", "msg": "", "data": data})


def modelers_model(asking: Asking, name: str) -> Page:
    if asking.listings(name) is None:
        return modelers_missing("model_not_found")
    owner, _, short_name = name.partition("/")
    labels = {"others": [], "task": "text-generation", "frameworks": ["PyTorch"]}
    return modelers_data(
        {
            "id": "1",
            "name": short_name,
            "owner": owner,
            "fullname": "",
            "visibility": "public",
            "labels": labels,
            "siblings": [],
        }
    )


def modelers_etag(asking: Asking, entry: Entry) -> str:
    if not entry.is_lfs:
        return entry.git_sha1
    return entry.sha256 if asking.has_sha256 else ""


def modelers_commit(listing: Listing) -> dict[str, str]:
    created = "2025-10-01T00:00:00+08:00"
    return {"commit_sha": listing.commit, "message": "upload", "created": created}


def modelers_listing(asking: Asking, name: str, ref: str) -> Listing | Page:
    listing = asking.listings(name)
    if listing is None:
        return modelers_missing("model_not_found")
    if ref not in {"main", listing.commit}:
        return modelers_missing("branch_or_path_not_found")
    return listing


def modelers_folder(asking: Asking, name: str) -> Page:
    listing = modelers_listing(asking, name, asking.query.get("ref", "main"))
    if isinstance(listing, Page):
        return listing
    root = asking.query.get("path", "").strip("/")
    folders = listing.folders()
    if root and root not in folders:
        return modelers_missing("branch_or_path_not_found")
    commit = modelers_commit(listing)
    tree: list[dict[str, Any]] = [
        {
            "type": "file",
            "name": PurePosixPath(path).name,
            "path": path,
            "size": entry.nbytes,
            "etag": modelers_etag(asking, entry),
            "is_lfs": entry.is_lfs,
            "commit": commit,
        }
        for path, entry in below(listing.files, root, False).items()
    ]
    tree += [
        {
            "type": "dir",
            "name": PurePosixPath(path).name,
            "path": path,
            "size": 0,
            "commit": commit,
        }
        for path in below(dict.fromkeys(folders), root, False)
    ]
    return modelers_data({"tree": tree, "last_commit": {"commit": commit}})


def modelers_info(asking: Asking, name: str) -> Page:
    listing = modelers_listing(asking, name, asking.query.get("ref", "main"))
    if isinstance(listing, Page):
        return listing
    entry = listing.files.get(asking.query.get("path", ""))
    if entry is None:
        return modelers_missing("branch_or_path_not_found")
    return modelers_data(
        {
            "branch_last_commit": listing.commit,
            "etag": modelers_etag(asking, entry),
            "size": entry.nbytes,
            "is_lfs": entry.is_lfs,
            "path": entry.path,
            "name": PurePosixPath(entry.path).name,
            "url": "",
        }
    )


def modelers_media(asking: Asking, name: str, ref: str, path: str) -> Page | File:
    listing = modelers_listing(asking, name, ref)
    if isinstance(listing, Page):
        return listing
    entry = listing.files.get(path)
    return File(entry, ranges=False) if entry else modelers_missing("branch_or_path_not_found")


# Hugging Face


def hf_missing(code: str, message: str, commit: str = "") -> Page:
    headers = {"X-Error-Code": code, "X-Error-Message": message}
    if commit:
        headers["X-Repo-Commit"] = commit
    return Page({"error": message}, 404, headers)


def hf_listing(asking: Asking, name: str, revision: str) -> Listing | Page:
    listing = asking.listings(name)
    if listing is None:
        return hf_missing("RepoNotFound", "Repository not found")
    if revision not in {"main", listing.commit}:
        return hf_missing("RevisionNotFound", f"Invalid rev id: {revision}")
    return listing


def hf_model(asking: Asking, name: str, revision: str) -> Page:
    listing = hf_listing(asking, name, revision or "main")
    if isinstance(listing, Page):
        return listing
    siblings = [{"rfilename": path} for path in listing.files]
    return Page(
        {
            "_id": "1",
            "id": name,
            "modelId": name,
            "sha": listing.commit,
            "private": False,
            "siblings": siblings,
        }
    )


def hf_tree(asking: Asking, name: str, revision: str, root: str) -> Page:
    listing = hf_listing(asking, name, revision)
    if isinstance(listing, Page):
        return listing
    is_recursive = asking.query.get("recursive", "").lower() in {"true", "1"}
    folders = listing.folders()
    if root and root not in folders:
        return hf_missing("EntryNotFound", f"{root} does not exist", listing.commit)
    found: list[dict[str, Any]] = [
        {"type": "directory", "oid": listing.commit, "size": 0, "path": path}
        for path in below(dict.fromkeys(folders), root, is_recursive)
    ]
    for path, entry in below(listing.files, root, is_recursive).items():
        row: dict[str, Any] = {"type": "file", "oid": entry.git_sha1, "size": entry.nbytes}
        if entry.is_lfs:
            row["lfs"] = {"size": entry.nbytes, "pointerSize": 135}
            if asking.has_sha256:
                row["lfs"]["oid"] = entry.sha256
        found.append({**row, "path": path})
    begin = int(asking.query.get("cursor", "0"))
    end = begin + min(int(asking.query.get("limit", HF_PAGE_ENTRIES)), HF_PAGE_ENTRIES)
    headers = {}
    if end < len(found):
        query = f"recursive={str(is_recursive).lower()}&limit={end - begin}&cursor={end}"
        headers["Link"] = f'<{asking.base_url}{asking.path}?{query}>; rel="next"'
    return Page(found[begin:end], headers=headers)


def hf_resolve(asking: Asking, name: str, revision: str, path: str) -> Page | File:
    listing = hf_listing(asking, name, revision)
    if isinstance(listing, Page):
        return listing
    entry = listing.files.get(path)
    if entry is None:
        return hf_missing("EntryNotFound", "Entry not found", listing.commit)
    headers = {"X-Repo-Commit": listing.commit, "ETag": f'"{entry.git_sha1}"'}
    if entry.is_lfs:
        headers["X-Linked-Size"] = str(entry.nbytes)
        if asking.has_sha256:
            headers["X-Linked-ETag"] = f'"{entry.sha256}"'
    return File(entry, ranges=True, headers=headers)


def below(paths: Mapping[str, Any], root: str, is_recursive: bool) -> dict[str, Any]:
    """Those of the paths that lie in a folder, directly or at any depth."""
    prefix = f"{root}/" if root else ""
    return {
        path: what
        for path, what in paths.items()
        if path.startswith(prefix) and (is_recursive or "/" not in path[len(prefix) :])
    }


ROUTES: list[tuple[str, Callable[..., Page | File]]] = [
    (r"/api/v1/repos/internalAccelerationInfo", modelscope_acceleration),
    (rf"/api/v1/models/{REPO}(/.*)?", modelscope),
    (rf"/api/v1/model/{REPO}", modelers_model),
    (rf"/api/v1/file/{REPO}", modelers_folder),
    (rf"/api/v1/file/{REPO}/info", modelers_info),
    (rf"/api/v1/file/{REPO}/([^/]+)/media/(.+)", modelers_media),
    (rf"/api/models/{REPO}(?:/revision/([^/]+))?", hf_model),
    (rf"/api/models/{REPO}/tree/([^/]+)(?:/(.*))?", hf_tree),
    (rf"/{REPO}/resolve/([^/]+)/(.+)", hf_resolve),
]
