"""The environments of suites, with tiny packages in the place of the real ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from glmquant.errors import MeasureError, UsageError
from glmquant.runtime.environment.layout import Engine, Layout, write_json
from glmquant.suites import environment, finding
from glmquant.suites.aisbench import AISBENCH
from glmquant.suites.environment import REQUIREMENTS, SuitePins, install, pins_of
from glmquant.suites.known import SUITES
from glmquant.suites.task import Installed, Suite
from tests.conftest import Ran
from tests.test_engine_environment import make_torch, make_wheel

Run = Callable[..., Ran]
STEPS = ["venv", "torch", "packages", "check"]
HERE = (sys.version_info[0], sys.version_info[1])
OWN = [suite for suite in SUITES.values() if suite.name in environment.RECIPES]


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tiny packages that pip, by its usual settings, takes for its only index."""
    folder = tmp_path / "wheels"
    make_torch(folder)
    make_wheel(
        folder,
        "ais_bench_benchmark",
        "3.1.1",
        {"ais_bench/__init__.py": "def main(): print('measured')\n"},
        **{"entry_points.txt": "[console_scripts]\nais_bench = ais_bench:main\n"},
    )
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "leak"))
    return folder


@pytest.fixture
def pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SuitePins:
    """Tiny pins, for the command line too, and no suite anywhere else."""
    monkeypatch.setenv("GLMQUANT_SUITES_HOME", str(tmp_path / "suites"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    tiny = replace(
        pins_of(AISBENCH),
        python=HERE,
        requirements=("ais-bench-benchmark==3.1.1", "torch==1.0"),
        smoke="import ais_bench, torch, json, sys\n"
        "json.dump({'ais-bench-benchmark': '3.1.1'}, open(sys.argv[1], 'w'))\n",
        nbytes=30_000_000,
        peak_nbytes=60_000_000,
    )
    monkeypatch.setattr(environment, "pins_of", lambda suite: tiny)
    return tiny


def folder_of(pins: SuitePins) -> Path:
    return Path(os.environ["GLMQUANT_SUITES_HOME"]) / pins.name


@pytest.mark.slow
def test_an_install_is_found_shown_and_removed_again(
    wheels: Path, pins: SuitePins, glmquant: Run
) -> None:
    events = glmquant("suites", "install", "aisbench", "--json").events
    assert [event["name"] for event in events if event["event"] == "step_done"] == STEPS
    home = folder_of(pins)
    python = home / "venv" / "bin" / "python"
    assert finding.find(AISBENCH) == Installed(python, "3.1.1", is_ours=True)
    assert install(AISBENCH) == Installed(python, "3.1.1", is_ours=True)
    ran = subprocess.run(
        [home / "venv" / "bin" / "ais_bench"], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "measured\n"
    (event,) = (
        event
        for event in glmquant("suites", "status", "--json").events
        if event["suite"] == "aisbench"
    )
    assert event.pop("nbytes") > 5_000_000
    assert event == {
        "event": "suite",
        "suite": "aisbench",
        "version": "3.1.1",
        "python": str(python),
        "is_ours": True,
        "home": str(home),
        "state": "complete",
        "next_step": None,
        "others": [],
        "installer": None,
    }
    assert "aisbench: complete, ais-bench-benchmark 3.1.1" in glmquant("suites", "status").stdout
    (event,) = glmquant("suites", "remove", "aisbench", "--json").events
    assert [each["home"] for each in event["folders"]] == [str(home)]
    assert [path.name for path in home.parent.iterdir()] == ["lock"]
    assert finding.find(AISBENCH) is None


@pytest.mark.slow
def test_a_step_that_fails_is_done_again_by_the_command_that_the_hint_names(
    wheels: Path, pins: SuitePins, glmquant: Run
) -> None:
    wheel = next(wheels.glob("ais_bench*"))
    kept = wheel.read_bytes()
    wheel.unlink()
    ran = glmquant("suites", "install", "aisbench")
    assert ran.exit_code == 1
    assert "error: the step packages of the environment of AISBench failed" in ran.stderr
    assert "`glmquant suites install aisbench` goes on with this step" in ran.stderr
    told = glmquant("suites", "status").stdout
    assert "aisbench: unfinished, at the step packages" in told
    wheel.write_bytes(kept)
    events = glmquant("suites", "install", "aisbench", "--json").events
    assert [event["name"] for event in events if event["event"] == "step_done"] == STEPS[2:]


@pytest.mark.slow
def test_a_torch_for_cuda_is_refused_with_the_option_that_names_another_index(
    wheels: Path, pins: SuitePins, glmquant: Run
) -> None:
    make_torch(wheels, cuda="13.0")
    ran = glmquant("suites", "install", "aisbench")
    assert ran.exit_code == 1
    assert "torch 1.0 for CUDA 13.0; it was removed again" in ran.stderr
    assert "glmquant suites install aisbench --torch-index URL" in ran.stderr


def test_removing_one_suite_leaves_the_others_and_what_is_not_ours(
    pins: SuitePins, glmquant: Run
) -> None:
    homes = folder_of(pins).parent
    ours = [folder_of(pins), folder_of(replace(pins, requirements=("torch==1.0",)))]
    others = [homes / "lm-eval-py311-00", homes / "aisbench-notes"]
    for home in (*ours, *others):
        write_json(Layout(home, pins.kind).mark, {"home": str(home)})
    foreign = homes / "aisbench-py311-thesis"
    foreign.mkdir()
    (event,) = glmquant("suites", "remove", "aisbench", "--json").events
    assert sorted(each["home"] for each in event["folders"]) == sorted(map(str, ours))
    left = sorted(path.name for path in homes.iterdir())
    assert left == sorted([*(path.name for path in others), foreign.name, "lock"])


def test_too_little_room_names_the_variable_of_suites(
    pins: SuitePins,
    glmquant: Run,
    small_disk: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room = small_disk(10_000_000)
    monkeypatch.setenv("GLMQUANT_SUITES_HOME", str(room / "suites"))
    ran = glmquant("suites", "install", "aisbench")
    assert ran.exit_code == 1
    assert "60.0 MB free, downloads included" in ran.stderr
    assert "another disk in GLMQUANT_SUITES_HOME" in ran.stderr
    assert list(room.iterdir()) == []


def test_the_python_that_the_pins_need_is_looked_for_on_path(
    pins: SuitePins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = replace(pins, python=(3, 99))
    with pytest.raises(MeasureError, match=r"AISBench needs Python 3\.99") as caught:
        environment.plan(AISBENCH, pins=newer)
    assert caught.value.hint == "glmquant suites install aisbench --python python3.99"
    fake = tmp_path / "bin" / "python3.99"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho '[3, 99]'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(fake.parent))
    assert environment.plan(AISBENCH, pins=newer).python == fake


def suite_with(name: str, package: str) -> Suite:
    return replace(AISBENCH, name=name, package=package)


def test_a_suite_is_found_in_the_python_that_is_named(pins: SuitePins, tmp_path: Path) -> None:
    suite = suite_with("aisbench", "pytest")
    python = Path(sys.executable)
    assert finding.find(suite, python) == Installed(python, pytest.__version__)
    with pytest.raises(UsageError, match="interpreter without AISBench"):
        finding.find(suite_with("aisbench", "no-such-package"), python)
    with pytest.raises(UsageError, match="no interpreter that runs"):
        finding.find(suite, tmp_path / "python")


def test_a_program_that_is_no_python_is_refused_in_words(pins: SuitePins) -> None:
    with pytest.raises(UsageError, match="no interpreter that runs") as caught:
        environment.plan(AISBENCH, Path("/bin/false"), pins=pins)
    assert caught.value.found is not None
    assert caught.value.found.startswith("a program that ends with exit code 1")


def test_a_suite_is_found_in_the_python_that_runs_this_and_by_its_command(
    pins: SuitePins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = suite_with("aisbench", "pytest")
    python = Path(sys.executable)
    assert finding.find(suite) == Installed(python, pytest.__version__)
    monkeypatch.setattr(finding, "_here", lambda suite: None)
    assert finding.find(suite) is None
    program = tmp_path / "ais_bench"
    monkeypatch.setenv("PATH", str(tmp_path))
    for head in (f"#!{python}\n", f"#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n"):
        program.write_text(f"{head}import sys\n")
        program.chmod(0o755)
        assert finding.find(suite) == Installed(python, pytest.__version__)
    program.write_text("#!/no/such/python\n")
    assert finding.find(suite) is None


def test_vllm_is_found_in_the_cpu_engine_at_last(
    pins: SuitePins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = suite_with("vllm", "vllm")
    assert finding.find(suite) is None
    engine = Engine(tmp_path, tmp_path / "python", tmp_path / "vllm", {"vllm": "0.30.0+cpu"})
    monkeypatch.setattr(finding, "find_engine", lambda: engine)
    assert finding.find(suite) == Installed(engine.python, "0.30.0+cpu", is_ours=True)
    assert finding.find(suite_with("lm-eval", "lm-eval")) is None
    with pytest.raises(UsageError, match="gets no environment of its own"):
        pins_of(suite)


@pytest.mark.parametrize("suite", OWN, ids=lambda suite: suite.name)
def test_the_pins_of_a_suite_are_exact_and_all_of_them_are_in_a_step(suite: Suite) -> None:
    pins = pins_of(suite)
    names = [line.split("==")[0] for line in pins.requirements]
    assert all(line.count("==") == 1 and "+" not in line for line in pins.requirements)
    assert len(set(names)) == len(names)
    assert suite.package in names
    in_steps = sorted(line for step in pins.steps() for line in step.packages)
    assert in_steps == sorted(pins.requirements)
    assert set(environment.RECIPES[suite.name].versions) <= set(names)


def test_the_pins_of_aisbench_keep_clear_of_what_breaks_it() -> None:
    pinned = dict(
        line.split("==")
        for line in (REQUIREMENTS / "aisbench.txt").read_text("utf-8").splitlines()
        if not line.startswith("#")
    )
    first = {name: int(pinned[name].split(".")[0]) for name in ("numpy", "setuptools", "pyarrow")}
    assert first["numpy"] < 2
    assert first["setuptools"] < 81
    assert first["pyarrow"] < 21
    assert pinned["pillow"] == "11.2.1"
    assert not {name for name in pinned if name.startswith(("nvidia", "triton", "cuda"))}


@pytest.mark.parametrize("verb", ["install", "status", "remove"])
def test_the_example_at_the_end_of_each_help_works(
    verb: str, pins: SuitePins, glmquant: Run
) -> None:
    last = glmquant("suites", verb, "--help").stdout.rstrip().splitlines()[-1].strip()
    words = last.removeprefix("Example: glmquant ").split()
    assert words[:2] == ["suites", verb]
    ran = glmquant(*words, *["--dry-run"][: int(verb == "install")])
    assert ran.exit_code == 0
    assert ran.stdout
    assert not folder_of(pins).parent.exists()


def test_an_unknown_suite_is_refused_with_those_that_there_are(glmquant: Run) -> None:
    ran = glmquant("suites", "install", "mmlu")
    assert ran.exit_code == 2
    assert "aisbench" in ran.stderr
