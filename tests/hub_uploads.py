"""What the loopback hub does with what is sent to it, in ModelScope's protocol.

The routes are those that modelscope-hub 0.5.1 uses to make a repository and to fill it: POST of the
repository, of a batch of LFS objects and of a commit; PUT of an object at the CDN.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import secrets
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.hub_protocols import REPO, Page, modelscope_data, modelscope_missing

if TYPE_CHECKING:
    from tests.hub import Hub

BLOCK = 1 << 20


@dataclass
class Uploads:
    """Where sent bytes wait until a commit names them.

    Attributes:
        folder: New repositories and objects lie in it.
        created: What was asked for when a repository was made, in order.
        commits: Paths of each commit.
        signed: Signature → the SHA-256 that may be put.
    """

    folder: Path
    created: list[dict[str, Any]] = field(default_factory=list)
    commits: list[list[str]] = field(default_factory=list)
    signed: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def object(self, sha256: str) -> Path:
        """The place of an object."""
        (self.folder / "objects").mkdir(parents=True, exist_ok=True)
        return self.folder / "objects" / sha256


def answer_post(hub: Hub, path: str, body: bytes) -> Page:
    """The answer to a POST of the hub."""
    uploads = hub.uploads
    if uploads is None:
        return modelscope_missing("this hub takes nothing")
    told = json.loads(body or b"{}")
    if path == "/api/v1/models":
        return _create(hub, uploads, told)
    if found := re.fullmatch(rf"/api/v1/repos/models/{REPO}/info/lfs/objects/batch", path):
        return _batch(hub, uploads, found[1], told)
    if found := re.fullmatch(rf"/api/v1/repos/models/{REPO}/commit/([^/]+)", path):
        return _commit(hub, uploads, found[1], told)
    return modelscope_missing("no route")


def _create(hub: Hub, uploads: Uploads, told: dict[str, Any]) -> Page:
    name = f"{told['Path']}/{told['Name']}"
    with uploads.lock:
        if name in hub.repos.folders:
            message = "the model already exists"
            content = {"Code": 10010101002, "Message": message, "Success": False}
            return Page(content, 400)
        folder = uploads.folder / "repos" / name
        folder.mkdir(parents=True)
        hub.repos.folders[name] = folder
        uploads.created.append(told)
    return modelscope_data({"Name": told["Name"], "Path": told["Path"]})


def _batch(hub: Hub, uploads: Uploads, name: str, told: dict[str, Any]) -> Page:
    if name not in hub.repos.folders:
        return modelscope_missing("record not found")
    objects = []
    for each in told["objects"]:
        if uploads.object(each["oid"]).exists():
            continue
        signature = secrets.token_hex(16)
        with uploads.lock:
            uploads.signed[signature] = each["oid"]
        href = f"{hub.cdn_url}/upload/{each['oid']}?Signature={signature}"
        objects.append({**each, "actions": {"upload": {"href": href}}})
    return modelscope_data({"objects": objects})


def _commit(hub: Hub, uploads: Uploads, name: str, told: dict[str, Any]) -> Page:
    folder = hub.repos.folders.get(name)
    if folder is None:
        return modelscope_missing("record not found")
    contents: dict[str, bytes] = {}
    for action in told["actions"]:
        if action["type"] == "lfs":
            stored = uploads.object(action["sha256"])
            if not stored.exists():
                content = {"Code": 400, "Message": "no such object", "Success": False}
                return Page(content, 400)
            contents[action["path"]] = stored.read_bytes()
        else:
            contents[action["path"]] = base64.b64decode(action["content"])
    with uploads.lock:
        uploads.commits.append(sorted(contents))
        for path, data in contents.items():
            place = folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
    return modelscope_data({"CommitId": hashlib.sha1(json.dumps(told).encode()).hexdigest()})


def put_object(hub: Hub, sha256: str, signature: str, body: bytes) -> Page:
    """The answer to a PUT at the CDN: the bytes are kept only where they have the sum."""
    uploads = hub.uploads
    if uploads is None or uploads.signed.get(signature) != sha256:
        return Page({"Code": 403, "Message": "no valid signature"}, 403)
    if hashlib.sha256(body).hexdigest() != sha256:
        return Page({"Code": 400, "Message": "the sum is another"}, 400)
    with contextlib.suppress(FileExistsError):
        uploads.object(sha256).write_bytes(body)
    return Page({"Code": 200, "Message": "success"})
