"""The loopback hub itself: its protocols, and each fault as it is named."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from tests.certificates import make_certificates
from tests.hub import Fault, Hub
from tests.hub_repos import git_blob_sha1
from tests.proxy import Proxy

ROOT = Path(__file__).parent.parent
NAME = "owner/GLM-4.6"
SHARD = "model-00001-of-00001.safetensors"
CONFIG = "config.json"
FILE = f"/api/v1/models/{NAME}/repo?Revision=master&FilePath="
LISTING = f"/api/v1/models/{NAME}/repo/files?Revision=master&Recursive=True"
FOLDER = f"/api/v1/file/{NAME}?ref=main"
REVISION = f"/api/models/{NAME}/revision/main"

Answer = urllib3.BaseHTTPResponse


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    repo = tmp_path / "repo"
    (repo / "figures" / "deep").mkdir(parents=True)
    (repo / CONFIG).write_text('{"model_type": "glm4_moe"}')
    (repo / "figures" / "deep" / "a b.txt").write_text("text")
    (repo / SHARD).write_bytes(bytes(range(256)) * 10_000)
    return repo


@pytest.fixture
def hub(folder: Path) -> Iterator[Hub]:
    with Hub({NAME: folder}) as hub:
        yield hub


def get(hub: Hub, path: str, wanted: str | None = None, **more: Any) -> Answer:
    """Ask the hub's origin, or a whole URL, and follow redirects."""
    url = path if path.startswith("http") else hub.url + path
    headers = {"Range": f"bytes={wanted}"} if wanted else {}
    with urllib3.PoolManager() as pool:
        options = {"timeout": 10, "retries": urllib3.Retry(3, connect=0, read=0), **more}
        return pool.request(
            "GET", url, headers={**headers, **options.pop("headers", {})}, **options
        )


def location(hub: Hub, name: str = SHARD) -> str:
    return get(hub, FILE + name, redirect=False).headers["Location"]


def test_each_protocol_lists_and_serves_the_same_bytes(hub: Hub, folder: Path) -> None:
    listing = get(hub, LISTING).json()["Data"]["Files"]
    commit = listing[0]["Revision"]
    data = {path: (folder / path).read_bytes() for path in (CONFIG, "figures/deep/a b.txt", SHARD)}
    sha256 = {path: hashlib.sha256(content).hexdigest() for path, content in data.items()}
    assert {row["Path"]: row["Sha256"] for row in listing if row["Type"] == "blob"} == sha256
    assert [row["Path"] for row in listing if row["Type"] == "tree"] == ["figures", "figures/deep"]

    top = get(hub, FOLDER).json()["data"]
    assert top["last_commit"]["commit"]["commit_sha"] == commit
    assert {row["path"]: row.get("etag") for row in top["tree"]} == {
        CONFIG: git_blob_sha1(data[CONFIG]),
        SHARD: sha256[SHARD],
        "figures": None,
    }
    deep = get(hub, f"{FOLDER}&path=figures/deep").json()["data"]["tree"]
    assert [row["path"] for row in deep] == ["figures/deep/a b.txt"]

    assert get(hub, REVISION).json()["sha"] == commit
    tree = get(hub, f"/api/models/{NAME}/tree/{commit}?recursive=true").json()
    assert {row["path"] for row in tree if row["type"] == "file"} == set(data)
    assert [row["lfs"]["oid"] for row in tree if "lfs" in row] == [sha256[SHARD]]

    for path, content in data.items():
        quoted = path.replace(" ", "%20")
        assert get(hub, FILE + quoted).data == content
        assert get(hub, f"/api/v1/file/{NAME}/main/media/{quoted}").data == content
        assert get(hub, f"/{NAME}/resolve/{commit}/{quoted}").data == content
    assert hub.nbytes_sent(SHARD) == 3 * len(data[SHARD])
    assert hub.nbytes_sent("deep/") == 3 * len(data["figures/deep/a b.txt"])


def test_the_listings_are_cut_and_paged_as_the_hubs_do(tmp_path: Path) -> None:
    for number in range(3_010):
        (tmp_path / f"{number:04}.txt").write_bytes(b"")
    with Hub({NAME: tmp_path}) as hub:
        assert len(get(hub, LISTING).json()["Data"]["Files"]) == 3_000
        sha = get(hub, REVISION).json()["sha"]
        url, found = f"/api/models/{NAME}/tree/{sha}?recursive=true", 0
        while url:
            page = get(hub, url)
            found += len(page.json())
            url = page.headers.get("Link", "").partition(">")[0].removeprefix("<")
        assert found == 3_010
        assert [asked.status for asked in hub.log] == [200] * 6


def test_what_is_not_there_is_each_hubs_404(hub: Hub) -> None:
    other = "/api/v1/models/owner/other"
    for path in (other, f"{other}/revisions", FILE + "x", LISTING.replace("master", "v9")):
        missing = get(hub, path)
        assert (missing.status, missing.json()["Code"]) == (404, 10010205001)
    for path, code in {
        "/api/v1/model/owner/other": "model_not_found",
        f"{FOLDER}&path=none": "branch_or_path_not_found",
        f"/api/v1/file/{NAME}?ref=v9": "branch_or_path_not_found",
        f"/api/v1/file/{NAME}/main/media/none": "branch_or_path_not_found",
    }.items():
        missing = get(hub, path)
        assert (missing.status, missing.json()["code"]) == (404, code)
    for path, code in {
        "/api/models/owner/other": "RepoNotFound",
        f"/api/models/{NAME}/revision/v9": "RevisionNotFound",
        f"/{NAME}/resolve/main/none": "EntryNotFound",
    }.items():
        missing = get(hub, path)
        assert (missing.status, missing.headers["X-Error-Code"]) == (404, code)


def test_the_hub_moves_on_when_its_folder_does(hub: Hub, folder: Path) -> None:
    before, url = get(hub, REVISION).json()["sha"], location(hub)
    (folder / SHARD).write_bytes(b"other")
    assert get(hub, REVISION).json()["sha"] != before
    assert get(hub, url).status == 404
    assert get(hub, FILE + SHARD).data == b"other"
    assert get(hub, f"/{NAME}/resolve/{before}/{CONFIG}").status == 404


def test_range_is_honoured_by_the_cdn_and_hf_but_not_for_small_files_elsewhere(hub: Hub) -> None:
    for wanted, begin, end in (("3-9", 3, 10), ("2559990-", 2_559_990, 2_560_000)):
        part = get(hub, FILE + SHARD, wanted)
        assert (part.status, part.data) == (206, bytes(n % 256 for n in range(begin, end)))
        assert part.headers["Content-Range"] == f"bytes {begin}-{end - 1}/2560000"
    beyond = get(hub, FILE + SHARD, "2560000-")
    assert (beyond.status, beyond.headers["Content-Range"]) == (416, "bytes */2560000")
    assert get(hub, FILE + CONFIG, "0-3").status == 200
    assert get(hub, f"/{NAME}/resolve/main/{CONFIG}", "0-3").data == b'{"mo'
    moved = get(hub, location(hub), "0-3", headers={"If-Range": '"old"'})
    assert (moved.status, len(moved.data)) == (200, 2_560_000)


def test_a_direct_hub_serves_lfs_files_itself(folder: Path) -> None:
    with Hub({NAME: folder}, is_direct=True) as hub:
        assert get(hub, FILE + SHARD, "3-9").status == 206
        assert [asked.origin for asked in hub.log] == ["hub"]


def test_a_hub_without_sha256_states_none(folder: Path) -> None:
    with Hub({NAME: folder}, has_sha256=False) as hub:
        assert {row["Sha256"] for row in get(hub, LISTING).json()["Data"]["Files"]} == {None, ""}
        assert "ETag" not in get(hub, FILE + SHARD, "0-1").headers


def test_the_token_is_wanted_by_the_hub_and_not_by_the_cdn(folder: Path) -> None:
    with Hub({NAME: folder}, token="secret") as hub:
        assert get(hub, LISTING).status == 401
        assert get(hub, FOLDER, headers={"Authorization": "Bearer wrong"}).status == 401
        given = get(hub, FILE + SHARD, headers={"Cookie": "m_session_id=secret"}, redirect=False)
        assert get(hub, given.headers["Location"], "0-1").status == 206
        assert get(hub, REVISION, headers={"Authorization": "Bearer secret"}).status == 200
        assert [asked.token for asked in hub.log] == [None, "wrong", "secret", None, "secret"]


def test_the_cdn_refuses_a_signature_that_it_does_not_know(hub: Hub) -> None:
    url = location(hub)
    assert get(hub, url[:-1] + ("1" if url[-1] == "0" else "0")).status == 403
    hub.expire(0)
    assert get(hub, url).status == 403
    assert get(hub, location(hub)).status == 200


@pytest.mark.parametrize("name", [SHARD, CONFIG])
def test_a_cut_ends_the_connection_after_that_many_bytes(hub: Hub, name: str) -> None:
    hub.faults.append(Fault("cut", match=name, at=7))
    cut = get(hub, FILE + name, preload_content=False)
    with pytest.raises(urllib3.exceptions.ProtocolError, match="7 bytes read"):
        cut.read()
    assert hub.nbytes_sent(name) == 7
    assert get(hub, FILE + name).status == 200


def test_a_flip_inverts_the_byte_of_the_file_whatever_the_range(hub: Hub) -> None:
    hub.faults.append(Fault("flip", match=SHARD, at=5))
    assert get(hub, FILE + SHARD, "6-9").data == bytes([6, 7, 8, 9])
    assert get(hub, FILE + SHARD, "4-6").data == bytes([4, 5 ^ 0xFF, 6])
    assert get(hub, FILE + SHARD, "4-6").data == bytes([4, 5, 6])


def test_a_hang_sends_so_much_and_then_nothing(hub: Hub) -> None:
    hub.faults.append(Fault("hang", at=1000))
    begun = time.monotonic()
    hung = get(hub, FILE + SHARD, preload_content=False, timeout=0.5)
    assert len(hung.read(1000)) == 1000
    with pytest.raises(urllib3.exceptions.ReadTimeoutError):
        hung.read(1)
    hub.__exit__()
    assert time.monotonic() - begun < 3


def test_a_slow_body_keeps_to_its_rate(hub: Hub) -> None:
    hub.faults.append(Fault("slow", bps=1_000_000))
    begun = time.monotonic()
    assert len(get(hub, FILE + SHARD, "0-399999").data) == 400_000
    assert 0.35 < time.monotonic() - begun < 5


def test_a_delay_is_before_the_answer(hub: Hub) -> None:
    hub.faults.append(Fault("delay", seconds=0.3))
    begun = time.monotonic()
    assert get(hub, FILE + CONFIG).status == 200
    assert time.monotonic() - begun > 0.3


def test_answers_that_are_not_the_file(hub: Hub, folder: Path) -> None:
    hub.faults += [
        Fault("status", status=429, headers={"Retry-After": "7"}),
        Fault("html"),
        Fault("gzip"),
        Fault("empty"),
    ]
    busy = get(hub, FILE + SHARD, retries=False, redirect=False)
    busy = get(hub, busy.headers["Location"], retries=False)
    assert (busy.status, busy.headers["Retry-After"]) == (429, "7")
    page = get(hub, FILE + SHARD, "0-9")
    assert (page.status, page.headers["Content-Type"][:9], page.data[:9]) == (
        *(200, "text/html", b"<!doctype"),
    )
    packed = get(hub, FILE + SHARD, "0-9", decode_content=False)
    assert (packed.status, packed.headers["Content-Encoding"]) == (200, "gzip")
    assert gzip.decompress(packed.data) == (folder / SHARD).read_bytes()
    empty = get(hub, FILE + SHARD, "0-9")
    assert (empty.status, empty.headers["Content-Length"], empty.data) == (206, "0", b"")
    assert empty.headers["Content-Range"] == "bytes 0-9/2560000"


def test_ranges_that_are_not_the_one_asked_for(hub: Hub) -> None:
    hub.faults += [Fault("norange"), Fault("wrongrange")]
    whole = get(hub, FILE + SHARD, "0-9")
    assert (whole.status, len(whole.data)) == (200, 2_560_000)
    other = get(hub, FILE + SHARD, "32-34")
    assert (other.status, other.data) == (206, bytes([16, 17, 18]))
    assert other.headers["Content-Range"] == "bytes 16-18/2560000"
    hub.faults.append(Fault("short", at=100))
    short = get(hub, FILE + SHARD, "90-120")
    assert (short.data, short.headers["Content-Range"]) == (
        bytes(range(90, 100)),
        "bytes 90-99/100",
    )
    hub.faults.append(Fault("short", at=100))
    assert get(hub, FILE + SHARD, "100-120").status == 416


def test_urls_of_the_cdn_expire_move_and_loop(hub: Hub) -> None:
    old = location(hub)
    hub.faults.append(Fault("expire"))
    assert get(hub, old).status == 403
    assert get(hub, FILE + SHARD, "0-0").data == b"\0"
    hub.faults.append(Fault("redirect", times=-1))
    moved = get(hub, location(hub), "0-0", redirect=False)
    assert moved.status == 302
    assert moved.headers["Location"].startswith(hub.far_url)
    assert get(hub, moved.headers["Location"], "0-0").data == b"\0"
    hub.faults[:] = [Fault("loop", times=-1)]
    with pytest.raises(urllib3.exceptions.MaxRetryError, match="too many redirects"):
        get(hub, location(hub))


def test_listings_fail_as_told(hub: Hub) -> None:
    hub.faults += [
        Fault("api", match="/repo/files", status=500),
        Fault("api-json"),
        Fault("api-cut"),
        Fault("door", match=CONFIG, status=502),
    ]
    assert get(hub, LISTING).status == 500
    assert get(hub, LISTING).data == b"<html>"
    with pytest.raises(urllib3.exceptions.ProtocolError, match="more expected"):
        get(hub, LISTING, preload_content=False).read()
    assert get(hub, LISTING).status == 200
    assert get(hub, FILE + CONFIG).status == 502
    assert get(hub, FILE + CONFIG).status == 200


def test_it_speaks_tls_by_every_name_of_its_certificate(folder: Path, tmp_path: Path) -> None:
    made = make_certificates(tmp_path / "tls")
    with Hub({NAME: folder}, tls=made.server_context()) as hub, Proxy() as proxy:
        port = hub.url.rpartition(":")[2]
        pool = urllib3.ProxyManager(proxy.url, ca_certs=str(made.authority))
        assert pool.request("GET", f"https://fake.modelers.cn:{port}{FOLDER}").status == 200
        assert len(pool.request("GET", hub.url + FILE + SHARD).data) == 2_560_000
        assert proxy.names == {"fake.modelers.cn", "127.0.0.1", "localhost"}


def test_it_runs_as_a_program(folder: Path) -> None:
    words = [sys.executable, "-m", "tests.hub", "--repo", f"{NAME}={folder}"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = json.loads(process.stdout.readline())
            with urllib3.PoolManager() as pool:
                assert pool.request("GET", said["url"] + FILE + CONFIG).status == 200
        finally:
            process.kill()
