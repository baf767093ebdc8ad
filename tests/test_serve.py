"""``glmquant serve``: what is printed, written, refused, and run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from glmquant.runtime.guard import descendants
from glmquant.runtime.server import free_port
from tests.builders import build_checkpoint
from tests.conftest import Ran, folder_bytes, run_glmquant
from tests.servers import words_of
from tests.test_cli_plan import DIVISIBLE
from tests.test_server import is_free, soon

Run = Callable[..., Ran]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A W8A8 checkpoint with MTP that divides by 16 cards, in a folder of its own."""
    folder = tmp_path_factory.mktemp("serve")
    build_checkpoint(folder / "GLM-4.6", max_position_embeddings=202_752, **DIVISIBLE)
    target = folder / "GLM-4.6-W8A8-floatmtp"
    assert run_glmquant("w8a8", folder / "GLM-4.6", target, "--add-mtp").exit_code == 0
    shutil.rmtree(folder / "GLM-4.6")
    return target


def test_the_only_quantized_folder_here_is_served(
    weights: Path, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(weights.parent)
    left_out = glmquant("serve", "--machine", "a3")
    named = glmquant("serve", weights, "--machine", "a3")
    assert left_out.exit_code == named.exit_code == 0
    assert left_out.stdout == named.stdout
    assert f"vllm serve {weights} \\" in left_out.stdout
    assert "warning:" not in left_out.stderr
    assert "note: vllm-ascend 0.23.0, the default" in left_out.stderr
    assert "when it answers: glmquant smoke http://127.0.0.1:8000\n" in left_out.stderr
    assert "then: glmquant verify" in left_out.stderr


def test_what_is_printed_does_not_know_how_wide_the_terminal_is(weights: Path) -> None:
    words = [sys.executable, "-m", "glmquant", "serve", str(weights), "--machine", "a3"]
    printed = {
        subprocess.run(
            words,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": columns, "LINES": "10"},
            capture_output=True,
            check=True,
        ).stdout
        for columns in ("20", "300")
    }
    assert len(printed) == 1


def test_nothing_is_written_into_the_checkpoint(
    weights: Path, tmp_path: Path, glmquant: Run
) -> None:
    before = folder_bytes(weights)
    for machine in ("a2", "a3", "2xa2", "pd-2p1d"):
        assert glmquant("serve", weights, "--machine", machine, "-o", tmp_path).exit_code == 0
    assert folder_bytes(weights) == before
    expected = "decode0 decode1 node0 node1 prefill0 prefill1 proxy serve"
    assert sorted(path.stem for path in tmp_path.iterdir()) == expected.split()


@pytest.mark.parametrize("inside", [".", "scripts"])
def test_a_checkpoint_is_no_folder_to_write_to(
    inside: str, weights: Path, tmp_path: Path, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = folder_bytes(weights)
    (tmp_path / "link").symlink_to(weights)
    monkeypatch.chdir(weights)
    for folder in (weights / inside, tmp_path / "link" / inside, inside):
        ran = glmquant("serve", weights, "--machine", "a3", "-o", folder)
        assert (ran.exit_code, ran.stdout) == (2, ""), ran.stderr
        assert "nothing is written into the checkpoint" in ran.stderr
    assert folder_bytes(weights) == before


@pytest.mark.parametrize(("npus", "machine"), [(8, "A2"), (16, "A3")])
def test_the_machine_is_told_by_its_npus(
    npus: int, machine: str, weights: Path, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glmquant.deploy.request.count_npus", lambda: npus)
    assert f"one Atlas 800 {machine}" in glmquant("serve", weights).stdout


@pytest.mark.parametrize("version", ["0.30", "v0.30.0rc2", "0.30.0RC2"])
def test_a_version_may_be_named_as_people_name_it(
    version: str, weights: Path, glmquant: Run
) -> None:
    ran = glmquant("serve", weights, "--machine", "a2", "--version", version, "--docker")
    assert "quay.io/ascend/vllm-ascend:v0.30.0rc2 \\" in ran.stdout
    assert "the default" not in ran.stderr


def test_a_mirror_is_put_before_the_image(weights: Path, glmquant: Run) -> None:
    ran = glmquant("serve", weights, "--machine", "a3", "--compose", "--mirror")
    assert "image: m.daocloud.io/quay.io/ascend/vllm-ascend:v0.23.0-a3" in ran.stdout


def test_sglang_is_served_on_one_machine(weights: Path, glmquant: Run) -> None:
    ran = glmquant("serve", weights, "--machine", "a2", "--engine", "sglang", "--docker")
    assert ran.exit_code == 0
    assert "quay.io/ascend/sglang:v0.5.14-cann9.0.0-910b" in ran.stdout
    assert "python3 -m sglang.launch_server --model-path" in ran.stdout
    assert "verify" not in ran.stderr


def test_several_scripts_are_printed_with_their_names(weights: Path, glmquant: Run) -> None:
    ran = glmquant(
        "serve", weights, "--machine", "2xa2", "--node", "10.0.0.1", "--node", "10.0.0.2"
    )
    assert re.findall(r"^# ---- (.+)$", ran.stdout, re.MULTILINE) == ["node0.sh", "node1.sh"]
    assert "local_ip=${LOCAL_IP:-10.0.0.2}" in ran.stdout
    assert "-o FOLDER writes them" in ran.stderr


def test_a_machine_is_named_by_its_address(weights: Path, glmquant: Run) -> None:
    ran = glmquant("serve", weights, "--machine", "2xa2", "--node", "10.0.0.1", "--node", "b")
    assert (ran.exit_code, "expected: an IPv4 address" in ran.stderr) == (2, True)


def test_the_host_is_that_of_the_first_of_two_machines(weights: Path, glmquant: Run) -> None:
    ran = glmquant("serve", weights, "--machine", "2xa2", "--host", "10.0.0.1")
    first, second = ran.stdout.split("# ---- node1.sh")
    assert "--host 10.0.0.1" in first and "--host" not in second


def test_no_time_is_no_limit(weights: Path, glmquant: Run) -> None:
    ran = glmquant("serve", weights, "--machine", "a3", "--timeout", "nan")
    assert (ran.exit_code, "that is no time" in ran.stderr) == (2, True)


def test_the_tutorials_command_has_time_to_load_where_there_is_a_limit(
    weights: Path, glmquant: Run
) -> None:
    words = ("serve", weights, "--machine", "a3", "--profile", "tutorial", "--version")
    assert "VLLM_ENGINE_READY_TIMEOUT_S=3600" in glmquant(*words, "0.23").stdout
    assert "READY_TIMEOUT" not in glmquant(*words, "0.13").stdout


def test_a_key_reaches_a_container_by_its_name_alone(
    weights: Path, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret-7731")
    for form, line in (("--docker", "--env VLLM_API_KEY"), ("--compose", "VLLM_API_KEY: null")):
        ran = glmquant("serve", weights, "--machine", "a3", form)
        assert line in ran.stdout
        assert "secret-7731" not in ran.stdout


def test_every_hop_of_a_link_is_mounted(weights: Path, tmp_path: Path, glmquant: Run) -> None:
    hub = tmp_path / "hub"
    for name in ("snap", "blobs", "one"):
        (hub / name).mkdir(parents=True)
    for path in (each for each in weights.iterdir() if each.is_file()):
        shutil.copy(path, hub / "blobs")
        (hub / "one" / path.name).symlink_to(f"../blobs/{path.name}")
        (hub / "snap" / path.name).symlink_to(f"../one/{path.name}")
    link = tmp_path / "elsewhere" / "link"
    link.parent.mkdir()
    link.symlink_to(hub / "snap")
    ran = glmquant("serve", link, "--machine", "a3", "--docker")
    mounted = set(re.findall(r"-v (\S+?):\S+:ro", ran.stdout))
    assert {str(link), *(str(hub / name) for name in ("snap", "one", "blobs"))} <= mounted


def test_json_tells_words_environment_notes_problems_and_files(
    weights: Path, tmp_path: Path, glmquant: Run
) -> None:
    words = ["serve", weights, "--machine", "a2", "--context", "202753", "--json"]
    (event,) = glmquant(*words, "-o", tmp_path / "out").events
    assert event["event"] == "serve"
    assert (event["engine"], event["version"]) == ("vllm-ascend", "0.23.0")
    (node,) = event["nodes"]
    assert node["command"][:3] == ["vllm", "serve", str(weights)]
    assert node["environment"]["HCCL_BUFFSIZE"] == "512"
    assert node["layout"] == "dp1 tp8"
    assert [problem["where"] for problem in event["problems"]] == ["--context 202753"]
    assert event["written"] == [str(tmp_path / "out/serve.sh")]
    assert (tmp_path / "out/serve.sh").read_text() == event["files"]["serve.sh"]


def test_what_does_not_fit_is_a_warning_and_still_printed(weights: Path, glmquant: Run) -> None:
    ran = glmquant("serve", weights, "--machine", "a3", "--context", "900000")
    assert ran.exit_code == 0
    assert "warning: the model takes no sequences of that length" in ran.stderr
    assert "--max-model-len 900000" in ran.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--machine", "a3", "--version", "0.24"], "0.23 (0.23.0)"),
        (["--machine", "a9"], "a9"),
        (["--machine", "2xa2", "--profile", "latency"], "throughput"),
        (["--machine", "2xa2", "--compose"], "-o FOLDER"),
        (["--machine", "2xa2", "--node", "10.0.0.1"], "one for each of node0, node1"),
        (["--machine", "a3", "--node", "10.0.0.1"], "one machine"),
        (["--machine", "2xa2", "--node", "$(id)", "--node", "b"], "'$(id)'"),
        (["--machine", "2xa2", "--nic", "a;b"], "'a;b'"),
        (["--machine", "a3", "--nic", "eth0"], "talks to no other"),
        (["--machine", "a3", "--host", "$rank"], "'$rank'"),
        (["--machine", "a3", "--name", "$port"], "'$port'"),
        (["--machine", "a3", "--tool-parser", "$nic"], "'$nic'"),
        (["--machine", "a3", "--docker", "--compose"], "contradict"),
        (["--machine", "a3", "--docker", "--run"], "contradict"),
        (["--machine", "a3", "--print", "--run"], "contradict"),
        (["--machine", "a3", "--mirror"], "--docker"),
        (["--machine", "a3", "-o", ""], "no folder is named"),
        (["--machine", "pd-2p1d", "--engine", "sglang"], "one machine"),
        (["--machine", "a3", "--engine", "sglang", "--profile", "tutorial"], "tutorial"),
        (["--machine", "2xa2", "--run"], "-o FOLDER"),
        (["--machine", "cpu"], "where:    --machine cpu"),
        (["--machine", "cpu"], "glmquant engine install"),
        (["--machine", "cpu", "--docker"], "runs in no container"),
        (["--machine", "cpu", "--profile", "tutorial"], "not for these machines"),
        (["--machine", "cpu", "--version", "0.24"], "no such version"),
        ([], "--machine"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_would_do(
    words: list[str], told: str, weights: Path, glmquant: Run
) -> None:
    ran = glmquant("serve", weights, *words)
    assert ran.exit_code == 2, ran.stderr
    assert ran.stdout == ""
    assert told in ran.stderr


def test_a_folder_with_a_strange_name_is_named_as_one_types_it(
    weights: Path, tmp_path: Path, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    strange = tmp_path / "-my weights"
    shutil.copytree(weights, strange)
    ran = glmquant("serve", "--machine", "a3", "--", strange.name)
    assert f"vllm serve '{strange}' \\" in ran.stdout
    assert "then: glmquant verify './-my weights' --url" in ran.stderr
    build_checkpoint(tmp_path / "-bf16")
    ran = glmquant("serve", "--machine", "a3", "--", "-bf16")
    assert f"hint:     glmquant w8a8 {tmp_path / '-bf16'}" in ran.stderr
    for shard in strange.glob("*.safetensors"):
        shard.unlink()
    (strange / "model-00001-of-00002.safetensors").write_bytes(b"")
    ran = glmquant("serve", "--machine", "a3", "--", strange.name)
    assert f"; glmquant verify '{strange}' says more" in ran.stderr


@pytest.mark.parametrize("kind", ["bf16", "nothing"])
def test_what_is_no_w8a8_checkpoint_is_refused(kind: str, tmp_path: Path, glmquant: Run) -> None:
    if kind == "bf16":
        build_checkpoint(tmp_path / "GLM")
    else:
        (tmp_path / "GLM").mkdir()
    ran = glmquant("serve", tmp_path / "GLM", "--machine", "a3")
    assert ran.exit_code in (1, 2)
    assert ran.stdout == ""
    if kind == "bf16":
        assert f"glmquant w8a8 {tmp_path / 'GLM'}" in ran.stderr


def test_a_file_of_somebody_else_is_not_replaced(
    weights: Path, tmp_path: Path, glmquant: Run
) -> None:
    (tmp_path / "compose.yaml").write_text("services: {}\n")
    ran = glmquant("serve", weights, "--machine", "a3", "--compose", "-o", tmp_path)
    assert ran.exit_code == 1
    assert "a file of somebody else" in ran.stderr
    assert (tmp_path / "compose.yaml").read_text() == "services: {}\n"


def test_printing_needs_no_arithmetic(weights: Path) -> None:
    script = (
        "import sys; from glmquant.cli import main\n"
        "try: main(['serve', sys.argv[1], '--machine', 'a3'])\n"
        "except SystemExit: pass\n"
        "heavy = {'llvmlite', 'numba', 'torch', 'vllm'} & sys.modules.keys()\n"
        "sys.exit(str(sorted(heavy)) if heavy else 0)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", script, str(weights)]
    subprocess.run(words, env=env, check=True, capture_output=True)


# --run, on a machine whose NPUs and vllm are stand-ins


@pytest.fixture
def npu_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], list[str]]]:
    """Makes a ``vllm`` that is one of the servers of the tests; gives the words that run it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "bin").mkdir()

    def make(kind: str) -> list[str]:
        program = tmp_path / "bin" / "vllm"
        server = shlex.join(words_of(kind, 0)[:-1])
        program.write_text(
            "#!/bin/bash\n"
            'echo "$@" > "$0.words"\n'
            'while [ "$1" != --port ]; do shift; done\n'
            f'exec {server} "$2"\n'
        )
        program.chmod(0o755)
        script = (
            "import sys; from glmquant.deploy import run; run.count_npus = lambda: 16\n"
            "from glmquant.cli import main; main(sys.argv[1:])"
        )
        return [sys.executable, "-c", script, "serve"]

    yield make


def started(words: list[str], tmp_path: Path) -> subprocess.Popen[str]:
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "TMPDIR": str(tmp_path),
    }
    return subprocess.Popen(
        words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run_words(make: Callable[[str], list[str]], kind: str, folder: Path, port: int) -> list[str]:
    more = ["--machine", "a3", "--name", "m", "--port", str(port), "--run", "--json"]
    return [*make(kind), str(folder), *more]


def await_event(running: subprocess.Popen[str], name: str) -> dict[str, Any]:
    assert running.stdout is not None
    for line in running.stdout:
        event: dict[str, Any] = json.loads(line)
        if event["event"] in (name, "error"):
            assert event["event"] == name, event
            return event
    raise AssertionError(running.stderr.read() if running.stderr else "it said nothing")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_service_is_awaited_and_ends_with_all_that_it_started(
    number: signal.Signals,
    code: int,
    weights: Path,
    npu_host: Callable[[str], list[str]],
    tmp_path: Path,
) -> None:
    port = free_port()
    running = started(run_words(npu_host, "forks", weights, port), tmp_path)
    ready = await_event(running, "ready")
    assert ready["url"] == f"http://127.0.0.1:{port}"
    assert Path(ready["log"]).is_file()
    assert not is_free(port)
    below = descendants(running.pid)
    assert len(below) >= 4  # the guard, the server and its two children
    running.send_signal(number)
    stdout, _ = running.communicate(timeout=60)
    assert running.returncode == code
    assert json.loads(stdout.splitlines()[-1])["event"] == "ended"
    assert is_free(port)
    assert not any(Path(f"/proc/{pid}").exists() for pid in below)
    assert not Path(ready["log"]).exists()
    said = (tmp_path / "bin/vllm.words").read_text()
    assert said.startswith(f"serve {weights} --host 127.0.0.1 --port {port} ")


@pytest.mark.slow
def test_a_kill_of_the_command_leaves_no_process_and_no_port_of_a_service(
    weights: Path, npu_host: Callable[[str], list[str]], tmp_path: Path
) -> None:
    port = free_port()
    running = started(run_words(npu_host, "forks", weights, port), tmp_path)
    await_event(running, "ready")
    below = descendants(running.pid)
    running.kill()
    running.wait()
    assert soon(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below), 40)
    assert is_free(port)


def test_an_engine_that_fails_is_an_error_with_the_end_of_its_log(
    weights: Path, npu_host: Callable[[str], list[str]], tmp_path: Path
) -> None:
    running = started(run_words(npu_host, "fails", weights, free_port()), tmp_path)
    stdout, stderr = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "the engine ended before it answered" in stderr
    assert "KeyError: 'model.layers.4.eh_proj.weight'" in stderr
    error = json.loads(stdout.splitlines()[-1])
    assert error["error"] == "EngineError"
    assert Path(error["where"]).is_file()  # kept, since something went wrong


@pytest.mark.slow
def test_an_engine_that_crashes_later_is_an_error_too(
    weights: Path, npu_host: Callable[[str], list[str]], tmp_path: Path
) -> None:
    port = free_port()
    running = started(run_words(npu_host, "well", weights, port), tmp_path)
    await_event(running, "ready")
    (server,) = [
        pid
        for pid in descendants(running.pid)
        if b"servers.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
        and b"guard.py" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    os.kill(server, signal.SIGKILL)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "the engine ended by itself" in stderr
    assert "it was killed by signal 9" in stderr
    assert is_free(port)


def test_a_port_that_is_taken_is_told_before_the_engine_starts(
    weights: Path, npu_host: Callable[[str], list[str]], tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        running = started(run_words(npu_host, "well", weights, port), tmp_path)
        stdout, stderr = running.communicate(timeout=60)
    assert running.returncode == 1
    assert f"127.0.0.1:{port}" in stderr
    assert "Address already in use" in stderr
    assert json.loads(stdout.splitlines()[-1])["error"] == "DeployError"
    assert not (tmp_path / "bin/vllm.words").exists()


def test_an_engine_that_is_silent_is_given_up(
    weights: Path, npu_host: Callable[[str], list[str]], tmp_path: Path
) -> None:
    words = [*run_words(npu_host, "silent", weights, free_port()), "--timeout", "2"]
    running = started(words, tmp_path)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "the engine did not answer within 2 s" in stderr


@pytest.mark.slow
def test_a_service_that_is_told_to_end_while_it_loads_ends(
    weights: Path, npu_host: Callable[[str], list[str]], tmp_path: Path
) -> None:
    running = started(run_words(npu_host, "silent", weights, free_port()), tmp_path)
    assert soon(lambda: (tmp_path / "bin/vllm.words").exists())
    below = descendants(running.pid)
    time.sleep(0.5)
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=60)
    assert running.returncode == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in below)


def test_what_does_not_fit_is_refused_before_the_engine_starts(
    weights: Path, npu_host: Callable[[str], list[str]], tmp_path: Path
) -> None:
    words = [*run_words(npu_host, "well", weights, free_port()), "--context", "900000"]
    running = started(words, tmp_path)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "error: the model takes no sequences of that length" in stderr
    assert not (tmp_path / "bin/vllm.words").exists()


def test_a_machine_without_those_npus_runs_nothing(weights: Path, glmquant: Run) -> None:
    ran = glmquant("serve", weights, "--machine", "a3", "--run")
    assert ran.exit_code == 1
    assert "error: this is another machine" in ran.stderr
    assert "16 NPUs in /dev" in ran.stderr
