"""A suite's run from its first command to its file: with a suite that is a line of Python."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from glmquant.errors import MeasureError
from glmquant.results import Result, read_results
from glmquant.runs import find_runs, read_run
from glmquant.runtime.client import Client, remote_failure
from glmquant.suites.references import difference_from, references_of
from glmquant.suites.run import Listener, measure
from glmquant.suites.task import Call, Installed, Measured, Suite, Task
from tests.scripted import Reply, Scripted
from tests.test_execute import ENV

HERE = Installed(Path(sys.executable), "1.2")
KEY = "sk-nobody-may-see-this"


def suite(program: str, *, value: float = 90.0, metrics: tuple[str, ...] = ("accuracy",)) -> Suite:
    """One that runs a program and tells figures of it."""

    def prepare(task: Task, installed: Installed, work: Path) -> Call:
        (work / "program.py").write_text(textwrap.dedent(program))
        secrets = {"SUITE_KEY": task.api_key} if task.api_key else {}
        env = {"SUITE_URL": task.url, "UNWANTED": None}
        return Call((str(installed.python), "program.py"), env, secrets)

    def read(task: Task, installed: Installed, work: Path) -> Measured:
        figures = tuple(
            Result(dataset=task.dataset, metric=metric, value=value, unit="%", items=10)
            for metric in metrics
        )
        return Measured(figures, notes=("one note",))

    return Suite("lines", "Lines", "lines", ("accuracy",), ("gsm8k",), prepare, read)


TASK = Task("accuracy", "gsm8k", url="http://127.0.0.1:1", model="m", api_key=KEY)


def fail(what: str, *, found: str | None = None, hint: str | None = None) -> NoReturn:
    raise AssertionError(f"{what}: {found}")


@contextmanager
def counting(
    steps: list[tuple[int, int] | None], started: list[float] | None = None
) -> Iterator[Client]:
    """A server whose counters of drafts stand so, one reading after the other."""
    server = Scripted({}, otherwise=Reply("well"), counters=steps, started=started or [])
    with server.running():
        client = Client(server.url, fail)
        yield client
        client.close()


def test_a_run_has_its_figures_its_settings_and_what_was_drafted(tmp_path: Path) -> None:
    with counting([(100, 50), (300, 210)]) as client:
        found = measure(suite("print('hello')"), TASK, HERE, tmp_path, client=client, machine="A3")
    run = read_run(found.path)
    assert found.path.parent == tmp_path / ".glmquant/results"
    assert (run.suite, run.suite_version, run.machine, run.model) == ("lines", "1.2", "A3", "m")
    assert run.engine == "vLLM 0.23.0"
    assert run.settings["max_out_len"] == 32_768
    assert run.drafts is not None
    assert (run.drafts.drafts, run.drafts.accepted) == (200, 160)
    assert [(each.dataset, each.value) for each in run.results] == [("gsm8k", 90), ("MTP", 80)]
    assert read_results(tmp_path).missing == (("GPQA diamond", "accuracy"),)
    assert "hello" in (found.folder / "log").read_text()
    assert found.notes == ("one note",)


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ([None, None], None),
        ([(5, 5), (5, 5)], None),
        ([(500, 400), (3, 2)], "the server began anew"),
        ([(10, 9), (30, 2)], "the server began anew"),
        ([(10, 9), None], "cannot be read any more"),
    ],
)
def test_no_acceptance_is_told_where_nothing_can_be_counted(
    tmp_path: Path, steps: list[tuple[int, int] | None], why: str | None
) -> None:
    with counting(steps) as client:
        found = measure(suite("pass"), TASK, HERE, tmp_path, client=client)
    assert [each.dataset for each in found.run.results] == ["gsm8k"]
    assert (why or "") in " ".join(found.notes)
    assert len(found.notes) == (1 if why is None else 2)


@pytest.mark.parametrize("steps", [[(10, 9), (30, 20)], [None, None], [(10, 9), (3, 2)]])
def test_a_server_that_began_anew_is_noticed_by_when_its_process_began(
    tmp_path: Path, steps: list[tuple[int, int] | None]
) -> None:
    """Also where its counters are higher again, or there are none of drafts."""
    counted = ("acceptance rate", "acceptance length", "accuracy")
    with counting([*steps], [1.7e9, 1.7e9 + 60.5]) as client:
        found = measure(suite("pass", metrics=counted), TASK, HERE, tmp_path, client=client)
    assert [each.metric for each in found.run.results] == ["accuracy"]
    assert found.run.drafts is None
    (_, note) = found.notes
    assert "not of one server" in note


@pytest.mark.parametrize("started", [[1.7e9, 1.7e9], [1.7e9], []])
def test_one_process_is_one_server(tmp_path: Path, started: list[float]) -> None:
    counted = ("acceptance rate", "acceptance length", "accuracy")
    with counting([(10, 9), (30, 19)], started) as client:
        found = measure(suite("pass", metrics=counted), TASK, HERE, tmp_path, client=client)
    told = [(each.metric, each.value) for each in found.run.results]
    assert told == [("acceptance length", 90), ("accuracy", 90), ("acceptance rate", 50)]
    assert found.notes == ("one note",)


def test_a_server_that_has_gone_at_the_end_loses_no_figure(tmp_path: Path) -> None:
    with counting([(10, 9)]) as client:
        before = client.drafting()
    assert before is not None
    gone = Client(client.url, remote_failure(client.url), answer_seconds=2)
    found = measure(suite("pass"), TASK, HERE, tmp_path, client=gone)
    assert [each.dataset for each in found.run.results] == ["gsm8k"]


def test_two_runs_in_one_second_have_a_folder_each(tmp_path: Path) -> None:
    runs = [measure(suite("pass"), TASK, HERE, tmp_path, client=None) for _ in range(3)]
    assert len({found.path for found in runs}) == len({found.folder for found in runs}) == 3
    assert len(find_runs(tmp_path)) == 3


def test_the_key_is_given_to_the_suite_and_is_in_no_file(tmp_path: Path) -> None:
    program = "import os; open('out', 'w').write(str(len(os.environ['SUITE_KEY'])))"
    found = measure(suite(program), TASK, HERE, tmp_path, client=None)
    assert (found.folder / "out").read_text() == str(len(KEY))
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEY not in path.read_text()


def test_a_key_that_the_suite_writes_down_is_taken_out_again(tmp_path: Path) -> None:
    program = """
    import os, sys
    print(os.environ["SUITE_KEY"])
    open("out", "w").write(f"Bearer {os.environ['SUITE_KEY']}!")
    """
    found = measure(suite(program), TASK, HERE, tmp_path, client=None)
    assert (found.folder / "out").read_text() == "Bearer ***!"
    failing = suite(textwrap.dedent(program) + "sys.exit(1)")
    with pytest.raises(MeasureError) as caught:
        measure(failing, TASK, HERE, tmp_path / "B", client=None)
    assert KEY not in str(caught.value) and "***" in str(caught.value)
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEY not in path.read_text()


def test_what_a_suite_says_at_its_end_reaches_a_terminal_as_text(tmp_path: Path) -> None:
    program = r"import sys; print('\x1b]0;title\x07'); sys.exit(1)"
    with pytest.raises(MeasureError) as caught:
        measure(suite(program), TASK, HERE, tmp_path, client=None)
    assert "\x1b" not in str(caught.value) and r"\x1b]0;title" in str(caught.value)


def test_what_belongs_to_our_python_does_not_reach_the_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("UNWANTED", "here")
    program = "import json, os; json.dump(dict(os.environ), open('env', 'w'))"
    found = measure(suite(program), TASK, HERE, tmp_path, client=None)
    env = json.loads((found.folder / "env").read_text())
    assert "PYTHONPATH" not in env and "UNWANTED" not in env
    assert env["SUITE_URL"] == TASK.url


def test_a_suite_that_fails_leaves_its_log_and_no_run(tmp_path: Path) -> None:
    program = "import sys; print('the data set is not there'); sys.exit(3)"
    with pytest.raises(MeasureError, match="Lines failed") as caught:
        measure(suite(program), TASK, HERE, tmp_path, client=None)
    assert "exit code 3" in str(caught.value) and "the data set is not there" in str(caught.value)
    (folder,) = (tmp_path / ".glmquant/results").iterdir()
    assert (folder / "log").is_file()
    assert read_results(tmp_path).found == ()


def test_what_a_suite_says_is_heard_to_its_end(tmp_path: Path) -> None:
    class Ears(Listener):
        def __init__(self) -> None:
            self.heard = b""

        def hear(self, data: bytes) -> None:
            self.heard += data

    ears = Ears()
    program = "import sys; print('out', flush=True); print('err', file=sys.stderr)"
    measure(suite(program), TASK, HERE, tmp_path, client=None, listener=ears)
    assert ears.heard.endswith(b"out\nerr\n")


def test_a_suite_ends_with_who_started_it(tmp_path: Path) -> None:
    script = f"""
    import sys
    from pathlib import Path
    from glmquant.suites.run import measure
    from tests.test_measuring import HERE, TASK, suite
    program = (
        "import os, subprocess, sys, time\\n"
        "each = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],"
        " start_new_session=True)\\n"
        "open('pid', 'w').write(f'{{os.getpid()}} {{each.pid}}'); time.sleep(600)"
    )
    measure(suite(program), TASK, HERE, Path({str(tmp_path)!r}), client=None)
    """
    ours = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], env=ENV | {"PYTHONPATH": str(ROOT)}
    )
    results = tmp_path / ".glmquant/results"
    while not (pids := [path for path in results.glob("*/pid") if path.read_text()]):
        assert ours.poll() is None
        time.sleep(0.05)
    begun = [int(pid) for pid in pids[0].read_text().split()]
    ours.send_signal(signal.SIGKILL)
    ours.wait()
    assert len(begun) == 2
    while any(map(_is_alive, begun)):
        time.sleep(0.05)


def test_published_figures_stand_with_their_number_of_items() -> None:
    npu, gpu = references_of("gsm8k", "accuracy")
    assert (npu.value, gpu.value, npu.items) == (96.13, 96.06, 1319)
    assert npu.interval[0] < gpu.value < npu.interval[1]
    figure = {"dataset": "gsm8k", "metric": "accuracy", "unit": "%"}
    near = difference_from(npu, Result(**figure, value=95.5, items=1319))
    far = difference_from(npu, Result(**figure, value=93.0, items=1319))
    assert near is not None and near.p_value > 0.05
    assert far is not None and far.p_value < 0.01
    assert difference_from(npu, Result(**figure, value=95.5)) is None
    assert [row.value for row in references_of("gpqa", "accuracy")] == [84.85]
    assert [row.value for row in references_of("math500", "accuracy")] == [98.8]


ROOT = Path(__file__).resolve().parent.parent


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (OSError, IndexError):
        return False
    return state != "Z" and Path(f"/proc/{pid}").exists()
