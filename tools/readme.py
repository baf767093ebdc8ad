"""Keep what README.md shows of the program what the program prints.

python tools/readme.py          write the blocks anew
python tools/readme.py --check  fail if they are out of date

A block is a fenced text after ``<!-- help: WORDS -->``, the help of ``glmquant WORDS``, or after
``<!-- run: WORDS -->``, what ``glmquant WORDS`` prints in an empty folder.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import tempfile
from pathlib import Path

from click.testing import CliRunner

from glmquant.cli import main as program
from glmquant.runtime.environment import host

README = Path(__file__).resolve().parent.parent / "README.md"
BLOCK = re.compile(
    r"(?P<open><!-- (?P<kind>help|run): ?(?P<words>[^>]*?) ?-->\n```text\n).*?(?P<close>```\n)",
    re.DOTALL,
)


def output_of(kind: str, words: str) -> str:
    """What a block has to show."""
    arguments = [*words.split(), "--help"] if kind == "help" else words.split()
    before = Path.cwd()
    platform.machine = lambda: "x86_64"  # the README shows a machine that can have the engine,
    host.cpu_flags = lambda: " ".join(host.AVX2_FLAGS)  # whatever this one is
    with tempfile.TemporaryDirectory() as empty:
        os.environ["GLMQUANT_ENGINE_HOME"] = empty  # what it prints on a machine without an engine
        os.chdir(empty)
        try:
            result = CliRunner().invoke(program, arguments, prog_name="glmquant", terminal_width=90)
        finally:
            os.chdir(before)
    if result.exit_code:
        sys.exit(f"glmquant {' '.join(arguments)} failed: {result.output}")
    return result.stdout


def renewed(text: str) -> str:
    """The README with every block written anew."""
    return BLOCK.sub(lambda m: m["open"] + output_of(m["kind"], m["words"]) + m["close"], text)


def documented(text: str) -> set[str]:
    """The commands that have a help block."""
    return {match["words"] for match in BLOCK.finditer(text) if match["kind"] == "help"}


def main() -> None:
    """Write or check."""
    text = README.read_text(encoding="utf-8")
    missing = program.commands.keys() - documented(text)
    if missing:
        sys.exit(f"README.md has no help block for: {', '.join(sorted(missing))}")
    new = renewed(text)
    if "--check" not in sys.argv[1:]:
        README.write_text(new, encoding="utf-8")
    elif new != text:
        sys.exit("README.md is out of date: run python tools/readme.py")


if __name__ == "__main__":
    main()
