"""Servers of our own: started, awaited, and gone afterwards, whatever happens."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from glmquant.errors import EngineError
from glmquant.observer import Observer
from glmquant.runtime import guard
from glmquant.runtime.observed import Prompt
from glmquant.runtime.server import Server, free_port, running
from glmquant.runtime.serverlog import read_cause, read_tail
from tests.servers import words_of

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _logs_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs that are kept lie in the test's own folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


class Told(Observer):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def tell(self, doing: str) -> None:
        self.lines.append(doing)


@contextmanager
def a_server(kind: str, limit: float = 30, answer: float = 5) -> Iterator[Server]:
    port = free_port()
    with running(
        words_of(kind, port),
        os.environ,
        f"http://127.0.0.1:{port}",
        what="a test",
        limit_seconds=limit,
        answer_seconds=answer,
        observer=Told(),
    ) as server:
        yield server


def processes(*marks: str) -> list[str]:
    """Command lines of living processes that have all the marks."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if all(mark in line for mark in marks) and "-m pytest" not in line:
                found.append(line)
    return found


def soon(condition: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def port_of(server: Server) -> int:
    return int(server.client.url.rpartition(":")[2])


def test_a_server_answers_and_is_gone_afterwards_with_its_log(tmp_path: Path) -> None:
    with a_server("well") as server:
        answer = server.client.continue_greedily(Prompt("p", (1, 2)), 8)
        assert answer.tokens == (1,) * 8
        assert answer.gaps == (3.0,) * 8
        port, scratch = port_of(server), server.scratch
        assert scratch.is_dir()
        assert "GET /health" in server.log.read_text()
    assert is_free(port)
    assert not scratch.exists()
    assert list(tmp_path.iterdir()) == []


def test_all_that_a_server_started_ends_with_it() -> None:
    with a_server("forks"):
        assert soon(lambda: len(processes("time.sleep(60")) == 2)
    assert processes("time.sleep(60") == []


def test_a_server_that_fails_to_start_gives_its_exit_code_and_the_end_of_its_log() -> None:
    with pytest.raises(EngineError) as caught, a_server("fails"):
        pass
    error = caught.value
    assert error.what == "the engine ended before it answered"
    key = "KeyError: 'model.layers.4.eh_proj.weight'"
    assert error.found == f"it ended with exit code 1; it said: {key}"
    assert error.log[-1] == key
    assert Path(str(error.where)).is_file()  # kept, to be read
    assert f"    | {key}" in str(error)


def test_a_log_tells_a_terminal_nothing_but_text(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(
        b"\x1b[1;36m(EngineCore pid=7)\x1b[0;0m \x1b]0;title\x07loading\tall\n"
        b"ValueError: \x1b]52;c;aGk=\x07 \x1b[31mno\x1b[0m \x9b2J\xff\n"
    )
    said = r"ValueError: \x1b]52;c;aGk=\x07 no " + "\ufffd2J\ufffd"
    assert read_tail(log) == (r"\x1b]0;title\x07loading       all", said)
    assert read_cause(log) == said


def test_a_program_that_is_not_there_is_said() -> None:
    with (
        pytest.raises(EngineError, match="ended before it answered") as caught,
        running(
            ["/no/such/vllm", "serve"],
            os.environ,
            "http://127.0.0.1:9",
            what="a test",
            limit_seconds=20,
            answer_seconds=5,
            observer=Observer(),
        ),
    ):
        pass
    assert "/no/such/vllm: No such file or directory" in caught.value.log


def test_a_server_that_never_answers_is_given_up_and_ended() -> None:
    with (
        pytest.raises(EngineError, match="did not answer within 2 s") as caught,
        a_server("silent", limit=2),
    ):
        pass
    assert "--timeout" in str(caught.value.hint)
    assert processes("servers.py silent") == []


@pytest.mark.parametrize(
    ("kind", "what", "found"),
    [
        ("dies", "the engine cannot be reached", "it ended with exit code 9"),
        ("500", "the engine refused a request", 'HTTP 500 {"error": "EngineCore'),
        ("hangs", "the engine did not answer within 2 s", "no answer to POST /v1/completions"),
        ("garbage", "the engine's answer is not one that vLLM gives", "<html>hello"),
        ("schema", "the engine's answer is not one that vLLM gives", "token_ids"),
    ],
)
def test_a_server_that_breaks_later_gives_the_end_of_its_log(
    kind: str, what: str, found: str
) -> None:
    with pytest.raises(EngineError) as caught, a_server(kind, answer=2) as server:
        server.client.continue_greedily(Prompt("p", (1, 2)), 8)
    assert caught.value.what == what
    assert found in str(caught.value.found)
    assert f"a server that {kind}" in "".join(caught.value.log)
    assert soon(lambda: processes(f"servers.py {kind}") == [])


def test_a_kill_of_the_one_who_asked_leaves_no_process_and_no_port(tmp_path: Path) -> None:
    port = free_port()
    program = (
        "import os, signal, sys\n"
        "from glmquant.observer import Observer\n"
        "from glmquant.runtime.server import running\n"
        "from tests.servers import words_of\n"
        f"with running(words_of('forks', {port}), os.environ, 'http://127.0.0.1:{port}',\n"
        "    what='a test', limit_seconds=30, answer_seconds=5, observer=Observer()) as server:\n"
        "    print(server.log, server.scratch, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL
    assert soon(lambda: is_free(port))
    assert soon(lambda: processes("time.sleep(60") == [])
    assert soon(lambda: processes("servers.py forks") == [])
    log, scratch = map(Path, killed.stdout.split())
    assert soon(lambda: not scratch.exists())
    assert soon(lambda: not log.exists())


def test_a_kill_of_the_guard_ends_the_server_too() -> None:
    with pytest.raises(EngineError), a_server("well") as server:
        os.kill(server._guard.pid, signal.SIGKILL)
        assert soon(lambda: is_free(port_of(server)))
        server.client.continue_greedily(Prompt("p", (1, 2)), 8)
    assert not server.scratch.exists()


def test_an_interrupt_is_not_the_servers() -> None:
    with a_server("well") as server:
        os.killpg(server._guard.pid, signal.SIGINT)
        assert server.client.is_ready()


def test_the_guard_gives_the_exit_code_of_its_command(tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-I",
        "-S",
        guard.__file__,
        str(tmp_path / "x"),
        str(tmp_path / "log"),
        sys.executable,
        "-c",
        "exit(7)",
    ]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as guarded:
        assert guarded.wait(20) == 7


def test_counters_are_read_and_their_difference_taken() -> None:
    with a_server("well") as server:
        before = server.client.drafting()
        server.client.continue_greedily(Prompt("p", (1, 2)), 8)
        after = server.client.drafting()
    assert before is not None
    assert after is not None
    assert (before.drafts, after.drafts, after.accepted, after.by_position) == (0, 4, 2, (2,))
    with a_server("undrafted") as server:
        assert server.client.drafting() is None


def test_scores_take_the_texts_own_tokens_and_the_likeliest() -> None:
    with a_server("well") as server:
        scores = server.client.score((5, 6, 7), top=2)
    assert scores.own.tolist() == [-2.0, -2.0]
    assert scores.ids.tolist() == [[-7, 6], [-7, 7]]
    assert scores.logprobs.tolist() == [[-0.5, -2.0]] * 2
