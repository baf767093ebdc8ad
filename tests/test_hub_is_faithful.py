"""The loopback hub stands for the real ones: their own clients download from it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.certificates import make_certificates
from tests.conftest import folder_bytes
from tests.hub import Fault, Hub
from tests.proxy import Proxy

pytestmark = pytest.mark.hubs

NAME = "Modelers_Park/GLM-4.6-w8a8"
TOKEN = "secret"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
WORDS = "\n".join(
    (
        "import sys",
        "from {package} import snapshot_download",
        "token = sys.argv[3] or None",
        "print('FOLDER', snapshot_download(sys.argv[1], {folder}=sys.argv[2], token=token))",
    )
)


@dataclass(frozen=True)
class Ran:
    """A client that was run."""

    exit_code: int
    folder: Path
    said: str


@dataclass(frozen=True)
class Client:
    """A genuine client, and how it is led to the hub."""

    python: str
    words: str
    env: dict[str, str]
    hub: Hub

    def download(self, target: Path, token: str = "") -> Ran:
        """Run it as a user does, in a home of its own beside the target."""
        home = target.with_name(f"{target.name}-home")
        home.mkdir(exist_ok=True)
        places = dict.fromkeys(("HOME", "MODELSCOPE_HOME", "HF_HOME", "XDG_CACHE_HOME"), str(home))
        ran = subprocess.run(
            [self.python, "-c", self.words, NAME, target, token],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            cwd=home,
            env={"PATH": os.environ["PATH"], "NO_PROXY": "", **places, **self.env},
        )
        folders = [line[7:] for line in ran.stdout.splitlines() if line.startswith("FOLDER ")]
        folder = Path(folders[0]) if folders else target
        return Ran(ran.returncode, folder, ran.stdout + ran.stderr)


def genuine(variable: str) -> str:
    python = os.environ.get(variable)
    if python is None:
        pytest.skip(f"no {variable}: `tools/check hubs` makes the environments of the clients")
    return python


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A repository with a folder below, small files and two shards."""
    repo = tmp_path / "repo"
    (repo / "figures").mkdir(parents=True)
    (repo / "config.json").write_text('{"model_type": "glm4_moe"}')
    (repo / "README.md").write_text("# GLM\n")
    (repo / "figures" / "bench.txt").write_text("text")
    (repo / FIRST).write_bytes(bytes(range(256)) * 12_000)
    (repo / SECOND).write_bytes(bytes(range(256))[::-1] * 8_000)
    return repo


@pytest.fixture
def modelscope(source: Path, tmp_path: Path) -> Iterator[Client]:
    python = genuine("GLMQUANT_HUBS_PYTHON")
    with Hub({NAME: source}) as hub:
        env = {"MODELSCOPE_ENDPOINT": hub.url, "MODELSCOPE_CACHE": str(tmp_path / "cache")}
        yield Client(python, WORDS.format(package="modelscope", folder="local_dir"), env, hub)


@pytest.fixture
def huggingface(source: Path) -> Iterator[Client]:
    python = genuine("GLMQUANT_HUBS_PYTHON")
    with Hub({NAME: source}) as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
        words = WORDS.format(package="huggingface_hub", folder="cache_dir")
        yield Client(python, words, env, hub)


@pytest.fixture
def openmind(source: Path, tmp_path: Path) -> Iterator[Client]:
    """It wants https and names below modelers.cn, which a proxy leads to loopback."""
    python = genuine("GLMQUANT_OPENMIND_PYTHON")
    made = make_certificates(tmp_path / "tls")
    with Hub({NAME: source}, tls=made.server_context()) as hub, Proxy() as proxy:
        hub.cdn_url = hub.cdn_url.replace("localhost", "cdn.modelers.cn")
        env = {
            "OPENMIND_HUB_ENDPOINT": hub.url.replace("127.0.0.1", "fake.modelers.cn"),
            "HTTPS_PROXY": proxy.url,
            "REQUESTS_CA_BUNDLE": str(made.authority),
        }
        words = WORDS.format(package="openmind_hub", folder="cache_dir")
        yield Client(python, words, env, hub)


@pytest.fixture(params=["modelscope", "huggingface", "openmind"])
def client(request: pytest.FixtureRequest) -> Client:
    found: Client = request.getfixturevalue(request.param)
    return found


def test_the_client_gets_every_byte(client: Client, source: Path, tmp_path: Path) -> None:
    ran = client.download(tmp_path / "target")
    assert ran.exit_code == 0, ran.said
    assert folder_bytes(ran.folder) == folder_bytes(source)
    assert client.hub.nbytes_sent() == sum(map(len, folder_bytes(source).values()))
    from_cdn = {asked.note for asked in client.hub.log if asked.origin == "cdn"}
    assert from_cdn == {FIRST, SECOND}


def test_the_client_is_let_in_by_its_token(client: Client, source: Path, tmp_path: Path) -> None:
    client.hub.token = TOKEN
    refused = client.download(tmp_path / "refused")
    assert refused.exit_code != 0
    assert client.hub.nbytes_sent() == 0
    ran = client.download(tmp_path / "target", TOKEN)
    assert ran.exit_code == 0, ran.said
    assert folder_bytes(ran.folder) == folder_bytes(source)
    at_cdn = {asked.token for asked in client.hub.log if asked.origin == "cdn"}
    assert at_cdn == ({TOKEN} if "openmind_hub" in client.words else {None})


def test_modelscope_finds_a_flipped_byte_and_fetches_again(
    modelscope: Client, source: Path, tmp_path: Path
) -> None:
    modelscope.hub.faults.append(Fault("flip", match=FIRST, at=1_000_000))
    ran = modelscope.download(tmp_path / "target")
    assert ran.exit_code == 0, ran.said
    assert folder_bytes(ran.folder) == folder_bytes(source)
    assert modelscope.hub.nbytes_sent(FIRST) == 2 * (source / FIRST).stat().st_size


def test_modelscope_gives_up_where_the_cdn_refuses(modelscope: Client, tmp_path: Path) -> None:
    modelscope.hub.faults.append(Fault("status", match=FIRST, status=403, times=-1))
    ran = modelscope.download(tmp_path / "target")
    assert ran.exit_code != 0
    assert [asked.status for asked in modelscope.hub.log].count(403) == 1, "no second try"


def test_huggingface_hub_returns_a_flipped_byte(
    huggingface: Client, source: Path, tmp_path: Path
) -> None:
    huggingface.hub.faults.append(Fault("flip", match=FIRST, at=1_000_000))
    ran = huggingface.download(tmp_path / "target")
    assert ran.exit_code == 0, ran.said
    found, right = folder_bytes(ran.folder), folder_bytes(source)
    assert {name for name in right if found[name] != right[name]} == {FIRST}


def test_huggingface_hub_loses_what_came_before_a_cut(
    huggingface: Client, source: Path, tmp_path: Path
) -> None:
    huggingface.hub.faults.append(Fault("cut", match=FIRST, at=1_000_000))
    ran = huggingface.download(tmp_path / "target")
    assert ran.exit_code == 0, ran.said
    assert folder_bytes(ran.folder) == folder_bytes(source)
    nbytes = (source / FIRST).stat().st_size
    assert huggingface.hub.nbytes_sent(FIRST) == 1_000_000 + nbytes, "it writes 10 MB at a time"


def test_openmind_hub_returns_a_flipped_byte(
    openmind: Client, source: Path, tmp_path: Path
) -> None:
    openmind.hub.faults.append(Fault("flip", match=FIRST, at=1_000_000))
    ran = openmind.download(tmp_path / "target")
    assert ran.exit_code == 0, ran.said
    found, right = folder_bytes(ran.folder), folder_bytes(source)
    assert {name for name in right if found[name] != right[name]} == {FIRST}
