"""What the user asked of add-mtp, in the user's own words: hints are commands that can be typed."""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from glmquant.errors import TargetError


def command(*words: str | Path) -> str:
    """A command of glmquant, each word quoted as a shell wants it."""
    return shlex.join(["glmquant", *(typed(w) if isinstance(w, Path) else w for w in words)])


def typed(path: Path) -> str:
    """A path that is taken for no option."""
    return f"./{path}" if str(path).startswith("-") else str(path)


@dataclass(frozen=True, slots=True)
class Request:
    """A graft that is asked for, its paths as they were named.

    Attributes:
        folder: The quantized checkpoint.
        source: The BF16 source it was made of.
        output: Where the result goes; into the checkpoint itself if None.
        replace_mtp: Take out MTP tensors and router biases that are not the source's, bit for bit.
    """

    folder: Path
    source: Path
    output: Path | None = None
    replace_mtp: bool = False

    def from_anywhere(self) -> Request:
        """The same in whole paths where a swap takes the working directory away, else itself."""
        with suppress(OSError):
            here = Path.cwd()
            if self.folder.resolve() in (here, *here.parents):
                output = here / self.output if self.output is not None else None
                source = Path(os.path.normpath(here / self.source))
                return replace(self, folder=self.folder.resolve(), source=source, output=output)
        return self

    @property
    def again(self) -> str:
        """The command."""
        words: list[str | Path] = ["add-mtp", self.folder, "--from", self.source]
        words += ["--output", self.output] if self.output is not None else []
        words += ["--replace-mtp"] * self.replace_mtp
        return command(*words)

    @property
    def replacing(self) -> str:
        """The same with ``--replace-mtp``."""
        return replace(self, replace_mtp=True).again

    @property
    def swapped(self) -> str:
        """The same with the two folders in each other's place."""
        return replace(self, folder=self.source, source=self.folder).again

    @property
    def elsewhere(self) -> str:
        """The same with an output beside the checkpoint under a name that is free."""
        return replace(self, output=free_name(self.folder, "mtp")).again

    @property
    def undo(self) -> str:
        """The command that takes the checkpoint's graft back."""
        return command("add-mtp", self.folder, "--undo")

    @property
    def forget(self) -> str:
        """The command that keeps the checkpoint's graft for good."""
        return command("add-mtp", self.folder, "--forget")

    @property
    def anew(self) -> str:
        """The command that makes a checkpoint with an MTP layer of the source."""
        return command("w8a8", self.source, "--add-mtp")

    def require_apart(self) -> None:
        """Source, checkpoint and output are three folders, none in another.

        Raises:
            TargetError: They are not.
        """
        _require_apart("DIR", self.folder, "--from", self.source, "name the BF16 weights as --from")
        if self.output is None:
            return
        is_itself = self.output.resolve() == self.folder.resolve()
        hint = replace(self, output=None).again if is_itself else self.elsewhere
        _require_apart("DIR", self.folder, "--output", self.output, hint)
        _require_apart("--from", self.source, "--output", self.output, hint)


def _require_apart(word: str, first: Path, other: str, second: Path, hint: str) -> None:
    found = None
    try:
        one, two = first.resolve(), second.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, until Python 3.13
        found = str(error)
    else:
        if one == two:
            found = f"both are {one}"
        elif one in two.parents:
            found = f"{two} is in {one}"
        elif two in one.parents:
            found = f"{one} is in {two}"
    if found:
        raise TargetError(
            f"{word} and {other} overlap",
            where=f"{other} {second}",
            expected="folders apart from each other",
            found=found,
            hint=hint,
        )


def free_name(folder: Path, suffix: str) -> Path:
    """A name beside a folder that nothing has."""
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    names = (f"{folder.name}-{suffix}{f'-{n}' * (n > 1)}" for n in range(1, 1000))
    return next(path for path in map(folder.with_name, names) if not path.exists())
