"""``python -m glmquant`` is the command ``glmquant``."""

from __future__ import annotations

import gc
import os
import signal
import sys
from types import FrameType


def start() -> None:
    """Run the command line in a process of its own.

    Plans and records are hundreds of thousands of objects without a cycle, which the collector
    would walk again and again. NumPy's matrix threads, which nothing here uses, would spin, and
    pydantic would look for plugins in the metadata of every package that is installed. SIGTERM, by
    which batch systems and containers end a run, is Ctrl-C.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    gc.disable()
    try:
        from glmquant.cli import main  # so that Ctrl-C while it is loaded is none but that

        main()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is done is done
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # and nothing need be waited for


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    start()
