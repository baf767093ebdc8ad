"""What ``npu-smi info`` prints on an Atlas 800 A2 and an A3, in the layouts of 25.3 and 26.0."""

from __future__ import annotations

from pathlib import Path


def a2(cards: int = 8, *, used: int = 3394, health: str = "OK") -> str:
    """One chip a card, no physical id; the last card has the health that is asked for."""
    rule = "+===========================+===============+" + "=" * 52 + "+"
    lines = [
        "+" + "-" * 96 + "+",
        "| npu-smi 25.3.rc1                 Version: 25.3.rc1" + " " * 45 + "|",
        "+---------------------------+---------------+" + "-" * 52 + "+",
        "| NPU   Name                | Health        | Power(W)    Temp(C)"
        "           Hugepages-Usage(page)|",
        "| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)"
        "  HBM-Usage(MB)        |",
        rule,
    ]
    for card in range(cards):
        said = health if card == cards - 1 else "OK"
        lines += [
            f"| {card}     910B3               | {said:<13} | 94.7        54"
            "                0    / 0             |",
            "| 0                         | 0000:C1:00.0  | 0           0    / 0"
            f"          {used:<5}/ 65536         |",
            rule,
        ]
    lines += [
        "+---------------------------+---------------+" + "-" * 52 + "+",
        "| NPU     Chip              | Process id    | Process name             "
        "| Process memory(MB)      |",
        rule,
        "| No running processes found in NPU 0" + " " * 60 + "|",
        rule,
    ]
    return "\n".join(lines) + "\n"


def a3(cards: int = 8, *, used: int = 3180) -> str:
    """Two chips a card, each with a physical id; the power stands at the first of the two."""
    rule = "+===========================+===============+" + "=" * 70 + "+"
    lines = [
        "+" + "-" * 114 + "+",
        "| npu-smi 26.0.rc2                            Version: 26.0.rc2" + " " * 52 + "|",
        "+---------------------------+---------------+" + "-" * 70 + "+",
        "| NPU   Name                | Health        | Power(W)             Temp(C)"
        "                 Hugepages-Usage(page)   |",
        "| Chip  Phy-ID              | Bus-Id        | AICore(%)            Memory-Usage(MB)"
        "        HBM-Usage(MB)           |",
        rule,
    ]
    for card in range(cards):
        for chip in range(2):
            power = "162.6" if chip == 0 else "-    "
            lines += [
                f"| {card}     Ascend910           | OK            | {power}                34"
                "                      0    / 0                |",
                f"| {chip}     {2 * card + chip:<2}                  | 0000:9D:00.0  | 0"
                f"                    0    / 0                {used:<5}/ 65536            |",
                "+" + "-" * 114 + "+" if chip == 0 else rule,
            ]
    return "\n".join(lines) + "\n"


def install(folder: Path, script: str) -> Path:
    """A program ``npu-smi`` in a folder that is to be on the PATH."""
    folder.mkdir(exist_ok=True)
    tool = folder / "npu-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    return tool


def install_printing(folder: Path, text: str) -> Path:
    """One that prints a text for ``npu-smi info``."""
    folder.mkdir(exist_ok=True)
    (folder / "info.txt").write_text(text)
    return install(folder, f'[ "$1" = info ] && cat "{folder}/info.txt"')
