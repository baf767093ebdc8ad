"""NPUs, their memory and their software: what npu-smi and CANN's own files say."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from glmquant.doctor.checks import Check, State
from glmquant.doctor.programs import run_program
from glmquant.machines import GPU_MEMORY_UTILIZATION, MACHINES
from glmquant.runtime.hosts import count_npus

GROUP: Final = "npu"
_MIB: Final = 1 << 20
_CHIPS_A_CARD: Final = {"a2": 1, "a3": 2}

_TOOL: Final = re.compile(r"\|\s*npu-smi\s+(\S+)\s+Version:\s*(\S+)")
_FIRST: Final = re.compile(r"\|\s*(\d+)\s+([\w-]*[A-Za-z][\w-]*)\s*\|\s*(\w+)\s*\|")
_SECOND: Final = re.compile(
    r"\|\s*(\d+)(?:\s+\d+)?\s*\|\s*[0-9A-Fa-f:.]+\s*\|\s*\d+"
    r"(?:\s+\d+\s*/\s*\d+)?\s+(\d+)\s*/\s*(\d+)\s*\|"
)
"""The two lines of a chip in npu-smi 23.0, 24.1, 25.3 and 26.0: name and health, then memory, HBM
last where there is any."""

_SET_ENV: Final = "source /usr/local/Ascend/ascend-toolkit/set_env.sh"
_VERSION: Final = re.compile(r"^\s*[Vv]ersion\s*=\s*\"?([\w.]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Chip:
    """One NPU, as npu-smi lists it.

    Attributes:
        card: Number of its card.
        chip: Its number on the card.
        name: ``910B3`` on an A2, ``Ascend910`` on an A3.
        health: ``OK``, ``Warning``, ``Alarm``, ``Critical`` or ``UNKNOWN``.
        used_nbytes: Its memory in use.
        nbytes: Its memory.
    """

    card: int
    chip: int
    name: str
    health: str
    used_nbytes: int
    nbytes: int

    @property
    def label(self) -> str:
        """``3`` where a card has one chip, ``3.1`` for the second of two."""
        return f"{self.card}.{self.chip}" if self.chip else str(self.card)


def parse_npu_smi(text: str) -> tuple[Chip, ...]:
    """The chips in what ``npu-smi info`` prints.

    Args:
        text: Its output; lines that are no chip's are passed over.
    """
    chips, first = [], None
    for line in text.splitlines():
        if second := _SECOND.match(line):
            if first is not None:
                chip, used, total = second.groups()
                card, name, health = first
                chips.append(
                    Chip(int(card), int(chip), name, health, int(used) * _MIB, int(total) * _MIB)
                )
            first = None
        else:
            match = _FIRST.match(line)
            first = match.groups() if match else None
    return tuple(chips)


def machine_of(chips: tuple[Chip, ...]) -> str | None:
    """The Atlas 800 that has so many chips of that memory, or None.

    Args:
        chips: All that were found.
    """
    sizes = {chip.nbytes for chip in chips}
    chips_a_card = 1 + max((chip.chip for chip in chips), default=0)
    for machine in MACHINES.values():
        is_whole = len(chips) == machine.cards and sizes == {machine.card_nbytes}
        if is_whole and chips_a_card == _CHIPS_A_CARD[machine.key]:
            return machine.name
    return None


def find_cann(root: Path, environment: Mapping[str, str]) -> tuple[str, Path] | None:
    """CANN's version and folder: where set_env.sh points to, else where the installer puts it.

    Args:
        root: ``/``, but in tests.
        environment: The variables of this process.
    """
    named = [
        environment[key]
        for key in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")
        if environment.get(key)
    ]
    usual = (
        "usr/local/Ascend/cann",
        "usr/local/Ascend/ascend-toolkit/latest",
        "usr/local/Ascend/nnae/latest",
    )
    for home in (*map(Path, named), *(root / place for place in usual)):
        arch = f"{platform.machine()}-linux"
        for name in (
            f"{arch}/ascend_toolkit_install.info",
            "ascend_nnae_install.info",
            "version.cfg",
        ):
            with suppress(OSError):
                text = (home / name).read_text(encoding="utf-8", errors="replace")
                if match := _VERSION.search(text):
                    return match[1], home
        if home.is_dir():
            return "of an unknown version", home
    return None


def check_npus(root: Path, environment: Mapping[str, str], limit_seconds: float) -> Iterator[Check]:
    """NPUs and what belongs to them.

    Args:
        root: ``/``, but in tests.
        environment: The variables of this process.
        limit_seconds: How long npu-smi may take.

    Yields:
        npu-smi and its chips, devices, driver, CANN.
    """
    devices = count_npus(root / "dev")
    yield from _check_chips(devices, environment, limit_seconds)
    yield from _check_driver(root, devices)
    cann = find_cann(root, environment)
    if cann is None:
        state = State.WARNING if devices else State.NOTE
        remedy = "the CANN image or package that the release of vllm-ascend names" * bool(devices)
        yield Check(GROUP, "CANN", state, "not installed", remedy)
    elif not environment.get("ASCEND_HOME_PATH") and not environment.get("ASCEND_TOOLKIT_HOME"):
        version, home = cann
        text = f"{version}, {home}, but its variables are not set in this shell"
        yield Check(GROUP, "CANN", State.WARNING, text, _SET_ENV)
    else:
        yield Check(GROUP, "CANN", State.OK, f"{cann[0]}, {cann[1]}")


def _check_chips(
    devices: int, environment: Mapping[str, str], limit_seconds: float
) -> Iterator[Check]:
    tool = shutil.which("npu-smi", path=environment.get("PATH"))
    if tool is None:
        if devices:
            text = f"{devices} devices in /dev, but no npu-smi"
            remedy = "mount /usr/local/bin/npu-smi and the driver into the container"
            yield Check(GROUP, "NPUs", State.WARNING, text, remedy)
        else:
            text = "none: no npu-smi and no /dev/davinci0; quantizing and verifying need none"
            yield Check(GROUP, "NPUs", State.NOTE, text)
        return
    ran = run_program([tool, "info"], limit_seconds)
    if ran.failure is not None:
        text = f"npu-smi info: {ran.failure}" + f": {ran.last_line}" * bool(ran.last_line)
        remedy = "npu-smi info by hand; dmesg and the driver's log where it hangs or fails, too"
        yield Check(GROUP, "NPUs", State.PROBLEM, text, remedy)
        return
    chips = parse_npu_smi(ran.output)
    version = _TOOL.search(ran.output)
    if not chips:
        by = f"npu-smi {version[1]}" if version else "npu-smi"
        text = f"{by} lists no chip that can be read"
        remedy = "npu-smi info by hand: no card is seen, or the format is none of 23.0 to 26.0"
        yield Check(GROUP, "NPUs", State.WARNING, text, remedy)
        return
    yield from _judge_chips(chips, version[1] if version else None, devices)


def _judge_chips(chips: tuple[Chip, ...], tool: str | None, devices: int) -> Iterator[Check]:
    names = sorted({chip.name for chip in chips})
    sizes = sorted({chip.nbytes >> 30 for chip in chips})
    text = f"{len(chips)} x {'/'.join(names)}, {'/'.join(map(str, sizes))} GiB"
    machine = machine_of(chips)
    text += f", as an {machine} has" if machine else ""
    text += f"; npu-smi {tool}" if tool else ""
    remedy = "" if machine else "glmquant plan --machine says what fits an Atlas 800 A2 or A3"
    yield Check(GROUP, "NPUs", State.OK if machine else State.NOTE, text, remedy)
    if ill := [chip for chip in chips if chip.health != "OK"]:
        said = ", ".join(f"{chip.label} {chip.health}" for chip in ill[:8])
        remedy = f"npu-smi info -t health -i {ill[0].card}; reset or replace the card"
        yield Check(GROUP, "health", State.PROBLEM, f"not OK: {said}", remedy)
    share = 1 - GPU_MEMORY_UTILIZATION
    if busy := [chip for chip in chips if chip.used_nbytes > share * chip.nbytes]:
        most = max(busy, key=lambda chip: chip.used_nbytes)
        text = (
            f"{len(busy)} of {len(chips)} are in use, {most.label} with "
            f"{most.used_nbytes / 2**30:.1f} GiB: --gpu-memory-utilization "
            f"{GPU_MEMORY_UTILIZATION} leaves {share * most.nbytes / 2**30:.1f} GiB to others"
        )
        remedy = "npu-smi info lists the processes; end them, or choose ASCEND_RT_VISIBLE_DEVICES"
        yield Check(GROUP, "NPU memory", State.WARNING, text, remedy)
    if devices < len(chips):
        text = f"{devices} of {len(chips)} are in /dev: this process can use no more"
        remedy = "--device /dev/davinciN of each, davinci_manager, devmm_svm and hisi_hdc"
        yield Check(GROUP, "devices", State.WARNING, text, remedy)


def _check_driver(root: Path, devices: int) -> Iterator[Check]:
    path = root / "usr/local/Ascend/driver/version.info"
    try:
        match = _VERSION.search(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        if devices:
            remedy = f"mount {shlex.quote(os.fspath(path))} into the container"
            yield Check(GROUP, "driver", State.WARNING, f"no {path}", remedy)
        return
    yield Check(GROUP, "driver", State.OK, match[1] if match else "of an unknown version")
