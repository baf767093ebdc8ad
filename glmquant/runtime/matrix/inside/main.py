"""Loads checkpoints in one pair of vLLM and vllm-ascend, each in a process of its own.

``python main.py CASES ANSWERS``: CASES is a JSON file with a list of cases, awaited where it is not
there yet; ANSWERS gets a line of JSON for each as soon as it is known. The packages are imported
once; each case is a fork, so that nothing of a load is left for the next, and its memory and time
are bounded.
"""

import importlib
import json
import os
import signal
import sys
import tempfile
import time
import warnings
from contextlib import suppress
from pathlib import Path

_POLL_SECONDS = 0.05


def main():
    """Answer every case."""
    cases, answers = sys.argv[1:]
    sys.path.insert(0, str(Path(__file__).parent))
    prepare()
    import placeholders

    placeholders.put_in_place()
    import loading

    loading.import_engine()
    while not Path(cases).exists():
        time.sleep(_POLL_SECONDS)
    with Path(answers).open("a", encoding="utf-8") as file:
        for case in json.loads(Path(cases).read_text(encoding="utf-8")):
            began = time.monotonic()
            answer = _answer(case)
            imported = answer.pop("imported", ())
            answer["seconds"] = round(time.monotonic() - began, 2)
            file.write(json.dumps({"case": case["name"], **answer}) + "\n")
            file.flush()
            _import_all(imported)


def prepare():
    """The settings of the process, before anything is imported."""
    warnings.filterwarnings("ignore")
    import importlib.metadata as metadata

    of_ascend = [point.name for point in metadata.distribution("vllm-ascend").entry_points]
    for name in [name for name in os.environ if name.startswith("GLOO_")]:
        del os.environ[name]  # of the user's own cluster
    os.environ |= {
        "GLOO_SOCKET_IFNAME": "lo",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_PLUGINS": ",".join(of_ascend),
        "VLLM_USE_V2_MODEL_RUNNER": "0",
    }


def _answer(case):
    """What became of one case, from a process a rank."""
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        files = [Path(folder) / f"{rank}.json" for rank in range(case["ranks"])]
        pids = [_start(case, rank, meeting, file) for rank, file in enumerate(files)]
        ended = _await(pids, case)
        found = [json.loads(file.read_text()) for file in files if file.is_file()]
        if unmet := [each["unmet"] for each in found if each["unmet"]]:
            return {"unmet": unmet[0]}
        if len(found) < len(files):
            return {"stopped": ended or "a process of it ended without an answer"}
    # A rank that fails is what the user sees; the others wait for it.
    answer = {}
    for which in ("target", "draft"):
        every = [each[which] for each in found if each[which] is not None]
        failed = [each for each in every if each["fate"] == "fails"]
        answer[which] = (failed or every or [None])[0]
        if every and not failed:
            answer[which] = {**every[0], "unfilled": _unfilled_of_all(every)}
            del answer[which]["sizes"]
    answer["peak_nbytes"] = max(each["peak_nbytes"] for each in found)
    answer["imported"] = found[0]["imported"]
    return answer


def _import_all(names):
    """Import what a load imported, so that the next ones need not: half of their time is that."""
    for name in names:
        with suppress(Exception):  # then each load does, as it did
            importlib.import_module(name)


def _unfilled_of_all(ranks):
    """What is without a value on any rank, with the elements of all ranks counted together."""
    lost = {}
    for name in dict.fromkeys(name for each in ranks for name in each["unfilled"]):
        mine = [each["unfilled"][name] for each in ranks if name in each["unfilled"]]
        count, are_default = sum(elements for elements, _ in mine), all(each for _, each in mine)
        lost[name] = [count, sum(each["sizes"].get(name, 0) for each in ranks), are_default]
    return lost


def _start(case, rank, meeting, file):
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        import loading

        before = set(sys.modules)
        found = loading.load(case, rank, meeting)
        found["imported"] = [name for name in sys.modules if name not in before]
        found["peak_nbytes"] = _peak_nbytes()
        part = file.with_suffix(".part")
        part.write_text(json.dumps(found))
        part.rename(file)
        code = 1 if found["unmet"] else 0  # the others are not waited for then
    finally:
        sys.stderr.flush()
        os._exit(code)


def _peak_nbytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(peak) * 1024


def _await(pids, case):
    """Wait for all; the reason where they had to be ended."""
    living = set(pids)
    reason = None
    deadline = time.monotonic() + case["limit_seconds"]
    while living:
        for pid in list(living):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                living.discard(pid)
                if os.WIFSIGNALED(status) and reason is None:
                    reason = f"a process of it was ended by signal {os.WTERMSIG(status)}"
                if status and living and reason is None:
                    deadline = min(deadline, time.monotonic() + 5)
        if reason is None and time.monotonic() > deadline:
            reason = f"it took more than {case['limit_seconds']:.0f} s"
        elif reason is None and sum(map(_resident_nbytes, living)) > case["limit_nbytes"]:
            reason = f"it took more than {case['limit_nbytes'] / 1e9:.1f} GB of memory"
        if reason is not None:
            for pid in living:
                os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)
    return reason


def _resident_nbytes(pid):
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


if __name__ == "__main__":
    main()
