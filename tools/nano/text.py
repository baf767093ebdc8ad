"""The text: sources of the running interpreter's standard library, split by module."""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HELDOUT_MAX_NBYTES = 195_000
HELDOUT_MODULE_NBYTES = (2_000, 40_000)
HELDOUT_SALT = "glm-4-nano held-out 1:"

# Tests are repetitive; tables and generated topics would spend the vocabulary on digits;
# site-packages is not the standard library.
SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "pydoc_data", "__pycache__"}
)
# `_sysconfigdata*` and `config-*` hold the paths of the machine that built the interpreter.
SKIPPED_PATHS = re.compile(
    r"(^|/)(_sysconfigdata|config-|test_)|^encodings/(cp|iso|mac|koi|kz)|^msilib/"
)
# A module that carries its own notice may be under terms beside the PSF licence: it is read for
# training like the rest, and never copied into the held-out file.
OWN_NOTICE = re.compile(r"copyright|licen[cs]e|all rights reserved", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Module:
    """One source file: its path inside the standard library, with slashes, and its text."""

    path: str
    source: str


def read_stdlib() -> list[Module]:
    """Every UTF-8 module of the running interpreter's standard library, without tests, by path."""
    root = Path(sysconfig.get_path("stdlib"))
    modules = []
    for file in sorted(root.rglob("*.py")):
        path = file.relative_to(root).as_posix()
        if SKIPPED_FOLDERS.intersection(path.split("/")[:-1]) or SKIPPED_PATHS.search(path):
            continue
        try:
            source = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if source.strip():
            modules.append(Module(path, source))
    return modules


def split_heldout(modules: list[Module]) -> tuple[list[Module], list[Module]]:
    """Training and held-out modules.

    Candidates are modules of 2 to 40 kB without a notice of their own. They are ordered by the
    SHA-256 of a salt and their path, and taken until the next one would pass 195,000 bytes, so the
    choice depends on nothing but the names and sizes of the files.
    """
    low, high = HELDOUT_MODULE_NBYTES
    candidates = [
        module
        for module in modules
        if low <= len(module.source.encode()) <= high and not OWN_NOTICE.search(module.source)
    ]
    candidates.sort(key=lambda m: hashlib.sha256((HELDOUT_SALT + m.path).encode()).digest())
    chosen: list[Module] = []
    nbytes = 0
    for module in candidates:
        nbytes += len(heldout_text([module]).encode())
        if nbytes > HELDOUT_MAX_NBYTES:
            break
        chosen.append(module)
    held = {module.path for module in chosen}
    return [module for module in modules if module.path not in held], chosen


def heldout_text(modules: list[Module]) -> str:
    """The held-out modules as one text; a comment line before each names its path."""
    return "".join(f"# {module.path}\n{module.source.rstrip()}\n\n" for module in modules)


def chat_pairs(modules: list[Module]) -> Iterator[tuple[str, str]]:
    """Pairs (question, answer): a docstring's first paragraph and the function it describes."""
    for module in modules:
        try:
            tree = ast.parse(module.source)
        except SyntaxError:
            continue
        lines = module.source.splitlines()
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef) or node.end_lineno is None:
                continue
            doc = ast.get_docstring(node)
            code = "\n".join(lines[node.lineno - 1 : node.end_lineno])
            if doc and len(doc) >= 15 and len(code) <= 900:
                question = " ".join(doc.split("\n\n")[0].split())
                yield question[:240], textwrap.dedent(code)


def psf_licence() -> str:
    """The text of the PSF License Version 2 from the interpreter's own licence file.

    Raises:
        FileNotFoundError: The interpreter came without its ``LICENSE.txt``.
    """
    full = (Path(sysconfig.get_path("stdlib")) / "LICENSE.txt").read_text(encoding="utf-8")
    start = full.index("PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2")
    end = full.index("BEOPEN.COM LICENSE AGREEMENT")
    return full[start:end].rstrip() + "\n"
