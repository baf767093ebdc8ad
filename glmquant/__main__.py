"""``python -m glmquant`` is the command ``glmquant``."""

from __future__ import annotations

import gc
import os

from glmquant.cli import main


def start() -> None:
    """Run the command line in a process of its own.

    Plans and records are hundreds of thousands of objects without a cycle, which the collector
    would walk again and again; and NumPy's matrix threads, which nothing here uses, would spin.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.disable()
    main()


if __name__ == "__main__":
    start()
