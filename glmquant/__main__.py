"""``python -m glmquant`` is the command ``glmquant``."""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Any, TextIO


def start() -> None:
    """Run the command line in a process of its own.

    Plans and records are hundreds of thousands of objects without a cycle, which the collector
    would walk again and again. NumPy's matrix threads, which nothing here uses, would spin, and
    pydantic would look for plugins in the metadata of every package that is installed. SIGTERM, by
    which batch systems and containers end a run, is Ctrl-C.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    if sys.stderr is not None:
        sys.stderr = _unfailing(sys.stderr)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    gc.disable()
    try:
        from glmquant.cli import main  # so that Ctrl-C while it is loaded is none but that

        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is done is done
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # and nothing need be waited for


class _UnfailingFile(io.FileIO):
    """A file that takes all there is to say, and loses what the system does not take."""

    def write(self, data: Any) -> int:
        """Write it, or pass over it: a full disk, a reader that has gone."""
        with suppress(OSError):
            return super().write(data) or len(data)  # None where one would have to wait
        return len(data)


def _unfailing(stderr: TextIO) -> TextIO:
    """Standard error by which no work ends: what goes there is said beside it."""
    file = _UnfailingFile(stderr.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(file), stderr.encoding, stderr.errors, line_buffering=True
    )


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    start()
