"""``glmquant doctor`` on this machine, and on machines made of fake tools and folders."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from glmquant.doctor.checks import Check
from glmquant.doctor.clashes import check_packages
from glmquant.doctor.host import mount_of, parse_mounts
from glmquant.doctor.npus import machine_of, parse_npu_smi
from glmquant.doctor.packages import installed_in
from glmquant.doctor.run import Wish, diagnose
from glmquant.doctor.stacks import STACKS
from glmquant.doctor.versions import numbers_of, satisfies
from glmquant.verify.engines.predict import ENGINES
from tests import npu_smi
from tests.certificates import make_certificates
from tests.conftest import Ran, run_glmquant
from tests.hub import Fault, Hub
from tests.proxy import Proxy
from tests.test_execute import ENV

Run = Callable[..., Ran]
Checks = dict[str, dict[str, Any]]

ENDPOINTS = ("MODELSCOPE_ENDPOINT", "OPENMIND_HUB_ENDPOINT", "HF_ENDPOINT")


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user without proxies, Ascend variables or tools of the real machine."""
    for variable in list(os.environ):
        if variable.startswith(("ASCEND_", "VLLM_", "HF_", "MODELSCOPE_", "OPENMIND_", "SSL_")):
            monkeypatch.delenv(variable)
        if variable.lower().endswith(("_proxy", "_ca_bundle")):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")


def by_name(checks: list[Check]) -> Checks:
    return {check.name: check.fields() for check in checks}


def told(ran: Ran) -> Checks:
    assert ran.exit_code == 0, ran.stderr
    (event,) = ran.events
    assert event["event"] == "doctor"
    return {check["name"]: check for check in event["checks"]}


def site(folder: Path, **versions: str) -> Path:
    """A folder with a dist-info for each name; ``_`` stands for ``-``."""
    for name, version in versions.items():
        place = folder / f"{name}-{version}.dist-info"
        place.mkdir(parents=True)
        text = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
        (place / "METADATA").write_text(text)
    return folder


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python without any package."""
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, with_pip=False, symlinks=True)
    return home / "bin" / "python"


@pytest.fixture
def looked_at(
    bare_python: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, glmquant: Run
) -> Callable[..., Checks]:
    """What doctor says of a Python that has these packages."""

    def look(**versions: str) -> Checks:
        monkeypatch.setenv("PYTHONPATH", str(site(tmp_path / "site", **versions)))
        return told(glmquant("doctor", "--offline", "--python", bare_python, "--json"))

    return look


# This machine


def test_it_tells_what_is_absent_and_does_not_fail(glmquant: Run, tmp_path: Path) -> None:
    ran = glmquant("doctor", tmp_path, "--offline")
    assert ran.exit_code == 0
    assert ran.stderr == ""
    lines = ran.stdout.splitlines()
    assert [line for line in lines if not line.startswith(" ")][:4] == [
        "python:",
        "npu:",
        "host:",
        "hubs:",
    ]
    assert f"  ok       Python            {platform.python_version()}, {sys.executable}" in lines
    assert lines[-2].startswith("verdict: ")
    assert lines[-1].startswith("next: ")


def test_nothing_is_imported_to_learn_its_version(tmp_path: Path) -> None:
    script = (
        "import sys; from glmquant.cli import main\n"
        "try: main(['doctor', '--offline'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'numba', 'torch', 'transformers'} & sys.modules.keys()\n"
        "sys.exit(str(sorted(heavy)) if heavy else 0)"
    )
    place = site(tmp_path / "site", torch="2.10.0")
    (place / "torch.py").write_text("raise SystemExit('imported')")
    env = {**ENV, "PYTHONPATH": f"{place}:{ENV['PYTHONPATH']}"}
    ran = subprocess.run(
        [sys.executable, "-c", script], env=env, check=True, capture_output=True, text=True
    )
    assert "torch             2.10.0" in ran.stdout


# Packages


def test_packages_of_another_python_are_told(looked_at: Callable[..., Checks]) -> None:
    found = looked_at(torch="2.10.0+cpu", transformers="5.14.1", msmodelslim="26.1.0")
    assert found["Python"]["text"].startswith(platform.python_version())
    assert found["torch"]["text"] == "2.10.0+cpu"
    assert found["transformers"]["state"] == "ok"
    assert found["vllm"]["state"] == "note"
    assert found["vllm"]["text"] == "not installed"
    assert "add-mtp" in found["msmodelslim's outputs"]["remedy"]
    assert found.keys().isdisjoint({"numpy", "torch with torch-npu"})


def test_a_path_that_is_no_python_is_wrong_usage(glmquant: Run, tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", Path("/bin/false"), Path("/bin/echo")):
        ran = glmquant("doctor", "--offline", "--python", path)
        assert ran.exit_code == 2
        assert f"where:    {path}" in ran.stderr


@pytest.mark.parametrize("ascend", STACKS)
def test_a_stack_as_released_has_no_clash(ascend: str, looked_at: Callable[..., Checks]) -> None:
    stack = STACKS[ascend]
    wanted = {
        name.replace("-", "_"): spec.split(",")[0].lstrip("=>")
        for name, spec in stack.requires.items()
    }
    if "numpy" in wanted:
        wanted["numpy"] = "1.26.4"
    wanted |= {"vllm": f"{stack.vllm}+empty", "vllm_ascend": ascend}
    found = looked_at(**wanted)
    clashes = {name: found[name]["text"] for name in found if " with " in name}
    alone = {"torch-npu with CANN": "torch-npu is installed, CANN is not: import torch fails"}
    if not satisfies(platform.python_version(), stack.python):
        clashes.pop("Python with vllm-ascend")
    assert clashes == alone


def test_versions_that_do_not_go_together_are_named_with_remedy_and_source(
    looked_at: Callable[..., Checks], bare_python: Path
) -> None:
    found = looked_at(
        vllm="0.26.0",
        vllm_ascend="0.23.0.post1",
        torch="2.9.0",
        torch_npu="2.10.0.post4",
        transformers="4.57.3",
        triton="3.6.0",
        triton_ascend="3.2.2",
    )
    problems = {name: check for name, check in found.items() if check["state"] == "problem"}
    assert problems.keys() == {
        "vllm with vllm-ascend",
        "torch with torch-npu",
        "torch with vllm-ascend",
        "torch-npu with CANN",
        "transformers with vllm-ascend",
        "triton with triton-ascend",
    }
    assert all(check["remedy"] and check["source"] for check in problems.values())
    pip = f"{bare_python} -m pip"
    assert problems["transformers with vllm-ascend"]["remedy"] == (
        f"{pip} install transformers==5.5.4"
    )
    assert problems["triton with triton-ascend"]["remedy"] == (
        f"{pip} uninstall -y triton triton-ascend && {pip} install triton-ascend==3.2.2"
    )


def test_the_triton_of_gpus_is_no_triton_of_npus(looked_at: Callable[..., Checks]) -> None:
    assert "triton with vllm-ascend" not in looked_at(triton="3.6.0")


def test_a_triton_beside_vllm_ascend_has_to_be_the_right_one(
    looked_at: Callable[..., Checks],
) -> None:
    found = looked_at(triton="3.6.0", vllm_ascend="0.23.0", vllm="0.23.0")
    assert found["triton with vllm-ascend"]["state"] == "problem"


def test_a_release_that_the_table_lacks_is_judged_by_what_it_declares(
    looked_at: Callable[..., Checks], tmp_path: Path
) -> None:
    place = site(tmp_path / "site", vllm_ascend="0.31.0rc1")
    with (place / "vllm_ascend-0.31.0rc1.dist-info" / "METADATA").open("a") as file:
        file.write("Requires-Dist: torch==2.11.0\nRequires-Dist: numpy\n")
        file.write("Requires-Dist: transformers==6.0.0; extra == 'more'\n")
    found = looked_at(vllm="0.30.0", torch="2.10.0", transformers="5.14.1")
    clashes = {name: check for name, check in found.items() if " with " in name}
    assert clashes.keys() == {"vllm with vllm-ascend", "torch with vllm-ascend"}
    assert clashes["vllm with vllm-ascend"]["state"] == "warning"
    assert clashes["torch with vllm-ascend"]["source"] == (
        "vllm-ascend 0.31.0rc1 METADATA, as installed"
    )


def test_every_version_that_verify_predicts_for_has_its_stack() -> None:
    assert {".".join(version.split(".")[:2]) for version in STACKS} == {
        engine.version for engine in ENGINES
    }


@pytest.mark.parametrize(
    ("version", "wanted", "fits"),
    [
        ("2.10.0.post4", "==2.10.0", True),
        ("2.10", "==2.10.0", True),
        ("2.10.1", "==2.10.0", False),
        ("1.26.4", "<2", True),
        ("2.0.0rc1", "<2", False),
        ("4.57.4", ">=4.57.4,<5", True),
        ("5.0.0", ">=4.57.4,<5", False),
        ("3.9.18", ">=3.10,<3.12", False),
        ("unknown", ">=3.10", True),
        ("3.11", "~=3.9", True),
    ],
)
def test_versions_are_compared_by_their_numbers(version: str, wanted: str, fits: bool) -> None:
    assert satisfies(version, wanted) is fits


def test_a_version_has_numbers_or_none() -> None:
    assert numbers_of("0.23.0.post1+git4c9") == (0, 23)
    assert numbers_of("v0.30.0rc2") == (0, 30)
    assert numbers_of("git") is None


# NPUs


@pytest.fixture
def npus(tmp_path: Path, glmquant: Run) -> Callable[..., Checks]:
    """What doctor says of a machine with these chips, devices and software."""

    def look(text: str, devices: int = 0, cann: str = "") -> Checks:
        npu_smi.install_printing(tmp_path / "bin", text)
        root = tmp_path / "root"
        (root / "dev" / "shm").mkdir(parents=True)
        for number in range(devices):
            (root / "dev" / f"davinci{number}").touch()
        (root / "dev" / "davinci_manager").touch()
        driver = root / "usr/local/Ascend/driver"
        driver.mkdir(parents=True)
        (driver / "version.info").write_text("Version=25.3.rc1\nascendhal_version=7.35.23\n")
        if cann:
            home = root / "usr/local/Ascend/ascend-toolkit/latest" / f"{platform.machine()}-linux"
            home.mkdir(parents=True)
            (home / "ascend_toolkit_install.info").write_text(
                f"package_name=Ascend-cann-toolkit\nversion={cann}\ninnerversion=V100\n"
            )
        return by_name(diagnose(Wish(tmp_path, is_offline=True), os.environ, root))

    return look


def test_an_a2_is_known_by_its_chips(npus: Callable[..., Checks]) -> None:
    found = npus(npu_smi.a2(), devices=8, cann="8.5.1")
    assert found["NPUs"]["state"] == "ok"
    assert found["NPUs"]["text"] == ("8 x 910B3, 64 GiB, as an Atlas 800 A2 has; npu-smi 25.3.rc1")
    assert found["driver"]["text"] == "25.3.rc1"
    assert found["CANN"]["state"] == "warning"  # nobody sourced its variables
    assert found["CANN"]["remedy"] == "source /usr/local/Ascend/ascend-toolkit/set_env.sh"
    assert found["vllm"]["state"] == "warning"
    assert found.keys().isdisjoint({"devices", "health"})


def test_an_a3_is_known_by_its_chips(
    npus: Callable[..., Checks], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = tmp_path / "root/usr/local/Ascend/ascend-toolkit/latest"
    monkeypatch.setenv("ASCEND_HOME_PATH", str(home))
    found = npus(npu_smi.a3(), devices=16, cann="9.1.0")
    assert found["NPUs"]["text"] == (
        "16 x Ascend910, 64 GiB, as an Atlas 800 A3 has; npu-smi 26.0.rc2"
    )
    assert found["CANN"]["state"] == "ok"
    assert found["CANN"]["text"] == f"9.1.0, {home}"
    chips = parse_npu_smi(npu_smi.a3())
    assert [chip.label for chip in chips][:3] == ["0", "0.1", "1"]
    assert {chip.used_nbytes for chip in chips} == {3180 << 20}


def test_a_card_without_hbm_has_its_memory_read() -> None:
    text = (
        "| 0     310P3               | OK            | NA          44                0    / 0 |\n"
        "| 0     0                   | 0000:82:00.0  | 0           1853 / 44280                 |\n"
    )
    (chip,) = parse_npu_smi(text)
    assert (chip.name, chip.used_nbytes >> 20, chip.nbytes >> 20) == ("310P3", 1853, 44280)


def test_a_part_of_a_machine_is_none(npus: Callable[..., Checks]) -> None:
    found = npus(npu_smi.a2(2), devices=1)
    assert found["NPUs"]["state"] == "note"
    assert found["NPUs"]["text"].startswith("2 x 910B3, 64 GiB; ")
    assert found["devices"]["state"] == "warning"
    assert found["devices"]["text"].startswith("1 of 2 are in /dev")
    assert found["CANN"]["state"] == "warning"
    assert machine_of(parse_npu_smi(npu_smi.a3(4))) is None


def test_an_ill_card_and_a_busy_one_are_named(npus: Callable[..., Checks]) -> None:
    found = npus(npu_smi.a2(used=58626, health="Alarm"), devices=8)
    assert found["health"]["state"] == "problem"
    assert found["health"]["text"] == "not OK: 7 Alarm"
    assert found["NPU memory"]["state"] == "warning"
    assert found["NPU memory"]["text"].startswith("8 of 8 are in use, 0 with 57.3 GiB")


def test_a_tool_that_hangs_is_ended_with_its_children(glmquant: Run, tmp_path: Path) -> None:
    npu_smi.install(tmp_path / "bin", f"sleep 60 & echo $! > {tmp_path}/pid; wait")
    begun = time.monotonic()
    found = told(glmquant("doctor", "--offline", "--timeout", "0.5", "--json"))
    assert time.monotonic() - begun < 20
    assert found["NPUs"]["state"] == "problem"
    assert found["NPUs"]["text"] == "npu-smi info: no answer within 0.5 s"
    child = Path("/proc") / (tmp_path / "pid").read_text().strip() / "stat"
    assert not child.exists() or ") Z " in child.read_text()


def test_a_tool_that_fails_is_quoted(glmquant: Run, tmp_path: Path) -> None:
    npu_smi.install(tmp_path / "bin", "echo 'dcmi model initialized failed: -8005' >&2; exit 3")
    found = told(glmquant("doctor", "--offline", "--json"))
    assert found["NPUs"]["text"] == (
        "npu-smi info: exit code 3: dcmi model initialized failed: -8005"
    )


@pytest.mark.parametrize(
    "script", ["head -c 100000 /dev/urandom", "echo hello", "true", "printf '| 0 910B3 | OK |'"]
)
def test_garbage_of_a_tool_is_no_chip(script: str, glmquant: Run, tmp_path: Path) -> None:
    npu_smi.install(tmp_path / "bin", script)
    found = told(glmquant("doctor", "--offline", "--json"))
    assert found["NPUs"]["state"] == "warning"
    assert found["NPUs"]["text"] == "npu-smi lists no chip that can be read"


# The host


MOUNTS = r"""overlay / overlay rw 0 0
tmpfs /dev/shm tmpfs rw 0 0
server:/export /data nfs4 rw 0 0
/dev/nvme0n1 /data/local\040disk ext4 rw 0 0
lustre@tcp:/fs /data/lustre lustre rw 0 0
"""


def test_the_deepest_mount_holds_a_path() -> None:
    mounts = parse_mounts(MOUNTS)
    kinds = {
        path: mount.kind if (mount := mount_of(Path(path), mounts)) else None
        for path in (
            "/",
            "/data",
            "/data/GLM",
            "/data/local disk/GLM",
            "/database",
            "/data/lustre/x",
        )
    }
    assert kinds == {
        "/": "overlay",
        "/data": "nfs4",
        "/data/GLM": "nfs4",
        "/data/local disk/GLM": "ext4",
        "/database": "overlay",
        "/data/lustre/x": "lustre",
    }
    assert mount_of(Path("/data"), ()) is None


@pytest.mark.parametrize(
    ("kind", "state", "word"),
    [
        ("nfs4", "warning", "--safetensors-load-strategy eager"),
        ("fuse.juicefs", "warning", "copy the checkpoint"),
        ("overlay", "warning", "docker run -v"),
        ("xfs", "ok", ""),
    ],
)
def test_a_file_system_over_a_line_is_told(
    kind: str, state: str, word: str, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    (root / "proc").mkdir(parents=True)
    (root / "proc" / "mounts").write_text(f"none / tmpfs rw 0 0\nx {tmp_path} {kind} rw 0 0\n")
    found = by_name(diagnose(Wish(tmp_path / "new", is_offline=True), os.environ, root))
    assert found["file system"]["state"] == state
    assert word in (found["file system"]["remedy"] or "")
    assert found["file system"]["text"].startswith(f"{kind} at {tmp_path}")


def test_little_shared_memory_is_told(small_disk: Callable[[int], Path], tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "dev").mkdir()
    (tmp_path / "root" / "dev" / "shm").symlink_to(small_disk(64 << 20))
    found = by_name(diagnose(Wish(tmp_path, is_offline=True), os.environ, tmp_path / "root"))
    assert found["shared memory"]["state"] == "warning"
    assert found["shared memory"]["text"].startswith("0.07 GB at ")
    assert "--shm-size=1g" in found["shared memory"]["remedy"]


def test_few_file_descriptors_are_told() -> None:
    words = f"ulimit -n 256; exec {sys.executable} -m glmquant doctor --offline"
    ran = subprocess.run(["bash", "-c", words], env=ENV, capture_output=True, text=True, check=True)
    assert "warning  file descriptors  256 now, 256 at most" in ran.stdout


def test_a_full_disk_fits_no_model(small_disk: Callable[[int], Path], glmquant: Run) -> None:
    found = told(glmquant("doctor", small_disk(1 << 20), "--offline", "--json"))
    assert found["disk"]["state"] == "warning"
    assert "BF16 weights of no GLM-4.x" in found["disk"]["text"]


def test_a_variable_that_nothing_reads_is_told(
    glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_ASCEND_ENABLE_TOPK_OPTIMIZE", "1")
    found = told(glmquant("doctor", "--offline", "--json"))
    assert found["VLLM_ASCEND_ENABLE_TOPK_OPTIMIZE"]["remedy"] == (
        "unset VLLM_ASCEND_ENABLE_TOPK_OPTIMIZE"
    )


# The hubs


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    repo = tmp_path / "repo"
    repo.mkdir()
    with Hub({"ZhipuAI/GLM-4.6": repo}) as served:
        for variable in ENDPOINTS:
            monkeypatch.setenv(variable, served.url)
        yield served


def test_hubs_that_answer_are_reachable_even_without_the_model(hub: Hub, glmquant: Run) -> None:
    hub.token = "secret"
    found = told(glmquant("doctor", "--json"))
    for name in ("modelscope", "modelers", "hf"):
        assert found[name]["state"] == "ok", found[name]
        assert found[name]["text"].startswith(f"{hub.url} answers in ")
    hub.token = None
    assert told(glmquant("doctor", "--json"))["modelers"]["state"] == "ok"  # 404
    assert {asked.token for asked in hub.log} == {None}


def test_no_token_is_sent_to_look_whether_a_hub_is_there(
    hub: Hub, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("MODELSCOPE_API_TOKEN", "MODELERS_TOKEN", "HF_TOKEN"):
        monkeypatch.setenv(variable, "secret")
    ran = glmquant("doctor", "--json")
    assert {asked.token for asked in hub.log} == {None}
    assert len(hub.log) == 3
    assert "secret" not in ran.stdout


def test_a_hub_in_trouble_and_a_portal_are_told(hub: Hub, glmquant: Run) -> None:
    hub.faults.append(Fault("api", match="/api/v1/models/", status=503))
    hub.faults.append(Fault("api-json", match="/api/models/"))
    found = told(glmquant("doctor", "--json"))
    assert found["modelscope"]["text"].endswith(" answers HTTP 503")
    assert "text/html" in found["hf"]["text"]
    assert found["modelscope"]["state"] == found["hf"]["state"] == "warning"
    assert "https_proxy" in found["hf"]["remedy"]


def test_hubs_that_are_not_there_take_no_longer_than_the_limit(
    glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    with socket.socket() as listener:  # takes connections, and says nothing
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        silent = f"http://127.0.0.1:{listener.getsockname()[1]}"
        for variable in ENDPOINTS:
            monkeypatch.setenv(variable, silent)
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
        begun = time.monotonic()
        found = told(glmquant("doctor", "--timeout", "1", "--json"))
    assert time.monotonic() - begun < 5, "they are asked at the same time"
    assert {found[name]["state"] for name in ("modelscope", "modelers", "hf")} == {"warning"}
    assert "refused" in found["hf"]["text"]


def test_a_proxy_and_its_certificate_are_used_and_its_password_is_not_shown(
    tmp_path: Path, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_certificates(tmp_path / "tls")
    repo = tmp_path / "repo"
    repo.mkdir()
    with Hub({"ZhipuAI/GLM-4.6": repo}, tls=made.server_context()) as hub, Proxy() as proxy:
        named = hub.url.replace("127.0.0.1", "fake.modelers.cn")
        for variable in ENDPOINTS:
            monkeypatch.setenv(variable, named)
        monkeypatch.setenv("https_proxy", proxy.url.replace("://", "://me:hidden@"))
        found = told(glmquant("doctor", "--json"))
        assert "certificate" in found["modelscope"]["text"]
        monkeypatch.setenv("SSL_CERT_FILE", str(made.authority))
        ran = glmquant("doctor", "--json")
    found = told(ran)
    assert found["modelscope"]["state"] == "ok", found["modelscope"]
    assert "https_proxy=http://***@127.0.0.1" in found["modelscope"]["text"]
    assert "hid" not in ran.stdout.replace("hidden", "")
    assert "hidden" not in ran.stdout
    monkeypatch.setenv("https_proxy", "http://me:hid/den@127.0.0.1:1")  # no address, a secret yet
    ran = glmquant("doctor", "--timeout", "1")
    assert "https_proxy=http://***@127.0.0.1:1" in ran.stdout
    assert "hid/den" not in ran.stdout


def test_offline_asks_nobody(hub: Hub, glmquant: Run) -> None:
    ran = glmquant("doctor", "--offline")
    assert "not asked: --offline" in ran.stdout
    assert hub.log == []


def test_wrong_words_end_with_2(glmquant: Run) -> None:
    for words in (["--timeout", "0"], ["--timeout", "nan"], ["a", "b"], ["--no-such-flag"]):
        assert glmquant("doctor", *words).exit_code == 2


def test_metadata_that_cannot_be_read_is_a_problem_with_its_remedy(tmp_path: Path) -> None:
    python = make_python(tmp_path)
    site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    for name, data in (("torch", b"Name: torch\nVersion: 1\nAuthor: M\xfcller\n"), ("vllm", b"")):
        (site / f"{name}-1.dist-info").mkdir()
        (site / f"{name}-1.dist-info" / "METADATA").write_bytes(data)
    found = installed_in(python, 60)
    assert "vllm" in found.broken and "vllm" not in found.versions
    checks = {each.name: each for each in check_packages(found, has_npus=False, cann=None)}
    assert checks["vllm"].remedy.endswith("install --force-reinstall vllm")


def test_a_python_that_is_named_by_a_path_is_not_looked_for_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_python(tmp_path)
    monkeypatch.chdir(tmp_path / "venv" / "bin")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    ran = run_glmquant("doctor", "--offline", "--python", "./python3", "--json")
    (python,) = [each for each in ran.events[-1]["checks"] if each["name"] == "Python"]
    assert str(tmp_path / "venv" / "bin" / "python3") in python["text"]


def make_python(folder: Path) -> Path:
    """An environment of its own, without pip."""
    venv.create(folder / "venv", symlinks=True)
    return folder / "venv" / "bin" / "python3"
