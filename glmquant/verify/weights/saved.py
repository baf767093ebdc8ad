"""Results of single shards, kept while a verification runs, so that an interrupted one goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import xxhash

from glmquant import __version__
from glmquant.errors import SourceChangedError, StorageError
from glmquant.source import FileStamp, FolderSource, was_rewritten
from glmquant.usercache import read_cached, remove_cached, write_cached
from glmquant.verify.weights.figures import TensorFigures
from glmquant.verify.weights.flaws import Flaw

FORMAT: Final = 1


@dataclass(slots=True)
class Results:
    """What was found in one shard.

    Attributes:
        flaws: What is wrong.
        figures: How far int8 weights are from the source's.
        inputs: Linear → suffix → its one number, of static linears.
    """

    flaws: list[Flaw] = field(default_factory=list)
    figures: list[TensorFigures] = field(default_factory=list)
    inputs: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, other: Results) -> None:
        """Take up what another has."""
        self.flaws += other.flaws
        self.figures += other.figures
        self.inputs |= other.inputs


class Saved:
    """The results of finished shards, in the user's cache.

    They hold for these folders, this version, and files that were not touched since.

    Args:
        mine: The checkpoint.
        theirs: The source, if it is compared.
    """

    def __init__(self, mine: FolderSource, theirs: FolderSource | None) -> None:
        self._sides = {"checkpoint": mine} | ({"source": theirs} if theirs else {})
        paths = [side.origin or str(side.path.resolve()) for side in self._sides.values()]
        self._head = {"format": FORMAT, "version": __version__, "folders": paths}
        key = json.dumps([*paths, sorted(self._sides)])
        self.name = f"verify-{xxhash.xxh3_128(key.encode()).hexdigest()}.json"
        self._shards: dict[str, Any] = self._read()

    def _read(self) -> dict[str, Any]:
        data = read_cached(self.name)
        try:
            held = json.loads(data) if data else {}
            if {key: held.get(key) for key in self._head} == self._head:
                return dict(held["shards"])
        except (AttributeError, KeyError, TypeError, ValueError):
            pass  # not what this version wrote: all is read anew
        return {}

    def stamps(self, files: Iterable[tuple[str, str]]) -> dict[str, list[Any]]:
        """Length and times of files now.

        Args:
            files: The side, ``checkpoint`` or ``source``, and the name of each.

        Raises:
            StorageError: One cannot be looked at.
        """
        return {
            f"{side}/{file}": list(self._sides[side].stamp(file))
            for side, file in sorted(set(files))
        }

    def require_same(self, stamps: Mapping[str, list[Any]]) -> None:
        """Files that were read were not rewritten meanwhile.

        Args:
            stamps: Theirs, from before they were read.

        Raises:
            SourceChangedError: One was.
            StorageError: One cannot be looked at.
        """
        for key, stamp in stamps.items():
            side, _, file = key.partition("/")
            if was_rewritten(FileStamp(*stamp), self._sides[side].stamp(file)):
                raise SourceChangedError(
                    "a file changed while it was read",
                    where=str(self._sides[side].path / file),
                    expected="a folder that nobody writes to",
                    found="another length or modification time",
                    hint="wait until the other program has ended, and run the same command again",
                )

    def load(self, shard: str, signature: str) -> Results | None:
        """The results of a shard, where an interrupted run left them and nothing changed since.

        Args:
            shard: Its name.
            signature: Says what was to be done with it.
        """
        try:
            held = self._shards[shard]
            if held["signature"] != signature or not self._are_now(held["stamps"]):
                return None
            return Results(
                [Flaw(*flaw) for flaw in held["flaws"]],
                [TensorFigures(*figures) for figures in held["figures"]],
                dict(held["inputs"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError, StorageError):
            return None

    def _are_now(self, stamps: Mapping[str, list[Any]]) -> bool:
        for key, stamp in stamps.items():
            side, _, file = key.partition("/")
            if self._sides[side].stamp(file) != FileStamp(*stamp):
                return False
        return True

    def save(
        self, shard: str, signature: str, stamps: dict[str, list[Any]], results: Results
    ) -> None:
        """Keep the results of a shard.

        Args:
            shard: Its name.
            signature: Says what was done with it.
            stamps: Those of every file that was read for it, from before that.
            results: What was found.
        """
        self._shards[shard] = {
            "signature": signature,
            "stamps": stamps,
            "flaws": results.flaws,
            "figures": results.figures,
            "inputs": results.inputs,
        }
        data = json.dumps({**self._head, "shards": self._shards}, separators=(",", ":"))
        write_cached(self.name, data.encode())

    def remove(self) -> None:
        """Forget all: the next verification reads everything anew."""
        remove_cached(self.name)
