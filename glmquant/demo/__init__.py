"""GLM-4-nano, a small trained GLM-4 MoE that ships with the package, and where it lies."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from glmquant.errors import TargetError

MODEL_NAME: Final = "GLM-4-nano"


def model_dir() -> Path:
    """The folder of the BF16 model in the installed package. Read only."""
    return Path(__file__).parent / MODEL_NAME


def unpack_model(folder: Path) -> Path:
    """A copy of the model in a folder of the user's.

    Args:
        folder: Where ``GLM-4-nano`` is to lie; made if need be.

    Returns:
        The copy; one that is there already is kept.

    Raises:
        TargetError: Something else has that name.
    """
    target = folder / MODEL_NAME
    for file in sorted(model_dir().iterdir()):
        copy = target / file.name
        if copy.exists():
            if copy.read_bytes() != file.read_bytes():
                raise TargetError(
                    "the demo's folder holds something else",
                    where=str(copy),
                    expected="the file that comes with glmquant",
                    found="other contents",
                    hint="glmquant demo ANOTHER_FOLDER",
                )
            continue
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    return target
