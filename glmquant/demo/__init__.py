"""GLM-4-nano, a small trained GLM-4 MoE that ships with the package, and where it lies."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from glmquant.errors import TargetError
from glmquant.storage import writing
from glmquant.writer import write_file

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
        TargetError: Something else has that name; nothing is written then.
        StorageError: The disk refuses.
    """
    target = folder / MODEL_NAME
    missing = []
    for file in sorted(model_dir().iterdir()):
        copy = target / file.name
        if not copy.exists():
            missing.append(file)
        elif copy.read_bytes() != file.read_bytes():
            raise TargetError(
                "the demo's folder holds something else",
                where=str(copy),
                expected="the file that comes with glmquant",
                found="other contents",
                hint="glmquant demo ANOTHER_FOLDER",
            )
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
    for file in missing:
        write_file(target / file.name, file.read_bytes())
    return target
